package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

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
		node, err := coordinator.Take(ctx, kv, coordinator.KeyNextNode, 1)
		if err != nil {
			return 0, err
		}
		_, err = kv.Txn(ctx, []coordinator.Compare{{Key: key}}, []coordinator.Op{{Key: key, Value: coordinator.Encode(int32(node))}})
		if err != nil {
			return 0, err
		}
	}
}

// newNonce returns what no other copy of the coordinator's state has.
func newNonce() uint64 {
	id := newID()
	return binary.BigEndian.Uint64(id[8:])
}

// newSecret returns a secret for a new cluster's agents.
func newSecret() []byte {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return secret
}

// openLog writes the record of a new WAL log of this agent, which begins with a segment that is on its stores.
func openLog(ctx context.Context, kv coordinator.KV, log *slog.Logger, id coordinator.LogID, node int32, first coordinator.WALSegment) (record coordinator.Log, revision int64, err error) {
	record = coordinator.Log{ID: id, Node: node, Fence: 1, Segments: []coordinator.WALSegment{first}}
	err = retry.Coordinator(ctx, log, "open a WAL log", func(ctx context.Context) (err error) {
		revision, err = coordinator.OpenLog(ctx, kv, record)
		return err
	})
	return record, revision, err
}

// parseClusterID reads the cluster's id, which is a UUID printed like Kafka's topic ids.
func parseClusterID(s string) ([16]byte, error) {
	id, err := protocol.ParseTopicID(s)
	if err != nil {
		return [16]byte{}, fmt.Errorf("cluster id: %w", err)
	}
	return id, nil
}
