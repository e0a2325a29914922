package txns_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

const (
	shards   = 4
	patience = 10 * time.Second
)

// world has a coordinator of all shards on the agent of log 1, and two agents that lead partitions, whose answers the test gives.
type world struct {
	t     *testing.T
	kv    coordinator.KV
	view  *coordinator.View
	c     *txns.Coordinator
	topic coordinator.Topic
	held  *heldLedger
	asked chan question

	mu     sync.Mutex
	proves error
	nextID protocol.ProducerID
}

// question is a request to an agent, which waits for its answer.
type question struct {
	to     coordinator.LogID
	req    *kmsg.WriteTxnMarkersRequest
	answer chan<- protocol.ErrorCode
}

// heldLedger holds writes until they are let through.
type heldLedger struct {
	*ledger.Ledger
	mu      sync.Mutex
	holding bool
	held    []func()
	wrote   chan struct{}
}

func (h *heldLedger) Write(shard coordinator.ShardID, ops []coordinator.Op, done func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holding {
		h.held = append(h.held, func() { h.Ledger.Write(shard, ops, done) })
		h.wrote <- struct{}{}
		return
	}
	h.Ledger.Write(shard, ops, done)
}

func (h *heldLedger) hold(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = on
	for _, write := range h.held {
		write()
	}
	h.held = nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), asked: make(chan question, 100), nextID: 100,
		topic: coordinator.Topic{ID: protocol.TopicID{1}, Name: "t", Partitions: shards, Replication: 1},
	}
	w.put(coordinator.KeyCluster, coordinator.Cluster{ID: "c", Shards: shards, Generation: 1})
	w.put(coordinator.KeyTopic("t"), w.topic)
	for n := range int32(3) {
		w.put(coordinator.KeyAgent(n+1), coordinator.Agent{Node: n + 1, Log: coordinator.LogID(n + 1), State: coordinator.AgentServing, Peer: "x"})
	}
	for s := range coordinator.ShardID(shards) {
		w.own(s, 2)
	}
	log := slog.New(slog.DiscardHandler)
	w.view = coordinator.NewView(w.kv, coordinator.ViewConfig{
		OnMember: func() {}, OnCommit: func(coordinator.CommitItem) {}, OnTopic: func(coordinator.Topic, bool) {}, Log: log,
	})
	w.held = &heldLedger{Ledger: ledger.New(w.kv, func(coordinator.ShardID) {}), wrote: make(chan struct{}, 100)}
	cfg := txns.DefaultConfig(shards)
	cfg.WaitMax, cfg.Expiration = 2*time.Second, time.Nanosecond
	w.c = txns.New(cfg, txns.Deps{
		KV: w.kv, Ledger: w.held, View: w.view, Ask: w.ask, Now: time.Now, Log: log,
		NextID: func(context.Context) (protocol.ProducerID, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.nextID++
			return w.nextID, nil
		},
		Prove: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.proves
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.view.Run(ctx) })
	running.Go(func() { w.held.Run(ctx) })
	running.Go(func() { _ = w.c.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	if err := w.view.Wait(ctx, 1); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) put(key string, value any) int64 {
	w.t.Helper()
	res, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(value)}})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Revision
}

// own has a log lead a shard, and the view know it, if there is one.
func (w *world) own(s coordinator.ShardID, log coordinator.LogID) {
	w.t.Helper()
	revision := w.put(coordinator.KeyShard(s), coordinator.Shard{Owner: log, Node: int32(log), Epoch: 1})
	if w.view != nil {
		if err := w.view.Wait(w.t.Context(), revision); err != nil {
			w.t.Fatal(err)
		}
	}
}

// adopt has the coordinator lead all shards in that epoch.
func (w *world) adopt(epoch int32) {
	w.t.Helper()
	for s := range coordinator.ShardID(shards) {
		guard := coordinator.Write{Owner: 1, Epoch: epoch}
		w.held.Adopt(s, guard, w.put(coordinator.KeyWrite(s), guard))
		w.c.Adopt(s, epoch)
	}
}

