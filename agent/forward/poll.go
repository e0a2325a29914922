package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// partKey names a partition as the client does: by topic name or, from version 13 on, by topic id.
type partKey struct {
	name   string
	id     protocol.TopicID
	number int32
}

// parts is what a leader says of partitions.
type parts map[partKey]wire.FetchPartition

// Fetched is the answer of this agent's APIs to Fetch, whose records need not be copied.
type Fetched interface {
	server.Answer
	// Response returns the answer, which refers to records until Release.
	Response() *wire.FetchResponse
}

// poll is a Fetch that is under way with one leader. An answer is read only when somebody wants it: until then it takes no memory.
type poll struct {
	req    *kmsg.FetchRequest
	known  parts         // what the leader said before
	ready  chan struct{} // closed when an answer has begun to come, or none will
	err    error
	cancel context.CancelFunc

	peer *peer // nil if it is this agent
	conn *conn // at size bytes of answer; nil with an error
	size int

	leave  chan struct{} // of this agent: closed to have the answer at once
	answer Fetched
}

func newPoll(req *kmsg.FetchRequest, known parts) *poll {
	return &poll{req: req, known: known, ready: make(chan struct{})}
}

func (p *poll) isReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// askLocal asks this agent.
func (p *poll) askLocal(ctx context.Context, local server.Handler, r *server.Request, wake chan<- struct{}) {
	p.leave, p.cancel = make(chan struct{}), func() {}
	r.Leave = p.leave
	go func() {
		defer signal(wake)
		defer close(p.ready)
		a, err := local.Serve(ctx, r)
		if err != nil {
			p.err = err
			return
		}
		p.answer = a.(Fetched)
	}()
}

// ask asks another agent. The poll may outlive the request that it is for, and ctx; see [poll.drop].
func (p *poll) ask(ctx context.Context, to *peer, frame []byte, wake chan<- struct{}) {
	ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.peer = to
	go func() {
		defer signal(wake)
		defer close(p.ready)
		if p.err = to.waits.Acquire(ctx, 1); p.err != nil {
			return
		}
		c, err := to.take(ctx)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = c.nc.Close() })
			if err = c.write(frame); err == nil {
				p.size, err = c.size()
			}
			if !stop() || err != nil {
				c.close()
				err = errors.Join(err, ctx.Err())
			}
		}
		if p.err = err; err != nil {
			to.waits.Release(1)
			return
		}
		p.conn = c
	}()
}

// drop gives a poll up.
func (p *poll) drop() {
	p.cancel()
	go func() {
		<-p.ready
		if p.conn != nil {
			p.conn.close()
			p.peer.waits.Release(1)
		}
	}()
}

// result is an answer and the memory that its records are in.
type result struct {
	parts   parts
	release func()
}

// errNoRoom says that too many answers are held for clients that have not taken them yet.
var errNoRoom = errors.New("no room for an answer")

// finish reads the answer of a poll that is ready. With wait it waits until there is room for it; else it may return errNoRoom, and can be called again.
func (p *poll) finish(ctx context.Context, f *Forwarder, wait bool) (*result, error) {
	if p.err != nil {
		p.cancel()
		return nil, p.err
	}
	if p.answer != nil {
		return &result{parts: localParts(p.answer.Response()), release: sync.OnceFunc(p.answer.Release)}, nil
	}
	held := min(int64(p.size), f.cfg.BytesMax)
	if wait {
		if err := f.fetched.Acquire(ctx, held); err != nil {
			p.drop()
			return nil, err
		}
	} else if !f.fetched.TryAcquire(held) {
		return nil, errNoRoom
	}
	buffer, b := f.buffers.Get(max(p.size, 1))
	b = b[:p.size]
	release := sync.OnceFunc(func() {
		f.buffers.Put(buffer)
		f.fetched.Release(held)
	})
	got, err := p.read(b)
	if err != nil {
		release()
		return nil, err
	}
	return &result{parts: got, release: release}, nil
}

// read reads the answer from the connection, which it gives back.
func (p *poll) read(b []byte) (parts, error) {
	defer p.cancel()
	defer p.peer.waits.Release(1)
	err := p.conn.nc.SetReadDeadline(time.Now().Add(writeStall))
	if err == nil {
		_, err = io.ReadFull(p.conn.from, b)
	}
	if err == nil {
		err = p.conn.nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		p.conn.close()
		return nil, err
	}
	p.peer.give(p.conn)
	resp, err := decode(p.req, b)
	if err != nil {
		return nil, err
	}
	return remoteParts(resp.(*kmsg.FetchResponse))
}

