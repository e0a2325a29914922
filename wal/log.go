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
// Goroutines belong to it: for each store a copier that takes to it what has gathered, and for other agents' one that tells them what was trimmed; the
// deliverer, which calls waiters; the recycler, which frees memory and trims the writer's own store. None holds the mutex while it does.
type Log struct {
	cfg        Config
	chunkBytes int
	entryMax   int
	frameMax   int64         // of the first ensemble; a store that takes less cannot join
	lagMax     int64         // bytes that a store may lag
	failed     chan struct{} // closed when the log fails
	ended      chan struct{} // closed when the goroutines have ended
	durable    atomic.Uint64 // the last durable entry
	starved    atomic.Bool   // the recycler wants a chunk that readers hold

	mu          sync.Mutex
	writable    sync.Cond // for the copiers, and for a roll: something gathered, became durable, or ended
	deliverable sync.Cond // for the deliverer
	recyclable  sync.Cond // for the recycler
	trimmable   sync.Cond // for those who tell other agents' stores

	next    EntryID        // the next entry's number
	err     error          // why the log failed
	stopped bool           // nothing is appended any more
	closing bool           // and the segment is to end; implies stopped
	running sync.WaitGroup // the log's goroutines

	quorum  *quorum.Log
	segment SegmentID // of frames that are closed now
	copiers []*copier // of all segments, until they have ended
	past    []past    // segments that were rolled away and not dropped
	rolling bool      // keep is in force
	keep    quorum.Position

	open   *group   // gathers entries at the end of the current chunk; nil when nothing has come
	groups []*group // closed, in order; the first one's position is before+1
	before quorum.Position
	own    quorum.Position // everything up to here is durable on the writer's own store
	stored quorum.Position // waiters up to here were told that it is stored
	told   quorum.Position // and that it is durable
	losses []loss          // stores that dropped out, of which nobody was told
	spare  []*group        // for reuse

	arena
	admissions
	stats Stats
}

// group is what one frame gathers: the entries of one append, and who waits for them.
type group struct {
	chunk   *Chunk // held until the group was delivered and every copier has taken it
	start   int    // the frame's place in the chunk
	bytes   int    // its length, once it is closed
	header  frame.Header
	waiters []Waiter
}

// memory is the frame.
func (g *group) memory() []byte { return g.chunk.mem[g.start : g.start+g.bytes] }

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
	Syncs   uint64 // calls of the writer's own store, each a device sync
	// WrittenBytes counts frames with headers and padding, once for all stores.
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
	if l.stopped && l.err == nil {
		return Ref{}, ErrClosed
	}
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
	g.header = frame.Header{Fence: l.cfg.Fence, First: l.next}
	c.fill += frame.HeaderBytes
	l.open = g
	l.writable.Broadcast()
	return g, nil
}

// closeGroup ends the open group at a block boundary, for the copiers.
func (l *Log) closeGroup() {
	g, c := l.open, l.current
	c.fill = int(frame.Padded(int64(c.fill)))
	g.bytes = c.fill - g.start
	g.header.Segment = l.segment
	frame.Finish(g.memory(), &g.header)
	l.groups = append(l.groups, g)
	l.open = nil
	l.stats.Appends++
	l.stats.WrittenBytes += uint64(g.bytes)
	l.addLag(int64(g.bytes))
}

// end is the position of the last closed group.
func (l *Log) end() quorum.Position { return l.before + quorum.Position(len(l.groups)) }

// at is the group at a position that is retained.
func (l *Log) at(p quorum.Position) *group { return l.groups[p-l.before-1] }

// letGo releases the groups that nobody needs any more: delivered, taken by every copier, and not to be sent to an ensemble that is being opened.
func (l *Log) letGo() {
	through := l.told
	if l.rolling {
		through = min(through, l.keep)
	}
	for _, c := range l.copiers {
		if !c.ended {
			through = min(through, c.taken)
		}
	}
	if through <= l.before {
		return
	}
	n := int(through - l.before)
	for _, g := range l.groups[:n] {
		if g.chunk.refs.Add(-1) == 0 && l.starved.Load() { // Release, with the mutex held
			l.recyclable.Signal()
		}
		if len(l.spare) < groupsSpareMax && cap(g.waiters) <= waitersSpareMax {
			*g = group{waiters: g.waiters[:0]}
			l.spare = append(l.spare, g)
		}
	}
	rest := copy(l.groups, l.groups[n:])
	clear(l.groups[rest:])
	l.groups, l.before = l.groups[:rest], through
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

// Stop ends appends: those after it, and whoever waits in Admit, fail with ErrClosed. What was appended before goes on; Prove waits for it.
func (l *Log) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.refuseAdmissions(ErrClosed)
}

// Close stops appends, waits until what was appended is durable and its waiters were called, and ends the segment in the
// stores. It returns the log's failure, if it failed. When ctx ends first, Close returns; the log still comes to its end by
// itself. Entries are not readable from memory after Close, except through chunks that were acquired before.
func (l *Log) Close(ctx context.Context) error {
	l.Stop()
	l.mu.Lock()
	l.closing = true
	l.writable.Broadcast()
	l.mu.Unlock()
	select {
	case <-l.ended:
		return l.Err()
	case <-ctx.Done():
		return fmt.Errorf("close WAL log %s: %w", l.cfg.Segment, ctx.Err())
	}
}

// start allocates the first memory and starts the goroutines.
func (l *Log) start(copies []Copy) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.nextChunk(0); err != nil {
		return err
	}
	l.startCopiers(l.segment, 0, copies)
	l.goRun("wal-deliverer", l.deliver)
	l.goRun("wal-recycler", l.recycle)
	go func() {
		l.running.Wait()
		close(l.ended)
	}()
	return nil
}

func (l *Log) goRun(name string, run func()) {
	l.running.Go(func() {
		pprof.Do(context.Background(), pprof.Labels("varve", name), func(context.Context) { run() })
	})
}

// fail ends the log, and everything that is not acknowledged with it. The mutex is held.
func (l *Log) fail(cause error) {
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("%w: %w", ErrFailed, cause)
	close(l.failed)
	l.refuseAdmissions(l.err)
	l.writable.Broadcast()
	l.deliverable.Signal()
}
