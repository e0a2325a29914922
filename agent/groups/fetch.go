package groups

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// OffsetFetch returns durable offsets. A partition without one, and every partition of a group that does not exist, has
// offset -1 and no error. One whose offset an open transaction may change is UNSTABLE_OFFSET_COMMIT for who asks for stable offsets (v7 and later,
// KIP-447); others see the offset that counts as yet. Several groups are fetched one after another (v8 and later).
func (c *Coordinator) OffsetFetch(ctx context.Context, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	resp := kmsg.NewPtrOffsetFetchResponse()
	resp.Version = req.Version
	if req.Version < 8 {
		c.fetchOne(ctx, req, resp)
		return resp
	}
	for _, g := range req.Groups {
		answer := kmsg.NewOffsetFetchResponseGroup()
		answer.Group = g.Group
		var wanted map[string][]int32
		if g.Topics != nil {
			wanted = make(map[string][]int32, len(g.Topics))
			for _, t := range g.Topics {
				wanted[t.Topic] = t.Partitions
			}
		}
		found, code := c.fetch(ctx, g.Group, wanted, req.RequireStable)
		answer.ErrorCode = int16(code)
		for _, t := range found {
			topic := kmsg.NewOffsetFetchResponseGroupTopic()
			topic.Topic = t.topic
			for _, p := range t.partitions {
				part := kmsg.NewOffsetFetchResponseGroupTopicPartition()
				part.ErrorCode = int16(p.code)
				part.Partition, part.Offset, part.LeaderEpoch, part.Metadata = p.partition, p.Offset, p.LeaderEpoch, &p.Metadata
				topic.Partitions = append(topic.Partitions, part)
			}
			answer.Topics = append(answer.Topics, topic)
		}
		resp.Groups = append(resp.Groups, answer)
	}
	return resp
}

// fetchOne answers the versions that ask for one group. Version 1 has no place for the error of a group but in
// each partition.
func (c *Coordinator) fetchOne(ctx context.Context, req *kmsg.OffsetFetchRequest, resp *kmsg.OffsetFetchResponse) {
	var wanted map[string][]int32
	if req.Topics != nil {
		wanted = make(map[string][]int32, len(req.Topics))
		for _, t := range req.Topics {
			wanted[t.Topic] = t.Partitions
		}
	}
	found, code := c.fetch(ctx, req.Group, wanted, req.RequireStable)
	if req.Version >= 2 {
		resp.ErrorCode = int16(code)
	} else if code != protocol.None {
		found = unknownOffsets(wanted)
	}
	for _, t := range found {
		topic := kmsg.NewOffsetFetchResponseTopic()
		topic.Topic = t.topic
		for _, p := range t.partitions {
			part := kmsg.NewOffsetFetchResponseTopicPartition()
			part.ErrorCode = int16(p.code)
			part.Partition, part.Offset, part.LeaderEpoch, part.Metadata = p.partition, p.Offset, p.LeaderEpoch, &p.Metadata
			if req.Version < 2 {
				part.ErrorCode = int16(code)
			}
			topic.Partitions = append(topic.Partitions, part)
		}
		resp.Topics = append(resp.Topics, topic)
	}
}

// topicOffsets are a topic's offsets in an answer.
type topicOffsets struct {
	topic      string
	partitions []partitionOffset
}

type partitionOffset struct {
	partition int32
	coordinator.GroupOffset
	code protocol.ErrorCode
}

var noOffset = coordinator.GroupOffset{Offset: int64(protocol.NoOffset), LeaderEpoch: int32(protocol.NoLeaderEpoch)}

// unknownOffsets answers that no partition has an offset.
func unknownOffsets(wanted map[string][]int32) []topicOffsets {
	return pick(wanted, func(string, int32) (coordinator.GroupOffset, bool) { return noOffset, false })
}

// pick looks up the wanted offsets, topics in order of their names.
func pick(wanted map[string][]int32, offset func(string, int32) (coordinator.GroupOffset, bool)) []topicOffsets {
	found := make([]topicOffsets, 0, len(wanted))
	for _, topic := range sortedNames(wanted) {
		t := topicOffsets{topic: topic}
		for _, p := range wanted[topic] {
			at, ok := offset(topic, p)
			if !ok {
				at = noOffset
			}
			t.partitions = append(t.partitions, partitionOffset{partition: p, GroupOffset: at})
		}
		found = append(found, t)
	}
	return found
}

// fetch returns the wanted offsets, or with nil all that there are. An agent that was stopped for a while, and has lost the group meanwhile, must not answer from
// what it remembers.
func (c *Coordinator) fetch(ctx context.Context, name string, wanted map[string][]int32, stable bool) ([]topicOffsets, protocol.ErrorCode) {
	if _, ok := c.deps.Leads(coordinator.ShardOfName(name, c.cfg.Shards)); !ok {
		return nil, protocol.NotCoordinator
	}
	if err := c.deps.Prove(ctx); err != nil {
		return nil, protocol.NotCoordinator
	}
	return call(ctx, c, name, func(o *owner, done func([]topicOffsets)) {
		o.used = c.deps.Now()
		var found []topicOffsets
		if wanted != nil {
			found = pick(wanted, o.offset)
		} else {
			found = o.all()
		}
		if stable {
			o.maskUnstable(found)
		}
		done(found)
	})
}

// all returns every durable offset.
func (o *owner) all() []topicOffsets {
	var all []topicOffsets
	for _, key := range sortedBlocks(o.offsets) {
		b := o.offsets[key]
		for _, p := range sortedPartitions(b.durable) {
			if n := len(all); n == 0 || all[n-1].topic != key.topic {
				all = append(all, topicOffsets{topic: key.topic})
			}
			last := &all[len(all)-1]
			last.partitions = append(last.partitions, partitionOffset{partition: p, GroupOffset: b.durable[p]})
		}
	}
	return all
}

// maskUnstable takes out the offsets that open transactions may change.
func (o *owner) maskUnstable(found []topicOffsets) {
	for _, t := range found {
		for i, p := range t.partitions {
			if o.unstable(t.topic, p.partition) {
				t.partitions[i] = partitionOffset{partition: p.partition, GroupOffset: noOffset, code: protocol.UnstableOffsetCommit}
			}
		}
	}
}
