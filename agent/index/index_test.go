package index

import (
	"slices"
	"sync"
	"testing"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
)

func extent(object string, first, next protocol.Offset, ts int64) Extent {
	return Extent{First: first, Next: next, MaxTimestamp: ts, Size: 10, Object: &Object{Name: object, Revision: 1}}
}

func TestAdd(t *testing.T) {
	id := partition.ID{Partition: 3}
	x := New()
	for _, e := range []Extent{extent("a", 0, 5, 100), extent("b", 5, 9, 300), extent("c", 9, 10, 200), extent("b", 5, 9, 300)} {
		if err := x.Add(id, e, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []Extent{extent("d", 11, 12, 0), extent("d", 9, 12, 0), extent("d", 5, 9, 0)} {
		if err := x.Add(id, bad, 0); err == nil {
			t.Errorf("extent [%d,%d) of %s was accepted", bad.First, bad.Next, bad.Object.Name)
		}
	}
	if got := x.End(id); got != 10 {
		t.Errorf("end is %d, want 10", got)
	}
	if got := len(x.Extents(id)); got != 3 {
		t.Errorf("%d extents, want 3", got)
	}
}

// TestAddBehindMerged holds that commits may be missing behind one that its shard has merged, and behind no other.
func TestAddBehindMerged(t *testing.T) {
	id := partition.ID{Partition: 3}
	for merged, missing := range map[int64]bool{0: false, 6: false, 7: true, 8: true} {
		x := New()
		for i, object := range []string{"a", "b"} {
			e := extent(object, protocol.Offset(5*i), protocol.Offset(5*i+5), 100)
			e.Object.Revision = int64(6 + i)
			if err := x.Add(id, e, merged); err != nil {
				t.Fatal(err)
			}
		}
		err := x.Add(id, extent("d", 12, 15, 100), merged)
		if (err == nil) != missing {
			t.Errorf("merged up to %d: %v", merged, err)
		}
		if got := x.Extents(id); err == nil && (len(got) != 1 || got[0].First != 12) {
			t.Errorf("merged up to %d: the index has %+v", merged, got)
		}
	}
}

func TestFind(t *testing.T) {
	id := partition.ID{Partition: 3}
	x := New()
	for _, e := range []Extent{extent("a", 2, 5, 100), extent("b", 5, 9, 300), extent("c", 9, 10, 200)} {
		if err := x.Add(id, e, 0); err != nil {
			t.Fatal(err)
		}
	}
	for offset, want := range map[protocol.Offset]string{1: "", 2: "a", 4: "a", 5: "b", 8: "b", 9: "c", 10: ""} {
		e, ok := x.Find(id, offset)
		if ok != (want != "") || ok && e.Object.Name != want {
			t.Errorf("offset %d: found %v in %v, want %q", offset, ok, e.Object, want)
		}
	}
	for _, c := range []struct {
		offset protocol.Offset
		n      int
		want   string
	}{{0, 2, "ab"}, {4, 5, "abc"}, {5, 1, "b"}, {9, 3, "c"}, {10, 3, ""}, {3, 0, ""}} {
		got := ""
		for _, e := range x.Next(id, c.offset, c.n) {
			got += e.Object.Name
		}
		if got != c.want {
			t.Errorf("%d extents from offset %d on: %q, want %q", c.n, c.offset, got, c.want)
		}
	}
	for ts, want := range map[int64]string{0: "a", 100: "a", 101: "b", 300: "b", 301: ""} {
		e, ok := x.FindTime(id, 0, ts)
		if ok != (want != "") || ok && e.Object.Name != want {
			t.Errorf("timestamp %d: found %v in %v, want %q", ts, ok, e.Object, want)
		}
	}
	if e, ok := x.FindTime(id, 9, 150); !ok || e.Object.Name != "c" {
		t.Errorf("timestamp 150 from offset 9: %v", e)
	}
	if e, ok := x.LargestTimestamp(id, 0); !ok || e.Object.Name != "b" {
		t.Errorf("largest timestamp: %v", e)
	}
	if got := x.Size(id, 5); got != 20 {
		t.Errorf("size from 5 is %d, want 20", got)
	}
	x.DropTopic(id.Topic, 4)
	if len(x.Partitions()) != 0 {
		t.Error("partitions are left after the topic was dropped")
	}
}

// TestConcurrentUse lets one goroutine add to two partitions while others read: what they see is always contiguous.
func TestConcurrentUse(t *testing.T) {
	x := New()
	const n = 2000
	ids := []partition.ID{{Topic: protocol.TopicID{1}}, {Topic: protocol.TopicID{1}, Partition: 1}}
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				for _, id := range ids {
					end := x.End(id)
					if end > 0 {
						if e, ok := x.Find(id, end-1); !ok || e.Next < end {
							t.Errorf("offset %d is not found below the end %d: %+v", end-1, end, e)
						}
					}
					next := protocol.Offset(0)
					for _, e := range x.Extents(id) {
						if e.First != next {
							t.Errorf("extent %+v, want offset %d", e, next)
						}
						next = e.Next
					}
					_ = x.Size(id, 0)
					_ = x.Partitions()
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range protocol.Offset(n) {
		o := &Object{Name: "o"}
		for _, id := range ids {
			if err := x.Add(id, Extent{First: i * 3, Next: i*3 + 3, Size: 1, Object: o}, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(done)
	wg.Wait()
	x.DropTopic(ids[0].Topic, 2)
	if got := x.Partitions(); len(got) != 0 {
		t.Errorf("after the topic is dropped: %v", got)
	}
}

// TestReplace holds that what a manifest says takes the place of what commits said, and that commits which leave take nothing of it with them.
func TestReplace(t *testing.T) {
	id := partition.ID{Partition: 3}
	x := New()
	add := func(e Extent) {
		t.Helper()
		if err := x.Add(id, e, 0); err != nil {
			t.Fatal(err)
		}
	}
	add(extent("a", 0, 5, 100))
	add(extent("b", 5, 9, 300))
	add(extent("c", 9, 12, 200))
	merged := Merged{Start: 2, End: 9, LastStable: 7, Extents: []Extent{extent("m", 2, 5, 100), extent("n", 7, 8, 300)}}
	if err := x.Replace(id, merged); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want map[protocol.Offset]string) {
		t.Helper()
		for offset, object := range want {
			e, ok := x.Find(id, offset)
			if ok != (object != "") || ok && e.Object.Name != object {
				t.Errorf("%s: offset %d: found %v in %+v, want %q", when, offset, ok, e.Object, object)
			}
		}
	}
	check("merged", map[protocol.Offset]string{1: "", 2: "m", 4: "m", 5: "n", 6: "n", 7: "n", 8: "c", 9: "c", 11: "c", 12: ""})
	x.Remove(id, "a")
	x.Remove(id, "b")
	add(extent("b", 5, 9, 300)) // a commit that comes late
	add(extent("d", 12, 13, 0))
	if r := x.Range(id); r != (Range{First: 2, End: 13, LastStable: 0}) {
		t.Errorf("range %+v", r)
	}
	if tail := x.Tail(id); len(tail) != 2 || tail[0].Object.Name != "c" {
		t.Errorf("tail %+v", tail)
	}
	// Both are merged elsewhere, and leave out of order.
	x.Remove(id, "d")
	x.Remove(id, "c")
	if r := x.Range(id); r != (Range{First: 2, End: 13}) || len(x.Tail(id)) != 0 { // what is known to be there does not get less
		t.Errorf("range %+v with a tail of %d", r, len(x.Tail(id)))
	}
	check("left", map[protocol.Offset]string{8: "", 9: ""})
	add(extent("e", 13, 15, 0)) // what is between is known once the manifest is read
	check("a hole", map[protocol.Offset]string{4: "m", 6: "n", 8: "", 9: "", 12: "", 13: "e"})
	merged.End, merged.Extents = 14, nil
	if err := x.Replace(id, merged); err == nil {
		t.Error("a manifest that ends within a commit was taken")
	}
	merged.End, merged.LastStable = 13, 13
	if err := x.Replace(id, merged); err != nil {
		t.Fatal(err)
	}
	check("all compacted away", map[protocol.Offset]string{2: "e", 12: "e", 13: "e", 15: ""})
	beyond := func(want map[protocol.Offset]protocol.Offset) {
		t.Helper()
		for offset, end := range want {
			if next, ok := x.Beyond(id, offset); ok != (end > 0) || next != end {
				t.Errorf("offset %d: a gap until %d (%v), want %d", offset, next, ok, end)
			}
		}
	}
	beyond(map[protocol.Offset]protocol.Offset{2: 0, 12: 0, 13: 0, 15: 0})
	merged.End, merged.LastStable, merged.Extents = 15, 15, []Extent{extent("n", 4, 9, 300)}
	if err := x.Replace(id, merged); err != nil {
		t.Fatal(err)
	}
	check("the end compacted away", map[protocol.Offset]string{8: "n", 9: "", 14: ""})
	beyond(map[protocol.Offset]protocol.Offset{merged.Start - 1: 0, 8: 0, 9: 15, 14: 15, 15: 0})
}

// TestTails follows commits from when they are written until they leave.
func TestTails(t *testing.T) {
	tails := NewTails()
	ids := []partition.ID{{Partition: 1}, {Partition: 2}}
	for n := range uint64(4) {
		shards := map[uint32]Part{0: {Partitions: ids[:1], Bytes: 10}}
		if n%2 == 1 {
			shards[1] = Part{Partitions: ids[1:], Bytes: 5}
		}
		tails.Add(&Commit{Log: 7, Number: n + 1, Revision: int64(10 * (n + 1)), KeyBytes: 100}, shards)
	}
	if parts := tails.Of(0, 20); len(parts) != 2 || parts[0].Number != 3 || parts[0].Bytes != 10 {
		t.Errorf("of shard 0 after revision 20: %+v", parts)
	}
	if part, ok := tails.Oldest(0, 20); !ok || part.Number != 3 || part.Bytes != 10 {
		t.Errorf("the oldest of shard 0 after revision 20: %+v", part)
	}
	if part, ok := tails.Oldest(1, 40); ok {
		t.Errorf("shard 1 has nothing after revision 40, and the oldest is %+v", part)
	}
	if parts := tails.Of(1, 0); len(parts) != 2 || parts[0].Number != 2 {
		t.Errorf("of shard 1: %+v", parts)
	}
	for _, c := range []struct {
		n, bytes int
		want     int64
	}{{4, 400, 0}, {3, 400, 10}, {4, 399, 10}, {1, 250, 30}, {4, 0, 40}} {
		if got := tails.Surplus(c.n, c.bytes); got != c.want {
			t.Errorf("more than %d commits or %d bytes: up to %d, want %d", c.n, c.bytes, got, c.want)
		}
	}
	merged := map[uint32]int64{0: 30, 1: 10}
	var numbers []uint64
	for _, c := range tails.Merged(func(shard uint32) int64 { return merged[shard] }) {
		numbers = append(numbers, c.Number)
	}
	if !slices.Equal(numbers, []uint64{1, 3}) {
		t.Errorf("merged by all: %v, want 1 and 3", numbers)
	}
	if _, partitions := tails.Remove(7, 2); len(partitions) != 2 {
		t.Errorf("removed commit 2 of partitions %v", partitions)
	}
	if _, partitions := tails.Remove(7, 2); partitions != nil {
		t.Error("removed twice")
	}
	if commits, bytes := tails.Len(); commits != 3 || bytes != 300 || len(tails.Of(1, 0)) != 1 {
		t.Errorf("%d commits of %d bytes are left, %d of shard 1", commits, bytes, len(tails.Of(1, 0)))
	}
}
