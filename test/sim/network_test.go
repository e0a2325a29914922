package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	product "github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

const (
	stallMax   = 2 * time.Second  // that an append waits, as in wal/peer
	timeoutMax = 10 * time.Second // that any other request waits
	probeMax   = 300 * time.Millisecond
)

// network is what one node reaches the others through. A request is two calls that park: one of the asking node, until the request arrives, and one of the other
// node, until the answer does. Either may be lost; a cut holds them up, and connections end by timeouts.
type network struct{ from *node }

var _ product.Peers = network{}

// Store implements product.Peers.
func (n network) Store(place string, identity uuid.UUID) product.PeerStore {
	return &remote{from: n.from, place: place, identity: identity}
}

// Dial implements product.Peers: nodes have nothing but their stores for each other.
func (n network) Dial(context.Context, string, uuid.UUID, peering.Service) (net.Conn, error) {
	return nil, peering.ErrUnreachable
}

// Refuses implements product.Peers.
func (n network) Refuses(ctx context.Context, place string) (refuses bool) {
	ctx, cancel := context.WithTimeout(ctx, probeMax)
	defer cancel()
	n.from.c.call(ctx, &call{
		by: &n.from.process, kind: kindNet, what: fmt.Sprintf("probe %s", place), ready: n.from.reaches(place),
		run: func(e effect) {
			to := n.from.c.at(place)
			refuses = (e == happens || e == twice) && (to == nil || to.dead || to.over.Load())
		},
	})
	return refuses
}

// remote is another node's store.
type remote struct {
	from     *node
	place    string
	identity uuid.UUID
}

// reaches returns whether a packet gets from n to a place now.
func (n *node) reaches(place string) func() bool {
	return func() bool { return n.c.cuts[[2]string{n.machine.name, place}] <= n.c.step }
}

// ask has a request served by the other node. do runs there, in a goroutine of its own, and may run though ask has failed, also later.
func (r *remote) ask(ctx context.Context, what string, limit time.Duration, do func(to *node) error) (*node, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := r.from.c
	arrive := func() (*node, <-chan error, error) {
		to := c.at(r.place)
		store := to.serves()
		if store == nil {
			return nil, nil, fmt.Errorf("%w: nobody serves %s", peering.ErrUnreachable, r.place)
		}
		if store.Identity() != r.identity {
			return nil, nil, fmt.Errorf("%w: %s has another store", peering.ErrUnreachable, r.place)
		}
		answer := make(chan error, 1)
		go func() { answer <- r.answer(to, what, do(to)) }()
		return to, answer, nil
	}
	late := func() lateWrite {
		return lateWrite{what: fmt.Sprintf("%s to %s: %s", r.from.name, r.place, what), apply: func() { _, _, _ = arrive() }}
	}
	var served *node
	var answer <-chan error
	var err error
	called := c.call(ctx, &call{
		by: &r.from.process, kind: kindNet, what: fmt.Sprintf("to %s: %s", r.place, what), ready: r.from.reaches(r.place), late: late,
		run: func(e effect) {
			if e == comesLate || e == twice {
				c.drop(late())
			}
			if e == happens || e == answerLost || e == twice {
				served, answer, err = arrive()
			}
			if e != happens && e != twice {
				err = fmt.Errorf("%w: connection reset", peering.ErrUnreachable)
			}
		},
	})
	switch {
	case !called:
		return nil, fmt.Errorf("%w: not sent in time", peering.ErrUnreachable)
	case err != nil:
		return served, err
	}
	select {
	case err := <-answer:
		return served, err
	case <-served.gone:
	case <-r.from.gone:
	case <-ctx.Done():
	}
	return served, fmt.Errorf("%w: no answer from %s", peering.ErrUnreachable, r.place)
}

// answer takes an answer back to who asked. If it is lost, nobody hears of it.
func (r *remote) answer(to *node, what string, err error) error {
	lost := fmt.Errorf("%w: connection reset", peering.ErrUnreachable)
	called := to.c.call(to.c.ctx, &call{
		by: &to.process, kind: kindNet, what: fmt.Sprintf("answer to %s: %s", r.from.name, what), ready: to.reaches(r.from.machine.name),
		run: func(e effect) {
			if e == happens || e == twice {
				lost = nil
			}
		},
	})
	if !called || lost != nil {
		return fmt.Errorf("%w: connection reset", peering.ErrUnreachable)
	}
	return err
}

// sealer is the node's store in recoveries.
func (n *node) sealer() wal.Sealer {
	if n.c.broken.peer != nil {
		return n.c.broken.peer(n)
	}
	return n.store.Load()
}

