package forward_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/forward"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

const (
	shards = 6
	agents = 3
)

// patience bounds every wait of a test.
const patience = 20 * time.Second

// world is a cluster of fake agents, of which the first forwards. Agent n leads the shards that are n-1 modulo three, until they are moved.
type world struct {
	t       *testing.T
	kv      coordinator.KV
	view    *coordinator.View
	f       *forward.Forwarder
	agents  [agents]*fake
	metrics *prometheus.Registry
	topic   coordinator.Topic
	kick    chan struct{}

	late  atomic.Int64    // how much the forwarder's clock is ahead
	ctx   context.Context // of the client's connection
	state any
	leave chan struct{}
	last  int32
}

func newWorld(t *testing.T) *world {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() { // last: everybody has been told to end
		for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				all := make([]byte, 1<<20)
				t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, all[:runtime.Stack(all, true)])
				return
			}
		}
	})
	w := &world{
		t: t, kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), metrics: prometheus.NewRegistry(), kick: make(chan struct{}, 1),
		ctx: t.Context(), leave: make(chan struct{}),
		topic: coordinator.Topic{ID: protocol.TopicID{1}, Name: "t", Partitions: shards, Replication: 1},
	}
	w.put(coordinator.KeyCluster, coordinator.Cluster{ID: "c", Shards: shards, Generation: 1})
	w.put(coordinator.KeyTopic("t"), w.topic)
	for n := range agents {
		w.agents[n] = newFake(w, int32(n+1))
		w.agents[n].listen()
		w.register(n)
	}
	for s := range coordinator.ShardID(shards) {
		w.own(s, int(s)%agents)
		w.agents[int(s)%agents].lead(s, true)
	}
	w.view = coordinator.NewView(w.kv, coordinator.ViewConfig{
		OnMember: func() {
			select {
			case w.kick <- struct{}{}:
			default:
			}
		}, OnCommit: func(coordinator.CommitItem) {}, OnTopic: func(coordinator.Topic, bool) {}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = w.view.Run(ctx) })
	peers := forward.NewPeers(w.view, dial, slog.New(slog.DiscardHandler))
	w.f = forward.New(forward.Config{Self: 1, BytesMax: 64 << 20}, forward.Deps{
		View: w.view, Local: w.agents[0], Peers: peers, Kick: w.kick, Now: func() time.Time { return time.Now().Add(time.Duration(w.late.Load())) }, Log: slog.New(slog.DiscardHandler), Metrics: w.metrics,
	})
	running.Go(func() { _ = w.f.Run(ctx) })
	running.Go(func() { _ = peers.Run(ctx, nil) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	w.settled()
	return w
}

// dial connects to a fake agent.
func dial(ctx context.Context, a coordinator.Agent) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", a.Peer)
}

// put writes a record.
func (w *world) put(key string, v any) {
	w.t.Helper()
	if _, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(v)}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) register(n int) {
	a := w.agents[n]
	w.put(coordinator.KeyAgent(a.node), coordinator.Agent{
		Node: a.node, Log: coordinator.LogID(a.node), Peer: a.address, State: coordinator.AgentServing,
	})
}

// own has the coordinator say who owns a shard.
func (w *world) own(s coordinator.ShardID, n int) {
	w.put(coordinator.KeyShard(s), coordinator.Shard{Owner: coordinator.LogID(n + 1), Node: int32(n + 1), Epoch: 1})
}

