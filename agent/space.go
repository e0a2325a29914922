package agent

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
)

// spacePause is how often an agent asks etcd how full it is.
const spacePause = 10 * time.Second

// space is how full etcd was when it was asked last. The zero space knows nothing.
type space struct {
	last atomic.Pointer[coordinator.Status]
}

// status returns the last answer; zero before there is one.
func (s *space) status() coordinator.Status {
	if last := s.last.Load(); last != nil {
		return *last
	}
	return coordinator.Status{}
}

// watchSpace asks etcd at intervals how full it is, and says so when it is full and when it is not any more, until ctx ends. Nothing depends on it: whoever writes
// learns from the answer that there is no space, and waits.
func (a *Agent) watchSpace(ctx context.Context) error {
	tick := time.NewTicker(spacePause)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, retry.CallTimeout)
		now, err := a.deps.KV.Status(call)
		cancel()
		if err != nil {
			a.log.Debug("etcd did not say how full it is", "err", err)
		} else {
			before := a.space.status()
			a.space.last.Store(&now)
			switch {
			case now.NoSpace && !before.NoSpace:
				a.log.Error("etcd has no space left and refuses writes until an operator has defragmented it and disarmed its alarm; "+
					"until then records gather in the WAL, and consumers cannot commit", "bytes", now.SizeBytes, "used", now.UsedBytes, "quota", now.QuotaBytes)
			case !now.NoSpace && before.NoSpace:
				a.log.Info("etcd has space again", "bytes", now.SizeBytes, "used", now.UsedBytes, "quota", now.QuotaBytes)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
