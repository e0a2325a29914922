// Package cache keeps blocks of immutable objects in memory, for readers of byte ranges.
//
// Objects are cut into aligned blocks of one size. A block is in the map, or it is not:
//
//	missing --Read or Prefetch takes a buffer--> loading --GET succeeds--> ready --evicted--> missing
//	                                                \------GET fails-----> missing
//
// A GET is a flight: it belongs to the cache, not to the reader that caused it, so that however many readers wait for a
// block there is one, and none of them takes it away from the others by giving up. Neighbouring missing blocks share a
// flight, within one piece: as many blocks as one GET may bring, aligned as they are. So the flights of different caches ask for
// the same pieces, or for parts of them, and one of several agents can be the one to fetch a piece from the bucket.
//
// Where bytes come from is up to the [Source]: the [Bucket], or what stands before it (objectstore/zone, objectstore/diskcache).
//
// A reader who reads on ([Cache.ReadOn]) has a few pieces fetched ahead of it, always whole ones, so that reading an object costs one GET for each piece however small the steps are. Blocks that nobody
// has come for yet take half of the cache at most, never push each other out, and go last: were it otherwise, many readers side by side would have everything
// fetched several times. They share that half without being counted: each has no more fetched than is left for all others.
//
// A reader may have little time, and come again. What it wanted is begun all the same, and counts as fetched ahead from when its time is over; if it stood in line for memory, it keeps its place.
//
// A reader gets the blocks themselves ([Span]), pinned until it releases them; only blocks that nobody has pinned are
// evicted, the least recently used first. Buffers are reused for ever, as fresh memory costs more than a copy. There are
// never more than fit into [Config.BytesMax]: when all are pinned, readers wait in the order in which they came.
//
// A reader that holds a span and waits for another could wait for one that waits for it. Whoever needs several spans at
// a time gets the first with [Cache.Read] and the others with [Cache.TryRead], which does not wait for memory, and does
// without them for now if that says [ErrBusy].
package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/varve-io/varve/objectstore"
)

// Config are the limits of a cache.
type Config struct {
	// BytesMax bounds the memory of blocks, and so the bytes that all readers together hold. At least one block.
	BytesMax int64
	// BlockBytes is the size of a block. 0 means BlockBytesDefault.
	BlockBytes int
	// GetBytesMax is the most that one GET asks for, and so the length of a piece, rounded down to whole blocks. 0 means
	// GetBytesDefault.
	GetBytesMax int
}

// BlockBytesDefault is the size of a block unless configured: a request has a cost of its own, to the store and to whoever pays for it, and it is to
// bring something worth that.
const BlockBytesDefault = 1 << 20

// GetBytesDefault is the length of a piece, and the most that one GET asks for, unless configured.
const GetBytesDefault = 4 << 20

const (
	prefetchesMax = 6                // flights of Prefetch, in line or in the air; more are dropped
	aheadPieces   = 4                // pieces that are fetched ahead of one reader at most
	staleTime     = 30 * time.Second // after it nobody is expected to come any more for what was fetched ahead
)

// ErrBusy says that TryRead would have to wait until another reader releases its span.
var ErrBusy = errors.New("cache busy: all blocks are in use")

// Cache reads ranges of objects through memory. All methods may be called concurrently.
type Cache struct {
	source    Source
	blockSize int64
	getBlocks int64 // of a piece
	blocksMax int

	ctx     context.Context //nolint:containedctx // the life of the cache, and of all flights
	cancel  context.CancelFunc
	flights sync.WaitGroup

	mu         sync.Mutex
	blocks     map[key]*block
	idle       list     // ready and not pinned, the least recently used first
	unread     list     // the same, of blocks that nobody has come for yet
	ahead      int      // blocks that nobody has come for yet, under way or unread
	free       [][]byte // buffers without a block
	buffers    int      // that were ever made
	waiting    []*waiter
	prefetches int // flights of Prefetch
	closed     bool
	stats      Stats
}

