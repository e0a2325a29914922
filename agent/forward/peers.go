package forward

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
)

// Limits of the connections to one other agent.
const (
	callsMax    = 256              // requests that are answered soon
	waitsMax    = 8192             // requests that wait: for members of a group, for records
	pipesMax    = 4                // for Produce
	idleMax     = time.Minute      // after which a connection is not used again; the other end closes it after ten
	dialTimeout = 3 * time.Second  // as long as a registration lives without its agent
	callTimeout = time.Minute      // of a request that is answered soon
	writeStall  = 30 * time.Second // in which a frame must be taken
	answerMax   = 128 << 20        // bytes of one answer; the largest are Fetch's
	readBytes   = 16 << 10
)

// errGone ends what waits for an agent that is not registered any more.
var errGone = errors.New("the agent is gone")

// peers are the other agents. They may be used concurrently.
type peers struct {
	greeting []byte
	buffers  *server.Buffers
	log      *slog.Logger

	mu   sync.Mutex
	byID map[coordinator.LogID]*peer
	over bool
}

func newPeers(greeting []byte, buffers *server.Buffers, log *slog.Logger) *peers {
	return &peers{greeting: greeting, buffers: buffers, log: log, byID: make(map[coordinator.LogID]*peer)}
}

// of returns an agent.
func (ps *peers) of(a coordinator.Agent) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.byID[a.Log]; p != nil && p.address == a.Kafka {
		return p
	}
	p := newPeer(ps, a)
	if ps.over {
		p.end()
		return p
	}
	if old := ps.byID[a.Log]; old != nil {
		old.end()
	}
	ps.byID[a.Log] = p
	return p
}

// keep ends the connections to agents that are not among those given.
func (ps *peers) keep(agents []coordinator.Agent) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	live := make(map[coordinator.LogID]bool, len(agents))
	for _, a := range agents {
		live[a.Log] = true
	}
	for id, p := range ps.byID {
		if !live[id] {
			p.end()
			delete(ps.byID, id)
		}
	}
}

func (ps *peers) close() {
	ps.mu.Lock()
	ps.over = true
	ps.mu.Unlock()
	ps.keep(nil)
}

// peer is one incarnation of another agent.
type peer struct {
	of      *peers
	node    int32
	address string

	calls, waits *semaphore.Weighted // connections that are used
	gone         context.Context     // ends with the agent
	end          context.CancelFunc

	mu    sync.Mutex
	idle  []*conn // the one used last is behind
	pipes [pipesMax]*pipe
}

func newPeer(of *peers, a coordinator.Agent) *peer {
	p := &peer{of: of, node: a.Node, address: a.Kafka, calls: semaphore.NewWeighted(callsMax), waits: semaphore.NewWeighted(waitsMax)}
	p.gone, p.end = context.WithCancel(context.Background())
	context.AfterFunc(p.gone, p.closeIdle)
	return p
}

func (p *peer) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		c.close()
	}
	p.idle = nil
}

// conn is a connection to another agent. One request uses it at a time.
type conn struct {
	nc    net.Conn
	from  *bufio.Reader
	since time.Time // when it became idle
	stop  func() bool
}

// close ends the connection, and what waits on it.
func (c *conn) close() {
	c.stop()
	_ = c.nc.Close()
}

// dial makes a connection and greets.
func (p *peer) dial(ctx context.Context) (*conn, error) {
	if p.gone.Err() != nil {
		return nil, errGone
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)() //nolint:contextcheck // the other agent's, which ends first
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	c := &conn{nc: nc, from: bufio.NewReaderSize(nc, readBytes)}
	c.stop = context.AfterFunc(p.gone, func() { _ = nc.Close() }) //nolint:contextcheck // the connection outlives the request
	if err := c.write(p.of.greeting); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// take returns a connection that nobody uses, or makes one.
func (p *peer) take(ctx context.Context) (*conn, error) {
	p.mu.Lock()
	for n := len(p.idle); n > 0; n = len(p.idle) {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		if time.Since(c.since) < idleMax {
			p.mu.Unlock()
			return c, nil
		}
		c.close()
	}
	p.mu.Unlock()
	return p.dial(ctx)
}

// give takes a connection back whose answer was read.
func (p *peer) give(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone.Err() != nil {
		c.close()
		return
	}
	c.since = time.Now()
	p.idle = append(p.idle, c)
	for len(p.idle) > 0 && time.Since(p.idle[0].since) >= idleMax {
		p.idle[0].close()
		p.idle = p.idle[1:]
	}
}

// exchange sends a frame and returns the answer, without its size.
func (p *peer) exchange(ctx context.Context, frame []byte, wait bool) ([]byte, error) {
	slots := p.waits
	if !wait {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
		slots = p.calls
	}
	if err := slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer slots.Release(1)
	c, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.nc.Close() })
	b, err := c.roundTrip(frame)
	if !stop() || err != nil {
		c.close()
		return nil, errors.Join(err, ctx.Err())
	}
	p.give(c)
	return b, nil
}

func (c *conn) roundTrip(frame []byte) ([]byte, error) {
	if err := c.write(frame); err != nil {
		return nil, err
	}
	n, err := c.size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = io.ReadFull(c.from, b)
	return b, err
}

// write writes a frame, which must be taken in time.
func (c *conn) write(frame []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(writeStall)); err != nil {
		return err
	}
	_, err := c.nc.Write(frame)
	return err
}

// size waits for an answer and reads its size.
func (c *conn) size() (int, error) {
	var b [sizeBytes]byte
	if _, err := io.ReadFull(c.from, b[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > answerMax {
		return 0, fmt.Errorf("answer of %d bytes, want at most %d", n, answerMax)
	}
	return int(n), nil
}
