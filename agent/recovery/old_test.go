package recovery_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// newOldWorld is a world whose record is a copy's from before the log rolled: it has the first segment alone, as the open one. Disks beside a to d joined once, and are gone.
func newOldWorld(t *testing.T, gone int) *world {
	t.Helper()
	w := newWorld(t)
	first := w.record.Segments[0]
	first.Last = -1
	w.record.Segments, w.record.Fence = []coordinator.WALSegment{first}, 1000
	put(t, w.kv, coordinator.KeyLog(5), w.record)
	for node, name := range []string{"a", "b", "c", "d"} {
		put(t, w.kv, coordinator.PrefixStores+name, node+1)
	}
	for n := range gone {
		put(t, w.kv, fmt.Sprint(coordinator.PrefixStores, "gone", n), n+5)
	}
	return w
}

// old returns a recoverer after a restore.
func (w *world) old(reach ...string) *recovery.Recovery {
	r := w.recoverer(100, reach...)
	r.Restored = 100
	r.Segments = func(store string) ([]disk.SegmentInfo, error) {
		if !slices.Contains(reach, store) {
			return nil, errors.New("away")
		}
		return w.stores[store].Segments(), nil
	}
	return r
}

// drop drops a segment from all stores.
func (w *world) drop(t *testing.T, number uint32) {
	t.Helper()
	for _, a := range w.open {
		_ = a.Close()
	}
	for _, s := range w.stores {
		if err := s.Drop(wal.SegmentID{Log: 5, Number: number}); err != nil && !errors.Is(err, disk.ErrUnknown) {
			t.Fatal(err)
		}
	}
}

// flushed has the record say how far the log is flushed, and a commit that it was.
func (w *world) flushed(t *testing.T, entry int64) {
	t.Helper()
	w.record.Flushed = entry
	put(t, w.kv, coordinator.KeyLog(5), w.record)
	w.restored(t, protocol.Offset(entry), 1)
}

// restored has a commit that the restore took from the bucket: the partition up to an offset, of that leader epoch at last.
func (w *world) restored(t *testing.T, end protocol.Offset, epoch protocol.LeaderEpoch) {
	t.Helper()
	if end == 0 {
		return
	}
	c := coordinator.Commit{Log: 1, Number: 1, Object: "restored", Partitions: []coordinator.CommitPartition{
		{Topic: topic.ID, NextOffset: end, LastStable: end, LeaderEpoch: epoch},
	}}
	if _, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyCommit(c.Log, c.Number), Value: c.Encode()}}); err != nil {
		t.Fatal(err)
	}
}

// ends returns the first and the next offsets of what log 5 committed, and whether it is closed.
func (w *world) ends(t *testing.T) string { return w.endsOf(t, 5) }

