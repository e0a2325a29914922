// Package server is the broker's side of Kafka connections: listeners, frames, limits, and the order of responses.
//
// # A connection
//
// Two goroutines serve a connection. The reader takes a frame, has the handler serve it, and puts the answer in line; the writer
// writes answers in the order of the requests, as the protocol demands. An answer in line need not be ready: that is how a producer
// has several batches on their way to the disk at once. The answers to all other requests are written before the next one of the connection is
// read, as in Kafka's SocketServer, which mutes the channel meanwhile.
//
// Connections may come before the agent can answer: the reader holds them until [Server.Open]. Kafka lets clients wait as well, in the backlog of its
// listener; some take a connection that is closed before its first answer for a broker that wants TLS, and give up.
//
// # Limits
//
// Everything that a peer can make the agent hold is bounded: connections (all together and per address), the size of a frame, bytes of frames that are being read or
// served, answers in line. At the limit the agent stops reading, which slows the peer down. A peer that sends half a frame, or does not
// take its answers, is cut off after a while. Whatever a peer does wrong ends its own connection and nothing else.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varve-io/varve/protocol/wire"
)

// Config bounds what clients may take.
type Config struct {
	ConnectionsMax      int           // all together
	ConnectionsPerIPMax int           // from one address
	FrameBytesMax       int           // of one request (socket.request.max.bytes)
	InFlightBytesMax    int64         // of frames that are read or served, over all connections: once for Produce, once for all others; and again for other agents'
	PipelineMax         int           // answers in line per connection
	IdleMax             time.Duration // without a request (connections.max.idle.ms)
	StallMax            time.Duration // in the middle of a frame, or while an answer is written
}

// Defaults returns the limits that hold unless they are configured.
func Defaults() Config {
	return Config{
		ConnectionsMax: 20_000, ConnectionsPerIPMax: 20_000,
		FrameBytesMax: wire.FrameBytesMax, InFlightBytesMax: 512 << 20, PipelineMax: 64,
		IdleMax: 10 * time.Minute, StallMax: 30 * time.Second,
	}
}

// Request is a request as the handler sees it.
type Request struct {
	wire.Header
	// Body is the request's body. For Produce it lies in a pooled buffer and is valid until Serve returns; the handler may change it. For all
	// other requests it is the handler's to keep.
	Body   []byte
	Client Client
	// Leave is closed when the server drains: what only waits for news should answer now.
	Leave <-chan struct{}
	// Forwarded says that another agent passed the request on, to the one that it takes for the right one. Client is who it came from.
	Forwarded bool
	// State is the connection's, for what the handler keeps from one request to the next; nil if there is no connection.
	State *any
}

// Client tells who is at the other end.
type Client struct {
	Address  string // host:port
	Host     string // as DescribeGroups prints it: "/127.0.0.1"
	Software string // name and version from ApiVersions, empty until known
}

// Handler serves requests. Serve is called by one goroutine per connection, in order of the requests, and may block; ctx ends when the connection or the
// server does. A nil Answer means that none is sent (Produce with acks=0). An error ends the connection.
type Handler interface {
	Serve(ctx context.Context, r *Request) (Answer, error)
}

// Answer is a response on its way out.
type Answer interface {
	// Ready is closed when the response can be encoded; nil if it can at once.
	Ready() <-chan struct{}
	// AppendTo appends the framed response to bufs, as slices to be written one after the other; it may use scratch for what it encodes. It returns both,
	// extended. It is called once, when the response is ready.
	AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte)
	// Release is called once, when the response was written or never will be.
	Release()
}

// Server serves Kafka connections.
type Server struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	buffers Buffers
	opened  chan struct{} // closed by Open, after which handler stays as it is
	leave   chan struct{} // closed when the server drains

	clients, agents budget // of frames that are read or served

	handler Handler // nil until opened is closed

	mu        sync.Mutex
	changed   *sync.Cond // a connection ended
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	perIP     map[string]int
	draining  bool
	wg        sync.WaitGroup
}

// budget bounds bytes of frames. Produce has bytes of its own: while the WAL is full its requests wait, and must not keep consumers and groups from being served.
type budget struct{ produce, other *semaphore.Weighted }

func newBudget(bytes int64) budget {
	return budget{semaphore.NewWeighted(bytes), semaphore.NewWeighted(bytes)}
}

// New returns a server that lets connections wait until [Server.Open].
func New(cfg Config, log *slog.Logger, reg Registerer) *Server {
	s := &Server{
		cfg: cfg, log: log, metrics: newMetrics(reg),
		opened: make(chan struct{}), leave: make(chan struct{}),
		clients: newBudget(cfg.InFlightBytesMax), agents: newBudget(cfg.InFlightBytesMax),
		listeners: make(map[net.Listener]struct{}), conns: make(map[*conn]struct{}), perIP: make(map[string]int),
	}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// Open has handler serve the connections, those that wait already and those to come. It is called once.
func (s *Server) Open(handler Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = handler
	for c := range s.conns {
		c.wake()
	}
	close(s.opened)
}

// Serve accepts connections until ctx ends or the server drains (it returns nil), or the listener fails. It closes the listener. When ctx ends it
// cuts all connections and returns when nothing is done for them any more.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		_ = l.Close()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			draining := s.draining
			s.mu.Unlock()
			if ctx.Err() != nil {
				s.wg.Wait()
				return nil
			}
			if draining {
				return nil
			}
			if temporary(err) {
				s.log.Warn("cannot accept a connection", "err", err)
				time.Sleep(100 * time.Millisecond) // out of file descriptors: give them time to come back
				continue
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		s.admit(ctx, c)
	}
}

// temporary reports whether accepting may work again later.
func temporary(err error) bool {
	return !errors.Is(err, net.ErrClosed)
}

// admit starts to serve a connection, unless there are too many.
func (s *Server) admit(ctx context.Context, nc net.Conn) {
	ip, _, err := net.SplitHostPort(nc.RemoteAddr().String())
	if err != nil {
		ip = nc.RemoteAddr().String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || len(s.conns) >= s.cfg.ConnectionsMax || s.perIP[ip] >= s.cfg.ConnectionsPerIPMax {
		s.metrics.refused.Inc()
		_ = nc.Close()
		return
	}
	ctx, c := newConn(ctx, s, nc, ip)
	s.conns[c] = struct{}{}
	s.perIP[ip]++
	s.metrics.connections.Inc()
	s.wg.Go(func() {
		c.run(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		if s.perIP[ip]--; s.perIP[ip] == 0 {
			delete(s.perIP, ip)
		}
		s.metrics.connections.Dec()
		s.changed.Broadcast()
	})
}

// Drain stops accepting, lets each connection finish the request that it is at and write the answers in line, and closes it; one that is held is closed
// at once. Other agents' connections go last: while clients are answered, those agents learn that this one leads nothing any more, and end of
// themselves. When ctx ends, what is left is cut off. It returns when no connection is left.
func (s *Server) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.cut()
		}
	})
	defer stop()
	s.mu.Lock()
	if !s.draining {
		close(s.leave)
	}
	s.draining = true
	for l := range s.listeners {
		_ = l.Close()
	}
	s.drainAll(func(c *conn) bool { return !c.agent })
	s.drainAll(func(*conn) bool { return true })
	s.mu.Unlock()
	s.wg.Wait()
}

// drainAll drains those connections, and waits until they are gone. The caller holds the mutex.
func (s *Server) drainAll(which func(*conn) bool) {
	for {
		left := 0
		for c := range s.conns {
			if which(c) {
				c.drain()
				left++
			}
		}
		if left == 0 {
			return
		}
		s.changed.Wait()
	}
}
