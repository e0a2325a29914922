package sim

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// written is a consumer offset that was written.
type written struct {
	revision int64
	offset   int64
}

// restored looks at an etcd that was rebuilt, and takes it for what there is from now on: nothing that was committed may be missing, nor be another, and groups are where the copy has them.
func (c *checker) restored(l *loss) {
	items, _, err := c.w.kv.List(c.w.ctx, "", 0)
	if err != nil {
		panic(err)
	}
	c.logs, c.shards, c.commits = make(map[coordinator.LogID]coordinator.Log), make(map[string]coordinator.Shard), make(map[string]coordinator.Commit)
	c.epochs = [partitions]protocol.LeaderEpoch{}
	var commits []coordinator.Item
	for _, it := range items {
		var err error
		switch {
		case it.Key == coordinator.KeyCluster:
			var cluster coordinator.Cluster
			cluster, err = coordinator.Decode[coordinator.Cluster](it)
			c.old = cluster.Restored
		case strings.HasPrefix(it.Key, coordinator.PrefixLogs) && it.Key != coordinator.KeyPastLog:
			var log coordinator.Log
			log, err = coordinator.Decode[coordinator.Log](it)
			c.logs[log.ID] = log
		case strings.HasPrefix(it.Key, coordinator.PrefixShards):
			var s coordinator.Shard
			s, err = coordinator.Decode[coordinator.Shard](it)
			c.shards[strings.TrimPrefix(it.Key, coordinator.PrefixShards)] = s
		case strings.HasPrefix(it.Key, coordinator.PrefixCommits):
			commits = append(commits, it)
		}
		if err != nil {
			panic(err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.shards)) {
		if name := c.shards[id].Manifest; name != "" {
			c.manifest(id, name)
		}
	}
	ends := c.ends
	c.ends = c.merged
	slices.SortFunc(commits, func(a, b coordinator.Item) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	for _, it := range commits {
		c.adopted(it)
	}
	for n := range ends {
		if c.ends[n] < ends[n] {
			c.report("1: the restored partition %d ends at %d, up to %d was committed", n, c.ends[n], ends[n])
		}
	}
	was, revision := c.offsets, l.copied.id.Revision
	c.offsets = make(map[string][]written)
	for _, g := range c.w.load.committers {
		g.acked = c.restoredOffset(items, g.key, was, revision)
	}
	if x := c.w.load.txns; x != nil {
		x.restored(c, l.copied, items, was)
	}
	l.c.group.restored(c.restoredOffset(items, l.c.group.key(), was, revision))
}

// restoredOffset returns a group's offset, which must be the one that it was at the revision of the copy.
func (c *checker) restoredOffset(items []coordinator.Item, key string, was map[string][]written, revision int64) (offset int64) {
	if i := slices.IndexFunc(items, func(it coordinator.Item) bool { return it.Key == key }); i >= 0 {
		var err error
		if offset, err = c.w.offsetIn(items[i]); err != nil {
			panic(err)
		}
	}
	want := int64(0)
	for _, x := range was[key] {
		if x.revision <= revision {
			want = x.offset
		}
	}
	if offset != want {
		c.report("7: the restored %s is %d, it was %d when the copy was made", key, offset, want)
	}
	c.offsets[key] = []written{{offset: offset}}
	return offset
}

// adopted takes in a commit of an etcd that was rebuilt.
func (c *checker) adopted(it coordinator.Item) {
	commit, err := coordinator.DecodeCommit(it.Value)
	if err != nil {
		c.report("8: %s: %v", it.Key, err)
		return
	}
	c.commits[it.Key] = commit
	object, footer := c.object(commit.Object)
	if footer == nil {
		c.report("8: the restored %s refers to %s, which is not there", it.Key, commit.Object)
		return
	}
	for i := range commit.Partitions {
		p := &commit.Partitions[i]
		c.w.aside("the restored %s has offsets %d to %d of partition %d, of leader epoch %d", it.Key, p.FirstOffset, p.NextOffset, p.Partition, p.LeaderEpoch)
		s := footer.Find(segment.Key{Shard: uint32(p.Shard), Topic: p.Topic, Partition: p.Partition})
		if s == nil || s.FirstOffset != p.FirstOffset || s.NextOffset != p.NextOffset || s.Pos != p.Pos || s.Size != p.Size {
			c.report("8: the restored %s and %s differ about partition %d", it.Key, commit.Object, p.Partition)
			continue
		}
		section := object[p.Pos : p.Pos+p.Size]
		records, err := parseAll(section)
		if err != nil {
			c.report("8: partition %d: %v", p.Partition, err)
		}
		for _, r := range records {
			if before, ok := c.committed[p.Partition][r.Offset]; ok && before != r {
				c.report("2: offset %d of partition %d is %+v after a restore, committed was %+v", r.Offset, p.Partition, r, before)
			}
		}
		c.remember(p.Partition, section)
		if p.NextOffset <= c.ends[p.Partition] {
			continue // merged
		}
		if p.FirstOffset != c.ends[p.Partition] {
			c.report("3: the restored %s begins at offset %d of partition %d, which ends at %d", it.Key, p.FirstOffset, p.Partition, c.ends[p.Partition])
		}
		c.ends[p.Partition], c.epochs[p.Partition] = p.NextOffset, p.LeaderEpoch
	}
}

// restored has the group begin where the copy has it: what was committed since is lost.
func (g *group) restored(offset int64) {
	for i, x := range g.commits {
		if int64(i+1) != offset {
			x.acked = 0
		}
	}
	g.synced = 0
}
