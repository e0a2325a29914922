package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// handler serves requests as a test says.
type handler func(ctx context.Context, r *Request) (Answer, error)

func (h handler) Serve(ctx context.Context, r *Request) (Answer, error) { return h(ctx, r) }

// fixture is a server under test.
type fixture struct {
	t      *testing.T
	server *Server
	addr   string
	cancel context.CancelFunc
	served chan error
}

// serve starts a server that is open.
func serve(t *testing.T, change func(*Config), h handler) *fixture {
	t.Helper()
	f := start(t, change)
	f.server.Open(h)
	return f
}

// start starts a server that is not open yet.
func start(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	cfg := Defaults()
	cfg.IdleMax = time.Minute
	if change != nil {
		change(&cfg)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &fixture{
		t: t, server: New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()),
		addr: l.Addr().String(), cancel: cancel, served: make(chan error, 1),
	}
	go func() { f.served <- f.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-f.served; err != nil {
			t.Errorf("Serve returned %v", err)
		}
		// Serve has waited for the connections; their goroutines are at their last instruction.
		for range 100 {
			if runtime.NumGoroutine() <= before {
				return
			}
			runtime.Gosched()
			time.Sleep(time.Millisecond)
		}
		t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
	})
	return f
}

func (f *fixture) dial() net.Conn {
	f.t.Helper()
	var d net.Dialer
	c, err := d.DialContext(f.t.Context(), "tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// frame encodes a request with a correlation id.
func frame(id int32, req kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, id)
}

func metadata(id int32) []byte {
	req := kmsg.NewPtrMetadataRequest()
	req.Version = 7
	return frame(id, req)
}

// produce encodes a Produce request with one batch of those bytes.
func produce(id int32, records []byte) []byte {
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks = 7, -1
	t := kmsg.NewProduceRequestTopic()
	t.Topic = "t"
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = records
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	return frame(id, req)
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// read reads one response: its correlation id and the bytes behind.
func read(t *testing.T, c net.Conn) (int32, []byte) {
	t.Helper()
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return int32(binary.BigEndian.Uint32(b)), b[4:]
}

// wantEnd holds that the server ends the connection.
func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection goes on: %d bytes, %v", n, err)
	}
}

// echo answers with the correlation id alone.
func echo(_ context.Context, r *Request) (Answer, error) { return reply(r.CorrelationID, nil), nil }

func reply(id int32, body []byte) Encoded {
	b := binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))
	return append(binary.BigEndian.AppendUint32(b, uint32(id)), body...)
}

// later is an answer that becomes ready when the test says.
type later struct {
	Encoded
	ready    chan struct{}
	released *int
}

func (l *later) Ready() <-chan struct{} { return l.ready }
func (l *later) Release()               { *l.released++ }

func TestBadFrames(t *testing.T) {
	f := serve(t, func(c *Config) { c.FrameBytesMax, c.StallMax = 1000, time.Second }, echo)
	good := f.dial()
	for name, b := range map[string][]byte{
		"negative":        {0xff, 0xff, 0xff, 0xff},
		"empty":           {0, 0, 0, 0},
		"too large":       {0, 0, 0x03, 0xe9, 0, 3},
		"no header":       {0, 0, 0, 3, 0, 3, 0},
		"unknown API":     {0, 0, 0, 10, 0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0xff, 0xff},
		"unknown version": {0, 0, 0, 10, 0, 3, 0x7f, 0xff, 0, 0, 0, 1, 0xff, 0xff},
		"half a size":     {0, 0},
		"half a frame":    {0, 0, 0, 100, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.dial()
			write(t, c, b)
			wantEnd(t, c)
		})
	}
	// Nobody else has noticed.
	write(t, good, metadata(1))
	if id, _ := read(t, good); id != 1 {
		t.Errorf("response to %d, want 1", id)
	}
}

func TestIdleEnds(t *testing.T) {
	f := serve(t, func(c *Config) { c.IdleMax = 50 * time.Millisecond }, echo)
	wantEnd(t, f.dial())
}

func TestHandlerErrorEnds(t *testing.T) {
	f := serve(t, nil, func(context.Context, *Request) (Answer, error) { return nil, errors.New("bad request") })
	c := f.dial()
	write(t, c, metadata(1))
	wantEnd(t, c)
}

func TestConnectionLimits(t *testing.T) {
	f := serve(t, func(c *Config) { c.ConnectionsMax, c.ConnectionsPerIPMax = 3, 2 }, echo)
	for i := range int32(2) {
		c := f.dial()
		write(t, c, metadata(i))
		read(t, c)
		defer func() { _ = c.Close() }()
	}
	wantEnd(t, f.dial())
}

