package groups

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// OffsetCommit stores offsets, for members of the group or, while it is empty, for anybody. It returns when they are
// durable. Retention times of versions 2 to 4 are not heeded (KIP-211 made them obsolete).
func (c *Coordinator) OffsetCommit(ctx context.Context, req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	resp := kmsg.NewPtrOffsetCommitResponse()
	resp.Version = req.Version
	codes := map[partition]protocol.ErrorCode{}
	var wanted []change
	for _, t := range req.Topics {
		known, ok := c.topic(t.Topic)
		for _, p := range t.Partitions {
			if !ok || p.Partition < 0 || p.Partition >= known.Partitions {
				codes[partition{t.Topic, p.Partition}] = protocol.UnknownTopicOrPartition
				continue
			}
			wanted = append(wanted, change{topic: t.Topic, partition: p.Partition, offset: &coordinator.GroupOffset{
				Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: deref(p.Metadata), CommitMs: c.deps.Now().UnixMilli(),
			}})
		}
	}
	if len(wanted) > 0 {
		c.commit(ctx, req, wanted, codes)
	}
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetCommitResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			answer := kmsg.NewOffsetCommitResponseTopicPartition()
			answer.Partition, answer.ErrorCode = p.Partition, int16(codes[partition{t.Topic, p.Partition}])
			topic.Partitions = append(topic.Partitions, answer)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

// topic returns a topic that offsets can be committed for.
func (c *Coordinator) topic(name string) (coordinator.Topic, bool) {
	known, _, ok := c.deps.Topics.Topic(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	return known, ok && c.deleting[name] == 0
}

// partition names a partition of a request.
type partition struct {
	topic string
	index int32
}

// commit has the owner commit what is wanted and sets the codes of partitions that were not.
func (c *Coordinator) commit(ctx context.Context, req *kmsg.OffsetCommitRequest, wanted []change, codes map[partition]protocol.ErrorCode) {
	result, code := call(ctx, c, req.Group, func(o *owner, done func(commitOutcome)) {
		if !o.exists() && req.Generation >= 0 {
			done(commitOutcome{code: noSuchGroup(req.Version)})
			return
		}
		o.ask(commitEvent(req), func(r group.Result) {
			if code := r.(group.CodeResult).Code; code != protocol.None {
				done(commitOutcome{code: code})
				return
			}
			fitting, refused := c.fitting(wanted)
			tooLarge := func(b blockKey) {
				for _, ch := range fitting {
					if b == ch.block() {
						refused[partition{ch.topic, ch.partition}] = protocol.InvalidCommitOffsetSize
					}
				}
			}
			o.change(fitting, tooLarge, func(code protocol.ErrorCode) { done(commitOutcome{code, refused}) })
		})
	})
	if code != protocol.None {
		result.code = code
	}
	result.tell(wanted, codes, c.metrics.commits)
}

// commitOutcome is what became of a commit.
type commitOutcome struct {
	code    protocol.ErrorCode // of all that are not in refused
	refused map[partition]protocol.ErrorCode
}

// tell sets the codes of the partitions of a commit, and counts those that were committed.
func (r commitOutcome) tell(wanted []change, codes map[partition]protocol.ErrorCode, commits prometheus.Counter) {
	for _, ch := range wanted {
		at := partition{ch.topic, ch.partition}
		refused, ok := r.refused[at]
		switch {
		case ok:
			codes[at] = refused
		case r.code == protocol.None:
			commits.Inc()
		default:
			codes[at] = r.code
		}
	}
}

func commitEvent(req *kmsg.OffsetCommitRequest) func(group.RequestID) group.Event {
	return func(id group.RequestID) group.Event {
		return group.Commit{Request: id, MemberID: req.MemberID, InstanceID: deref(req.InstanceID), Generation: req.Generation}
	}
}

// noSuchGroup is what a member is told whose group does not exist.
func noSuchGroup(version int16) protocol.ErrorCode {
	if version >= 9 {
		return protocol.GroupIDNotFound
	}
	return protocol.IllegalGeneration
}

// fitting separates the offsets whose metadata keeps within the limit from those whose does not.
func (c *Coordinator) fitting(wanted []change) ([]change, map[partition]protocol.ErrorCode) {
	refused := map[partition]protocol.ErrorCode{}
	fitting := make([]change, 0, len(wanted))
	for _, ch := range wanted {
		if len(ch.offset.Metadata) > c.cfg.MetadataBytesMax {
			refused[partition{ch.topic, ch.partition}] = protocol.OffsetMetadataTooLarge
			continue
		}
		fitting = append(fitting, ch)
	}
	return fitting, refused
}

// OffsetDelete deletes offsets of topics that no member is subscribed to.
func (c *Coordinator) OffsetDelete(ctx context.Context, req *kmsg.OffsetDeleteRequest) *kmsg.OffsetDeleteResponse {
	resp := kmsg.NewPtrOffsetDeleteResponse()
	resp.Version = req.Version
	type outcome struct {
		code       protocol.ErrorCode // of the request
		subscribed map[string]bool
		write      protocol.ErrorCode // of the partitions that were to be deleted
	}
	result, code := call(ctx, c, req.Group, func(o *owner, done func(outcome)) {
		o.used = c.deps.Now()
		if code := o.checkDelete(); code != protocol.None {
			done(outcome{code: code})
			return
		}
		subscribed := map[string]bool{}
		var changes []change
		for _, t := range req.Topics {
			if o.subscribed(t.Topic) {
				subscribed[t.Topic] = true
				continue
			}
			for _, p := range t.Partitions {
				changes = append(changes, change{topic: t.Topic, partition: p.Partition})
			}
		}
		o.remove(changes, func(code protocol.ErrorCode) { done(outcome{subscribed: subscribed, write: code}) })
	})
	if code != protocol.None {
		result.code = code
	}
	if resp.ErrorCode = int16(result.code); result.code != protocol.None {
		return resp
	}
	for _, t := range req.Topics {
		topic := kmsg.NewOffsetDeleteResponseTopic()
		topic.Topic = t.Topic
		known, _, ok := c.deps.Topics.Topic(t.Topic)
		for _, p := range t.Partitions {
			answer := kmsg.NewOffsetDeleteResponseTopicPartition()
			answer.Partition = p.Partition
			switch {
			case !ok || p.Partition < 0 || p.Partition >= known.Partitions:
				answer.ErrorCode = int16(protocol.UnknownTopicOrPartition)
			case result.subscribed[t.Topic]:
				answer.ErrorCode = int16(protocol.GroupSubscribedToTopic)
			default:
				answer.ErrorCode = int16(result.write)
			}
			topic.Partitions = append(topic.Partitions, answer)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

// checkDelete is ClassicGroup.validateOffsetDelete.
func (o *owner) checkDelete() protocol.ErrorCode {
	switch {
	case !o.exists():
		return protocol.GroupIDNotFound
	case o.machine.State() != group.Empty && o.machine.ProtocolType() != consumerType:
		return protocol.NonEmptyGroup
	}
	return protocol.None
}

// remove deletes those of the offsets that exist, and what open transactions have of them.
func (o *owner) remove(changes []change, done func(protocol.ErrorCode)) {
	wanted := make(map[partition]bool, len(changes))
	for _, ch := range changes {
		wanted[partition{ch.topic, ch.partition}] = true
	}
	o.strip(func(p partition) bool { return wanted[p] }, func(code protocol.ErrorCode) {
		if code != protocol.None {
			done(code)
			return
		}
		existing := make([]change, 0, len(changes))
		for _, ch := range changes {
			b := o.offsets[ch.block()]
			if b == nil {
				continue
			}
			if _, ok := b.latest[ch.partition]; ok {
				existing = append(existing, ch)
			}
		}
		o.change(existing, func(blockKey) {}, done) // a smaller block fits if it fitted before
	})
}
