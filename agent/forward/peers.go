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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
)

// Limits of the connections to one other agent.
const (
	callsMax    = 256              // requests that are answered soon
	waitsMax    = 8192             // requests that wait for members of a group, and again those that wait for records
	pipesMax    = 4                // for Produce
	idleMax     = time.Minute      // after which a connection is not used again; the other end closes it after ten
	dialTimeout = 3 * time.Second  // as long as a registration lives without its agent; for a connection to be made
	callTimeout = time.Minute      // of a request that is answered soon
	stall       = 30 * time.Second // in which a frame must be taken, or the rest of an answer come
	answerMax   = 128 << 20        // bytes of one answer; the largest are Fetch's
	readBytes   = 16 << 10
)

// errGone ends what waits for an agent that is not registered any more.
var errGone = errors.New("the agent is gone")

// Peers are the other agents, as far as they answer requests of Kafka's protocol. They may be used concurrently. [Peers.Run] must run beside them.
type Peers struct {
	connect func(context.Context, coordinator.Agent) (net.Conn, error)
	view    *coordinator.View
	log     *slog.Logger
	frames  atomic.Int32 // correlation id of the last frame

	mu   sync.Mutex
	byID map[coordinator.LogID]*peer // of agents that are registered
	over bool
}

// NewPeers returns the other agents that view shows. connect connects to the [server.Server.ServeAgent] of one that others reach (Peer).
func NewPeers(view *coordinator.View, connect func(context.Context, coordinator.Agent) (net.Conn, error), log *slog.Logger) *Peers {
	return &Peers{connect: connect, view: view, log: log, byID: make(map[coordinator.LogID]*peer)}
}

// Run ends the connections to agents that are not registered any more, until ctx ends, and then all. kick tells that something changed about agents.
func (ps *Peers) Run(ctx context.Context, kick <-chan struct{}) error {
	defer ps.close()
	for {
		select {
		case <-kick:
		case <-ctx.Done():
			return ctx.Err()
		}
		ps.keep()
	}
}

// Ask has an agent answer a request of this agent's own, as opposed to one of a client. An error says that there is no answer; whether the request was carried out is not known then.
func (ps *Peers) Ask(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error) {
	id := ps.frames.Add(1)
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID(server.ForwardedID("", ""))).AppendRequest(nil, req, id)
	b, err := ps.of(to).exchange(ctx, frame, false)
	if err != nil {
		return nil, err
	}
	return decode(req, id, b)
}

// of returns an agent. One that is not registered any more is gone.
func (ps *Peers) of(a coordinator.Agent) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	old := ps.byID[a.Log]
	if old != nil && old.agent.Peer == a.Peer {
		return old
	}
	p := newPeer(ps, a)
	if ps.over || !slices.ContainsFunc(ps.view.Agents(), func(r coordinator.Agent) bool { return r.Log == a.Log }) {
		p.end()
		return p
	}
	if old != nil {
		old.end()
	}
	ps.byID[a.Log] = p
	return p
}

// keep ends the connections to agents that are not registered any more.
func (ps *Peers) keep() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	live := make(map[coordinator.LogID]bool)
	for _, a := range ps.view.Agents() {
		live[a.Log] = !ps.over
	}
	for id, p := range ps.byID {
		if !live[id] {
			p.end()
			delete(ps.byID, id)
		}
	}
}

// close ends all connections, and there are no more.
func (ps *Peers) close() {
	ps.mu.Lock()
	ps.over = true
	ps.mu.Unlock()
	ps.keep()
}

// peer is one incarnation of another agent.
type peer struct {
	of    *Peers
	agent coordinator.Agent

	calls, joins, polls *semaphore.Weighted // connections that are used: for what is answered soon, for members of groups, for Fetch
	unreachable         atomic.Bool         // as far as is known

	gone context.Context // ends with the agent
	end  context.CancelFunc

	mu    sync.Mutex
	idle  []*conn // the one used last is behind
	pipes [pipesMax]*pipe
}

func newPeer(of *Peers, a coordinator.Agent) *peer {
	p := &peer{
		of: of, agent: a,
		calls: semaphore.NewWeighted(callsMax), joins: semaphore.NewWeighted(waitsMax), polls: semaphore.NewWeighted(waitsMax),
	}
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

// dial makes a connection.
func (p *peer) dial(ctx context.Context) (*conn, error) {
	if p.gone.Err() != nil {
		return nil, errGone
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)() //nolint:contextcheck // the other agent's, which ends first
	nc, err := p.of.connect(ctx, p.agent)
	if err != nil {
		if !errors.Is(err, context.Canceled) && !p.unreachable.Swap(true) {
			p.of.log.Warn("another agent cannot be reached to forward requests to", "to", p.agent.Node, "address", p.agent.Peer, "err", err)
		}
		return nil, err
	}
	if p.unreachable.Swap(false) {
		p.of.log.Info("another agent can be reached again", "to", p.agent.Node, "address", p.agent.Peer)
	}
	c := &conn{nc: nc, from: bufio.NewReaderSize(nc, readBytes)}
	c.stop = context.AfterFunc(p.gone, func() { _ = nc.Close() }) //nolint:contextcheck // the connection outlives the request
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

// exchange sends a frame and returns the answer, without its size; long says that this may wait for others.
func (p *peer) exchange(ctx context.Context, frame []byte, long bool) ([]byte, error) {
	slots := p.joins
	if !long {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
		slots = p.calls
	}
	r, err := p.begin(ctx, frame, slots)
	if err != nil {
		return nil, err
	}
	b := make([]byte, r.size)
	return b, r.read(b)
}

// reply is an answer that has begun to come, on a connection that carries nothing else until it is read or dropped.
type reply struct {
	peer  *peer
	conn  *conn
	slots *semaphore.Weighted
	size  int // of what comes
}

// begin sends a frame and waits until the answer begins to come, or ctx ends.
func (p *peer) begin(ctx context.Context, frame []byte, slots *semaphore.Weighted) (*reply, error) {
	if err := slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	c, err := p.take(ctx)
	if err != nil {
		slots.Release(1)
		return nil, err
	}
	r := &reply{peer: p, conn: c, slots: slots}
	stop := context.AfterFunc(ctx, func() { _ = c.nc.Close() })
	if err = c.write(frame); err == nil {
		r.size, err = c.size()
	}
	if !stop() || err != nil {
		r.drop()
		return nil, errors.Join(err, ctx.Err())
	}
	return r, nil
}

// read reads the answer, which b has the size of, and gives the connection back.
func (r *reply) read(b []byte) error {
	defer r.slots.Release(1)
	err := r.conn.nc.SetReadDeadline(time.Now().Add(stall))
	if err == nil {
		_, err = io.ReadFull(r.conn.from, b)
	}
	if err == nil {
		err = r.conn.nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		r.conn.close()
		return err
	}
	r.peer.give(r.conn)
	return nil
}

// drop gives the answer up.
func (r *reply) drop() {
	r.conn.close()
	r.slots.Release(1)
}

// write writes a frame, which must be taken in time.
func (c *conn) write(frame []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(stall)); err != nil {
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
