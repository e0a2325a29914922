package api

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// transaction serves the APIs of transactions: most by the coordinator of the transactional id, markers by the leaders of partitions and groups.
func (b *Broker) transaction(ctx context.Context, req kmsg.Request) kmsg.Response {
	t := b.deps.Txns
	switch req := req.(type) {
	case *kmsg.AddPartitionsToTxnRequest:
		return t.AddPartitions(ctx, req)
	case *kmsg.AddOffsetsToTxnRequest:
		return t.AddOffsets(ctx, req)
	case *kmsg.EndTxnRequest:
		return t.EndTxn(ctx, req)
	case *kmsg.DescribeTransactionsRequest:
		return t.DescribeTransactions(ctx, req)
	case *kmsg.ListTransactionsRequest:
		return t.ListTransactions(ctx, req)
	case *kmsg.TxnOffsetCommitRequest:
		return b.deps.Groups.TxnOffsetCommit(ctx, req)
	case *kmsg.WriteTxnMarkersRequest:
		return b.writeTxnMarkers(ctx, req)
	}
	return nil
}

// Local answers a request of this agent's own.
func (b *Broker) Local(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	if resp := b.transaction(ctx, req); resp != nil {
		return resp, nil
	}
	return nil, protocol.UnsupportedVersion.Errorf("no request of agents: %T", req)
}

// writeTxnMarkers serves WriteTxnMarkers, version 1 for operators (KIP-664) and 2 for coordinators: every marker ends its producer's transaction in the partitions that it names, and is
// answered when that is durable.
func (b *Broker) writeTxnMarkers(ctx context.Context, req *kmsg.WriteTxnMarkersRequest) *kmsg.WriteTxnMarkersResponse {
	resp := kmsg.NewPtrWriteTxnMarkersResponse()
	resp.Version = req.Version
	var marks []mark
	for i := range req.Markers {
		m := &req.Markers[i]
		out := kmsg.NewWriteTxnMarkersResponseMarker()
		out.ProducerID = m.ProducerID
		for _, t := range m.Topics {
			topic := kmsg.NewWriteTxnMarkersResponseMarkerTopic()
			topic.Topic = t.Topic
			for _, n := range t.Partitions {
				p := kmsg.NewWriteTxnMarkersResponseMarkerTopicPartition()
				p.Partition = n
				topic.Partitions = append(topic.Partitions, p)
			}
			for j, n := range t.Partitions {
				marks = append(marks, mark{marker: m, topic: t.Topic, id: txns.TopicOf(&t.UnknownTags), partition: n, code: &topic.Partitions[j].ErrorCode})
			}
			out.Topics = append(out.Topics, topic)
		}
		resp.Markers = append(resp.Markers, out)
	}
	b.writeMarks(ctx, marks)
	return resp
}

// mark is one partition's marker, and where its outcome goes.
type mark struct {
	marker    *kmsg.WriteTxnMarkersRequestMarker
	topic     string
	id        protocol.TopicID // zero if an operator asks
	partition int32
	code      *int16
}

// strict reports whether the marker's epoch must be above that of the transaction which it ends: so it is from KIP-890's second version on.
func (m *mark) strict() bool { return m.marker.TransactionVersion >= 2 }

func (b *Broker) writeMarks(ctx context.Context, marks []mark) {
	ctx, cancel := context.WithTimeout(ctx, marksMax)
	defer cancel()
	var ofGroups sync.WaitGroup
	in := ingest.NewRequest(0, ingest.AcksAll)
	var codes []*int16 // of the batches
	for i := range marks {
		m := &marks[i]
		if m.topic == txns.OffsetsTopic {
			ofGroups.Go(func() {
				err := b.deps.Groups.EndTransaction(ctx, coordinator.ShardID(m.partition), groups.Marker{
					Producer: protocol.ProducerID(m.marker.ProducerID), Epoch: protocol.ProducerEpoch(m.marker.ProducerEpoch),
					Strict: m.strict(), Commit: m.marker.Committed, CoordinatorEpoch: m.marker.CoordinatorEpoch,
				})
				*m.code = int16(protocol.CodeOf(err))
			})
			continue
		}
		in.Batches = append(in.Batches, ingest.Batch{})
		codes = append(codes, m.code)
		b.prepareMark(m, &in.Batches[len(in.Batches)-1])
	}
	b.deps.Ingest.Produce(ctx, in)
	select {
	case <-in.Done():
		b.proveMarks(ctx, in)
		for i := range in.Batches {
			*codes[i] = int16(protocol.CodeOf(in.Batches[i].Result.Err))
		}
	case <-ctx.Done():
		for _, code := range codes {
			*code = int16(protocol.RequestTimedOut)
		}
	}
	ofGroups.Wait()
}

// marksMax bounds the wait for markers of one request to be durable: those that are not by then are asked for again, and others that come along with them are not held up.
const marksMax = 5 * time.Second

// proveMarks makes sure of markers for which nothing was appended, since they were there already, that this agent leads their partitions: one that has lost them may not know of the
// transaction that they are to end.
func (b *Broker) proveMarks(ctx context.Context, in *ingest.Request) {
	repeated := func(x *ingest.Batch) bool { return x.Result.Err == nil && x.Result.Repeated }
	for i := range in.Batches {
		if !repeated(&in.Batches[i]) {
			continue
		}
		if err := b.prove(ctx); err != nil {
			for j := range in.Batches {
				if repeated(&in.Batches[j]) {
					in.Batches[j].Result.Err = err
				}
			}
		}
		return
	}
}

// prepareMark makes the control batch of a marker.
func (b *Broker) prepareMark(m *mark, out *ingest.Batch) {
	t, err := b.topic(false, m.topic, [16]byte{})
	if err == nil && m.id != (protocol.TopicID{}) && m.id != t.ID { // one of this name was deleted, or is new
		err = protocol.UnknownTopicOrPartition.Err()
	}
	if err == nil {
		var p *ingest.Partition
		if p, err = b.deps.Partitions.Get(t, m.partition); err == nil {
			end := batch.EndMarker{
				ProducerID: protocol.ProducerID(m.marker.ProducerID), ProducerEpoch: protocol.ProducerEpoch(m.marker.ProducerEpoch),
				CoordinatorEpoch: m.marker.CoordinatorEpoch, Timestamp: b.deps.Now().UnixMilli(),
			}
			if m.marker.Committed {
				end.Marker = batch.Commit
			}
			err = out.Mark(p, end, m.strict())
		}
	}
	out.Result.Err = err
}
