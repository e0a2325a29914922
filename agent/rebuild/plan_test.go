package rebuild

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// orders has two partitions, each in a shard of its own; gone is a topic that the copy does not have.
var (
	orders = coordinator.Topic{ID: protocol.TopicID{1}, Name: "orders", Partitions: 2}
	gone   = protocol.TopicID{2}
	anew   = protocol.TopicID{3} // another topic named orders
)

const shards = 2

// part is what a segment has of a partition of orders, or of another topic.
type part struct {
	partition   int32
	first, next protocol.Offset
	epoch       protocol.LeaderEpoch
	topic       protocol.TopicID // zero for orders
}

func shardOf(n int32) coordinator.ShardID { return orders.ShardOf(n, shards) }

// flushed returns a segment of level 0. Its name is log/commit/fence/attempt.
func flushed(t *testing.T, name string, parts ...part) *segment.Footer {
	t.Helper()
	footer, _ := segmentOf(t, name, parts...)
	return footer
}

// segmentOf returns its bytes too.
func segmentOf(t *testing.T, name string, parts ...part) (*segment.Footer, []byte) {
	t.Helper()
	var id segment.ID
	if _, err := fmt.Sscanf(name, "%d/%d/%d/%d", &id.Log, &id.Commit, &id.Fence, &id.Attempt); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var b segment.Builder
	for _, p := range parts {
		topic, text := orders.ID, orders.Name
		switch p.topic {
		case gone:
			topic, text = gone, "other"
		case anew:
			topic = anew
		}
		records := batch.NewBuilder(batch.None)
		records.BaseOffset, records.LeaderEpoch = p.first, p.epoch
		for range p.next - p.first {
			records.Append(0, nil, []byte("x"))
		}
		data, err := records.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Add(segment.Key{Shard: uint32(shardOf(p.partition)), Topic: topic, Partition: p.partition}, text, data); err != nil {
			t.Fatal(err)
		}
	}
	object, footer, err := b.Finish(segment.Header{ID: id, Cluster: cluster, FirstEntry: int64(id.Commit), LastEntry: int64(id.Commit)})
	if err != nil {
		t.Fatal(err)
	}
	return footer, slices.Concat(object...)
}

// end is the end of the merged part of a partition of orders.
type end struct {
	partition int32
	at        protocol.Offset
	epoch     protocol.LeaderEpoch
}

// planCase is what is found, and what follows.
type planCase struct {
	copied   map[string][]part // commits of the copy, by name
	lost     []string          // of them, those whose segments are gone
	merged   []end             // by manifests
	start    protocol.Offset   // the log start offset of what is merged
	epochs   map[int32]int32   // of the copy's shards, by partitions
	newer    bool              // manifests are newer than the copy
	older    bool              // manifests are older than the copy
	damaged  []string          // what cannot be read
	segments map[string][]part

	want    []string // commits: log/number
	adopted int
	left    int
	ends    [2]protocol.Offset
	upTo    [2]string // which commit each partition's shard has merged up to
	missing int
	notes   int

	partitions int32 // of orders, if they are more

	progress map[coordinator.LogID]string // commits/flushed entry, of logs that have more than the copy knows; an entry has its commit's number

	gone bool               // orders is no more
	anew [2]protocol.Offset // ends of the topic that has its name
}

