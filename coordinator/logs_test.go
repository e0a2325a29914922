package coordinator_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// logs are the logs in a store.
type logs struct {
	t  *testing.T
	kv *mem.Store
}

func newLogs(t *testing.T) *logs {
	return &logs{t: t, kv: mem.New(mem.Config{Start: time.Now()})}
}

func (w *logs) list() coordinator.Logs {
	w.t.Helper()
	all, err := coordinator.ListLogs(w.t.Context(), w.kv, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *logs) open(id coordinator.LogID) error {
	w.t.Helper()
	revision, err := coordinator.OpenLog(w.t.Context(), w.kv, coordinator.Log{ID: id, Fence: 1})
	if all := w.list(); err == nil && all.Revision(id) != revision {
		w.t.Errorf("log %s was opened at revision %d, and has a record of %d", id, revision, all.Revision(id))
	}
	return err
}

// close closes logs by hand.
func (w *logs) close(ids ...coordinator.LogID) {
	w.t.Helper()
	for _, id := range ids {
		l := coordinator.Log{ID: id, Fence: 1, Closed: true}
		if _, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyLog(id), Value: coordinator.Encode(l)}}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *logs) forget(ids ...coordinator.LogID) error {
	all := w.list()
	return all.Forget(w.t.Context(), w.kv, ids)
}

// wants checks which logs have records, and that of those up to 9 only some are not closed.
func (w *logs) wants(records, open []coordinator.LogID) {
	w.t.Helper()
	all := w.list()
	var got []coordinator.LogID
	for _, l := range all.Records {
		got = append(got, l.ID)
	}
	if !slices.Equal(got, records) {
		w.t.Errorf("logs with records: %v, want %v", got, records)
	}
	got = nil
	for id := coordinator.LogID(1); id <= 9; id++ {
		if !all.Closed(id) {
			got = append(got, id)
		}
	}
	if !slices.Equal(got, open) {
		w.t.Errorf("logs that are not closed: %v, want %v", got, open)
	}
}

type ids = []coordinator.LogID

// TestForget: logs that were closed count as closed when they have no record any more, and open ones beside them do not; a number below the mark that was never opened never will be.
func TestForget(t *testing.T) {
	w := newLogs(t)
	for _, id := range (ids{1, 2, 3, 5, 6}) {
		if err := w.open(id); err != nil {
			t.Fatal(err)
		}
	}
	w.close(1, 3, 5)
	w.wants(ids{1, 2, 3, 5, 6}, ids{2, 4, 6, 7, 8, 9})
	if err := w.forget(5, 1); err != nil {
		t.Fatal(err)
	}
	w.wants(ids{2, 3, 6}, ids{2, 6, 7, 8, 9})
	if err := w.forget(3); err != nil { // below the mark already
		t.Fatal(err)
	}
	w.wants(ids{2, 6}, ids{2, 6, 7, 8, 9})
	if err := w.forget(2); err == nil {
		t.Error("an open log was forgotten")
	}
	for _, id := range (ids{1, 4, 5}) {
		if err := w.open(id); !errors.Is(err, coordinator.ErrPassedOver) {
			t.Errorf("open log %s, below the mark: %v", id, err)
		}
	}
	if err := w.open(7); err != nil {
		t.Error(err)
	}
	w.wants(ids{2, 6, 7}, ids{2, 6, 7, 8, 9})
}

// TestForgetMany: more logs than one transaction takes.
func TestForgetMany(t *testing.T) {
	w := newLogs(t)
	var all ids
	for id := coordinator.LogID(1); id <= 300; id++ {
		all = append(all, id)
	}
	w.close(all...)
	if err := w.forget(all...); err != nil {
		t.Fatal(err)
	}
	w.wants(nil, nil)
	if now := w.list(); !now.Closed(300) || now.Closed(301) {
		t.Error("the mark is not at 301")
	}
}

