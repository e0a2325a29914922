package wal

import (
	"sync"
	"sync/atomic"
)

// Chunk is a piece of the log's memory that holds entries, and the unit in which memory is reused. Entries that are not
// trimmed yet always stay; those that are trimmed stay until their memory is needed.
//
// The memory is reused, the Chunk never is: whoever kept a pointer to it can always ask. Its methods may be called
// concurrently.
type Chunk struct {
	log *Log
	mem []byte
	// refs counts who holds the chunk; evictedRefs says that it is gone.
	refs atomic.Int32

	// The log's mutex guards these.
	base int64   // place of the chunk in all that was ever appended, in bytes of memory
	fill int     // bytes in use
	last EntryID // the last entry in it, or before it

	mu      sync.Mutex
	owners  []Owner
	evicted bool
}

const evictedRefs = -1 << 30

// Owner is told when a chunk in which it noted its interest is evicted.
type Owner interface {
	// Evicted says that nothing in the chunk can be read any more. It is called once, by the log's own goroutine,
	// without any lock of the log.
	Evicted(c *Chunk)
}

// Acquire keeps the chunk's bytes as they are until Release, and is false if they are gone. Bytes of entries that are
// not trimmed need no Acquire, as long as nobody trims them meanwhile. A chunk that is held for long costs the log
// memory: see [Config.PinnedBytesMax].
func (c *Chunk) Acquire() bool {
	for {
		n := c.refs.Load()
		if n < 0 {
			return false
		}
		if c.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends what a successful Acquire began.
func (c *Chunk) Release() {
	if c.refs.Add(-1) == 0 && c.log.starved.Load() {
		c.log.wakeRecycler()
	}
}

// Note has owner told when the chunk is evicted. Noting twice tells twice, so an owner remembers the last chunk that it
// noted. False says that the chunk is evicted already.
func (c *Chunk) Note(owner Owner) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.evicted {
		return false
	}
	c.owners = append(c.owners, owner)
	return true
}

// evict takes the memory of a chunk that nobody holds; false if somebody does.
func (c *Chunk) evict() bool { return c.refs.CompareAndSwap(0, evictedRefs) }

// tellOwners runs after evict, without the log's mutex.
func (c *Chunk) tellOwners() {
	c.mu.Lock()
	owners := c.owners
	c.evicted, c.owners = true, nil
	c.mu.Unlock()
	for _, o := range owners {
		o.Evicted(c)
	}
}

// room is how many bytes are left.
func (c *Chunk) room() int { return len(c.mem) - c.fill }
