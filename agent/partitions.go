package agent

import (
	"maps"
	"sync"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// Partitions are the partitions that this agent leads. It may be used concurrently.
type Partitions struct {
	view   *coordinator.View
	shards uint32

	mu      sync.RWMutex
	epochs  map[coordinator.ShardID]protocol.LeaderEpoch // shards that are led
	live    map[partition.ID]*ingest.Partition
	leaving map[coordinator.ShardID]bool // those of epochs that are about to be handed over
}

// newPartitions returns the registry of an agent that leads no shard yet.
func newPartitions(view *coordinator.View, shards uint32) *Partitions {
	return &Partitions{
		view: view, shards: shards,
		epochs: make(map[coordinator.ShardID]protocol.LeaderEpoch), live: make(map[partition.ID]*ingest.Partition),
		leaving: make(map[coordinator.ShardID]bool),
	}
}

// Leads reports whether this agent leads the shard, and under which epoch.
func (p *Partitions) Leads(id coordinator.ShardID) (epoch int32, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	e, ok := p.epochs[id]
	return int32(e), ok
}

// Get returns a partition of the topic that this agent leads. It makes the partition, empty, when it is asked for the first time: one that has
// records was restored. Errors are UNKNOWN_TOPIC_OR_PARTITION and NOT_LEADER_OR_FOLLOWER.
func (p *Partitions) Get(t *coordinator.Topic, number int32) (*ingest.Partition, error) {
	if number < 0 || number >= t.Partitions {
		return nil, protocol.UnknownTopicOrPartition.Errorf("topic %s has %d partitions, asked for %d", t.Name, t.Partitions, number)
	}
	id := partition.ID{Topic: t.ID, Partition: number}
	p.mu.RLock()
	live := p.live[id]
	p.mu.RUnlock()
	if live != nil {
		return live, nil
	}
	shard := t.ShardOf(number, p.shards)
	p.mu.Lock()
	defer p.mu.Unlock()
	if live := p.live[id]; live != nil {
		return live, nil
	}
	epoch, ok := p.epochs[shard]
	if !ok || p.leaving[shard] {
		return nil, movedError(shard)
	}
	if now, _, ok := p.view.Topic(t.Name); !ok || now.ID != t.ID {
		return nil, protocol.UnknownTopicOrPartition.Errorf("topic %s was deleted", t.Name)
	}
	live = ingest.NewPartition(id, t.Name, shard, partition.New(epoch))
	p.live[id] = live
	return live, nil
}

// find returns a partition that is led here and was used; nil if there is none.
func (p *Partitions) find(id partition.ID) *ingest.Partition {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.live[id]
}

// DropTopic closes the partitions of a topic that was deleted.
func (p *Partitions) DropTopic(t *coordinator.Topic) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range t.Partitions {
		id := partition.ID{Topic: t.ID, Partition: n}
		if live := p.live[id]; live != nil {
			live.Close(protocol.UnknownTopicOrPartition.Errorf("topic %s was deleted", t.Name))
			delete(p.live, id)
		}
	}
}

// All returns the partitions that are live.
func (p *Partitions) All() []*ingest.Partition {
	p.mu.RLock()
	defer p.mu.RUnlock()
	all := make([]*ingest.Partition, 0, len(p.live))
	for _, live := range p.live {
		all = append(all, live)
	}
	return all
}

// traffic returns what went through each shard that is led since it was called last, and through each topic, if anything did.
func (p *Partitions) traffic() (shards map[coordinator.ShardID]traffic, topics map[string]traffic) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	shards, topics = make(map[coordinator.ShardID]traffic, len(p.epochs)), make(map[string]traffic)
	for id := range p.epochs {
		shards[id] = traffic{}
	}
	for _, live := range p.live {
		var t traffic
		if t.produced, t.consumed = live.Traffic(); t != (traffic{}) {
			shards[live.Shard] = shards[live.Shard].plus(t)
			topics[live.Name] = topics[live.Name].plus(t)
		}
	}
	return shards, topics
}

// Len returns how many partitions are live.
func (p *Partitions) Len() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.live)
}

// adopt starts to lead shards, with the restored state of their partitions that have records.
func (p *Partitions) adopt(epochs map[coordinator.ShardID]protocol.LeaderEpoch, logs map[partition.ID]*partition.Log) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.Copy(p.epochs, epochs)
	for id, log := range logs {
		t, ok := p.view.TopicByID(id.Topic)
		if !ok {
			continue // deleted meanwhile
		}
		p.live[id] = ingest.NewPartition(id, t.Name, t.ShardOf(id.Partition, p.shards), log)
	}
}

// resign stops leading a shard: whatever is asked of its partitions is answered with NOT_LEADER_OR_FOLLOWER.
func (p *Partitions) resign(id coordinator.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.epochs, id)
	delete(p.leaving, id)
	for pid, live := range p.live {
		if live.Shard == id {
			live.Close(movedError(id))
			delete(p.live, pid)
		}
	}
}

// suspend has a shard's partitions answer as if they were not led, until resume or resign.
func (p *Partitions) suspend(id coordinator.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, led := p.epochs[id]; !led {
		return
	}
	p.leaving[id] = true
	for _, live := range p.live {
		if live.Shard == id {
			live.Close(movedError(id))
		}
	}
}

// resume takes suspend back: the partitions go on with all that they had taken, flushed or not.
func (p *Partitions) resume(id coordinator.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.leaving[id] {
		return
	}
	delete(p.leaving, id)
	for _, live := range p.live {
		if live.Shard == id {
			live.Reopen()
		}
	}
}

func movedError(id coordinator.ShardID) error {
	return protocol.NotLeaderOrFollower.Errorf("shard %d moved to another agent", id)
}
