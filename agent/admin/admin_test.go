package admin_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/agent/admin"
)

func newServer(t *testing.T) *admin.Server {
	t.Helper()
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "varve_things_total", Help: "Things."})
	counter.Add(3)
	registry.MustRegister(counter)
	return admin.New(admin.Deps{Metrics: registry, Log: slog.New(slog.DiscardHandler)})
}

func TestPages(t *testing.T) {
	s := newServer(t)
	tests := []struct {
		ready        bool
		method, path string
		status       int
		body         string
	}{
		{false, "GET", "/", 200, "/metrics"},
		{false, "GET", "/healthz", 200, "alive"},
		{false, "GET", "/readyz", 503, "not ready"},
		{true, "GET", "/readyz", 200, "ready"},
		{true, "HEAD", "/readyz", 200, ""},
		{false, "GET", "/readyz", 503, "not ready"},
		{true, "GET", "/metrics", 200, "varve_things_total 3"},
		{true, "GET", "/debug/pprof/", 200, "goroutine"},
		{true, "GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{true, "GET", "/debug/pprof/cmdline", 200, ""},
		{true, "GET", "/nothing", 404, ""},
		{true, "POST", "/readyz", 405, ""},
	}
	for _, test := range tests {
		s.SetReady(test.ready)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), test.method, test.path, nil))
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.body) {
			t.Errorf("%s %s, ready %v: status %d and %q; want %d and %q",
				test.method, test.path, test.ready, w.Code, w.Body, test.status, test.body)
		}
	}
}

func TestServe(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s := newServer(t)
	go func() { ended <- s.Serve(ctx, l) }()

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || string(body) != "alive\n" {
		t.Errorf("GET /healthz: %q, %v", body, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve until the context ends: %v, want nil", err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("listener is open after Serve")
	}
}

func TestServeFails(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newServer(t).Serve(t.Context(), l); err == nil {
		t.Error("serve on a closed listener: nil, want an error")
	}
}
