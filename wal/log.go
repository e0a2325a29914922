package wal

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"sync/atomic"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// Log is an open log. Its methods may be called concurrently.
//
// Three goroutines belong to it: the writer takes what has gathered to the store, the deliverer calls waiters, the
// recycler frees memory and trims the store. None holds the mutex while it does.
type Log struct {
	cfg        Config
	store      Store
	chunkBytes int
	entryMax   int
	failed     chan struct{} // closed when the log fails
	ended      chan struct{} // closed when the goroutines have ended
	durable    atomic.Uint64 // the last durable entry
	starved    atomic.Bool   // the recycler wants a chunk that readers hold

	mu          sync.Mutex
	writable    sync.Cond // for the writer
	deliverable sync.Cond // for the deliverer
	recyclable  sync.Cond // for the recycler

	next    EntryID // the next entry's number
	tracker *quorum.Tracker
	err     error // why the log failed
	closing bool
	drained bool // the writer has ended

	open    *group          // gathers entries at the end of the current chunk; nil when nothing has come
	waiting []*group        // closed, to be written
	sent    quorum.Position // how many the writer took
	done    []*group        // acknowledged or failed, to be delivered
	spare   []*group        // for reuse

	arena
	admissions
	stats Stats
}

// group is what one frame gathers: the entries of one append, and who waits for them.
type group struct {
	chunk   *Chunk // held until the group is delivered
	start   int    // the frame's place in the chunk
	bytes   int    // its length, once it is closed
	header  frame.Header
	waiters []Waiter
	err     error // the append failed
}

// groupsSpareMax and waitersSpareMax bound what is kept for reuse.
const (
	groupsSpareMax  = 64
	waitersSpareMax = 4096
)

// Stats are counters since the log began, and gauges of now.
type Stats struct {
	Entries uint64 // appended
	Bytes   uint64 // of entries
	Appends uint64 // frames written
	Syncs   uint64 // calls of the store, each a device sync
	// WrittenBytes counts frames with headers and padding.
	WrittenBytes uint64

	UnflushedBytes int64 // memory of entries that are not trimmed
	MemoryBytes    int64 // all of the log's memory
	Admitting      int   // callers that wait in Admit
}

// Stats gives the log's counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.UnflushedBytes, st.MemoryBytes, st.Admitting = l.unflushed(), l.memoryBytes, len(l.queue)
	return st
}

// EntryBytesMax is the length of the longest entry, head and payload together.
func (l *Log) EntryBytesMax() int { return l.entryMax }

// Append gives head||payload the next number and copies it into the log's memory, from where it is written with
// whatever else gathers until the store is free. It does not block on I/O; the slices are the caller's again when it
// returns. known is what the caller knows of the payload's checksum: it becomes part of the frame's, and if it is wrong, the entry is damaged on disk. w is told what
// becomes of the entry; nil for nobody. Callers that need entries in an order of their own append
// under a lock of their own.
//
// The errors are ErrTooLarge, ErrClosed, and ErrFailed with its cause; then nothing was appended and w is not called.
func (l *Log) Append(head, payload []byte, known crc32c.Tail, w Waiter) (Ref, error) {
	n := len(head) + len(payload)
	if n > l.entryMax {
		return Ref{}, fmt.Errorf("append %d bytes, want at most %d: %w", n, l.entryMax, ErrTooLarge)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g, err := l.gather(frame.EntryHeaderBytes + n)
	if err != nil {
		return Ref{}, err
	}
	c := g.chunk
	end := c.fill + g.header.Put(c.mem[c.fill:], head, payload, known)
	ref := Ref{Chunk: c, Payload: c.mem[end-len(payload) : end : end], Entry: l.next}
	if w != nil {
		g.waiters = append(g.waiters, w)
	}
	c.fill, c.last = end, l.next
	l.next++
	l.stats.Entries++
	l.stats.Bytes += uint64(n)
	return ref, nil
}

// prove adds w to the next append, if need be one without entries.
func (l *Log) prove(w Waiter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, err := l.gather(0)
	if err != nil {
		return err
	}
	g.waiters = append(g.waiters, w)
	return nil
}

// gather gives the open group, with room for n more bytes in its chunk.
func (l *Log) gather(n int) (*group, error) {
	if l.err != nil {
		return nil, l.err
	}
	if l.closing {
		return nil, ErrClosed
	}
	if l.open != nil && n <= l.current.room() {
		return l.open, nil
	}
	if l.open != nil {
		l.closeGroup()
	}
	if frame.HeaderBytes+n > l.current.room() {
		if err := l.nextChunk(frame.HeaderBytes + n); err != nil {
			l.fail(fmt.Errorf("allocate memory for %d bytes: %w", n, err)) // for the caller the entry has its place already
			return nil, l.err
		}
	}
	g := l.newGroup()
	c := l.current
	c.refs.Add(1) // cannot be evicted: it is the current one
	g.chunk, g.start = c, c.fill
	g.header = frame.Header{Segment: l.cfg.Segment, Fence: l.cfg.Fence, First: l.next}
	c.fill += frame.HeaderBytes
	l.open = g
	l.writable.Signal()
	return g, nil
}

// closeGroup ends the open group at a block boundary, for the writer.
func (l *Log) closeGroup() {
	g, c := l.open, l.current
	c.fill = int(frame.Padded(int64(c.fill)))
	g.bytes = c.fill - g.start
	l.waiting = append(l.waiting, g)
	l.open = nil
}

func (l *Log) newGroup() *group {
	n := len(l.spare)
	if n == 0 {
		return new(group)
	}
	g := l.spare[n-1]
	l.spare = l.spare[:n-1]
	return g
}

// Durable gives the last entry that is durable on the quorum. It never goes back, and is raised before waiters are
// called.
func (l *Log) Durable() EntryID { return EntryID(l.durable.Load()) }

// Failed is closed when the log has failed.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err says why the log failed; nil while it has not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close stops appends, waits until what was appended is durable and its waiters were called, and ends the segment in the
// store. It returns the log's failure, if it failed. When ctx ends first, Close returns; the log still comes to its end by
// itself. Entries are not readable from memory after Close, except through chunks that were acquired before.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closing = true
	l.writable.Signal()
	l.mu.Unlock()
	select {
	case <-l.ended:
		return l.Err()
	case <-ctx.Done():
		return fmt.Errorf("close WAL log %s: %w", l.cfg.Segment, ctx.Err())
	}
}

// start allocates the first memory and starts the goroutines.
func (l *Log) start() error {
	if err := l.nextChunk(0); err != nil {
		return err
	}
	var running sync.WaitGroup
	for _, g := range []struct {
		name string
		run  func()
	}{{"wal-writer", l.write}, {"wal-deliverer", l.deliver}, {"wal-recycler", l.recycle}} {
		running.Go(func() {
			pprof.Do(context.Background(), pprof.Labels("varve", g.name), func(context.Context) { g.run() })
		})
	}
	go func() {
		running.Wait()
		close(l.ended)
	}()
	return nil
}

// fail ends the log, and everything that is not acknowledged with it. The mutex is held.
func (l *Log) fail(cause error) {
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("%w: %w", ErrFailed, cause)
	close(l.failed)
	l.refuseAdmissions(l.err)
	l.writable.Signal()
}
