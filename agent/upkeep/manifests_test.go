package upkeep

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	memstore "github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
)

func memkv(t *testing.T) *mem.Store {
	t.Helper()
	return mem.New(mem.Config{ClusterID: 1, Start: time.Now()})
}

// ledger takes what is written, or fails.
type ledger struct {
	err     error
	records []coordinator.Shard
}

func (l *ledger) Write(_ coordinator.ShardID, ops []coordinator.Op, done func(error)) {
	if l.err == nil {
		s, err := coordinator.Decode[coordinator.Shard](coordinator.Item{Key: ops[0].Key, Value: ops[0].Value})
		if err != nil {
			panic(err)
		}
		l.records = append(l.records, s)
	}
	done(l.err)
}

var topic = protocol.TopicID{1}

func manifests(store objectstore.Store, l *ledger) (*Manifests, *index.Index) {
	x := index.New()
	return NewManifests(Deps{
		Store: store, Ledger: l, Index: x, Now: time.Now, Known: func(id [16]byte) bool { return id == topic }, ProducerIdle: 100 * 365 * 24 * time.Hour,
	}), x
}

// TestFollow holds that a manifest is read once, however many ask, and a newer one as soon as it is asked for; an older one does not come back.
func TestFollow(t *testing.T) {
	store := fault.New(memstore.New())
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
	f, x := manifests(store, nil)
	check := func(name string, want protocol.Offset) {
		t.Helper()
		if err := f.Follow(t.Context(), 3, name); err != nil {
			t.Error(err)
		}
		if got := x.Range(partition.ID{Topic: topic, Partition: 2}).First; got != want {
			t.Errorf("the partition starts at %d in %q, want %d", got, name, want)
		}
	}
	first, second := put(1, 10), put(2, 20)
	check("", 0)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { check(first, 10) })
	}
	all.Wait()
	check(first, 10)
	if n := store.Calls(fault.Get); n != 1 {
		t.Errorf("%d reads of one manifest", n)
	}
	check(second, 20)
	check(first, 20)
	store.Add(fault.Rule{Op: fault.Get, Effect: fault.WrongBytes})
	if err := f.Follow(t.Context(), 3, put(3, 30)); !errors.Is(err, manifest.ErrCorrupt) {
		t.Errorf("a damaged manifest: %v", err)
	}
	check(second, 20)
}

// settled is a manifest with two segments, of which a partition of a topic that is gone has the second.
func settled() *manifest.Manifest {
	return &manifest.Manifest{
		Shard: 3, Epoch: 1, Generation: 5,
		Segments: []manifest.Segment{{Epoch: 1, Number: 1, Size: 200, FooterPos: 180}, {Epoch: 1, Number: 2, Size: 200, FooterPos: 180}},
		Partitions: []manifest.Partition{
			{
				Topic: topic, TopicName: "t", Partition: 2, LogStartOffset: 10, End: 90, LastStable: 80, Epochs: []manifest.EpochStart{{Epoch: 1, Start: 0}},
				Extents:   []manifest.Extent{{First: 10, Next: 90, Pos: 80, Size: 20, Epoch: 1}},
				Producers: []manifest.Producer{{ID: 7, CoordinatorEpoch: -1, TxnFirst: 80}, {ID: 8, CoordinatorEpoch: -1, TxnFirst: protocol.NoOffset}},
			},
			{
				Topic: protocol.TopicID{2}, TopicName: "gone", End: 5, LastStable: 5, Epochs: []manifest.EpochStart{{Epoch: 1, Start: 0}},
				Extents: []manifest.Extent{{Segment: 1, First: 0, Next: 5, Pos: 80, Size: 20, Epoch: 1}},
			},
		},
	}
}

