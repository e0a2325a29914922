package recovery_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// at returns entries of partition 0 with these offsets.
func at(epoch protocol.LeaderEpoch, offsets ...protocol.Offset) (all []entry) {
	for _, o := range offsets {
		all = append(all, entry{offset: o, epoch: epoch})
	}
	return all
}

// newTwoLogs is a world after a restore with two open logs, of which nothing was flushed when the copy was made: log 7, whose writer has store a, on a, b and c, and log 8, whose writer has b, on b, c and d.
func newTwoLogs(t *testing.T) *world {
	t.Helper()
	w := newOldWorld(t, 0)
	w.drop(t, 1)
	w.drop(t, 3)
	w.drop(t, 4)
	w.record.Closed = true
	put(t, w.kv, coordinator.KeyLog(5), w.record)
	for _, l := range []coordinator.Log{
		{ID: 7, Node: 1, Fence: 1000, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"a", "b", "c"}, Quorum: 2}}},
		{ID: 8, Node: 2, Fence: 1000, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"b", "c", "d"}, Quorum: 2}}},
	} {
		put(t, w.kv, coordinator.KeyLog(l.ID), l)
	}
	return w
}

// both fills the first segment of a log on some stores.
func (w *world) both(t *testing.T, log coordinator.LogID, all []entry, stores ...string) {
	t.Helper()
	for _, name := range stores {
		w.fill(t, name, log, coordinator.WALSegment{Number: 1, First: 1}, all...)
	}
}

// run recovers a log, with an operator's word if lossy.
func (w *world) run(t *testing.T, log coordinator.LogID, lossy bool, reach ...string) error {
	t.Helper()
	if lossy {
		return w.old(reach...).RunDamaged(t.Context(), log, w.stores["a"])
	}
	return w.old(reach...).Run(t.Context(), log)
}

// TestLaterLeader: log 7 was recovered before etcd was lost, while a store was away that holds what nobody counted, and log 8 has the partition since. Neither loses what was acknowledged, nor is an offset given twice,
// in whichever order they are recovered.
func TestLaterLeader(t *testing.T) {
	for name, test := range map[string]struct {
		seven, eight []entry
		end          protocol.Offset // of what the restore took from the bucket
		epoch        protocol.LeaderEpoch
		want         [2]string // of logs 7 and 8
	}{
		"the later leader's records are on disks alone": {
			seven: at(1, 0, 1, 2), eight: at(2, 2, 3), end: 2, epoch: 1, want: [2]string{"nothing", "2-4"},
		},
		"they are committed": {
			seven: at(1, 0, 1, 2), eight: at(2, 2, 3), end: 4, epoch: 2, want: [2]string{"nothing", "nothing"},
		},
		"they are committed in part": {
			seven: at(1, 0, 1, 2, 3, 4), eight: at(2, 2, 3), end: 3, epoch: 2, want: [2]string{"nothing", "3-4"},
		},
		"what nobody counted goes on behind them": {
			seven: at(1, 0, 1, 2, 3, 4, 5), eight: at(2, 2, 3), end: 4, epoch: 2, want: [2]string{"nothing", "nothing"},
		},
		"nobody wrote after it": {
			seven: at(1, 0, 1, 2), end: 2, epoch: 1, want: [2]string{"2-3", "nothing"},
		},
		"nothing was ever committed": {
			seven: at(1, 0, 1, 2), want: [2]string{"0-3", "nothing"},
		},
		"the older log led later": {
			seven: at(3, 2, 3), eight: at(2, 0, 1, 2, 3, 4), end: 2, epoch: 2, want: [2]string{"2-4", "nothing"},
		},
		"the older log led again": {
			seven: slices.Concat(at(1, 0, 1), at(3, 4, 5)), eight: at(2, 2, 3, 4), end: 4, epoch: 2, want: [2]string{"4-6", "nothing"},
		},
		"the later leader wrote to another partition": {
			seven: at(1, 0, 1, 2), eight: []entry{{partition: 1, epoch: 2}}, end: 2, epoch: 1, want: [2]string{"2-3", "1:0-1"},
		},
	} {
		for _, order := range [][]coordinator.LogID{{7, 8}, {8, 7}} {
			w := newTwoLogs(t)
			w.both(t, 7, test.seven, "a") // b and c have dropped it
			w.both(t, 8, test.eight, "b", "c", "d")
			w.restored(t, test.end, test.epoch)
			for _, log := range order {
				if err := w.run(t, log, false, "a", "b", "c", "d"); err != nil {
					t.Errorf("%s: recover log %s of %v: %v", name, log, order, err)
				}
			}
			if got := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}; got != test.want {
				t.Errorf("%s: recovered in the order %v, committed %q, want %q", name, order, got, test.want)
			}
		}
	}
}

