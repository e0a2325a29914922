package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// TestSettle: what a restore has decided of transactions by the bucket alone is decided anew by what disks have beside.
func TestSettle(t *testing.T) {
	const producer, decidedMs, lastEpoch = 40, 1000, 32766
	set := func(partitions ...int32) txn.Set {
		var all []txn.Partition
		for _, n := range partitions {
			all = append(all, txn.Partition{Topic: topic.ID, Partition: n})
		}
		return txn.NewSet(all...)
	}
	record := func(state txn.State, epoch protocol.ProducerEpoch, partitions, fence txn.Set) *txn.Snapshot {
		return &txn.Snapshot{
			Format: 1, State: state, ProducerID: producer, Epoch: epoch, LastProducerID: -1, LastEpoch: -1, NextProducerID: -1, Partitions: partitions, Fence: fence, StartedMs: -1, UpdatedMs: decidedMs,
		}
	}
	begun := entry{epoch: 1, producer: producer, at: 3}
	marked := func(e entry, atMs int64) entry {
		e.marker = atMs
		return e
	}
	next := entry{offset: 1, epoch: 1, producer: producer, at: 3}
	for name, test := range map[string]struct {
		restored *txn.Snapshot // nil: nobody knows the producer
		entries  []entry
		want     string // state, epoch, partitions, fence; empty for no record
	}{
		"an id that had nothing open": {
			restored: record(txn.Empty, lastEpoch, nil, nil), entries: []entry{begun}, want: "PrepareAbort 32766 [0] []",
		},
		"an open transaction in more partitions": {
			restored: record(txn.PrepareAbort, lastEpoch, set(7), nil), entries: []entry{begun, {partition: 2, epoch: 1, producer: producer, at: 3}}, want: "PrepareAbort 32766 [0 2 7] []",
		},
		"a producer that nobody knows": {entries: []entry{begun}, want: "PrepareAbort 32766 [0] []"},
		"records without transactions": {entries: at(1, 0, 1, 2), want: ""},
		"a decision, and its records": {
			restored: record(txn.PrepareCommit, 3, set(0, 7), set(0, 7)), entries: []entry{begun}, want: "PrepareCommit 3 [0 7] [0 7]",
		},
		"a decision, and its marker": {
			restored: record(txn.PrepareCommit, 3, set(0, 7), set(0, 7)), entries: []entry{marked(begun, decidedMs), next}, want: "PrepareCommit 3 [7] [0 7]",
		},
		"a decision, and the marker of the one before": {
			restored: record(txn.PrepareCommit, 3, set(0, 7), set(0, 7)), entries: []entry{marked(begun, decidedMs-1), next}, want: "PrepareCommit 3 [0 7] [0 7]",
		},
		"a decision, and what came later elsewhere": {
			restored: record(txn.PrepareCommit, 3, set(7), set(7)), entries: []entry{begun}, want: "PrepareCommit 3 [7] [0 7]",
		},
		"what is not committed anew": {
			restored: record(txn.Empty, lastEpoch, nil, nil), entries: []entry{{offset: 5, epoch: 0, producer: producer, at: 3}}, want: "Empty 32766 [] []",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTwoLogs(t)
			put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
			key := coordinator.KeyTxn(coordinator.ShardOfName("varve-restore-40", 4), "varve-restore-40")
			if test.restored != nil {
				key = coordinator.KeyTxn(1, "id")
				put(t, w.kv, key, *test.restored)
			}
			if test.entries[0].offset == 5 {
				w.restored(t, 5, 1) // by a later leader
			}
			w.both(t, 7, test.entries, "a", "b", "c")
			for range 2 {
				if err := w.run(t, 7, false, "a", "b", "c", "d"); err != nil {
					t.Fatal(err)
				}
			}
			item, _, err := w.kv.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if item.ModRevision > 0 {
				s, err := coordinator.Decode[txn.Snapshot](item)
				if err != nil {
					t.Fatal(err)
				}
				got = fmt.Sprint(s.State, " ", s.Epoch, " ", numbers(s.Partitions), " ", numbers(s.Fence))
			}
			if got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

// before calls a function before the first transaction that writes a key.
type before struct {
	coordinator.KV
	key string
	do  func()
}

func (k *before) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if do := k.do; do != nil && slices.ContainsFunc(ops, func(op coordinator.Op) bool { return op.Key == k.key }) {
		k.do = nil
		do()
	}
	return k.KV.Txn(ctx, compares, ops)
}

// TestSettleLost: a recoverer dies before it commits a marker that was never acknowledged, and the next one does not find it: the transaction is not over there.
func TestSettleLost(t *testing.T) {
	w := newTwoLogs(t)
	put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
	key := coordinator.KeyTxn(1, "id")
	put(t, w.kv, key, txn.Snapshot{
		Format: 1, State: txn.PrepareCommit, ProducerID: 40, Epoch: 3, LastProducerID: -1, LastEpoch: -1, NextProducerID: -1, StartedMs: -1, UpdatedMs: 1000,
		Partitions: txn.NewSet(txn.Partition{Topic: topic.ID}),
	})
	begun := entry{epoch: 1, producer: 40, at: 3}
	w.both(t, 7, []entry{begun, {offset: 1, epoch: 1, producer: 40, at: 3, marker: 1000}}, "c")
	w.both(t, 7, []entry{begun}, "a", "b")
	r := w.old("a", "b", "c", "d")
	r.KV = &before{KV: w.kv, key: coordinator.KeyCommit(7, 1), do: func() {
		claimed := coordinator.Log{ID: 7, Node: 1, Fence: 2000, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"a", "b", "c"}, Quorum: 2}}}
		put(t, w.kv, coordinator.KeyLog(7), claimed)
	}}
	if err := r.Run(t.Context(), 7); !errors.Is(err, coordinator.ErrFenced) {
		t.Fatalf("the first one recovers with %v", err)
	}
	if err := w.run(t, 7, false, "a", "b", "d"); err != nil {
		t.Fatal(err)
	}
	if got := w.endsOf(t, 7); got != "0-1" {
		t.Fatalf("committed %s, want 0-1", got)
	}
	item, _, err := w.kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := coordinator.Decode[txn.Snapshot](item)
	if err != nil {
		t.Fatal(err)
	}
	if got := numbers(s.Partitions); s.State != txn.PrepareCommit || !slices.Equal(got, []int32{0}) {
		t.Errorf("%s in partitions %v, want it to be committed in 0", s.State, got)
	}
}

