package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// leave puts a log that no coordinator knows on the world's disk, with so many entries.
func (w *world) leave(t *testing.T, log wal.LogID, entries int) {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: w.dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	id := wal.SegmentID{Log: log, Number: 1}
	a, err := d.Create(id, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := wal.New(wal.Config{Segment: id, Fence: 1, First: 1}, wal.Copy{Name: "own", Store: a})
	if err != nil {
		t.Fatal(err)
	}
	for range entries {
		if _, err := l.Append(nil, []byte("acknowledged"), crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUnknownLog: an agent that finds entries of a log that its coordinator has never heard of, because it is given another cluster's, or one
// that has lost its data, refuses to start instead of freeing the only copy of them.
func TestUnknownLog(t *testing.T) {
	t.Run("new coordinator", func(t *testing.T) { testUnknownLog(t, newWorld(t)) })
	t.Run("another cluster", func(t *testing.T) {
		w := newWorld(t)
		other := coordinator.Log{ID: 77, Fence: 1, Closed: true, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Stores: []string{"another disk"}, Quorum: 1}}}
		ops := []coordinator.Op{{Key: coordinator.KeyLog(77), Value: coordinator.Encode(other)}}
		if _, err := w.kv.Txn(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
		testUnknownLog(t, w)
	})
}

func testUnknownLog(t *testing.T, w *world) {
	t.Helper()
	w.leave(t, 77, 1)
	held, err := w.refuse(t)
	if err == nil || !strings.Contains(err.Error(), "4d") {
		t.Errorf("start with entries of an unknown log: %v, want an error that names log 4d", err)
	}
	if len(held) != 1 || held[0].ID.Log != 77 {
		t.Errorf("the disk holds %+v, want log 77 alone", held)
	}
}

// refuse runs an agent that is to end by itself, and returns why it did, and what its disk holds.
func (w *world) refuse(t *testing.T) ([]disk.SegmentInfo, error) {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: w.dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = agent.New(alone(), agent.Deps{
		KV: w.kv, Store: w.store, Disk: d, Listener: l, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}).Run(ctx)
	if ctx.Err() != nil {
		t.Error("the agent did not end")
	}
	return d.Segments(), err
}

// TestLogThatNeverOpened: a crash between the making of a log and its record leaves an empty one, which nobody misses.
func TestLogThatNeverOpened(t *testing.T) {
	w := newWorld(t)
	w.leave(t, 77, 0)
	r := w.start(t, nil)
	produce(t, r, "t", 0, 10)
	consume(t, r, "t", 10)
}

// past says that logs below a number are over, unless they have a record, and which number is given next.
func (w *world) past(t *testing.T, mark, next coordinator.LogID) {
	t.Helper()
	_, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{
		{Key: coordinator.KeyPastLog, Value: coordinator.Encode(mark)}, {Key: coordinator.KeyNextLog, Value: coordinator.Encode(next)},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForgottenLog: a store was away when a log was closed and its record deleted, and comes back with its entries: they are in the bucket, and need not be kept.
func TestForgottenLog(t *testing.T) {
	w := newWorld(t)
	w.past(t, 78, 80)
	w.leave(t, 77, 10)
	r := w.start(t, nil)
	produce(t, r, "t", 0, 10)
	consume(t, r, "t", 10)
	r.stop()
	d, err := disk.Open(disk.Config{Dir: w.dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if held := d.Segments(); len(held) > 0 {
		t.Errorf("the disk still has %+v", held)
	}
}

// TestPassedOver: an agent whose number is below the mark by the time that it registers, as when it stood still for long, ends.
func TestPassedOver(t *testing.T) {
	w := newWorld(t)
	w.past(t, 78, 70)
	if _, err := w.refuse(t); !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("start with a number that was passed over: %v, want ErrFenced", err)
	}
}