// TestHeld holds that connections which come before the server is open are within the limits, and are served once it is, whatever they have sent by
// then; and that one whose peer goes makes room.
func TestHeld(t *testing.T) {
	f := start(t, func(c *Config) { c.ConnectionsMax = 4 })
	silent, asks, sends, leaves := f.dial(), f.dial(), f.dial(), f.dial()
	write(t, asks, metadata(1))
	write(t, sends, produce(2, make([]byte, 3*readBytes)))
	write(t, leaves, metadata(3))
	wantEnd(t, f.dial())

	_ = leaves.Close()
	f.await(3)
	late := f.dial()
	f.await(4)
	write(t, late, metadata(4))

	f.server.Open(handler(echo))
	write(t, silent, metadata(0))
	for want, c := range []net.Conn{silent, asks, sends} {
		if id, _ := read(t, c); int(id) != want {
			t.Errorf("response to %d, want %d", id, want)
		}
	}
	if id, _ := read(t, late); id != 4 {
		t.Errorf("response to %d, want 4", id)
	}
}

// await waits until the server has that many connections.
func (f *fixture) await(n int) {
	f.t.Helper()
	for late := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		f.server.mu.Lock()
		got := len(f.server.conns)
		f.server.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(late) {
			f.t.Fatalf("%d connections, want %d", got, n)
		}
	}
}

// TestHeldEnds holds that a drain, and the end, close connections that are held.
func TestHeldEnds(t *testing.T) {
	for name, end := range map[string]func(f *fixture){
		"drain": func(f *fixture) { f.server.Drain(t.Context()) },
		"end":   func(f *fixture) { f.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			silent, asks, sends := f.dial(), f.dial(), f.dial()
			write(t, asks, metadata(1))
			write(t, sends, produce(2, make([]byte, 3*readBytes)))
			f.await(3)
			end(f)
			for _, c := range []net.Conn{silent, asks, sends} {
				wantEnd(t, c)
			}
		})
	}
}

// TestOrder holds that answers go out in the order of requests, though a later Produce is ready first, and that a Produce is served while an earlier
// one waits.
func TestOrder(t *testing.T) {
	var mu sync.Mutex
	released := 0
	var waiting []*later
	served := make(chan struct{}, 10)
	f := serve(t, nil, func(_ context.Context, r *Request) (Answer, error) {
		if r.Key != protocol.KeyProduce {
			return reply(r.CorrelationID, nil), nil
		}
		mu.Lock()
		defer mu.Unlock()
		a := &later{Encoded: reply(r.CorrelationID, nil), ready: make(chan struct{}), released: &released}
		waiting = append(waiting, a)
		served <- struct{}{}
		return a, nil
	})
	c := f.dial()
	for id := range int32(3) {
		write(t, c, produce(id, []byte("x")))
	}
	write(t, c, metadata(3))
	for range 3 {
		<-served
	}
	mu.Lock()
	for i := range waiting {
		close(waiting[len(waiting)-1-i].ready)
	}
	mu.Unlock()
	for want := range int32(4) {
		if id, _ := read(t, c); id != want {
			t.Fatalf("response to %d, want %d", id, want)
		}
	}
}

// TestMutes holds that no second request is served before the answer to the first is written, unless it is Produce: a peer that does not read makes
// the server hold one answer.
func TestMutes(t *testing.T) {
	var mu sync.Mutex
	served := 0
	big := make([]byte, 16<<20) // more than the sockets' buffers hold
	first := make(chan struct{})
	f := serve(t, nil, func(_ context.Context, r *Request) (Answer, error) {
		mu.Lock()
		defer mu.Unlock()
		if served++; served == 1 {
			close(first)
		}
		return reply(r.CorrelationID, big), nil
	})
	c := f.dial()
	for id := range int32(3) {
		write(t, c, metadata(id))
	}
	<-first
	if id, _ := read(t, c); id != 0 { // while this is read, nothing else is served
		t.Errorf("response to %d", id)
	}
	mu.Lock()
	if served > 2 {
		t.Errorf("%d requests are served while the peer has read one answer", served)
	}
	mu.Unlock()
	for range 2 {
		read(t, c)
	}
}

