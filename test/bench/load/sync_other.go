//go:build !linux

package load

import "os"

// syncData is the nearest that every system has to fdatasync.
func syncData(file *os.File) error { return file.Sync() }
