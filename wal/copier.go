package wal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

const (
	// roundBytesMax bounds what a copier takes at once, so that entries which came first need not wait for megabytes that
	// came later.
	roundBytesMax = 8 << 20
	// lagBytesMax bounds how far a store may lag behind what was closed: its frames keep their memory. Another agent's store drops out
	// then; the writer's own holds up the log. In a small log the bound is half of PinnedBytesMax.
	lagBytesMax = 64 << 20
)

// copier takes a log's frames to one store of one segment, in order. The log's mutex guards its fields but for staging.
type copier struct {
	log     *Log
	segment SegmentID
	store   int // in the ensemble; 0 is the writer's own
	copy    Copy

	taken  quorum.Position // everything up to here is, or is being, stored
	stored quorum.Position // and this far it is
	lag    int64           // bytes of frames that were closed since it joined, less what it has taken; negative while it catches up
	idle   bool
	ended  bool    // it takes nothing any more: the segment is over, or the store dropped out, or all is done
	closed bool    // and its store is closed
	lost   bool    // the store dropped out
	trim   EntryID // that the store is to be told
	drop   bool    // the store is to drop the segment

	staging []byte // memory for frames that were closed for another segment
}

func (c *copier) own() bool { return c.store == 0 }

// startCopiers adds an ensemble whose first append follows the position. The mutex is held.
func (l *Log) startCopiers(segment SegmentID, from quorum.Position, copies []Copy) {
	for i, store := range copies {
		c := &copier{log: l, segment: segment, store: i, copy: store, taken: from, stored: from}
		l.copiers = append(l.copiers, c)
		l.goRun("wal-copier", c.run)
		if !c.own() {
			l.goRun("wal-trimmer", c.tell)
		}
	}
}

// run is the copier's goroutine.
func (c *copier) run() {
	l := c.log
	var r round
	for l.take(c, &r) {
		err := c.copy.Store.Append(c.staged(&r))
		r.release()
		if !l.wrote(c, &r, err) {
			break
		}
	}
	err := c.copy.Store.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && c.own() {
		l.fail(fmt.Errorf("close store: %w", err))
	}
	c.ended, c.closed = true, true
	l.copiers = slices.DeleteFunc(l.copiers, func(other *copier) bool { return other == c })
	l.letGo()
	l.writable.Broadcast()
	l.deliverable.Signal()
	l.recyclable.Signal()
	l.trimmable.Broadcast()
}

// round is what a copier takes at once.
type round struct {
	bufs    [][]byte // frames, neighbours as one
	chunks  []*Chunk // held
	through quorum.Position
	foreign bool // some were closed for another segment
}

func (r *round) release() {
	for _, c := range r.chunks {
		c.Release()
	}
	clear(r.chunks)
	clear(r.bufs)
}

// take waits for frames and takes them; false when there is no more to come.
func (l *Log) take(c *copier, r *round) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.idle = true
	for {
		switch {
		case l.err != nil || c.ended, l.closing && l.open == nil && c.taken == l.end():
			c.ended = true
			return false
		case l.open != nil && l.quorumIdle():
			l.closeGroup()
			l.writable.Broadcast()
			continue
		case c.taken < l.end():
			c.idle = false
			l.fill(c, r)
			return true
		}
		l.writable.Wait()
	}
}

// quorumIdle reports whether a frame that is closed now can be taken to a quorum at once. Closing it earlier would make more and smaller frames, and closing it
// only when the writer's own store is free would make a slow one slow all down.
func (l *Log) quorumIdle() bool {
	if l.quorum.Short() && l.open.header.Count == 0 && !l.closing {
		return false // proofs of nothing, which nobody limits
	}
	idle, live := 0, 0
	for _, c := range l.copiers {
		if c.ended || c.segment != l.segment {
			continue
		}
		live++
		if c.idle {
			idle++
		}
		if c.own() && c.lag > l.lagMax {
			return false
		}
	}
	return idle >= min(l.quorum.Quorum(), live)
}

// addLag accounts for a frame that was closed. A store of another agent that lags too far drops out, unless what it lacks is not durable anyway: the quorum may need it, and
// Admit limits that.
func (l *Log) addLag(bytes int64) {
	for _, c := range l.copiers {
		c.lag += bytes
		if !c.own() && c.lag > l.lagMax && c.taken < l.quorum.Durable() {
			l.lose(c, fmt.Errorf("%d bytes behind: %w", c.lag, errLags))
		}
	}
}

// errLags: a store cannot keep up with the log.
var errLags = errors.New("store lags")

// fill takes what the copier has not taken yet, as far as a round may go.
func (l *Log) fill(c *copier, r *round) {
	r.bufs, r.chunks, r.foreign = r.bufs[:0], r.chunks[:0], false
	bytes, before := 0, (*group)(nil)
	for c.taken < l.end() {
		g := l.at(c.taken + 1)
		if bytes > 0 && bytes+g.bytes > roundBytesMax {
			break
		}
		bytes += g.bytes
		c.taken++
		r.foreign = r.foreign || g.header.Segment != c.segment
		if before != nil && before.chunk == g.chunk && before.start+before.bytes == g.start {
			last := len(r.bufs) - 1
			r.bufs[last] = r.bufs[last][:len(r.bufs[last])+g.bytes]
		} else {
			// The capacity reaches to the chunk's end, so that the next frame can join.
			r.bufs = append(r.bufs, g.chunk.mem[g.start:g.start+g.bytes])
			r.chunks = append(r.chunks, g.chunk)
			g.chunk.refs.Add(1) // the group holds it, too
		}
		before = g
	}
	if c.lag > l.lagMax {
		l.writable.Broadcast() // the own store may have held the others up
	}
	c.lag -= int64(bytes)
	r.through = c.taken
	if c.own() && c.segment == l.segment {
		l.stats.Syncs++
	}
	l.letGo()
}

