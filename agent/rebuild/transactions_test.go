package rebuild

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const (
	producer  = protocol.ProducerID(7)
	decidedMs = int64(1000) // when the copy's decision was made
	free      = protocol.ProducerID(5000)
)

// txnCase is what a copy has of a transactional id, what partitions 0, 1 and so on of orders have of its producer, and what follows.
type txnCase struct {
	state    txn.State
	version2 bool
	epoch    protocol.ProducerEpoch
	in       []int32 // partitions of the record
	// has is, of each partition, in order: "b3" for a batch of epoch 3, "m3@1200" for a marker, and its timestamp.
	has     []string
	merged  bool // all of it is merged, after the copy was made
	copied  bool // all of it is merged, before
	unknown bool // the copy has another id

	commit, fence, abort []int32 // partitions that get the markers of the decision, that are fenced after it, and that are aborted
	rest                 []int32 // partitions in which the producer is aborted under another name
}

// TestTransactions: a transaction that the copy has decided is committed, and none that its producer began after it; no partition is left with one that is open.
func TestTransactions(t *testing.T) {
	for name, c := range map[string]txnCase{
		"what was open is aborted, wherever it is": {
			state: txn.Ongoing, epoch: 3, in: []int32{0, 1}, has: []string{"b3", "", "m3@900 b3"}, abort: []int32{0, 1, 2},
		},
		"what may be open on disks is aborted": {state: txn.CompleteCommit, epoch: 3, has: []string{"b3 m3@900"}, abort: []int32{0}},
		"no partition is known":                {state: txn.CompleteCommit, epoch: 3, has: []string{""}},
		"version 1: no marker was flushed": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"b3", "b3 m3@900 b3"}, commit: []int32{0, 1}, fence: []int32{0, 1},
		},
		"version 1: one marker was flushed": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"b3", "b3 m3@1000"}, commit: []int32{0}, fence: []int32{0, 1},
		},
		"version 1: the producer went on in the same epoch": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"b3 m3@1001 b3", "b3", "b3"}, commit: []int32{1}, fence: []int32{0, 1, 2},
		},
		"version 1: the producer came back and went on": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"b3", "b4", "m4@1100 b4"}, commit: []int32{0}, fence: []int32{0, 1, 2},
		},
		"version 1: what was open when it was merged was flushed after the decision": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"m3@900 b3", "b3"}, merged: true, commit: []int32{1}, fence: []int32{0, 1},
		},
		"version 1: what was open was merged before the copy was made": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0}, has: []string{"m3@900 b3"}, copied: true, commit: []int32{0}, fence: []int32{0},
		},
		"version 1: the marker was merged": {
			state: txn.PrepareCommit, epoch: 3, in: []int32{0, 1}, has: []string{"b3 m3@1001 | b3", "b3 m3@900 | b3"}, copied: true, commit: []int32{1}, fence: []int32{0, 1},
		},
		"version 2: no marker was flushed": {
			state: txn.PrepareCommit, version2: true, epoch: 4, in: []int32{0, 1}, has: []string{"b3", ""}, commit: []int32{0, 1}, fence: []int32{0, 1},
		},
		"version 2: one marker was flushed": {
			state: txn.PrepareCommit, version2: true, epoch: 4, in: []int32{0, 1}, has: []string{"b3 m4@1000", "b3"}, commit: []int32{1}, fence: []int32{0, 1},
		},
		"version 2: the producer went on": {
			state: txn.PrepareCommit, version2: true, epoch: 4, in: []int32{0, 1}, has: []string{"b3 m4@1000 b4", "b3", "b4"}, commit: []int32{1}, fence: []int32{0, 1, 2},
		},
		"version 2: the producer went on and on": {
			state: txn.PrepareCommit, version2: true, epoch: 4, in: []int32{0, 1}, has: []string{"b3 m4@1000 b4 m5@1100 b5", "b3"}, commit: []int32{1}, fence: []int32{0, 1},
		},
		"an id that the copy does not know": {unknown: true, state: txn.Empty, has: []string{"b3", "b3 m3@1000"}, rest: []int32{0, 1}},
	} {
		t.Run(name, func(t *testing.T) { c.run(t) })
	}
}

