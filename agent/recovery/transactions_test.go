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

// TestSettleMany: the ids of more producers than a commit may settle are settled by several.
func TestSettleMany(t *testing.T) {
	w := newTwoLogs(t)
	put(t, w.kv, coordinator.KeyCluster, coordinator.Cluster{Shards: 4})
	var all []entry
	for n := range protocol.Offset(2*flush.BesideMax + 1) {
		all = append(all, entry{offset: n, epoch: 1, producer: 40 + int32(n)})
	}
	w.both(t, 7, all, "a", "b", "c")
	if err := w.run(t, 7, false, "a", "b", "c", "d"); err != nil {
		t.Fatal(err)
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
