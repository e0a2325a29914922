package coordtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// watching is a running watch.
type watching struct {
	batches chan coordinator.Batch
	ended   chan error
	cancel  context.CancelFunc
}

func watch(t *testing.T, kv coordinator.KV, prefix string, rev int64) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watching{batches: make(chan coordinator.Batch, 4096), ended: make(chan error, 1), cancel: cancel}
	go func() {
		w.ended <- kv.Watch(ctx, prefix, rev, func(b coordinator.Batch) { w.batches <- b })
	}()
	t.Cleanup(cancel)
	return w
}

// next returns the next batch with events.
func (w *watching) next(t *testing.T) coordinator.Batch {
	t.Helper()
	for {
		select {
		case b := <-w.batches:
			if len(b.Events) > 0 {
				return b
			}
		case err := <-w.ended:
			t.Fatalf("the watch ended: %v", err)
		case <-time.After(patience):
			t.Fatal("the watch saw nothing")
		}
	}
}

// end returns what Watch returned.
func (w *watching) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(patience):
		t.Fatal("the watch did not end")
		return nil
	}
}

// describe writes a batch's events on one line: key=value of a put, -key of a deletion.
func describe(b coordinator.Batch) string {
	parts := make([]string, len(b.Events))
	for i, e := range b.Events {
		if e.Deleted {
			parts[i] = "-" + e.Key
		} else {
			parts[i] = e.Key + "=" + string(e.Value)
		}
	}
	return strings.Join(parts, " ")
}

func wantBatch(t *testing.T, got coordinator.Batch, rev int64, want string) {
	t.Helper()
	if got.Revision != rev || describe(got) != want {
		t.Errorf("got %q at revision %d, want %q at %d", describe(got), got.Revision, want, rev)
	}
	for _, e := range got.Events {
		if e.ModRevision != got.Revision {
			t.Errorf("a batch of revision %d has an event of %d", got.Revision, e.ModRevision)
		}
	}
}

func testWatch(t *testing.T, kv coordinator.KV) {
	write(t, kv, put("w/old", "1"))
	w := watch(t, kv, "w/", head(t, kv))
	created := write(t, kv, put("w/a", "1"), put("x", "1"), put("w/b", "1"))
	write(t, kv, put("x", "2"))
	changed := write(t, kv, put("w/b", "2"), coordinator.Op{Key: "w/a", Delete: true}, coordinator.Op{Key: "w/none", Delete: true})
	gone := write(t, kv, coordinator.Op{Key: "w/", Delete: true, Prefix: true})

	first := w.next(t)
	wantBatch(t, first, created, "w/a=1 w/b=1")
	if e := first.Events[0]; e.CreateRevision != created {
		t.Errorf("the event says created at %d, want %d", e.CreateRevision, created)
	}
	second := w.next(t)
	wantBatch(t, second, changed, "w/b=2 -w/a")
	if e := second.Events[0]; e.CreateRevision != created {
		t.Errorf("the event says created at %d, want %d", e.CreateRevision, created)
	}
	wantBatch(t, w.next(t), gone, "-w/b -w/old")
}

func testWatchFromPast(t *testing.T, kv coordinator.KV) {
	const revisions = 40
	value := strings.Repeat("v", 100<<10) // more than one answer of etcd can hold
	start := write(t, kv, put("w/first", ""))
	var revs []int64
	for i := range revisions {
		revs = append(revs, write(t, kv, put(fmt.Sprint("w/", i, "/1"), value), put(fmt.Sprint("w/", i, "/2"), "")))
	}
	w := watch(t, kv, "w/", start)
	for i, rev := range revs {
		b := w.next(t)
		if b.Revision != rev || len(b.Events) != 2 || b.Events[0].Key != fmt.Sprint("w/", i, "/1") || len(b.Events[0].Value) != len(value) {
			t.Fatalf("batch %d has revision %d and %d events, want %d and 2", i, b.Revision, len(b.Events), rev)
		}
	}
	live := write(t, kv, put("w/live", "1"))
	wantBatch(t, w.next(t), live, "w/live=1")
}

func testWatchWholeRevision(t *testing.T, kv coordinator.KV) {
	const n = 2000
	start := fill(t, kv, "w/", n)
	live := watch(t, kv, "w/", start)
	gone := write(t, kv, coordinator.Op{Key: "w/", Delete: true, Prefix: true})
	for _, w := range []*watching{live, watch(t, kv, "w/", start)} {
		b := w.next(t)
		if b.Revision != gone || len(b.Events) != n {
			t.Fatalf("got %d events of revision %d in one batch, want %d of %d", len(b.Events), b.Revision, n, gone)
		}
		if !slices.IsSortedFunc(b.Events, func(a, b coordinator.Event) int { return strings.Compare(a.Key, b.Key) }) {
			t.Error("deletions by prefix are not in the order of keys")
		}
	}
}

func testWatchProgress(t *testing.T, kv coordinator.KV) {
	w := watch(t, kv, "w/", head(t, kv))
	first := write(t, kv, put("w/a", "1"))
	wantBatch(t, w.next(t), first, "w/a=1")
	last := first
	for range 3 {
		last = write(t, kv, put("elsewhere", ""))
	}
	seen := first
	for seen < last {
		select {
		case b := <-w.batches:
			if len(b.Events) != 0 || b.Revision < seen {
				t.Fatalf("got %q at revision %d after %d, want progress", describe(b), b.Revision, seen)
			}
			seen = b.Revision
		case <-time.After(patience):
			t.Fatalf("no word of progress to revision %d", last)
		}
	}
	after := write(t, kv, put("w/b", "2"))
	wantBatch(t, w.next(t), after, "w/b=2")
}

func testWatchEnds(t *testing.T, kv coordinator.KV) {
	w := watch(t, kv, "w/", head(t, kv))
	rev := write(t, kv, put("w/a", "1"))
	wantBatch(t, w.next(t), rev, "w/a=1")
	w.cancel()
	if err := w.end(t); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled watch returned %v", err)
	}
	write(t, kv, put("w/b", "1"))
	select {
	case b := <-w.batches:
		if len(b.Events) > 0 {
			t.Errorf("a watch that had ended saw %q", describe(b))
		}
	default:
	}
}

func testCompaction(t *testing.T, kv coordinator.KV) {
	old := write(t, kv, put("w/a", "1"), put("w/b", "1"))
	kept := write(t, kv, put("w/a", "2"), coordinator.Op{Key: "w/b", Delete: true})
	last := write(t, kv, put("w/a", "3"))
	for range 2 { // again is no error
		if err := kv.Compact(t.Context(), kept); err != nil {
			t.Fatalf("Compact: %v", err)
		}
	}
	_, _, err := kv.List(t.Context(), "w/", old)
	wantKind(t, "List at a compacted revision", err, coordinator.ErrCompacted)
	items, _, err := kv.List(t.Context(), "w/", kept)
	if err != nil || len(items) != 1 || string(items[0].Value) != "2" {
		t.Errorf("List at the oldest revision = %+v, %v; want w/a=2", items, err)
	}
	if item := get(t, kv, "w/a"); string(item.Value) != "3" || item.CreateRevision != old {
		t.Errorf("w/a is %+v, want value 3 created at %d", item, old)
	}
	wantKind(t, "Watch from before history", watch(t, kv, "w/", old-1).end(t), coordinator.ErrCompacted)
	wantBatch(t, watch(t, kv, "w/", kept).next(t), last, "w/a=3")
}
