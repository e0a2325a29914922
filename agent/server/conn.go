package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// conn is one connection.
type conn struct {
	server  *Server
	handler Handler
	nc      net.Conn
	client  Client
	cancel  context.CancelFunc // ends the handler's work for this connection
	line    chan answer        // in order of requests; closed by the reader
	sent    chan struct{}      // has capacity 1: the writer has written an answer that mutes
	broken  chan struct{}      // closed by the writer if it cannot write

	mu       sync.Mutex
	idle     bool // between requests
	draining bool
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
		server: s, handler: s.handler, nc: nc, client: Client{Address: nc.RemoteAddr().String(), Host: "/" + ip}, cancel: cancel,
		line: make(chan answer, s.cfg.PipelineMax), sent: make(chan struct{}, 1), broken: make(chan struct{}),
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
		_ = c.nc.SetReadDeadline(time.Now())
	}
}

// setIdle notes whether the reader waits for a request. It is false if the connection drains and should take none.
func (c *conn) setIdle(idle bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = idle
	if c.draining {
		return false
	}
	if idle {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.server.cfg.IdleMax))
	}
	return true
}

// read serves requests until the connection ends; the error says why.
func (c *conn) read(ctx context.Context) error {
	for {
		if !c.setIdle(true) {
			return nil
		}
		var size [4]byte
		if _, err := io.ReadFull(c.nc, size[:1]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil // idle for too long, or draining
			}
			return err
		}
		c.setIdle(false)
		if err := c.nc.SetReadDeadline(time.Now().Add(c.server.cfg.StallMax)); err != nil {
			return err
		}
		if _, err := io.ReadFull(c.nc, size[1:]); err != nil {
			return fmt.Errorf("read frame size: %w", err)
		}
		if err := c.request(ctx, int(int32(binary.BigEndian.Uint32(size[:])))); err != nil {
			return err
		}
	}
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
	if _, err := io.ReadFull(c.nc, prefix[:]); err != nil {
		return fmt.Errorf("read frame: %w", err)
	}
	key := protocol.Key(binary.BigEndian.Uint16(prefix[:]))
	// Produce has bytes of its own: while the WAL is full its requests stand here, and must not keep consumers and groups from being served.
	bytes := s.otherBytes
	if key == protocol.KeyProduce {
		bytes = s.produceBytes
	}
	if err := bytes.Acquire(ctx, int64(size)); err != nil {
		return err
	}
	defer bytes.Release(int64(size))
	var frame []byte
	if key == protocol.KeyProduce { // the only large ones, and nothing of them is kept
		var pooled *[]byte
		pooled, frame = s.buffers.get(size)
		defer s.buffers.put(pooled)
	} else {
		frame = make([]byte, size)
	}
	copy(frame, prefix[:])
	if err := c.nc.SetReadDeadline(time.Now().Add(s.cfg.StallMax)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.nc, frame[prefixBytes:]); err != nil {
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
	start := time.Now()
	a, err := c.handler.Serve(ctx, &Request{Header: h, Body: body, Client: c.client, Leave: s.leave})
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

// scratchKeep is the largest encoding buffer that a connection keeps between answers.
const scratchKeep = 64 << 10

// write writes answers in order until the line is closed or a write fails.
func (c *conn) write(ctx context.Context) {
	var bufs [][]byte
	var scratch []byte
	for a := range c.line {
		ok := c.await(ctx, a)
		if ok {
			bufs, scratch = a.AppendTo(bufs[:0], scratch[:0])
			ok = c.send(bufs)
			clear(bufs)
			if cap(scratch) > scratchKeep {
				scratch = nil
			}
		}
		a.Release()
		if a.mutes {
			c.sent <- struct{}{}
		}
		if !ok {
			c.cut()
			close(c.broken)
			for rest := range c.line {
				rest.Release()
			}
			return
		}
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

// send writes one answer. A peer that takes none of it for StallMax is cut off.
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
