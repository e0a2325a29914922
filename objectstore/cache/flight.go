package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"

	"github.com/varve-io/varve/objectstore"
)

// flight is one GET for a run of blocks, all of one piece.
type flight struct {
	run      run
	blocks   []*block
	prefetch bool
	done     chan struct{}
	err      error // set before done is closed
}

// wait returns when the flight has landed, with its error, or when the context ends, with the context's.
func (f *flight) wait(ctx context.Context) error {
	if f.landed() { // ready blocks do not depend on the context
		return f.err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// depart makes the blocks of a run, all of which are missing and have memory available, and starts their flight. The
// caller holds the mutex, and the cache is not closed.
func (c *Cache) depart(r run, prefetch bool) []*block {
	blocks := make([]*block, r.count)
	f := &flight{run: r, prefetch: prefetch, done: make(chan struct{}), blocks: blocks}
	for i := range blocks {
		index := r.first + int64(i)
		b := &block{key: r.object.key(index), buffer: c.takeBuffer(), flight: f, pins: 1}
		b.bytes = b.buffer[:min(c.blockSize, r.object.Size-index*c.blockSize)]
		c.blocks[b.key] = b
		blocks[i] = b
	}
	c.flights.Go(func() {
		pprof.Do(c.ctx, pprof.Labels("room", "objectstore/cache"), func(ctx context.Context) { c.fly(ctx, f) })
	})
	return blocks
}

// fly carries a flight out.
func (c *Cache) fly(ctx context.Context, f *flight) {
	n, err := c.fetch(ctx, f)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		f.err = err
		c.stats.Failures++
	} else {
		c.stats.GetBytes += uint64(n)
	}
	c.stats.Gets++
	if f.prefetch {
		c.prefetches--
	}
	c.land(f)
	c.grant()
}

// land ends a flight whose err is set. The caller holds the mutex.
func (c *Cache) land(f *flight) {
	close(f.done)
	for _, b := range f.blocks {
		if f.err != nil {
			c.forget(b)
		}
		c.unpin(b)
	}
	f.blocks = nil // a block that stays would keep those that go
}

// fetch fills the flight's blocks and returns how many bytes that are.
func (c *Cache) fetch(ctx context.Context, f *flight) (int, error) {
	parts, n := make([][]byte, len(f.blocks)), 0
	for i, b := range f.blocks {
		parts[i] = b.bytes
		n += len(b.bytes)
	}
	err := c.source.Get(ctx, f.run.object, f.run.first*c.blockSize, parts)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		// It is the flight's own context that ended, and no reader's.
		err = fmt.Errorf("%w: %v", objectstore.ErrUnavailable, err) //nolint:errorlint // hides it on purpose
	}
	return n, err
}