// TestLaterLeaderRace lets three agents recover both logs at once: whoever loses a claim is told so, and what is committed in the end is what counts, once.
func TestLaterLeaderRace(t *testing.T) {
	for range 10 {
		w := newTwoLogs(t)
		w.both(t, 7, at(1, 0, 1, 2), "a")
		w.both(t, 8, at(2, 2, 3), "b", "c", "d")
		w.restored(t, 2, 1)
		results := make(chan error)
		for range 3 {
			r := w.old("a", "b", "c", "d")
			for _, log := range []coordinator.LogID{7, 8} {
				go func() { results <- r.Run(t.Context(), log) }()
			}
		}
		for range 6 {
			if err := <-results; err != nil && !errors.Is(err, coordinator.ErrFenced) && !errors.Is(err, disk.ErrFenced) {
				t.Error(err)
			}
		}
		for _, log := range []coordinator.LogID{7, 8} {
			if err := w.run(t, log, false, "a", "b", "c", "d"); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"nothing", "2-4"}; got != want {
			t.Fatalf("committed %q, want %q", got, want)
		}
	}
}

// TestLaterLeaderMerged: what is merged counts as committed.
func TestLaterLeaderMerged(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1, 2, 3), "a", "b", "c")
	m := manifest.Manifest{Epoch: 1, Generation: 1, Cluster: [16]byte{9}}
	m.Set(manifest.Partition{Topic: topic.ID, TopicName: topic.Name, End: 2, Epochs: []manifest.EpochStart{{Epoch: 1}}})
	object, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.bucket.Put(t.Context(), m.Name(), objectstore.Bytes(object)); err != nil {
		t.Fatal(err)
	}
	put(t, w.kv, coordinator.KeyShard(0), coordinator.Shard{Epoch: 9, Manifest: m.Name()})
	if err := w.run(t, 7, false, "a", "b", "c", "d"); err != nil {
		t.Fatal(err)
	}
	if got := w.endsOf(t, 7); got != "2-4" {
		t.Errorf("committed %s, want 2-4", got)
	}
}

// TestLaterLeaderAway: no log is recovered while another one, which may show later leaders, is not in reach, unless an operator gives it up that is not.
func TestLaterLeaderAway(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1, 2), "a")
	w.both(t, 8, at(2, 2, 3), "b", "c", "d")
	w.restored(t, 2, 1)
	reach := []string{"a", "c", "d"} // log 8 lacks its writer's store
	for _, lossy := range []bool{false, true} {
		if err := w.run(t, 7, lossy, reach...); !errors.Is(err, recovery.ErrLacking) {
			t.Errorf("log 7 recovered with %v; its loss accepted: %t", err, lossy)
		}
	}
	if err := w.run(t, 8, true, reach...); err != nil {
		t.Fatal(err)
	}
	if err := w.run(t, 7, false, reach...); err != nil {
		t.Fatal(err)
	}
	if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"nothing", "2-4"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// TestBothAway: of two logs that lack stores an operator gives up one after the other.
