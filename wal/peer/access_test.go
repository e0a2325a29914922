package peer_test

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
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

// TestDenied: who is not of the cluster, or wants another store, can do nothing, and both sides know why.
func TestDenied(t *testing.T) {
	for name, c := range map[string]struct {
		change      func(*peer.Config)
		here, there string
	}{
		"secret": {
			func(cfg *peer.Config) { cfg.Credentials.Secret = []byte("another secret of the same kind") },
			"it says that it has another cluster secret", "it does not know the cluster secret",
		},
		"cluster": {
			func(cfg *peer.Config) { cfg.Credentials.Cluster = uuid.UUID{9} },
			"it is of cluster 01020300", "it wants cluster 09000000",
		},
		"store": {
			func(cfg *peer.Config) { cfg.Identity = uuid.UUID{9} },
			"it has the store ", "it wants the store 09000000",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, disktest.New(1), nil)
			s := r.dial(t, c.change)
			_, err := s.Create(t.Context(), segment, 5, 1)
			wants(t, "create", err, peer.ErrDenied)
			if err == nil || !strings.Contains(err.Error(), c.here) {
				t.Errorf("create: %v; want %q", err, c.here)
			}
			_, err = s.Seal(segment, 6)
			wants(t, "seal", err, peer.ErrDenied)
			r.log.await(c.there)
			if r.Fence(segment.Log) != 0 || len(r.Segments()) != 0 {
				t.Error("something was done")
			}
		})
	}
	if _, err := peer.NewServer(peer.ServerConfig{Credentials: peer.Credentials{Cluster: uuid.UUID{1}, Secret: []byte("short")}}); err == nil {
		t.Error("a short secret was accepted")
	}
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
			hello := make([]byte, 72)
			_, _ = io.ReadFull(c, hello)
			_, _ = c.Write(append(hello[:8:8], make([]byte, 32)...))
			_, _ = io.ReadFull(c, hello[:32])
			_, _ = c.Write(make([]byte, 76)) // welcome, and no proof
		}
	}()
	s, err := peer.NewStore(peer.Config{Address: l.Addr().String(), Credentials: credentials})
	must(t, err)
	defer s.Close()
	_, err = s.Segments()
	wants(t, "list", err, peer.ErrDenied)
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
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.Timeout = 3 * time.Second })
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
	_, err = other.Write(append([]byte{'V', 'R', 'V', 'P', 2, 0, 0, 0}, make([]byte, 64)...))
	must(t, err)
	if b := ends(t, other); len(b) != 40 || b[4] != 1 {
		t.Errorf("another version is answered %x", b)
	}
	guess := connect(t, r.address)
	_, err = guess.Write(append([]byte{'V', 'R', 'V', 'P', 1, 0, 0, 0}, make([]byte, 64+32)...))
	must(t, err)
	if b := ends(t, guess); len(b) != 40+76 || b[40] != 1 || len(bytes.Trim(b[41:], "\x00")) != 0 {
		t.Errorf("a guess is answered %x", b)
	}
}

// TestCrowd: connections that prove nothing do not keep peers out, and their number is limited.
func TestCrowd(t *testing.T) {
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.Timeout = time.Minute })
	first := connect(t, r.address)
	for range 100 {
		connect(t, r.address)
	}
	a := create(t, r.dial(t, nil), segment)
	ends(t, first)
	must(t, a.Append([][]byte{framed(segment, 1, 10)}), a.Close())
}

func TestConnectionsMax(t *testing.T) {
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.ConnectionsMax = 1 })
	s := r.dial(t, nil)
	a := create(t, s, segment)
	err := a.Trim(1)
	wants(t, "trim", err, peer.ErrUnreachable)
	if err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("trim: %v", err)
	}
	must(t, a.Append([][]byte{framed(segment, 1, 10)}))
}

// TestUnreachable: nobody listens, somebody never answers, the caller has no time.
func TestUnreachable(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	cfg := peer.Config{Address: l.Addr().String(), Credentials: credentials, Timeout: 50 * time.Millisecond}
	s, err := peer.NewStore(cfg)
	must(t, err)
	defer s.Close()
	_, err = s.Seal(segment, 6)
	wants(t, "seal without an answer", err, peer.ErrUnreachable)
	cfg.Timeout = 0
	patient, err := peer.NewStore(cfg)
	must(t, err)
	defer patient.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = patient.Create(ctx, segment, 5, 1)
	wants(t, "create without an answer", err, peer.ErrUnreachable)
	wants(t, "create without an answer", err, context.DeadlineExceeded)
	must(t, l.Close())
	_, err = s.Seal(segment, 6)
	wants(t, "seal without a listener", err, peer.ErrUnreachable)
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
	r := serve(t, disktest.New(1), func(dc *disk.Config, sc *peer.ServerConfig) {
		dc.FileBytes, sc.Credentials.TLS, sc.Timeout = 2<<20, ours.config(ours), 20*time.Second
	})
	s := r.dial(t, func(cfg *peer.Config) { cfg.Credentials.TLS = ours.config(ours) })
	a := create(t, s, segment)
	must(t, a.Append([][]byte{framed(segment, 1, 10, 1<<20), framed(segment, 3, 100)}), a.Trim(1), a.Close())
	answer, err := s.Seal(segment, 6)
	must(t, err)
	checkRead(t, s, segment, 1, answer.Last)

	for name, c := range map[string]struct {
		change func(*peer.Config)
		want   error
	}{
		"secret":             {func(cfg *peer.Config) { cfg.Credentials.Secret = []byte("another secret of the same kind") }, peer.ErrDenied},
		"client certificate": {func(cfg *peer.Config) { cfg.Credentials.TLS = ours.config(theirs) }, peer.ErrDenied},
		"server certificate": {func(cfg *peer.Config) { cfg.Credentials.TLS = theirs.config(ours) }, peer.ErrDenied},
		"none":               {func(cfg *peer.Config) { cfg.Credentials.TLS = nil }, peer.ErrUnreachable},
	} {
		_, err := r.dial(t, func(cfg *peer.Config) {
			cfg.Credentials.TLS = ours.config(ours)
			c.change(cfg)
		}).Create(t.Context(), frame.SegmentID{Log: 8, Number: 1}, 5, 1)
		wants(t, name, err, c.want)
	}
	if len(r.Segments()) != 1 {
		t.Errorf("segments %+v", r.Segments())
	}
}
