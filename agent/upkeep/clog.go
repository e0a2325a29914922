package upkeep

import (
	"fmt"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// failing is a shard whose last merges have failed.
type failing struct {
	at    time.Time // the last one
	times int       // one after the other, while the bucket answered
	err   error     // of the last one
}

// judge decides which shards take no writes any more because they cannot be merged, and which do again.
func (m *Merger) judge() {
	half := m.deps.Tails.Surplus(crowd/2*m.cfg.CommitsMax, crowd/2*m.cfg.KeyBytesMax)
	was, is := m.refused(), make(map[coordinator.ShardID]error)
	for id, record := range m.deps.Manifests.records() {
		oldest, ok := m.deps.Tails.Oldest(uint32(id), record.Merged)
		f := m.failed[id]
		if !ok || !m.deps.Leads(id) || !clogs(f.times, oldest, half) {
			continue
		}
		if oldest.Unread {
			f.err = fmt.Errorf("the footer of %s cannot be read", oldest.Name)
		}
		is[id] = protocol.NotEnoughReplicas.Errorf("shard %d takes no writes: what is committed of it cannot be merged: %v", id, f.err)
		if was[id] == nil {
			m.deps.Log.Error("a shard takes no writes: what is committed of it cannot be merged, and would fill etcd; merges are tried again", "shard", id, "failures", f.times, "err", f.err)
		}
	}
	for id := range was {
		if is[id] == nil {
			m.deps.Log.Info("a shard takes writes again", "shard", id)
		}
	}
	m.clogged.Store(&is)
}

// refused returns the shards that take no writes, and why; the map must not be changed.
func (m *Merger) refused() map[coordinator.ShardID]error {
	if all := m.clogged.Load(); all != nil {
		return *all
	}
	return nil
}

// Refuses returns a [*protocol.Error] if a shard that is led here must take no records, since what it has cannot be merged: an object cannot be read, say, which the error names. Each commit that has something of the shard stays in
// the coordinator then, and when there are too many, all shards of all agents wait ([MergeConfig.Crowded]). It may be called concurrently.
func (m *Merger) Refuses(id coordinator.ShardID) error { return m.refused()[id] }

// Clogged returns how many shards take no records.
func (m *Merger) Clogged() int { return len(m.refused()) }
