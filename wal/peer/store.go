package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// Config says where a store is, which one it is, and how long to wait for it.
type Config struct {
	// Address is the host and port of the agent's [Server].
	Address string
	// Identity is the store that is expected there.
	Identity uuid.UUID
	// Dialer connects to it.
	Dialer *peering.Dialer
	// Stall is how long an append may be without progress: a piece of 1 MiB that is not taken, an acknowledgement that does not come; 0 means
	// 2 s. After it, the store counts as dropped out.
	Stall time.Duration
	// Timeout is for connecting as a whole, and the same for all other requests as Stall for an append; 0 means 10 s. A seal of a segment that a
	// crash left is answered when the store has read it.
	Timeout time.Duration
}

const (
	// requestsMax limits requests under way to a store at the same time, reads and appenders aside. More wait for their turn.
	requestsMax = 8
	// readsMax limits reads, which take as long as their visits, so that nothing else has to wait for them.
	readsMax = 8
	// connsIdleMax is how many connections without a request are kept.
	connsIdleMax = 2
	// segmentsMax bounds the memory for a list of segments.
	segmentsMax = 1 << 20
)

// Store is a store of another agent. Its methods may be called concurrently, also when nobody is there: connections are made when they
// are needed.
//
// Errors of the store itself are its own: see [disk.Store]. The others are peering.ErrUnreachable, peering.ErrDenied, peering.ErrProtocol, and [disk.ErrClosed] after Close.
type Store struct {
	cfg      Config
	requests chan struct{} // those under way, reads aside
	reads    chan struct{}
	open     context.Context // ends with Close
	end      context.CancelFunc

	mu    sync.Mutex
	conns map[*conn]struct{} // all
	idle  []*conn            // of which these have no request; the last one was used last
}

// NewStore makes a store, without connecting to it.
func NewStore(cfg Config) *Store {
	if cfg.Stall == 0 {
		cfg.Stall = stallDefault
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = timeoutDefault
	}
	s := &Store{
		cfg: cfg, requests: make(chan struct{}, requestsMax), reads: make(chan struct{}, readsMax), conns: make(map[*conn]struct{}),
	}
	s.open, s.end = context.WithCancel(context.Background())
	return s
}

// Identity is the store's.
func (s *Store) Identity() uuid.UUID { return s.cfg.Identity }

// Close ends all connections, those of appenders and those that are being made too: what is under way fails with [disk.ErrClosed].
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end()
	s.idle = nil
	for c := range s.conns {
		c.close()
	}
}

// Seal is [disk.Store.Seal] over there.
func (s *Store) Seal(id frame.SegmentID, fence frame.Fence) (quorum.Answer, error) {
	var answer quorum.Answer
	err := s.do(request{op: opSeal, segment: id, fence: fence}, func(c *conn) error {
		_, payload, err := c.answer(opSealed)
		if err == nil {
			answer, err = parseSealed(payload)
		}
		return err
	})
	return answer, s.failed("seal", id, err)
}

// Trim is [disk.Store.Trim] over there. A trim that failed loses nothing, and may be sent again or left to a later one.
func (s *Store) Trim(id frame.SegmentID, through frame.EntryID) error {
	return s.failed("trim", id, s.do(request{op: opTrim, segment: id, entry: through}, (*conn).done))
}

// Drop is [disk.Store.Drop] over there.
func (s *Store) Drop(id frame.SegmentID) error {
	return s.failed("drop", id, s.do(request{op: opDrop, segment: id}, (*conn).done))
}

// Segments is [disk.Store.Segments] over there.
func (s *Store) Segments() ([]disk.SegmentInfo, error) {
	var infos []disk.SegmentInfo
	err := s.do(request{op: opSegments}, func(c *conn) error {
		infos = infos[:0]
		for {
			o, payload, err := c.answer(opListed)
			if err != nil || o == opDone {
				return err
			}
			if infos, err = parseListed(infos, payload); err != nil {
				return err
			}
			if len(infos) > segmentsMax {
				return fmt.Errorf("%w: more than %d segments", peering.ErrProtocol, segmentsMax)
			}
		}
	})
	if err != nil {
		return nil, s.lost("list WAL segments", err)
	}
	return infos, nil
}

