package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
)

// proxy stands between a store and its etcd, and can hold back answers and cut connections.
type proxy struct {
	listener net.Listener

	mu      sync.Mutex
	backend string
	release chan struct{} // closed while answers pass
	conns   map[net.Conn]struct{}
	closed  bool
}

func startProxy(t *testing.T, endpoint string) *proxy {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, backend: strings.TrimPrefix(endpoint, "http://"), release: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	close(p.release)
	go p.accept(t.Context())
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.pass()
		p.cut()
	})
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

func (p *proxy) accept(ctx context.Context) {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		backend := p.backend
		p.mu.Unlock()
		server, err := new(net.Dialer).DialContext(ctx, "tcp", backend)
		if err != nil || !p.keep(client, server) {
			_ = client.Close()
			continue
		}
		go p.copy(server, client, false)
		go p.copy(client, server, true)
	}
}

// lead has further connections go to another etcd.
func (p *proxy) lead(endpoint string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = strings.TrimPrefix(endpoint, "http://")
}

// keep remembers connections for cut, unless the proxy is closed.
func (p *proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.closed {
			_ = c.Close()
			continue
		}
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

// copy passes bytes on until either side ends; answers wait while they are held.
func (p *proxy) copy(to, from net.Conn, answers bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if answers {
			p.mu.Lock()
			release := p.release
			p.mu.Unlock()
			<-release
		}
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = errors.Join(err, werr)
			}
		}
		if err != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

// hold keeps answers back from now on.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release = make(chan struct{})
}

// pass lets answers through again.
func (p *proxy) pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.release:
	default:
		close(p.release)
	}
}

// cut closes every connection; new ones are taken.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
		delete(p.conns, c)
	}
}

// TestTxnAnswerLost tells that a transaction whose answer did not come is in doubt, and may have run.
func TestTxnAnswerLost(t *testing.T) {
	server := startServer(t)
	direct := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/varve/"})
	for _, c := range []struct {
		name string
		lose func(p *proxy, cancel func())
	}{
		{"deadline", func(*proxy, func()) {}},
		{"cancelled", func(_ *proxy, cancel func()) { cancel() }},
		{"connection cut", func(p *proxy, _ func()) { p.cut() }},
	} {
		p := startProxy(t, server.Endpoint())
		store := open(t, etcd.Config{Endpoints: []string{p.endpoint()}, Prefix: "/varve/"})
		if _, _, err := store.Get(t.Context(), c.name); err != nil {
			t.Fatal(err)
		}
		seen := make(chan struct{})
		go func() {
			// The write is seen from elsewhere before its answer is lost.
			_ = direct.Watch(t.Context(), c.name, 0, func(b coordinator.Batch) {
				if len(b.Events) > 0 {
					close(seen)
				}
			})
		}()
		p.hold()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // after which the write must have been seen
		failed := make(chan error, 1)
		go func() {
			_, err := store.Txn(ctx, []coordinator.Compare{{Key: c.name}}, []coordinator.Op{{Key: c.name, Value: []byte("1")}})
			failed <- err
		}()
		<-seen
		c.lose(p, cancel)
		if err := <-failed; !errors.Is(err, coordinator.ErrUnknownOutcome) || errors.Is(err, coordinator.ErrUnavailable) {
			t.Errorf("%s: Txn = %v; want ErrUnknownOutcome alone", c.name, err)
		}
		cancel()
	}
}

// TestReconnect runs a watch, reads and a lease through cut connections: nothing is lost or seen twice.
func TestReconnect(t *testing.T) {
	const rounds, perRound = 5, 20
	server := startServer(t)
	direct := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/varve/"})
	p := startProxy(t, server.Endpoint())
	store := open(t, etcd.Config{Endpoints: []string{p.endpoint()}, Prefix: "/varve/"})
	lease, err := store.Grant(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	kept, ended := make(chan error, 1), make(chan error, 1)
	go func() { kept <- store.KeepAlive(ctx, lease) }()
	batches := make(chan coordinator.Batch, 10_000)
	go func() {
		ended <- store.Watch(ctx, "w/", 0, func(b coordinator.Batch) {
			if len(b.Events) > 0 {
				batches <- b
			}
		})
	}()
	for round := range rounds {
		var want []int64
		for i := range perRound {
			if i == perRound/2 {
				p.cut()
			}
			result, err := direct.Txn(t.Context(), nil, []coordinator.Op{{Key: fmt.Sprint("w/", round, "/1")}, {Key: fmt.Sprint("w/", round, "/2")}})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, result.Revision)
		}
		if _, rev, err := store.Get(t.Context(), "w/"); err != nil || rev < want[len(want)-1] {
			t.Errorf("Get after a cut: revision %d, %v; want %d", rev, err, want[len(want)-1])
		}
		for _, rev := range want {
			select {
			case b := <-batches:
				if b.Revision != rev || len(b.Events) != 2 {
					t.Fatalf("round %d: got %d events of revision %d, want 2 of %d", round, len(b.Events), b.Revision, rev)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("round %d: revision %d was not seen", round, rev)
			}
		}
	}
	cancel()
	for what, c := range map[string]chan error{"KeepAlive": kept, "Watch": ended} {
		if err := <-c; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
