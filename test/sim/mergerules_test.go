package sim

import (
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// The rules of merges, each broken.

// mergeBreakages are caught within clusterBreakageSeeds seeds of transactions each.
var mergeBreakages = []breakage{unmergedLeave, mergeForgetsProducers, mergeForgetsTransactions, sweptInUse}

// Commits leave that a shard has not merged.
var unmergedLeave = breakage{name: "take all commits for merged", txn: func(_ *world, x *txn) {
	for i, op := range x.ops {
		if op.Delete || !strings.HasPrefix(op.Key, coordinator.PrefixShards) {
			continue
		}
		s, err := coordinator.Decode[coordinator.Shard](coordinator.Item{Key: op.Key, Value: op.Value})
		if err != nil {
			panic(err)
		}
		if s.Merged > 0 {
			s.Merged += 50
			x.ops[i].Value = coordinator.Encode(s)
		}
	}
}}

var mergeForgetsProducers = breakage{name: "leave producers out of manifests", content: changedManifests(func(p *manifest.Partition) { p.Producers = nil })}

var mergeForgetsTransactions = breakage{name: "leave open transactions out of manifests", content: changedManifests(func(p *manifest.Partition) {
	for i := range p.Producers {
		p.Producers[i].TxnFirst = protocol.NoOffset
	}
})}

// changedManifests changes the partitions of every manifest that is written.
func changedManifests(change func(*manifest.Partition)) func(name string, content []byte) []byte {
	return func(name string, content []byte) []byte {
		if !strings.HasPrefix(name, manifest.NamePrefix) {
			return content
		}
		m, err := manifest.Parse(content)
		if err != nil {
			panic(err)
		}
		for i := range m.Partitions {
			change(&m.Partitions[i])
		}
		if content, err = m.Encode(); err != nil {
			panic(err)
		}
		return content
	}
}

// Who looks for garbage takes the newest commit's segment for it.
var sweptInUse = breakage{name: "take segments of commits for garbage", deletes: func(w *world, name string) string {
	if id, err := segment.ParseName(name); err != nil || id.Level != segment.Flushed {
		return name
	}
	commits, _, err := w.kv.List(w.ctx, coordinator.PrefixCommits, 0)
	if err != nil {
		panic(err)
	}
	var newest int64
	for _, it := range commits {
		if it.ModRevision > newest {
			commit, err := coordinator.DecodeCommit(it.Value)
			if err != nil {
				panic(err)
			}
			name, newest = commit.Object, it.ModRevision
		}
	}
	return name
}}