func localParts(resp *wire.FetchResponse) parts {
	all := make(parts)
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for _, p := range t.Partitions {
			p.PreferredReadReplica, p.CurrentLeader = -1, nil
			all[partKey{name: t.Name, id: t.ID, number: p.Partition}] = p
		}
	}
	return all
}

// remoteParts refers to the bytes that the response was read from.
func remoteParts(resp *kmsg.FetchResponse) (parts, error) {
	if resp.ErrorCode != 0 {
		return nil, fmt.Errorf("fetch: %w", protocol.ErrorCode(resp.ErrorCode).Err())
	}
	all := make(parts)
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			from := &t.Partitions[j]
			p := wire.NewFetchPartition(from.Partition, protocol.ErrorCode(from.ErrorCode))
			p.HighWatermark, p.LastStableOffset = protocol.Offset(from.HighWatermark), protocol.Offset(from.LastStableOffset)
			p.LogStartOffset = protocol.Offset(from.LogStartOffset)
			if from.AbortedTransactions != nil {
				p.Aborted = make([]wire.AbortedTransaction, len(from.AbortedTransactions))
				for n, a := range from.AbortedTransactions {
					p.Aborted[n] = wire.AbortedTransaction{ProducerID: protocol.ProducerID(a.ProducerID), FirstOffset: protocol.Offset(a.FirstOffset)}
				}
			}
			if d := from.DivergingEpoch; d.EndOffset >= 0 {
				p.Diverging = &wire.EpochEnd{Epoch: protocol.LeaderEpoch(d.Epoch), EndOffset: protocol.Offset(d.EndOffset)}
			}
			if len(from.RecordBatches) > 0 {
				p.Records = [][]byte{from.RecordBatches}
			}
			all[partKey{name: t.Topic, id: t.TopicID, number: from.Partition}] = p
		}
	}
	return all, nil
}

// polls are those that a client's Fetch has left under way, one per leader at most. But for close, it belongs to the goroutine that serves the connection.
type polls struct {
	wake chan struct{} // holds a signal when a poll of this client has become ready

	mu     sync.Mutex
	parked map[coordinator.LogID]*poll
	over   bool
}

func newPolls() *polls {
	return &polls{wake: make(chan struct{}, 1), parked: make(map[coordinator.LogID]*poll)}
}

// adopt takes those up that ask for what the client wants now, and drops the others.
func (ps *polls) adopt(g *fetching) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, a := range g.asked {
		p := ps.parked[a.agent.Log]
		if p == nil || !same(p.req, g.part(a, 0)) {
			continue
		}
		delete(ps.parked, a.agent.Log)
		a.poll, a.known = p, p.known
		for _, i := range a.of {
			if known, ok := p.known[g.key(i)]; ok {
				g.parts[i] = known
			}
		}
	}
	for log, p := range ps.parked {
		p.drop()
		delete(ps.parked, log)
	}
}

// park keeps what is under way.
func (ps *polls) park(g *fetching) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, a := range g.asked {
		switch {
		case a.poll == nil:
		case ps.over:
			a.poll.drop()
		default:
			ps.parked[a.agent.Log] = a.poll
		}
		a.poll = nil
	}
}

// close drops all: the client is gone.
func (ps *polls) close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.over = true
	for log, p := range ps.parked {
		p.drop()
		delete(ps.parked, log)
	}
}

// same reports whether two requests to one leader want the same, in whatever order and within whatever time.
func same(a, b *kmsg.FetchRequest) bool {
	return a.Version == b.Version && a.MaxBytes == b.MaxBytes && a.MinBytes == b.MinBytes && a.IsolationLevel == b.IsolationLevel &&
		slices.Equal(wanted(a), wanted(b))
}

// wanted is what a request wants of one partition.
type wantedPart struct {
	key      partKey
	offset   int64
	bytesMax int32
	epoch    int32
}

func wanted(req *kmsg.FetchRequest) []wantedPart {
	var all []wantedPart
	for i := range req.Topics {
		t := &req.Topics[i]
		for _, p := range t.Partitions {
			all = append(all, wantedPart{partKey{t.Topic, t.TopicID, p.Partition}, p.FetchOffset, p.PartitionMaxBytes, p.LastFetchedEpoch})
		}
	}
	slices.SortFunc(all, func(a, b wantedPart) int {
		if c := strings.Compare(a.key.name, b.key.name); c != 0 {
			return c
		}
		if c := slices.Compare(a.key.id[:], b.key.id[:]); c != 0 {
			return c
		}
		return int(a.key.number) - int(b.key.number)
	})
	return all
}
