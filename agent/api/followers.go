package api

import (
	"context"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// Consumers that say where they are (client.rack, Fetch from version 11 on) read what is committed from an agent in their zone (KIP-392). Their leader sends
// them there when all agents know the records that they ask for, and that agent sends them back when it knows no more ([fetch.Followed]).

// consumer is who sent a Fetch request.
type consumer struct {
	rack          string // empty: it does not say, and is served by leaders alone
	readCommitted bool
	agents        []coordinator.Agent // that it may be sent to, once they are needed
}

// replica returns the node id of the agent in the consumer's zone to which it should go for what it asks of a partition that is led here; 0 for none. It is one of the
// replicas in the partition's metadata: the Java client goes to no other.
func (b *Broker) replica(from *consumer, t *coordinator.Topic, id partition.ID, offset protocol.Offset) int32 {
	if from.rack == "" || from.rack == b.cfg.Zone || !b.deps.Fetcher.Settled(id, offset, from.readCommitted, b.deps.Now()) {
		return 0
	}
	if from.agents == nil {
		from.agents = b.agents()
	}
	for _, node := range replicas(b.cfg.Node, from.agents, t.Replication, id.Partition) {
		inZone := slices.ContainsFunc(from.agents, func(a coordinator.Agent) bool {
			return a.Node == node && a.Zone == from.rack && a.State == coordinator.AgentServing
		})
		if inZone && node != b.cfg.Node {
			return node
		}
	}
	return 0
}

// followed returns what is needed to serve a partition that another agent leads, or notLed if this agent is about to lead it, or nobody has ever.
func (b *Broker) followed(ctx context.Context, t *coordinator.Topic, number int32, notLed error) (*fetch.Followed, error) {
	b.followedAt.Store(b.deps.Now().UnixNano())
	id := t.ShardOf(number, b.deps.View.Cluster().Shards)
	shard, _ := b.deps.View.Shard(id)
	if shard.Owner == 0 || shard.Node == b.cfg.Node {
		return nil, notLed
	}
	f := &fetch.Followed{
		ID: partition.ID{Topic: t.ID, Partition: number}, Epoch: protocol.LeaderEpoch(shard.Epoch), Leave: b.deps.Draining(),
	}
	if err := b.deps.Manifests.Follow(ctx, id, shard.Manifest); err != nil {
		return nil, protocol.KafkaStorageError.Errorf("%v", err)
	}
	if leader, ok := b.owner(&shard); ok {
		f.Leader = leader.Node
	}
	return f, nil
}

// FollowedAt returns when a consumer last asked for what another agent leads.
func (b *Broker) FollowedAt() time.Time { return time.Unix(0, b.followedAt.Load()) }

// owner returns the agent that owns a shard, if it serves.
func (b *Broker) owner(s *coordinator.Shard) (coordinator.Agent, bool) {
	for _, a := range b.deps.View.Agents() {
		if a.Log == s.Owner && a.State != coordinator.AgentStarting {
			return a, true
		}
	}
	return coordinator.Agent{}, false
}
