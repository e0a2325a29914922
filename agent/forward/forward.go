// Package forward lets any agent answer any request, for clients that reach the cluster through a load balancer and so cannot choose the agent.
//
// [Forwarder] stands between the server and the APIs of this agent. A request that concerns partitions or groups is taken apart by who leads
// them; each part goes to its leader, of which this agent may be one; the answers are put together in the order of the request:
//
//	server -> Forwarder -> split -> this agent's APIs             -> merge -> answer
//	                             -> another agent's, over Kafka   ->
//	          ^                                                   |
//	          +----- parts whose leader has moved, again ---------+
//
// A client can do nothing with NOT_LEADER_OR_FOLLOWER or NOT_COORDINATOR, since there is one broker for it. So parts that are refused for that, or whose
// agent is gone, are sent again as soon as the view knows better, within the time that the request has; to the client a move is a delay. What nobody leads, or whose leader
// cannot be reached, is asked of this agent's APIs: they refuse it as it has to be refused.
//
// What one agent forwards another never forwards again: requests that come from an agent ([server.Server.ServeAgent]) are
// marked ([server.Request].Forwarded). Two agents that take each other for a leader refuse each other's requests and look again.
//
// # Connections
//
// An agent serves the requests of a connection one after the other. So most requests have a connection each while they are under way, from a pool. Produce
// must keep the order of its client's requests, several of which may be under way: it goes through one of a few pipes, always the
// same for one client; see produce.go. Fetch keeps a connection to a leader that has nothing yet from one request of its client to the next; see fetch.go.
//
// # What is not kept
//
// Leader epochs that clients send are left out: a client that has not noticed a move is served all the same. Fetch sessions are not given, hints at
// leaders and at closer replicas are taken out.
package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// Config is what an operator decides.
type Config struct {
	Self coordinator.LogID // this agent's incarnation
	// BytesMax bounds the bytes of Produce requests, and of answers to Fetch, that are held for clients, each.
	BytesMax int64
}

// Deps is what a forwarder works with.
type Deps struct {
	View    *coordinator.View
	Local   server.Handler // this agent's APIs
	Peers   *Peers
	Kick    <-chan struct{} // tells that something changed about agents or shards
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Forwarder answers requests wherever their partitions and groups are led. It implements [server.Handler]. [Forwarder.Run] must run beside it.
type Forwarder struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	buffers server.Buffers
	lanes   atomic.Uint32 // given to connections so far
	frames  atomic.Int32  // correlation id of the last frame that was forwarded

	produced, fetched *semaphore.Weighted // bytes that are held

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something about agents or shards changed
}

// New returns a forwarder.
func New(cfg Config, deps Deps) *Forwarder {
	return &Forwarder{
		cfg: cfg, deps: deps, metrics: newMetrics(deps.Metrics), changed: make(chan struct{}),
		produced: semaphore.NewWeighted(cfg.BytesMax), fetched: semaphore.NewWeighted(cfg.BytesMax),
	}
}

var _ server.Handler = (*Forwarder)(nil)

// Run follows what changes about agents and shards until ctx ends. An agent that is not registered any more answers nothing: whoever waits for it is told at once, and asks
// its successor.
func (f *Forwarder) Run(ctx context.Context) error {
	for {
		select {
		case <-f.deps.Kick:
		case <-ctx.Done():
			return ctx.Err()
		}
		f.deps.Peers.keep()
		f.mu.Lock()
		close(f.changed)
		f.changed = make(chan struct{})
		f.mu.Unlock()
	}
}

// Serve implements [server.Handler].
func (f *Forwarder) Serve(ctx context.Context, r *server.Request) (server.Answer, error) {
	k, ok := kinds[r.Key]
	if r.Forwarded || !ok {
		return f.deps.Local.Serve(ctx, r)
	}
	req, err := wire.DecodeRequest(r.Header, r.Body)
	if err != nil {
		return nil, err
	}
	return k(f, ctx, r, req)
}

// kind serves the requests of an API.
type kind func(f *Forwarder, ctx context.Context, r *server.Request, req kmsg.Request) (server.Answer, error)