// settled waits until the view has seen everything.
func (w *world) settled() {
	w.t.Helper()
	_, revision, err := w.kv.Get(w.t.Context(), coordinator.KeyCluster)
	if err == nil {
		err = w.view.Wait(w.t.Context(), revision)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// shard is where a partition is led.
func (w *world) shard(partition int32) coordinator.ShardID { return w.topic.ShardOf(partition, shards) }

// leader is the agent, by index, that leads a partition at first.
func (w *world) leader(partition int32) int { return int(w.shard(partition)) % agents }

// partitionsOf are those that an agent leads at first.
func (w *world) partitionsOf(n int) []int32 {
	var all []int32
	for p := range int32(shards) {
		if w.leader(p) == n {
			all = append(all, p)
		}
	}
	return all
}

// request is the client's next.
func (w *world) request(req kmsg.Request) *server.Request {
	w.last++
	return &server.Request{
		Header: wire.Header{Key: protocol.Key(req.Key()), Version: req.GetVersion(), CorrelationID: w.last, ClientID: "client"},
		Body:   req.AppendTo(nil), Client: server.Client{Host: "/10.0.0.1"}, Leave: w.leave, State: &w.state,
	}
}

// serve has the forwarder begin to serve a request of the client.
func (w *world) serve(req kmsg.Request) server.Answer {
	w.t.Helper()
	a, err := w.f.Serve(w.ctx, w.request(req))
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// ask has the forwarder answer a request.
func (w *world) ask(req kmsg.Request) kmsg.Response {
	w.t.Helper()
	return w.finish(req, w.serve(req))
}

// finish waits for an answer.
func (w *world) finish(req kmsg.Request, a server.Answer) kmsg.Response {
	w.t.Helper()
	if ready := a.Ready(); ready != nil {
		select {
		case <-ready:
		case <-time.After(patience):
			w.t.Fatal("no answer")
		}
	}
	bufs, _ := a.AppendTo(nil, nil)
	frame := bytes.Join(bufs, nil)
	a.Release()
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	header := 8
	if resp.IsFlexible() {
		header++
	}
	if err := resp.ReadFrom(frame[header:]); err != nil {
		w.t.Fatalf("answer: %v", err)
	}
	return resp
}

// fake is an agent that leads some shards. Of what it leads it answers with its node id where there is a place for it.
type fake struct {
	w       *world
	node    int32
	address string
	stop    func()

	mu       sync.Mutex
	shards   map[coordinator.ShardID]bool
	seen     []string                // requests, as "API node"
	logs     map[int32][]int32       // base sequences of the batches of each partition
	high     map[int32]int64         // high watermark of each partition, for Fetch
	bytesMax int32                   // of the last Fetch
	changed  chan struct{}           // closed and replaced when high changes
	fail     func(protocol.Key) bool // ends the connection of a forwarded request
	deaf     bool                    // answers no Fetch
	hold     chan struct{}           // Produce waits for it
	refused  protocol.ErrorCode      // Produce answers it for every partition that is led; 0 to append
}

func newFake(w *world, node int32) *fake {
	return &fake{
		w: w, node: node, shards: make(map[coordinator.ShardID]bool), logs: make(map[int32][]int32), high: make(map[int32]int64),
		changed: make(chan struct{}),
	}
}

// listen lets others reach the agent.
func (a *fake) listen() {
	var lc net.ListenConfig
	l, err := lc.Listen(a.w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		a.w.t.Fatal(err)
	}
	a.address = l.Addr().String()
	s := server.New(server.Defaults(), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	s.Open(a)
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.w.t.Context()))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.ServeAgent(ctx, c) })
		}
	})
	a.stop = sync.OnceFunc(func() {
		cancel()
		_ = l.Close()
		serving.Wait()
	})
	a.w.t.Cleanup(a.stop)
}

func (a *fake) lead(s coordinator.ShardID, leads bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shards[s] = leads
}

// grow makes a partition longer.
func (a *fake) grow(partition int32, by int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.high[partition] += by
	close(a.changed)
	a.changed = make(chan struct{})
}

// count is how many requests of an API the agent has seen.
func (a *fake) count(api string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, s := range a.seen {
		if s == api {
			n++
		}
	}
	return n
}

func (a *fake) log(partition int32) []int32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.logs[partition])
}

