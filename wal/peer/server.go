package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ServerConfig says what a server serves, and its limits.
type ServerConfig struct {
	Store       Local
	Credentials Credentials
	// ConnectionsMax limits connections that proved themselves; 0 means 256. Memory for frames is limited apart from it: to 128 MiB for all, or what
	// the store's longest frame needs.
	ConnectionsMax int
	// Timeout is for a whole handshake, and for every step of a message on its way; 0 means 10 s.
	Timeout time.Duration
	// Logger gets who was refused, and why; nil means nothing is logged.
	Logger *slog.Logger
	// Metrics gets the server's metrics, in NewServer; nil means that nobody sees them.
	Metrics prometheus.Registerer
}

const (
	connectionsMaxDefault = 256
	// pendingMax limits connections that did not prove themselves yet. One more ends the oldest: a handshake of a peer is a matter of
	// milliseconds, so that strangers who hold connections open do not keep peers out.
	pendingMax = 64
	// acceptPause is how long the server waits when no connection can be accepted, for want of file descriptors mostly.
	acceptPause = 100 * time.Millisecond
	// warnPause is how often refusals are logged, at most: strangers must not fill the log.
	warnPause = time.Second
)

// Server serves a store to the cluster's other agents. Its methods may be called concurrently.
type Server struct {
	cfg     ServerConfig
	log     *slog.Logger
	metrics *metrics
	memory  *memory
	running sync.WaitGroup
	closed  chan struct{}

	mu        sync.Mutex
	closing   bool
	listeners []net.Listener
	pending   []net.Conn // that did not prove themselves, oldest first
	conns     map[net.Conn]struct{}
	warned    time.Time
	unwarned  int // refusals since
}

// NewServer makes a server, which serves nobody yet.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.Credentials.check(); err != nil {
		return nil, fmt.Errorf("new WAL peer server: %w", err)
	}
	if cfg.ConnectionsMax == 0 {
		cfg.ConnectionsMax = connectionsMaxDefault
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = timeoutDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Credentials = cfg.Credentials.withTLS("")
	return &Server{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Metrics), memory: newMemory(cfg.Store.FrameBytesMax()),
		closed: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}, nil
}

// Serve accepts connections until Close, and then returns nil, or until the listener fails. It closes the listener. It may be called for several.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners = append(s.listeners, l)
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	var err error
	pprof.Do(context.Background(), pprof.Labels("varve", "peer-listener"), func(ctx context.Context) { err = s.accept(ctx, l) })
	return err
}

func (s *Server) accept(ctx context.Context, l net.Listener) error {
	for {
		raw, err := l.Accept()
		switch {
		case err == nil:
			s.start(ctx, raw)
			continue
		case s.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept WAL peers on %s: %w", l.Addr(), err)
		}
		s.log.Warn("WAL peer not accepted", "error", err)
		select {
		case <-s.closed:
		case <-time.After(acceptPause):
		}
	}
}

func (s *Server) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// start serves a connection in a goroutine of its own.
func (s *Server) start(ctx context.Context, raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		_ = raw.Close()
		return
	}
	if len(s.pending) == pendingMax {
		_ = s.pending[0].Close()
		s.pending = slices.Delete(s.pending, 0, 1)
	}
	s.pending = append(s.pending, raw)
	s.running.Go(func() {
		pprof.Do(ctx, pprof.Labels("varve", "peer-connection"), func(ctx context.Context) { s.run(ctx, raw) })
	})
}

// admit moves a connection to those that proved themselves, if there is room.
func (s *Server) admit(raw net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || len(s.conns) >= s.cfg.ConnectionsMax {
		return false
	}
	s.forget(raw)
	s.conns[raw] = struct{}{}
	s.metrics.connections.Set(float64(len(s.conns)))
	return true
}

// forget removes a connection from wherever it is. The mutex is held.
func (s *Server) forget(raw net.Conn) {
	if i := slices.Index(s.pending, raw); i >= 0 {
		s.pending = slices.Delete(s.pending, i, i+1)
	}
	delete(s.conns, raw)
	s.metrics.connections.Set(float64(len(s.conns)))
}

// run serves a connection to its end.
func (s *Server) run(ctx context.Context, raw net.Conn) {
	defer func() {
		_ = raw.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.forget(raw)
	}()
	inner, err := s.handshake(ctx, raw)
	if err != nil {
		s.metrics.refused.Inc()
		s.warn(raw, err)
		return
	}
	session := newSession(s, newConn(inner, s.cfg.Timeout, s.cfg.Store.FrameBytesMax()))
	err = session.run(ctx)
	s.log.Debug("WAL peer gone", "address", raw.RemoteAddr(), "error", err)
}

// handshake finds out whether a connection is a peer's.
func (s *Server) handshake(ctx context.Context, raw net.Conn) (net.Conn, error) {
	if err := tune(raw, s.cfg.Timeout+goneSlack); err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(deadline(s.cfg.Timeout)); err != nil {
		return nil, unreachable(err)
	}
	inner := raw
	if s.cfg.Credentials.TLS != nil {
		secured := tls.Server(raw, s.cfg.Credentials.TLS)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, refusal(err)
		}
		inner = secured
	}
	if err := receive(inner, &s.cfg.Credentials, s.cfg.Store, func() bool { return s.admit(raw) }); err != nil {
		return nil, err
	}
	return inner, raw.SetDeadline(time.Time{})
}

// warn logs that somebody was refused, or counts it if that was done a moment ago.
func (s *Server) warn(raw net.Conn, err error) {
	s.mu.Lock()
	now := time.Now()
	if s.closing || now.Sub(s.warned) < warnPause {
		s.unwarned++
		s.mu.Unlock()
		return
	}
	more := s.unwarned
	s.warned, s.unwarned = now, 0
	s.mu.Unlock()
	s.log.Warn("WAL peer refused", "address", raw.RemoteAddr(), "error", err, "others", more)
}

// Close ends all connections, and returns when nothing is done for them any more: segments that were written have no writer then. An append
// that waits for room on a full disk, or for a disk that hangs, ends only with the store or the disk; when ctx ends first, Close returns, and
// the rest comes to its end by itself once the store is closed.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		close(s.closed)
		for _, l := range s.listeners {
			_ = l.Close()
		}
		for _, raw := range s.pending {
			_ = raw.Close()
		}
		for raw := range s.conns {
			_ = raw.Close()
		}
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go pprof.Do(ctx, pprof.Labels("varve", "peer-closer"), func(context.Context) {
		s.running.Wait()
		close(ended)
	})
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close WAL peer server: connections are in the store still: %w", ctx.Err())
	}
}