// adopt puts that manifest, and has its shard adopted.
func adopt(t *testing.T, store objectstore.Store, s *Manifests) *manifest.Manifest {
	t.Helper()
	m := settled()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), m.Name(), objectstore.Bytes(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(t.Context(), 3, coordinator.Shard{Epoch: 4, Manifest: m.Name(), Merged: 77}); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDeleteBefore holds that a new log start offset keeps all else, that what nothing refers to any more is left out and becomes garbage, and that a write which is refused changes nothing.
func TestDeleteBefore(t *testing.T) {
	store := memstore.New()
	l := &ledger{}
	s, x := manifests(store, l)
	old := adopt(t, store, s)
	id := partition.ID{Topic: topic, Partition: 2}
	if r := x.Range(id); r != (index.Range{First: 10, End: 90, LastStable: 80}) {
		t.Errorf("the index has %+v", r)
	}
	log := partition.New(4)
	log.RestoreSnapshot(SnapshotOf(&old.Partitions[0]))
	p := ingest.NewPartition(id, "t", 3, log)

	l.err = coordinator.ErrFenced
	if err := s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 20}); !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("refused: %v", err)
	}
	l.err = nil
	if got := s.Of(3).LogStart(topic, 2); got != 10 || len(s.garbage.items) != 0 {
		t.Errorf("after a refused write the log starts at %d, %d objects are garbage", got, len(s.garbage.items))
	}
	if err := s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 50}); err != nil {
		t.Fatal(err)
	}
	now := s.Of(3)
	if record := l.records[0]; record.Manifest != now.Name() || record.Merged != 77 || now.Epoch != 4 || now.Generation != 7 {
		t.Errorf("installed %s of record %+v", now.Name(), record)
	}
	if len(now.Partitions) != 1 || len(now.Segments) != 1 || now.Partitions[0].LogStartOffset != 50 || now.Partitions[0].End != 90 || len(now.Partitions[0].Producers) != 2 {
		t.Errorf("the manifest is %+v", now)
	}
	if st, err := p.State(); err != nil || st.Start != 50 {
		t.Errorf("the partition starts at %d, %v", st.Start, err)
	}
	names := s.garbage.due(time.Now())
	if want := []string{old.Name(), old.Segments[1].Name(3)}; !slices.Equal(names, want) {
		t.Errorf("garbage is %v, want %v", names, want)
	}
	if old.Partitions[0].LogStartOffset != 10 || len(old.Segments) != 2 {
		t.Error("the manifest before was changed")
	}
	if err := s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 91}); err == nil || s.Of(3) != now {
		t.Errorf("past what is committed: %v", err)
	}
	s.Resign(3)
	if err := s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 60}); protocol.CodeOf(err) != protocol.NotLeaderOrFollower {
		t.Errorf("of a shard that is not led: %v", err)
	}
}

// TestForget holds that producers leave a manifest once they have been idle for long, those of partitions that nothing happens in too, and earlier if there are too many; that those with an open transaction stay; and that what other manifests refer to is not changed.
func TestForget(t *testing.T) {
	now := time.UnixMilli(1 << 40)
	producer := func(id protocol.ProducerID, idle time.Duration, txn protocol.Offset) manifest.Producer {
		return manifest.Producer{ID: id, TxnFirst: txn, UpdatedMs: now.Add(-idle).UnixMilli()}
	}
	for name, test := range map[string]struct {
		most int
		want [][]protocol.ProducerID
	}{
		"as many as there are":         {10, [][]protocol.ProducerID{{1, 2, 3, 5}, {6}, nil}},
		"as many as are not idle":      {5, [][]protocol.ProducerID{{1, 2, 3, 5}, {6}, nil}},
		"fewer":                        {4, [][]protocol.ProducerID{{1, 3, 5}, {6}, nil}},
		"fewer than transactions open": {0, [][]protocol.ProducerID{{3}, nil, nil}},
	} {
		old := &manifest.Manifest{Partitions: []manifest.Partition{
			{Producers: []manifest.Producer{producer(1, time.Minute, protocol.NoOffset), producer(2, 40*time.Minute, protocol.NoOffset), producer(3, 100*time.Hour, 7), producer(4, 61*time.Minute, protocol.NoOffset), producer(5, 20*time.Minute, protocol.NoOffset)}},
			{Producers: []manifest.Producer{producer(6, time.Minute, protocol.NoOffset)}},
			{Producers: []manifest.Producer{producer(1, 100*time.Hour, protocol.NoOffset)}},
		}}
		next := *old
		next.Partitions = slices.Clone(old.Partitions)
		forget(&next, now, time.Hour, test.most)
		for i := range next.Partitions {
			var got []protocol.ProducerID
			for _, p := range next.Partitions[i].Producers {
				got = append(got, p.ID)
			}
			if !slices.Equal(got, test.want[i]) {
				t.Errorf("%s: partition %d knows producers %d, want %d", name, i, got, test.want[i])
			}
		}
		if p := old.Partitions[0].Producers; len(p) != 5 || p[3].ID != 4 || p[4].ID != 5 {
			t.Errorf("%s: the manifest before has %+v", name, p)
		}
	}
}

