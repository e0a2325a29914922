// Package peering connects agents of one cluster with each other: one port, one handshake, and behind it whatever service a connection is for.
//
//	server, err := peering.NewServer(peering.ServerConfig{Identity: disk, Credentials: credentials})
//	server.Handle("wal", 256, serveStore)                          // for connections that proved themselves
//	go server.Serve(listener)
//
//	dialer, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials})
//	conn, err := dialer.Dial(ctx, "10.0.0.2:9095", disk, "wal")
//
// # Who may
//
// Before anything else both sides prove that they know the cluster's secret: each by an HMAC-SHA256 over both sides' random numbers, the cluster, the agent
// that the client expects, the service that it wants, and its own role; the client first, so that a stranger learns nothing. This keeps strangers out. It does
// not keep those out who can change the packets between two agents: for that, give both sides a [tls.Config], inside of which everything happens then;
// the proofs cover the TLS session too, so that they cannot be passed on to another one.
//
// An agent is known by its identity, which is that of its disk: whoever answers at an address in its place is refused.
//
// The client proves itself first, so that whoever finds the port gets no proof to try guesses of the secret against.
//
// # Limits
//
// A stranger costs the server one of 64 places for connections that did not prove themselves, and fixed memory. The oldest of these goes when there are too
// many, instead of the newest: a peer needs milliseconds to prove itself. A service says how many connections it takes.
// What they cost is its own affair.
//
// The bytes are in FORMAT.md.
package peering

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

var (
	// ErrUnreachable: the peer cannot be connected to, has no room for another connection, hung up, or was silent for too long. What it was
	// asked to do may have happened.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrDenied: one side could not prove that it is of the cluster, or another agent is there than was expected. Asking
	// again is of no use.
	ErrDenied = errors.New("peer denied")
	// ErrProtocol: what arrived is not what the protocol says; it was damaged on its way, or the other side is no peer or of an unknown version.
	ErrProtocol = errors.New("peer protocol broken")
)

// Service is what a connection is for: a name of 1 to 8 bytes.
type Service string

const serviceBytesMax = 8

func (s Service) check() error {
	if len(s) == 0 || len(s) > serviceBytesMax {
		return fmt.Errorf("service %q, want a name of 1 to %d bytes", string(s), serviceBytesMax)
	}
	return nil
}

// Credentials are what makes an agent one of its cluster.
type Credentials struct {
	// Cluster is the cluster's id.
	Cluster uuid.UUID
	// Secret is known to the cluster's agents alone: at least 16 bytes, hard to guess, since whoever sees a handshake can try guesses.
	Secret []byte
	// TLS is this side's configuration of mutual TLS, of version 1.3 at least; nil for none. Both sides have it or none.
	TLS *tls.Config
}

const secretBytesMin = 16

func (c *Credentials) check() error {
	if c.Cluster == (uuid.UUID{}) {
		return errors.New("no cluster id")
	}
	if len(c.Secret) < secretBytesMin {
		return fmt.Errorf("cluster secret of %d bytes, want at least %d", len(c.Secret), secretBytesMin)
	}
	return nil
}

// tlsFor is the TLS configuration for connections to a host; nil without TLS. The server's is that of no host.
func (c *Credentials) tlsFor(host string) *tls.Config {
	if c.TLS == nil {
		return nil
	}
	t := c.TLS.Clone()
	t.MinVersion = max(t.MinVersion, tls.VersionTLS13)
	if t.ServerName == "" {
		t.ServerName = host
	}
	return t
}

// tune sets up a new connection, so that it ends when the other machine has answered or taken nothing for gone; with 0, when it has answered nothing while
// nothing was under way. That small messages go out at
// once (TCP_NODELAY) is Go's default. Keep-alives ask while nothing is under way, TCP_USER_TIMEOUT is how long they and whatever else was sent
// may be unanswered: without it the kernel sends again what was under way for a quarter of an hour.
func tune(raw net.Conn, gone time.Duration) error {
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		return nil
	}
	const idle, pause, tries = 2 * time.Second, time.Second, 3
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: pause, Count: tries}); err != nil {
		return unreachable(err)
	}
	if gone == 0 {
		return nil
	}
	sys, err := tcp.SyscallConn()
	if err != nil {
		return unreachable(err)
	}
	var refused error
	err = sys.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(gone.Milliseconds()))
	})
	if err = errors.Join(err, refused); err != nil {
		return unreachable(err)
	}
	return nil
}

func unreachable(err error) error { return fmt.Errorf("%w: %w", ErrUnreachable, err) }