func (c txnCase) run(t *testing.T) {
	topic := coordinator.Topic{ID: orders.ID, Name: orders.Name, Partitions: int32(len(c.has))}
	r := &rebuilder{
		state: new(State), plan: &Plan{Topics: map[protocol.TopicID]coordinator.Topic{topic.ID: topic}},
		found: &Found{Cluster: coordinator.Cluster{Shards: 1}, Shards: make(map[coordinator.ShardID]coordinator.Shard), Manifests: make(map[coordinator.ShardID]*manifest.Manifest)},
	}
	m := &manifest.Manifest{Epoch: 1, Generation: 1}
	var b segment.Builder
	for n, steps := range c.has {
		before, after, split := strings.Cut(steps, "|")
		if !split && !c.merged && !c.copied {
			before, after = "", before
		}
		end := mergedSteps(t, m, int32(n), strings.Fields(before))
		for i, step := range strings.Fields(after) {
			if err := b.Add(segment.Key{Topic: topic.ID, Partition: int32(n)}, topic.Name, stepBatch(t, step, end+protocol.Offset(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.found.Manifests[0] = m
	if c.copied {
		r.found.Shards[0] = coordinator.Shard{Manifest: m.Name()}
	}
	if _, footer, err := b.Finish(segment.Header{ID: segment.ID{Log: 1, Fence: 1, Commit: 1}}); err == nil { // else there are no batches
		r.plan.Commits = []Commit{{Commit: commitOf(footer), Footer: footer}}
	}
	if err := r.replay(); err != nil {
		t.Fatal(err)
	}
	record := txn.Snapshot{
		Format: 1, State: c.state, ProducerID: producer, Epoch: c.epoch, Version2: c.version2, LastProducerID: -1, LastEpoch: -1, NextProducerID: -1, StartedMs: 950, UpdatedMs: decidedMs,
		Partitions: setOf(c.in),
	}
	key, rest := coordinator.KeyTxn(0, "id"), coordinator.KeyTxn(0, fmt.Sprintf("varve-restore-%d", producer))
	all := map[string]txn.Snapshot{key: record}
	if c.unknown {
		record.ProducerID++
		all[key] = record
	}
	left := r.transactions(all, free)
	c.check(t, all[key], left)
	if got := all[rest]; !slices.Equal(got.Partitions, setOf(c.rest)) || len(c.rest) > 0 && (got.State != txn.PrepareAbort || got.Epoch != lastEpoch || got.ProducerID != producer) {
		t.Errorf("under another name: %+v, want an abort of %v", got, c.rest)
	}
	delete(all, key)
	delete(all, rest)
	if len(all) > 0 {
		t.Errorf("there are %v", slices.Collect(maps.Keys(all)))
	}
}

// check looks at what became of the id.
func (c txnCase) check(t *testing.T, got txn.Snapshot, left protocol.ProducerID) {
	t.Helper()
	if c.state != txn.PrepareCommit {
		want := txn.Empty
		if len(c.abort) > 0 {
			want = txn.PrepareAbort
		}
		if got.State != want || got.Epoch != lastEpoch || !slices.Equal(got.Partitions, setOf(c.abort)) || left != free {
			t.Errorf("%+v, want %s of %v", got, want, c.abort)
		}
		return
	}
	if got.State != txn.PrepareCommit || got.Epoch != c.epoch || got.Version2 != c.version2 || !slices.Equal(got.Partitions, setOf(c.commit)) || !slices.Equal(got.Fence, setOf(c.fence)) {
		t.Errorf("%+v, want PrepareCommit of %v in epoch %d, and %v fenced", got, c.commit, c.epoch, c.fence)
	}
	if got.NextProducerID != free || left != free+1 {
		t.Errorf("its next producer id is %d, and %d is free then, want %d and %d", got.NextProducerID, left, free, free+1)
	}
}

func setOf(partitions []int32) txn.Set {
	var all []txn.Partition
	for _, n := range partitions {
		all = append(all, txn.Partition{Topic: orders.ID, Partition: n})
	}
	return txn.NewSet(all...)
}

// parseStep reads what a partition has, as [txnCase] tells it.
func parseStep(t *testing.T, step string) (marker bool, epoch protocol.ProducerEpoch, ms int64) {
	t.Helper()
	if _, err := fmt.Sscanf(step, "m%d@%d", &epoch, &ms); err == nil {
		return true, epoch, ms
	}
	if _, err := fmt.Sscanf(step, "b%d", &epoch); err != nil {
		t.Fatalf("%s: %v", step, err)
	}
	return false, epoch, 0
}

func stepBatch(t *testing.T, step string, at protocol.Offset) []byte {
	t.Helper()
	marker, epoch, ms := parseStep(t, step)
	var data []byte
	var err error
	if marker {
		data, err = batch.AppendControlBatch(nil, at, 1, batch.EndMarker{Marker: batch.Commit, ProducerID: producer, ProducerEpoch: epoch, Timestamp: ms})
	} else {
		b := batch.NewBuilder(batch.None)
		b.BaseOffset, b.LeaderEpoch, b.ProducerID, b.ProducerEpoch, b.Transactional = at, 1, producer, epoch, true
		b.Append(5, nil, []byte("x")) // by the producer's clock
		data, err = b.AppendTo(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// mergedSteps puts what is merged of a partition into its manifest, and returns its end. It was flushed after the decision.
func mergedSteps(t *testing.T, m *manifest.Manifest, n int32, steps []string) (end protocol.Offset) {
	t.Helper()
	at := manifest.Producer{ID: producer, CoordinatorEpoch: -1, TxnFirst: protocol.NoOffset}
	for _, step := range steps {
		marker, epoch, ms := parseStep(t, step)
		at.Epoch, at.UpdatedMs = epoch, decidedMs+500
		if marker {
			at.CoordinatorEpoch, at.TimestampMs, at.TxnFirst = 0, ms, protocol.NoOffset
		} else if at.TxnFirst == protocol.NoOffset {
			at.TxnFirst = end
		}
		end++
	}
	if end > 0 {
		m.Set(manifest.Partition{Topic: orders.ID, TopicName: orders.Name, Partition: n, End: end, Epochs: []manifest.EpochStart{{Epoch: 1}}, Producers: []manifest.Producer{at}})
	}
	return end
}