// Read is [disk.Store.Read] over there: the bytes are valid until visit returns, and memory is bounded by the longest entry. It takes as long as
// it takes, if only the peer gets on with it. A visit may take its time; when the peer loses patience meanwhile, Read goes on where it was in
// another connection. An error of visit is returned as it is.
func (s *Store) Read(id frame.SegmentID, from frame.EntryID, visit func(frame.EntryID, []byte) error) error {
	if err := s.turn(s.reads); err != nil {
		return s.failed("read", id, err)
	}
	defer func() { <-s.reads }()
	var refused error // by visit
	note := func(id frame.EntryID, b []byte) error {
		refused = visit(id, b)
		return refused
	}
	for next := from; ; {
		began := next
		err := s.exchange(request{op: opRead, segment: id, entry: next}, func(c *conn) error {
			for {
				o, payload, err := c.answer(opEntries)
				if err != nil || o == opDone {
					return err
				}
				if next, err = visitEntries(payload, next, note); err != nil {
					return err
				}
			}
		})
		switch {
		case refused != nil:
			return refused
		case next > began && errors.Is(err, peering.ErrUnreachable) && !s.isClosed():
			continue
		}
		return s.failed("read", id, err)
	}
}

// turn waits for one of those that may be under way at the same time.
func (s *Store) turn(turns chan struct{}) error {
	ctx, cancel := context.WithTimeout(s.open, s.cfg.Timeout)
	defer cancel()
	select {
	case turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %d requests are under way: %w", peering.ErrUnreachable, cap(turns), ctx.Err())
	}
}

// do has a request answered in its turn.
func (s *Store) do(q request, answer func(*conn) error) error {
	if err := s.turn(s.requests); err != nil {
		return err
	}
	defer func() { <-s.requests }()
	return s.exchange(q, answer)
}

// exchange has a request answered, in a connection of the pool. All requests that go this way may be asked twice: the server closes connections
// that were idle for long, or has been started anew, which shows only when one is used.
func (s *Store) exchange(q request, answer func(*conn) error) error {
	for {
		c := s.takeIdle()
		fresh := c == nil
		if fresh {
			var err error
			if c, err = s.connect(s.open); err != nil {
				return err
			}
		}
		err := c.ask(q)
		if err == nil {
			err = answer(c)
		}
		if c.ended {
			s.putIdle(c)
			return err
		}
		s.drop(c)
		var timeout net.Error
		if fresh || c.received || errors.As(err, &timeout) && timeout.Timeout() {
			return err
		}
	}
}

// connect makes a connection.
func (s *Store) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	defer context.AfterFunc(s.open, cancel)() //nolint:contextcheck // it ends with the caller's context, and with the store
	raw, err := s.cfg.Dialer.Dial(ctx, s.cfg.Address, s.cfg.Identity, ServiceName)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	c, err := begin(raw, s.cfg.Timeout)
	if !stop() {
		err = unreachable(ctx.Err())
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		c.close()
		return nil, disk.ErrClosed
	}
	s.conns[c] = struct{}{}
	return c, nil
}

// begin reads what a server begins with: the length of its store's longest frame.
func begin(raw net.Conn, wait time.Duration) (*conn, error) {
	c := newConn(raw, wait, 0)
	var b [8]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return nil, unreachable(err)
	}
	longest := binary.LittleEndian.Uint64(b[:])
	if longest < frame.BlockBytes || longest > frameBytesLimit {
		return nil, fmt.Errorf("%w: frames of at most %d bytes", peering.ErrProtocol, longest)
	}
	c.frameBytesMax = int64(longest)
	return c, nil
}

// takeIdle gives a connection that waits for a request, nil if there is none.
func (s *Store) takeIdle() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.idle); n > 0; n = len(s.idle) {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		if time.Since(c.idle) < idleMax {
			return c
		}
		s.dropLocked(c)
	}
	return nil
}

func (s *Store) putIdle(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() || len(s.idle) == connsIdleMax {
		s.dropLocked(c)
		return
	}
	c.idle = time.Now()
	s.idle = append(s.idle, c)
}

func (s *Store) drop(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(c)
}

func (s *Store) dropLocked(c *conn) {
	c.close()
	delete(s.conns, c)
}

func (s *Store) isClosed() bool { return s.open.Err() != nil }

// failed says what failed where; nil for nil.
func (s *Store) failed(operation string, id frame.SegmentID, err error) error {
	if err == nil {
		return nil
	}
	return s.lost(fmt.Sprintf("%s WAL segment %s", operation, id), err)
}

// lost is failed for what is not about a segment.
func (s *Store) lost(operation string, err error) error {
	if errors.Is(err, peering.ErrUnreachable) && s.isClosed() {
		err = fmt.Errorf("%w: %w", disk.ErrClosed, err)
	}
	return fmt.Errorf("%s in store %s at %s: %w", operation, s.cfg.Identity, s.cfg.Address, err)
}
