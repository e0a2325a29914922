//go:build unix

package storetest

import (
	"syscall"
	"testing"
	"time"
)

// ReportCPU runs a benchmark's loop and reports the CPU seconds that this process, kernel included, spent for each GiB,
// where one iteration handles the given bytes.
func ReportCPU(b *testing.B, bytes int64, loop func()) {
	b.Helper()
	before := cpuTime(b)
	loop()
	gib := float64(bytes) * float64(b.N) / (1 << 30)
	b.ReportMetric((cpuTime(b)-before).Seconds()/gib, "cpu-s/GiB")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
