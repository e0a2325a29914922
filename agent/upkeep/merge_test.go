package upkeep

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	memstore "github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol/batch"
)

// yard are shards from 1 on, each of which has one commit that is not merged, at the revision of its number, with the first record of the partition of that number.
type yard struct {
	*Merger
	t       *testing.T
	store   *fault.Store
	now     time.Time
	answers bool
	leads   func(coordinator.ShardID) bool
	objects []string // of the commits
}

func newYard(t *testing.T, shards int) *yard {
	t.Helper()
	y := &yard{t: t, store: fault.New(memstore.New()), now: time.UnixMilli(1 << 30), answers: true, leads: func(coordinator.ShardID) bool { return true }}
	ms, ix := manifests(y.store, &ledger{})
	tails := index.NewTails()
	for n := uint64(1); n <= uint64(shards); n++ {
		y.objects = append(y.objects, y.commit(ix, tails, n))
		if err := ms.Adopt(t.Context(), coordinator.ShardID(n), coordinator.Shard{Epoch: 1}); err != nil {
			t.Fatal(err)
		}
	}
	y.Merger = NewMerger(MergeConfig{DataBytes: 1, CommitsMax: 1, KeyBytesMax: 1}, MergerDeps{
		Manifests: ms, Index: ix, Tails: tails, Footers: fetch.NewFooters(y.store, 1<<20), Store: y.store,
		Partition: func(partition.ID) *ingest.Partition { return nil },
		Leads:     func(id coordinator.ShardID) bool { return y.leads(id) }, Answers: func(context.Context) bool { return y.answers },
		Topic: func([16]byte) (string, bool) { return "t", true }, Compacted: func([16]byte) bool { return false },
		ProducersMax: 10, Now: func() time.Time { return y.now }, Log: slog.New(slog.DiscardHandler),
	})
	return y
}

// commit puts the segment of a shard's commit.
func (y *yard) commit(ix *index.Index, tails *index.Tails, n uint64) (object string) {
	y.t.Helper()
	b := batch.NewBuilder(batch.None)
	b.LeaderEpoch = 1
	b.Append(1, nil, []byte("v"))
	data, err := b.AppendTo(nil)
	if err != nil {
		y.t.Fatal(err)
	}
	var builder segment.Builder
	if err := builder.Add(segment.Key{Shard: uint32(n), Topic: topic, Partition: int32(n)}, "t", data); err != nil {
		y.t.Fatal(err)
	}
	parts, footer, err := builder.Finish(segment.Header{ID: segment.ID{Log: 1, Fence: 1, Commit: n}, FirstEntry: 1, LastEntry: 1, CreatedMs: 1})
	if err != nil {
		y.t.Fatal(err)
	}
	object = footer.Header.ID.Name()
	if err := y.store.Put(y.t.Context(), object, objectstore.Body{Parts: parts, Size: footer.ObjectSize}); err != nil {
		y.t.Fatal(err)
	}
	c := coordinator.Commit{Object: object, ObjectSize: footer.ObjectSize, FooterPos: footer.Pos, CreatedMs: 1, Partitions: flush.CommitPartitions(footer)}
	err = flush.Extents(c, int64(n), func(id partition.ID, e index.Extent) error { return ix.Add(id, e, 0) })
	if err != nil {
		y.t.Fatal(err)
	}
	tails.Add(&index.Commit{Log: 1, Number: n, Name: object, Revision: int64(n), CreatedMs: 1, KeyBytes: 1}, map[uint32]index.Part{
		uint32(n): {Partitions: []partition.ID{{Topic: topic, Partition: int32(n)}}, Bytes: int64(len(data))},
	})
	return object
}

// step merges once, a while after the last time.
func (y *yard) step(rest time.Duration) {
	y.t.Helper()
	y.now = y.now.Add(rest)
	if err := y.Step(y.t.Context()); err != nil {
		y.t.Fatal(err)
	}
}

// lose has the bucket not give what a shard has.
func (y *yard) lose(shard int) {
	y.store.Add(fault.Rule{Op: fault.Get, Prefix: y.objects[shard-1], Times: fault.Always, Effect: fault.Unavailable})
}

// times is how often merges of shards from 1 on have failed; -1 for one that has not.
func (y *yard) times(shards ...coordinator.ShardID) (all []int) {
	for _, id := range shards {
		f, ok := y.failed[id]
		if !ok {
			f.times = -1
		}
		all = append(all, f.times)
	}
	return all
}

// TestMergeBesideFailing: shards that cannot be merged, though theirs are the oldest commits, do not hold up others, and are tried by turns.
func TestMergeBesideFailing(t *testing.T) {
	y := newYard(t, 4)
	y.lose(1)
	y.lose(2)
	y.step(0)
	if got := y.times(1, 2, 3, 4); !slices.Equal(got, []int{1, 1, -1, -1}) || y.Stats().Merges != 2 {
		t.Errorf("failures are %d, after %d merges: want two that have failed once, and two merges", got, y.Stats().Merges)
	}
	for n, want := range [][]int{{2, 1}, {2, 2}, {3, 2}, {3, 3}} { // as if each had taken longer than the rest
		y.step(mergeRest)
		if got := y.times(1, 2); !slices.Equal(got, want) {
			t.Errorf("step %d: failures are %d, want %d", n, got, want)
		}
	}
	if y.Clogged() != 0 {
		t.Errorf("%d shards take no writes, of few commits", y.Clogged())
	}
	y.store.Clear()
	y.step(mergeRest)
	if got := y.times(1, 2); !slices.Equal(got, []int{-1, -1}) || y.Stats().Merges != 4 {
		t.Errorf("mended: failures are %d, after %d merges", got, y.Stats().Merges)
	}
}

// TestMergeAway: while the bucket is away no failure counts, and a step ends with the first; nor does one count of a shard that was another's meanwhile.
func TestMergeAway(t *testing.T) {
	y := newYard(t, 2)
	y.lose(1)
	y.lose(2)
	y.answers = false
	for range 3 {
		y.step(mergeRest)
	}
	if got := y.times(1, 2); !slices.Equal(got, []int{0, 0}) {
		t.Errorf("away: failures are %d, want none that count", got)
	}
	y.answers = true
	y.step(mergeRest)
	y.step(mergeRest)
	if got := y.times(1, 2); !slices.Equal(got, []int{1, 1}) {
		t.Errorf("back: failures are %d, want one of each", got)
	}
	y.leads = func(id coordinator.ShardID) bool { return id != 1 }
	y.step(0)
	if got := y.times(1); !slices.Equal(got, []int{-1}) {
		t.Errorf("not led: failures are %d, want none", got)
	}
}
