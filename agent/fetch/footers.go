package fetch

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/segment"
)

// Footers holds the footers of segments that were used last, up to a number of bytes of memory. It may be used concurrently.
type Footers struct {
	store    objectstore.Store
	bytesMax int64
	flights  singleflight.Group
	ahead    chan struct{} // one token for each flight that nobody waits for

	mu    sync.Mutex
	bytes int64
	byKey map[string]*list.Element // of heldFooter
	order list.List                // the one used last is in front
}

type heldFooter struct {
	name   string
	footer *segment.Footer
	bytes  int64
}

// NewFooters returns an empty cache whose footers take at most bytesMax bytes of memory ([segment.Footer.MemoryBytes]), or that holds one alone that takes more.
func NewFooters(store objectstore.Store, bytesMax int64) *Footers {
	return &Footers{store: store, bytesMax: bytesMax, ahead: make(chan struct{}, aheadMax), byKey: make(map[string]*list.Element)}
}

const (
	// flightTime bounds a GET: nobody's context does.
	flightTime = 30 * time.Second
	// aheadMax is how many footers are read at once that nobody waits for.
	aheadMax = 8
)

// Get returns the footer of a segment, from memory or by one GET, however many ask for it at once.
func (f *Footers) Get(ctx context.Context, o *index.Object) (*segment.Footer, error) {
	if footer := f.lookup(o.Name); footer != nil {
		return footer, nil
	}
	select {
	case res := <-f.depart(ctx, o):
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*segment.Footer), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read footer of %s: %w", o.Name, ctx.Err())
	}
}

// Prefetch begins to read the footer of a segment, for who will want it soon, and returns at once. It is a hint, which counts for nothing while many are under way.
func (f *Footers) Prefetch(ctx context.Context, o *index.Object) {
	if f.lookup(o.Name) != nil {
		return
	}
	select {
	case f.ahead <- struct{}{}:
	default:
		return
	}
	flight := f.depart(ctx, o)
	go func() {
		<-flight
		<-f.ahead
	}()
}

// depart has the footer of a segment read, unless that is under way.
func (f *Footers) depart(ctx context.Context, o *index.Object) <-chan singleflight.Result {
	return f.flights.DoChan(o.Name, func() (any, error) {
		// The flight serves others too, so that the end of this caller must not end it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		if footer := f.lookup(o.Name); footer != nil { // another flight has landed meanwhile
			return footer, nil
		}
		b := make([]byte, o.Size-o.FooterPos)
		if err := f.store.Get(ctx, o.Name, o.FooterPos, b); err != nil {
			return nil, fmt.Errorf("read footer of %s: %w", o.Name, err)
		}
		footer, err := segment.ParseFooter(b)
		if err != nil {
			return nil, fmt.Errorf("read footer of %s: %w", o.Name, err)
		}
		if name := footer.Header.ID.Name(); name != o.Name || footer.ObjectSize != o.Size {
			return nil, fmt.Errorf("read footer of %s: %w: it is that of %s, of %d bytes, want %d",
				o.Name, segment.ErrCorrupt, name, footer.ObjectSize, o.Size)
		}
		f.Put(footer)
		return footer, nil
	})
}

// batch reads one batch of a segment.
func (f *Footers) batch(ctx context.Context, o *index.Object, s *segment.Section, b segment.Batch) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, flightTime)
	defer cancel()
	data := make([]byte, b.Size)
	if err := f.store.Get(ctx, o.Name, b.Pos, data); err != nil {
		return nil, fmt.Errorf("read segment %s: %w", o.Name, err)
	}
	return data, s.VerifyBatch(b, data)
}

func (f *Footers) lookup(name string) *segment.Footer {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.byKey[name]
	if e == nil {
		return nil
	}
	f.order.MoveToFront(e)
	return e.Value.(*heldFooter).footer
}

// Put adds the footer of a segment that was just written or read.
func (f *Footers) Put(footer *segment.Footer) {
	h := &heldFooter{name: footer.Header.ID.Name(), footer: footer, bytes: footer.MemoryBytes()}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byKey[h.name] != nil {
		return
	}
	f.byKey[h.name] = f.order.PushFront(h)
	f.bytes += h.bytes
	for f.bytes > f.bytesMax && f.order.Len() > 1 {
		oldest := f.order.Remove(f.order.Back()).(*heldFooter)
		delete(f.byKey, oldest.name)
		f.bytes -= oldest.bytes
	}
}
