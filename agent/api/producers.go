package api

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// initProducerID serves InitProducerId, versions 0 to 5. An idempotent producer that had an id and asks again after an error (KIP-360) is
// given a new one, which serves it as well as a raised epoch would; one of a transactional id is its coordinator's business.
func (b *Broker) initProducerID(ctx context.Context, req *kmsg.InitProducerIDRequest) *kmsg.InitProducerIDResponse {
	if req.TransactionalID != nil {
		return b.deps.Txns.InitProducerID(ctx, req)
	}
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.Version = req.Version
	resp.ProducerID, resp.ProducerEpoch = int64(protocol.NoProducerID), int16(protocol.NoProducerEpoch)
	id, err := b.deps.ProducerIDs.Next(ctx)
	if err != nil {
		b.deps.Log.Warn("no producer id", "err", err)
		resp.ErrorCode = int16(protocol.CoordinatorNotAvailable)
		return resp
	}
	resp.ProducerID, resp.ProducerEpoch = int64(id), 0
	return resp
}

// describeProducers serves DescribeProducers, version 0 (KIP-664): every idempotent producer that the partition remembers, with where its open transaction
// begins, by which operators find one that hangs.
func (b *Broker) describeProducers(req *kmsg.DescribeProducersRequest) *kmsg.DescribeProducersResponse {
	resp := kmsg.NewPtrDescribeProducersResponse()
	resp.Version = req.Version
	for i := range req.Topics {
		t := &req.Topics[i]
		out := kmsg.NewDescribeProducersResponseTopic()
		out.Topic = t.Topic
		topic, err := b.topic(false, t.Topic, [16]byte{})
		for _, number := range t.Partitions {
			p := kmsg.NewDescribeProducersResponseTopicPartition()
			p.Partition = number
			perr := err
			if perr == nil {
				live, lerr := b.deps.Partitions.Get(topic, number)
				if perr = lerr; perr == nil {
					for _, producer := range live.Producers() {
						a := kmsg.NewDescribeProducersResponseTopicPartitionActiveProducer()
						a.ProducerID, a.ProducerEpoch = int64(producer.ID), int32(producer.Epoch)
						a.LastSequence, a.LastTimestamp = producer.LastSequence(), producer.TimestampMs
						a.CoordinatorEpoch, a.CurrentTxnStartOffset = producer.CoordinatorEpoch, int64(producer.TxnFirst)
						p.ActiveProducers = append(p.ActiveProducers, a)
					}
				}
			}
			p.ErrorCode, p.ErrorMessage = int16(protocol.CodeOf(perr)), message(perr)
			out.Partitions = append(out.Partitions, p)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp
}
