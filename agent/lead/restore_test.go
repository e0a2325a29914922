package lead_test

import (
	"testing"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
)

// TestRestoreOldSegments holds that an old segment, which is read because a transaction of one partition is open in it, tells nothing of producers of another: it would tell
// of sequences that segments which are not read have passed.
func TestRestoreOldSegments(t *testing.T) {
	m := newModel(t, 0)
	m.old = true
	other := partition.ID{Topic: id.Topic, Partition: 1}
	first := ingest.NewPartition(id, "t", shard, partition.New(1))
	second := ingest.NewPartition(other, "t", shard, partition.New(1))
	m.leader = first
	m.write(m.producers[0])
	m.leader = second
	idle := &producer{id: 20}
	m.produce(m.records(idle, false), logged{})
	m.commit(true)
	m.produce(m.records(idle, false), logged{})
	m.commit(true)
	logs := m.restored(time.Hour)
	if n := logs[id].Producers().Len(); n != 1 || logs[id].LastStable() != 0 {
		t.Errorf("%d producers and last stable offset %d of the partition with an open transaction, want 1 and 0", n, logs[id].LastStable())
	}
	if n := logs[other].Producers().Len(); n != 0 || logs[other].LastStable() != logs[other].End() {
		t.Errorf("%d producers of the other partition, want none", n)
	}
	if code := protocol.CodeOf(func() error {
		_, err := logs[other].Append(nowMs, partition.Batch{ProducerID: idle.id, BaseSequence: idle.sequence, Records: 1})
		return err
	}()); code != protocol.None {
		t.Errorf("the next batch of a producer that is forgotten: %v", code)
	}
}