func TestBothAway(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1, 2), "a", "c")
	w.both(t, 8, at(2, 2, 3), "b", "c", "d")
	w.restored(t, 2, 1)
	for _, log := range []coordinator.LogID{8, 7} {
		if err := w.run(t, log, true, "c", "d"); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"nothing", "2-4"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// TestEarlierLeader: of what is missing in the bucket disks may have the beginning, in another log: a log waits for what comes before it, also if an operator has given it up.
func TestEarlierLeader(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1), "a", "b", "c")
	w.both(t, 8, at(2, 2, 3), "b", "c", "d")
	all := []string{"a", "b", "c", "d"}
	for _, lossy := range []bool{false, true} {
		if err := w.run(t, 8, lossy, all...); !errors.Is(err, recovery.ErrWaiting) {
			t.Errorf("log 8 recovered with %v; its loss accepted: %t", err, lossy)
		}
	}
	for _, log := range []coordinator.LogID{7, 8} {
		if err := w.run(t, log, false, all...); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"0-2", "2-4"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// TestEarlierLeaderLossy: of a log that lacks a store, which an operator has given up, what waits for another log is not left out, though that one waits for it.
func TestEarlierLeaderLossy(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1), "a", "c")
	w.both(t, 8, at(2, 2, 3), "b", "c", "d")
	reach := []string{"a", "c", "d"} // log 8 lacks its writer's store
	if err := w.run(t, 7, false, reach...); !errors.Is(err, recovery.ErrWaiting) {
		t.Errorf("log 7 recovered with %v", err)
	}
	if err := w.run(t, 8, true, reach...); err != nil {
		t.Fatal(err)
	}
	if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"0-2", "2-4"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// rival is an etcd in which another agent claims a log just before a write of its record.
type rival struct {
	coordinator.KV
	t   *testing.T
	log coordinator.LogID
	at  int // which write
}

// Txn implements coordinator.KV.
func (k *rival) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	key := coordinator.KeyLog(k.log)
	if slices.ContainsFunc(ops, func(op coordinator.Op) bool { return op.Key == key }) {
		if k.at--; k.at == 0 {
			item, _, err := k.Get(ctx, key)
			if err != nil {
				k.t.Error(err)
			}
			l, err := coordinator.Decode[coordinator.Log](item)
			if err != nil {
				k.t.Error(err)
			}
			l.Fence, l.Claimer = l.Fence+1, 200
			if _, err := k.KV.Txn(ctx, nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(l)}}); err != nil {
				k.t.Error(err)
			}
		}
	}
	return k.KV.Txn(ctx, compares, ops)
}

// TestEarlierLeaderFenced: another agent claims the log that one which is given up waits for, or this one itself, and does not recover it, for want of the operator's word.
func TestEarlierLeaderFenced(t *testing.T) {
	for _, log := range []coordinator.LogID{7, 8} {
		w := newTwoLogs(t)
		w.both(t, 7, at(1, 0, 1), "a", "c")
		w.both(t, 8, at(2, 2, 3), "b", "c", "d")
		kv := &rival{KV: w.kv, t: t, log: log, at: 2} // behind the claim
		r := w.old("a", "c", "d")                     // log 8 lacks its writer's store
		r.KV = kv
		if err := r.RunDamaged(t.Context(), 8, w.stores["a"]); err != nil {
			t.Fatal(err)
		}
		if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"0-2", "2-4"}; got != want || kv.at >= 0 {
			t.Errorf("committed %q, want %q; log %s was written %d times after it was claimed", got, want, log, -kv.at)
		}
	}
}

// TestGivenUpEnds: who gives up a log that others claim ends with its context.
func TestGivenUpEnds(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 8, at(2, 0, 1), "b", "c", "d")
	ctx, cancel := context.WithCancel(t.Context())
	r := w.old("a", "c", "d")
	r.KV = &rival{KV: w.kv, t: t, log: 8, at: 2}
	r.Log = slog.New(ending{slog.DiscardHandler, cancel})
	if err := r.RunDamaged(ctx, 8, w.stores["a"]); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// ending is a log that calls end at the first warning.
type ending struct {
	slog.Handler
	end func()
}

// Enabled implements slog.Handler.
func (h ending) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h ending) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		h.end()
	}
	return nil
}

