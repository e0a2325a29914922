package mem

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/varve-io/varve/coordinator"
)

// Cursor reads the changes of the keys under a prefix, revision by revision, without blocking. It is used from one
// goroutine at a time.
type Cursor struct {
	store    *Store
	prefix   string
	revision int64 // everything up to here was returned
}

// NewCursor makes a cursor that starts after revision rev.
func (s *Store) NewCursor(prefix string, rev int64) *Cursor {
	return &Cursor{store: s, prefix: prefix, revision: rev}
}

// Next returns the next revision that changes a key under the prefix or, where there is none, a batch without events
// for the store's revision if the cursor is behind it. It returns false if there is nothing new. Its error is
// ErrCompacted.
func (c *Cursor) Next() (coordinator.Batch, bool, error) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return c.next()
}

// next is Next for a caller that holds the store's mu.
func (c *Cursor) next() (coordinator.Batch, bool, error) {
	s := c.store
	if c.revision >= s.revision {
		return coordinator.Batch{}, false, nil
	}
	if c.revision+1 < s.compacted {
		return coordinator.Batch{}, false, fmt.Errorf("watch %q after revision %d: %w: the oldest is %d", c.prefix, c.revision, coordinator.ErrCompacted, s.compacted)
	}
	from, _ := slices.BinarySearchFunc(s.history, c.revision+1, func(b coordinator.Batch, rev int64) int { return cmp.Compare(b.Revision, rev) })
	for _, batch := range s.history[from:] {
		c.revision = batch.Revision
		var events []coordinator.Event
		for _, e := range batch.Events {
			if strings.HasPrefix(e.Key, c.prefix) {
				events = append(events, coordinator.Event{Item: clone(e.Item), Deleted: e.Deleted})
			}
		}
		if len(events) > 0 {
			return coordinator.Batch{Revision: batch.Revision, Events: events}, true, nil
		}
	}
	c.revision = s.revision
	return coordinator.Batch{Revision: s.revision}, true, nil
}

// Watch implements [coordinator.KV]. A batch without events follows as soon as the store has moved past the last one.
func (s *Store) Watch(ctx context.Context, prefix string, rev int64, fn func(coordinator.Batch)) error {
	cursor := s.NewCursor(prefix, rev)
	for {
		batch, err := cursor.await(ctx)
		if err != nil {
			return err
		}
		fn(batch)
	}
}

// await is Next that waits for a batch until ctx ends.
func (c *Cursor) await(ctx context.Context) (coordinator.Batch, error) {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return coordinator.Batch{}, err
		}
		if s.closed {
			return coordinator.Batch{}, fmt.Errorf("watch %q: %w: closed", c.prefix, coordinator.ErrUnavailable)
		}
		batch, ok, err := c.next()
		if ok || err != nil {
			return batch, err
		}
		s.await(ctx)
	}
}
