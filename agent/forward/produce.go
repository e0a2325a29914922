package forward

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/wire"
)

// How long a Produce request may take at least and at most, whatever its timeout.ms.
const (
	produceShortest = time.Second
	produceLongest  = time.Minute
)

// production is one Produce request on its way. Its items are partitions. Serve makes and sends it, settle, in a goroutine of its own, does the rest.
type production struct {
	f      *Forwarder
	from   server.Request // without its body
	lane   *lane
	silent bool // the producer wants no answer
	whole  kmsg.ProduceRequest
	late   time.Time

	at     []position
	places []place // where each item is led, as of the last time that it was sent
	paths  []path  // and which way it went
	ways   []*way
	resp   *kmsg.ProduceResponse
	// portions are those that were sent last. Their frames hold the records.
	portions []*portion
	before   *production   // the one before in its lane, if that was not settled when this one was sent; nil once it is
	done     chan struct{} // closed when this one and all before it in its lane are settled
	uneven   bool          // this one, or one that was under way before it, was sent again; valid when done
}

func (p *production) isDone() bool { return isClosed(p.done) }

// portion is what of a request goes to one leader. Its frame is the copy of its records, since the request's buffer goes back when Serve returns.
type portion struct {
	of     []int
	hop    hop
	id     int32 // correlation id
	frame  []byte
	buffer *[]byte       // frame's, if it is to go back
	call   *call         // if it went to another agent
	local  server.Answer // if this one took it
}

// errRefused ends the connection of a producer that asked for no answer, so that it looks for the topic again, as Kafka does.
var errRefused = errors.New("a batch with acks=0 was refused")

// produce serves Produce. The leaders answer even if the producer wants no answer: what they refuse because they do not lead it is sent again; what they
// refuse otherwise is lost, and the producer's next request ends the connection.
func (f *Forwarder) produce(ctx context.Context, r *server.Request, whole kmsg.Request) (server.Answer, error) {
	req := whole.(*kmsg.ProduceRequest)
	if f.of(ctx, r).lane.refused.Load() {
		return nil, errRefused
	}
	held := min(int64(len(r.Body)), f.cfg.BytesMax)
	if err := f.produced.Acquire(ctx, held); err != nil {
		return nil, err
	}
	p := &production{
		f: f, from: *r, lane: &f.of(ctx, r).lane, silent: req.Acks == 0, whole: *req, done: make(chan struct{}),
		late: f.deps.Now().Add(max(produceShortest, min(time.Duration(req.TimeoutMillis)*time.Millisecond, produceLongest))),
	}
	p.from.Body = nil
	if p.silent {
		p.whole.Acks = 1
	}
	p.refuseAll()
	if err := p.lane.enter(ctx, p); err != nil {
		f.produced.Release(held)
		return nil, err
	}
	p.send(ctx, req.Topics, numbers(len(p.at)))
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			req.Topics[i].Partitions[j].Records = nil // the request's buffer goes back
		}
	}
	go func() {
		p.settle(ctx)
		for _, o := range p.portions {
			o.release(f)
		}
		f.produced.Release(held)
	}()
	return &receipt{p}, nil
}

// refuseAll numbers the items and begins with an answer that refuses them all.
func (p *production) refuseAll() {
	p.resp = &kmsg.ProduceResponse{Version: p.whole.Version}
	for i := range p.whole.Topics {
		t := kmsg.ProduceResponseTopic{Topic: p.whole.Topics[i].Topic, TopicID: p.whole.Topics[i].TopicID}
		for j := range p.whole.Topics[i].Partitions {
			out := kmsg.NewProduceResponseTopicPartition()
			out.Partition = p.whole.Topics[i].Partitions[j].Partition
			t.Partitions = append(t.Partitions, out)
			p.at = append(p.at, position{i, j})
		}
		p.resp.Topics = append(p.resp.Topics, t)
	}
	for i := range p.at {
		p.refuse(i, protocol.NotLeaderOrFollower)
	}
}

// result is where the answer for an item stands.
func (p *production) result(i int) *kmsg.ProduceResponseTopicPartition {
	return &p.resp.Topics[p.at[i].topic].Partitions[p.at[i].part]
}

func (p *production) refuse(i int, code protocol.ErrorCode) {
	out, number := p.result(i), p.result(i).Partition
	*out = kmsg.NewProduceResponseTopicPartition()
	out.Partition, out.ErrorCode, out.BaseOffset = number, int16(code), int64(protocol.NoOffset)
}