// TestEarlierOfEarlier: what a log that is given up waits for waits for a third one.
func TestEarlierOfEarlier(t *testing.T) {
	w := newTwoLogs(t)
	put(t, w.kv, coordinator.KeyLog(9), coordinator.Log{
		ID: 9, Node: 4, Fence: 1000, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"b", "c", "d"}, Quorum: 2}},
	})
	w.both(t, 7, []entry{{partition: 1, epoch: 1}}, "a", "b", "c")
	w.both(t, 8, []entry{{partition: 1, offset: 1, epoch: 2}, {epoch: 1}}, "b", "c", "d")
	w.both(t, 9, at(2, 1), "b", "c", "d")
	if err := w.run(t, 9, true, "a", "b", "c"); err != nil { // log 9 lacks its writer's store
		t.Fatal(err)
	}
	if got, want := [3]string{w.endsOf(t, 7), w.endsOf(t, 8), w.endsOf(t, 9)}, [3]string{"1:0-1", "0-1 1:1-2", "1-2"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// TestEachOther: each of two logs has what comes before something of the other, in partitions of their own.
func TestEachOther(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, []entry{{epoch: 1}, {offset: 1, epoch: 1}, {partition: 1, offset: 1, epoch: 2}}, "a", "b", "c")
	w.both(t, 8, []entry{{partition: 1, epoch: 1}, {offset: 2, epoch: 2}}, "b", "c", "d")
	all := []string{"a", "b", "c", "d"}
	if err := w.run(t, 7, false, all...); !errors.Is(err, recovery.ErrWaiting) {
		t.Errorf("log 7 recovered with %v", err)
	}
	for _, log := range []coordinator.LogID{8, 7} {
		if err := w.run(t, log, false, all...); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := [2]string{w.endsOf(t, 7), w.endsOf(t, 8)}, [2]string{"0-2, 1:1-2", "2-3 1:0-1"}; got != want {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// TestBehindLoss: by an operator's word a log goes on behind entries that are nowhere, with what continues its partition.
func TestBehindLoss(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 7, at(1, 0, 1), "a", "b", "c")
	for _, name := range []string{"a", "b", "c"} { // entries 3 and 4 were in a segment that is gone
		w.fill(t, name, 7, coordinator.WALSegment{Number: 3, First: 5}, entry{offset: 4, epoch: 1}, entry{partition: 1, epoch: 1}, entry{partition: 2, offset: 7, epoch: 1}, entry{partition: 2, offset: 8, epoch: 1})
	}
	all := []string{"a", "b", "c", "d"}
	if err := w.run(t, 7, false, all...); !errors.Is(err, recovery.ErrLacking) {
		t.Errorf("recovered with %v", err)
	}
	if err := w.run(t, 7, true, all...); err != nil {
		t.Fatal(err)
	}
	if got, want := w.endsOf(t, 7), "0-2 1:0-1"; got != want {
		t.Errorf("committed %s, want %s", got, want)
	}
}

// TestTrimmed: what the writer's store has trimmed was flushed, however far the record says that the log was.
func TestTrimmed(t *testing.T) {
	for name, trimmed := range map[string][]string{"on all": {"a", "b", "c"}, "on the writer's": {"a"}, "on another": {"b"}} {
		w := newTwoLogs(t)
		var all []entry
		for o := range protocol.Offset(60) {
			all = append(all, entry{offset: o, epoch: 1})
		}
		w.both(t, 7, all, "a", "b", "c")
		w.restored(t, 45, 1)
		for _, store := range trimmed {
			s := w.stores[store]
			id := wal.SegmentID{Log: 7, Number: 1}
			if err := s.Trim(id, 45); err != nil {
				t.Fatal(err)
			}
			if at := slices.IndexFunc(s.Segments(), func(i disk.SegmentInfo) bool { return i.ID == id }); s.Segments()[at].First < 20 {
				t.Fatalf("%s: store %s has %+v", name, store, s.Segments()[at])
			}
		}
		if err := w.run(t, 7, false, "a", "b", "c", "d"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := w.endsOf(t, 7); got != "45-60" {
			t.Errorf("%s: committed %s, want 45-60", name, got)
		}
	}
}

// TestRivalCommitted: the restore took for committed what an earlier leader's recoverer had uploaded and nobody counted, since a later leader's records, at the same offsets, are on disks alone. They are not left out
// without an operator's word.
func TestRivalCommitted(t *testing.T) {
	w := newTwoLogs(t)
	w.both(t, 8, at(2, 2, 3), "b", "c", "d")
	w.restored(t, 5, 1)
	all := []string{"a", "b", "c", "d"}
	if err := w.run(t, 8, false, all...); !errors.Is(err, recovery.ErrLacking) {
		t.Errorf("recovered with %v", err)
	}
	if got := w.endsOf(t, 8); got != "nothing, open" {
		t.Errorf("committed %s, want nothing, open", got)
	}
	if err := w.run(t, 8, true, all...); err != nil {
		t.Fatal(err)
	}
	if got := w.endsOf(t, 8); got != "nothing" {
		t.Errorf("with the loss accepted, committed %s, want nothing", got)
	}
}
