package rebuild

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// What numbers are raised by above all that is known, so that none is given again that was given after the copy was made: epochs and fences, WAL logs, producer ids, copies.
const (
	epochsAhead    = 1 << 16
	logsAhead      = 1 << 16
	producersAhead = 1 << 20
	copiesAhead    = 1 << 16
)

// outcome is what becomes of the coordinator's keys.
type outcome struct {
	items   []backup.Item // all but commits, shards and the cluster
	shards  map[coordinator.ShardID]coordinator.Shard
	cluster coordinator.Cluster
}

// rebuilder makes the keys that follow from a plan.
type rebuilder struct {
	state  *State
	found  *Found
	plan   *Plan
	listed *listing
	newest uint64 // number of a copy that is in the bucket, whole or not
	lost   bool   // what agents' disks have is lost: logs end as they are, and offsets beyond the end of partitions begin there

	logs      map[partition.ID]*partition.Log
	marks     map[producerAt]int64 // when the newest marker of a producer was written at the latest, Unix milliseconds
	producers protocol.ProducerID  // the highest that was seen
}

// outcome decides.
func (r *rebuilder) outcome() (*outcome, error) {
	if err := r.replay(); err != nil {
		return nil, err
	}
	o := &outcome{shards: r.shards(), cluster: r.found.Cluster}
	o.cluster.Generation++
	put := func(key string, value any) {
		o.items = append(o.items, backup.Item{Key: key, Value: coordinator.Encode(value)})
	}
	next := map[string]int64{coordinator.KeyNextNode: 1, coordinator.KeyNextLog: 1, coordinator.KeyNextPID: 1}
	txns := make(map[string]txn.Snapshot)
	deleted := r.deleted()
	for _, it := range r.state.Items {
		item := coordinator.Item{Key: it.Key, Value: it.Value, ModRevision: it.Revision}
		var err error
		switch _, counter := next[it.Key]; {
		case it.Key == coordinator.KeyCluster, strings.HasPrefix(it.Key, coordinator.PrefixCommits), strings.HasPrefix(it.Key, coordinator.PrefixShards),
			strings.HasPrefix(it.Key, coordinator.PrefixWrites), strings.HasPrefix(it.Key, coordinator.PrefixTopics):
		case counter:
			next[it.Key], err = coordinator.Decode[int64](item)
		case strings.HasPrefix(it.Key, coordinator.PrefixLogs):
		case strings.HasPrefix(it.Key, coordinator.PrefixTxns):
			txns[it.Key], err = coordinator.Decode[txn.Snapshot](item)
		case deleted[offsetsTopic(it.Key)]:
		case strings.HasPrefix(it.Key, coordinator.PrefixOffsets) && r.lost:
			var block coordinator.GroupOffsets
			if block, err = r.offsets(item); err == nil {
				put(it.Key, block)
			}
		default:
			o.items = append(o.items, it)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, t := range r.plan.Topics {
		put(coordinator.KeyTopic(t.Name), t)
	}
	for _, l := range r.walLogs() {
		put(coordinator.KeyLog(l.ID), l)
	}
	next[coordinator.KeyNextLog] = max(next[coordinator.KeyNextLog], int64(r.listed.log)+1) + logsAhead
	next[coordinator.KeyNextPID] = max(next[coordinator.KeyNextPID], int64(r.producers)+1) + producersAhead
	o.cluster.Restored = coordinator.LogID(next[coordinator.KeyNextLog])
	put(coordinator.KeyPastLog, o.cluster.Restored) // none of before is opened any more, by a transaction that was on its way
	o.cluster.Since = append(slices.Clone(o.cluster.Since), coordinator.LogRange{From: r.found.Past, To: o.cluster.Restored})
	if r.lost {
		o.cluster.Since = nil
	}
	next[coordinator.KeyNextPID] = int64(r.transactions(txns, protocol.ProducerID(next[coordinator.KeyNextPID])))
	for key, s := range txns {
		put(key, s)
	}
	for key, n := range next {
		put(key, n)
	}
	put(coordinator.KeyLastCopy, coordinator.LastCopy{Number: r.newest + copiesAhead})
	slices.SortFunc(o.items, func(a, b backup.Item) int { return cmp.Compare(a.Key, b.Key) })
	return o, nil
}

// replay rebuilds the partitions' states, from manifests and then footers, for what is known of producers.
func (r *rebuilder) replay() error {
	r.logs, r.marks = make(map[partition.ID]*partition.Log), make(map[producerAt]int64)
	for shard, m := range r.found.Manifests {
		for i := range m.Partitions {
			p := &m.Partitions[i]
			l := partition.New(m.Epoch)
			id := partition.ID{Topic: p.Topic, Partition: p.Partition}
			l.RestoreSnapshot(upkeep.SnapshotOf(p))
			r.logs[id] = l
			r.marked(p, id, r.found.newer(shard))
		}
	}
	for _, c := range r.plan.Commits {
		for i := range c.Footer.Sections {
			s := &c.Footer.Sections[i]
			if err := r.apply(s, c.CreatedMs); err != nil {
				return fmt.Errorf("read %s: %w", c.Object, err)
			}
		}
	}
	for _, l := range r.logs {
		for _, p := range l.Snapshot().Producers {
			r.producers = max(r.producers, p.ID)
		}
	}
	return nil
}

func (r *rebuilder) apply(s *segment.Section, createdMs int64) error {
	id := partition.ID{Topic: s.Topic, Partition: s.Partition}
	if _, ok := r.plan.Topics[s.Topic]; !ok {
		return nil
	}
	l := r.logs[id]
	if l == nil {
		l = partition.New(0)
		r.logs[id] = l
	}
	if s.NextOffset <= l.End() {
		return nil
	}
	for b, err := range s.All() {
		if err == nil && b.Flags&segment.FlagControl != 0 {
			r.marks[producerAt{b.ProducerID, id}] = b.MaxTimestamp
		}
	}
	return upkeep.Apply(l, s, createdMs)
}

// shards returns the shards' records, in an epoch that none has seen. Their owners are those of the copy if their logs are still to be recovered, and else nobody.
func (r *rebuilder) shards() map[coordinator.ShardID]coordinator.Shard {
	epochs := maps.Clone(r.listed.epochs)
	for _, f := range r.found.Segments {
		for i := range f.Sections {
			s := &f.Sections[i]
			epochs[coordinator.ShardID(s.Shard)] = max(epochs[coordinator.ShardID(s.Shard)], int32(s.LeaderEpoch))
		}
	}
	all := make(map[coordinator.ShardID]coordinator.Shard)
	for n := range r.found.Cluster.Shards {
		id := coordinator.ShardID(n)
		s := r.found.Shards[id]
		s.Epoch = max(s.Epoch, epochs[id]) + epochsAhead
		s.Manifest, s.Merged = "", r.plan.Merged[id]
		if m := r.found.Manifests[id]; m != nil {
			s.Manifest = m.Name()
		}
		if l, ok := r.found.Logs[s.Owner]; r.lost || !ok || l.Closed {
			s.Owner, s.Node = 0, 0
		}
		all[id] = s
	}
	return all
}

// walLogs returns the logs' records: how far each was flushed, under a fence that none has seen. Those of which nothing can be recovered are closed.
func (r *rebuilder) walLogs() []coordinator.Log {
	all := maps.Clone(r.found.Logs)
	for id, p := range r.plan.Logs {
		l, ok := all[id]
		if !ok { // opened since: where its WAL lies is not known
			l = coordinator.Log{ID: id, Closed: true}
		}
		l.Fence, l.Commits, l.Flushed = max(l.Fence, p.Fence), max(l.Commits, p.Commits), max(l.Flushed, p.Flushed)
		all[id] = l
	}
	var records []coordinator.Log
	for _, id := range slices.Sorted(maps.Keys(all)) {
		l := all[id]
		if !l.Closed {
			l.Fence += epochsAhead
			l.Closed = r.lost
			l.Segments = slices.DeleteFunc(slices.Clone(l.Segments), func(s coordinator.WALSegment) bool { return s.Last >= 0 && s.Last <= l.Flushed })
		}
		records = append(records, l)
	}
	return records
}

// deleted returns the names of topics that were deleted since, or are others now.
func (r *rebuilder) deleted() map[string]bool {
	names := make(map[string]bool)
	for id, t := range r.found.Topics {
		if _, ok := r.plan.Topics[id]; !ok {
			names[t.Name] = true
		}
	}
	return names
}

// offsetsTopic returns the topic of which a key has a group's offsets; of others nothing.
func offsetsTopic(key string) string {
	if !strings.HasPrefix(key, coordinator.PrefixOffsets) {
		return ""
	}
	_, topic, _, err := coordinator.ParseKeyOffsets(key)
	if err != nil {
		return ""
	}
	return topic
}

// offsets returns a group's offsets, none of which is beyond the end of its partition: what was there is lost, and others will get its offsets.
func (r *rebuilder) offsets(item coordinator.Item) (coordinator.GroupOffsets, error) {
	_, topic, _, err := coordinator.ParseKeyOffsets(item.Key)
	if err != nil {
		return nil, err
	}
	block, err := coordinator.Decode[coordinator.GroupOffsets](item)
	if err != nil {
		return nil, err
	}
	for _, t := range r.plan.Topics {
		if t.Name != topic {
			continue
		}
		for n, o := range block {
			if end := int64(r.plan.Ends[partition.ID{Topic: t.ID, Partition: n}]); o.Offset > end {
				o.Offset, o.LeaderEpoch = end, -1
				block[n] = o
			}
		}
	}
	return block, nil
}
