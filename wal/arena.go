package wal

import "github.com/varve-io/varve/wal/frame"

// arena is the log's memory. The log's mutex guards it.
type arena struct {
	current *Chunk   // where entries are appended
	unready []*Chunk // chunks with entries that are not trimmed, oldest first; the last one is current
	cached  []*Chunk // trimmed ones, oldest first
	free    [][]byte // memory of chunkBytes each

	memoryBytes  int64 // in all of these
	trimmed      EntryID
	storeTrimmed EntryID // the store was told
	delivered    bool    // the deliverer has ended
	recycled     bool    // and so has the recycler
}

// freeChunks is how many free chunks the recycler keeps ready, so that Append finds one.
const freeChunks = 2

// nextChunk makes room for a frame of n bytes in a new current chunk. It takes free memory; if the recycler fell
// behind, it allocates. What Admit let through has to go somewhere.
func (l *Log) nextChunk(n int) error {
	base := int64(0)
	if l.current != nil {
		base = l.current.base + int64(len(l.current.mem))
	}
	c := &Chunk{log: l, base: base, last: l.next - 1}
	if k := len(l.free); k > 0 && n <= l.chunkBytes {
		c.mem = l.free[k-1]
		l.free = l.free[:k-1]
	} else {
		mem, err := l.allocate(max(l.chunkBytes, int(frame.Padded(int64(n)))))
		if err != nil {
			return err
		}
		c.mem = mem
	}
	l.current = c
	l.unready = append(l.unready, c)
	l.settle()
	l.recyclable.Signal()
	return nil
}

func (l *Log) allocate(n int) ([]byte, error) {
	mem, err := newMemory(n)
	if err == nil {
		l.memoryBytes += int64(n)
	}
	return mem, err
}

// unflushed is the memory from the first chunk that is not trimmed to the end of the current one's entries, and what their owners keep. Proofs alone
// count nothing: no trim would free them.
func (l *Log) unflushed() int64 {
	if l.trimmed == l.next-1 {
		return 0
	}
	return l.current.base + int64(l.current.fill) - l.unready[0].base + int64(l.next-1-l.trimmed)*l.cfg.OwnerBytes
}

// Trim says that entries up to through are flushed and committed: their memory may be reused, and the store may drop them,
// both in the background. What is not durable yet is not trimmed.
func (l *Log) Trim(through EntryID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	through = min(through, l.Durable())
	if through <= l.trimmed {
		return
	}
	l.trimmed = through
	l.settle()
	l.admit()
	l.recyclable.Signal()
}

// settle moves chunks that hold nothing but trimmed entries to the cache.
func (l *Log) settle() {
	n := 0
	for l.unready[n] != l.current && l.unready[n].last <= l.trimmed {
		n++
	}
	if n > 0 {
		l.cached = append(l.cached, l.unready[:n]...)
		rest := copy(l.unready, l.unready[n:])
		clear(l.unready[rest:])
		l.unready = l.unready[:rest]
	}
}

// recycle is the recycler: it tells the stores what was trimmed, and keeps free memory ready.
func (l *Log) recycle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		l.recycled = true
		l.trimmable.Broadcast()
	}()
	for {
		if trimmed := l.trimmed; trimmed > l.storeTrimmed || l.dropDue() {
			l.storeTrimmed = trimmed
			l.trimStores(trimmed)
		} // and memory too, lest many trims keep it waiting
		if c := l.reclaim(); c != nil {
			l.mu.Unlock()
			l.evicted(c)
			l.mu.Lock()
			continue
		}
		l.admit()
		switch {
		case l.trimmed > l.storeTrimmed || l.dropDue(): // reclaim let go of the mutex while it allocated
		case l.delivered:
			if l.err == nil {
				l.release() // a log that failed keeps its memory: its owner may be flushing from it
			}
			return
		default:
			l.recyclable.Wait()
		}
	}
}

// reclaim takes the next step towards enough free memory: it evicts the oldest cached chunk that nobody holds if there is more cache than
// asked for, since memory that is touched for the first time costs more than everything else that an append does; then it allocates up to the limit,
// then evicts from the cache that was asked for, and when all is held, allocates up to the second limit. It gives the chunk that it evicted;
// nil when there is nothing more to do.
func (l *Log) reclaim() *Chunk {
	limit := l.cfg.BytesMax + l.cfg.CacheBytes
	for {
		over := l.memoryBytes > limit
		if len(l.free) >= freeChunks && !over {
			l.starved.Store(false)
			return nil
		}
		if l.cachedBytes() > l.cfg.CacheBytes {
			if c := l.evictOldest(); c != nil {
				return c
			}
		}
		if !over && l.memoryBytes+int64(l.chunkBytes) <= limit && l.addFree() {
			continue
		}
		// From here on, a reader that lets go of a chunk wakes the recycler; set before looking, so that none is
		// missed.
		l.starved.Store(len(l.free) < freeChunks)
		if c := l.evictOldest(); c != nil {
			return c
		}
		if len(l.free) >= freeChunks {
			return nil
		}
		if l.memoryBytes+int64(l.chunkBytes) > limit+l.cfg.PinnedBytesMax || !l.addFree() {
			return nil
		}
	}
}

// cachedBytes is the memory of trimmed chunks.
func (l *Log) cachedBytes() int64 {
	var bytes int64
	for _, c := range l.cached {
		bytes += int64(len(c.mem))
	}
	return bytes
}

// addFree allocates a free chunk, touching its pages without the mutex.
func (l *Log) addFree() bool {
	l.memoryBytes += int64(l.chunkBytes)
	l.mu.Unlock()
	mem, err := newMemory(l.chunkBytes)
	l.mu.Lock()
	if err != nil {
		l.memoryBytes -= int64(l.chunkBytes)
		return false
	}
	l.free = append(l.free, mem)
	return true
}

func (l *Log) evictOldest() *Chunk {
	for i, c := range l.cached {
		if !c.evict() {
			continue
		}
		rest := append(l.cached[:i], l.cached[i+1:]...)
		clear(l.cached[len(rest):])
		l.cached = rest
		mem := c.mem
		c.mem = nil
		if len(mem) == l.chunkBytes && len(l.free) < freeChunks {
			l.free = append(l.free, mem)
		} else {
			freeMemory(mem)
			l.memoryBytes -= int64(len(mem))
		}
		return c
	}
	return nil
}

func (l *Log) evicted(c *Chunk) {
	c.tellOwners()
	if l.cfg.OnEvict != nil {
		l.cfg.OnEvict(c)
	}
}

// wakeRecycler is called by readers.
func (l *Log) wakeRecycler() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recyclable.Signal()
}

// release gives all memory back that nobody holds, at the log's end. Chunks that are held keep theirs for good: it is the
// holder who may still read it.
func (l *Log) release() {
	for _, mem := range l.free {
		freeMemory(mem)
	}
	l.free = nil
	for _, c := range append(l.cached, l.unready...) {
		if c.evict() {
			freeMemory(c.mem)
			c.mem = nil
		}
	}
	l.cached = nil
}
