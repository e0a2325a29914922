package agent

import (
	"context"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
)

// startUpkeep starts what keeps the bucket and the coordinator small: merges, compaction, retention and the deletion of garbage.
func (a *Agent) startUpkeep(run context.Context) {
	leads := func(id coordinator.ShardID) bool {
		_, ok := a.partitions.Leads(id)
		return ok
	}
	a.merger = upkeep.NewMerger(a.cfg.Merge, upkeep.MergerDeps{
		Manifests: a.manifests, Index: a.index, Tails: a.tails, Footers: a.footers, Store: a.deps.Store, Cluster: a.clusterID,
		Partition: a.partitions.find, Leads: leads,
		Topic: func(id [16]byte) (string, bool) {
			t, ok := a.view.TopicByID(id)
			return t.Name, ok
		},
		Compacted: func(id [16]byte) bool {
			_, ok := a.cleanRules(id)
			return ok
		},
		ProducerIdle: a.cfg.ProducerIdleMax, ProducersMax: producersMax, Now: a.deps.Now, Log: a.log,
	})
	a.spawn(run, "merge segments", a.merger.Run)
	a.cleaner = upkeep.NewCleaner(a.cfg.Clean, upkeep.CleanerDeps{
		Manifests: a.manifests, Footers: a.footers, Store: a.deps.Store, Cluster: a.clusterID, Leads: leads, Rules: a.cleanRules, PlainBytesMax: topics.PlainBytesMax,
		Now: a.deps.Now, Log: a.log,
	})
	a.spawn(run, "compact partitions", a.cleaner.Run)
	a.spawn(run, "enforce retention", upkeep.NewRetention(a.cfg.RetentionPause, upkeep.RetentionDeps{
		Manifests: a.manifests, Index: a.index, Partitions: a.partitions.All, Limits: a.limits, Now: a.deps.Now, Log: a.log,
	}).Run)
	a.spawn(run, "delete garbage", upkeep.NewSweeper(a.cfg.Garbage, upkeep.SweeperDeps{
		KV: a.deps.KV, View: a.view, Store: a.deps.Store, Manifests: a.manifests, Now: a.deps.Now, Log: a.log,
		Elected: func() bool {
			holder, revision := a.view.Controller()
			return revision != 0 && holder.Log == a.id
		},
	}).Run)
}

// limits returns how much of a topic's partitions is kept.
func (a *Agent) limits(id [16]byte) (upkeep.Limits, bool) {
	t, ok := a.view.TopicByID(id)
	if !ok {
		return upkeep.Limits{}, false
	}
	rules := a.topics.RulesOf(&t)
	if !rules.Delete {
		return upkeep.Limits{}, false
	}
	return upkeep.Limits{AgeMs: rules.RetentionMs, Bytes: rules.RetentionBytes}, true
}

// cleanRules returns how a topic is compacted.
func (a *Agent) cleanRules(id [16]byte) (upkeep.CleanRules, bool) {
	t, ok := a.view.TopicByID(id)
	if !ok {
		return upkeep.CleanRules{}, false
	}
	rules := a.topics.RulesOf(&t)
	return upkeep.CleanRules{
		Policy:            compact.Policy{DirtyRatioMin: rules.DirtyRatioMin, LagMsMin: rules.CompactionLagMsMin, LagMsMax: rules.CompactionLagMsMax},
		DeleteRetentionMs: rules.DeleteRetentionMs,
	}, rules.Compact
}
