package txn

import (
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol"
)

// TestFence: once a decision's markers are written, the producer is fenced in partitions where it may have gone on.
func TestFence(t *testing.T) {
	at := func(n int32) Set { return NewSet(Partition{protocol.TopicID{'a'}, n}) }
	now := time.UnixMilli(1_000_000)
	record := Snapshot{
		Format: 1, State: PrepareCommit, Version2: true, ProducerID: 100, Epoch: 4, LastProducerID: 100, LastEpoch: 3, NextProducerID: 200, TimeoutMs: 60_000, StartedMs: -1,
		Partitions: at(0), Fence: at(1),
	}
	m, err := Load(Config{TimeoutMax: time.Hour, Expiration: time.Hour, PartitionsMax: 10, ParkedMax: 10}, now, record)
	if err != nil {
		t.Fatal(err)
	}
	mark := func(effects []Effect) Mark {
		t.Helper()
		if len(effects) != 1 {
			t.Fatalf("effects %v, want a mark", effects)
		}
		got, ok := effects[0].(Mark)
		if !ok {
			t.Fatalf("effects %v, want a mark", effects)
		}
		return got
	}
	first := mark(m.Step(now, Loaded{}))
	if !first.Commit || !first.Version2 || first.Epoch != 4 || !slices.Equal(first.Partitions, at(0)) {
		t.Errorf("the decision's mark is %+v", first)
	}
	second := mark(m.Step(now, Marked{Write: first.Write}))
	if second.Commit || second.Version2 || second.Epoch != epochMax || second.ProducerID != 100 || !slices.Equal(second.Partitions, at(1)) {
		t.Errorf("the mark that fences is %+v", second)
	}
	if effects := m.Step(now, Marked{Write: first.Write}); len(effects) > 0 {
		t.Errorf("the decision's markers again: %v", effects)
	}
	m.Step(now, Marked{Write: second.Write})
	if got := m.Snapshot(); got.ProducerID != 200 || got.Epoch != 0 || len(got.Fence)+len(got.Partitions) > 0 {
		t.Errorf("then it is %+v", got)
	}
}