// staged gives the round's frames as frames of the copier's segment. During a roll, those of the other segment are copied: its store may be stamping them.
func (c *copier) staged(r *round) [][]byte {
	if !r.foreign {
		c.staging = nil
		return r.bufs
	}
	n := 0
	for _, b := range r.bufs {
		n += len(b)
	}
	if len(c.staging) < n {
		c.staging = disk.Aligned(n)
	}
	at := 0
	for _, b := range r.bufs {
		for len(b) > 0 {
			n := frame.Readdress(c.staging[at:], b, c.segment)
			at, b = at+n, b[n:]
		}
	}
	return [][]byte{c.staging[:n]}
}

// wrote takes what a store said to a round. It is false if the copier has to end.
func (l *Log) wrote(c *copier, r *round, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil && (c.own() || errors.Is(err, disk.ErrFenced)): // fenced: somebody has claimed the log
		l.fail(err)
		return false
	case err != nil:
		l.lose(c, err)
		return false
	case l.err != nil:
		return false // what is stored now is acknowledged to nobody
	}
	c.stored = r.through
	if c.own() {
		l.storedHere()
	}
	l.acknowledged(l.quorum.Ack(c.segment.Number, c.store, c.stored))
	if l.rolling {
		l.writable.Broadcast()
	}
	return true
}

// storedHere moves the position of what the writer's own store has, during a roll in both segments: either may be the one that recovery reads.
func (l *Log) storedHere() {
	p := l.end()
	for _, c := range l.copiers {
		if c.own() && !c.ended {
			p = min(p, c.stored)
		}
	}
	if p > l.own {
		l.own = p
		l.deliverable.Signal()
	}
}

// acknowledged takes a durable position.
func (l *Log) acknowledged(p quorum.Position) {
	if p > l.told { // groups after it are retained
		l.durable.Store(uint64(max(l.Durable(), l.at(p).header.Next()-1)))
		l.deliverable.Signal()
	}
}

// lose drops another agent's store out of its ensemble.
func (l *Log) lose(c *copier, err error) {
	if c.ended {
		return // it did before, or the segment is over
	}
	c.ended, c.lost = true, true
	l.quorum.Lost(c.segment.Number, c.store)
	l.losses = append(l.losses, loss{segment: c.segment.Number, name: c.copy.Name, err: err})
	l.writable.Broadcast()
	l.deliverable.Signal()
}

// loss is a store that dropped out.
type loss struct {
	segment uint32
	name    string
	err     error
}

// past is a segment that was rolled away.
type past struct {
	last    EntryID // of its entries
	copiers []*copier
}

// droppable reports whether a copier's segment may go from its store.
func (p *past) droppable(c *copier, trimmed EntryID) bool { return c.closed && p.last <= trimmed }

// dropDue reports whether some store may drop a segment.
func (l *Log) dropDue() bool {
	return slices.ContainsFunc(l.past, func(p past) bool {
		return slices.ContainsFunc(p.copiers, func(c *copier) bool { return p.droppable(c, l.storeTrimmed) })
	})
}

// trimStores tells the writer's own store what was trimmed, and has the others told. The mutex is held, and let go of meanwhile.
func (l *Log) trimStores(through EntryID) {
	var own, over []*copier
	for _, c := range l.copiers {
		c.trim = through
		if c.own() {
			own = append(own, c)
		}
	}
	for i := range l.past {
		p := &l.past[i]
		p.copiers = slices.DeleteFunc(p.copiers, func(c *copier) bool {
			if !p.droppable(c, through) {
				return false
			}
			if c.drop = true; c.own() {
				over = append(over, c)
			}
			return true
		})
	}
	l.past = slices.DeleteFunc(l.past, func(p past) bool { return len(p.copiers) == 0 })
	l.trimmable.Broadcast()
	l.mu.Unlock()
	var failed error
	for _, c := range own {
		failed = errors.Join(failed, c.copy.Store.Trim(through))
	}
	for _, c := range over {
		failed = errors.Join(failed, c.copy.Store.Drop())
	}
	l.mu.Lock()
	if failed != nil {
		l.fail(failed)
	}
}

// tell is the goroutine that tells another agent's store what was trimmed. It may take long, and fail: what the store does not hear, it finds out from the log's
// record.
func (c *copier) tell() {
	l := c.log
	l.mu.Lock()
	defer l.mu.Unlock()
	told := l.storeTrimmed
	for {
		switch {
		case c.drop:
			l.mu.Unlock()
			_ = c.copy.Store.Drop()
			l.mu.Lock()
			return
		case c.trim > told && !c.ended:
			told = c.trim
			l.mu.Unlock()
			_ = c.copy.Store.Trim(told)
			l.mu.Lock()
		case c.lost && c.closed, l.recycled:
			return
		default:
			l.trimmable.Wait()
		}
	}
}
