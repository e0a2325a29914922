package peering

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/google/uuid"
)

// DialerConfig says how other agents are connected to.
type DialerConfig struct {
	Credentials Credentials
	// Patient connections do not end because the server takes nothing for a while, nor because its machine does not answer while something is under way: who has
	// them learns otherwise that it is gone.
	Patient bool
	// Connect connects; nil means by TCP.
	Connect func(ctx context.Context, address string) (net.Conn, error)
}

// goneAfter is how long a client waits for a sign of the server's machine.
const goneAfter = 5 * time.Second

// Dialer connects to other agents. Its methods may be called concurrently.
type Dialer struct{ cfg DialerConfig }

// NewDialer makes a dialer.
func NewDialer(cfg DialerConfig) (*Dialer, error) {
	if err := cfg.Credentials.check(); err != nil {
		return nil, fmt.Errorf("new dialer of peers: %w", err)
	}
	if cfg.Connect == nil {
		cfg.Connect = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	return &Dialer{cfg: cfg}, nil
}

// Dial connects to a service of the agent that is expected at an address, host and port, and returns when both sides have proved themselves. ctx is for that
// alone. The error is ErrUnreachable, ErrDenied or ErrProtocol, but for a name that is no service's. A connection ends by itself when the other machine has not
// answered for five seconds, unless it is patient.
func (d *Dialer) Dial(ctx context.Context, address string, identity uuid.UUID, service Service) (net.Conn, error) {
	if err := service.check(); err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, unreachable(err)
	}
	raw, err := d.cfg.Connect(ctx, address)
	if err != nil {
		return nil, unreachable(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	c, err := d.handshake(ctx, raw, host, identity, service)
	if !stop() {
		err = unreachable(ctx.Err())
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (d *Dialer) handshake(ctx context.Context, raw net.Conn, host string, identity uuid.UUID, service Service) (net.Conn, error) {
	gone := goneAfter
	if d.cfg.Patient {
		gone = 0
	}
	if err := tune(raw, gone); err != nil {
		return nil, err
	}
	inner := raw
	if t := d.cfg.Credentials.tlsFor(host); t != nil {
		secured := tls.Client(raw, t)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, refusal(err)
		}
		inner = secured
	}
	return inner, greet(inner, &d.cfg.Credentials, identity, service)
}
