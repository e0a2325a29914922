package txns

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

const (
	// batchMax is how many markers go into one request.
	batchMax = 1000
	// asksMax is how many requests are under way to one agent.
	asksMax = 4
	// markMax bounds one request. againShortest is the wait before a marker is sent again that its leader did not take; it doubles up to againLongest.
	markMax       = 30 * time.Second
	againShortest = 10 * time.Millisecond
	againLongest  = time.Second
)

// markersVersion is the version of WriteTxnMarkers that agents ask each other in: it tells the version of the transaction.
const markersVersion = 2

// markers brings the markers of decided transactions to the leaders of their partitions. Those for one agent that wait while others are under way go in one request. What is
// not taken is sent again, to whoever leads then, until it is, or the transaction's shard is led elsewhere.
type markers struct {
	run  context.Context
	deps Deps

	mu     sync.Mutex
	queues map[coordinator.LogID]*queue
}

// queue are the markers for one agent.
type queue struct {
	waiting []*marker
	asks    int // under way
}

// decided is a transaction whose markers are on their way.
type decided struct {
	t    *transaction
	mark txn.Mark

	mu   sync.Mutex
	left int
}

// marker is one partition's.
type marker struct {
	of        *decided
	partition txn.Partition
	topic     string
	pause     time.Duration // before it was sent the last time
}

func newMarkers(run context.Context, deps Deps) *markers {
	return &markers{run: run, deps: deps, queues: make(map[coordinator.LogID]*queue)}
}

// send begins to bring the markers of a decision to their leaders, and tells the transaction when all have them.
func (m *markers) send(t *transaction, mark txn.Mark) {
	d := &decided{t: t, mark: mark, left: len(mark.Partitions)}
	if d.left == 0 {
		go d.t.step(txn.Marked{Write: mark.Write})
		return
	}
	all := make([]*marker, len(mark.Partitions))
	for i, p := range mark.Partitions {
		all[i] = &marker{of: d, partition: p}
	}
	go m.route(all)
}

// route puts markers where their leaders are. One whose topic is gone needs none; one that nobody leads is looked at again.
func (m *markers) route(all []*marker) {
	agents := make(map[coordinator.LogID]coordinator.Agent)
	for _, a := range m.deps.View.Agents() {
		agents[a.Log] = a
	}
	by := make(map[coordinator.LogID][]*marker)
	var again []*marker
	for _, x := range all {
		if x.of.over() {
			continue
		}
		leader, gone := m.leader(x)
		if gone {
			x.of.done()
			continue
		}
		if _, ok := agents[leader]; !ok {
			again = append(again, x)
			continue
		}
		by[leader] = append(by[leader], x)
	}
	m.later(again)
	m.mu.Lock()
	defer m.mu.Unlock()
	for leader, some := range by {
		q := m.queues[leader]
		if q == nil {
			q = &queue{}
			m.queues[leader] = q
		}
		q.waiting = append(q.waiting, some...)
		if q.asks < asksMax {
			q.asks++
			go m.ask(q, agents[leader])
		}
	}
}

// leader returns who leads a marker's partition, and notes its topic's name; gone says that there is no such topic any more.
func (m *markers) leader(x *marker) (log coordinator.LogID, gone bool) {
	shard := coordinator.ShardID(x.partition.Partition)
	x.topic = OffsetsTopic
	if x.partition.Topic != (protocol.TopicID{}) {
		t, ok := m.deps.View.TopicByID(x.partition.Topic)
		if !ok {
			return 0, true
		}
		shard, x.topic = t.ShardOf(x.partition.Partition, m.deps.View.Cluster().Shards), t.Name
	}
	s, _ := m.deps.View.Shard(shard)
	return s.Owner, false
}

// later routes markers again after a while, which grows.
func (m *markers) later(all []*marker) {
	by := make(map[time.Duration][]*marker)
	for _, x := range all {
		x.pause = min(max(againShortest, 2*x.pause), againLongest)
		by[x.pause] = append(by[x.pause], x)
	}
	for pause, some := range by {
		if m.run.Err() == nil {
			time.AfterFunc(pause, func() { m.route(some) })
		}
	}
}