// TestForgetEverywhere holds that any manifest that is installed leaves idle producers out, whatever it is for.
func TestForgetEverywhere(t *testing.T) {
	store, l := memstore.New(), &ledger{}
	s, _ := manifests(store, l)
	s.deps.ProducerIdle = time.Hour
	old := adopt(t, store, s)
	if n := len(old.Partitions[0].Producers); n != 2 {
		t.Fatalf("%d producers", n)
	}
	if err := s.install(t.Context(), 3, s.led(3), change{edit: func(*manifest.Manifest) {}}); err != nil {
		t.Fatal(err)
	}
	if p := s.Of(3).Partitions[0].Producers; len(p) != 1 || p[0].TxnFirst != 80 {
		t.Errorf("it knows %+v, want the one whose transaction is open", p)
	}
}

// TestDropDeleted holds that a deleted topic leaves the manifest of a shard once it is led, and not while it is restored: who cannot restore it gives it on as it was taken, with a manifest that must not be garbage by then.
func TestDropDeleted(t *testing.T) {
	store, l := memstore.New(), &ledger{}
	s, _ := manifests(store, l)
	old := adopt(t, store, s)
	for _, leads := range []bool{false, true, true} {
		if err := s.dropDeleted(t.Context(), func(coordinator.ShardID) bool { return leads }); err != nil {
			t.Fatal(err)
		}
		record, _ := s.Record(3)
		if dropped := record.Manifest != old.Name(); dropped != leads || dropped != (len(s.garbage.items) > 0) {
			t.Errorf("led: %v; the newest manifest is %s, and garbage %v", leads, record.Manifest, s.garbage.items)
		}
	}
	if m := s.Of(3); len(l.records) != 1 || len(m.Partitions) != 1 || len(m.Segments) != 1 {
		t.Errorf("%d manifests were installed, the last %+v; want one, without the topic that is gone", len(l.records), m)
	}
}

// TestHandedOver holds that nobody waits for a shard that was handed over: its turn is taken for good.
func TestHandedOver(t *testing.T) {
	s, _ := manifests(memstore.New(), &ledger{})
	if err := s.Adopt(t.Context(), 3, coordinator.Shard{Epoch: 4}); err != nil {
		t.Fatal(err)
	}
	p := ingest.NewPartition(partition.ID{Topic: topic}, "t", 3, partition.New(4))
	if _, _, ok, err := s.Hold(t.Context(), 3); !ok || err != nil {
		t.Fatal(ok, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 0}) }()
	s.Resign(3)
	if err := <-waited; protocol.CodeOf(err) != protocol.NotLeaderOrFollower {
		t.Errorf("who waited is told %v", err)
	}
	if err := s.Adopt(t.Context(), 3, coordinator.Shard{Epoch: 6}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 0}); err != nil {
		t.Errorf("led again: %v", err)
	}
}
