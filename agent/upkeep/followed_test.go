package upkeep

import (
	"errors"
	"sync"
	"testing"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
)

// TestFollowed holds that a manifest is read once, however many ask, and the newer one as soon as it is asked for.
func TestFollowed(t *testing.T) {
	store := fault.New(mem.New())
	topic := protocol.TopicID{1}
	put := func(generation uint64, start protocol.Offset) string {
		m := &manifest.Manifest{Shard: 3, Epoch: 1, Generation: generation}
		m.Set(manifest.Partition{Topic: topic, TopicName: "t", Partition: 2, LogStartOffset: start})
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), m.Name(), objectstore.Bytes(b)); err != nil {
			t.Fatal(err)
		}
		return m.Name()
	}
	f := NewFollowed(store)
	check := func(name string, number int32, want protocol.Offset) {
		if got, err := f.Start(t.Context(), 3, name, partition.ID{Topic: topic, Partition: number}); err != nil || got != want {
			t.Errorf("partition %d starts at %d in %q, %v, want %d", number, got, name, err, want)
		}
	}
	first, second := put(1, 10), put(2, 20)
	check("", 2, 0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { check(first, 2, 10) })
	}
	all.Wait()
	check(first, 1, 0)
	if n := store.Calls(fault.Get); n != 1 {
		t.Errorf("%d reads of one manifest", n)
	}
	check(second, 2, 20)

	store.Add(fault.Rule{Op: fault.Get, Effect: fault.WrongBytes})
	if _, err := f.Start(t.Context(), 3, put(3, 30), partition.ID{}); !errors.Is(err, manifest.ErrCorrupt) {
		t.Errorf("a damaged manifest: %v", err)
	}
	check(second, 2, 20)
}
