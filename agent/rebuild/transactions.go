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
	open     bool  // it has a transaction there
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
			at := standing{epoch: p.Epoch, open: p.TxnFirst != protocol.NoOffset, markedMs: r.marks[producerAt{p.ID, id}]}
			if !at.open && p.CoordinatorEpoch == partition.NoCoordinatorEpoch {
				continue
			}
			if all[p.ID] == nil {
				all[p.ID] = make(map[txn.Partition]standing)
			}
			all[p.ID][txn.Partition{Topic: id.Topic, Partition: id.Partition}] = at
		}
	}
	return all
}

// transactions decides what becomes of transactional ids. Which transactions were begun or decided after the copy was made nobody knows: those that are open are aborted, but for one that the copy has
// decided to commit. Each id gets a new producer id when its producer comes back, whose old ones are fenced. fresh is the first producer id that is free; it returns the first that is left.
func (r *rebuilder) transactions(all map[string]txn.Snapshot, fresh protocol.ProducerID) protocol.ProducerID {
	producers := r.standings()
	keys := slices.Sorted(maps.Keys(all))
	for _, key := range keys {
		s := all[key]
		if s.State != txn.PrepareCommit {
			continue
		}
		var decided []txn.Partition
		for _, p := range s.Partitions {
			if !producers[s.ProducerID][p].past(&s) {
				decided = append(decided, p)
				delete(producers[s.ProducerID], p)
			}
		}
		s.Partitions = decided
		if s.NextProducerID < 0 {
			s.NextProducerID = fresh
			fresh++
		}
		all[key] = s
	}
	for _, key := range keys { // what the ids above have left of a producer is another's, or nobody's
		if s := all[key]; s.State != txn.PrepareCommit {
			all[key] = aborted(s, opened(producers[s.ProducerID]))
			delete(producers, s.ProducerID)
		}
	}
	for id, at := range producers {
		partitions := opened(at)
		if len(partitions) == 0 {
			continue
		}
		name := fmt.Sprintf("varve-restore-%d", id) // whose it was nobody knows, or its own has to commit the one before
		all[coordinator.KeyTxn(coordinator.ShardOfName(name, r.found.Cluster.Shards), name)] = aborted(txn.Snapshot{
			Format: 1, ProducerID: id, TimeoutMs: 60_000, StartedMs: -1, UpdatedMs: r.state.CreatedMs,
		}, partitions)
	}
	return fresh
}

// opened returns the partitions in which a producer has a transaction.
func opened(at map[txn.Partition]standing) (all []txn.Partition) {
	for p, s := range at {
		if s.open {
			all = append(all, p)
		}
	}
	return all
}

// aborted returns a transactional id whose transaction is aborted, in these partitions too, and whose producer is fenced.
func aborted(s txn.Snapshot, partitions []txn.Partition) txn.Snapshot {
	switch s.State {
	case txn.Ongoing, txn.PrepareAbort:
		s.Partitions = s.Partitions.Union(txn.NewSet(partitions...))
	default:
		s.Partitions = txn.NewSet(partitions...)
	}
	s.State = txn.Empty
	if len(s.Partitions) > 0 {
		s.State = txn.PrepareAbort
	}
	s.Epoch, s.Version2 = max(s.Epoch, lastEpoch), false
	s.LastProducerID, s.LastEpoch, s.NextProducerID = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoProducerID
	return s
}
