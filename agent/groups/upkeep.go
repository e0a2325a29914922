package groups

import (
	"context"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// upkeep looks at intervals after every group that is live, that may have offsets to expire, or whose members
// nobody has heard of since the agent came to lead it, until ctx ends.
func (c *Coordinator) upkeep(ctx context.Context) {
	_ = retry.Every(ctx, c.cfg.UpkeepInterval, func() error { // its error is ctx's
		if err := c.completeIndex(ctx); err != nil {
			c.log.Warn("expire offsets", "error", err)
			return nil
		}
		for _, name := range c.dueGroups() {
			_, _ = call(ctx, c, name, func(o *owner, done func(struct{})) {
				o.expire()
				done(struct{}{})
			}) // a group that cannot be had now is looked after the next time
		}
		return nil
	})
}

// dueGroups returns the groups that the upkeep must look after, by name.
func (c *Coordinator) dueGroups() []string {
	now := c.deps.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, name := range sortedNames(c.index) {
		_, live := c.owners[name]
		if e := c.index[name]; live || e.state != group.Empty || !e.due.After(now) {
			names = append(names, name)
		}
	}
	return names
}

// expire deletes offsets that have outlived their retention and that no open transaction may change, and the group if it is empty and has
// neither offsets nor open transactions left.
func (o *owner) expire() {
	if o.machine.State() == group.Dead || !o.recorded {
		return
	}
	now := o.c.deps.Now()
	var expired []change
	for _, key := range sortedBlocks(o.offsets) {
		b := o.offsets[key]
		if b.inFlight > 0 || o.subscribed(key.topic) {
			continue
		}
		for _, p := range sortedPartitions(b.durable) {
			if at, ok := o.expiry(b.durable[p]); ok && !at.After(now) && !o.unstable(key.topic, p) {
				expired = append(expired, change{topic: key.topic, partition: p})
			}
		}
	}
	if len(expired) > 0 {
		o.c.log.Info("offsets expire", "group", o.name, "partitions", len(expired))
		o.c.metrics.expired.Add(float64(len(expired)))
	}
	o.change(expired, func(blockKey) {}, func(code protocol.ErrorCode) {
		if code == protocol.None && len(o.offsets) == 0 && len(o.open) == 0 && o.machine.Idle() && o.machine.State() == group.Empty {
			o.delete(func(protocol.ErrorCode) {})
		}
	})
}

// expiry returns when an offset has outlived its retention (KIP-211, ClassicGroup.offsetExpirationCondition): counted from
// when the group became empty; from the commit for groups that never had members and for topics that the members of a
// stable group are not subscribed to any more. Other offsets do not expire.
func (o *owner) expiry(offset coordinator.GroupOffset) (time.Time, bool) {
	committed := time.UnixMilli(offset.CommitMs)
	from := committed
	switch kind := o.machine.ProtocolType(); {
	case kind == "":
	case o.machine.State() == group.Empty:
		if since := o.machine.Since(); since.After(from) {
			from = since
		}
	case kind == consumerType && o.machine.State() == group.Stable:
	default:
		return time.Time{}, false
	}
	return from.Add(o.c.cfg.OffsetsRetention), true
}

// due returns when the upkeep must next look after the group if it is not live.
func (o *owner) due() time.Time {
	var first time.Time
	for _, b := range o.offsets {
		for _, offset := range b.durable {
			if at, ok := o.expiry(offset); ok && (first.IsZero() || at.Before(first)) {
				first = at
			}
		}
	}
	return first
}

// subscribed tells whether a member is subscribed to the topic (ClassicGroup.isSubscribedToTopic). Members of other
// protocols than that of consumers are subscribed to none; a consumer whose subscription cannot be read, to all.
func (o *owner) subscribed(topic string) bool {
	if o.machine.ProtocolType() != consumerType {
		return false
	}
	for _, metadata := range o.machine.Subscriptions() {
		var s kmsg.ConsumerMemberMetadata
		if err := s.ReadFrom(metadata); err != nil {
			return true
		}
		if slices.Contains(s.Topics, topic) {
			return true
		}
	}
	return false
}

// TopicDeleted deletes the topic's offsets in all groups that this agent coordinates. It returns when they are, or
// with the first error. It reads every group that is not live; groups whose shard moves meanwhile are left to their
// new coordinator, which should be told too. Until it returns, OffsetCommit does not know a topic of this name, so
// that no commit for one that was created anew is deleted with the old one's.
func (c *Coordinator) TopicDeleted(ctx context.Context, topic string) error {
	c.mu.Lock()
	c.deleting[topic]++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.deleting[topic]--; c.deleting[topic] == 0 {
			delete(c.deleting, topic)
		}
	}()
	if _, _, ok := c.deps.Topics.Topic(topic); ok {
		return nil // created anew; what was committed for it, before this call, must stay
	}
	if err := c.completeIndex(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	names := sortedNames(c.index)
	c.mu.Unlock()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(c.cfg.TopicDeletionsLive)
	for _, name := range names {
		tasks.Go(func() error {
			result, code := call(ctx, c, name, func(o *owner, done func(protocol.ErrorCode)) { o.topicDeleted(topic, done) })
			if code == protocol.None {
				code = result
			}
			if code == protocol.NotCoordinator {
				return nil
			}
			return code.Err()
		})
	}
	return tasks.Wait()
}

func (o *owner) topicDeleted(topic string, done func(protocol.ErrorCode)) {
	o.strip(func(p partition) bool { return p.topic == topic }, func(code protocol.ErrorCode) {
		if code != protocol.None {
			done(code)
			return
		}
		var changes []change
		for _, key := range sortedBlocks(o.offsets) {
			if key.topic != topic {
				continue
			}
			for _, p := range sortedPartitions(o.offsets[key].latest) {
				changes = append(changes, change{topic: topic, partition: p})
			}
		}
		o.change(changes, func(blockKey) {}, done)
	})
}
