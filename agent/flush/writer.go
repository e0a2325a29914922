package flush

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// Record is a durable batch of the WAL that is to be flushed.
type Record struct {
	Entry int64 // number of its WAL entry
	Key   segment.Key
	Name  string // of the topic
	Batch []byte // must stay as it is until the upload has ended
	// LastStable is the partition's last stable offset as of the batch's end; that of a section's last batch is the section's.
	LastStable protocol.Offset
}

// Writer turns records of one WAL log into segments and commits them. It is the only writer of the log's commits,
// by the guard of the log's record: the log's own agent while it lives, or the agent that has claimed the log to recover it.
//
// Upload and Roll may be called concurrently with everything; Commit and Close by one goroutine, in order of commit numbers.
type Writer struct {
	kv      coordinator.KV
	store   objectstore.Store
	cluster [16]byte
	now     func() time.Time
	log     *slog.Logger

	id    coordinator.LogID
	fence uint64

	turn  chan struct{} // has capacity 1: who holds its token changes the record
	guard coordinator.Guard

	mu     sync.Mutex
	record coordinator.Log // as etcd has it
}

// WriterConfig is what a [Writer] needs.
type WriterConfig struct {
	KV       coordinator.KV
	Store    objectstore.Store
	Cluster  [16]byte
	Record   coordinator.Log // the log's record, just written or claimed by this agent
	Revision int64           // of the record's key
	Now      func() time.Time
	Log      *slog.Logger
}

// NewWriter returns a writer of the log that cfg.Record describes.
func NewWriter(cfg WriterConfig) *Writer {
	return &Writer{
		kv: cfg.KV, store: cfg.Store, cluster: cfg.Cluster, now: cfg.Now, log: cfg.Log,
		id: cfg.Record.ID, fence: cfg.Record.Fence, record: cfg.Record,
		guard: coordinator.Guard{Key: coordinator.KeyLog(cfg.Record.ID), Revision: cfg.Revision}, turn: make(chan struct{}, 1),
	}
}

// Record returns the log's record as the last change left it. Its segments are not to be changed.
func (w *Writer) Record() coordinator.Log {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record
}

// NextCommit returns the number that the next commit must have.
func (w *Writer) NextCommit() uint64 { return w.Record().Commits + 1 }

// Staged is a segment that is in the bucket and not committed yet.
type Staged struct {
	Footer      *segment.Footer
	First, Last int64 // WAL entries
	number      uint64
}

// retryPauses are the waits between attempts to put an object; the last one repeats.
var retryPauses = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second, 3 * time.Second}

// Upload puts the records into a segment for the commit of that number. It tries until the segment is in the bucket or ctx ends. builder is empty before and after. Without records the segment is not to be committed: it
// shows that nothing which was put there under a lower fence, for that number or a higher one, was.
func (w *Writer) Upload(ctx context.Context, builder *segment.Builder, number uint64, records []Record) (Staged, error) {
	defer builder.Reset()
	for i := range records {
		r := &records[i]
		if err := builder.Add(r.Key, r.Name, r.Batch); err != nil {
			return Staged{}, fmt.Errorf("build segment of commit %d: %w", number, err)
		}
		if err := builder.SetLastStable(r.Key, r.LastStable); err != nil {
			return Staged{}, fmt.Errorf("build segment of commit %d: %w", number, err)
		}
	}
	last := w.Record().Flushed
	first := last + 1
	if n := len(records); n > 0 {
		first, last = records[0].Entry, records[n-1].Entry
	}
	header := segment.Header{
		ID:      segment.ID{Log: uint64(w.id), Fence: w.fence, Commit: number},
		Cluster: w.cluster, CreatedMs: w.now().UnixMilli(), FirstEntry: first, LastEntry: last,
	}
	for ; ; header.ID.Attempt++ {
		parts, footer, err := builder.Finish(header)
		if err != nil {
			return Staged{}, err
		}
		err = w.put(ctx, header.ID.Name(), parts, footer)
		if errors.Is(err, objectstore.ErrExists) {
			continue // left by an attempt of an earlier owner of this fence; its name keeps its bytes
		}
		if err != nil {
			return Staged{}, err
		}
		return Staged{Footer: footer, First: first, Last: last, number: number}, nil
	}
}

