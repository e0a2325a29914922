package api

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/wire"
)

// produce serves Produce, versions 3 to 13.
//
// acks=1 answers when this agent's own store has the batch durably; acks=all when the ack quorum has it; acks=0 not at all, but if a batch is
// refused the connection ends, so that the producer looks for another leader (KafkaApis.handleProduceRequest). timeout.ms bounds the wait for
// room in the WAL; what is in the WAL is answered, or the WAL fails for good and with it the leadership. Partitions of a shard that takes no
// records at the moment answer NOT_ENOUGH_REPLICAS, which says that nothing was appended, but for batches that are in the log already. It is not KAFKA_STORAGE_ERROR, which says that the WAL has failed and another
// leader comes: who forwards requests waits for that one.
func (b *Broker) produce(ctx context.Context, r *server.Request, req *kmsg.ProduceRequest) (server.Answer, error) {
	n := 0
	for i := range req.Topics {
		n += len(req.Topics[i].Partitions)
	}
	in := ingest.NewRequest(n, ingest.Acks(req.Acks))
	at := 0
	for i := range req.Topics {
		t := &req.Topics[i]
		topic, err := b.produceTopic(req, t)
		for j := range t.Partitions {
			p := &t.Partitions[j]
			batch := &in.Batches[at]
			at++
			batch.Result.Base, batch.Result.LogStart, batch.Result.LogAppendMs = protocol.NoOffset, protocol.NoOffset, protocol.NoTimestamp
			if batch.Result.Err = err; err == nil {
				batch.Result.Err = b.prepare(req.Version, topic, p, batch)
			}
		}
	}
	b.verify(ctx, r, req, in)
	admit, cancel := context.WithTimeout(ctx, max(time.Second, min(time.Duration(req.TimeoutMillis)*time.Millisecond, admitMax)))
	b.deps.Ingest.Produce(admit, in)
	cancel()
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			req.Topics[i].Partitions[j].Records = nil // the frame's buffer goes back
		}
	}
	if req.Acks == 0 {
		if in.Refused {
			return nil, errRefused
		}
		return nil, nil
	}
	return &produced{broker: b, correlation: r.CorrelationID, request: req, in: in}, nil
}

// admitMax bounds how long a request waits for room in the WAL, whatever its timeout.ms: the producer may be gone.
const admitMax = time.Minute

// errRefused ends the connection of a producer that asked for no answer.
var errRefused = errors.New("a batch with acks=0 was refused")

// produceTopic finds the topic of a request, by name or id.
func (b *Broker) produceTopic(req *kmsg.ProduceRequest, t *kmsg.ProduceRequestTopic) (*coordinator.Topic, error) {
	if req.Acks != 0 && req.Acks != 1 && req.Acks != -1 {
		return nil, protocol.InvalidRequiredAcks.Err()
	}
	return b.topic(req.Version >= 13, t.Topic, t.TopicID)
}

// topic finds a topic by id or by name, with the error that data requests answer.
func (b *Broker) topic(byID bool, name string, id [16]byte) (*coordinator.Topic, error) {
	if byID {
		if t, ok := b.deps.View.TopicByID(id); ok {
			return &t, nil
		}
		return nil, protocol.UnknownTopicID.Err()
	}
	if t, _, ok := b.deps.View.Topic(name); ok {
		return &t, nil
	}
	if err := protocol.ValidateTopicName(name); err != nil {
		return nil, err
	}
	return nil, protocol.UnknownTopicOrPartition.Err()
}

// prepare checks one partition's batch and finds its partition.
func (b *Broker) prepare(version int16, t *coordinator.Topic, p *kmsg.ProduceRequestTopicPartition, out *ingest.Batch) error {
	partition, err := b.deps.Partitions.Get(t, p.Partition)
	if err != nil {
		return err
	}
	records := p.Records
	rules, nowMs := b.deps.Topics.RulesOf(t), b.deps.Now().UnixMilli()
	h, err := batch.Check(records, rules.Limits(version, nowMs))
	if err != nil {
		return err
	}
	if h, records, err = rules.Apply(nowMs, h, records); err != nil {
		return err
	}
	if h.Attributes.LogAppendTime() {
		out.Result.LogAppendMs = h.MaxTimestamp
	}
	out.Partition, out.Header, out.Bytes, out.Refused = partition, h, records, b.deps.Refuses(partition.Shard)
	return nil
}

// produced is the answer to Produce.
type produced struct {
	broker      *Broker
	correlation int32
	request     *kmsg.ProduceRequest
	in          *ingest.Request
}

// Ready implements [server.Answer].
func (a *produced) Ready() <-chan struct{} { return a.in.Done() }

// Release implements [server.Answer].
func (a *produced) Release() {}

// AppendTo implements [server.Answer].
func (a *produced) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	resp := kmsg.NewPtrProduceResponse()
	resp.Version = a.request.Version
	resp.Topics = make([]kmsg.ProduceResponseTopic, len(a.request.Topics))
	at := 0
	for i := range a.request.Topics {
		from, to := &a.request.Topics[i], &resp.Topics[i]
		to.Topic, to.TopicID = from.Topic, from.TopicID
		to.Partitions = make([]kmsg.ProduceResponseTopicPartition, len(from.Partitions))
		for j := range from.Partitions {
			a.partition(&to.Partitions[j], from.Partitions[j].Partition, &a.in.Batches[at].Result)
			at++
		}
	}
	if a.request.Version >= 10 {
		a.broker.hintProduce(resp)
	}
	start := len(scratch)
	scratch = wire.AppendResponse(scratch, a.correlation, resp)
	return append(bufs, scratch[start:]), scratch
}

func (a *produced) partition(to *kmsg.ProduceResponseTopicPartition, number int32, res *ingest.Result) {
	*to = kmsg.NewProduceResponseTopicPartition()
	to.Partition = number
	to.BaseOffset, to.LogStartOffset, to.LogAppendTime = int64(res.Base), int64(res.LogStart), res.LogAppendMs
	if res.Err != nil {
		to.ErrorCode = int16(protocol.CodeOf(res.Err))
		to.ErrorMessage = message(res.Err)
		if bad, ok := errors.AsType[*topics.RecordsError](res.Err); ok { // KIP-467
			for _, r := range bad.Records {
				e := kmsg.NewProduceResponseTopicPartitionErrorRecord()
				e.RelativeOffset, e.ErrorMessage = r.Index, &r.Message
				to.ErrorRecords = append(to.ErrorRecords, e)
			}
		}
	}
}