// lister counts how often transactional ids are listed.
type lister struct {
	coordinator.KV
	lists int
}

func (k *lister) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	if prefix == coordinator.PrefixTxns {
		k.lists++
	}
	return k.KV.List(ctx, prefix, rev)
}

// TestSettleMany: the ids of more producers than a commit may settle are settled by several, and listed once.
func TestSettleMany(t *testing.T) {
	w := newTwoLogs(t)
	put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
	var all []entry
	for n := range protocol.Offset(2*flush.BesideMax + 1) {
		all = append(all, entry{offset: n, epoch: 1, producer: 40 + int32(n)})
	}
	w.both(t, 7, all, "a", "b", "c")
	r := w.old("a", "b", "c", "d")
	kv := &lister{KV: w.kv}
	r.KV = kv
	if err := r.Run(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if kv.lists != 1 {
		t.Errorf("listed all ids %d times, want once", kv.lists)
	}
	for prefix, want := range map[string]int{coordinator.PrefixTxns: len(all), coordinator.PrefixCommits: 3} {
		items, _, err := w.kv.List(t.Context(), prefix, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) != want {
			t.Errorf("%d of %s, want %d", len(items), prefix, want)
		}
	}
}

// TestSettleLarge: the ids of a segment's records are more than etcd takes at once, so that several commits settle them, each those of its own records: somebody else claims the log between two of them.
func TestSettleLarge(t *testing.T) {
	for name, test := range map[string]struct {
		producers, entries int // which the producers have by turns
		topics             int32
		want               string
	}{
		"many ids":       {producers: flush.BesideMax, entries: flush.BesideMax, topics: 800, want: "0-32, 32-64"},
		"the largest":    {producers: 3, entries: 3, topics: 18_000, want: "0-1, 1-3"},
		"they alternate": {producers: 5, entries: 14, topics: 18_000, want: "0-1, 1-2, 2-4, 4-8, 8-14"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTwoLogs(t)
			put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
			var touched txn.Set
			for n := range test.topics {
				touched = append(touched, txn.Partition{Topic: protocol.TopicID{1, byte(n >> 8), byte(n)}})
			}
			key := func(n int) string { return coordinator.KeyTxn(1, fmt.Sprint("id", n)) }
			for n := range test.producers {
				put(t, w.kv, key(n), txn.Snapshot{
					Format: 1, State: txn.PrepareAbort, ProducerID: protocol.ProducerID(40 + n), Epoch: 32766, LastProducerID: -1, LastEpoch: -1, NextProducerID: -1, StartedMs: -1, Partitions: touched,
				})
			}
			var all []entry
			for n := range test.entries {
				all = append(all, entry{offset: protocol.Offset(n), epoch: 1, producer: int32(40 + n%test.producers)})
			}
			w.both(t, 7, all, "a", "b", "c")
			settled := func(n int) bool {
				item, _, err := w.kv.Get(t.Context(), key(n))
				if err != nil {
					t.Fatal(err)
				}
				s, err := coordinator.Decode[txn.Snapshot](item)
				if err != nil {
					t.Fatal(err)
				}
				return slices.Contains(s.Partitions, txn.Partition{Topic: topic.ID})
			}
			r := w.old("a", "b", "c", "d")
			r.KV = &before{KV: w.kv, key: coordinator.KeyCommit(7, 2), do: func() {
				item, _, err := w.kv.Get(t.Context(), coordinator.KeyLog(7))
				if err != nil {
					t.Fatal(err)
				}
				record, err := coordinator.Decode[coordinator.Log](item)
				if err != nil {
					t.Fatal(err)
				}
				record.Fence++
				put(t, w.kv, coordinator.KeyLog(7), record)
				for n := range test.producers {
					if want := int64(n) < record.Flushed; settled(n) != want {
						t.Errorf("with the first %d entries committed, id %d is settled: %v, want %v", record.Flushed, n, !want, want)
					}
				}
			}}
			if err := r.Run(t.Context(), 7); !errors.Is(err, coordinator.ErrFenced) {
				t.Fatalf("the first one recovers with %v", err)
			}
			if err := w.run(t, 7, false, "a", "b", "c", "d"); err != nil {
				t.Fatal(err)
			}
			if got := w.endsOf(t, 7); got != test.want {
				t.Errorf("committed %s, want %s", got, test.want)
			}
			for n := range test.producers {
				if !settled(n) {
					t.Errorf("id %d is not settled", n)
				}
			}
		})
	}
}

