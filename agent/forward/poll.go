package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

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
	req           *kmsg.FetchRequest
	correlationID int32

	ready  chan struct{} // closed when an answer has begun to come, or none will
	err    error
	cancel context.CancelFunc

	reply *reply // of another agent; nil with an error

	leave  chan struct{} // of this agent: closed to have the answer at once
	answer Fetched
}

func newPoll(req *kmsg.FetchRequest, correlationID int32) *poll {
	return &poll{req: req, correlationID: correlationID, ready: make(chan struct{})}
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
	go func() {
		defer signal(wake)
		defer close(p.ready)
		p.reply, p.err = to.begin(ctx, frame, to.polls)
	}()
}

// drop gives a poll up.
func (p *poll) drop() {
	p.cancel()
	go func() {
		<-p.ready
		if p.reply != nil {
			p.reply.drop()
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
	held := min(int64(p.reply.size), f.cfg.BytesMax)
	if wait {
		if err := f.fetched.Acquire(ctx, held); err != nil {
			p.drop()
			return nil, err
		}
	} else if !f.fetched.TryAcquire(held) {
		return nil, errNoRoom
	}
	defer p.cancel()
	buffer, b := f.buffers.Get(max(p.reply.size, 1))
	b = b[:p.reply.size]
	res := &result{release: sync.OnceFunc(func() {
		f.buffers.Put(buffer)
		f.fetched.Release(held)
	})}
	err := p.reply.read(b)
	var resp kmsg.Response
	if err == nil {
		resp, err = decode(p.req, p.correlationID, b)
	}
	if err == nil {
		res.parts, err = remoteParts(resp.(*kmsg.FetchResponse))
	}
	if err != nil {
		res.release()
		return nil, err
	}
	return res, nil
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

// polls are those that a client's Fetch has left under way, one per leader at most, and what was said before. But for close, it belongs to the goroutine that
// serves the connection.
type polls struct {
	wake chan struct{} // holds a signal when a poll of this client has become ready
	last map[partition]wire.FetchPartition

	mu     sync.Mutex
	parked map[coordinator.LogID]*poll
	over   bool
}

func newPolls() *polls {
	return &polls{wake: make(chan struct{}, 1), last: make(map[partition]wire.FetchPartition), parked: make(map[coordinator.LogID]*poll)}
}

// known returns what was said of a partition last, without records; NOT_LEADER_OR_FOLLOWER if nothing was.
func (ps *polls) known(at place, number int32) wire.FetchPartition {
	if p, ok := ps.last[at.partition]; ok && at.known {
		return p
	}
	return wire.NewFetchPartition(number, protocol.NotLeaderOrFollower)
}

// know remembers what is said of partitions. Clients leave some out for a while.
func (ps *polls) know(g *fetching) {
	if len(ps.last) > 2*len(g.parts)+lastMin {
		clear(ps.last)
	}
	for i, p := range g.parts {
		if p.ErrorCode == protocol.None && p.Diverging == nil && g.places[i].known {
			p.Records, p.Aborted = nil, nil
			ps.last[g.places[i].partition] = p
		}
	}
}

// lastMin is of how many partitions at least a client's connection keeps what was said.
const lastMin = 100

// adopt takes those up that ask for what the client wants now, and drops the others.
func (ps *polls) adopt(g *fetching) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, a := range g.asked {
		if p := ps.parked[a.agent.Log]; p != nil && serves(p.req, g.part(a, 0)) {
			delete(ps.parked, a.agent.Log)
			a.poll, a.said = p, true
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

// serves reports whether what is asked of a leader is what is wanted, in whatever order and within whatever time, and not more.
func serves(asked, want *kmsg.FetchRequest) bool {
	return asked.Version == want.Version && asked.MaxBytes <= want.MaxBytes && asked.MinBytes <= want.MinBytes && asked.IsolationLevel == want.IsolationLevel &&
		slices.Equal(wanted(asked), wanted(want))
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