// aim finds where each item is led, and which way it goes there now.
func (p *production) aim() {
	r := p.f.route()
	p.places, p.paths = p.places[:0], p.paths[:0]
	pipes := make(map[coordinator.LogID]*pipe)
	for i := range p.whole.Topics {
		t := &p.whole.Topics[i]
		topic, found := r.topic(p.whole.Version >= 13, t.Topic, t.TopicID)
		for j := range t.Partitions {
			at := r.partition(topic, found, t.Partitions[j].Partition)
			a, epoch := p.f.leader(&r, at)
			if pipes[a.Log] == nil && a.Log != p.f.cfg.Self {
				pipes[a.Log] = p.f.deps.Peers.of(a).pipe(p.lane.number)
			}
			p.places, p.paths = append(p.places, at), append(p.paths, path{hop{a.Log, pipes[a.Log]}, epoch})
		}
	}
}

// send sends items, whose records are in topics: for all but the first time those of the portions so far, which it replaces.
func (p *production) send(ctx context.Context, topics []kmsg.ProduceRequestTopic, items []int) {
	before := p.portions
	p.portions = nil
	byHop := make(map[hop]*portion)
	for _, i := range items {
		h := p.paths[i].hop
		to := byHop[h]
		if to == nil {
			to = &portion{hop: h, id: p.f.frames.Add(1)}
			byHop[h] = to
			p.portions = append(p.portions, to)
		}
		to.of = append(to.of, i)
	}
	for _, to := range p.portions {
		part := p.whole
		part.TimeoutMillis = int32(max(0, p.late.Sub(p.f.deps.Now())).Milliseconds())
		part.Topics = some(topics, producePartitions, p.at, to.of)
		to.encode(p.f, &p.from, &part)
	}
	for _, old := range before {
		old.release(p.f)
	}
	ctx, cancel := context.WithDeadline(ctx, p.late)
	defer cancel()
	var local *portion
	for _, to := range p.portions {
		if to.hop.pipe == nil {
			local = to
			continue
		}
		p.f.metrics.forwarded.WithLabelValues(protocol.KeyProduce.String()).Inc()
		to.call = newCall(to.frame)
		to.hop.pipe.send(ctx, to.call)
	}
	if local != nil { // last, as it may wait for room
		local.serve(ctx, p)
	}
}

func producePartitions(t *kmsg.ProduceRequestTopic) *[]kmsg.ProduceRequestTopicPartition {
	return &t.Partitions
}

// encode makes the frame, with the only copy of the records.
func (o *portion) encode(f *Forwarder, r *server.Request, part *kmsg.ProduceRequest) {
	size := len(r.ClientID) + frameBytes
	for i := range part.Topics {
		size += len(part.Topics[i].Topic) + topicBytes
		for j := range part.Topics[i].Partitions {
			size += len(part.Topics[i].Partitions[j].Records) + partitionBytes
		}
	}
	var room []byte
	o.buffer, room = f.buffers.Get(size)
	o.frame = encode(room[:0], r, part, o.id)
	if &o.frame[0] != &room[0] { // it did not fit
		f.buffers.Put(o.buffer)
		o.buffer = nil
	}
}

// At least what the fields around names and records take.
const (
	frameBytes     = 256
	topicBytes     = 32
	partitionBytes = 16
)

// serve has this agent append the batches. It gets a copy: it may change what it is given, and what it does not take is sent again as it was.
func (o *portion) serve(ctx context.Context, p *production) {
	_, body, err := wire.ParseHeader(o.frame[sizeBytes:])
	if err != nil {
		p.f.deps.Log.Warn("a forwarded request cannot be read", "err", err)
		return
	}
	buffer, room := p.f.buffers.Get(len(body))
	defer p.f.buffers.Put(buffer)
	copy(room, body)
	local := p.from
	local.Body, local.CorrelationID, local.Forwarded = room, o.id, true
	if o.local, err = p.f.deps.Local.Serve(ctx, &local); err != nil {
		p.f.deps.Log.Debug("a request was not served", "err", err)
	}
}

// settle waits for the answers, and sends again what was refused by who does not lead it, after all that were sent before this one.
func (p *production) settle(ctx context.Context) {
	defer close(p.done)
	again := p.collect(ctx, true)
	if len(again) > 0 {
		p.lane.disturbed.Store(true)
	}
	if p.before != nil {
		<-p.before.done
		p.uneven = p.before.uneven
		p.before = nil
	}
	if !p.uneven {
		again = p.withoutGaps(again)
	}
	p.uneven = p.uneven || len(again) > 0
	for times := 0; len(again) > 0 && ctx.Err() == nil && p.f.deps.Now().Before(p.late); times++ {
		p.f.metrics.again.Inc()
		changed := p.f.change()
		p.aim()
		p.send(ctx, p.records(again), again)
		if again = p.collect(ctx, false); len(again) > 0 {
			wait(ctx, changed, times)
		}
	}
	for i := range p.at {
		if p.silent && p.result(i).ErrorCode != 0 {
			p.lane.refused.Store(true)
		}
	}
}

// release gives the frame back, once no pipe can send it any more: when the answer has come, or never will.
func (o *portion) release(f *Forwarder) {
	if o.call != nil {
		<-o.call.done
	}
	if o.buffer != nil {
		f.buffers.Put(o.buffer)
	}
	o.frame, o.buffer = nil, nil
}

