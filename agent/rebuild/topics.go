package rebuild

import (
	"cmp"
	"maps"
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
	merged     bool // a manifest has it
}

// settleTopics finds topics that were created after the copy was made, or deleted: a manifest that is newer than the copy has nothing of a partition that had something merged.
func (p *planner) settleTopics() {
	all := make(map[protocol.TopicID]*seen)
	at := func(id protocol.TopicID, name string, number int32) *seen {
		s := all[id]
		if s == nil {
			s = &seen{lowest: make(map[partition.ID]protocol.Offset), shards: make(map[partition.ID]coordinator.ShardID)}
			all[id] = s
		}
		s.name, s.partitions = cmp.Or(s.name, name), max(s.partitions, number+1)
		return s
	}
	section := func(s *seen, x section) {
		if low, ok := s.lowest[x.id]; !ok || x.first < low {
			s.lowest[x.id] = x.first
		}
		s.shards[x.id] = x.shard
	}
	for _, m := range p.Manifests {
		for i := range m.Partitions {
			e := &m.Partitions[i]
			at(e.Topic, e.TopicName, e.Partition).merged = true
		}
	}
	for i := range p.Commits {
		for _, x := range p.Commits[i].sections() {
			section(at(x.id.Topic, "", x.id.Partition), x)
		}
	}
	for _, f := range p.Segments {
		for i, x := range f.sections() {
			s := at(x.id.Topic, f.Sections[i].TopicName, x.id.Partition)
			section(s, x)
			s.createdMs = f.Header.CreatedMs
		}
	}
	names := make(map[string]bool)
	for _, t := range p.Topics {
		names[t.Name] = true
	}
	for _, id := range slices.SortedFunc(maps.Keys(all), func(a, b protocol.TopicID) int { return slices.Compare(a[:], b[:]) }) {
		s := all[id]
		t, exists := p.Topics[id]
		switch {
		case exists && p.deleted(s):
			delete(p.plan.Topics, id)
			p.note("topic %s was deleted after the copy was made", t.Name)
		case exists && s.partitions > t.Partitions:
			p.note("topic %s has records in %d partitions, and had %d when the copy was made: it gets as many", t.Name, s.partitions, t.Partitions)
			t.Partitions = s.partitions
			p.plan.Topics[id] = t
		case !exists && s.name != "" && !names[s.name] && (s.merged || s.fromStart()):
			names[s.name] = true
			p.plan.Topics[id] = coordinator.Topic{ID: id, Name: s.name, Partitions: s.partitions, Replication: replicationOf, CreatedMs: s.createdMs}
			p.note("topic %s was created after the copy was made: it gets %d partitions, which have records, and no configs", s.name, s.partitions)
		}
	}
}

// deleted reports whether a topic of the copy was deleted since.
func (p *planner) deleted(s *seen) bool {
	for id, low := range s.lowest {
		m := p.Manifests[s.shards[id]]
		if low == 0 || m == nil || m.Name() == p.Shards[s.shards[id]].Manifest {
			continue
		}
		if _, ok := m.Find(id.Topic, id.Partition); !ok {
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
