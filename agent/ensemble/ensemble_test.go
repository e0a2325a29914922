package ensemble

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/coordinator/placement"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
)

// store is a segment in a store of the test: it takes everything, until it fails.
type store struct {
	world *world
	name  string
}

func (s *store) Append([][]byte) error {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	return s.world.fails[s.name]
}
func (s *store) Trim(wal.EntryID) error { return nil }
func (s *store) Close() error           { return nil }
func (s *store) Drop() error            { return nil }
func (s *store) FrameBytesMax() int64   { return 1 << 20 }

// world is a log with its own store "own", and candidates.
type world struct {
	t      *testing.T
	kv     *kvmem.Store
	log    *wal.Log
	writer *flush.Writer
	keeper *Keeper
	rolled int
	over   chan error

	mu         sync.Mutex
	candidates []placement.Store
	fails      map[string]error // by store
	refuses    map[string]error // segments
	created    []string
}

var errBroken = errors.New("broken")

func newWorld(t *testing.T, candidates ...placement.Store) *world {
	w := &world{
		t: t, kv: kvmem.New(kvmem.Config{ClusterID: 1, Start: time.Now()}), candidates: candidates, over: make(chan error, 1),
		fails: make(map[string]error), refuses: make(map[string]error),
	}
	record := coordinator.Log{ID: 3, Node: 1, Fence: 1, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"own"}, Quorum: 1}}}
	res, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyLog(3), Value: coordinator.Encode(record)}})
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	w.writer = flush.NewWriter(flush.WriterConfig{KV: w.kv, Store: mem.New(), Record: record, Revision: res.Revision, Now: time.Now, Log: logger})
	w.keeper = New(Config{Log: 3, Fence: 1, Own: placement.Store{ID: "own", Node: 1, Zone: "z1"}, Copies: 3, Quorum: 2}, Deps{
		Candidates: func() []placement.Store {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.candidates
		},
		Create: w.create, Rolled: func() { w.rolled++ }, Now: time.Now, Logger: logger,
	})
	w.log, err = wal.New(wal.Config{
		Segment: wal.SegmentID{Log: 3, Number: 1}, Fence: 1, First: 1, BytesMax: 1 << 20, OnLost: w.keeper.Lost,
	}, wal.Copy{Name: "own", Store: &store{w, "own"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { w.over <- w.keeper.Run(ctx, w.log, w.writer) }()
	t.Cleanup(func() {
		cancel()
		if err := <-w.over; err == nil {
			t.Error("the keeper ended without a reason")
		}
		_ = w.log.Close(context.WithoutCancel(ctx))
	})
	synctest.Wait()
	return w
}

func (w *world) create(_ context.Context, name string, id wal.SegmentID, fence wal.Fence, _ wal.EntryID) (wal.Store, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id.Log != 3 || fence != 1 {
		w.t.Errorf("segment %s, fence %d", id, fence)
	}
	key := name + " " + id.String()
	if slices.Contains(w.created, key) {
		return nil, disk.ErrExists
	}
	w.created = append(w.created, key)
	if err := w.refuses[name]; err != nil {
		return nil, err
	}
	return &store{w, name}, nil
}

// change changes the world and tells the keeper.
func (w *world) change(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.keeper.Changed()
	synctest.Wait()
}

// append appends an entry; it is durable unless the quorum is short.
func (w *world) append() {
	w.t.Helper()
	if _, err := w.log.Append(nil, make([]byte, frame.HeaderBytes), crc32c.Tail{}, nil); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// wants checks the listed ensemble.
func (w *world) wants(number uint32, stores ...string) {
	w.t.Helper()
	segments := w.writer.Record().Segments
	open := segments[len(segments)-1]
	got := slices.Clone(open.Stores)
	slices.Sort(got[1:])
	if open.Number != number || !slices.Equal(got, stores) {
		w.t.Errorf("segment %d on %v, want %d on %v", open.Number, got, number, stores)
	}
}

func zoned(id string, node int32, zone string) placement.Store {
	return placement.Store{ID: id, Node: node, Zone: zone}
}

// TestLife: copies are taken as they come, a store that fails is replaced and left out for a while, one that drains is left.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, c, d := zoned("b", 2, "z2"), zoned("c", 3, "z3"), zoned("d", 4, "z3")
		w := newWorld(t)
		w.wants(1, "own") // below the quorum that is wanted now, and what there is
		w.change(func() { w.candidates = []placement.Store{b} })
		w.wants(2, "own", "b")
		w.change(func() { w.candidates = []placement.Store{b, c, d} })
		w.append()
		three := w.writer.Record().Segments[0].Stores
		if len(three) != 3 || !slices.Contains(three, "b") {
			t.Fatalf("on %v", three)
		}
		w.change(func() {})
		w.wants(3, append([]string{"own", "b"}, three[2:]...)...) // and stays

		// The store of zone 3 fails.
		other := "c"
		if slices.Contains(three, "c") {
			other = "d"
		}
		failed := three[slices.IndexFunc(three, func(s string) bool { return s == "c" || s == "d" })]
		w.mu.Lock()
		w.fails[failed] = errBroken
		w.mu.Unlock()
		w.append()
		w.wants(4, "own", "b", other)
		w.append()
		if got := w.log.Durable(); got != 3 {
			t.Errorf("durable to entry %d", got)
		}

		// The other one goes, too: two are left until the first may be tried again, and fails again.
		w.change(func() { w.candidates = []placement.Store{b, zoned(failed, 9, "z3")} })
		w.wants(5, "own", "b")
		time.Sleep(suspectTime + time.Second)
		synctest.Wait()
		w.append()
		w.wants(7, "own", "b") // 6 had it again
		w.change(func() { w.fails = nil })
		time.Sleep(suspectTime + time.Second)
		synctest.Wait()
		w.wants(8, append([]string{"own"}, slices.Sorted(slices.Values([]string{"b", failed}))...)...)

		draining := zoned(failed, 9, "z3")
		draining.Draining = true
		w.change(func() { w.candidates = []placement.Store{b, draining} })
		w.wants(9, "own", "b")
		if w.rolled != 8 {
			t.Errorf("rolled %d times", w.rolled)
		}
	})
}

