package controller

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// past reports whether the coordinator still knows what it held at a revision.
func (w *world) past(revision int64) bool {
	w.t.Helper()
	_, _, err := w.kv.List(w.t.Context(), coordinator.PrefixShards, revision)
	if err != nil && !errors.Is(err, coordinator.ErrCompacted) {
		w.t.Fatal(err)
	}
	return err == nil
}

func (w *world) revision() int64 {
	w.t.Helper()
	st, err := w.kv.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return st.Revision
}

// write moves the revision.
func (w *world) write() int64 {
	w.t.Helper()
	w.put("other", time.Now())
	return w.revision()
}

// TestHistory: the controller has the coordinator forget its past but for some minutes, and an attempt that failed is made again.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.register(2, coordinator.AgentServing)
		w.run(1)
		w.run(2)
		before := w.revision()
		w.write()
		time.Sleep(historyKeep - historyPause)
		if !w.past(before) {
			t.Fatalf("the past is gone within %v", historyKeep)
		}
		w.kv.Inject(mem.Fault{Call: mem.CallCompact, Kind: mem.Unavailable})
		time.Sleep(2*historyPause + 2*loadPause)
		synctest.Wait()
		if w.past(before) {
			t.Errorf("the past is there after more than %v", historyKeep)
		}
		for range 20 {
			w.write()
			time.Sleep(time.Minute)
		}
		if now := w.revision(); w.past(now-10) || !w.past(now-3) {
			t.Errorf("of a write a minute the tenth last is known: %v, the third last: %v; want the latter alone", w.past(now-10), w.past(now-3))
		}
	})
}

// TestKeep: less of the past stays while it needs the room, and not for ever after.
func TestKeep(t *testing.T) {
	for name, c := range map[string]struct {
		st   coordinator.Status
		want time.Duration
	}{
		"empty":          {coordinator.Status{SizeBytes: 20, UsedBytes: 10, QuotaBytes: 100}, historyKeep},
		"more than half": {coordinator.Status{SizeBytes: 60, UsedBytes: 51, QuotaBytes: 100}, historyLeast},
		"it was":         {coordinator.Status{SizeBytes: 90, UsedBytes: 10, QuotaBytes: 100}, historyKeep},
		"no quota known": {coordinator.Status{SizeBytes: 90, UsedBytes: 90}, historyKeep},
		"no space":       {coordinator.Status{SizeBytes: 100, UsedBytes: 10, QuotaBytes: 100, NoSpace: true}, historyLeast},
	} {
		if got := keep(c.st); got != c.want {
			t.Errorf("%s: %v of the past stay, want %v", name, got, c.want)
		}
	}
}

// TestNoSpace: when etcd has no space, the controller leaves less of its past, though it can plan nothing; then it goes on.
func TestNoSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.run(1)
		w.full.Store(true)
		w.register(2, coordinator.AgentServing)
		before := w.revision()
		w.write()
		time.Sleep(historyLeast + 2*historyPause + 2*roomPause)
		synctest.Wait()
		if w.past(before) {
			t.Errorf("the past is there after more than %v without space", historyLeast)
		}
		w.wants("1:8", "")
		w.full.Store(false)
		time.Sleep(2 * roomPause)
		synctest.Wait()
		w.wants("1:8", "2:4")
	})
}