// partition is the answer for a partition that the agent may not lead.
func (a *fake) partition(number int32) protocol.ErrorCode {
	if number >= shards {
		return protocol.UnknownTopicOrPartition
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.shards[a.w.shard(number)] {
		return protocol.NotLeaderOrFollower
	}
	return protocol.None
}

func (a *fake) group(name string) int16 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.shards[coordinator.ShardOfName(name, shards)] {
		return int16(protocol.NotCoordinator)
	}
	return 0
}

// Serve implements server.Handler.
func (a *fake) Serve(ctx context.Context, r *server.Request) (server.Answer, error) {
	if !r.Forwarded || r.Client.Host != "/10.0.0.1" || r.ClientID != "client" {
		return nil, fmt.Errorf("request of %s, %q is not a forwarded one", r.Client.Host, r.ClientID)
	}
	req, err := wire.DecodeRequest(r.Header, r.Body)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.seen = append(a.seen, r.Key.String())
	fail, hold := a.fail, a.hold
	a.mu.Unlock()
	if fail != nil && fail(r.Key) {
		return nil, fmt.Errorf("the test ends the connection")
	}
	var resp kmsg.Response
	switch req := req.(type) {
	case *kmsg.FetchRequest:
		return a.fetch(ctx, r, req), nil
	case *kmsg.ProduceRequest:
		resp = a.produce(req)
	default:
		resp = a.answer(req)
	}
	resp.SetVersion(r.Version)
	answer := server.Message(r.CorrelationID, resp)
	if hold != nil {
		answer = &held{answer, hold}
	}
	return answer, nil
}

// held is an answer that is ready when the test says.
type held struct {
	server.Answer
	ready chan struct{}
}

func (h *held) Ready() <-chan struct{} { return h.ready }