// ask is how the coordinator reaches other agents.
func (w *world) ask(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error) {
	markers := req.(*kmsg.WriteTxnMarkersRequest)
	answer := make(chan protocol.ErrorCode, 1)
	w.asked <- question{to.Log, markers, answer}
	var code protocol.ErrorCode
	select {
	case code = <-answer:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if code == protocol.NetworkException {
		return nil, errors.New("no answer")
	}
	resp := kmsg.NewPtrWriteTxnMarkersResponse()
	for _, m := range markers.Markers {
		out := kmsg.WriteTxnMarkersResponseMarker{ProducerID: m.ProducerID}
		for _, t := range m.Topics {
			topic := kmsg.WriteTxnMarkersResponseMarkerTopic{Topic: t.Topic}
			for _, n := range t.Partitions {
				topic.Partitions = append(topic.Partitions, kmsg.WriteTxnMarkersResponseMarkerTopicPartition{Partition: n, ErrorCode: int16(code)})
			}
			out.Topics = append(out.Topics, topic)
		}
		resp.Markers = append(resp.Markers, out)
	}
	return resp, nil
}

// question waits for the next request to an agent.
func (w *world) question() question {
	w.t.Helper()
	select {
	case q := <-w.asked:
		return q
	case <-time.After(patience):
		w.t.Fatal("no markers are sent")
		return question{}
	}
}

func (w *world) silent(while time.Duration) {
	w.t.Helper()
	select {
	case q := <-w.asked:
		w.t.Errorf("markers are sent to log %s: %+v", q.to, q.req.Markers)
	case <-time.After(while):
	}
}

// producer is a client of the second version of the protocol.
type producer struct {
	*world
	id    protocol.ProducerID
	epoch int16
}

func (w *world) init() *producer {
	w.t.Helper()
	req := kmsg.NewPtrInitProducerIDRequest()
	id := "p"
	req.Version, req.TransactionalID, req.TransactionTimeoutMillis = 5, &id, 60_000
	resp := w.c.InitProducerID(w.t.Context(), req)
	if resp.ErrorCode != 0 {
		w.t.Fatalf("InitProducerId: %v", protocol.ErrorCode(resp.ErrorCode))
	}
	return &producer{w, protocol.ProducerID(resp.ProducerID), resp.ProducerEpoch}
}

func (p *producer) add(topic string, partition int32) protocol.ErrorCode {
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.Version = 5
	req.Transactions = []kmsg.AddPartitionsToTxnRequestTransaction{{
		TransactionalID: "p", ProducerID: int64(p.id), ProducerEpoch: p.epoch,
		Topics: []kmsg.AddPartitionsToTxnRequestTransactionTopic{{Topic: topic, Partitions: []int32{partition}}},
	}}
	return protocol.ErrorCode(p.c.AddPartitions(p.t.Context(), req).Transactions[0].Topics[0].Partitions[0].ErrorCode)
}

func (p *producer) end(commit bool) protocol.ErrorCode {
	req := kmsg.NewPtrEndTxnRequest()
	req.Version, req.TransactionalID, req.ProducerID, req.ProducerEpoch, req.Commit = 5, "p", int64(p.id), p.epoch, commit
	resp := p.c.EndTxn(p.t.Context(), req)
	if resp.ErrorCode == 0 {
		p.epoch = resp.ProducerEpoch
	}
	return protocol.ErrorCode(resp.ErrorCode)
}

func (p *producer) want(what string, got, want protocol.ErrorCode) {
	p.t.Helper()
	if got != want {
		p.t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// TestMarkersFollowTheDecision holds the write of a decision back, and wants no marker before it is durable; then it has the leader of the partition be another one.
func TestMarkersFollowTheDecision(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	p := w.init()
	p.want("add", p.add("t", 0), protocol.None)
	w.held.hold(true)
	ended := make(chan protocol.ErrorCode, 1)
	go func() { ended <- p.end(true) }()
	<-w.held.wrote
	w.silent(50 * time.Millisecond)
	w.held.hold(false)
	p.want("end", <-ended, protocol.None)
	q := w.question()
	if m := q.req.Markers[0]; q.to != 2 || !m.Committed || m.TransactionVersion != 2 || m.ProducerEpoch != 1 || m.CoordinatorEpoch != 1 || m.Topics[0].Topic != "t" {
		t.Errorf("markers for log %s: %+v", q.to, m)
	}
	// It is not the leader any more, and what it says does not count as a marker that is written. Meanwhile the next transaction waits.
	w.own(w.topic.ShardOf(0, shards), 3)
	q.answer <- protocol.NotLeaderOrFollower
	if q = w.question(); q.to != 3 {
		t.Errorf("the marker is sent to log %s again", q.to)
	}
	p.want("add", p.add("t", 1), protocol.ConcurrentTransactions)
	q.answer <- protocol.NetworkException // it may have it, or not
	q = w.question()
	q.answer <- protocol.None
	p.want("add", p.add("t", 1), protocol.None)
	w.silent(50 * time.Millisecond)
}

// TestTakeover has the coordinator lead its shards anew, in each state of a transaction.
func TestTakeover(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	p := w.init()
	p.want("add", p.add("t", 0), protocol.None)
	// Offsets were sent to a group: its coordinator has them, and told the one before.
	group := coordinator.ShardOfName("g", shards)
	w.put(coordinator.KeyPending(group, "g", p.id), coordinator.PendingOffsets{TransactionalID: "p", Epoch: protocol.ProducerEpoch(p.epoch)})
	w.put(coordinator.KeyPending(group, "other", p.id+1), coordinator.PendingOffsets{TransactionalID: "q"})
	w.adopt(2)
	p.want("end", p.end(true), protocol.None)
	q := w.question()
	found := make(map[string]int32)
	for _, topic := range q.req.Markers[0].Topics {
		found[topic.Topic] = topic.Partitions[0]
	}
	if len(found) != 2 || found[txns.OffsetsTopic] != int32(group) {
		t.Errorf("markers are sent to %v, want the group's shard %d among them", found, group)
	}
	// The agent loses its shards before the marker is answered, and has them again: the marker is sent again.
	for s := range coordinator.ShardID(shards) {
		w.c.Resign(s)
	}
	p.want("a request to who does not coordinate", p.add("t", 0), protocol.NotCoordinator)
	q.answer <- protocol.None
	w.silent(50 * time.Millisecond)
	w.adopt(3)
	if q = w.question(); q.req.Markers[0].CoordinatorEpoch != 3 || !q.req.Markers[0].Committed {
		t.Errorf("after a takeover: %+v", q.req.Markers[0])
	}
	q.answer <- protocol.None
	p.want("add", p.add("t", 0), protocol.None)
}

// TestResignWhileWriting has requests wait for a write when the shards are lost.
func TestResignWhileWriting(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	p := w.init()
	w.held.hold(true)
	answers := make(chan protocol.ErrorCode, 2)
	for n := range int32(2) {
		go func() { answers <- p.add("t", n) }()
	}
	<-w.held.wrote
	for s := range coordinator.ShardID(shards) {
		w.c.Resign(s)
	}
	for range 2 {
		p.want("add", <-answers, protocol.NotCoordinator)
	}
	w.held.hold(false)
}

// TestUnproved holds that what needs no write is not said by an agent that may have lost the id.
func TestUnproved(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	p := w.init()
	p.want("add", p.add("t", 0), protocol.None)
	w.mu.Lock()
	w.proves = errors.New("no quorum")
	w.mu.Unlock()
	p.want("add again", p.add("t", 0), protocol.NotCoordinator)
	p.want("a group", p.add(txns.OffsetsTopic, 1), protocol.NotCoordinator)
	p.epoch--
	p.want("a producer that is fenced", p.end(true), protocol.NotCoordinator)
	p.epoch++
	p.want("a write proves itself", p.add("t", 1), protocol.None)
}

// TestComesBack has a producer come while its id expires, which nobody else did: whatever comes first, there is one id, and it is the producer's.
func TestComesBack(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	first := w.init()
	w.held.hold(true)
	w.c.Expire()
	<-w.held.wrote
	back := make(chan *producer, 1)
	go func() { back <- w.init() }()
	w.held.hold(false)
	second := <-back
	second.want("add", second.add("t", 0), protocol.None)
	first.want("the one before", first.add("t", 0), protocol.InvalidProducerIDMapping)
}

// TestTopicIsGone deletes a topic with an open transaction: its partitions need no markers.
func TestTopicIsGone(t *testing.T) {
	w := newWorld(t)
	w.adopt(1)
	p := w.init()
	p.want("add", p.add("t", 0), protocol.None)
	res, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyTopic("t"), Delete: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.view.Wait(t.Context(), res.Revision); err != nil {
		t.Fatal(err)
	}
	p.want("end", p.end(false), protocol.None)
	state := func() txn.State {
		req := kmsg.NewPtrDescribeTransactionsRequest()
		req.TransactionalIDs = []string{"p"}
		s, err := txn.ParseState(w.c.DescribeTransactions(t.Context(), req).TransactionStates[0].State)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for end := time.Now().Add(patience); state() != txn.CompleteAbort; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the transaction stays in %v", state())
		}
	}
	w.silent(0)
}
