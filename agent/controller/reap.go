package controller

import (
	"context"
	"fmt"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/coordinator"
)

// reap deletes the commits that every shard in them has merged. It needs no guard: what is merged stays merged, and no commit is written twice.
func (c *Controller) reap(ctx context.Context) error {
	shards := c.deps.View.Shards()
	merged := c.deps.Tails.Merged(func(shard uint32) int64 {
		if int(shard) < len(shards) {
			return shards[shard].Merged
		}
		return 0
	})
	for len(merged) > 0 {
		n := min(len(merged), coordinator.TxnOpsMax)
		if _, err := c.deps.KV.Txn(ctx, nil, deletions(merged[:n])); err != nil {
			return fmt.Errorf("delete merged commits: %w", err)
		}
		merged = merged[n:]
	}
	return nil
}

func deletions(commits []*index.Commit) []coordinator.Op {
	ops := make([]coordinator.Op, len(commits))
	for i, commit := range commits {
		ops[i] = coordinator.Op{Key: coordinator.KeyCommit(coordinator.LogID(commit.Log), commit.Number), Delete: true}
	}
	return ops
}
