package index

import (
	"sync"
	"testing"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
)

func extent(object string, first, next protocol.Offset, ts int64) Extent {
	return Extent{First: first, Next: next, MaxTimestamp: ts, Size: 10, Object: &Object{Name: object}}
}

func TestAdd(t *testing.T) {
	id := partition.ID{Partition: 3}
	x := New()
	for _, e := range []Extent{extent("a", 0, 5, 100), extent("b", 5, 9, 300), extent("c", 9, 10, 200), extent("b", 5, 9, 300)} {
		if err := x.Add(id, e); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []Extent{extent("d", 11, 12, 0), extent("d", 9, 12, 0), extent("d", 5, 9, 0)} {
		if err := x.Add(id, bad); err == nil {
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

func TestFind(t *testing.T) {
	id := partition.ID{Partition: 3}
	x := New()
	for _, e := range []Extent{extent("a", 2, 5, 100), extent("b", 5, 9, 300), extent("c", 9, 10, 200)} {
		if err := x.Add(id, e); err != nil {
			t.Fatal(err)
		}
	}
	for offset, want := range map[protocol.Offset]string{1: "", 2: "a", 4: "a", 5: "b", 8: "b", 9: "c", 10: ""} {
		e, ok := x.Find(id, offset)
		if ok != (want != "") || ok && e.Object.Name != want {
			t.Errorf("offset %d: found %v in %v, want %q", offset, ok, e.Object, want)
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
			if err := x.Add(id, Extent{First: i * 3, Next: i*3 + 3, Size: 1, Object: o}); err != nil {
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
