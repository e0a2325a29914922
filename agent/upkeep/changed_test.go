package upkeep

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// deleteBefore moves the log start offset of a partition.
func (b *bench) deleteBefore(n int32, start protocol.Offset) {
	b.t.Helper()
	log := partition.New(4)
	at, _ := b.manifests.Of(cleanShard).Find(topic, n)
	log.RestoreSnapshot(SnapshotOf(at))
	p := ingest.NewPartition(partition.ID{Topic: topic, Partition: n}, "t", cleanShard, log)
	if err := b.manifests.DeleteBefore(b.t.Context(), map[*ingest.Partition]protocol.Offset{p: start}); err != nil {
		b.t.Fatal(err)
	}
}

// lose deletes an object of a segment from the bucket. Its number is not given again.
func (b *bench) lose(name string) {
	b.t.Helper()
	for range 2 {
		b.manifests.number(cleanShard, 4)
	}
	if err := b.store.Delete(b.t.Context(), name); err != nil {
		b.t.Fatal(err)
	}
}

// TestCleanChanged has segments leave the manifest, and the bucket, while a cleaning is to read them: that is no damage, and it goes on, or is planned anew at once. One that the manifest still names is.
func TestCleanChanged(t *testing.T) {
	const footers, keys = 2, 2 // requests of partition 0, and then as many again for what is left
	for name, test := range map[string]struct {
		gate   int // before which request
		start  protocol.Offset
		resign bool
		steps  int
		failed bool
	}{
		"below the log start, before it is wanted": {footers + keys, 50, false, 1, false},
		"below the log start, when it is wanted":   {footers + 1, 50, false, 2, false},
		"within the footers":                       {1, 50, false, 2, false},
		"the log starts in it":                     {footers + 1, 45, false, 1, true},
		"the manifest names it":                    {footers + 1, 0, false, 1, true},
		"the shard is led by another one":          {footers + 1, 0, true, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := (&bench{other: 20, clean: 20}).begin(t)
			first := b.manifests.Of(cleanShard).Segments[0].Name(uint32(cleanShard))
			gate := fault.NewGate()
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Nth: test.gate, Gate: gate})
			c := b.cleaner(roomy)
			var log bytes.Buffer
			c.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
			done := make(chan int, 1)
			go func() {
				steps := 0
				for steps < 10 && c.Step(t.Context()) && !test.resign {
					steps++
				}
				done <- steps
			}()
			<-gate.Entered()
			if test.start > 0 {
				b.deleteBefore(0, test.start)
			}
			b.lose(first)
			if test.resign {
				b.manifests.Resign(cleanShard)
			}
			gate.Open()
			steps := <-done
			if failed := len(c.failed) > 0; failed != test.failed || failed != strings.Contains(log.String(), "level=ERROR") || !failed && log.Len() > 0 {
				t.Errorf("it failed: %t, with %q", failed, log.String())
			}
			if steps != test.steps {
				t.Errorf("%d steps, want %d", steps, test.steps)
			}
			if test.failed || test.resign {
				return
			}
			if got := b.left(0); !slices.Equal(got, span(90, 100)) {
				t.Errorf("are left %d", got)
			}
			if p := &b.manifests.Of(cleanShard).Partitions[0]; p.Cleaned != 100 || p.LogStartOffset != test.start {
				t.Errorf("the manifest has %+v", p)
			}
		})
	}
}

// TestSparseChanged does the same to a segment that is written anew because little is left of it.
func TestSparseChanged(t *testing.T) {
	for name, leaves := range map[string]bool{"it leaves": true, "the manifest names it": false} {
		t.Run(name, func(t *testing.T) {
			b := (&bench{other: 500}).begin(t)
			b.deleteBefore(1, 500) // so that little is left of the second segment
			var log bytes.Buffer
			m := NewMerger(MergeConfig{DataBytes: 1 << 14}, MergerDeps{
				Manifests: b.manifests, Index: b.index, Tails: index.NewTails(), Footers: b.footers, Store: b.store,
				Partition: func(partition.ID) *ingest.Partition { return nil },
				Leads:     func(coordinator.ShardID) bool { return true },
				Answers:   func(context.Context) bool { return true },
				Topic:     func([16]byte) (string, bool) { return "t", true },
				Compacted: func([16]byte) bool { return false },
				Now:       func() time.Time { return b.now }, Log: slog.New(slog.NewTextHandler(&log, nil)),
			})
			second := b.manifests.Of(cleanShard).Segments[1].Name(uint32(cleanShard))
			gate := fault.NewGate()
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: second, Gate: gate})
			done := make(chan error, 1)
			go func() { done <- m.Step(t.Context()) }()
			<-gate.Entered()
			if leaves {
				b.deleteBefore(0, 100)
			}
			b.lose(second)
			gate.Open()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if rests := !m.spoiled[cleanShard].IsZero(); rests == leaves || (log.Len() > 0) == leaves {
				t.Errorf("it rests: %t, and says %q", rests, log.String())
			}
			if len(b.manifests.led(cleanShard).claims) != 0 {
				t.Error("something is claimed still")
			}
		})
	}
}
