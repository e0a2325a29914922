// Package admin is an agent's HTTP server for those who operate it: health, metrics, profiles.
//
//	/              what is here
//	/healthz       200 as long as the process answers
//	/readyz        200 while the agent serves Kafka clients; 503 before, and while it drains
//	/metrics       Prometheus
//	/debug/pprof/  Go's profiles
//
// It has no authentication: listen where only operators reach it.
package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

const (
	connectionsMax  = 64
	headerBytesMax  = 16 << 10
	headerTimeout   = 5 * time.Second
	requestTimeout  = 10 * time.Second
	idleTimeout     = time.Minute
	responseTimeout = 2 * time.Minute // a profile takes as many seconds as its caller asks for
	closeTimeout    = time.Second     // for answers under way when the server ends
	scrapesMax      = 4
)

// Deps is what a server works with.
type Deps struct {
	Metrics prometheus.Gatherer
	Log     *slog.Logger
}

// Server serves operators.
type Server struct {
	deps  Deps
	ready atomic.Bool
	mux   *http.ServeMux
}

// New returns a server of an agent that is not ready.
func New(deps Deps) *Server {
	s := &Server{deps: deps, mux: http.NewServeMux()}
	s.mux.HandleFunc("GET /{$}", s.index)
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(deps.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: scrapesMax}))
	s.mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	s.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	s.mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	s.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	s.mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol) // of long lists
	s.mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return s
}

// SetReady says whether the agent serves clients. It may be called at any time, from any goroutine.
func (s *Server) SetReady(ready bool) { s.ready.Store(ready) }

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Serve answers requests until ctx ends, and then returns nil soon: answers under way get a second. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      responseTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(s.deps.Log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(netutil.LimitListener(l, connectionsMax)) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		_ = server.Close() // cuts what is left, a profile perhaps
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", l.Addr(), err)
	}
	return nil
}

const indexText = `Varve

/healthz       200 as long as the process answers
/readyz        200 while it serves Kafka clients
/metrics       metrics for Prometheus
/debug/pprof/  Go's profiles
`

func (s *Server) index(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, indexText) }

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "alive\n") }

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if !s.ready.Load() {
		answer(w, http.StatusServiceUnavailable, "not ready\n")
		return
	}
	answer(w, http.StatusOK, "ready\n")
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that has gone needs no answer
}
