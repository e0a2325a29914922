package cache

import (
	"context"
	"time"

	"github.com/varve-io/varve/objectstore"
)

// Source is where the bytes of blocks come from. It may be used concurrently.
type Source interface {
	// Get fills parts, one behind the other, with the bytes from offset off of the object; each is a block, of which an object's last may be shorter, and together they
	// lie in one piece. They are the caller's again when it returns. Errors are those of [objectstore.Store]; then the content of parts is undefined. It bounds its time itself:
	// ctx ends with the cache.
	Get(ctx context.Context, o Object, off int64, parts [][]byte) error
}

const (
	getsMax = 8                // GETs at the same time; more wait in line
	getTime = 30 * time.Second // bounds a GET: nobody's context does
)

// Bucket is the source from which all bytes come in the end: an object store, of which it has a few GETs under way at a
// time, one for each call. Calls of several parts use memory of getsMax times their length.
type Bucket struct {
	store   objectstore.Store
	slots   chan struct{} // one token for each GET under way
	scratch chan []byte   // buffers of GETs of several parts
}

var _ Source = (*Bucket)(nil)

// NewBucket returns the source that reads store.
func NewBucket(store objectstore.Store) *Bucket {
	return &Bucket{store: store, slots: make(chan struct{}, getsMax), scratch: make(chan []byte, getsMax)}
}

// Get implements [Source]. It waits in line, until ctx ends.
func (s *Bucket) Get(ctx context.Context, o Object, off int64, parts [][]byte) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, getTime)
	defer cancel()
	if len(parts) == 1 {
		return s.store.Get(ctx, o.Name, off, parts[0])
	}
	// One range comes as one slice. It is copied into its parts, which costs less than a request for each of them.
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	scratch := s.takeScratch(n)
	defer func() { s.scratch <- scratch }()
	if err := s.store.Get(ctx, o.Name, off, scratch[:n]); err != nil {
		return err
	}
	from := scratch
	for _, part := range parts {
		from = from[copy(part, from):]
	}
	return nil
}

// takeScratch returns a buffer of at least n bytes. Whoever calls it holds a slot, so there is room to put it back.
func (s *Bucket) takeScratch(n int) []byte {
	select {
	case scratch := <-s.scratch:
		if len(scratch) >= n {
			return scratch
		}
	default:
	}
	return make([]byte, n)
}
