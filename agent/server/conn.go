package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// conn is one connection.
type conn struct {
	server *Server
	nc     net.Conn
	from   *bufio.Reader // of nc
	client Client
	cancel context.CancelFunc // ends the handler's work for this connection
	line   chan answer        // in order of requests; closed by the reader
	sent   chan struct{}      // has capacity 1: the writer has written an answer that mutes
	broken chan struct{}      // closed by the writer if it cannot write
	agent  bool               // another agent's
	state  any                // the handler's

	mu       sync.Mutex
	idle     bool // between requests
	draining bool
	used     bool // it has asked for more than the versions of APIs
}

// answer is an Answer in line.
type answer struct {
	Answer
	mutes bool // the reader waits until it is written
}

// newConn returns a connection, under the server's mutex, whose handler's work ends with ctx, or when it is cut.
func newConn(ctx context.Context, s *Server, nc net.Conn, ip string) (context.Context, *conn) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, &conn{
		server: s, nc: nc, from: bufio.NewReaderSize(nc, readBytes), client: Client{Address: nc.RemoteAddr().String(), Host: "/" + ip}, cancel: cancel,
		line: make(chan answer, s.cfg.PipelineMax), sent: make(chan struct{}, 1), broken: make(chan struct{}), idle: true,
	}
}

// run serves the connection to its end.
func (c *conn) run(ctx context.Context) {
	pprof.Do(ctx, pprof.Labels("varve", "connection-reader"), func(ctx context.Context) {
		defer c.cancel()
		stop := context.AfterFunc(ctx, func() { _ = c.nc.Close() })
		defer stop()
		written := make(chan struct{})
		go pprof.Do(ctx, pprof.Labels("varve", "connection-writer"), func(ctx context.Context) {
			defer close(written)
			c.write(ctx)
		})
		err := c.read(ctx)
		close(c.line)
		if err != nil && !quiet(err) {
			c.server.log.Debug("connection ended", "client", c.client.Address, "err", err)
			c.server.metrics.failed.Inc()
		}
		<-written
		_ = c.nc.Close()
	})
}

// quiet tells ends of a connection that say nothing.
func quiet(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled)
}

// cut ends the connection now, and whatever is done for it.
func (c *conn) cut() { c.cancel() }

// drain ends the connection once the request that it is at is served.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining = true
	if c.idle {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.left()))
	}
}

// newMax is how long a connection that drains is waited for that has just been made: clients take one that ends before the first answer for one that speaks another protocol, and some
// of them do not try again.
const newMax = 500 * time.Millisecond

// left is how long the connection, which drains, waits for a request. The caller holds the lock.
func (c *conn) left() time.Duration {
	if c.used {
		return 0
	}
	return newMax
}

// wake ends what the reader reads at with os.ErrDeadlineExceeded.
func (c *conn) wake() { _ = c.nc.SetReadDeadline(time.Now()) }

// setIdle notes whether the reader waits for a request. It is false if the connection drains and should take none.
func (c *conn) setIdle(idle bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = idle
	if c.draining && c.used {
		return false
	}
	if idle && c.draining {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.left()))
	} else if idle {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.server.cfg.IdleMax))
	}
	return true
}

// readBytes is the buffer that a connection reads through: a small request takes one system call, and what is left of a large one goes past the buffer.
const readBytes = 4 << 10

// hold waits until the server is open. Of what the peer sends meanwhile it reads no more than the buffer holds, and that only to notice when the peer goes:
// clients whose patience ends while the agent starts come again, and must not use up the connections that there may be.
func (c *conn) hold(ctx context.Context) error {
	select {
	case <-c.server.opened:
		return nil
	default:
	}
	if _, err := c.from.Peek(readBytes); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // which is how Open and Drain wake it
		return err
	}
	select {
	case <-c.server.opened:
		return nil
	case <-c.server.leave:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read serves requests until the connection ends; the error says why.
func (c *conn) read(ctx context.Context) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	for {
		if !c.setIdle(true) {
			return nil
		}
		if _, err := c.from.Peek(1); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil // idle for too long, or draining
			}
			return err
		}
		c.setIdle(false)
		var size [4]byte
		if err := c.fill(size[:]); err != nil {
			return fmt.Errorf("read frame size: %w", err)
		}
		if err := c.request(ctx, int(int32(binary.BigEndian.Uint32(size[:])))); err != nil {
			return err
		}
	}
}

