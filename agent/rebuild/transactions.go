package rebuild

import (
	"fmt"
	"maps"
	"slices"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// lastEpoch is the highest epoch of a transactional producer: whoever has an id at that epoch gets another id, and all epochs of the old one are fenced.
const lastEpoch protocol.ProducerEpoch = 32766

// producerAt is a producer in a partition.
type producerAt struct {
	producer  protocol.ProducerID
	partition partition.ID
}

// marked notes which producers had markers in what is merged. newer is whether that may have come after the copy was made.
func (r *rebuilder) marked(p *manifest.Partition, id partition.ID, newer bool) {
	for i := range p.Producers {
		at := &p.Producers[i]
		switch {
		case at.CoordinatorEpoch == partition.NoCoordinatorEpoch:
		case at.TxnFirst == protocol.NoOffset: // its newest is the marker
			r.marks[producerAt{at.ID, id}] = at.TimestampMs
		case newer: // the marker is older than its newest batch
			r.marks[producerAt{at.ID, id}] = at.UpdatedMs
		}
	}
}

// Standing is how a transactional producer stands in a partition.
type Standing struct {
	Epoch    protocol.ProducerEpoch // the highest
	MarkedMs int64                  // when its newest marker was written at the latest, Unix milliseconds; 0 for none
}

// past reports whether the transaction that a record has decided is over in a partition: what is open there began after it.
func (at Standing) past(s *txn.Snapshot) bool {
	if s.Version2 { // the marker has the epoch in which the next one begins
		return at.Epoch >= s.Epoch
	}
	return at.Epoch > s.Epoch || at.MarkedMs >= s.UpdatedMs
}

// standings tells of all transactional producers how they stand in their partitions.
func (r *rebuilder) standings() map[protocol.ProducerID]map[txn.Partition]Standing {
	all := make(map[protocol.ProducerID]map[txn.Partition]Standing)
	for id, l := range r.logs {
		if _, ok := r.plan.Topics[id.Topic]; !ok {
			continue
		}
		for _, p := range l.Snapshot().Producers {
			if p.TxnFirst == protocol.NoOffset && p.CoordinatorEpoch == partition.NoCoordinatorEpoch {
				continue // it has no transactions
			}
			if all[p.ID] == nil {
				all[p.ID] = make(map[txn.Partition]Standing)
			}
			all[p.ID][txn.Partition{Topic: id.Topic, Partition: id.Partition}] = Standing{p.Epoch, r.marks[producerAt{p.ID, id}]}
		}
	}
	return all
}

// transactions decides what becomes of transactional ids. Which transactions were begun or decided after the copy was made nobody knows: those that are open are aborted, but for one that the copy has
// decided to commit. Open ones may be on agents' disks alone: so all partitions that know a producer get a marker, which only fences where none is. Each id gets a new producer id when its producer comes back, whose old ones are fenced. fresh is the first producer id that is free; it returns the first that is left.
func (r *rebuilder) transactions(all map[string]txn.Snapshot, fresh protocol.ProducerID) protocol.ProducerID {
	producers := r.standings()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		s := all[key]
		at := producers[s.ProducerID]
		delete(producers, s.ProducerID)
		s = Settle(s, at)
		if s.State == txn.PrepareCommit && s.NextProducerID < 0 {
			s.NextProducerID = fresh
			fresh++
		}
		all[key] = s
	}
	for id, at := range producers {
		key, s := Unclaimed(id, r.found.Cluster.Shards, r.state.CreatedMs)
		all[key] = Settle(s, at)
	}
	return fresh
}

// Settle returns what becomes of a transactional id, whose producer is found to stand so in these partitions. What is found more may be settled later, before anybody coordinates the id.
func Settle(s txn.Snapshot, at map[txn.Partition]Standing) txn.Snapshot {
	if s.State != txn.PrepareCommit {
		return aborted(s, at)
	}
	s.Fence = s.Fence.Union(s.Partitions).Union(slices.Collect(maps.Keys(at)))
	s.Partitions = slices.DeleteFunc(slices.Clone(s.Partitions), func(p txn.Partition) bool {
		to, found := at[p]
		return found && to.past(&s)
	})
	return s
}

// Unclaimed returns the key and the record of a producer of which nobody knows whose it was, so that what it has begun can be ended. nowMs is Unix milliseconds.
func Unclaimed(id protocol.ProducerID, shards uint32, nowMs int64) (key string, s txn.Snapshot) {
	name := fmt.Sprintf("varve-restore-%d", id)
	return coordinator.KeyTxn(coordinator.ShardOfName(name, shards), name), txn.Snapshot{
		Format: 1, State: txn.Empty, ProducerID: id, TimeoutMs: 60_000, StartedMs: -1, UpdatedMs: nowMs,
	}
}

// aborted returns a transactional id whose transaction is aborted, in these partitions too, and whose producer is fenced.
func aborted(s txn.Snapshot, at map[txn.Partition]Standing) txn.Snapshot {
	s.Partitions = s.Partitions.Union(slices.Collect(maps.Keys(at)))
	s.State = txn.Empty
	if len(s.Partitions) > 0 {
		s.State = txn.PrepareAbort
	}
	s.Epoch, s.Version2 = max(s.Epoch, lastEpoch), false
	s.LastProducerID, s.LastEpoch, s.NextProducerID = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoProducerID
	return s
}
