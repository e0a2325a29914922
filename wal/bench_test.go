package wal_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
)

// BenchmarkAppend appends with a real disk and a sync per round: every goroutine has one entry in flight, and waits for
// it. CPU is that of the whole process.
func BenchmarkAppend(b *testing.B) {
	for _, entry := range []int{1 << 10, 16 << 10, 1 << 20} {
		for _, writers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("bytes=%d/writers=%d", entry, writers), func(b *testing.B) {
				benchmarkAppend(b, entry, writers)
			})
		}
	}
}

type signal chan struct{}

func (s signal) Stored()      {}
func (s signal) Durable()     { s <- struct{}{} }
func (s signal) Failed(error) { close(s) }

func benchmarkAppend(b *testing.B, entry, writers int) {
	s := openStore(b, b.TempDir(), 0)
	l := newLog(b, s, wal.Config{BytesMax: 64 << 20})
	defer func() {
		if err := l.Close(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	payload := make([]byte, entry)
	appends := make(chan struct{}, writers)
	var running sync.WaitGroup
	for range writers {
		running.Go(func() {
			durable := make(signal, 1)
			for range appends {
				admission, err := l.Admit(b.Context(), entry)
				if err != nil {
					b.Error(err)
					return
				}
				ref, err := l.Append(nil, payload, crc32c.Tail{}, durable)
				if err != nil {
					b.Error(err)
					return
				}
				admission.Done()
				<-durable
				if ref.Entry%wal.EntryID(1+(1<<20)/entry) == 0 {
					l.Trim(l.Durable())
				}
			}
		})
	}
	// The files are prepared and the memory is touched before the measurement.
	for range max(1, min(20000, 192<<20/entry)) {
		appends <- struct{}{}
	}
	b.SetBytes(int64(entry))
	b.ReportAllocs()
	before, cpu, start := l.Stats(), processorTime(b), time.Now()
	for b.Loop() {
		appends <- struct{}{}
	}
	close(appends)
	running.Wait()
	after, used := l.Stats(), processorTime(b)-cpu
	gigabytes := float64(after.Bytes-before.Bytes) / 1e9
	b.ReportMetric(used.Seconds()/gigabytes, "cpu-s/GB")
	b.ReportMetric(float64(after.Syncs-before.Syncs)/time.Since(start).Seconds(), "syncs/s")
	b.ReportMetric(float64(after.Entries-before.Entries)/float64(after.Syncs-before.Syncs), "entries/sync")
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
