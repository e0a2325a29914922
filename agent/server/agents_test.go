package server

import (
	"context"
	"net"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// forwarded is a request as another agent forwards it for a client.
func forwarded(id int32) []byte {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 7
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(ForwardedID("/10.0.0.9", "their client"))).AppendRequest(nil, req, id)
}

// agent returns a connection to the server that is another agent's, and its other end has ended when served is closed.
func (f *fixture) agent(t *testing.T) (c net.Conn, served chan struct{}) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close() })
	served = make(chan struct{})
	go func() {
		defer close(served)
		f.server.ServeAgent(t.Context(), theirs)
	}()
	return ours, served
}

// TestServeAgent holds that the requests of an agent's connection are marked, and are those of the client that they came from.
func TestServeAgent(t *testing.T) {
	seen := make(chan *Request, 2)
	f := serve(t, nil, func(ctx context.Context, r *Request) (Answer, error) {
		seen <- r
		return echo(ctx, r)
	})
	client := f.dial()
	agent, served := f.agent(t)
	write(t, agent, forwarded(1))
	if id, _ := read(t, agent); id != 1 {
		t.Errorf("response to %d, want 1", id)
	}
	if r := <-seen; !r.Forwarded || r.Client.Host != "/10.0.0.9" || r.ClientID != "their client" {
		t.Errorf("request of %s, %q, forwarded %v; want one of their client's", r.Client.Host, r.ClientID, r.Forwarded)
	}
	write(t, client, forwarded(2)) // from a client it is a strange name and nothing more
	read(t, client)
	if r := <-seen; r.Forwarded || r.Client.Host == "/10.0.0.9" {
		t.Errorf("request of %s, forwarded %v; want one of the connection's", r.Client.Host, r.Forwarded)
	}
	_ = agent.Close()
	<-served
}

// TestAgentsBytes holds that forwarded requests are served though those of clients have used up their bytes.
func TestAgentsBytes(t *testing.T) {
	release, entered := make(chan struct{}), make(chan bool, 10)
	f := serve(t, func(c *Config) { c.InFlightBytesMax, c.FrameBytesMax = 2000, 2000 }, func(ctx context.Context, r *Request) (Answer, error) {
		entered <- r.Forwarded
		if r.Key == protocol.KeyProduce && !r.Forwarded {
			<-release
		}
		return echo(ctx, r)
	})
	client := f.dial()
	agent, _ := f.agent(t)
	write(t, client, produce(1, make([]byte, 1900)))
	<-entered
	write(t, agent, produce(2, make([]byte, 1900)))
	if id, _ := read(t, agent); id != 2 || !<-entered {
		t.Errorf("response to %d, want 2", id)
	}
	close(release)
	read(t, client)
}

// TestDrainAgentsLast holds that other agents are served until no client is left.
func TestDrainAgentsLast(t *testing.T) {
	entered, release := make(chan struct{}, 1), make(chan struct{})
	f := serve(t, nil, func(ctx context.Context, r *Request) (Answer, error) {
		if !r.Forwarded {
			entered <- struct{}{}
			<-release
		}
		return echo(ctx, r)
	})
	client := f.dial()
	agent, _ := f.agent(t)
	write(t, agent, forwarded(1))
	read(t, agent)
	write(t, client, metadata(2))
	<-entered
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		f.server.Drain(t.Context())
	}()
	<-f.server.leave
	write(t, agent, forwarded(3))
	if id, _ := read(t, agent); id != 3 {
		t.Errorf("response to %d, want 3", id)
	}
	close(release)
	if id, _ := read(t, client); id != 2 {
		t.Errorf("response to %d, want 2", id)
	}
	wantEnd(t, agent)
	<-drained
}
