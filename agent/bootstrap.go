package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// callTimeout bounds one call to the coordinator, which is then tried again: a request that was handed to a dying etcd leader
// can hang for seconds.
const callTimeout = 5 * time.Second

// retryPause is the wait between two tries of such a call.
const retryPause = time.Second

// forever calls do, with a deadline of its own each time, until it succeeds, ctx ends, or it fails for another reason than that the
// coordinator is away; meanwhile it says what it waits for. do must be safe to repeat after an unknown outcome.
func forever(ctx context.Context, log *slog.Logger, what string, do func(context.Context) error) error {
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := do(call)
		cancel()
		away := errors.Is(err, coordinator.ErrUnavailable) || errors.Is(err, coordinator.ErrUnknownOutcome) ||
			errors.Is(err, coordinator.ErrNoSpace) || errors.Is(err, context.DeadlineExceeded)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case !away:
			return fmt.Errorf("%s: %w", what, err)
		}
		log.Warn("waiting for etcd", "to", what, "err", err)
		if err := pause(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// pause waits for the time between two tries; the error is that of ctx if it ends first.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(retryPause):
		return nil
	}
}

// ensureCluster reads the cluster's record, or creates the cluster with that id and number of shards.
func ensureCluster(ctx context.Context, kv coordinator.KV, create coordinator.Cluster) (coordinator.Cluster, error) {
	for {
		item, _, err := kv.Get(ctx, coordinator.KeyCluster)
		if err != nil {
			return coordinator.Cluster{}, err
		}
		if item.ModRevision != 0 {
			return coordinator.Decode[coordinator.Cluster](item)
		}
		_, err = kv.Txn(ctx, []coordinator.Compare{{Key: coordinator.KeyCluster}},
			[]coordinator.Op{{Key: coordinator.KeyCluster, Value: coordinator.Encode(create)}})
		if err != nil {
			return coordinator.Cluster{}, err
		}
	}
}

// take takes n numbers from a counter, which gives each number once, and returns the first. After an unknown outcome
// the numbers may be taken and not returned, which leaves a gap and does no harm.
func take(ctx context.Context, kv coordinator.KV, counter string, n int64) (int64, error) {
	for {
		item, _, err := kv.Get(ctx, counter)
		if err != nil {
			return 0, err
		}
		next := int64(1)
		if item.ModRevision != 0 {
			if next, err = coordinator.Decode[int64](item); err != nil {
				return 0, err
			}
		}
		res, err := kv.Txn(ctx, []coordinator.Compare{{Key: counter, Revision: item.ModRevision}},
			[]coordinator.Op{{Key: counter, Value: coordinator.Encode(next + n)}})
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return next, nil
		}
	}
}

// ensureNode returns the node id (Kafka's broker id) that belongs to a store, and binds a new one to a new store.
func ensureNode(ctx context.Context, kv coordinator.KV, store string) (int32, error) {
	key := coordinator.KeyStore(store)
	for {
		item, _, err := kv.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if item.ModRevision != 0 {
			return coordinator.Decode[int32](item)
		}
		node, err := take(ctx, kv, coordinator.KeyNextNode, 1)
		if err != nil {
			return 0, err
		}
		_, err = kv.Txn(ctx, []coordinator.Compare{{Key: key}}, []coordinator.Op{{Key: key, Value: coordinator.Encode(int32(node))}})
		if err != nil {
			return 0, err
		}
	}
}

// openLog writes the record of a new WAL log of this agent, with an ensemble of its own store alone.
func openLog(ctx context.Context, kv coordinator.KV, log *slog.Logger, id coordinator.LogID, node int32, store string) (coordinator.Log, int64, error) {
	record := coordinator.Log{
		ID: id, Node: node, Fence: 1,
		Segments: []coordinator.WALSegment{{First: 1, Last: -1, Stores: []string{store}, Quorum: 1}},
	}
	guard := coordinator.Guard{Key: coordinator.KeyLog(id), Next: coordinator.Encode(record)}
	err := coordinator.Insist(ctx, kv, []*coordinator.Guard{&guard}, nil, func(err error) {
		log.Error("waiting for room in etcd", "to", "open a WAL log", "log", id, "err", err)
	})
	if err != nil {
		return coordinator.Log{}, 0, fmt.Errorf("open WAL log %s: %w", id, err)
	}
	return record, guard.Revision, nil
}

// claimsPerTxn is how many shards one transaction claims: two operations each.
const claimsPerTxn = coordinator.TxnOpsMax / 2

// claimed is a shard that this agent has just taken over.
type claimed struct {
	id       coordinator.ShardID
	shard    coordinator.Shard
	write    coordinator.Write
	revision int64 // of the claim
}

// claimShards makes this agent's log the owner of every shard, each under a new epoch. It must only be called when no log of a previous owner is
// open; a shard that another agent claims at the same time is an error.
func claimShards(ctx context.Context, kv coordinator.KV, cluster coordinator.Cluster, log coordinator.LogID, node int32) ([]claimed, error) {
	shards, writes, err := readShards(ctx, kv, cluster.Shards)
	if err != nil {
		return nil, err
	}
	all := make([]claimed, 0, cluster.Shards)
	for first := uint32(0); first < cluster.Shards; first += claimsPerTxn {
		var guards []*coordinator.Guard
		var ops []coordinator.Op
		from := len(all)
		for id := first; id < min(first+claimsPerTxn, cluster.Shards); id++ {
			c := claimed{id: coordinator.ShardID(id), shard: shards[id]}
			c.shard.Owner, c.shard.Node = log, node
			c.shard.Epoch++
			c.write = coordinator.Write{Owner: log, Epoch: c.shard.Epoch}
			all = append(all, c)
			guards = append(guards, &coordinator.Guard{
				Key: coordinator.KeyWrite(c.id), Revision: writes[id], Next: coordinator.Encode(c.write),
			})
			ops = append(ops, coordinator.Op{Key: coordinator.KeyShard(c.id), Value: coordinator.Encode(c.shard)})
		}
		if err := coordinator.Apply(ctx, kv, guards, ops); err != nil {
			return nil, fmt.Errorf("claim shards from %d: %w", first, err)
		}
		for i := range guards {
			all[from+i].revision = guards[i].Revision
		}
	}
	return all, nil
}

// readShards returns the shards' records, and the revisions of their guards, all as of one moment: a record that is older than its guard would undo
// what the previous owner wrote last.
func readShards(ctx context.Context, kv coordinator.KV, n uint32) (shards []coordinator.Shard, writes []int64, err error) {
	shards, writes = make([]coordinator.Shard, n), make([]int64, n)
	items, revision, err := kv.List(ctx, coordinator.PrefixShards, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read shards: %w", err)
	}
	guards, _, err := kv.List(ctx, coordinator.PrefixWrites, revision)
	if err != nil {
		return nil, nil, fmt.Errorf("read guards of shards: %w", err)
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
			return nil, nil, err
		}
	}
	return shards, writes, nil
}

// parseClusterID reads the cluster's id, which is a UUID printed like Kafka's topic ids.
func parseClusterID(s string) ([16]byte, error) {
	id, err := protocol.ParseTopicID(s)
	if err != nil {
		return [16]byte{}, fmt.Errorf("cluster id: %w", err)
	}
	return id, nil
}