// put tries until the object is stored or ctx ends. ErrExists means that another object has the name.
func (w *Writer) put(ctx context.Context, name string, parts [][]byte, footer *segment.Footer) error {
	return w.retry(ctx, "put segment", name, func(ctx context.Context) error {
		err := w.store.Put(ctx, name, objectstore.Body{Parts: parts, Size: footer.ObjectSize})
		if !errors.Is(err, objectstore.ErrExists) {
			return err
		}
		// Most likely it is an earlier try of this very put. A store may also have refused it because of one that then failed: not found is tried again.
		same, err := w.same(ctx, name, parts[len(parts)-1], footer)
		if err == nil && !same {
			return objectstore.ErrExists
		}
		return err
	})
}

// same reports whether the object of that name is the one that this writer meant to put: its footer, which has the checksums
// of all sections, is the same to the byte.
func (w *Writer) same(ctx context.Context, name string, want []byte, footer *segment.Footer) (bool, error) {
	info, err := w.store.Stat(ctx, name)
	if err != nil || info.Size != footer.ObjectSize {
		return false, err
	}
	got := make([]byte, len(want))
	err = w.store.Get(ctx, name, footer.Pos, got)
	return bytes.Equal(got, want), err
}

// attemptMax bounds one attempt to put an object: a connection whose other end is gone may be silent for ever. The largest object
// takes half of it at a megabyte per second.
const attemptMax = 2 * time.Minute

// retry calls do until it succeeds, says that the object exists, or ctx ends. While the bucket is away, flushing waits; the WAL
// slows producers down when it is full.
func (w *Writer) retry(ctx context.Context, what, name string, do func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		limited, cancel := context.WithTimeout(ctx, attemptMax)
		err := do(limited)
		cancel()
		if err == nil || errors.Is(err, objectstore.ErrExists) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s %s: %w", what, name, ctx.Err())
		}
		w.log.Warn("object store: trying again", "what", what, "object", name, "attempt", attempt+1, "err", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", what, name, ctx.Err())
		case <-time.After(retryPauses[min(attempt, len(retryPauses)-1)]):
		}
	}
}

// Commit makes a staged segment part of the log, by one transaction that holds only if nobody has claimed the log and the
// commit is the next. beside is what it writes at the same time: the values of other keys, [BesideMax] at most, each of which must be as its ModRevision says. Commit returns once the outcome is certain: a
// [coordinator.FencedError] if another agent has taken the log over, or, if it names others' keys alone, has written these; then the segment may be committed anew.
// With [coordinator.ErrLimit], what is beside is too large: nothing is written, and a segment of fewer records may be uploaded for the same commit.
func (w *Writer) Commit(ctx context.Context, s Staged, beside ...coordinator.Item) (coordinator.CommitItem, error) {
	var item coordinator.CommitItem
	revision, err := w.change(ctx, beside, func(next *coordinator.Log) ([]coordinator.Op, error) {
		if s.number != next.Commits+1 || s.First <= next.Flushed {
			return nil, fmt.Errorf("commit %d of entries %d to %d: want commit %d of entries after %d",
				s.number, s.First, s.Last, next.Commits+1, next.Flushed)
		}
		c := newCommit(s, *next)
		op := coordinator.Op{Key: coordinator.KeyCommit(next.ID, s.number), Value: c.Encode()}
		item = coordinator.CommitItem{Log: next.ID, Number: s.number, Bytes: len(op.Key) + len(op.Value), Commit: c}
		next.Commits, next.Flushed = s.number, s.Last
		next.Segments = unflushed(next.Segments, next.Flushed)
		return []coordinator.Op{op}, nil
	})
	item.Revision = revision
	return item, err
}

// BesideMax is how many keys may be written beside a commit: values of 14 KiB on average find room; larger ones are refused.
const BesideMax = 64

// unflushed leaves out segments that were rolled away and are flushed to their end.
func unflushed(all []coordinator.WALSegment, flushed int64) []coordinator.WALSegment {
	return slices.DeleteFunc(slices.Clone(all), func(s coordinator.WALSegment) bool { return s.Last >= 0 && s.Last <= flushed })
}

