// Package wal is the write-ahead log of one agent: opaque entries, numbered from 1, durable on an ack quorum of stores
// within about one sync of a disk, and readable from memory until they are flushed to the object store.
//
//	admission, err := log.Admit(ctx, len(batch))     // waits while too much is unflushed
//	ref, err := log.Append(head, batch, waiter)      // copies once, never blocks
//	admission.Done()
//	...                                              // waiter.Durable() is called
//	log.Trim(ref.Entry)                              // flushed: memory and disk may be reused
//
// # Model
//
// The log's memory is the image of what is on disk. It consists of chunks; an entry is copied into the open frame of the
// current chunk, and that is the only copy on its way: the disk is written from there by direct I/O, consumers of the
// log's tail are served from there, and so is the flush. While the writer syncs one append, the next frame gathers
// (group commit).
//
// A chunk whose entries are all trimmed remains as a cache until its memory is needed. Whoever reads from one holds it
// ([Chunk.Acquire]); whoever keeps an index of entries notes that it wants to be told when a chunk goes ([Chunk.Note]).
//
// # Failure
//
// The first error of the writer's own store fails the log for good: every entry that is not durable yet fails, in order, and so does
// every later Append. A failed sync is not tried again, since the kernel may have dropped the pages that it could not
// write. What was durable stays readable; recovery decides about the rest. Another store that fails drops out of the ensemble; while a quorum remains, the log
// goes on, and [Log.Roll] gives it a new ensemble. wal/DESIGN.md has the reasons.
package wal

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// The nouns of the log.
type (
	// EntryID numbers entries; see [frame.EntryID].
	EntryID = frame.EntryID
	// LogID names a log; see [frame.LogID].
	LogID = frame.LogID
	// Fence orders a log's owners; see [frame.Fence].
	Fence = frame.Fence
	// SegmentID names a segment of a log; see [frame.SegmentID].
	SegmentID = frame.SegmentID
)

// Kinds of errors.
var (
	// ErrFailed: the log failed for good; the cause is wrapped too.
	ErrFailed = errors.New("WAL log failed")
	// ErrClosed: the log was closed, or stopped.
	ErrClosed = errors.New("WAL log closed")
	// ErrTooLarge: the entry is larger than [Log.EntryBytesMax].
	ErrTooLarge = errors.New("entry too large for the WAL")
)

// Store is where a log's frames become durable: one segment in one store. *disk.Appender is one.
type Store interface {
	// Append makes frames durable, or fails for good; with [disk.ErrFenced] the log is somebody else's. Each of bufs is a run of frames on block boundaries. A store in this process may stamp them
	// ([frame.Stamp]); any other must not read what that writes.
	Append(bufs [][]byte) error
	// Trim says that entries up to through are not needed any more. It may be called while Append runs.
	Trim(through EntryID) error
	// Close ends the segment in the store. It comes after the last Append.
	Close() error
	// Drop frees everything of the segment. It comes after Close.
	Drop() error
	// FrameBytesMax is the length of the longest frame that Append takes.
	FrameBytesMax() int64
}

// Copy is a store of an ensemble.
type Copy struct {
	Name  string // as the segment's record names it
	Store Store
}

// Waiter is told what became of an entry. Its methods are called in the order of the entries, by one goroutine that the
// whole log waits for, without any lock of the log: they must be quick, and may call the log.
type Waiter interface {
	// Stored says that the entry is durable on the writer's own store (acks=1). It comes before, or with an
	// ensemble of several stores perhaps after, Durable.
	Stored()
	// Durable says that the entry is durable on the ack quorum (acks=all).
	Durable()
	// Failed says that the entry will never be acknowledged, though recovery may yet find it. The last call.
	Failed(err error)
}

// Ref is a place in the log's memory.
type Ref struct {
	Chunk   *Chunk
	Payload []byte // the payload that was appended, without its head; see [Chunk.Acquire] for how long
	Entry   EntryID
}

