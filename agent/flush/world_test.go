package flush

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
)

// world is a WAL log's record in etcd and a bucket, with a flusher between them. Tests play the WAL.
type world struct {
	t        *testing.T
	kv       *memkv.Store
	objects  *mem.Store
	bucket   *fault.Store
	record   coordinator.Log
	revision int64
	part     *ingest.Partition

	flusher *Flusher
	ended   chan error
	cancel  context.CancelFunc

	mu      sync.Mutex
	commits []coordinator.CommitItem // as they were told
	trims   []int64
	broken  error // what Committed says

	entry  int64 // last that was durable
	offset int64
	open   int64 // offset from which a transaction is open; 0 for none

	crowded atomic.Bool
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), objects: mem.New()}
	w.bucket = fault.New(w.objects)
	w.record = coordinator.Log{
		ID: 3, Node: 1, Fence: 1, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"s"}, Quorum: 1}},
	}
	w.revision = w.put(coordinator.KeyLog(3), coordinator.Encode(w.record))
	w.part = ingest.NewPartition(partition.ID{Topic: protocol.TopicID{1}}, "t", 0, partition.New(1))
	return w
}

func (w *world) put(key string, value []byte) int64 {
	w.t.Helper()
	res, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: key, Value: value}})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Revision
}

func (w *world) writer() *Writer {
	return NewWriter(WriterConfig{
		KV: w.kv, Store: w.bucket, Record: w.record, Revision: w.revision, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
}

// run starts a flusher.
func (w *world) run(cfg Config) {
	w.flusher = New(cfg, Deps{
		Writer: w.writer(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Crowded: w.crowded.Load,
		Committed: func(c coordinator.CommitItem, f *segment.Footer) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if f.Header.ID.Name() != c.Commit.Object {
				return errors.New("the footer is of another segment")
			}
			w.commits = append(w.commits, c)
			return w.broken
		},
		Trim: func(entry int64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.trims = append(w.trims, entry)
		},
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- w.flusher.Run(ctx) }()
	w.t.Cleanup(w.end)
}

// end ends the flusher and returns why it did.
func (w *world) end() {
	w.cancel()
	if err := <-w.ended; err != nil {
		w.t.Logf("the flusher ended with %v", err)
	}
	w.ended <- nil
}

// durable gives the flusher the next batch, of one record with that many bytes.
func (w *world) durable(bytes int) {
	w.t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch = protocol.Offset(w.offset), 1
	b.Append(1, nil, make([]byte, bytes))
	raw, err := b.AppendTo(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.offset++
	w.entry++
	stable := protocol.Offset(w.offset)
	if w.open > 0 {
		stable = protocol.Offset(w.open)
	}
	w.flusher.Durable(ingest.Entry{Partition: w.part, Ref: wal.Ref{Payload: raw, Entry: wal.EntryID(w.entry)}, LastStable: stable})
}

func (w *world) flush() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Hour)
	defer cancel()
	if err := w.flusher.Flush(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// check holds that etcd has n commits which continue each other, that what they name is in the bucket, and that the flusher told of them in order.
func (w *world) check(n int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	items, _, err := w.kv.List(w.t.Context(), coordinator.PrefixCommits, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(items) != n || len(w.commits) != n || len(w.trims) != n {
		w.t.Fatalf("etcd has %d commits, %d were told and %d trims, want %d", len(items), len(w.commits), len(w.trims), n)
	}
	next, entry := protocol.Offset(0), int64(1)
	for i, it := range items {
		c, err := coordinator.DecodeCommit(it.Value)
		if err != nil {
			w.t.Fatal(err)
		}
		p := c.Partitions[0]
		if c.Number != uint64(i+1) || c.FirstEntry != entry || p.FirstOffset != next {
			w.t.Errorf("commit %d is number %d of entries from %d and offsets from %d, want entry %d and offset %d",
				i+1, c.Number, c.FirstEntry, p.FirstOffset, entry, next)
		}
		next, entry = p.NextOffset, c.LastEntry+1
		told := &w.commits[i]
		if told.Log != c.Log || told.Number != c.Number || told.Revision != it.ModRevision || told.Bytes != len(it.Key)+len(it.Value) || told.Commit.Object != c.Object || w.trims[i] != c.LastEntry {
			w.t.Errorf("commit %d, of revision %d, was told as %+v and trimmed to %d", i+1, it.ModRevision, *told, w.trims[i])
		}
		info, err := w.objects.Stat(w.t.Context(), c.Object)
		if err != nil || info.Size != c.ObjectSize {
			w.t.Errorf("the object of commit %d: %+v, %v, want %d bytes", i+1, info, err, c.ObjectSize)
		}
	}
	item, _, err := w.kv.Get(w.t.Context(), coordinator.KeyLog(3))
	if err != nil {
		w.t.Fatal(err)
	}
	record, err := coordinator.Decode[coordinator.Log](item)
	if err != nil || record.Commits != uint64(n) || record.Flushed != entry-1 {
		w.t.Errorf("the log's record has %d commits up to entry %d (%v), want %d up to %d", record.Commits, record.Flushed, err, n, entry-1)
	}
}

// objectsHeld returns how many objects are in the bucket.
func (w *world) objectsHeld() int {
	n := 0
	for _, err := range w.objects.List(w.t.Context(), "", "") {
		if err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	return n
}
