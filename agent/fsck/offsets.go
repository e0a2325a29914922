package fsck

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// place names a partition.
type place struct {
	topic     protocol.TopicID
	partition int32
}

// tail is what commits have of a partition beyond its shard's manifest, in the order in which they were made.
type tail struct {
	commit *commitRecord
	part   *coordinator.CommitPartition
}

// continuity checks that the offsets of each partition go on from its manifest's log start through all commits. Partitions of topics that are deleted, and shards of which something could not be read, are left out.
func (c *checker) continuity(context.Context) error {
	tails := make(map[place][]tail)
	for i := range c.state.commits {
		commit := &c.state.commits[i]
		for j := range commit.Partitions {
			c.tail(tails, tail{commit, &commit.Partitions[j]})
		}
	}
	merged := make(map[place]*manifest.Partition)
	for _, id := range slices.Sorted(maps.Keys(c.manifests)) {
		m := c.manifests[id]
		if m == nil {
			continue
		}
		for i := range m.Partitions {
			p := &m.Partitions[i]
			if c.placed(place{p.Topic, p.Partition}, coordinator.ShardID(m.Shard), m.Name()) {
				merged[place{p.Topic, p.Partition}] = p
			}
		}
	}
	all := slices.Collect(maps.Keys(merged))
	for at := range tails {
		if merged[at] == nil {
			all = append(all, at)
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(c.state.topics[a.topic].Name, c.state.topics[b.topic].Name), cmp.Compare(a.partition, b.partition))
	})
	for _, at := range all {
		c.partition(at, merged[at], tails[at])
	}
	return nil
}

// placed reports whether a partition that exists is in its shard; what contradicts that is a problem. from says who has it.
func (c *checker) placed(at place, shard coordinator.ShardID, from string) bool {
	topic, ok := c.state.topics[at.topic]
	if !ok {
		return false // deleted, and soon out of everything
	}
	if at.partition >= topic.Partitions {
		c.report.problem(BadKey, from, "it has %s/%d, and the topic has %d partitions", topic.Name, at.partition, topic.Partitions)
		return false
	}
	if want := topic.ShardOf(at.partition, c.state.cluster.Shards); shard != want {
		c.report.problem(BadKey, from, "it has %s/%d in shard %d, want %d", topic.Name, at.partition, shard, want)
		return false
	}
	return true
}

// tail takes a part of a commit in, if the shard has not merged it.
func (c *checker) tail(tails map[place][]tail, t tail) {
	at := place{t.part.Topic, t.part.Partition}
	if c.unknown[t.part.Shard] || !c.placed(at, t.part.Shard, t.commit.key) {
		return
	}
	if t.commit.revision > c.state.shards[t.part.Shard].Merged {
		tails[at] = append(tails[at], t)
		return
	}
	if m := c.manifests[t.part.Shard]; m != nil {
		if p, ok := m.Find(at.topic, at.partition); ok && p.End >= t.part.NextOffset {
			return
		}
	}
	c.report.problem(Gap, c.name(at), "%s has offsets [%d,%d), which count as merged, and the shard's manifest does not have them", t.commit.key, t.part.FirstOffset, t.part.NextOffset)
}

func (c *checker) name(at place) string {
	return fmt.Sprintf("%s/%d", c.state.topics[at.topic].Name, at.partition)
}

// partition checks one partition; m is nil if nothing of it is merged.
func (c *checker) partition(at place, m *manifest.Partition, tails []tail) {
	var end protocol.Offset
	var epoch protocol.LeaderEpoch
	if m != nil {
		end = m.End
		epoch = c.extents(at, m)
	}
	for _, t := range tails {
		if t.part.FirstOffset != end {
			c.report.problem(Gap, c.name(at), "%s has offsets [%d,%d), want them from %d on", t.commit.key, t.part.FirstOffset, t.part.NextOffset, end)
		}
		if t.part.LeaderEpoch < epoch {
			c.report.problem(Gap, c.name(at), "%s is of leader epoch %d, after %d", t.commit.key, t.part.LeaderEpoch, epoch)
		}
		end, epoch = t.part.NextOffset, t.part.LeaderEpoch
	}
	if m != nil && m.LogStartOffset > end {
		c.report.problem(Gap, c.name(at), "it starts at %d, and only what is below %d is committed", m.LogStartOffset, end)
	}
}

// extents checks that what is merged of a partition has no gap but below where compaction ended, and returns its last leader epoch.
func (c *checker) extents(at place, m *manifest.Partition) protocol.LeaderEpoch {
	var epoch protocol.LeaderEpoch
	if n := len(m.Epochs); n > 0 {
		epoch = m.Epochs[n-1].Epoch
	}
	next := max(m.LogStartOffset, m.Cleaned)
	for _, e := range m.Extents {
		if e.First > next {
			c.report.problem(Gap, c.name(at), "the manifest has nothing of offsets [%d,%d)", next, e.First)
		}
		next = max(next, e.Next)
	}
	if next < m.End {
		c.report.problem(Gap, c.name(at), "the manifest has nothing of offsets [%d,%d)", next, m.End)
	}
	return epoch
}
