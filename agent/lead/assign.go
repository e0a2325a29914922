package lead

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-io/varve/coordinator"
)

// assignsPerTxn is how many shards one transaction gives away: three operations each.
const assignsPerTxn = coordinator.TxnOpsMax / 3

// Assignment gives a shard that nobody leads to a log.
type Assignment struct {
	Shard coordinator.ShardID
	From  coordinator.LogID // its owner, whose log is closed; 0 if it never had one
	To    coordinator.LogID
	Node  int32 // of To
}

// ErrLed: a shard's owner is another one than the plan says, or its log is open. The log must be closed first, by itself or by recovery: what it has
// acknowledged and not flushed would be missing in what a new leader starts from.
var ErrLed = errors.New("shard is led")

// ErrOld: WAL logs are open that are from before the coordinator's state was rebuilt. Who led a shard last is not known for certain, nor so whose log has its newest records.
var ErrOld = errors.New("WAL logs from before the restore are still to be recovered")

// Assign carries assignments out, each under a new epoch, and takes back wishes about these shards. It fails with [ErrLed] if a shard has an owner whose log is
// not closed, with [ErrOld] while that is said of any log, and with coordinator.ErrFenced if somebody changes a shard at the same time: then some may be assigned, and a new plan is due.
func Assign(ctx context.Context, kv coordinator.KV, cluster coordinator.Cluster, all []Assignment) error {
	records, writes, revision, err := readShards(ctx, kv, cluster.Shards)
	if err != nil {
		return err
	}
	// As of the moment whose guards the assignment compares.
	logs, err := coordinator.ListLogs(ctx, kv, revision)
	if err != nil {
		return err
	}
	if old := logs.Old(cluster); len(old) > 0 { // none is opened any more, so that what is seen stays true
		return fmt.Errorf("assign %d shards: %w: %v", len(all), ErrOld, old)
	}
	for _, a := range all {
		if owner := records[a.Shard].Owner; owner != a.From || owner != 0 && !logs.Closed(owner) {
			return fmt.Errorf("assign shard %d, which was planned to be of log %s: %w by log %s", a.Shard, a.From, ErrLed, owner)
		}
	}
	for len(all) > 0 {
		n := min(len(all), assignsPerTxn)
		var guards []*coordinator.Guard
		var ops []coordinator.Op
		for _, a := range all[:n] {
			s := records[a.Shard].Given(a.To, a.Node)
			guards = append(guards, &coordinator.Guard{
				Key: coordinator.KeyWrite(a.Shard), Revision: writes[a.Shard].ModRevision,
				Next: coordinator.Encode(coordinator.Write{Owner: a.To, Epoch: s.Epoch}),
			})
			ops = append(ops, coordinator.Op{Key: coordinator.KeyShard(a.Shard), Value: coordinator.Encode(s)},
				coordinator.Op{Key: coordinator.KeyMove(a.Shard), Delete: true})
		}
		if err := coordinator.Apply(ctx, kv, guards, ops); err != nil {
			return fmt.Errorf("assign shards from %d: %w", all[0].Shard, err)
		}
		all = all[n:]
	}
	return nil
}

// Given is a shard that belongs to this agent's log.
type Given struct {
	ID       coordinator.ShardID
	Shard    coordinator.Shard
	Write    coordinator.Write // what the guard holds
	Revision int64             // of the guard
}

// GivenTo reads which shards belong to a log, and at which revision the last of their records was written: a view that has seen it has seen all that the owners before
// committed.
func GivenTo(ctx context.Context, kv coordinator.KV, shards uint32, log coordinator.LogID) (all []Given, seen int64, err error) {
	records, writes, _, err := readShards(ctx, kv, shards)
	if err != nil {
		return nil, 0, err
	}
	for id, s := range records {
		if s.Owner != log {
			continue
		}
		w, err := coordinator.Decode[coordinator.Write](writes[id])
		if err != nil {
			return nil, 0, err
		}
		all = append(all, Given{ID: coordinator.ShardID(id), Shard: s.Shard, Write: w, Revision: writes[id].ModRevision})
		seen = max(seen, s.revision)
	}
	return all, seen, nil
}

// shard is a shard's record, and the revision that wrote it.
type shard struct {
	coordinator.Shard
	revision int64
}

// readShards returns the shards' records and their guards, all as of one moment: a record that is older than its guard would undo
// what the previous owner wrote last.
func readShards(ctx context.Context, kv coordinator.KV, n uint32) (shards []shard, writes []coordinator.Item, revision int64, err error) {
	shards, writes = make([]shard, n), make([]coordinator.Item, n)
	items, revision, err := coordinator.ListAll(ctx, kv, coordinator.PrefixShards, coordinator.PrefixWrites)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("read shards and their guards: %w", err)
	}
	byKey := make(map[string]coordinator.Item, len(items))
	for _, it := range items {
		byKey[it.Key] = it
	}
	for id := range n {
		writes[id] = byKey[coordinator.KeyWrite(coordinator.ShardID(id))]
		it := byKey[coordinator.KeyShard(coordinator.ShardID(id))]
		if it.ModRevision == 0 {
			continue
		}
		shards[id].revision = it.ModRevision
		if shards[id].Shard, err = coordinator.Decode[coordinator.Shard](it); err != nil {
			return nil, nil, 0, err
		}
	}
	return shards, writes, revision, nil
}