// TestBackAlone: of two stores one drops out, there is no other, and it comes back: by a segment of its own, since it takes nothing more of the old one, and
// before the time is over for which it would be left out if there were a quorum without it.
func TestBackAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, zoned("b", 2, "z2"))
		w.change(func() {})
		w.wants(2, "own", "b")
		w.append()
		w.mu.Lock()
		w.fails["b"] = errBroken
		w.mu.Unlock()
		w.append()
		w.wants(3, "own", "b") // it was tried again at once
		if got := w.log.Durable(); got != 1 {
			t.Errorf("durable to entry %d without a quorum", got)
		}
		w.mu.Lock()
		w.fails = nil
		w.mu.Unlock()
		time.Sleep(begTime)
		synctest.Wait()
		w.wants(4, "own", "b")
		if got := w.log.Durable(); got != 2 {
			t.Errorf("durable to entry %d after the roll", got)
		}
	})
}

// TestOneBack: the log needs one of two stores that failed, and one of them is back: the other does not keep it away.
func TestOneBack(t *testing.T) {
	for _, back := range []string{"b", "c"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, zoned("b", 2, "z2"), zoned("c", 3, "z3"))
			w.change(func() {})
			w.wants(2, "own", "b", "c")
			for _, gone := range []string{"c", "b"} {
				w.mu.Lock()
				w.fails[gone], w.refuses[gone] = errBroken, errBroken
				w.mu.Unlock()
				w.append()
				time.Sleep(begTime)
			}
			w.mu.Lock()
			delete(w.fails, back)
			delete(w.refuses, back)
			w.mu.Unlock()
			time.Sleep(2*begTime + pauseTime)
			synctest.Wait()
			if open := w.writer.Record().Segments; !slices.Equal(open[len(open)-1].Stores, []string{"own", back}) {
				t.Errorf("%s is back, and the log is on %v", back, open[len(open)-1].Stores)
			}
		})
	}
}

// TestRefused: a store that does not take a segment is left out, and the number is not used again.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.change(func() {
			w.refuses["c"] = errBroken
			w.candidates = []placement.Store{zoned("b", 2, "z2"), zoned("c", 3, "z3")}
		})
		w.wants(1, "own")
		time.Sleep(pauseTime)
		synctest.Wait()
		w.wants(3, "own", "b")
		w.change(func() { w.refuses = nil })
		time.Sleep(suspectTime)
		synctest.Wait()
		w.wants(4, "own", "b", "c")
	})
}

// TestClaimed: a log that another agent has claimed cannot be rolled, and ends.
func TestClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		claimed := w.writer.Record()
		claimed.Fence, claimed.Claimer = 2, 7
		if _, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyLog(3), Value: coordinator.Encode(claimed)}}); err != nil {
			t.Fatal(err)
		}
		w.change(func() { w.candidates = []placement.Store{zoned("b", 2, "z2")} })
		err := <-w.over
		w.over <- err // for the cleanup
		if !errors.Is(err, coordinator.ErrFenced) || !errors.Is(w.log.Err(), wal.ErrFailed) {
			t.Errorf("the keeper ended with %v, the log with %v", err, w.log.Err())
		}
	})
}