// kinds are the APIs that concern partitions, groups or transactional ids.
var kinds = map[protocol.Key]kind{
	protocol.KeyProduce: (*Forwarder).produce,
	protocol.KeyFetch:   (*Forwarder).fetch,

	protocol.KeyListOffsets:          spreads(listOffsets),
	protocol.KeyOffsetForLeaderEpoch: spreads(offsetForLeaderEpoch),
	protocol.KeyDeleteRecords:        spreads(deleteRecords),
	protocol.KeyDescribeProducers:    spreads(describeProducers),

	protocol.KeyJoinGroup:      spreads(joinGroup),
	protocol.KeySyncGroup:      spreads(syncGroup),
	protocol.KeyHeartbeat:      spreads(heartbeat),
	protocol.KeyLeaveGroup:     spreads(leaveGroup),
	protocol.KeyOffsetCommit:   spreads(offsetCommit),
	protocol.KeyOffsetDelete:   spreads(offsetDelete),
	protocol.KeyOffsetFetch:    spreads(offsetFetch),
	protocol.KeyDescribeGroups: spreads(describeGroups),
	protocol.KeyDeleteGroups:   spreads(deleteGroups),

	protocol.KeyInitProducerID:       (*Forwarder).initProducerID,
	protocol.KeyAddPartitionsToTxn:   spreads(addPartitionsToTxn),
	protocol.KeyAddOffsetsToTxn:      spreads(addOffsetsToTxn),
	protocol.KeyEndTxn:               spreads(endTxn),
	protocol.KeyTxnOffsetCommit:      spreads(txnOffsetCommit),
	protocol.KeyWriteTxnMarkers:      spreads(writeTxnMarkers),
	protocol.KeyDescribeTransactions: spreads(describeTransactions),

	protocol.KeyListGroups:       everywhere(mergeGroups),
	protocol.KeyListTransactions: everywhere(mergeTransactions),
	protocol.KeyDescribeLogDirs:  everywhere(mergeLogDirs),
}

// connection is what is kept of a client's connection from one request to the next. Its requests are served one after the other.
type connection struct {
	lane  lane
	polls *polls
}

// of returns the connection's, which ends with ctx.
func (f *Forwarder) of(ctx context.Context, r *server.Request) *connection {
	if c, ok := (*r.State).(*connection); ok {
		return c
	}
	c := &connection{lane: newLane(f.lanes.Add(1)), polls: newPolls()}
	context.AfterFunc(ctx, c.polls.close)
	*r.State = c
	return c
}

// route is who leads what, at one moment.
type route struct {
	view   *coordinator.View
	shards uint32
	agents map[coordinator.LogID]coordinator.Agent
}

func (f *Forwarder) route() route {
	r := route{view: f.deps.View, shards: f.deps.View.Cluster().Shards, agents: make(map[coordinator.LogID]coordinator.Agent)}
	for _, a := range f.deps.View.Agents() {
		r.agents[a.Log] = a
	}
	return r
}

// place is where an item of a request belongs: a shard. One that belongs nowhere, because there is no such topic or partition, is this agent's to refuse.
type place struct {
	partition partition // of those items that are partitions
	shard     coordinator.ShardID
	known     bool
}

// partition names a partition for ever, as topics come and go.
type partition struct {
	topic  protocol.TopicID
	number int32
}

// topic finds a topic by name or by id.
func (r *route) topic(byID bool, name string, id protocol.TopicID) (t coordinator.Topic, found bool) {
	if byID {
		return r.view.TopicByID(id)
	}
	t, _, found = r.view.Topic(name)
	return t, found
}

// partition returns where a partition is led.
func (r *route) partition(t coordinator.Topic, found bool, number int32) place {
	if !found || number < 0 || number >= t.Partitions {
		return place{}
	}
	return place{partition: partition{t.ID, number}, shard: t.ShardOf(number, r.shards), known: true}
}

// group returns where a group is coordinated.
func (r *route) group(name string) place {
	return place{shard: coordinator.ShardOfName(name, r.shards), known: true}
}

