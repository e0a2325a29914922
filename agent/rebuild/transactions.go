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

// standing is how a transactional producer stands in a partition.
type standing struct {
	epoch    protocol.ProducerEpoch
	markedMs int64 // when its newest marker was written at the latest, Unix milliseconds; 0 for none
}

// past reports whether the transaction that a record has decided is over in a partition: what is open there began after it.
func (at standing) past(s *txn.Snapshot) bool {
	if s.Version2 { // the marker has the epoch in which the next one begins
		return at.epoch >= s.Epoch
	}
	return at.epoch > s.Epoch || at.markedMs >= s.UpdatedMs
}

// standings tells of all transactional producers how they stand in their partitions.
func (r *rebuilder) standings() map[protocol.ProducerID]map[txn.Partition]standing {
	all := make(map[protocol.ProducerID]map[txn.Partition]standing)
	for id, l := range r.logs {
		if _, ok := r.plan.Topics[id.Topic]; !ok {
			continue
		}
		for _, p := range l.Snapshot().Producers {
			if p.TxnFirst == protocol.NoOffset && p.CoordinatorEpoch == partition.NoCoordinatorEpoch {
				continue // it has no transactions
			}
			if all[p.ID] == nil {
				all[p.ID] = make(map[txn.Partition]standing)
			}
			all[p.ID][txn.Partition{Topic: id.Topic, Partition: id.Partition}] = standing{p.Epoch, r.marks[producerAt{p.ID, id}]}
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
		if s.State != txn.PrepareCommit {
			all[key] = aborted(s, at)
			continue
		}
		s.Fence = s.Partitions.Union(slices.Collect(maps.Keys(at)))
		s.Partitions = slices.DeleteFunc(slices.Clone(s.Partitions), func(p txn.Partition) bool { return at[p].past(&s) })
		if s.NextProducerID < 0 {
			s.NextProducerID = fresh
			fresh++
		}
		all[key] = s
	}
	for id, at := range producers {
		name := fmt.Sprintf("varve-restore-%d", id) // whose it was nobody knows
		all[coordinator.KeyTxn(coordinator.ShardOfName(name, r.found.Cluster.Shards), name)] = aborted(txn.Snapshot{
			Format: 1, ProducerID: id, TimeoutMs: 60_000, StartedMs: -1, UpdatedMs: r.state.CreatedMs,
		}, at)
	}
	return fresh
}

// aborted returns a transactional id whose transaction is aborted, in these partitions too, and whose producer is fenced.
func aborted(s txn.Snapshot, at map[txn.Partition]standing) txn.Snapshot {
	s.Partitions = s.Partitions.Union(slices.Collect(maps.Keys(at)))
	s.State = txn.Empty
	if len(s.Partitions) > 0 {
		s.State = txn.PrepareAbort
	}
	s.Epoch, s.Version2 = max(s.Epoch, lastEpoch), false
	s.LastProducerID, s.LastEpoch, s.NextProducerID = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoProducerID
	return s
}
