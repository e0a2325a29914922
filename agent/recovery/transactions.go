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
	"github.com/varve-io/varve/objectstore/segment"
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

// ids are the keys of transactional ids, by their producers.
type ids struct {
	keys   map[protocol.ProducerID]string
	shards uint32
}

// ids reads which ids there are, once for all commits of a log, for there may be very many: until the last log from before a restore is closed no producer gets another key, and who has none gets that of [rebuild.Unclaimed].
func (s *sieve) ids(ctx context.Context) (*ids, error) {
	if s.known != nil {
		return s.known, nil
	}
	r := s.recovery
	known := &ids{keys: make(map[protocol.ProducerID]string)}
	err := retry.Coordinator(ctx, r.Log, "list transactional ids", func(ctx context.Context) error {
		item, _, err := r.KV.Get(ctx, coordinator.KeyCluster)
		if err != nil {
			return err
		}
		cluster, err := coordinator.Decode[coordinator.Cluster](item)
		if err != nil {
			return err
		}
		known.shards = cluster.Shards
		items, _, err := r.KV.List(ctx, coordinator.PrefixTxns, 0)
		for _, it := range items {
			id, err := coordinator.Decode[txn.Snapshot](it)
			if err != nil {
				return err
			}
			known.keys[id.ProducerID] = it.Key
		}
		return err
	})
	if err == nil {
		s.known = known
	}
	return known, err
}

// settled returns, as they are to be once records of a log from before a restore are committed, the records of the transactional ids of which these tell: what the restore has decided was decided by what is in the bucket
// alone. Nobody coordinates an id before the last such log is closed. Other logs' recoverers may settle the same ids.
func (s *sieve) settled(ctx context.Context, records []flush.Record) ([]coordinator.Item, error) {
	all, err := standingsOf(records)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	known, err := s.ids(ctx)
	if err != nil {
		return nil, err
	}
	r := s.recovery
	var changed []coordinator.Item
	for _, producer := range slices.Sorted(maps.Keys(all)) {
		key, id := rebuild.Unclaimed(producer, known.shards, r.Now().UnixMilli())
		if named, ok := known.keys[producer]; ok {
			key = named
		}
		var item coordinator.Item
		err := retry.Coordinator(ctx, r.Log, "read transactional id", func(ctx context.Context) (err error) {
			item, _, err = r.KV.Get(ctx, key)
			return err
		})
		if err != nil {
			return nil, err
		}
		if item.ModRevision > 0 {
			if id, err = coordinator.Decode[txn.Snapshot](item); err != nil {
				return nil, err
			}
		}
		if next := coordinator.Encode(rebuild.Settle(id, all[producer])); string(next) != string(item.Value) {
			item.Key, item.Value = key, next
			changed = append(changed, item)
		}
	}
	return changed, nil
}

// commitAll commits records of a log from before a restore, and what they tell of transactions with them, by as many commits as it takes: the values of a few ids may be more than etcd takes at once.
func (s *sieve) commitAll(ctx context.Context, w *flush.Writer, builder *segment.Builder, records []flush.Record) error {
	for n := len(records); n > 0; {
		staged, err := w.Upload(ctx, builder, w.NextCommit(), records[:n])
		if err == nil {
			err = s.commitWith(ctx, w, staged, records[:n])
		}
		switch {
		case err == nil: // what is settled is the same for most of what follows
			records = records[n:]
			n = min(2*n, len(records))
		case errors.Is(err, coordinator.ErrLimit) && n > 1:
			n /= 2
		default:
			return err
		}
	}
	return nil
}

// commitWith commits a segment, and what its records tell of transactions with it: who recovers the log again may find less of it, and must not find settled by what is gone.
func (s *sieve) commitWith(ctx context.Context, w *flush.Writer, staged flush.Staged, records []flush.Record) error {
	for {
		items, err := s.settled(ctx, records)
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