// TestSettleRace: two logs that are recovered at once settle the same transactional id.
func TestSettleRace(t *testing.T) {
	w := newTwoLogs(t)
	put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
	w.both(t, 7, []entry{{epoch: 1, producer: 40}, {partition: 1, epoch: 1, producer: 40}}, "a", "b", "c")
	w.both(t, 8, []entry{{partition: 2, epoch: 1, producer: 40}, {partition: 3, epoch: 1, producer: 40}}, "b", "c", "d")
	r := w.old("a", "b", "c", "d")
	kv := &before{KV: w.kv, key: coordinator.KeyTxn(coordinator.ShardOfName("varve-restore-40", 4), "varve-restore-40")}
	kv.do = func() {
		if err := w.run(t, 8, false, "a", "b", "c", "d"); err != nil {
			t.Error(err)
		}
	}
	r.KV = kv
	if err := r.Run(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	item, _, err := w.kv.Get(t.Context(), kv.key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := coordinator.Decode[txn.Snapshot](item)
	if err != nil {
		t.Fatal(err)
	}
	if got := numbers(s.Partitions); !slices.Equal(got, []int32{0, 1, 2, 3}) {
		t.Errorf("partitions %v are to be ended, want 0 to 3", got)
	}
}

// numbers returns the numbers of partitions.
func numbers(s txn.Set) []int32 {
	all := []int32{}
	for _, p := range s {
		all = append(all, p.Partition)
	}
	slices.Sort(all)
	return all
}
