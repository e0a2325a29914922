//go:build !linux

package load

import "time"

// pacer waits for points in time as precisely as Go's timers allow.
type pacer struct{}

func newPacer() pacer { return pacer{} }

func (pacer) stop() {}

// until returns at that time, or at once when it is past.
func (pacer) until(at time.Time) { time.Sleep(time.Until(at)) }