// Roll lists the log's next WAL segment, whose stores hold it already, and ends the open one before its first entry. It returns once the outcome is certain, and
// waits for a commit under way.
func (w *Writer) Roll(ctx context.Context, s coordinator.WALSegment) error {
	_, err := w.change(ctx, nil, func(next *coordinator.Log) ([]coordinator.Op, error) {
		open := len(next.Segments) - 1
		if before := next.Segments[open]; s.Number <= before.Number || s.First < before.First {
			return nil, fmt.Errorf("roll from segment %d at entry %d to %d at %d: want higher ones", before.Number, before.First, s.Number, s.First)
		}
		segments := slices.Clone(next.Segments)
		segments[open].Last = s.First - 1
		s.Last = -1
		next.Segments = append(unflushed(segments, next.Flushed), s)
		return nil, nil
	})
	return err
}

// Close closes the log: every entry that counts is committed. Nothing can be committed to it afterwards.
func (w *Writer) Close(ctx context.Context) error {
	_, err := w.change(ctx, nil, func(next *coordinator.Log) ([]coordinator.Op, error) {
		next.Closed = true
		return nil, nil
	})
	return err
}

// change writes a changed record, with what edit gives and other keys beside it, by one transaction, and returns the revision that did. Changes have turns.
func (w *Writer) change(ctx context.Context, beside []coordinator.Item, edit func(next *coordinator.Log) ([]coordinator.Op, error)) (revision int64, err error) {
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	next := w.Record()
	ops, err := edit(&next)
	if err != nil {
		return 0, err
	}
	w.guard.Next = coordinator.Encode(next)
	guards := []*coordinator.Guard{&w.guard}
	for _, it := range beside {
		guards = append(guards, &coordinator.Guard{Key: it.Key, Revision: it.ModRevision})
		ops = append(ops, coordinator.Op{Key: it.Key, Value: it.Value})
	}
	err = coordinator.Insist(ctx, w.kv, guards, ops, func(err error) {
		w.log.Error("waiting for room in etcd; until then the WAL gathers", "log", next.ID, "commit", next.Commits, "err", err)
	})
	if fenced, ok := errors.AsType[*coordinator.FencedError](err); ok && fenced.Applied && !slices.Contains(fenced.Keys, w.guard.Key) {
		err = nil // what was written beside it has changed since
	}
	if err != nil {
		return 0, fmt.Errorf("commit %d of WAL log %s: %w", next.Commits, next.ID, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.record = next
	return w.guard.Revision, nil
}

// newCommit describes a staged segment.
func newCommit(s Staged, record coordinator.Log) coordinator.Commit {
	f := s.Footer
	return coordinator.Commit{
		Object: f.Header.ID.Name(), ObjectSize: f.ObjectSize, FooterPos: f.Pos, FooterSize: f.ObjectSize - f.Pos,
		Log: record.ID, Fence: record.Fence, Number: s.number, FirstEntry: s.First, LastEntry: s.Last,
		CreatedMs: f.Header.CreatedMs, Partitions: CommitPartitions(f),
	}
}

// CommitPartitions describes the sections of a segment as its commit does.
func CommitPartitions(f *segment.Footer) []coordinator.CommitPartition {
	all := make([]coordinator.CommitPartition, len(f.Sections))
	for i := range f.Sections {
		sec := &f.Sections[i]
		all[i] = coordinator.CommitPartition{
			Shard: coordinator.ShardID(sec.Shard), Topic: sec.Topic, Partition: sec.Partition,
			FirstOffset: sec.FirstOffset, NextOffset: sec.NextOffset, Pos: sec.Pos, Size: sec.Size,
			MaxTimestamp: sec.MaxTimestamp, LeaderEpoch: sec.LeaderEpoch, LastStable: sec.LastStable,
		}
	}
	return all
}

// Extents calls add for each partition of a commit, with what the index must know of it. revision is that which wrote the commit.
func Extents(c coordinator.Commit, revision int64, add func(partition.ID, index.Extent) error) error {
	object := &index.Object{
		Name: c.Object, Size: c.ObjectSize, FooterPos: c.FooterPos, CreatedMs: c.CreatedMs, Revision: revision,
	}
	for i := range c.Partitions {
		p := &c.Partitions[i]
		err := add(partition.ID{Topic: p.Topic, Partition: p.Partition}, index.Extent{
			First: p.FirstOffset, Next: p.NextOffset, LastStable: p.LastStable, Pos: p.Pos, Size: p.Size,
			MaxTimestamp: p.MaxTimestamp, Epoch: p.LeaderEpoch, Shard: uint32(p.Shard), Object: object,
		})
		if err != nil {
			return err
		}
	}
	return nil
}