// collect waits for the answers to what was sent last, and returns the items that should be sent again. The first time, these include batches that were refused for a
// gap in their producer's sequence numbers, which may be due to one before them that has to be sent again itself.
func (p *production) collect(ctx context.Context, first bool) (again []int) {
	ctx, cancel := context.WithDeadline(ctx, p.late)
	defer cancel()
	for _, o := range p.portions {
		err := p.take(ctx, o)
		for _, i := range o.of {
			if err != nil {
				code := protocol.RequestTimedOut // it may have been appended
				if errors.Is(err, errUnsent) {
					code = protocol.NotLeaderOrFollower
				}
				p.refuse(i, code)
			}
			lost := errors.Is(err, errLost)
			switch code := protocol.ErrorCode(p.result(i).ErrorCode); {
			case code == protocol.None:
				if first {
					p.ways[i].taken.Store(true)
				}
			case notLed(code, p.places[i]),
				(lost || code == protocol.KafkaStorageError) && o.idempotent(),
				first && code == protocol.OutOfOrderSequenceNumber:
				again = append(again, i)
			}
		}
	}
	return again
}

// withoutGaps returns the items that were not refused for a gap.
func (p *production) withoutGaps(items []int) []int {
	var rest []int
	for _, i := range items {
		if protocol.ErrorCode(p.result(i).ErrorCode) != protocol.OutOfOrderSequenceNumber {
			rest = append(rest, i)
		}
	}
	return rest
}

// take waits for the answer to a portion and puts it in its place.
func (p *production) take(ctx context.Context, o *portion) error {
	var b []byte
	switch {
	case o.call != nil:
		if err := await(ctx, o.call.done); err != nil {
			return err
		}
		if b = o.call.answer; o.call.err != nil {
			return o.call.err
		}
	case o.local != nil:
		defer o.local.Release()
		if ready := o.local.Ready(); ready != nil {
			if err := await(ctx, ready); err != nil {
				return err
			}
		}
		b = encoded(o.local)
	default:
		return errUnsent
	}
	resp, err := decode(&p.whole, o.id, b)
	if err != nil {
		return err
	}
	var got []kmsg.ProduceResponseTopicPartition
	for _, t := range resp.(*kmsg.ProduceResponse).Topics {
		got = append(got, t.Partitions...)
	}
	if !slices.EqualFunc(got, o.of, func(g kmsg.ProduceResponseTopicPartition, i int) bool { return g.Partition == p.result(i).Partition }) {
		return errors.New("an answer to another request")
	}
	for n, i := range o.of {
		got[n].CurrentLeader = kmsg.NewProduceResponseTopicPartitionCurrentLeader()
		*p.result(i) = got[n]
	}
	return nil
}

// records returns the request's topics with the records of those items, which lie in the frames.
func (p *production) records(items []int) []kmsg.ProduceRequestTopic {
	topics := make([]kmsg.ProduceRequestTopic, len(p.whole.Topics))
	for i := range topics {
		topics[i] = p.whole.Topics[i]
		topics[i].Partitions = append([]kmsg.ProduceRequestTopicPartition(nil), topics[i].Partitions...)
	}
	wanted := make(map[int]bool, len(items))
	for _, i := range items {
		wanted[i] = true
	}
	for _, o := range p.portions {
		o.each(func(i int, records []byte) {
			if wanted[i] {
				topics[p.at[i].topic].Partitions[p.at[i].part].Records = records
				delete(wanted, i)
			}
		})
	}
	return topics
}

// each reads the portion's frame.
func (o *portion) each(visit func(item int, records []byte)) {
	h, body, err := wire.ParseHeader(o.frame[sizeBytes:])
	if err != nil {
		return
	}
	req, err := wire.DecodeRequest(h, body)
	if err != nil {
		return
	}
	n := 0
	for _, t := range req.(*kmsg.ProduceRequest).Topics {
		for j := range t.Partitions {
			visit(o.of[n], t.Partitions[j].Records)
			n++
		}
	}
}

// idempotent reports whether the portion does no harm if it is appended twice. All batches of a request are of one producer.
func (o *portion) idempotent() bool {
	all, first := false, true
	o.each(func(_ int, records []byte) {
		if first {
			h, err := batch.Parse(records)
			all, first = err == nil && h.Idempotent(), false
		}
	})
	return all
}

// receipt is the answer to Produce.
type receipt struct{ p *production }

// Ready implements [server.Answer].
func (a *receipt) Ready() <-chan struct{} { return a.p.done }

// AppendTo implements [server.Answer].
func (a *receipt) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	if a.p.silent {
		return bufs, scratch
	}
	start := len(scratch)
	scratch = wire.AppendResponse(scratch, a.p.from.CorrelationID, a.p.resp)
	return append(bufs, scratch[start:]), scratch
}

// Release implements [server.Answer].
func (a *receipt) Release() {}
