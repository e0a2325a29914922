package upkeep

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
)

// sweep deletes all garbage, and returns the names of what is in the bucket then, and of what the shard's newest manifest refers to, and its own.
func (b *bench) sweep() (left, want []string) {
	b.t.Helper()
	for _, name := range b.manifests.garbage.due(time.Now().Add(time.Hour)) {
		if err := b.store.Delete(b.t.Context(), name); err != nil {
			b.t.Fatal(err)
		}
	}
	for info, err := range b.store.List(b.t.Context(), "", "") {
		if err != nil {
			b.t.Fatal(err)
		}
		left = append(left, info.Name)
	}
	m := b.manifests.Of(cleanShard)
	want = append(want, m.Name())
	for i := range m.Segments {
		want = append(want, m.Segments[i].Name(m.Shard))
	}
	slices.Sort(want)
	return left, want
}

// TestGivenUp has a cleaning, or the manifest that it makes, be put with an outcome that is not known, or fail: nothing of it stays in the bucket while the leader lives, and nothing goes that the newest manifest names.
func TestGivenUp(t *testing.T) {
	for name, test := range map[string]struct {
		drawn     int // numbers of segments, before: the manifest has 1 and 2
		rule      fault.Rule
		etcd      error
		installed bool
	}{
		"a segment, whose answer is lost":  {2, fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.UnknownApplied}, nil, true},
		"a segment, each answer is lost":   {2, fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.UnknownApplied, Times: fault.Always}, nil, false},
		"a name that is in use":            {0, fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.UnknownApplied, Times: fault.Always}, nil, false},
		"a manifest, whose answer is lost": {2, fault.Rule{Op: fault.Put, Prefix: manifest.NamePrefix, Effect: fault.UnknownApplied}, nil, true},
		"a manifest, each answer is lost":  {2, fault.Rule{Op: fault.Put, Prefix: manifest.NamePrefix, Effect: fault.UnknownApplied, Times: fault.Always}, nil, false},
		"no space in etcd":                 {2, fault.Rule{Prefix: "none"}, coordinator.ErrNoSpace, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			for range test.drawn {
				b.manifests.number(cleanShard, 4)
			}
			b.store.Add(test.rule)
			b.ledger.err = test.etcd
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if ok := b.cleaner(roomy).Step(ctx); ok != test.installed {
				t.Errorf("%s: the cleaning was installed: %v", name, ok)
			}
			b.store.Clear()
			if left, want := b.sweep(); !slices.Equal(left, want) {
				t.Errorf("%s: the bucket has\n%q, want\n%q", name, left, want)
			}
		})
	}
}

// TestGivenUpGeneration has a manifest given up, the shard resigned, and led again in the same epoch, as when it could not be handed over: the next manifest has another name, since what has that one is going to be deleted.
func TestGivenUpGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		record, _ := b.manifests.Record(cleanShard)
		b.store.Add(fault.Rule{Op: fault.Put, Prefix: manifest.NamePrefix, Effect: fault.Unavailable, Times: fault.Always})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		nothing := change{edit: func(*manifest.Manifest) {}}
		if err := b.manifests.install(ctx, cleanShard, b.manifests.led(cleanShard), nothing); !errors.Is(err, errNotWritten) {
			t.Errorf("a bucket that is away: %v", err)
		}
		b.store.Clear()
		b.manifests.Resign(cleanShard)
		if err := b.manifests.Adopt(t.Context(), cleanShard, record); err != nil {
			t.Fatal(err)
		}
		if err := b.manifests.install(t.Context(), cleanShard, b.manifests.led(cleanShard), nothing); err != nil {
			t.Fatal(err)
		}
		if left, want := b.sweep(); !slices.Equal(left, want) {
			t.Errorf("the bucket has\n%q, want\n%q", left, want)
		}
	})
}

// TestGivenUpResigned holds that who tries to put a manifest stops once the shard is not led any more.
func TestGivenUpResigned(t *testing.T) {
	b := newBench(t)
	gate := fault.NewGate()
	b.store.Add(fault.Rule{Op: fault.Put, Prefix: manifest.NamePrefix, Effect: fault.Unavailable, Times: fault.Always, Gate: gate})
	done := make(chan error, 1)
	sh := b.manifests.led(cleanShard)
	go func() {
		done <- b.manifests.install(t.Context(), cleanShard, sh, change{edit: func(*manifest.Manifest) {}})
	}()
	<-gate.Entered()
	b.manifests.Resign(cleanShard)
	gate.Open()
	if err := <-done; !errors.Is(err, errNotWritten) {
		t.Errorf("it is told %v", err)
	}
}
