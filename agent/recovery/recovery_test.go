package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

var topic = coordinator.Topic{ID: protocol.TopicID{7}, Name: "t", Partitions: 1}

// world is a log of three segments on four stores, as a writer left it that died: entries 1 to 4 are in the first, to 8 in the second, to 12 in the third.
type world struct {
	kv     *kvmem.Store
	bucket *mem.Store
	stores map[string]*disk.Store
	record coordinator.Log
	open   []*disk.Appender
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{kv: kvmem.New(kvmem.Config{ClusterID: 1, Start: time.Now()}), bucket: mem.New(), stores: make(map[string]*disk.Store)}
	for i, name := range []string{"a", "b", "c", "d"} {
		s, err := disk.Open(disk.Config{FS: disktest.New(uint64(i)), FileBytes: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
		w.stores[name] = s
	}
	w.record = coordinator.Log{ID: 5, Node: 1, Fence: 1, Segments: []coordinator.WALSegment{
		{Number: 1, First: 1, Last: 4, Stores: []string{"a", "b", "c"}, Quorum: 2},
		{Number: 3, First: 5, Last: 8, Stores: []string{"a", "b", "d"}, Quorum: 2},
		{Number: 4, First: 9, Last: -1, Stores: []string{"a", "c", "d"}, Quorum: 2},
	}}
	for i, s := range w.record.Segments {
		for _, name := range s.Stores {
			last := s.First + 3
			if i == 0 && name == "b" {
				last-- // it was slow
			}
			w.write(t, name, s, last)
		}
	}
	_, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{
		{Key: coordinator.KeyLog(5), Value: coordinator.Encode(w.record)}, {Key: coordinator.KeyTopic("t"), Value: coordinator.Encode(topic)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// write puts a segment's entries into a store, one record each, whose offset is the entry's number less one. The last stable offset is half of the entry's number.
func (w *world) write(t *testing.T, store string, s coordinator.WALSegment, last int64) {
	t.Helper()
	var all []entry
	for n := s.First; n <= last; n++ {
		all = append(all, entry{offset: protocol.Offset(n - 1), epoch: 1})
	}
	w.fill(t, store, w.record.ID, s, all...)
}

// entry is a record in a partition of the topic.
type entry struct {
	partition int32
	offset    protocol.Offset
	epoch     protocol.LeaderEpoch

	producer int32 // a transactional one; 0 for none
	at       protocol.ProducerEpoch
	marker   int64 // the record is a marker of that time; 0 if it is none
}

// fill puts a segment of a log with these entries into a store.
func (w *world) fill(t *testing.T, store string, log coordinator.LogID, s coordinator.WALSegment, all ...entry) {
	t.Helper()
	id := wal.SegmentID{Log: wal.LogID(log), Number: s.Number}
	a, err := w.stores[store].Create(id, 1, wal.EntryID(s.First))
	if err != nil {
		t.Fatal(err)
	}
	w.open = append(w.open, a)
	for i, e := range all {
		b := batch.NewBuilder(batch.None)
		b.BaseOffset, b.LeaderEpoch = e.offset, e.epoch
		b.Append(1, nil, fmt.Append(nil, "offset ", e.offset, " of log ", log))
		if e.producer > 0 {
			b.Transactional, b.ProducerID, b.ProducerEpoch, b.BaseSequence = true, protocol.ProducerID(e.producer), e.at, 0
		}
		payload, err := b.AppendTo(nil)
		if e.marker > 0 {
			payload, err = batch.AppendControlBatch(nil, e.offset, e.epoch, batch.EndMarker{ProducerID: protocol.ProducerID(e.producer), ProducerEpoch: e.at, Marker: batch.Commit, Timestamp: e.marker})
		}
		if err != nil {
			t.Fatal(err)
		}
		var head [ingest.EntryHeaderBytes]byte
		ingest.EntryHeader{Topic: topic.ID, Partition: e.partition, LastStable: (e.offset + 1) / 2}.Put(head[:])
		h := frame.Header{Segment: id, Fence: 1, First: wal.EntryID(s.First) + wal.EntryID(i)}
		memory := disk.Aligned(frame.BlockBytes)
		h.Put(memory[frame.HeaderBytes:], head[:], payload, crc32c.Tail{})
		frame.Finish(memory, &h)
		if err := a.Append([][]byte{memory}); err != nil {
			t.Fatal(err)
		}
	}
}

// recover recovers the log with some stores in reach.
func (w *world) recover(ctx context.Context, reach ...string) error {
	return w.recoverer(6, reach...).Run(ctx, 5)
}

func (w *world) recoverAs(ctx context.Context, claimer coordinator.LogID, reach ...string) error {
	return w.recoverer(claimer, reach...).Run(ctx, 5)
}

func (w *world) recoverer(claimer coordinator.LogID, reach ...string) *recovery.Recovery {
	return &recovery.Recovery{
		KV: w.kv, Store: w.bucket, Cluster: [16]byte{9}, Claimer: claimer, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		WAL: func(name string) wal.Sealer {
			if slices.Contains(reach, name) {
				return w.stores[name]
			}
			return nil
		},
	}
}

// committed returns up to which offset the partition is committed.
func (w *world) committed(t *testing.T) (next protocol.Offset) {
	t.Helper()
	items, _, err := w.kv.List(t.Context(), coordinator.PrefixCommits, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		c, err := coordinator.DecodeCommit(it.Value)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Partitions {
			if p.FirstOffset != next {
				t.Errorf("a commit begins at offset %d, want %d", p.FirstOffset, next)
			}
			next = p.NextOffset
			if p.LastStable != next/2 {
				t.Errorf("a commit ends at offset %d with last stable offset %d, want %d", next, p.LastStable, next/2)
			}
		}
	}
	return next
}

// TestSegments recovers the log with one store gone after the other: two of three are left of each segment, or one that has all of a segment that was rolled away.
func TestSegments(t *testing.T) {
	for name, reach := range map[string][]string{
		"all":       {"a", "b", "c", "d"},
		"without a": {"b", "c", "d"}, // the writer's own: b lacks the last entry of segment 1, c has it
		"without b": {"a", "c", "d"},
		"without c": {"a", "b", "d"},
		"without d": {"a", "b", "c"},
		"a and c":   {"a", "c"},
		"c and d":   {"c", "d"}, // segments 1 and 3 are on one of them each
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := w.recover(t.Context(), reach...); err != nil {
				t.Fatal(err)
			}
			if next := w.committed(t); next != 12 {
				t.Errorf("committed to offset %d, want 12", next)
			}
			if err := w.recover(t.Context(), reach...); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// TestClaimRace lets four agents recover the log at once: whoever loses its claim is told so, and what is committed in the end is everything, once.
func TestClaimRace(t *testing.T) {
	for range 10 {
		w := newWorld(t)
		results := make(chan error)
		for claimer := range coordinator.LogID(4) {
			go func() { results <- w.recoverAs(t.Context(), 6+claimer, "a", "b", "c", "d") }()
		}
		for range 4 {
			if err := <-results; err != nil && !errors.Is(err, coordinator.ErrFenced) && !errors.Is(err, disk.ErrFenced) {
				t.Error(err)
			}
		}
		if err := w.recoverAs(t.Context(), 10, "a", "b", "c", "d"); err != nil {
			t.Fatal(err)
		}
		if next := w.committed(t); next != 12 {
			t.Errorf("committed to offset %d, want 12", next)
		}
	}
}

// TestTooFewStores: recovery claims the log, commits nothing and says why, and goes on when the stores are there.
func TestTooFewStores(t *testing.T) {
	for name, reach := range map[string][]string{
		"open segment on one of three":  {"a", "b"},
		"first segment not to its end":  {"b", "d"},
		"second segment out of reach":   {"c"},
		"nothing in reach":              {},
		"enough stores, of another one": {"b", "c"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := w.recover(t.Context(), reach...); err == nil {
				t.Fatal("recovered")
			}
			if next := w.committed(t); next != 0 {
				t.Errorf("committed to offset %d", next)
			}
			if err := w.recover(t.Context(), "a", "b", "c", "d"); err != nil {
				t.Fatal(err)
			}
			if next := w.committed(t); next != 12 {
				t.Errorf("committed to offset %d, want 12", next)
			}
		})
	}
}

// TestRecoverable holds what is tried at all.
func TestRecoverable(t *testing.T) {
	l := newWorld(t).record
	for _, test := range []struct {
		reach []string
		want  bool
	}{
		{[]string{"a", "b", "c", "d"}, true},
		{[]string{"a", "c"}, true},
		{[]string{"c", "d"}, true},
		{[]string{"a", "b"}, false}, // one of the open segment's
		{[]string{"b", "c"}, false},
		{nil, false},
	} {
		if got := recovery.Recoverable(l, func(s string) bool { return slices.Contains(test.reach, s) }); got != test.want {
			t.Errorf("recoverable with %v: %v", test.reach, got)
		}
	}
	l.Segments = l.Segments[1:]
	l.Segments[0].Stores = []string{"e"}
	if recovery.Recoverable(l, func(s string) bool { return s != "e" }) {
		t.Error("recoverable without any store of a segment that was rolled away")
	}
}

// TestSuperseded: who closes a log without a commit of its own has a segment in the place of the next one if others may have uploaded one.
func TestSuperseded(t *testing.T) {
	four := []string{"a", "b", "c", "d"}
	abandon := func(t *testing.T, w *world) error { return w.recoverer(6).Abandon(t.Context(), 5) }
	run := func(t *testing.T, w *world) error { return w.recover(t.Context(), four...) }
	for name, test := range map[string]struct {
		flushed int64  // in one commit
		fence   uint64 // of the log's record
		end     func(*testing.T, *world) error
		want    string
	}{
		"the first recoverer has nothing to commit": {12, 1, run, ""},
		"the second one has nothing to commit":      {12, 2, run, "commit 2 of fence 3, entries 13 to 12, 0 partitions"},
		"the second one has something":              {8, 2, run, "commit 2 of fence 3, entries 9 to 12, 1 partitions"},
		"it is given up":                            {8, 1, abandon, "commit 2 of fence 2, entries 9 to 8, 0 partitions"},
		"it is from before a restore": {
			12, 1000, func(t *testing.T, w *world) error { return w.old(four...).Run(t.Context(), 5) }, "commit 2 of fence 1001, entries 13 to 12, 0 partitions",
		},
	} {
		w := newWorld(t)
		for node, store := range four {
			put(t, w.kv, coordinator.PrefixStores+store, node+1)
		}
		w.restored(t, protocol.Offset(test.flushed), 1)
		w.record.Flushed, w.record.Commits, w.record.Fence = test.flushed, 1, test.fence
		put(t, w.kv, coordinator.KeyLog(5), w.record)
		if err := test.end(t, w); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if logs := list(t, w.kv); !logs.Closed(5) {
			t.Errorf("%s: the log is open", name)
		}
		if got := w.uploaded(t); got != test.want {
			t.Errorf("%s: uploaded %q, want %q", name, got, test.want)
		}
	}
}

// uploaded describes the segments in the bucket.
func (w *world) uploaded(t *testing.T) (all string) {
	t.Helper()
	for info, err := range w.bucket.List(t.Context(), segment.NamePrefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, info.Size)
		if err := w.bucket.Get(t.Context(), info.Name, 0, b); err != nil {
			t.Fatal(err)
		}
		pos, err := segment.ParseTrailer(b, info.Size)
		if err != nil {
			t.Fatal(err)
		}
		f, err := segment.ParseFooter(b[pos:])
		if err != nil {
			t.Fatal(err)
		}
		h := f.Header
		all += fmt.Sprintf("commit %d of fence %d, entries %d to %d, %d partitions", h.ID.Commit, h.ID.Fence, h.FirstEntry, h.LastEntry, len(f.Sections))
	}
	return all
}