// produce appends batches in the order of their sequence numbers, which begin anywhere in each partition.
func (a *fake) produce(req *kmsg.ProduceRequest) kmsg.Response {
	resp := kmsg.NewPtrProduceResponse()
	for _, t := range req.Topics {
		out := kmsg.ProduceResponseTopic{Topic: t.Topic, TopicID: t.TopicID}
		for _, p := range t.Partitions {
			sequence := int32(binary.BigEndian.Uint32(p.Records[53:]))
			answer := kmsg.NewProduceResponseTopicPartition()
			answer.Partition = p.Partition
			answer.BaseOffset, answer.ErrorCode = a.append(p.Partition, sequence)
			out.Partitions = append(out.Partitions, answer)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp
}

func (a *fake) append(partition, sequence int32) (int64, int16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	log := a.logs[partition]
	switch {
	case partition >= shards:
		return -1, int16(protocol.UnknownTopicOrPartition)
	case !a.shards[a.w.shard(partition)]:
		return -1, int16(protocol.NotLeaderOrFollower)
	case a.refused != 0:
		return -1, int16(a.refused)
	case slices.Contains(log, sequence):
		return int64(sequence), 0 // a duplicate
	case len(log) > 0 && sequence != log[len(log)-1]+1:
		return -1, int16(protocol.OutOfOrderSequenceNumber)
	}
	a.logs[partition] = append(log, sequence)
	return int64(sequence), 0
}

// fetched is the fake's answer to Fetch.
type fetched struct{ resp wire.FetchResponse }

func (f *fetched) Ready() <-chan struct{} { return nil }
func (f *fetched) Release()               {}
func (f *fetched) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	return f.resp.AppendTo(bufs, scratch)
}
func (f *fetched) Response() *wire.FetchResponse { return &f.resp }

// fetch answers with a byte for each offset.
func (a *fake) fetch(ctx context.Context, r *server.Request, req *kmsg.FetchRequest) server.Answer {
	a.mu.Lock()
	a.bytesMax = req.MaxBytes
	deaf := a.deaf
	a.mu.Unlock()
	if deaf {
		<-ctx.Done()
	}
	timer := time.NewTimer(time.Duration(req.MaxWaitMillis) * time.Millisecond)
	defer timer.Stop()
	for {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		f := &fetched{wire.FetchResponse{CorrelationID: r.CorrelationID, Version: r.Version}}
		size, urgent := 0, false
		for _, t := range req.Topics {
			out := wire.FetchTopic{Name: t.Topic, ID: t.TopicID}
			for _, p := range t.Partitions {
				answer := wire.NewFetchPartition(p.Partition, a.partition(p.Partition))
				if r.Version >= 13 && t.TopicID != a.w.topic.ID {
					answer.ErrorCode = protocol.UnknownTopicID
				}
				if answer.ErrorCode != 0 || p.CurrentLeaderEpoch != -1 {
					urgent = true // whatever the client knows of epochs, it is left out
				} else {
					a.mu.Lock()
					high := a.high[p.Partition]
					a.mu.Unlock()
					answer.HighWatermark, answer.LastStableOffset, answer.LogStartOffset = protocol.Offset(high), protocol.Offset(high), 0
					if p.FetchOffset < high {
						answer.Records = [][]byte{bytes.Repeat([]byte{byte(a.node)}, int(high-p.FetchOffset))}
						size += int(high - p.FetchOffset)
					}
				}
				out.Partitions = append(out.Partitions, answer)
			}
			f.resp.Topics = append(f.resp.Topics, out)
		}
		if urgent || size >= int(req.MinBytes) || req.MaxWaitMillis == 0 {
			return f
		}
		select {
		case <-changed:
		case <-timer.C:
			return f
		case <-r.Leave:
			return f
		case <-ctx.Done():
			return f
		}
	}
}

// answer answers the requests that need no state.
func (a *fake) answer(req kmsg.Request) kmsg.Response {
	offset := int64(a.node)
	switch req := req.(type) {
	case *kmsg.ListOffsetsRequest:
		resp := kmsg.NewPtrListOffsetsResponse()
		for _, t := range req.Topics {
			out := kmsg.ListOffsetsResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				out.Partitions = append(out.Partitions, kmsg.ListOffsetsResponseTopicPartition{
					Partition: p.Partition, ErrorCode: int16(a.partition(p.Partition)), Offset: offset,
				})
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp
	case *kmsg.OffsetForLeaderEpochRequest:
		resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
		for _, t := range req.Topics {
			out := kmsg.OffsetForLeaderEpochResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				out.Partitions = append(out.Partitions, kmsg.OffsetForLeaderEpochResponseTopicPartition{
					Partition: p.Partition, ErrorCode: int16(a.partition(p.Partition)), EndOffset: offset,
				})
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp
	case *kmsg.DeleteRecordsRequest:
		resp := kmsg.NewPtrDeleteRecordsResponse()
		for _, t := range req.Topics {
			out := kmsg.DeleteRecordsResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				out.Partitions = append(out.Partitions, kmsg.DeleteRecordsResponseTopicPartition{
					Partition: p.Partition, ErrorCode: int16(a.partition(p.Partition)), LowWatermark: offset,
				})
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp
	case *kmsg.DescribeProducersRequest:
		resp := kmsg.NewPtrDescribeProducersResponse()
		for _, t := range req.Topics {
			out := kmsg.DescribeProducersResponseTopic{Topic: t.Topic}
			for _, p := range t.Partitions {
				out.Partitions = append(out.Partitions, kmsg.DescribeProducersResponseTopicPartition{
					Partition: p, ErrorCode: int16(a.partition(p)),
					ActiveProducers: []kmsg.DescribeProducersResponseTopicPartitionActiveProducer{{ProducerID: offset}},
				})
			}
			resp.Topics = append(resp.Topics, out)
		}
		return resp
	case *kmsg.DescribeLogDirsRequest:
		resp := kmsg.NewPtrDescribeLogDirsResponse()
		dir := kmsg.DescribeLogDirsResponseDir{Dir: "/varve"}
		t := kmsg.DescribeLogDirsResponseDirTopic{Topic: "t"}
		for p := range int32(shards) {
			if a.partition(p) == 0 {
				t.Partitions = append(t.Partitions, kmsg.DescribeLogDirsResponseDirTopicPartition{Partition: p, Size: offset})
			}
		}
		dir.Topics = append(dir.Topics, t)
		resp.Dirs = append(resp.Dirs, dir)
		return resp
	default:
		return a.answerGroup(req)
	}
}

func (a *fake) answerGroup(req kmsg.Request) kmsg.Response {
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		return &kmsg.JoinGroupResponse{ErrorCode: a.group(req.Group), Generation: a.node}
	case *kmsg.SyncGroupRequest:
		return &kmsg.SyncGroupResponse{ErrorCode: a.group(req.Group), MemberAssignment: []byte{byte(a.node)}}
	case *kmsg.HeartbeatRequest:
		return &kmsg.HeartbeatResponse{ErrorCode: a.group(req.Group), ThrottleMillis: a.node}
	case *kmsg.LeaveGroupRequest:
		return &kmsg.LeaveGroupResponse{ErrorCode: a.group(req.Group), ThrottleMillis: a.node}
	case *kmsg.OffsetDeleteRequest:
		return &kmsg.OffsetDeleteResponse{ErrorCode: a.group(req.Group), ThrottleMillis: a.node}
	case *kmsg.OffsetCommitRequest:
		return &kmsg.OffsetCommitResponse{ThrottleMillis: a.node, Topics: []kmsg.OffsetCommitResponseTopic{{
			Topic: "t", Partitions: []kmsg.OffsetCommitResponseTopicPartition{{Partition: 1, ErrorCode: a.group(req.Group)}},
		}}}
	case *kmsg.OffsetFetchRequest:
		resp := &kmsg.OffsetFetchResponse{ThrottleMillis: a.node}
		if req.Version < 8 {
			code := a.group(req.Group)
			resp.ErrorCode = code
			resp.Topics = []kmsg.OffsetFetchResponseTopic{{
				Topic: "t", Partitions: []kmsg.OffsetFetchResponseTopicPartition{{Partition: 1, ErrorCode: code, Offset: int64(a.node)}},
			}}
		}
		for _, g := range req.Groups {
			resp.Groups = append(resp.Groups, kmsg.OffsetFetchResponseGroup{Group: g.Group, ErrorCode: a.group(g.Group), Topics: []kmsg.OffsetFetchResponseGroupTopic{{
				Topic: "t", Partitions: []kmsg.OffsetFetchResponseGroupTopicPartition{{Partition: 1, Offset: int64(a.node)}},
			}}})
		}
		return resp
	case *kmsg.DescribeGroupsRequest:
		resp := &kmsg.DescribeGroupsResponse{}
		for _, g := range req.Groups {
			resp.Groups = append(resp.Groups, kmsg.DescribeGroupsResponseGroup{Group: g, ErrorCode: a.group(g), State: fmt.Sprint(a.node)})
		}
		return resp
	case *kmsg.DeleteGroupsRequest:
		resp := &kmsg.DeleteGroupsResponse{ThrottleMillis: a.node}
		for _, g := range req.Groups {
			resp.Groups = append(resp.Groups, kmsg.DeleteGroupsResponseGroup{Group: g, ErrorCode: a.group(g)})
		}
		return resp
	case *kmsg.ListGroupsRequest:
		resp := &kmsg.ListGroupsResponse{}
		for _, g := range groupNames {
			if a.group(g) == 0 {
				resp.Groups = append(resp.Groups, kmsg.ListGroupsResponseGroup{Group: g, ProtocolType: fmt.Sprint(a.node)})
			}
		}
		return resp
	}
	panic(fmt.Sprintf("a test sends %T", req))
}

// groupNames are groups that all agents coordinate some of.
var groupNames = strings.Fields("a b c d e f g h i j")

// coordinator is the agent, by node id, that coordinates a group at first.
func coordinatorOf(group string) int32 {
	return int32(coordinator.ShardOfName(group, shards))%agents + 1
}
