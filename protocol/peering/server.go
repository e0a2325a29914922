package peering

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

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// ServerConfig says who a server is, and its limits.
type ServerConfig struct {
	// Identity is that of this agent's disk.
	Identity    uuid.UUID
	Credentials Credentials
	// Timeout is for a whole handshake; 0 means 10 s. After a second more without an answer, the client's machine counts as gone.
	Timeout time.Duration
	// Logger gets who was refused, and why; nil means nothing is logged.
	Logger *slog.Logger
	// Metrics gets the server's metrics, in NewServer; nil means that nobody sees them.
	Metrics prometheus.Registerer
}

const (
	timeoutDefault = 10 * time.Second
	// goneSlack is how much longer than its Timeout a server waits for a sign of the client's machine: to the kernel a peer that takes nothing is gone as well,
	// and that a slow reader is cut off is up to the service.
	goneSlack = time.Second
	// pendingMax limits connections that did not prove themselves yet. One more ends the oldest: a handshake of a peer is a matter of
	// milliseconds, so that strangers who hold connections open do not keep peers out.
	pendingMax = 64
	// acceptPause is how long the server waits when no connection can be accepted, for want of file descriptors mostly.
	acceptPause = 100 * time.Millisecond
	// warnPause is how often refusals are logged, at most: strangers must not fill the log.
	warnPause = time.Second
)

// Handler serves a connection to its end. It returns when that has come, or soon after ctx has ended, which is when the server closes: the connection is
// closed then. It need not close it.
type Handler func(ctx context.Context, conn net.Conn)

// Server takes connections of the cluster's other agents. Its methods may be called concurrently.
type Server struct {
	cfg     ServerConfig
	tls     *tls.Config // nil without
	log     *slog.Logger
	metrics *metrics
	running sync.WaitGroup
	open    context.Context // ends with Close
	end     context.CancelFunc

	mu        sync.Mutex
	services  map[Service]*service
	listeners []net.Listener
	pending   []net.Conn // that did not prove themselves, oldest first
	conns     map[net.Conn]*service
	warned    time.Time
	unwarned  int // refusals since
}

// service is one that connections are for.
type service struct {
	name  Service
	serve Handler
	conns int
	most  int
}

// NewServer makes a server, which has no services yet.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := cfg.Credentials.check(); err != nil {
		return nil, fmt.Errorf("new server of peers: %w", err)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = timeoutDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, tls: cfg.Credentials.tlsFor(""), log: cfg.Logger, metrics: newMetrics(cfg.Metrics),
		services: make(map[Service]*service), conns: make(map[net.Conn]*service),
	}
	s.open, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Handle adds a service, which takes at most connectionsMax connections. A client that asks for it earlier is told that it is not there, which is
// ErrUnreachable to it.
func (s *Server) Handle(name Service, connectionsMax int, serve Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.services[name] = &service{name: name, serve: serve, most: connectionsMax}
}

// Serve accepts connections until Close, and then returns nil, or until the listener fails. It closes the listener. It may be called for several.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.isClosed() {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners = append(s.listeners, l)
	s.running.Add(1)
	s.mu.Unlock()
	defer s.running.Done()
	var err error
	pprof.Do(s.open, pprof.Labels("varve", "peer-listener"), func(ctx context.Context) { err = s.accept(ctx, l) })
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
			return fmt.Errorf("accept peers on %s: %w", l.Addr(), err)
		}
		s.log.Warn("peer not accepted", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(acceptPause):
		}
	}
}

func (s *Server) isClosed() bool { return s.open.Err() != nil }

// start serves a connection in a goroutine of its own.
func (s *Server) start(ctx context.Context, raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
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

// admit moves a connection to those that proved themselves, if the service has room.
func (s *Server) admit(raw net.Conn, name Service) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.services[name]
	switch {
	case of == nil:
		return verdictService
	case s.isClosed() || of.conns >= of.most:
		return verdictFull
	}
	s.pending = without(s.pending, raw)
	s.conns[raw] = of
	of.conns++
	s.metrics.connections.WithLabelValues(string(name)).Set(float64(of.conns))
	return verdictWelcome
}

// forget removes a connection from wherever it is.
func (s *Server) forget(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = without(s.pending, raw)
	if of := s.conns[raw]; of != nil {
		delete(s.conns, raw)
		of.conns--
		s.metrics.connections.WithLabelValues(string(of.name)).Set(float64(of.conns))
	}
}

func without(conns []net.Conn, c net.Conn) []net.Conn {
	return slices.DeleteFunc(conns, func(other net.Conn) bool { return other == c })
}

// run serves a connection to its end.
func (s *Server) run(ctx context.Context, raw net.Conn) {
	defer func() {
		_ = raw.Close()
		s.forget(raw)
	}()
	inner, serve, err := s.handshake(ctx, raw)
	if err != nil {
		s.metrics.refused.Inc()
		s.warn(raw, err)
		return
	}
	serve(ctx, inner)
}

// handshake finds out whether a connection is a peer's, and what for.
func (s *Server) handshake(ctx context.Context, raw net.Conn) (net.Conn, Handler, error) {
	if err := tune(raw, s.cfg.Timeout+goneSlack); err != nil {
		return nil, nil, err
	}
	if err := raw.SetDeadline(time.Now().Add(s.cfg.Timeout)); err != nil {
		return nil, nil, unreachable(err)
	}
	inner := raw
	if s.tls != nil {
		secured := tls.Server(raw, s.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, nil, refusal(err)
		}
		inner = secured
	}
	name, err := receive(inner, &s.cfg.Credentials, s.cfg.Identity, func(name Service) verdict { return s.admit(raw, name) })
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	serve := s.services[name].serve
	s.mu.Unlock()
	return inner, serve, raw.SetDeadline(time.Time{})
}

// warn logs that somebody was refused, or counts it if that was done a moment ago.
func (s *Server) warn(raw net.Conn, err error) {
	s.mu.Lock()
	now := time.Now()
	if s.isClosed() || now.Sub(s.warned) < warnPause {
		s.unwarned++
		s.mu.Unlock()
		return
	}
	more := s.unwarned
	s.warned, s.unwarned = now, 0
	s.mu.Unlock()
	s.log.Warn("peer refused", "address", raw.RemoteAddr(), "error", err, "others", more)
}

// Close ends all connections, and returns when their handlers have returned. When ctx ends first, Close returns an error, and the rest comes to its end by
// itself.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	if !s.isClosed() {
		s.end()
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
		return fmt.Errorf("close server of peers: connections are served still: %w", ctx.Err())
	}
}
