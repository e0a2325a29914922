package peering_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/protocol/peering"
)

var (
	credentials = peering.Credentials{Cluster: uuid.UUID{1, 2, 3}, Secret: []byte("sixteen bytes of secret, and more")}
	here        = uuid.UUID{4, 5, 6}
)

const echo peering.Service = "echo"

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}

func wants(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("%s: %v; want %v", what, err, want)
	}
}

// lines are what a server logs.
type lines struct {
	mu      sync.Mutex
	text    strings.Builder
	written chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	close(l.written)
	l.written = make(chan struct{})
	return len(b), nil
}

// await waits until something is logged.
func (l *lines) await(tb testing.TB, want string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	defer cancel()
	for {
		l.mu.Lock()
		text, written := l.text.String(), l.written
		l.mu.Unlock()
		if strings.Contains(text, want) {
			return
		}
		select {
		case <-written:
		case <-ctx.Done():
			tb.Fatalf("not logged: %q; but %s", want, text)
		}
	}
}

// remote is an agent that sends back what it gets.
type remote struct {
	*peering.Server
	address string
	log     *lines
}

// serve starts an agent with room for a number of connections. It ends with the test.
func serve(tb testing.TB, room int, change func(*peering.ServerConfig)) *remote {
	tb.Helper()
	r := &remote{log: &lines{written: make(chan struct{})}}
	cfg := peering.ServerConfig{Identity: here, Credentials: credentials, Logger: slog.New(slog.NewTextHandler(r.log, nil))}
	if change != nil {
		change(&cfg)
	}
	var err error
	r.Server, err = peering.NewServer(cfg)
	must(tb, err)
	r.Handle(echo, room, func(_ context.Context, c net.Conn) { _, _ = io.Copy(c, c) })
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	must(tb, err)
	r.address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.Serve(l) }()
	tb.Cleanup(func() { must(tb, r.Close(context.WithoutCancel(tb.Context())), <-served) })
	return r
}

// dial connects, and says something that must come back.
func (r *remote) dial(tb testing.TB, cr peering.Credentials, identity uuid.UUID, service peering.Service) error {
	tb.Helper()
	d, err := peering.NewDialer(peering.DialerConfig{Credentials: cr})
	must(tb, err)
	c, err := d.Dial(tb.Context(), r.address, identity, service)
	if err != nil {
		return err
	}
	tb.Cleanup(func() { _ = c.Close() })
	said := []byte("hello")
	_, err = c.Write(said)
	must(tb, err)
	_, err = io.ReadFull(c, said)
	must(tb, err)
	return nil
}

// TestDenied: who is not of the cluster, or wants another agent, can do nothing, and both sides know why.
func TestDenied(t *testing.T) {
	stranger, other := credentials, credentials
	stranger.Secret, other.Cluster = []byte("another secret of the same kind"), uuid.UUID{9}
	for name, c := range map[string]struct {
		credentials peering.Credentials
		identity    uuid.UUID
		service     peering.Service
		want        error
		near, far   string
	}{
		"secret":  {stranger, here, echo, peering.ErrDenied, "it says that it has another cluster secret", "it does not know the cluster secret"},
		"cluster": {other, here, echo, peering.ErrDenied, "it is of cluster 01020300", "it wants cluster 09000000"},
		"agent":   {credentials, uuid.UUID{9}, echo, peering.ErrDenied, "it is the agent with disk 04050600", "it wants the agent with disk 09000000"},
		"service": {credentials, here, "reverb", peering.ErrUnreachable, "it has no service", "it wants service"},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, 1, nil)
			err := r.dial(t, c.credentials, c.identity, c.service)
			wants(t, "dial", err, c.want)
			if err == nil || !strings.Contains(err.Error(), c.near) {
				t.Errorf("dial: %v; want %q", err, c.near)
			}
			r.log.await(t, c.far)
			must(t, r.dial(t, credentials, here, echo))
		})
	}
}

// TestConfig: what no connection could be made with is refused at once.
func TestConfig(t *testing.T) {
	for name, cr := range map[string]peering.Credentials{
		"a short secret": {Cluster: uuid.UUID{1}, Secret: []byte("short")},
		"no cluster":     {Secret: credentials.Secret},
	} {
		if _, err := peering.NewServer(peering.ServerConfig{Credentials: cr}); err == nil {
			t.Errorf("a server with %s", name)
		}
		if _, err := peering.NewDialer(peering.DialerConfig{Credentials: cr}); err == nil {
			t.Errorf("a dialer with %s", name)
		}
	}
	d, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials})
	must(t, err)
	for _, name := range []peering.Service{"", "too long a name"} {
		if _, err := d.Dial(t.Context(), "127.0.0.1:1", here, name); err == nil || errors.Is(err, peering.ErrUnreachable) {
			t.Errorf("dial service %q: %v", name, err)
		}
	}
	_, err = d.Dial(t.Context(), "nowhere", here, echo)
	wants(t, "dial an address without a port", err, peering.ErrUnreachable)
}

// TestImpostor: a server that does not know the secret learns nothing that helps it, and is not believed.
func TestImpostor(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hello := make([]byte, 80)
			_, _ = io.ReadFull(c, hello)
			_, _ = c.Write(append(hello[:8:8], make([]byte, 32)...))
			_, _ = io.ReadFull(c, hello[:32])
			_, _ = c.Write(make([]byte, 68)) // welcome, and no proof
		}
	}()
	wants(t, "dial", (&remote{address: l.Addr().String()}).dial(t, credentials, here, echo), peering.ErrDenied)
}