// leader returns the agent that leads there, and since which change of the leader. If nobody does who can be reached, it is this one, which refuses what it does not lead.
func (f *Forwarder) leader(r *route, p place) (coordinator.Agent, int32) {
	if !p.known {
		return coordinator.Agent{Log: f.cfg.Self}, 0
	}
	shard, _ := r.view.Shard(p.shard)
	if a, ok := r.agents[shard.Owner]; ok && a.Peer != "" {
		return a, shard.Epoch
	}
	return coordinator.Agent{Log: f.cfg.Self}, shard.Epoch
}

// The wait before a part that was refused is sent again doubles each time: that its leader has begun to lead shows in no view.
const (
	pauseShortest = 10 * time.Millisecond
	pauseDoubles  = 4 // times
)

// pause is the wait after that many times before.
func pause(times int) time.Duration { return pauseShortest << min(times, pauseDoubles) }

// wait waits until something about agents or shards has changed since the channel was taken, for a while that grows with the number of times before.
func wait(ctx context.Context, changed <-chan struct{}, times int) {
	timer := time.NewTimer(pause(times))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// change returns a channel that is closed when something about agents or shards changes.
func (f *Forwarder) change() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// left reports whether the server drains, or the client is gone.
func left(ctx context.Context, r *server.Request) bool {
	return ctx.Err() != nil || isClosed(r.Leave)
}

// ask has an agent answer a request; long says that it may wait for others.
func (f *Forwarder) ask(ctx context.Context, r *server.Request, to coordinator.Agent, req kmsg.Request, long bool) (kmsg.Response, error) {
	if to.Log == f.cfg.Self {
		return f.askLocal(ctx, r, req)
	}
	f.metrics.forwarded.WithLabelValues(r.Key.String()).Inc()
	if long { // this agent drains: the client tries again elsewhere
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-r.Leave:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	id := f.frames.Add(1)
	b, err := f.deps.Peers.of(to).exchange(ctx, encode(nil, r, req, id), long)
	if err != nil {
		f.deps.Log.Debug("a part of a request was not answered", "api", r.Key, "node", to.Node, "err", err)
		return nil, err
	}
	return decode(req, id, b)
}

// askLocal has this agent answer.
func (f *Forwarder) askLocal(ctx context.Context, r *server.Request, req kmsg.Request) (kmsg.Response, error) {
	local := *r
	local.Body, local.Forwarded = req.AppendTo(nil), true
	a, err := f.deps.Local.Serve(ctx, &local)
	if err != nil {
		return nil, err
	}
	defer a.Release()
	if ready := a.Ready(); ready != nil {
		if err := await(ctx, ready); err != nil {
			return nil, err
		}
	}
	return decode(req, r.CorrelationID, encoded(a))
}

const sizeBytes, correlationBytes = 4, 4

// encoded returns an answer that is ready, without its size.
func encoded(a server.Answer) []byte {
	bufs, _ := a.AppendTo(nil, nil)
	return bytes.Join(bufs, nil)[sizeBytes:]
}

// isClosed reports whether a channel is closed that nothing is sent on.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// await waits until done is closed. What was done by the end of ctx counts.
func await(ctx context.Context, done <-chan struct{}) error {
	if isClosed(done) {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// encode appends the frame of a request that is forwarded for a client, under a correlation id that no other frame has.
func encode(dst []byte, r *server.Request, req kmsg.Request, correlationID int32) []byte {
	client := server.ForwardedID(r.Client.Host, r.ClientID)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID(client)).AppendRequest(dst, req, correlationID)
}

// decode reads the answer to a request, without its size. The response refers to b.
func decode(req kmsg.Request, correlationID int32, b []byte) (kmsg.Response, error) {
	key := protocol.Key(req.Key())
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	header := correlationBytes
	if resp.IsFlexible() {
		header++ // no tagged fields
	}
	if len(b) < header || int32(binary.BigEndian.Uint32(b)) != correlationID {
		return nil, fmt.Errorf("an answer of %d bytes that is not one to %v %d", len(b), key, correlationID)
	}
	if err := resp.ReadFrom(b[header:]); err != nil {
		return nil, fmt.Errorf("answer to %v of %d bytes: %w", key, len(b), err)
	}
	return resp, nil
}
