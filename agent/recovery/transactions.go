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

// transactional returns a batch's producer, and whether it belongs to a transaction.
func transactional(b []byte) (protocol.ProducerID, bool) {
	h, err := batch.Parse(b)
	return h.ProducerID, err == nil && h.Attributes.Transactional()
}

// settled returns, as they are to be once records of a log from before a restore are committed, the records of the transactional ids of which these tell: what the restore has decided was decided by what is in the bucket
// alone. Nobody coordinates an id before the last such log is closed. Other logs' recoverers may settle the same ids.
func (r *Recovery) settled(ctx context.Context, records []flush.Record) ([]coordinator.Item, error) {
	all, err := standingsOf(records)
	if err != nil || len(all) == 0 {
		return nil, err
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
		return nil, err
	}
	known := make(map[protocol.ProducerID]coordinator.Item)
	for _, it := range items {
		s, err := coordinator.Decode[txn.Snapshot](it)
		if err != nil {
			return nil, err
		}
		known[s.ProducerID] = it
	}
	var changed []coordinator.Item
	for _, id := range slices.Sorted(maps.Keys(all)) {
		key, s := rebuild.Unclaimed(id, cluster.Shards, r.Now().UnixMilli())
		item, ok := known[id]
		if !ok {
			item.Key = key
		} else if s, err = coordinator.Decode[txn.Snapshot](item); err != nil {
			return nil, err
		}
		if next := coordinator.Encode(rebuild.Settle(s, all[id])); string(next) != string(item.Value) {
			item.Value = next
			changed = append(changed, item)
		}
	}
	return changed, nil
}

// commit commits records of a log from before a restore, and what they tell of transactions with them: who recovers the log again may find less of it, and must not find settled by what is gone.
func (r *Recovery) commit(ctx context.Context, w *flush.Writer, staged flush.Staged, records []flush.Record) error {
	for {
		items, err := r.settled(ctx, records)
		if err != nil {
			return err
		}
		_, err = w.Commit(ctx, staged, items...)
		fenced, ok := errors.AsType[*coordinator.FencedError](err)
		if !ok || slices.Contains(fenced.Keys, coordinator.KeyLog(w.Record().ID)) { // else another log's recoverer was here
			return err
		}
	}
}