// Config describes a log and its limits.
type Config struct {
	// Segment and Fence are those under which the stores were created. First is the number of the first entry.
	Segment SegmentID
	Fence   Fence
	First   EntryID
	// Quorum is how many stores of the first ensemble must hold an entry before it is acknowledged; 0 means 1.
	Quorum int
	// BytesMax limits the memory for entries that are not trimmed; 0 means 256 MiB. Admit waits beyond it. A frame
	// takes at least 4 KiB of it.
	BytesMax int64
	// OwnerBytes is what whoever appends keeps in memory for each entry that is not trimmed; it counts against BytesMax, since there may be
	// millions of small entries.
	OwnerBytes int64
	// CacheBytes is how much of what was trimmed stays readable before its memory is used again; 0 means 16 MiB. The log's memory grows to
	// what is unflushed at the worst moment and this.
	CacheBytes int64
	// PinnedBytesMax is how much more the log takes when readers hold so many trimmed chunks that none can be
	// reused; 0 means a quarter of BytesMax. Beyond it, Admit waits for the readers.
	PinnedBytesMax int64
	// OnLost is called when a store other than the writer's own drops out of the segment of that number, by a goroutine of the log, without any
	// lock. It must not wait for the log. nil for none.
	OnLost func(segment uint32, name string, err error)
	// OnEvict is called for each chunk that goes, like an [Owner]; nil for none.
	OnEvict func(c *Chunk)
	// OnFull is called when somebody begins to wait in Admit, with the number of the last entry that was appended: room comes when entries
	// up to it are trimmed. It must be quick, and not call the log. nil for none.
	OnFull func(last EntryID)
}

const (
	bytesMaxDefault   = 256 << 20
	cacheBytesDefault = 16 << 20
	chunkBytesMax     = 4 << 20
	chunkBytesMin     = 64 << 10
)

// New starts a log that writes to an ensemble, whose first store is the writer's own, and its goroutines; Close ends them.
func New(cfg Config, copies ...Copy) (*Log, error) {
	if cfg.Segment.Log == 0 || cfg.Segment.Number == 0 || cfg.Fence == 0 || cfg.First == 0 {
		return nil, fmt.Errorf("new WAL log %s, fence %d, first entry %d: want all above 0", cfg.Segment, cfg.Fence, cfg.First)
	}
	if cfg.Quorum == 0 {
		cfg.Quorum = 1
	}
	q, err := quorum.NewLog(cfg.Segment.Number, quorum.Size{Copies: len(copies), Quorum: cfg.Quorum})
	if err != nil {
		return nil, fmt.Errorf("new WAL log %s: %w", cfg.Segment, err)
	}
	if cfg.BytesMax == 0 {
		cfg.BytesMax = bytesMaxDefault
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = cacheBytesDefault
	}
	if cfg.PinnedBytesMax == 0 {
		cfg.PinnedBytesMax = cfg.BytesMax / 4
	}
	frameMax := copies[0].Store.FrameBytesMax()
	for _, c := range copies[1:] {
		frameMax = min(frameMax, c.Store.FrameBytesMax())
	}
	l := &Log{
		cfg: cfg, quorum: q, segment: cfg.Segment, next: cfg.First, frameMax: frameMax, lagMax: min(lagBytesMax, cfg.PinnedBytesMax/2),
		chunkBytes: int(min(chunkBytesMax, max(chunkBytesMin, frame.Padded(cfg.BytesMax/8)), frameMax)),
		entryMax:   int(frameMax) - frame.HeaderBytes - frame.EntryHeaderBytes,
		failed:     make(chan struct{}), ended: make(chan struct{}),
		arena: arena{trimmed: cfg.First - 1, storeTrimmed: cfg.First - 1},
	}
	l.durable.Store(uint64(cfg.First - 1))
	l.writable.L, l.deliverable.L, l.recyclable.L, l.trimmable.L = &l.mu, &l.mu, &l.mu, &l.mu
	if err := l.start(copies); err != nil {
		return nil, fmt.Errorf("new WAL log %s: %w", cfg.Segment, err)
	}
	return l, nil
}

// Prove returns when an append that was sent after the call is acknowledged by the quorum: nobody had sealed the log
// before that, so whatever the caller knew then as the log's owner was true. It appends nothing if entries are on
// their way anyway, and calls that come together share one sync.
func (l *Log) Prove(ctx context.Context) error {
	p := make(proof, 1)
	if err := l.prove(p); err != nil {
		return err
	}
	select {
	case err := <-p:
		return err
	case <-ctx.Done():
		return fmt.Errorf("prove ownership of WAL log: %w", ctx.Err())
	}
}

// proof waits for an append rather than for an entry of it.
type proof chan error

func (p proof) Stored()          {}
func (p proof) Durable()         { p <- nil }
func (p proof) Failed(err error) { p <- err }
