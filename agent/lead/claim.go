package lead

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-io/varve/coordinator"
)

// claimsPerTxn is how many shards one transaction claims: two operations each.
const claimsPerTxn = coordinator.TxnOpsMax / 2

// Claimed is a shard that this agent has just taken over.
type Claimed struct {
	ID       coordinator.ShardID
	Shard    coordinator.Shard
	Write    coordinator.Write // what the guard holds
	Revision int64             // of the claim
}

// ErrLed: an agent whose log is open leads a shard. Its log must be closed first, by itself or by recovery: what it has acknowledged and not flushed
// would be missing in what a new leader starts from.
var ErrLed = errors.New("shard is led by an agent whose WAL log is open")

// Claim makes this agent's log the owner of every shard, each under a new epoch. It fails with [ErrLed] if the log of an owner is open, be it one that was
// opened after the caller had last looked; and with coordinator.ErrFenced if another agent claims a shard at the same time.
func Claim(ctx context.Context, kv coordinator.KV, cluster coordinator.Cluster, log coordinator.LogID, node int32) ([]Claimed, error) {
	shards, writes, revision, err := readShards(ctx, kv, cluster.Shards)
	if err != nil {
		return nil, err
	}
	// As of the moment whose guards the claim compares: whoever claims after it, has changed them.
	if err := checkOwners(ctx, kv, shards, log, revision); err != nil {
		return nil, err
	}
	all := make([]Claimed, 0, cluster.Shards)
	for first := uint32(0); first < cluster.Shards; first += claimsPerTxn {
		var guards []*coordinator.Guard
		var ops []coordinator.Op
		from := len(all)
		for id := first; id < min(first+claimsPerTxn, cluster.Shards); id++ {
			c := Claimed{ID: coordinator.ShardID(id), Shard: shards[id]}
			c.Shard.Owner, c.Shard.Node = log, node
			c.Shard.Epoch++
			c.Write = coordinator.Write{Owner: log, Epoch: c.Shard.Epoch}
			all = append(all, c)
			guards = append(guards, &coordinator.Guard{
				Key: coordinator.KeyWrite(c.ID), Revision: writes[id], Next: coordinator.Encode(c.Write),
			})
			ops = append(ops, coordinator.Op{Key: coordinator.KeyShard(c.ID), Value: coordinator.Encode(c.Shard)})
		}
		if err := coordinator.Apply(ctx, kv, guards, ops); err != nil {
			return nil, fmt.Errorf("claim shards from %d: %w", first, err)
		}
		for i := range guards {
			all[from+i].Revision = guards[i].Revision
		}
	}
	return all, nil
}

// checkOwners returns ErrLed if a shard's owner, other than log, had its log open at that revision.
func checkOwners(ctx context.Context, kv coordinator.KV, shards []coordinator.Shard, log coordinator.LogID, revision int64) error {
	items, _, err := kv.List(ctx, coordinator.PrefixLogs, revision)
	if err != nil {
		return fmt.Errorf("read WAL logs: %w", err)
	}
	open := make(map[coordinator.LogID]bool)
	for _, it := range items {
		l, err := coordinator.Decode[coordinator.Log](it)
		if err != nil {
			return err
		}
		open[l.ID] = !l.Closed
	}
	for id, s := range shards {
		if s.Owner != log && open[s.Owner] {
			return fmt.Errorf("claim shard %d: %w: node %d, WAL log %s", id, ErrLed, s.Node, s.Owner)
		}
	}
	return nil
}

// readShards returns the shards' records, and the revisions of their guards, all as of one moment: a record that is older than its guard would undo
// what the previous owner wrote last.
func readShards(ctx context.Context, kv coordinator.KV, n uint32) (shards []coordinator.Shard, writes []int64, revision int64, err error) {
	shards, writes = make([]coordinator.Shard, n), make([]int64, n)
	items, revision, err := kv.List(ctx, coordinator.PrefixShards, 0)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("read shards: %w", err)
	}
	guards, _, err := kv.List(ctx, coordinator.PrefixWrites, revision)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("read guards of shards: %w", err)
	}
	byKey := make(map[string]coordinator.Item, len(items)+len(guards))
	for _, it := range append(items, guards...) {
		byKey[it.Key] = it
	}
	for id := range n {
		writes[id] = byKey[coordinator.KeyWrite(coordinator.ShardID(id))].ModRevision
		it := byKey[coordinator.KeyShard(coordinator.ShardID(id))]
		if it.ModRevision == 0 {
			continue
		}
		if shards[id], err = coordinator.Decode[coordinator.Shard](it); err != nil {
			return nil, nil, 0, err
		}
	}
	return shards, writes, revision, nil
}