// Stats are a cache's counters, since it was made, and gauges.
type Stats struct {
	Hits   uint64 // blocks that a reader found
	Joins  uint64 // blocks that a reader found under way
	Misses uint64 // blocks that a reader had fetched

	Gets     uint64 // requests to the source, those of prefetches included
	GetBytes uint64 // bytes that they brought
	Failures uint64 // requests that failed

	Prefetches        uint64 // requests that Prefetch caused
	PrefetchesDropped uint64 // calls of Prefetch that were cut short because the cache was busy
	Evictions         uint64 // blocks that made room for others
	Waits             uint64 // reads that had to wait for memory

	BlockBytes  int64 // gauge: memory of all buffers
	PinnedBytes int64 // gauge: memory of those that readers and flights hold
}

// New returns an empty cache over source. Its owner calls Close.
func New(config Config, source Source) (*Cache, error) {
	if config.BlockBytes == 0 {
		config.BlockBytes = BlockBytesDefault
	}
	if config.GetBytesMax == 0 {
		config.GetBytesMax = GetBytesDefault
	}
	if config.BlockBytes < 1 || config.BytesMax < int64(config.BlockBytes) {
		return nil, fmt.Errorf("new cache: seen %d bytes in blocks of %d, want at least one block", config.BytesMax, config.BlockBytes)
	}
	c := &Cache{
		source:    source,
		blockSize: int64(config.BlockBytes),
		blocksMax: int(config.BytesMax / int64(config.BlockBytes)),
		getBlocks: int64(max(1, config.GetBytesMax/config.BlockBytes)),
		blocks:    make(map[key]*block),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// errClosed is what readers of a closed cache get.
var errClosed = fmt.Errorf("cache is closed: %w", objectstore.ErrUnavailable)

// Close ends all flights and waits, whose readers get an error of kind [objectstore.ErrUnavailable] as all later ones
// do, and returns when the flights are over. Spans stay valid.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	for _, w := range c.waiting {
		w.err = errClosed
		close(w.granted)
	}
	c.waiting = nil
	c.mu.Unlock()
	c.cancel()
	c.flights.Wait()
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	stats := c.stats
	stats.BlockBytes = int64(c.buffers) * c.blockSize
	stats.PinnedBytes = int64(c.buffers-len(c.free)-c.idle.len-c.unread.len) * c.blockSize
	return stats
}

// Room returns how many bytes of the cache nobody holds.
func (c *Cache) Room() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(c.available()) * c.blockSize
}

// PieceBytes returns the length of a piece.
func (c *Cache) PieceBytes() int64 { return c.getBlocks * c.blockSize }

// AheadBytes returns how much is fetched ahead of one reader at most, the piece in which that ends not counted.
func (c *Cache) AheadBytes() int64 { return aheadPieces * c.PieceBytes() }

// Object names an object and says how long it is. Whoever refers to an object knows its size, which saves a request.
type Object struct {
	Name string
	Size int64 // bytes
	// Direct has bytes that are missing come from the bucket itself, past whatever stands before it: for who found those that came from there damaged.
	Direct bool
	// Home has no other agent be asked for them: for who asks on behalf of one. Neither of the two is part of the object's identity.
	Home bool
}

// Read returns n bytes from offset off of the object, from memory as far as they are there and with as few GETs as
// possible otherwise. It waits for the source, and for other readers if they hold all memory; see the package's comment
// for callers that hold another span.
//
// Errors are those of the source with their kinds, the context's own, and [objectstore.ErrDenied] for a range that passes
// the object's end or does not fit into the cache. A failure is not remembered: the next Read asks again. If the context's time is over, which it may be from the start, what is missing was begun, or is in
// line for memory, for the next Read of the same.
func (c *Cache) Read(ctx context.Context, o Object, off, n int64) (*Span, error) {
	return c.read(ctx, o, off, n, 0, true)
}

// TryRead is Read, except that it returns ErrBusy at once where Read would wait for memory. It waits for the source.
func (c *Cache) TryRead(ctx context.Context, o Object, off, n int64) (*Span, error) {
	return c.read(ctx, o, off, n, 0, false)
}

