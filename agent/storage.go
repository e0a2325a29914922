package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/retry"
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
		Partition: a.partitions.find, Leads: leads, Answers: a.bucketAnswers,
		Topic: func(id [16]byte) (string, bool) {
			t, ok := a.view.TopicByID(id)
			return t.Name, ok
		},
		Compacted: func(id [16]byte) bool {
			_, ok := a.cleanRules(id)
			return ok
		},
		ProducersMax: producersMax, Now: a.deps.Now, Log: a.log,
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
		KV: a.deps.KV, View: a.view, Store: a.deps.Store, Uploads: a.requests, Manifests: a.manifests, Leads: leads, Now: a.deps.Now, Log: a.log, Elected: a.elected,
	}).Run)
	a.copier = rebuild.NewCopier(a.cfg.CopyPause, rebuild.CopierDeps{
		KV: a.deps.KV, Store: a.deps.Store, Cluster: a.clusterID, Elected: a.elected, Agents: a.view.Agents, Nonce: newNonce, Now: a.deps.Now, Log: a.log,
	})
	a.spawn(run, "copy the coordinator's state", a.copier.Run)
}

// elected reports whether this agent is the cluster's controller.
func (a *Agent) elected() bool {
	holder, revision := a.view.Controller()
	return revision != 0 && holder.Log == a.id
}

// compareCopies makes sure, before the agent takes part in anything, that etcd is the one whose state was copied to the bucket, and not older than the newest copy.
func (a *Agent) compareCopies(ctx context.Context) error {
	var copies []rebuild.Copy
	err := retry.Bucket(ctx, a.log, "look for copies of the coordinator's state", func() (err error) {
		call, cancel := context.WithTimeout(ctx, retry.CallTimeout)
		defer cancel()
		copies, err = rebuild.Copies(call, a.deps.Store)
		return err
	})
	if err != nil {
		return err
	}
	return retry.Coordinator(ctx, a.log, "compare etcd with its copies in the bucket", func(ctx context.Context) error {
		_, err := rebuild.Compare(ctx, a.deps.KV, copies)
		return err
	})
}

// lineagePause is how often a running agent looks whether etcd was set back under it: any answer tells.
const lineagePause = 5 * time.Second

// watchLineage ends the agent if etcd was set back, to whatever state, or is another cluster's: what the agent knows is newer then than what it would read.
func (a *Agent) watchLineage(ctx context.Context) error {
	return retry.Every(ctx, lineagePause, func() error {
		call, cancel := context.WithTimeout(ctx, retry.CallTimeout)
		item, _, err := a.deps.KV.Get(call, coordinator.KeyCluster)
		cancel()
		if err != nil {
			return nil //nolint:nilerr // it is away, or was set back, which others say
		}
		if cluster, err := coordinator.Decode[coordinator.Cluster](item); item.ModRevision == 0 || err != nil || cluster.ID != a.cluster.ID {
			return fmt.Errorf("etcd has cluster %q, and had %s: %w", cluster.ID, a.cluster.ID, rebuild.ErrLost)
		}
		return nil
	})
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