func (w *world) endsOf(t *testing.T, log coordinator.LogID) string {
	t.Helper()
	items, _, err := w.kv.List(t.Context(), coordinator.PrefixCommits, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := "nothing"
	for _, it := range items {
		c, err := coordinator.DecodeCommit(it.Value)
		switch {
		case err != nil:
			t.Fatal(err)
		case c.Log != log:
		case text != "nothing":
			text += ", " + extents(&c)
		default:
			text = extents(&c)
		}
	}
	if logs := list(t, w.kv); !logs.Closed(log) {
		text += ", open"
	}
	return text
}

// extents returns the offsets that a commit has of partition 0, and of others behind their numbers.
func extents(c *coordinator.Commit) string {
	var all []string
	for _, p := range c.Partitions {
		text := fmt.Sprintf("%d-%d", p.FirstOffset, p.NextOffset)
		if p.Partition > 0 {
			text = fmt.Sprintf("%d:%s", p.Partition, text)
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

// damagedStore is a store one of whose segments cannot be read.
type damagedStore struct {
	*disk.Store
	segment uint32
}

func (d damagedStore) Seal(id wal.SegmentID, fence wal.Fence) (quorum.Answer, error) {
	if id.Number == d.segment {
		return quorum.Answer{}, &frame.CorruptError{Segment: id, First: 1, Reason: "it is damaged"}
	}
	return d.Store.Seal(id, fence)
}

// TestDamagedCopies: a copy that is damaged counts as one that is away, and nobody is asked while the others suffice.
func TestDamagedCopies(t *testing.T) {
	for name, test := range map[string]struct {
		damaged map[string]uint32 // segments, by stores
		reach   []string
		want    string
	}{
		"the first of its writer":              {map[string]uint32{"a": 1}, []string{"a", "b", "c", "d"}, "0-12"},
		"one that was rolled away":             {map[string]uint32{"a": 3}, []string{"a", "b", "c", "d"}, "0-12"},
		"the last of its writer":               {map[string]uint32{"a": 4}, []string{"a", "b", "c", "d"}, "0-12"},
		"another's":                            {map[string]uint32{"c": 1}, []string{"a", "b", "c", "d"}, "0-12"},
		"two of the last":                      {map[string]uint32{"a": 4, "d": 4}, []string{"a", "b", "c", "d"}, "nothing, open"},
		"the last, and another one is away":    {map[string]uint32{"a": 4}, []string{"a", "b", "d"}, "nothing, open"},
		"two of one that was rolled away":      {map[string]uint32{"a": 3, "b": 3}, []string{"a", "b", "c", "d"}, "nothing, open"},
		"the first, and its writer's is alone": {map[string]uint32{"a": 1}, []string{"a"}, "nothing, open"},
	} {
		w := newOldWorld(t, 0)
		r := w.old(test.reach...)
		sealer := r.WAL
		r.WAL = func(store string) wal.Sealer {
			if number, ok := test.damaged[store]; ok {
				return damagedStore{w.stores[store], number}
			}
			return sealer(store)
		}
		err := r.Run(t.Context(), 5)
		if lacking := errors.Is(err, recovery.ErrLacking); lacking != strings.HasSuffix(test.want, "open") || err != nil && !lacking {
			t.Errorf("%s: recovered with %v", name, err)
		}
		if got := w.ends(t); got != test.want {
			t.Errorf("%s: committed %s, want %s", name, got, test.want)
		}
	}
}

// TestRolledSinceCopy recovers a log that rolled twice, or was closed, since the copy was made from which etcd was restored: whatever was acknowledged is recovered, or the log stays open.
func TestRolledSinceCopy(t *testing.T) {
	four := []string{"a", "b", "c", "d"}
	closedWithout := func(t *testing.T, w *world) {
		w.flushed(t, 11) // of what d has nobody counted the last
		for _, a := range w.open {
			_ = a.Close()
		}
		for _, name := range []string{"a", "b", "c"} {
			for _, s := range w.stores[name].Segments() {
				if err := w.stores[name].Drop(s.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, w *world)
		gone   int
		reach  []string
		want   string
		lossy  string // if an operator accepts the loss; empty: as want
	}{
		"all":                      {reach: four, want: "0-12"},
		"without its writer":       {reach: []string{"b", "c", "d"}, want: "nothing, open", lossy: "0-12"}, // it may have been on disks that nobody knows
		"without b":                {reach: []string{"a", "c", "d"}, want: "0-12"},
		"without c":                {reach: []string{"a", "b", "d"}, want: "0-12"},
		"without d":                {reach: []string{"a", "b", "c"}, want: "0-12"},
		"what b and c had rolled":  {reach: []string{"a", "d"}, want: "0-12"},
		"one of the open":          {reach: []string{"a", "b"}, want: "nothing, open", lossy: "0-12"},
		"without two, its writer":  {reach: []string{"c", "d"}, want: "nothing, open", lossy: "0-12"},
		"nobody":                   {want: "nothing, open", lossy: "nothing"},
		"one store":                {reach: []string{"b"}, want: "nothing, open", lossy: "0-3"},
		"disks that are long gone": {gone: 5, reach: four, want: "0-12"},
		"disks that are long gone, and the writer": {gone: 5, reach: []string{"b", "c", "d"}, want: "nothing, open", lossy: "0-12"},
		"flushed": {reach: four, want: "8-12", change: func(t *testing.T, w *world) {
			w.flushed(t, 8)
			w.drop(t, 1)
			w.drop(t, 3)
		}},
		"flushed within a segment": {reach: four, want: "6-12", change: func(t *testing.T, w *world) { w.flushed(t, 6) }},
		"closed": {reach: four, want: "nothing", change: func(t *testing.T, w *world) {
			w.flushed(t, 12)
			for _, number := range []uint32{1, 3, 4} {
				w.drop(t, number)
			}
		}},
		"closed, and not yet dropped": {reach: four, want: "nothing", change: func(t *testing.T, w *world) { w.flushed(t, 12) }},
		"closed, its ensemble away": {reach: []string{"d"}, want: "nothing, open", lossy: "nothing", change: func(t *testing.T, w *world) {
			w.flushed(t, 12)
			for _, number := range []uint32{1, 3, 4} {
				w.drop(t, number)
			}
		}},
		"flushed further than the record says": {reach: four, want: "8-12", change: func(t *testing.T, w *world) { // a commit is missing in the bucket that others have merged
			w.flushed(t, 8)
			w.record.Flushed = 6
			put(t, w.kv, coordinator.KeyLog(5), w.record)
			w.drop(t, 1)
			w.drop(t, 3)
		}},
		"more was restored than the record says is flushed": {reach: four, want: "6-12", change: func(t *testing.T, w *world) {
			w.flushed(t, 6)
			w.record.Flushed = 2
			put(t, w.kv, coordinator.KeyLog(5), w.record)
		}},
		"closed, and a store was away":               {reach: four, want: "nothing", change: closedWithout},
		"closed, and its writer's store is in reach": {reach: four[:1], want: "nothing", change: closedWithout},
		"something is nowhere":                       {reach: four, want: "nothing, open", lossy: "0-4", change: func(t *testing.T, w *world) { w.drop(t, 3) }},
		"a roll came to nothing": {reach: four, want: "0-12", change: func(t *testing.T, w *world) {
			w.write(t, "d", coordinator.WALSegment{Number: 5, First: 11}, 11) // and the log went on without it
		}},
		"a roll came to nothing at the end": {reach: four, want: "0-12", change: func(t *testing.T, w *world) {
			w.write(t, "b", coordinator.WALSegment{Number: 5, First: 13}, 12)
		}},
		"a roll of the writer came to nothing": {reach: four, want: "0-12", change: func(t *testing.T, w *world) {
			w.write(t, "a", coordinator.WALSegment{Number: 5, First: 13}, 12)
		}},
		"a roll of the writer came to nothing, or others that are away have what it was for": {gone: 2, reach: four, want: "nothing, open", lossy: "0-12", change: func(t *testing.T, w *world) {
			w.write(t, "a", coordinator.WALSegment{Number: 5, First: 13}, 12)
		}},
		"a quorum has nothing of the last segment, and others are away": {gone: 2, reach: four, want: "0-12", change: func(t *testing.T, w *world) {
			for _, store := range []string{"a", "b"} {
				w.write(t, store, coordinator.WALSegment{Number: 5, First: 13}, 12)
			}
		}},
		"a roll came to nothing before another, and others are away": {gone: 2, reach: four, want: "0-14", change: func(t *testing.T, w *world) {
			w.write(t, "a", coordinator.WALSegment{Number: 5, First: 13}, 12)
			for _, store := range []string{"a", "b"} {
				w.write(t, store, coordinator.WALSegment{Number: 6, First: 13}, 14)
			}
		}},
		"it rolled to disks that nobody knows": {reach: four, want: "nothing, open", lossy: "0-14", change: func(t *testing.T, w *world) {
			w.write(t, "a", coordinator.WALSegment{Number: 5, First: 13}, 14)
		}},
		"a record without segments": {reach: four[:3], want: "nothing, open", lossy: "0-12", change: func(t *testing.T, w *world) {
			w.record.Segments = nil
			w.flushed(t, 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newOldWorld(t, test.gone)
			if test.change != nil {
				test.change(t, w)
			}
			err := w.old(test.reach...).Run(t.Context(), 5)
			if lacking := errors.Is(err, recovery.ErrLacking); lacking != (test.lossy != "") || err != nil && !lacking {
				t.Errorf("recovered with %v", err)
			}
			if got := w.ends(t); got != test.want {
				t.Errorf("committed %s, want %s", got, test.want)
			}
			if test.lossy == "" {
				return
			}
			if err := w.old(test.reach...).RunDamaged(t.Context(), 5, w.stores["a"]); err != nil {
				t.Fatal(err)
			}
			if got := w.ends(t); got != test.lossy {
				t.Errorf("with the loss accepted, committed %s, want %s", got, test.lossy)
			}
		})
	}
}