// ask sends what waits for an agent until nothing does.
func (m *markers) ask(q *queue, to coordinator.Agent) {
	for {
		m.mu.Lock()
		n := min(len(q.waiting), batchMax)
		some := slices.Clone(q.waiting[:n])
		q.waiting = q.waiting[n:]
		if n == 0 {
			q.waiting = nil
			if q.asks--; q.asks == 0 {
				delete(m.queues, to.Log)
			}
			m.mu.Unlock()
			return
		}
		m.mu.Unlock()
		m.later(m.deliver(to, some))
	}
}

// deliver has an agent write markers, and returns those that it did not write.
func (m *markers) deliver(to coordinator.Agent, some []*marker) (again []*marker) {
	ctx, cancel := context.WithTimeout(m.run, markMax)
	defer cancel()
	some = slices.DeleteFunc(some, func(x *marker) bool { return x.of.over() })
	if len(some) == 0 {
		return nil
	}
	resp, err := m.deps.Ask(ctx, to, request(some))
	answer, ok := resp.(*kmsg.WriteTxnMarkersResponse)
	if err != nil || !ok {
		m.deps.Log.Debug("markers were not answered", "node", to.Node, "markers", len(some), "err", err)
		return some
	}
	codes := make(map[answered]protocol.ErrorCode)
	for _, p := range answer.Markers {
		for _, t := range p.Topics {
			for _, part := range t.Partitions {
				codes[answered{protocol.ProducerID(p.ProducerID), t.Topic, part.Partition}] = protocol.ErrorCode(part.ErrorCode)
			}
		}
	}
	for _, x := range some {
		code, ok := codes[answered{x.of.mark.ProducerID, x.topic, x.partition.Partition}]
		switch {
		case ok && code == protocol.None:
			x.of.done()
		case ok && code == protocol.InvalidProducerEpoch:
			// The partition has seen a younger epoch: whatever was open of this one has ended.
			m.deps.Log.Warn("a marker is older than its partition", "id", x.of.t.id, "topic", x.topic, "partition", x.partition.Partition, "epoch", x.of.mark.Epoch)
			x.of.done()
		case ok && code == protocol.TransactionCoordinatorFenced:
			// Another agent coordinates this id, which this one is about to hear; or an operator has ended a transaction with a higher epoch.
			m.deps.Log.Warn("a marker is fenced", "id", x.of.t.id, "topic", x.topic, "partition", x.partition.Partition, "epoch", x.of.t.shard.epoch)
			again = append(again, x)
		default:
			again = append(again, x)
		}
	}
	return again
}

// answered names a marker in an answer.
type answered struct {
	producer  protocol.ProducerID
	topic     string
	partition int32
}

// request asks for markers. Those of one transaction stand together.
func request(some []*marker) *kmsg.WriteTxnMarkersRequest {
	req := kmsg.NewPtrWriteTxnMarkersRequest()
	req.Version = markersVersion
	at := make(map[*decided]int)
	for _, x := range some {
		i, ok := at[x.of]
		if !ok {
			i = len(req.Markers)
			at[x.of] = i
			w := kmsg.NewWriteTxnMarkersRequestMarker()
			w.ProducerID, w.ProducerEpoch, w.Committed = int64(x.of.mark.ProducerID), int16(x.of.mark.Epoch), x.of.mark.Commit
			w.CoordinatorEpoch = x.of.t.shard.epoch
			if x.of.mark.Version2 {
				w.TransactionVersion = 2
			}
			req.Markers = append(req.Markers, w)
		}
		w := &req.Markers[i]
		topic := slices.IndexFunc(w.Topics, func(t kmsg.WriteTxnMarkersRequestMarkerTopic) bool { return t.Topic == x.topic })
		if topic < 0 {
			topic = len(w.Topics)
			t := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
			t.Topic = x.topic
			t.UnknownTags.Set(topicTag, x.partition.Topic[:])
			w.Topics = append(w.Topics, t)
		}
		w.Topics[topic].Partitions = append(w.Topics[topic].Partitions, x.partition.Partition)
	}
	return req
}

// over reports whether nobody waits for the markers here any more.
func (d *decided) over() bool { return d.t.shard.led.Err() != nil }

// done notes that one partition has its marker durably.
func (d *decided) done() {
	d.mu.Lock()
	d.left--
	last := d.left == 0
	d.mu.Unlock()
	if last {
		d.t.step(txn.Marked{Write: d.mark.Write})
	}
}