// ReadOn is Read, or without wait TryRead, for who is expected to read on, behind bytes more: what follows in the same piece comes with the same GET, and
// further pieces are fetched ahead, as by Prefetch.
func (c *Cache) ReadOn(ctx context.Context, o Object, off, n, behind int64, wait bool) (*Span, error) {
	return c.read(ctx, o, off, n, behind, wait)
}

func (c *Cache) read(ctx context.Context, o Object, off, n, behind int64, wait bool) (*Span, error) {
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return nil, fmt.Errorf("read %s: %w", o.Name, err)
	}
	if off < 0 || n < 0 || off > o.Size || n > o.Size-off {
		return nil, fmt.Errorf("read %s: %d bytes from %d of an object of %d: %w", o.Name, n, off, o.Size, objectstore.ErrDenied)
	}
	if n == 0 {
		return &Span{}, nil
	}
	first, last := off/c.blockSize, (off+n-1)/c.blockSize
	if last-first >= int64(c.blocksMax) {
		return nil, fmt.Errorf("read %s: seen %d bytes from %d, want no more blocks than the cache's %d: %w",
			o.Name, n, off, c.blocksMax, objectstore.ErrDenied)
	}
	end := (min(off+n+behind, o.Size) - 1) / c.blockSize
	blocks, err := c.pin(ctx, run{object: o, first: first, count: int(last - first + 1), behind: int(end - last)}, wait)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.Name, err)
	}
	span := &Span{cache: c, blocks: blocks, ahead: c.Prefetch(o, off+n, behind, c.AheadBytes(), 0)}
	for _, b := range blocks {
		if err := b.flight.wait(ctx); err != nil {
			c.abandon(blocks, err)
			return nil, fmt.Errorf("read %s: %w", o.Name, err)
		}
	}
	span.cut(off-first*c.blockSize, n)
	return span, nil
}

// Prefetch says that a reader is expected to want n bytes from offset off on, in their order, and returns at once. It begins to fetch what is missing of the first of them: ahead
// bytes, and on to the end of the piece, so that a reader who comes nearer by little and little has whole pieces fetched. It is a hint: the part that lies in the object counts, and what
// would have to wait for memory or for other prefetches, or would leave others too little, is dropped. own is how many blocks are there for this reader already, which earlier calls have returned, since it goes
// on from one object to the next; Prefetch returns how many there are then.
func (c *Cache) Prefetch(o Object, off, n, ahead int64, own int) int {
	end := min(off+n, o.Size)
	off = max(off, 0)
	if end <= off || ahead <= 0 {
		return own
	}
	first, last := off/c.blockSize, (end-1)/c.blockSize
	reach := (off + ahead - 1) / c.blockSize
	last = min(last, reach-reach%c.getBlocks+c.getBlocks-1)

	c.mu.Lock()
	defer c.mu.Unlock()
	for index := first; index <= last; index++ {
		if b := c.blocks[o.key(index)]; b != nil {
			if b.ahead {
				own++
			}
			continue
		}
		gap := c.gap(o, index, last)
		count := min(gap, c.aheadRoom(own), c.aheadAvailable())
		// A part of a piece is better than nothing, but no reason for a GET while there is something to read.
		if c.closed || len(c.waiting) > 0 || c.prefetches == prefetchesMax || count <= 0 || count < gap && own > 0 {
			c.stats.PrefetchesDropped++
			return own
		}
		c.prefetches++
		c.stats.Prefetches++
		for _, b := range c.depart(run{object: o, first: index, count: count}, true) {
			c.markAhead(b)
		}
		own += count
		index += int64(count) - 1
	}
	return own
}

// Drop forgets the object, so that the next Read asks the source again: for a reader that found its checksum wrong, and
// for objects that were deleted. Spans of it stay valid.
func (c *Cache) Drop(o Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for index := int64(0); index*c.blockSize < o.Size; index++ {
		if b := c.blocks[o.key(index)]; b != nil {
			c.forget(b)
		}
	}
	c.grant()
}
