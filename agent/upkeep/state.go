package upkeep

import (
	"fmt"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// SnapshotOf returns the state of a partition that a manifest has.
func SnapshotOf(p *manifest.Partition) partition.Snapshot {
	s := partition.Snapshot{
		End: p.End, Epochs: make([]partition.EpochStart, len(p.Epochs)), Producers: make([]partition.Producer, len(p.Producers)),
	}
	for i, e := range p.Epochs {
		s.Epochs[i] = partition.EpochStart{Epoch: e.Epoch, Start: e.Start}
	}
	for i := range p.Producers {
		from := &p.Producers[i]
		to := partition.Producer{
			ID: from.ID, Epoch: from.Epoch, CoordinatorEpoch: from.CoordinatorEpoch, TxnFirst: from.TxnFirst, UpdatedMs: from.UpdatedMs, TimestampMs: from.TimestampMs,
			Batches: make([]partition.Appended, len(from.Batches)),
		}
		for j, b := range from.Batches {
			to.Batches[j] = partition.NewAppended(b.BaseSequence, b.BaseOffset, b.Records)
		}
		s.Producers[i] = to
	}
	return s
}

// take puts a state into a partition's entry. Epochs that end at the log start offset or before are left out.
func take(p *manifest.Partition, s partition.Snapshot, stable protocol.Offset) {
	p.End, p.LastStable = s.End, min(stable, s.End)
	p.Epochs = make([]manifest.EpochStart, 0, len(s.Epochs))
	for i, e := range s.Epochs {
		if i+1 < len(s.Epochs) && s.Epochs[i+1].Start <= p.LogStartOffset {
			continue
		}
		p.Epochs = append(p.Epochs, manifest.EpochStart{Epoch: e.Epoch, Start: e.Start})
	}
	p.Producers = make([]manifest.Producer, len(s.Producers))
	for i := range s.Producers {
		from := &s.Producers[i]
		to := manifest.Producer{
			ID: from.ID, Epoch: from.Epoch, CoordinatorEpoch: from.CoordinatorEpoch, TxnFirst: from.TxnFirst, UpdatedMs: from.UpdatedMs, TimestampMs: from.TimestampMs,
			Batches: make([]manifest.ProducerBatch, len(from.Batches)),
		}
		for j, b := range from.Batches {
			to.Batches[j] = manifest.ProducerBatch{BaseSequence: b.BaseSequence, BaseOffset: b.BaseOffset, Records: int32(b.LastOffset-b.BaseOffset) + 1}
		}
		p.Producers[i] = to
	}
}

// Apply takes the batches of a section, which continues the log, into a log that is being rebuilt. createdMs is when the section was written.
func Apply(l *partition.Log, s *segment.Section, createdMs int64) error {
	for b, err := range s.All() {
		if err != nil {
			return fmt.Errorf("rebuild a partition: %w", err)
		}
		l.Restore(createdMs, b.LeaderEpoch, b.Offset, partition.Batch{
			ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence,
			Records: b.LastOffsetDelta + 1, MaxTimestamp: b.MaxTimestamp,
			Transactional: b.Flags&segment.FlagTransactional != 0,
			Marker:        b.Flags&segment.FlagControl != 0, CoordinatorEpoch: b.CoordinatorEpoch,
		})
	}
	return nil
}
