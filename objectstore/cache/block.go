package cache

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"
)

// key names a block. The size is part of it because it says how long an object's last block is: should somebody, who may be another
// agent, have it wrong, then nobody else meets the block.
type key struct {
	name  string
	size  int64
	index int64
}

func (o *Object) key(index int64) key { return key{name: o.Name, size: o.Size, index: index} }

// block is a part of an object that is ready or loading. Its fields belong to the cache's mutex, except bytes, which
// nobody changes after the flight.
type block struct {
	key    key
	buffer []byte // of the block size
	bytes  []byte // the part of buffer that the object fills
	flight *flight
	pins   int  // readers that hold it or wait for it, and its flight
	dead   bool // not in the map any more: its buffer is free when the last pin is gone
	ahead  bool // fetched for a reader that has not come for it yet

	since          time.Time // when it became idle, while ahead
	previous, next *block    // in a list of idle blocks
}

// run is count neighbouring blocks of one object.
type run struct {
	object Object
	first  int64
	count  int
	behind int // more blocks behind these that the reader is expected to want next
}

// list is a list of idle blocks, the least recently used first.
type list struct {
	first, last *block
	len         int
}

func (l *list) push(b *block) {
	b.previous, b.next = l.last, nil
	if l.last != nil {
		l.last.next = b
	} else {
		l.first = b
	}
	l.last = b
	l.len++
}

func (l *list) remove(b *block) {
	if b.previous != nil {
		b.previous.next = b.next
	} else {
		l.first = b.next
	}
	if b.next != nil {
		b.next.previous = b.previous
	} else {
		l.last = b.previous
	}
	b.previous, b.next = nil, nil
	l.len--
}

// Span is a range of an object, in the cache's own memory. The zero Span is empty.
type Span struct {
	cache    *Cache
	blocks   []*block
	parts    [][]byte
	ahead    int
	released atomic.Bool
}

// Parts returns the bytes, in order, none of the slices empty. They must not be changed, nor be used after Release.
func (s *Span) Parts() [][]byte { return s.parts }

// Ahead returns how many blocks are there for the reader behind these, for [Cache.Prefetch].
func (s *Span) Ahead() int { return s.ahead }

// Release gives the memory back. Only the first call counts.
func (s *Span) Release() {
	if s.cache == nil || s.released.Swap(true) {
		return
	}
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	for _, b := range s.blocks {
		s.cache.unpin(b)
	}
	s.cache.grant()
}

// cut sets the parts to n bytes from offset off of the blocks.
func (s *Span) cut(off, n int64) {
	s.parts = make([][]byte, 0, len(s.blocks))
	for _, b := range s.blocks {
		part := b.bytes[off:min(int64(len(b.bytes)), off+n)]
		s.parts = append(s.parts, slices.Clip(part))
		n -= int64(len(part))
		off = 0
	}
}

// waiter is a Read that waits for memory.
type waiter struct {
	run     run
	granted chan struct{} // closed, under the cache's mutex, when one of the following is set
	blocks  []*block
	err     error
	away    bool      // its time is over: nobody waits, until somebody takes its place
	since   time.Time // when its time was over
}

// pin returns the blocks of the run, pinned for the caller, each ready or with a flight. If there is no memory for those
// that are missing, it waits or returns ErrBusy.
func (c *Cache) pin(ctx context.Context, r run, wait bool) ([]*block, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	// Nobody overtakes those who wait, except readers that need no memory.
	if len(c.waiting) == 0 || c.missing(r) == 0 {
		if blocks := c.tryPin(r); blocks != nil {
			c.mu.Unlock()
			return blocks, nil
		}
	}
	if !wait {
		c.mu.Unlock()
		return nil, ErrBusy
	}
	w := &waiter{run: r, granted: make(chan struct{})}
	if i := slices.IndexFunc(c.waiting, func(o *waiter) bool { return o.away && o.run.object.key(o.run.first) == r.object.key(r.first) }); i >= 0 {
		c.waiting[i] = w
	} else {
		c.waiting = append(c.waiting, w)
	}
	c.stats.Waits++
	c.grant() // it may want less than who had its place, or stand behind one that nobody comes back to
	c.mu.Unlock()

	select {
	case <-w.granted:
		return w.blocks, w.err
	case <-ctx.Done():
		c.leave(w, ctx.Err())
		return nil, ctx.Err()
	}
}

// leave takes back a wait, or what it was granted meanwhile, because its context has ended with err. If its time was over, it keeps its place, unless the line is so long that this is worth little.
func (c *Cache) leave(w *waiter, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.waiting, w); i >= 0 {
		if w.away = !errors.Is(err, context.Canceled) && len(c.waiting) <= c.blocksMax; w.away {
			w.since = time.Now()
			return
		}
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
	c.giveUp(w.blocks, err)
	c.grant() // for those who stood behind it
}

// abandon is giveUp for a reader whose flight failed, or whose context ended, with err.
func (c *Cache) abandon(blocks []*block, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveUp(blocks, err)
	c.grant()
}

// giveUp unpins the blocks of a reader that does without them because of err. If its time was over, it will come again: then they are kept like those of which that is expected anyway, of which there are as many as may be at most.
func (c *Cache) giveUp(blocks []*block, err error) {
	for _, b := range blocks {
		if errors.Is(err, context.DeadlineExceeded) && !b.ahead && !b.dead && c.ahead < c.blocksMax/2 {
			c.markAhead(b)
		}
		c.unpin(b)
	}
}