// askFor is ask for something that do returns: what the first request that was served got, as one that comes again may be served later.
func askFor[T any](r *remote, what string, do func(to *node) (T, error)) (T, error) {
	var first atomic.Pointer[T]
	_, err := r.ask(r.from.c.ctx, what, timeoutMax, func(to *node) error {
		got, err := do(to)
		if err == nil {
			first.CompareAndSwap(nil, &got)
		}
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return *first.Load(), nil
}

// Seal implements wal.Sealer.
func (r *remote) Seal(id wal.SegmentID, fence wal.Fence) (quorum.Answer, error) {
	return askFor(r, fmt.Sprintf("seal %s under %d", id, fence), func(to *node) (quorum.Answer, error) {
		return to.sealer().Seal(id, fence)
	})
}

// Read implements wal.Sealer.
func (r *remote) Read(id wal.SegmentID, from wal.EntryID, visit func(wal.EntryID, []byte) error) error {
	type entry struct {
		id wal.EntryID
		b  []byte
	}
	entries, err := askFor(r, fmt.Sprintf("read %s from %d", id, from), func(to *node) (entries []entry, err error) {
		err = to.sealer().Read(id, from, func(n wal.EntryID, b []byte) error {
			entries = append(entries, entry{n, slices.Clone(b)})
			return nil
		})
		return entries, err
	})
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := visit(e.id, e.b); err != nil {
			return err
		}
	}
	return nil
}

// Segments implements product.PeerStore.
func (r *remote) Segments() ([]disk.SegmentInfo, error) {
	return askFor(r, "list segments", func(to *node) ([]disk.SegmentInfo, error) { return to.store.Load().Segments(), nil })
}

// Close implements product.PeerStore.
func (r *remote) Close() {}

// Create implements product.PeerStore.
func (r *remote) Create(ctx context.Context, id wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error) {
	x := &connection{remote: r, id: id, turn: make(chan struct{}, 1)}
	served, err := r.ask(ctx, fmt.Sprintf("create %s at %d", id, first), timeoutMax, func(to *node) error {
		x.turn <- struct{}{}
		defer func() { <-x.turn }()
		a, err := to.store.Load().Create(id, fence, first)
		if err == nil {
			x.appender = a
		}
		return err
	})
	x.to = served
	if err != nil {
		x.cut()
		return nil, err
	}
	r.from.c.connected(x)
	return x, nil
}

// connection is an appender in another node's store. After the first error it is over; the other node notices that sooner or later, and closes the segment.
type connection struct {
	*remote
	id       wal.SegmentID
	to       *node         // nil while it is not connected
	turn     chan struct{} // has capacity 1: who uses the appender
	appender *disk.Appender
	unsent   []byte // what a broken network has acknowledged and not sent
	over     bool   // guarded by the world's mutex
}

var errOver = errors.New("the connection is over")

// cut ends the connection.
func (x *connection) cut() {
	x.from.c.mu.Lock()
	was := x.over
	x.over = true
	x.from.c.mu.Unlock()
	if was || x.to == nil {
		return
	}
	go func() {
		noticed := x.to.c.call(x.to.c.ctx, &call{
			by: &x.to.process, kind: kindNet, what: fmt.Sprintf("end of %s's connection for %s", x.from.name, x.id), run: func(effect) {},
		})
		if noticed {
			x.turn <- struct{}{}
			defer func() { <-x.turn }()
			if x.appender != nil {
				_ = x.appender.Close()
			}
		}
	}()
}

// use asks something of the appender.
func (x *connection) use(what string, limit time.Duration, do func() error) error {
	x.from.c.mu.Lock()
	over := x.over
	x.from.c.mu.Unlock()
	if over {
		return errOver
	}
	arrived := false
	_, err := x.ask(x.from.c.ctx, fmt.Sprintf("%s %s", what, x.id), limit, func(to *node) error {
		x.turn <- struct{}{}
		defer func() { <-x.turn }()
		if to != x.to || arrived {
			return errOver // another life of the machine, or a packet that came twice
		}
		arrived = true
		return do()
	})
	if err != nil {
		x.cut()
	}
	return err
}

// Append implements wal.Store. What goes over the wire is copied: the writer's own store stamps the frames meanwhile.
func (x *connection) Append(bufs [][]byte) error {
	var frames []byte
	next := wal.EntryID(0)
	for _, b := range bufs {
		for at := int64(0); at < int64(len(b)); {
			h, err := frame.Unstamped(b[at:])
			if err != nil {
				return err
			}
			n := h.Bytes()
			into := disk.Aligned(int(n))
			copy(into[frame.HeaderBytes:], b[at+frame.HeaderBytes:][:h.BodyBytes])
			frame.Finish(into, &h)
			frames = append(frames, into...)
			at, next = at+n, h.Next()
		}
	}
	send := func(frames []byte) error {
		frames = append(disk.Aligned(len(frames))[:0], frames...)
		return x.use(fmt.Sprintf("append before %d to", next), stallMax, func() error { return x.appender.Append([][]byte{frames}) })
	}
	if broken := x.from.c.broken.append; broken != nil {
		return broken(x, frames, send)
	}
	return send(frames)
}

// Trim implements wal.Store.
func (x *connection) Trim(through wal.EntryID) error {
	_, err := x.ask(x.from.c.ctx, fmt.Sprintf("trim %s to %d", x.id, through), timeoutMax, func(to *node) error {
		return to.store.Load().Trim(x.id, through)
	})
	return err
}

// Close implements wal.Store.
func (x *connection) Close() error {
	err := x.use("finish", timeoutMax, func() error { return x.appender.Close() })
	x.from.c.mu.Lock()
	x.over = true
	x.from.c.mu.Unlock()
	if errors.Is(err, errOver) {
		return nil // reported before
	}
	return err
}

// Drop implements wal.Store.
func (x *connection) Drop() error {
	_, err := x.ask(x.from.c.ctx, fmt.Sprintf("drop %s", x.id), timeoutMax, func(to *node) error {
		return to.store.Load().Drop(x.id)
	})
	return err
}

// FrameBytesMax implements wal.Store.
func (x *connection) FrameBytesMax() int64 { return walFileBytes - frame.BlockBytes }
