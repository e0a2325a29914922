package api

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/protocol"
)

// listOffsets serves ListOffsets, versions 1 to 10, with every special timestamp: earliest, latest, max (KIP-734), earliest local
// (KIP-405), latest tiered (KIP-1005). Nothing is "tiered" in Kafka's sense, so that the earliest local offset is the log start offset and
// there is no tiered one. Lookups by time are exact. An answer waits for the proof that this agent led what it leads when it was asked.
func (b *Broker) listOffsets(ctx context.Context, req *kmsg.ListOffsetsRequest) *kmsg.ListOffsetsResponse {
	resp := kmsg.NewPtrListOffsetsResponse()
	resp.Version = req.Version
	resp.Topics = make([]kmsg.ListOffsetsResponseTopic, len(req.Topics))
	repeated := repeatedPartitions(req)
	proved := sync.OnceValue(func() error { return b.prove(ctx) })
	for i := range req.Topics {
		t, out := &req.Topics[i], &resp.Topics[i]
		out.Topic = t.Topic
		topic, err := b.topic(false, t.Topic, [16]byte{})
		for j := range t.Partitions {
			p := kmsg.NewListOffsetsResponseTopicPartition()
			p.Partition, p.Offset, p.Timestamp = t.Partitions[j].Partition, -1, -1
			perr := err
			var live *ingest.Partition
			switch {
			case repeated[topicPartition{t.Topic, p.Partition}]:
				perr = protocol.InvalidRequest.Err()
			case !timestampServed(req.Version, t.Partitions[j].Timestamp):
				perr = protocol.UnsupportedVersion.Err()
			case perr == nil:
				live, perr = b.deps.Partitions.Get(topic, p.Partition)
			}
			if perr == nil {
				perr = proved()
			}
			if perr == nil {
				perr = b.listOffset(ctx, live, req.IsolationLevel == 1, &t.Partitions[j], &p)
			}
			p.ErrorCode = int16(protocol.CodeOf(perr))
			out.Partitions = append(out.Partitions, p)
		}
	}
	return resp
}

type topicPartition struct {
	topic     string
	partition int32
}

// repeatedPartitions returns those that stand in the request more than once: INVALID_REQUEST, as ReplicaManager.fetchOffset has it.
func repeatedPartitions(req *kmsg.ListOffsetsRequest) map[topicPartition]bool {
	var repeated map[topicPartition]bool
	seen := make(map[topicPartition]struct{})
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			key := topicPartition{req.Topics[i].Topic, req.Topics[i].Partitions[j].Partition}
			if _, ok := seen[key]; ok {
				if repeated == nil {
					repeated = make(map[topicPartition]bool)
				}
				repeated[key] = true
			}
			seen[key] = struct{}{}
		}
	}
	return repeated
}

// timestampServed reports whether a version of ListOffsets knows the timestamp: special ones came one by one.
func timestampServed(version int16, timestamp int64) bool {
	switch timestamp {
	case protocol.MaxTimestamp:
		return version >= 7
	case protocol.EarliestLocalTimestamp:
		return version >= 8
	case protocol.LatestTieredTimestamp:
		return version >= 9
	}
	return timestamp >= protocol.EarliestTimestamp
}

// listOffset answers for one partition.
func (b *Broker) listOffset(ctx context.Context, live *ingest.Partition, readCommitted bool,
	asked *kmsg.ListOffsetsRequestTopicPartition, out *kmsg.ListOffsetsResponseTopicPartition,
) error {
	st, err := live.State()
	if err == nil {
		err = checkEpoch(protocol.LeaderEpoch(asked.CurrentLeaderEpoch), st.Epoch)
	}
	if err != nil {
		return err
	}
	limit := st.HighWatermark
	if readCommitted {
		limit = st.LastStable
	}
	set := func(offset protocol.Offset, timestamp int64) {
		out.Offset, out.Timestamp, out.LeaderEpoch = int64(offset), timestamp, int32(live.EpochOf(offset))
	}
	lookup := b.deps.Lookup
	switch ts := asked.Timestamp; ts {
	case protocol.LatestTimestamp:
		set(limit, protocol.NoTimestamp)
	case protocol.EarliestTimestamp, protocol.EarliestLocalTimestamp:
		set(st.Start, protocol.NoTimestamp)
	case protocol.LatestTieredTimestamp:
	case protocol.MaxTimestamp:
		found, ok, err := lookup.Latest(ctx, live, limit)
		if err != nil || !ok {
			return err
		}
		set(found.Offset, found.Timestamp)
	default:
		found, ok, err := lookup.FirstAtOrAfter(ctx, live, ts, limit)
		if err != nil || !ok {
			return err
		}
		set(found.Offset, found.Timestamp)
	}
	return nil
}

// checkEpoch compares the leader epoch that a client knows with the leader's.
func checkEpoch(client, leader protocol.LeaderEpoch) error {
	switch {
	case client == protocol.NoLeaderEpoch || client == leader:
		return nil
	case client < leader:
		return protocol.FencedLeaderEpoch.Err()
	default:
		return protocol.UnknownLeaderEpoch.Err()
	}
}

// offsetForLeaderEpoch serves OffsetForLeaderEpoch, versions 2 to 4.
func (b *Broker) offsetForLeaderEpoch(req *kmsg.OffsetForLeaderEpochRequest) *kmsg.OffsetForLeaderEpochResponse {
	resp := kmsg.NewPtrOffsetForLeaderEpochResponse()
	resp.Version = req.Version
	for i := range req.Topics {
		t := &req.Topics[i]
		out := kmsg.NewOffsetForLeaderEpochResponseTopic()
		out.Topic = t.Topic
		topic, err := b.topic(false, t.Topic, [16]byte{})
		for j := range t.Partitions {
			p := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
			p.Partition = t.Partitions[j].Partition
			perr := err
			var live *ingest.Partition
			if perr == nil {
				live, perr = b.deps.Partitions.Get(topic, p.Partition)
			}
			if perr == nil {
				perr = epochEnd(live, &t.Partitions[j], &p)
			}
			p.ErrorCode = int16(protocol.CodeOf(perr))
			out.Partitions = append(out.Partitions, p)
		}
		resp.Topics = append(resp.Topics, out)
	}
	return resp
}

func epochEnd(live *ingest.Partition, asked *kmsg.OffsetForLeaderEpochRequestTopicPartition, out *kmsg.OffsetForLeaderEpochResponseTopicPartition) error {
	st, err := live.State()
	if err == nil {
		err = checkEpoch(protocol.LeaderEpoch(asked.CurrentLeaderEpoch), st.Epoch)
	}
	if err != nil {
		return err
	}
	epoch, end, _ := live.EpochEnd(protocol.LeaderEpoch(asked.LeaderEpoch))
	out.LeaderEpoch, out.EndOffset = int32(epoch), int64(end)
	return nil
}
