package status

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/varve-io/varve/coordinator"
)

// ErrNoCluster: there is no cluster where it was looked for.
var ErrNoCluster = errors.New("no agent has ever created this cluster")

// Read reads a cluster's records, all as of one revision. It changes nothing. The commits come with their content, as the coordinator lists keys in no other way: some hundred
// bytes each.
func Read(ctx context.Context, kv coordinator.KV) (Records, error) {
	r := Records{
		Shards: make(map[coordinator.ShardID]coordinator.Shard), Unflushed: make(map[int32]coordinator.Unflushed),
		Loads: make(map[int32]coordinator.Load), Nodes: make(map[string]int32),
	}
	items, revision, err := coordinator.ListAll(ctx, kv,
		coordinator.PrefixMeta, coordinator.PrefixLogs, coordinator.PrefixUnflushed, coordinator.PrefixLoads, coordinator.PrefixStores)
	if err != nil {
		return r, err
	}
	r.Revision = revision
	for _, item := range items {
		if err := r.add(item); err != nil {
			return r, err
		}
	}
	if r.Cluster.ID == "" {
		return r, ErrNoCluster
	}
	st, err := kv.Status(ctx)
	if err != nil {
		return r, fmt.Errorf("read the size of the database: %w", err)
	}
	r.SizeBytes, r.UsedBytes, r.QuotaBytes, r.NoSpace = st.SizeBytes, st.UsedBytes, st.QuotaBytes, st.NoSpace
	return r, nil
}

// add takes one record in. Topics are not of interest here.
func (r *Records) add(item coordinator.Item) (err error) {
	under := func(prefix string) bool { return strings.HasPrefix(item.Key, prefix) }
	switch {
	case item.Key == coordinator.KeyCluster:
		r.Cluster, err = coordinator.Decode[coordinator.Cluster](item)
	case item.Key == coordinator.KeyController:
		r.Controller, err = coordinator.Decode[coordinator.Controller](item)
	case under(coordinator.PrefixCommits):
		r.Commits++
	case under(coordinator.PrefixMoves):
		r.Moves++
	case under(coordinator.PrefixAgents):
		var a coordinator.Agent
		a, err = coordinator.Decode[coordinator.Agent](item)
		r.Agents = append(r.Agents, a)
	case item.Key == coordinator.KeyPastLog: // of logs that need nothing any more
	case under(coordinator.PrefixLogs):
		var l coordinator.Log
		l, err = coordinator.Decode[coordinator.Log](item)
		r.Logs = append(r.Logs, l)
	case under(coordinator.PrefixShards):
		var id uint64
		if id, err = strconv.ParseUint(strings.TrimPrefix(item.Key, coordinator.PrefixShards), 10, 32); err != nil {
			return fmt.Errorf("parse key %q: %w", item.Key, err)
		}
		r.Shards[coordinator.ShardID(id)], err = coordinator.Decode[coordinator.Shard](item)
	case under(coordinator.PrefixUnflushed):
		err = ofNode(item, coordinator.PrefixUnflushed, r.Unflushed)
	case under(coordinator.PrefixLoads):
		err = ofNode(item, coordinator.PrefixLoads, r.Loads)
	case under(coordinator.PrefixStores):
		r.Nodes[strings.TrimPrefix(item.Key, coordinator.PrefixStores)], err = coordinator.Decode[int32](item)
	}
	return err
}

// ofNode takes in what an agent says of itself.
func ofNode[T any](item coordinator.Item, prefix string, into map[int32]T) error {
	node, err := strconv.ParseInt(strings.TrimPrefix(item.Key, prefix), 10, 32)
	if err != nil {
		return fmt.Errorf("parse key %q: %w", item.Key, err)
	}
	into[int32(node)], err = coordinator.Decode[T](item)
	return err
}