func TestPlan(t *testing.T) {
	one := func(first, next protocol.Offset, epoch protocol.LeaderEpoch) []part {
		return []part{{partition: 0, first: first, next: next, epoch: epoch}}
	}
	both := func(first, next protocol.Offset) []part {
		return []part{{partition: 0, first: first, next: next, epoch: 1}, {partition: 1, first: first, next: next, epoch: 1}}
	}
	again := func(first, next protocol.Offset) []part {
		return []part{{partition: 0, first: first, next: next, epoch: 1, topic: anew}}
	}
	for name, c := range map[string]planCase{
		"nothing since": {
			copied: map[string][]part{"1/1/1/0": one(0, 10, 1), "1/2/1/0": one(10, 20, 1)},
			want:   []string{"1/1", "1/2"}, ends: [2]protocol.Offset{20},
		},
		"what follows is taken": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1), "1/3/1/0": one(20, 30, 1)},
			want:     []string{"1/1", "1/2", "1/3"}, adopted: 2, ends: [2]protocol.Offset{30},
			progress: map[coordinator.LogID]string{1: "3/3"},
		},
		"it starts within what follows": {
			merged:   []end{{0, 10, 1}},
			start:    20,
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			want:     []string{"1/2"}, adopted: 1, ends: [2]protocol.Offset{20},
		},
		"it starts beyond what is there": {
			merged:   []end{{0, 10, 1}},
			start:    21,
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			want:     []string{"1/2"}, adopted: 1, ends: [2]protocol.Offset{20}, missing: 1,
		},
		"who claimed the log later had nothing to commit": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/2/0": one(10, 20, 1), "1/2/3/0": nil},
			want:     []string{"1/1"}, ends: [2]protocol.Offset{10},
			progress: map[coordinator.LogID]string{1: "2/2"},
		},
		"a loss was accepted of what its writer had uploaded": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1), "1/3/1/0": one(20, 30, 1), "1/2/2/0": nil},
			want:     []string{"1/1"}, ends: [2]protocol.Offset{10},
			progress: map[coordinator.LogID]string{1: "2/2"},
		},
		"numbers that are missing were merged": {
			merged:   []end{{0, 20, 1}},
			segments: map[string][]part{"1/3/1/0": one(20, 30, 1)},
			want:     []string{"1/3"}, adopted: 1, ends: [2]protocol.Offset{30},
			progress: map[coordinator.LogID]string{1: "3/0"},
		},
		"offsets that are missing end the log": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/3/1/0": one(20, 30, 1), "1/4/1/0": {{partition: 1, next: 5, epoch: 1}}},
			want:     []string{"1/1"}, ends: [2]protocol.Offset{10}, notes: 1,
		},
		"a number was never uploaded": { // disks have it
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/3/1/0": {{partition: 1, next: 5, epoch: 1}}, "1/4/1/0": {{partition: 1, first: 5, next: 9, epoch: 1}}},
			want:     []string{"1/1", "1/3", "1/4"}, adopted: 2, ends: [2]protocol.Offset{10, 9},
			progress: map[coordinator.LogID]string{1: "4/1"},
		},
		"a number before one that is merged was never uploaded": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			merged:   []end{{0, 10, 1}, {1, 5, 1}},
			segments: map[string][]part{"1/3/1/0": {{partition: 1, next: 5, epoch: 1}}},
			left:     1, ends: [2]protocol.Offset{10, 5},
			progress: map[coordinator.LogID]string{1: "3/1"},
		},
		"a number is missing, and the log was claimed": { // by whom it had been committed
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/3/1/0": {{partition: 1, next: 5, epoch: 1}}, "1/5/2/0": one(10, 20, 1), "1/6/2/0": one(20, 30, 1)},
			want:     []string{"1/1", "1/3", "1/5", "1/6"}, adopted: 3, ends: [2]protocol.Offset{30, 5},
			progress: map[coordinator.LogID]string{1: "6/6"},
		},
		"what is damaged lies before what is taken": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			damaged:  []string{"segments/1/2"},
			segments: map[string][]part{"1/3/1/0": {{partition: 1, next: 5, epoch: 1}}},
			want:     []string{"1/1", "1/3"}, adopted: 1, ends: [2]protocol.Offset{10, 5}, missing: 1,
			progress: map[coordinator.LogID]string{1: "3/1"},
		},
		"what is merged is left out": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			lost:     []string{"1/1/1/0"},
			merged:   []end{{0, 20, 1}},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			left:     1, ends: [2]protocol.Offset{20},
			progress: map[coordinator.LogID]string{1: "2/2"},
		},
		"one shard of two has merged": {
			merged:   []end{{0, 20, 1}, {1, 10, 1}},
			copied:   map[string][]part{"1/1/1/0": both(0, 10)},
			segments: map[string][]part{"1/2/1/0": both(10, 20), "1/3/1/0": both(20, 30)},
			want:     []string{"1/2", "1/3"}, left: 1, adopted: 2, ends: [2]protocol.Offset{30, 30}, upTo: [2]string{"1/2"},
		},
		"a recoverer's replace the writer's from its first on": {
			segments: map[string][]part{
				"1/1/1/0": one(0, 10, 1), "1/2/1/0": one(10, 20, 1), "1/3/1/0": one(20, 30, 1), "1/2/2/0": one(10, 25, 1),
			},
			want: []string{"1/1", "1/2"}, adopted: 2, ends: [2]protocol.Offset{25},
			progress: map[coordinator.LogID]string{1: "2/2"},
		},
		"of attempts the last counts": {
			segments: map[string][]part{"1/1/1/0": one(0, 10, 1), "1/1/1/1": one(0, 12, 1), "1/2/1/0": one(12, 20, 1)},
			want:     []string{"1/1", "1/2"}, adopted: 2, ends: [2]protocol.Offset{20},
		},
		"the next leader wrote other records there": { // a recoverer uploads and dies, the next seals shorter, a new leader goes on
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/2/0": one(10, 13, 1), "2/1/1/0": one(10, 12, 2), "2/2/1/0": one(12, 20, 2)},
			want:     []string{"1/1", "2/1", "2/2"}, adopted: 2, ends: [2]protocol.Offset{20},
		},
		"the next leader's were merged": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			merged:   []end{{0, 12, 2}},
			segments: map[string][]part{"1/2/2/0": one(12, 15, 1), "2/2/1/0": one(12, 20, 2)},
			want:     []string{"2/2"}, left: 1, adopted: 1, ends: [2]protocol.Offset{20},
		},
		"the copy knows of a later epoch": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			epochs:   map[int32]int32{0: 2},
			segments: map[string][]part{"1/2/1/0": one(10, 15, 1)},
			want:     []string{"1/1"}, ends: [2]protocol.Offset{10},
		},
		"an older log may have led later": {
			segments: map[string][]part{"5/1/1/0": one(0, 10, 1), "3/1/1/0": one(10, 20, 2), "5/2/1/0": one(20, 30, 3)},
			want:     []string{"5/1", "3/1", "5/2"}, adopted: 3, ends: [2]protocol.Offset{30},
		},
		"a segment across the manifest's end was never committed": {
			merged:   []end{{0, 15, 1}},
			segments: map[string][]part{"1/1/1/0": one(10, 20, 1)},
			ends:     [2]protocol.Offset{15}, notes: 1,
		},
		"what was claimed goes on behind it": {
			merged:   []end{{0, 15, 1}},
			segments: map[string][]part{"1/1/1/0": one(10, 20, 1), "1/2/2/0": one(15, 20, 1)},
			want:     []string{"1/2"}, adopted: 1, ends: [2]protocol.Offset{20},
			progress: map[coordinator.LogID]string{1: "2/2"},
		},
		"what is merged comes first": { // by log 4 alone, the second shard would have its merged commit behind one that is not
			merged: []end{{0, 0, 0}, {1, 10, 1}},
			segments: map[string][]part{
				"4/1/1/0": {{partition: 1, first: 10, next: 20, epoch: 1}},
				"7/1/1/0": both(0, 10),
			},
			want: []string{"7/1", "4/1"}, adopted: 2, ends: [2]protocol.Offset{10, 20}, upTo: [2]string{"", "7/1"},
		},
		"a segment of the copy is gone": {
			copied: map[string][]part{"1/1/1/0": one(0, 10, 1), "1/2/1/0": one(10, 20, 1)},
			lost:   []string{"1/1/1/0"},
			want:   nil, missing: 2,
		},
		"what comes before it is another log's": {
			segments: map[string][]part{"5/1/1/0": one(0, 10, 1), "3/1/1/0": one(10, 20, 2), "3/2/2/0": one(20, 30, 2)},
			want:     []string{"5/1", "3/1", "3/2"}, adopted: 3, ends: [2]protocol.Offset{30},
		},
		"what comes before it is gone, and the log was claimed": {
			segments: map[string][]part{"1/1/1/0": one(10, 20, 1), "1/2/2/0": {{partition: 1, next: 5, epoch: 1}}},
			want:     []string{"1/2"}, adopted: 1, ends: [2]protocol.Offset{0, 5}, missing: 1,
		},
		"what is damaged may be newer": {
			copied:  map[string][]part{"1/1/1/0": one(0, 10, 1)},
			damaged: []string{"segments/1/2"},
			want:    []string{"1/1"}, ends: [2]protocol.Offset{10}, missing: 1,
		},
		"what is damaged may be what a topic lacks": {
			newer:    true,
			merged:   []end{{1, 0, 0}},
			damaged:  []string{"segments/1/1"},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			missing:  1, notes: 1,
		},
		"the manifests in force are not whole": {
			older:  true,
			merged: []end{{0, 10, 1}, {1, 10, 1}},
			ends:   [2]protocol.Offset{10, 10}, missing: 2,
		},
		"a manifest that is not the one in force says nothing of topics": {
			older:    true,
			merged:   []end{{1, 0, 0}},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			missing:  2, notes: 1, partitions: 2,
		},
		"a topic was deleted and created anew": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/1/0": one(10, 12, 1), "1/3/1/0": again(0, 5), "2/1/1/0": {{partition: 1, next: 7, epoch: 1, topic: anew}}},
			want:     []string{"1/3", "2/1"}, left: 1, adopted: 2, notes: 2, gone: true, anew: [2]protocol.Offset{5, 7},
		},
		"a topic that had no records was deleted and created anew": {
			segments: map[string][]part{"1/1/1/0": again(0, 5)},
			want:     []string{"1/1"}, adopted: 1, notes: 2, gone: true, anew: [2]protocol.Offset{5},
		},
		"a topic was deleted, as manifests tell, and created anew": {
			newer:    true,
			merged:   []end{{1, 0, 0}},
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1), "2/1/1/0": again(0, 5)},
			want:     []string{"2/1"}, adopted: 1, notes: 2, gone: true, anew: [2]protocol.Offset{5},
		},
		"a topic's predecessor has records in the log before it": {
			copied:   map[string][]part{"1/3/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/4/1/0": one(10, 20, 1), "2/1/1/0": again(0, 5), "2/2/1/0": {{partition: 1, next: 7, epoch: 1}}},
			want:     []string{"1/3", "1/4", "2/2"}, adopted: 2, ends: [2]protocol.Offset{20, 7},
		},
		"which of two topics of a name is the newer is not known": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"2/1/1/0": again(0, 5)},
			want:     []string{"1/1"}, ends: [2]protocol.Offset{10}, missing: 1,
		},
		"a topic was created since": {
			segments: map[string][]part{"1/1/1/0": {{partition: 0, next: 5, epoch: 1, topic: gone}}},
			want:     []string{"1/1"}, adopted: 1, notes: 1,
		},
		"partitions were added since": {
			segments:   map[string][]part{"1/1/1/0": {{partition: 3, next: 5, epoch: 1}}},
			want:       []string{"1/1"},
			adopted:    1,
			notes:      1,
			partitions: 4,
		},
		"a topic was deleted before": {
			copied:   map[string][]part{"1/1/1/0": one(0, 10, 1)},
			segments: map[string][]part{"1/2/1/0": {{partition: 0, first: 10, next: 20, epoch: 1}, {partition: 0, first: 100, next: 105, epoch: 1, topic: gone}}},
			want:     []string{"1/1", "1/2"}, adopted: 1, ends: [2]protocol.Offset{20},
		},
		"a topic was deleted since": {
			newer:    true,
			merged:   []end{{1, 0, 0}}, // the shard of partition 0 has a manifest without it
			segments: map[string][]part{"1/2/1/0": one(10, 20, 1)},
			notes:    1, gone: true,
		},
	} {
		t.Run(name, func(t *testing.T) { c.run(t) })
	}
}