// connect opens a connection without proving anything.
func connect(tb testing.TB, address string) net.Conn {
	tb.Helper()
	c, err := new(net.Dialer).DialContext(tb.Context(), "tcp", address)
	must(tb, err)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// ends waits until the other side has closed a connection.
func ends(tb testing.TB, c net.Conn) []byte {
	tb.Helper()
	must(tb, c.SetReadDeadline(time.Now().Add(30*time.Second)))
	b, err := io.ReadAll(c)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		tb.Error("the connection is open still")
	}
	return b
}

func TestStrangers(t *testing.T) {
	r := serve(t, 1, func(cfg *peering.ServerConfig) { cfg.Timeout = 3 * time.Second })
	ends(t, connect(t, r.address)) // silent
	http := connect(t, r.address)
	_, err := http.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10))
	must(t, err)
	if b := ends(t, http); len(b) > 0 {
		t.Errorf("answered %q", b)
	}
	half := connect(t, r.address)
	_, err = half.Write([]byte{'V', 'R', 'V', 'P', 1, 0, 0, 0, 1, 2})
	must(t, err)
	ends(t, half)
	other := connect(t, r.address)
	_, err = other.Write(append([]byte{'V', 'R', 'V', 'P', 2, 0, 0, 0}, make([]byte, 72)...))
	must(t, err)
	if b := ends(t, other); len(b) != 40 || b[4] != 1 {
		t.Errorf("another version is answered %x", b)
	}
	guess := connect(t, r.address)
	_, err = guess.Write(append([]byte{'V', 'R', 'V', 'P', 1, 0, 0, 0}, make([]byte, 72+32)...))
	must(t, err)
	if b := ends(t, guess); len(b) != 40+68 || b[40] != 1 || len(bytes.Trim(b[41:], "\x00")) != 0 {
		t.Errorf("a guess is answered %x", b)
	}
}

// TestCrowd: connections that prove nothing do not keep peers out.
func TestCrowd(t *testing.T) {
	r := serve(t, 1, func(cfg *peering.ServerConfig) { cfg.Timeout = time.Minute })
	first := connect(t, r.address)
	for range 100 {
		connect(t, r.address)
	}
	must(t, r.dial(t, credentials, here, echo))
	ends(t, first)
}

// TestRoom: each service has room of its own, and who was refused or has gone takes none.
func TestRoom(t *testing.T) {
	metrics := prometheus.NewRegistry()
	r := serve(t, 1, func(cfg *peering.ServerConfig) { cfg.Metrics = metrics })
	held := make(chan struct{})
	r.Handle("hold", 1, func(_ context.Context, c net.Conn) {
		_, _ = io.CopyN(c, c, 5)
		<-held
	})
	must(t, r.dial(t, credentials, here, "hold"))
	err := r.dial(t, credentials, here, "hold")
	wants(t, "dial", err, peering.ErrUnreachable)
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("dial: %v", err)
	}
	must(t, r.dial(t, credentials, here, echo))
	got := make(map[string]float64)
	families, err := metrics.Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	if got["varve_peer_connections"] != 2 || got["varve_peer_connections_refused_total"] != 1 {
		t.Errorf("metrics %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wants(t, "close while a connection is served", r.Close(ctx), context.Canceled)
	close(held)
}

// TestUnreachable: nobody listens, or somebody never answers.
func TestUnreachable(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	d, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = d.Dial(ctx, l.Addr().String(), here, echo)
	wants(t, "dial without an answer", err, peering.ErrUnreachable)
	wants(t, "dial without an answer", err, context.DeadlineExceeded)
	must(t, l.Close())
	_, err = d.Dial(t.Context(), l.Addr().String(), here, echo)
	wants(t, "dial without a listener", err, peering.ErrUnreachable)
}

// TestPatient: a connection ends when the server takes nothing for five seconds, but for a patient one.
func TestPatient(t *testing.T) {
	r := serve(t, 2, nil)
	for want, patient := range map[int]bool{5000: false, 0: true} {
		d, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials, Patient: patient})
		must(t, err)
		c, err := d.Dial(t.Context(), r.address, here, echo)
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		raw, err := c.(*net.TCPConn).SyscallConn()
		must(t, err)
		var got int
		err = raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
		must(t, err)
		if got != want {
			t.Errorf("patient %v: the connection ends after %d ms, want %d", patient, got, want)
		}
	}
}

// authority signs certificates.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{tb: tb, cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}}
	a.key, _ = a.sign(a.cert, nil)
	return a
}

func (a *authority) sign(cert *x509.Certificate, by *authority) (*ecdsa.PrivateKey, []byte) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.tb, err)
	parent, parentKey := cert, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
	must(a.tb, err)
	if by == nil {
		a.cert, err = x509.ParseCertificate(der)
		must(a.tb, err)
	}
	return key, der
}

// config gives mutual TLS for an agent at this machine, which trusts a's certificates.
func (a *authority) config(signer *authority) *tls.Config {
	a.tb.Helper()
	key, der := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, signer)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	r := serve(t, 8, func(cfg *peering.ServerConfig) { cfg.Credentials.TLS, cfg.Timeout = ours.config(ours), 20*time.Second })
	for name, c := range map[string]struct {
		change func(*peering.Credentials)
		want   error
	}{
		"ours":               {func(*peering.Credentials) {}, nil},
		"secret":             {func(cr *peering.Credentials) { cr.Secret = []byte("another secret of the same kind") }, peering.ErrDenied},
		"client certificate": {func(cr *peering.Credentials) { cr.TLS = ours.config(theirs) }, peering.ErrDenied},
		"server certificate": {func(cr *peering.Credentials) { cr.TLS = theirs.config(ours) }, peering.ErrDenied},
		"none":               {func(cr *peering.Credentials) { cr.TLS = nil }, peering.ErrUnreachable},
	} {
		cr := credentials
		cr.TLS = ours.config(ours)
		c.change(&cr)
		wants(t, name, r.dial(t, cr, here, echo), c.want)
	}
}