// grant serves those who wait, in their order, as far as memory goes. Whoever frees memory calls it.
func (c *Cache) grant() {
	for len(c.waiting) > 0 {
		w := c.waiting[0]
		if w.away && time.Since(w.since) > staleTime {
			c.waiting = c.waiting[1:] // nobody comes any more
			continue
		}
		blocks := c.tryPin(w.run)
		if blocks == nil {
			return
		}
		c.waiting = c.waiting[1:]
		if w.away {
			c.giveUp(blocks, context.DeadlineExceeded)
			continue
		}
		w.blocks = blocks
		close(w.granted)
	}
}

// tryPin returns the blocks of the run, pinned for the caller, or nil if memory is short. It takes all or nothing: if it
// took some, two readers could wait for each other's.
func (c *Cache) tryPin(r run) []*block {
	blocks := make([]*block, r.count)
	missing := 0
	for i := range blocks {
		b := c.blocks[r.object.key(r.first+int64(i))]
		if b == nil {
			missing++
			continue
		}
		c.pinBlock(b) // so that it is not evicted for the missing ones
		blocks[i] = b
	}
	if missing > c.available() {
		for _, b := range blocks {
			if b != nil {
				c.unpin(b)
			}
		}
		return nil
	}
	for i := 0; i < r.count; i++ {
		if b := blocks[i]; b != nil {
			c.meet(b)
			if b.flight.landed() {
				c.stats.Hits++
			} else {
				c.stats.Joins++
			}
			continue
		}
		first := r.first + int64(i)
		count := c.gap(r.object, first, r.first+int64(r.count)-1)
		c.stats.Misses += uint64(count)
		along := 0 // what follows in the piece comes with the same GET
		if i+count == r.count && r.behind > 0 {
			along = c.gap(r.object, first, r.first+int64(r.count+r.behind)-1) - count
			along = max(0, min(along, c.aheadRoom(0), c.aheadAvailable()-count))
		}
		departed := c.depart(run{object: r.object, first: first, count: count + along}, false)
		for j, b := range departed[:count] {
			c.pinBlock(b)
			blocks[i+j] = b
		}
		for _, b := range departed[count:] {
			c.markAhead(b)
		}
		i += count - 1
	}
	return blocks
}

// missing returns how many blocks of the run are not there.
func (c *Cache) missing(r run) int {
	missing := 0
	for i := range r.count {
		if c.blocks[r.object.key(r.first+int64(i))] == nil {
			missing++
		}
	}
	return missing
}

// gap returns how many blocks from the one at index on, which is missing, one flight can bring: up to the one at last, the
// next that is there, or the end of the piece.
func (c *Cache) gap(o Object, index, last int64) int {
	end := min(last, index-index%c.getBlocks+c.getBlocks-1)
	next := index + 1
	for next <= end && c.blocks[o.key(next)] == nil {
		next++
	}
	return int(next - index)
}

// available returns how many buffers can be taken for readers.
func (c *Cache) available() int { return c.aheadAvailable() + c.unread.len }

// aheadAvailable returns how many buffers can be taken for what nobody has come for yet: not those of blocks of which that is true as well.
func (c *Cache) aheadAvailable() int {
	return len(c.free) + c.blocksMax - c.buffers + c.idle.len
}

// aheadRoom returns how many more blocks may be fetched ahead for a reader that has own of them already. All together are given half of the
// cache, and each reader as much as is left of that for the others: one alone gets half of the half, n get a part in n+1 each, and nobody needs to know how many
// there are.
func (c *Cache) aheadRoom(own int) int {
	for b := c.unread.first; b != nil && time.Since(b.since) > staleTime; b = c.unread.first {
		c.forget(b) // whoever wanted it has gone
	}
	return (c.blocksMax/2 - c.ahead - own) / 2
}

// markAhead says that nobody has come for the block yet. It is pinned.
func (c *Cache) markAhead(b *block) {
	b.ahead = true
	c.ahead++
}

// meet says that somebody has come for the block, who has pinned it.
func (c *Cache) meet(b *block) {
	if b.ahead {
		b.ahead = false
		c.ahead--
	}
}

// takeBuffer returns a buffer, of which one must be available.
func (c *Cache) takeBuffer() []byte {
	if len(c.free) == 0 && c.buffers == c.blocksMax {
		c.stats.Evictions++
		if c.idle.first != nil {
			c.forget(c.idle.first)
		} else {
			c.forget(c.unread.first)
		}
	}
	if last := len(c.free) - 1; last >= 0 {
		buffer := c.free[last]
		c.free = c.free[:last]
		return buffer
	}
	c.buffers++
	return make([]byte, c.blockSize)
}

func (c *Cache) pinBlock(b *block) {
	if b.pins == 0 {
		c.listOf(b).remove(b)
	}
	b.pins++
}

// listOf returns the list that the block is in while it is idle.
func (c *Cache) listOf(b *block) *list {
	if b.ahead {
		return &c.unread
	}
	return &c.idle
}

func (c *Cache) unpin(b *block) {
	b.pins--
	switch {
	case b.pins > 0:
	case b.dead:
		c.free = append(c.free, b.buffer)
	default:
		if b.ahead {
			b.since = time.Now()
		}
		c.listOf(b).push(b)
	}
}

// forget takes the block out of the map. Its buffer is free now or with its last pin.
func (c *Cache) forget(b *block) {
	if b.dead {
		return
	}
	b.dead = true
	delete(c.blocks, b.key)
	if b.pins == 0 {
		c.listOf(b).remove(b)
		c.free = append(c.free, b.buffer)
	}
	c.meet(b) // nobody will
}
