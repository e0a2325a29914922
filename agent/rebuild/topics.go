package rebuild

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// replicationOf is the replication factor of a topic whose own nobody knows.
const replicationOf = 3

// seen is what the bucket shows of a topic.
type seen struct {
	name       string
	partitions int32
	createdMs  int64
	lowest     map[partition.ID]protocol.Offset // of what commits and segments have
	shards     map[partition.ID]coordinator.ShardID
	since      bool // a manifest that is newer than the copy has it
	logs       map[coordinator.LogID]span
}

// span bounds a topic's entries in a WAL log: the first is at first or before it, the last at last or after it.
type span struct{ first, last int64 }

// after reports whether a log shows that another topic of the same name was there before this one: an agent sees its deletion before this one's creation.
func (s *seen) after(other *seen) bool {
	for log, at := range s.logs {
		if was, ok := other.logs[log]; ok && was.first < at.last {
			return true
		}
	}
	return false
}

// newer reports whether a manifest is newer than the one that the copy names: else what it lacks may have come since.
func (f *Found) newer(shard coordinator.ShardID) bool {
	m := f.Manifests[shard]
	return m != nil && m.Name() > f.Shards[shard].Manifest
}

// seen gathers what the bucket shows of topics.
func (p *planner) seen() map[protocol.TopicID]*seen {
	all := make(map[protocol.TopicID]*seen)
	at := func(id protocol.TopicID, name string, number int32) *seen {
		s := all[id]
		if s == nil {
			s = &seen{lowest: make(map[partition.ID]protocol.Offset), shards: make(map[partition.ID]coordinator.ShardID), logs: make(map[coordinator.LogID]span)}
			all[id] = s
		}
		s.name, s.partitions = cmp.Or(s.name, name), max(s.partitions, number+1)
		return s
	}
	section := func(s *seen, x section, log coordinator.LogID, first, last int64) { // entries of the segment
		if low, ok := s.lowest[x.id]; !ok || x.first < low {
			s.lowest[x.id] = x.first
		}
		s.shards[x.id] = x.shard
		at, ok := s.logs[log]
		if !ok {
			at = span{math.MaxInt64, math.MinInt64}
		}
		s.logs[log] = span{min(at.first, last), max(at.last, first)}
	}
	for id, m := range p.Manifests {
		for i := range m.Partitions {
			e := &m.Partitions[i]
			s := at(e.Topic, e.TopicName, e.Partition)
			s.since = s.since || p.newer(id)
		}
	}
	for i := range p.Commits {
		c := &p.Commits[i]
		for _, x := range c.sections() {
			section(at(x.id.Topic, "", x.id.Partition), x, c.Log, c.FirstEntry, c.LastEntry)
		}
	}
	for _, f := range p.Segments {
		for i, x := range f.sections() {
			s := at(x.id.Topic, f.Sections[i].TopicName, x.id.Partition)
			section(s, x, coordinator.LogID(f.Header.ID.Log), f.Header.FirstEntry, f.Header.LastEntry)
			s.createdMs = f.Header.CreatedMs
		}
	}
	return all
}

// settleTopics finds topics that were created after the copy was made, or deleted: a manifest that is newer than the copy has nothing of a partition that had something merged.
func (p *planner) settleTopics() {
	all := p.seen()
	ids := slices.SortedFunc(maps.Keys(all), func(a, b protocol.TopicID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range ids {
		s := all[id]
		switch t, exists := p.Topics[id]; {
		case exists && p.deleted(s):
			delete(p.plan.Topics, id)
			p.note("topic %s was deleted after the copy was made", t.Name)
		case exists && s.partitions > t.Partitions:
			p.note("topic %s has records in %d partitions, and had %d when the copy was made: it gets as many", t.Name, s.partitions, t.Partitions)
			t.Partitions = s.partitions
			p.plan.Topics[id] = t
		}
	}
	names := make(map[string]protocol.TopicID)
	for id, t := range p.plan.Topics {
		names[t.Name] = id
	}
	for _, id := range ids {
		s := all[id]
		if _, exists := p.Topics[id]; exists || s.name == "" || !s.since && !s.fromStart() {
			continue
		}
		if old, taken := names[s.name]; taken && !p.replaces(id, s, old, all[old]) {
			continue
		}
		names[s.name] = id
		p.plan.Topics[id] = coordinator.Topic{ID: id, Name: s.name, Partitions: s.partitions, Replication: replicationOf, CreatedMs: s.createdMs}
		p.note("topic %s was created after the copy was made: it gets %d partitions, which have records, and no configs", s.name, s.partitions)
	}
}

// replaces finds out whether a topic was created in the place of another one of its name, which was deleted, and deletes that. One that has no records goes in any case.
func (p *planner) replaces(id protocol.TopicID, s *seen, old protocol.TopicID, was *seen) bool {
	_, copied := p.Topics[old]
	switch {
	case was == nil || s.since && copied || s.after(was):
		delete(p.plan.Topics, old)
		p.note("topic %s of id %s was deleted after the copy was made", s.name, old)
		return true
	case !was.after(s):
		p.missing("topic %s: there are records of two topics of that name, of which one was deleted, and which one is not known: %s is restored, %s is not", s.name, old, id)
	}
	return false
}

// deleted reports whether a topic of the copy was deleted since. While something is missing nothing shows that: it may be what commits lack.
func (p *planner) deleted(s *seen) bool {
	if len(p.plan.Missing) > 0 {
		return false
	}
	for id, low := range s.lowest {
		if low == 0 || !p.newer(s.shards[id]) {
			continue
		}
		if _, ok := p.Manifests[s.shards[id]].Find(id.Topic, id.Partition); !ok {
			return true
		}
	}
	return false
}

// fromStart reports whether all that there is of a topic begins at its start: then it was not deleted before.
func (s *seen) fromStart() bool {
	for _, low := range s.lowest {
		if low > 0 {
			return false
		}
	}
	return len(s.lowest) > 0
}