// TestForgetRace: of two who forget from what they saw at the same time, one does; and who opens a log meanwhile is not passed over unseen.
func TestForgetRace(t *testing.T) {
	w := newLogs(t)
	w.close(1, 2, 5)
	seen := w.list()
	if err := w.forget(1); err != nil {
		t.Fatal(err)
	}
	if err := seen.Forget(t.Context(), w.kv, ids{2}); !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("forget log 2 from what was so before: %v", err)
	}
	seen = w.list()
	if err := w.open(4); err != nil {
		t.Fatal(err)
	}
	if err := seen.Forget(t.Context(), w.kv, ids{5}); err != nil {
		t.Fatal(err)
	}
	w.wants(ids{2, 4}, ids{4, 6, 7, 8, 9})
}

// TestListWhileForgotten: who lists the logs while one of them is forgotten sees its record or the mark, and never neither.
func TestListWhileForgotten(t *testing.T) {
	w := newLogs(t)
	w.close(1)
	kv := &forgettingKV{Store: w.kv, after: func() {
		if err := w.forget(1); err != nil {
			t.Error(err)
		}
	}}
	for range 2 {
		if all, err := coordinator.ListLogs(t.Context(), kv, 0); err != nil || !all.Closed(1) {
			t.Errorf("log 1 does not count as closed: %+v, %v", all, err)
		}
	}
	w.wants(nil, ids{2, 3, 4, 5, 6, 7, 8, 9})
}

// forgettingKV lets something happen after the first listing.
type forgettingKV struct {
	*mem.Store
	after func()
}

func (k *forgettingKV) List(ctx context.Context, prefix string, revision int64) ([]coordinator.Item, int64, error) {
	items, at, err := k.Store.List(ctx, prefix, revision)
	if after := k.after; after != nil {
		k.after = nil
		after()
	}
	return items, at, err
}

// TestOpenInDoubt: a log whose opening has an unknown outcome is open once, and not again once it was closed and forgotten, when its first transaction applies late.
func TestOpenInDoubt(t *testing.T) {
	for name, kind := range map[string]mem.FaultKind{"applied": mem.UnknownApplied, "late": mem.UnknownLate, "lost": mem.UnknownLost} {
		t.Run(name, func(t *testing.T) {
			w := newLogs(t)
			w.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: kind})
			if err := w.open(1); err != nil {
				t.Fatal(err)
			}
			w.wants(ids{1}, ids{1, 2, 3, 4, 5, 6, 7, 8, 9})
			w.close(1)
			if err := w.forget(1); err != nil {
				t.Fatal(err)
			}
			w.kv.Settle()
			w.wants(nil, ids{2, 3, 4, 5, 6, 7, 8, 9})
		})
	}
}

// TestOpenAgain: who does not know whether it opened a log asks again, also when the mark has passed the log since.
func TestOpenAgain(t *testing.T) {
	w := newLogs(t)
	if err := w.open(1); err != nil {
		t.Fatal(err)
	}
	w.close(2)
	if err := w.forget(2); err != nil {
		t.Fatal(err)
	}
	if err := w.open(1); err != nil {
		t.Error(err)
	}
	w.wants(ids{1}, ids{1, 3, 4, 5, 6, 7, 8, 9})
}

// TestOpenWhileMarked: the mark rises between the reading of it and the opening of a log, first below the log, then above it.
func TestOpenWhileMarked(t *testing.T) {
	w := newLogs(t)
	w.close(1, 3)
	kv := &markingKV{Store: w.kv, before: []func(){
		func() {
			if err := w.forget(1); err != nil {
				t.Error(err)
			}
		},
		func() {
			if err := w.forget(3); err != nil {
				t.Error(err)
			}
		},
	}}
	if _, err := coordinator.OpenLog(t.Context(), kv, coordinator.Log{ID: 2, Fence: 1}); !errors.Is(err, coordinator.ErrPassedOver) || len(kv.before) != 0 {
		t.Errorf("open log 2: %v, want that it was passed over", err)
	}
	w.wants(nil, ids{4, 5, 6, 7, 8, 9})
}

// markingKV lets something happen before each of the first transactions.
type markingKV struct {
	*mem.Store
	before []func()
}

func (k *markingKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if len(k.before) > 0 {
		before := k.before[0]
		k.before = k.before[1:]
		before()
	}
	return k.Store.Txn(ctx, compares, ops)
}
