package zone

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
)

// ConnectionsMax is how many connections of other agents a server should be given at a time.
const ConnectionsMax = 256

// Server hands out to other agents what this one is the home of. It may be used concurrently.
type Server struct {
	blocks *cache.Cache
	slots  chan struct{} // one token for each answer under way

	answers, bytes, refusals atomic.Uint64
}

// Served are a server's counters, since it was made.
type Served struct {
	Answers  uint64 // requests that were answered with what they asked for
	Bytes    uint64 // of them
	Refusals uint64 // requests that were refused: no memory, too many at once, or a bucket that did not give in time what they asked for
}

// NewServer returns a server of what it reads through blocks, a cache of cacheBytes.
func NewServer(blocks *cache.Cache, cacheBytes int64) *Server {
	n := min(cacheBytes/pinnedShare/cache.GetBytesDefault, answersMax)
	return &Server{blocks: blocks, slots: make(chan struct{}, max(n, 1))}
}

// Served returns the counters.
func (s *Server) Served() Served {
	return Served{Answers: s.answers.Load(), Bytes: s.bytes.Load(), Refusals: s.refusals.Load()}
}

// Serve answers an agent's requests, one after the other, until the connection ends or should be ended, which is up to the caller.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	for {
		if err := conn.SetReadDeadline(time.Now().Add(idleCut)); err != nil {
			return
		}
		r, err := readRequest(conn)
		if err != nil || s.answer(ctx, conn, &r) != nil {
			return // whoever asked notices, and goes to the bucket
		}
	}
}

// answer answers one request. The error is the connection's.
func (s *Server) answer(ctx context.Context, conn net.Conn, r *request) error {
	span, release := s.read(ctx, r)
	defer release()
	if err := conn.SetWriteDeadline(time.Now().Add(answerMax)); err != nil {
		return err
	}
	if span == nil {
		s.refusals.Add(1)
		_, err := conn.Write([]byte{byte(statusRefused)})
		return err
	}
	s.answers.Add(1)
	s.bytes.Add(uint64(r.n))
	answer := append(net.Buffers{{byte(statusHere)}}, span.Parts()...)
	_, err := answer.WriteTo(conn)
	return err
}

// read returns what was asked for, nil if it cannot be had as long as the one that asked waits for it, and what lets go of it.
func (s *Server) read(ctx context.Context, r *request) (span *cache.Span, release func()) {
	early, cancel := context.WithTimeout(ctx, readMax)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
	case <-early.Done():
		return nil, func() {}
	}
	free := func() { <-s.slots }
	object := r.object
	object.Home = true
	span, err := s.blocks.TryRead(early, object, r.off, r.n)
	switch {
	case err == nil:
		return span, func() {
			span.Release()
			free()
		}
	case early.Err() == nil:
		return nil, free
	}
	// What was begun goes on, and holds its memory until it has come, or the cache closes.
	return nil, func() {
		go func() {
			defer free()
			if late, err := s.blocks.TryRead(context.WithoutCancel(ctx), object, r.off, r.n); err == nil {
				late.Release()
			}
		}()
	}
}
