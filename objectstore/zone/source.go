package zone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
)

// Config says who an agent is and whom it may ask.
type Config struct {
	// Self is this agent's node id.
	Self int32
	// Homes returns the node ids of the zone's agents that may be asked, this one among them if others may ask it, in memory that
	// becomes the caller's. It is called for each request.
	Homes func() []int32
	// Dial connects to another agent's [Server].
	Dial func(ctx context.Context, node int32) (net.Conn, error)
	Log  *slog.Logger
}

// Source is the agents of a zone, and the bucket behind them, as what a cache reads from. It may be used concurrently.
type Source struct {
	config Config
	bucket cache.Source

	answers, bytes, fallbacks atomic.Uint64

	mu     sync.Mutex
	peers  map[int32]*peer // those that were asked, by node id
	closed bool
}

var _ cache.Source = (*Source)(nil)

// Stats are a source's counters, since it was made.
type Stats struct {
	Answers   uint64 // of homes, with what they were asked for
	Bytes     uint64 // that they brought
	Fallbacks uint64 // requests to homes that brought nothing, so that the bucket was read
}

// peer is an agent that is the home of some pieces. But for slots, it belongs to the source's mutex.
type peer struct {
	node    int32
	slots   chan struct{} // one token for each request under way
	idle    []*link
	leftOut time.Time // until when it is not asked
}

// link is a connection to a peer, and, while it waits for its next request, what ends it.
type link struct {
	net.Conn
	expiry *time.Timer
}

// New returns a source that asks homes, and otherwise bucket. Its owner calls Close.
func New(config Config, bucket cache.Source) *Source {
	return &Source{config: config, bucket: bucket, peers: make(map[int32]*peer)}
}

// Close ends the connections that wait for a request. Those in use end with the contexts of their calls; later calls read the bucket.
func (s *Source) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, p := range s.peers {
		s.forget(p)
	}
}

// Stats returns the counters.
func (s *Source) Stats() Stats {
	return Stats{Answers: s.answers.Load(), Bytes: s.bytes.Load(), Fallbacks: s.fallbacks.Load()}
}

var (
	// errRefused: the home is well, and does not have what was asked for.
	errRefused = errors.New("home refused")
	// errLine: others before this one took all the time that there was.
	errLine = errors.New("too many requests to the home")
)

// Get implements [cache.Source]. The range is to lie in one piece.
func (s *Source) Get(ctx context.Context, o cache.Object, off int64, parts [][]byte) error {
	p := s.home(&o, off)
	if p == nil {
		return s.bucket.Get(ctx, o, off, parts)
	}
	r := request{object: o, off: off}
	for _, part := range parts {
		r.n += int64(len(part))
	}
	err := s.ask(ctx, p, &r, parts)
	if err == nil {
		s.answers.Add(1)
		s.bytes.Add(uint64(r.n))
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.fallbacks.Add(1)
	if !errors.Is(err, errRefused) && !errors.Is(err, errLine) {
		s.leaveOut(p, err)
	}
	return s.bucket.Get(ctx, o, off, parts)
}

// home returns whom to ask for what lies there; nil for the bucket.
func (s *Source) home(o *cache.Object, off int64) *peer {
	if o.Direct || o.Home {
		return nil
	}
	homes := s.config.Homes()
	s.mu.Lock()
	defer s.mu.Unlock()
	for node, p := range s.peers {
		if !slices.Contains(homes, node) {
			s.forget(p)
		}
	}
	now := time.Now()
	homes = slices.DeleteFunc(homes, func(node int32) bool {
		p := s.peers[node]
		return p != nil && now.Before(p.leftOut)
	})
	node := homeOf(o.Name, off/cache.GetBytesDefault, homes)
	if node == 0 || node == s.config.Self || s.closed {
		return nil
	}
	p := s.peers[node]
	if p == nil {
		p = &peer{node: node, slots: make(chan struct{}, asksMax)}
		s.peers[node] = p
	}
	return p
}

// ask has the peer fill parts. After an error their content is undefined.
func (s *Source) ask(ctx context.Context, p *peer, r *request, parts [][]byte) error {
	begin := time.Now().Add(beginMax)
	early, cancel := context.WithDeadline(ctx, begin)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-early.Done():
	}
	if early.Err() != nil { // even if its turn came just then: no time is left to learn anything of the home in
		return errLine
	}
	for {
		l := s.take(p)
		used := l != nil
		if !used {
			c, err := s.config.Dial(early, p.node)
			if err != nil {
				return err
			}
			l = &link{Conn: c}
		}
		begun, err := exchange(ctx, l, r, parts, begin)
		if err == nil || errors.Is(err, errRefused) {
			s.put(p, l)
			return err
		}
		_ = l.Close() // what it was asked for does not matter any more
		if !used || begun || early.Err() != nil {
			return err
		}
		// The home may have ended the connection since it was used, or be another process by now.
	}
}

// exchange sends a request and reads its answer. begun says whether anything of it came.
func exchange(ctx context.Context, l *link, r *request, parts [][]byte, begin time.Time) (begun bool, err error) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	if err := l.SetDeadline(begin); err != nil {
		return false, err
	}
	if _, err := l.Write(r.append(nil)); err != nil {
		return false, err
	}
	var st [1]byte
	if _, err := io.ReadFull(l, st[:]); err != nil {
		return false, err
	}
	switch status(st[0]) {
	case statusHere:
	case statusRefused:
		return true, errRefused
	default:
		return true, fmt.Errorf("%w: status %d", errProtocol, st[0])
	}
	if err := l.SetDeadline(time.Now().Add(answerMax)); err != nil {
		return true, err
	}
	for _, part := range parts {
		if _, err := io.ReadFull(l, part); err != nil {
			return true, err
		}
	}
	return true, nil
}

// leaveOut has a peer that failed not be asked for a while.
func (s *Source) leaveOut(p *peer, err error) {
	s.mu.Lock()
	now := time.Now()
	again := now.Before(p.leftOut)
	p.leftOut = now.Add(leftOutFor)
	s.mu.Unlock()
	if !again {
		s.config.Log.Warn("another agent of the zone does not hand out blocks, and is not asked for a while", "node", p.node, "for", leftOutFor, "err", err)
	}
}

// take returns a connection that waits for a request, the last one used; nil for none.
func (s *Source) take(p *peer) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	l := p.idle[last]
	p.idle = p.idle[:last]
	l.expiry.Stop()
	return l
}

// put has a connection wait for its next request.
func (s *Source) put(p *peer, l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[p.node] != p {
		_ = l.Close()
		return
	}
	p.idle = append(p.idle, l)
	l.expiry = time.AfterFunc(idleMax, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if i := slices.Index(p.idle, l); i >= 0 {
			p.idle = slices.Delete(p.idle, i, i+1)
			_ = l.Close()
		}
	})
}

// forget ends a peer's connections, those in use when they are put back. The caller holds the mutex.
func (s *Source) forget(p *peer) {
	delete(s.peers, p.node)
	for _, l := range p.idle {
		l.expiry.Stop()
		_ = l.Close()
	}
	p.idle = nil
}
