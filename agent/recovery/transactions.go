package recovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// standings are how transactional producers stand in partitions.
type standings map[protocol.ProducerID]map[txn.Partition]rebuild.Standing

// standingsOf returns what batches tell of transactional producers.
func standingsOf(records []flush.Record) (standings, error) {
	all := make(standings)
	for i := range records {
		h, err := batch.Parse(records[i].Batch)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", records[i].Entry, err)
		}
		if !h.Attributes.Transactional() {
			continue
		}
		if all[h.ProducerID] == nil {
			all[h.ProducerID] = make(map[txn.Partition]rebuild.Standing)
		}
		id := txn.Partition{Topic: records[i].Key.Topic, Partition: records[i].Key.Partition}
		at := all[h.ProducerID][id]
		at.Epoch = max(at.Epoch, h.ProducerEpoch)
		if h.Attributes.Control() {
			at.MarkedMs = max(at.MarkedMs, h.MaxTimestamp)
		}
		all[h.ProducerID][id] = at
	}
	return all, nil
}

// settle takes what records of a log from before a restore, which are about to be committed, tell of transactions into the records of their ids: what the restore has decided was decided by what is in the bucket alone.
// Nobody coordinates an id before the last such log is closed. Other logs' recoverers may settle the same ids.
func (r *Recovery) settle(ctx context.Context, w *flush.Writer, records []flush.Record) error {
	all, err := standingsOf(records)
	if err != nil || len(all) == 0 {
		return err
	}
	var items []coordinator.Item
	var cluster coordinator.Cluster
	err = retry.Coordinator(ctx, r.Log, "read transactional ids", func(ctx context.Context) (err error) {
		item, _, err := r.KV.Get(ctx, coordinator.KeyCluster)
		if err != nil {
			return err
		}
		if cluster, err = coordinator.Decode[coordinator.Cluster](item); err != nil {
			return err
		}
		items, _, err = r.KV.List(ctx, coordinator.PrefixTxns, 0)
		return err
	})
	if err != nil {
		return err
	}
	keys := make(map[protocol.ProducerID]string)
	for _, it := range items {
		s, err := coordinator.Decode[txn.Snapshot](it)
		if err != nil {
			return err
		}
		keys[s.ProducerID] = it.Key
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		key, fresh := rebuild.Unclaimed(id, cluster.Shards, r.Now().UnixMilli())
		if known, ok := keys[id]; ok {
			key = known
		}
		if err := r.settleOne(ctx, w, key, fresh, all[id]); err != nil {
			return err
		}
	}
	return nil
}

// settleOne settles the transactional id of a key; it is as fresh if nobody knows it.
func (r *Recovery) settleOne(ctx context.Context, w *flush.Writer, key string, fresh txn.Snapshot, at map[txn.Partition]rebuild.Standing) error {
	for {
		s := fresh
		var item coordinator.Item
		err := retry.Coordinator(ctx, r.Log, "read a transactional id", func(ctx context.Context) (err error) {
			if item, _, err = r.KV.Get(ctx, key); err == nil && item.ModRevision > 0 {
				s, err = coordinator.Decode[txn.Snapshot](item)
			}
			return err
		})
		if err != nil {
			return err
		}
		guard := coordinator.Guard{Key: key, Revision: item.ModRevision, Next: coordinator.Encode(rebuild.Settle(s, at))}
		if string(guard.Next) == string(item.Value) {
			return nil
		}
		err = coordinator.Insist(ctx, r.KV, []*coordinator.Guard{&guard, w.Guard()}, nil, func(err error) {
			r.Log.Error("waiting for room in etcd", "to", "settle a transaction", "key", key, "err", err)
		})
		fenced, ok := errors.AsType[*coordinator.FencedError](err)
		if !ok || fenced.Applied || len(fenced.Keys) != 1 || fenced.Keys[0] != key { // else another log's recoverer was here
			return err
		}
	}
}
