package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"

	"github.com/varve-io/varve/objectstore"
)

// flight is one GET for a run of blocks.
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
		b := &block{key: key{r.object.Name, index}, buffer: c.takeBuffer(), flight: f, pins: 1}
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

// fetch fills the flight's blocks with one GET and returns the bytes that it brought.
func (c *Cache) fetch(ctx context.Context, f *flight) (int, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return 0, errClosed
	}
	ctx, cancel := context.WithTimeout(ctx, flightTime)
	defer cancel()

	off := f.run.first * c.blockSize
	if len(f.blocks) == 1 {
		p := f.blocks[0].bytes
		return len(p), c.get(ctx, f, off, p)
	}
	// One range comes as one slice. Copying it costs a tenth of what a second request costs.
	scratch := c.takeScratch()
	defer func() { c.scratch <- scratch }()
	p := scratch[:min(int64(len(f.blocks))*c.blockSize, f.run.object.Size-off)]
	if err := c.get(ctx, f, off, p); err != nil {
		return 0, err
	}
	n := 0
	for _, b := range f.blocks {
		n += copy(b.bytes, p[n:])
	}
	return n, nil
}

func (c *Cache) get(ctx context.Context, f *flight, off int64, p []byte) error {
	err := c.store.Get(ctx, f.run.object.Name, off, p)
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		// It is the flight's own context that ended, and no reader's.
		return fmt.Errorf("%w: %v", objectstore.ErrUnavailable, err) //nolint:errorlint // hides it on purpose
	}
	return err
}

// takeScratch returns a buffer for a GET of several blocks. Whoever calls it holds a slot, so there is room to put it
// back.
func (c *Cache) takeScratch() []byte {
	select {
	case scratch := <-c.scratch:
		return scratch
	default:
		return make([]byte, int64(c.getBlocks)*c.blockSize)
	}
}