func (c planCase) run(t *testing.T) {
	f := &Found{
		Topics: map[protocol.TopicID]coordinator.Topic{orders.ID: orders}, Shards: make(map[coordinator.ShardID]coordinator.Shard),
		Manifests: make(map[coordinator.ShardID]*manifest.Manifest), Damaged: c.damaged, Logs: make(map[coordinator.LogID]coordinator.Log),
	}
	for n, epoch := range c.epochs {
		f.Shards[shardOf(n)] = coordinator.Shard{Epoch: epoch}
	}
	for n := range int32(shards) {
		m := &manifest.Manifest{Shard: uint32(shardOf(n)), Epoch: 1, Generation: 1}
		for _, e := range c.merged {
			if e.partition == n && e.at > 0 {
				m.Set(manifest.Partition{Topic: orders.ID, TopicName: orders.Name, Partition: n, LogStartOffset: c.start, End: e.at, Epochs: []manifest.EpochStart{{Epoch: e.epoch}}})
			}
		}
		if len(c.merged) > 0 {
			f.Manifests[shardOf(n)] = m
		}
		if s := f.Shards[shardOf(n)]; len(c.merged) > 0 && !c.newer {
			installed := *m
			if c.older {
				installed.Generation++
			}
			s.Manifest = installed.Name()
			f.Shards[shardOf(n)] = s
		}
	}
	for i, name := range slices.Sorted(maps.Keys(c.copied)) {
		footer := flushed(t, name, c.copied[name]...)
		commit := Commit{Commit: commitOf(footer), Revision: int64(100 + i), Footer: footer}
		if slices.Contains(c.lost, name) {
			commit.Footer = nil
		}
		f.Commits = append(f.Commits, commit)
		f.Logs[commit.Log] = coordinator.Log{ID: commit.Log, Fence: commit.Fence, Commits: commit.Number, Flushed: commit.LastEntry}
	}
	for name, parts := range c.segments {
		f.Segments = append(f.Segments, Segment{flushed(t, name, parts...)})
	}
	p := NewPlan(f)
	var got []string
	revisions := map[int64]string{0: ""}
	for i, commit := range p.Commits {
		name := fmt.Sprintf("%d/%d", uint64(commit.Log), commit.Number)
		got, revisions[commit.Revision] = append(got, name), name
		if i > 0 && commit.Revision <= p.Commits[i-1].Revision {
			t.Errorf("%s has revision %d, the one before %d", name, commit.Revision, p.Commits[i-1].Revision)
		}
	}
	if !slices.Equal(got, c.want) || p.Adopted != c.adopted || p.Left != c.left {
		t.Errorf("commits %v, %d adopted, %d left out; want %v, %d, %d", got, p.Adopted, p.Left, c.want, c.adopted, c.left)
	}
	for n := range int32(shards) {
		if end := p.Ends[partition.ID{Topic: orders.ID, Partition: n}]; end != c.ends[n] {
			t.Errorf("partition %d ends at %d, want %d", n, end, c.ends[n])
		}
		if end := p.Ends[partition.ID{Topic: anew, Partition: n}]; end != c.anew[n] {
			t.Errorf("partition %d of the topic created anew ends at %d, want %d", n, end, c.anew[n])
		}
		if upTo := revisions[p.Merged[shardOf(n)]]; upTo != c.upTo[n] {
			t.Errorf("the shard of partition %d has merged up to %q, want %q", n, upTo, c.upTo[n])
		}
	}
	for log, want := range c.progress {
		if at := p.Logs[log]; fmt.Sprintf("%d/%d", at.Commits, at.Flushed) != want {
			t.Errorf("log %s is at %+v, want %s", log, at, want)
		}
	}
	if got := p.Topics[orders.ID].Partitions; c.partitions > 0 && got != c.partitions {
		t.Errorf("%d partitions, want %d", got, c.partitions)
	}
	if _, ok := p.Topics[orders.ID]; c.gone == ok {
		t.Errorf("orders is there: %t", ok)
	}
	if _, ok := p.Topics[anew]; ok != (c.anew[0] > 0) {
		t.Errorf("the topic created anew is there: %t", ok)
	}
	if len(p.Missing) != c.missing || len(p.Notes) != c.notes {
		t.Errorf("missing: %q, notes: %q; want %d and %d", p.Missing, p.Notes, c.missing, c.notes)
	}
}

// TestMayBeNew: which segments the copy rules out.
func TestMayBeNew(t *testing.T) {
	f := &Found{Past: 5, Logs: map[coordinator.LogID]coordinator.Log{
		3: {ID: 3, Fence: 2, Commits: 7}, 6: {ID: 6, Fence: 1, Commits: 2, Closed: true},
	}}
	for id, want := range map[segment.ID]bool{
		{Log: 3, Fence: 2, Commit: 8}: true,
		{Log: 3, Fence: 3, Commit: 9}: true,
		{Log: 3, Fence: 2, Commit: 7}: false, // it was made
		{Log: 3, Fence: 1, Commit: 8}: false, // claimed from its writer
		{Log: 6, Fence: 1, Commit: 3}: false, // closed
		{Log: 4, Fence: 1, Commit: 1}: false, // over
		{Log: 5, Fence: 1, Commit: 1}: true,  // opened since
	} {
		if f.MayBeNew(id) != want {
			t.Errorf("%+v: %t, want %t", id, !want, want)
		}
	}
}