// TestSlowReaderEnds holds that a peer that takes nothing is cut off, and its answers released.
func TestSlowReaderEnds(t *testing.T) {
	released := make(chan struct{})
	f := serve(t, func(c *Config) { c.StallMax = 200 * time.Millisecond }, func(_ context.Context, r *Request) (Answer, error) {
		return &tell{Encoded: reply(r.CorrelationID, make([]byte, 16<<20)), released: released}, nil
	})
	c := f.dial()
	write(t, c, metadata(1))
	select {
	case <-released:
	case <-time.After(20 * time.Second):
		t.Fatal("the answer is held for ever")
	}
}

// tell is an answer that tells when it is released.
type tell struct {
	Encoded
	released chan struct{}
}

func (a *tell) Release() { close(a.released) }

// TestInFlightBytes holds that frames beyond the limit are not read, and that Produce and the others have limits of their own.
func TestInFlightBytes(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan protocol.Key, 10)
	f := serve(t, func(c *Config) { c.InFlightBytesMax, c.FrameBytesMax = 2000, 2000 },
		func(_ context.Context, r *Request) (Answer, error) {
			entered <- r.Key
			if r.Key == protocol.KeyProduce {
				<-release
			}
			return reply(r.CorrelationID, nil), nil
		})
	a, b := f.dial(), f.dial()
	write(t, a, produce(1, make([]byte, 1500)))
	<-entered
	write(t, b, produce(2, make([]byte, 1500)))
	other := f.dial()
	write(t, other, metadata(3))
	if got := <-entered; got != protocol.KeyMetadata {
		t.Errorf("%v is served, though the limit is reached", got)
	}
	read(t, other)
	close(release)
	read(t, a)
	read(t, b)
}

// TestBuffers holds that a Produce frame stays as it is while it is served, whatever other connections send.
func TestBuffers(t *testing.T) {
	f := serve(t, nil, func(_ context.Context, r *Request) (Answer, error) {
		want := r.Body[len(r.Body)-1]
		for range 20 {
			for _, got := range r.Body[len(r.Body)-1000:] {
				if got != want {
					return nil, errors.New("the frame changed")
				}
			}
			runtime.Gosched()
		}
		return reply(r.CorrelationID, nil), nil
	})
	var wg sync.WaitGroup
	for n := range 8 {
		c := f.dial()
		wg.Go(func() {
			records := make([]byte, 5000)
			for i := range records {
				records[i] = byte(n + 1)
			}
			b := produce(int32(n), records)
			for range 200 {
				if _, err := c.Write(b); err != nil {
					t.Error(err)
					return
				}
				var resp [8]byte
				if _, err := io.ReadFull(c, resp[:]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestDrain holds that a drain takes no more requests, finishes those that are there, tells those that wait, and cuts what does not end.
func TestDrain(t *testing.T) {
	entered := make(chan struct{}, 3)
	f := serve(t, nil, func(ctx context.Context, r *Request) (Answer, error) {
		entered <- struct{}{}
		switch r.CorrelationID {
		case 1: // waits for news
			<-r.Leave
		case 2: // does not listen
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return reply(r.CorrelationID, nil), nil
	})
	idle, waits, stuck := f.dial(), f.dial(), f.dial()
	write(t, waits, metadata(1))
	write(t, stuck, metadata(2))
	<-entered
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		f.server.Drain(ctx)
	}()
	wantEnd(t, idle)
	if id, _ := read(t, waits); id != 1 {
		t.Errorf("response to %d, want 1", id)
	}
	wantEnd(t, waits)
	select {
	case <-drained:
		t.Error("the drain ends before its requests")
	default:
	}
	cancel()
	<-drained
	wantEnd(t, stuck)
	var d net.Dialer
	if c, err := d.DialContext(t.Context(), "tcp", f.addr); err == nil {
		wantEnd(t, c)
		_ = c.Close()
	}
}

// TestDrainFirst holds that a server that drained before it served ends at once.
func TestDrainFirst(t *testing.T) {
	s := New(Defaults(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	s.Drain(t.Context())
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), l); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
}

// TestPeerGoes holds that a connection whose peer is gone ends though its requests still wait, and that answers are released.
func TestPeerGoes(t *testing.T) {
	ready := make(chan struct{})
	released := make(chan struct{})
	entered := make(chan struct{})
	f := serve(t, nil, func(_ context.Context, r *Request) (Answer, error) {
		close(entered)
		return &unready{tell{Encoded: reply(r.CorrelationID, nil), released: released}, ready}, nil
	})
	c := f.dial()
	write(t, c, produce(1, []byte("x")))
	<-entered
	_ = c.Close()
	close(ready)
	<-released
}

type unready struct {
	tell
	ready chan struct{}
}

func (a *unready) Ready() <-chan struct{} { return a.ready }