// fill reads p in the middle of a frame, for which the peer has StallMax.
func (c *conn) fill(p []byte) error {
	if c.from.Buffered() < len(p) {
		if err := c.nc.SetReadDeadline(time.Now().Add(c.server.cfg.StallMax)); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(c.from, p)
	return err
}

// prefixBytes is the start of a request that tells its API.
const prefixBytes = 2

// request reads the rest of one frame and serves it.
func (c *conn) request(ctx context.Context, size int) error {
	s := c.server
	if size < prefixBytes || size > s.cfg.FrameBytesMax {
		return fmt.Errorf("frame of %d bytes, want %d to %d", size, prefixBytes, s.cfg.FrameBytesMax)
	}
	var prefix [prefixBytes]byte
	if err := c.fill(prefix[:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	key := protocol.Key(binary.BigEndian.Uint16(prefix[:]))
	if key != protocol.KeyAPIVersions {
		c.mu.Lock()
		c.used = true
		c.mu.Unlock()
	}
	budget := s.clients
	if c.agent {
		budget = s.agents
	}
	bytes := budget.other
	if key == protocol.KeyProduce {
		bytes = budget.produce
	}
	if err := bytes.Acquire(ctx, int64(size)); err != nil {
		return err
	}
	defer bytes.Release(int64(size))
	var frame []byte
	if key == protocol.KeyProduce { // the only large ones, and nothing of them is kept
		var pooled *[]byte
		pooled, frame = s.buffers.Get(size)
		defer s.buffers.Put(pooled)
	} else {
		frame = make([]byte, size)
	}
	copy(frame, prefix[:])
	if err := c.fill(frame[prefixBytes:]); err != nil {
		return fmt.Errorf("read frame of %d bytes: %w", size, err)
	}
	return c.serve(ctx, frame)
}

// serve hands a frame to the handler and puts the answer in line.
func (c *conn) serve(ctx context.Context, frame []byte) error {
	s := c.server
	h, body, err := wire.ParseHeader(frame)
	if wire.IsUnsupportedAPIVersions(h, err) {
		return c.enqueue(ctx, answer{Encoded(wire.AppendUnsupportedAPIVersions(nil, h.CorrelationID)), true})
	}
	if err != nil {
		return err
	}
	r := &Request{Header: h, Body: body, Client: c.client, Leave: s.leave, Forwarded: c.agent, State: &c.state}
	if c.agent {
		r.origin()
	}
	start := time.Now()
	a, err := s.handler.Serve(ctx, r)
	s.metrics.request(h.Key, time.Since(start))
	if err != nil {
		return fmt.Errorf("%v version %d: %w", h.Key, h.Version, err)
	}
	if a == nil {
		return nil
	}
	return c.enqueue(ctx, answer{a, h.Key != protocol.KeyProduce})
}

// enqueue puts an answer in line. One that mutes is written before the reader goes on: it may hold megabytes, and a peer that asks again
// and again without reading must not make the agent hold many of them.
func (c *conn) enqueue(ctx context.Context, a answer) error {
	select {
	case c.line <- a:
	case <-c.broken:
		a.Release()
		return net.ErrClosed
	case <-ctx.Done():
		a.Release()
		return ctx.Err()
	}
	if !a.mutes {
		return nil
	}
	select {
	case <-c.sent:
		return nil
	case <-c.broken:
		return net.ErrClosed
	}
}

const (
	// scratchKeep is the largest encoding buffer that a connection keeps between answers.
	scratchKeep = 64 << 10
	// togetherMax is how many answers go out by one system call: those to produce requests become ready several at a time.
	togetherMax = 16
)

// write writes answers in order until the line is closed or a write fails.
func (c *conn) write(ctx context.Context) {
	var next []answer // taken from the line
	var bufs [][]byte
	var scratch []byte
	for {
		if len(next) == 0 {
			a, more := <-c.line
			if !more {
				return
			}
			next = append(next, a)
		}
		ok := c.await(ctx, next[0])
		n := 1
		if ok {
			next = c.more(next)
			bufs, scratch = next[0].AppendTo(bufs[:0], scratch[:0])
			for ; n < len(next) && isReady(next[n]); n++ {
				bufs, scratch = next[n].AppendTo(bufs, scratch)
			}
			ok = c.send(bufs)
			clear(bufs)
			if cap(scratch) > scratchKeep {
				scratch = nil
			}
		}
		for _, a := range next[:n] {
			a.Release()
			if a.mutes {
				c.sent <- struct{}{}
			}
		}
		next = slices.Delete(next, 0, n)
		if !ok {
			c.fail(next)
			return
		}
	}
}

// more takes what is in line without waiting.
func (c *conn) more(next []answer) []answer {
	for len(next) < togetherMax {
		select {
		case a, more := <-c.line:
			if !more {
				return next
			}
			next = append(next, a)
		default:
			return next
		}
	}
	return next
}

// fail ends the connection from the writer's side: nothing that was to be written is.
func (c *conn) fail(next []answer) {
	c.cut()
	close(c.broken)
	for _, a := range next {
		a.Release()
	}
	for rest := range c.line {
		rest.Release()
	}
}

// isReady reports whether an answer can be encoded now.
func isReady(a Answer) bool {
	ready := a.Ready()
	if ready == nil {
		return true
	}
	select {
	case <-ready:
		return true
	default:
		return false
	}
}

// await waits until the answer can be encoded.
func (c *conn) await(ctx context.Context, a Answer) bool {
	ready := a.Ready()
	if ready == nil {
		return true
	}
	select {
	case <-ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// send writes answers. A peer that takes none of it for StallMax is cut off.
func (c *conn) send(bufs [][]byte) bool {
	for len(bufs) > 0 {
		if err := c.nc.SetWriteDeadline(time.Now().Add(c.server.cfg.StallMax)); err != nil {
			return false
		}
		// A piece at a time, so that the deadline is one for progress and not for the whole.
		n, size := 0, 0
		for n < len(bufs) && (n == 0 || size+len(bufs[n]) <= sendBytes) {
			size += len(bufs[n])
			n++
		}
		piece := net.Buffers(bufs[:n])
		if _, err := piece.WriteTo(c.nc); err != nil {
			return false
		}
		c.server.metrics.sent.Add(float64(size))
		bufs = bufs[n:]
	}
	return true
}

// sendBytes is how much is written under one deadline.
const sendBytes = 1 << 20
