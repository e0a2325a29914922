package rebuild

import (
	"context"
	"errors"
	"fmt"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
)

var (
	// ErrLost says that etcd has nothing of the cluster whose copies are in the bucket.
	ErrLost = errors.New("etcd has lost the cluster; varve restore rebuilds it from the bucket")
	// ErrSetBack says that etcd is as it was before it gave the number of a copy that is in the bucket.
	ErrSetBack = errors.New("etcd was set back to an earlier state; varve restore --repair brings it up to date")
	// ErrOther says that the bucket is another cluster's.
	ErrOther = errors.New("the bucket is another cluster's")
)

// Copies lists the newest copies that may be in the bucket, whole or not, from old to new, with the names of their pages in order. Names that are none of a copy are passed over.
func Copies(ctx context.Context, store objectstore.Store) ([]Copy, error) {
	var all []Copy
	for info, err := range store.List(ctx, backup.NamePrefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list copies: %w", err)
		}
		id, _, err := backup.ParseName(info.Name)
		if err != nil {
			continue
		}
		if n := len(all); n == 0 || all[n-1].ID != id {
			all = append(all, Copy{ID: id})
		}
		last := &all[len(all)-1]
		last.Pages = append(last.Pages, info)
	}
	return all, nil
}

// Copy is a copy of the coordinator's state in the bucket.
type Copy struct {
	ID    backup.ID
	Pages []objectstore.Info // in order
}

// Compare finds out whether etcd is of the cluster whose copies were listed before, and not older than the newest of them: before a copy is written, etcd gives its number. Its error wraps [ErrLost],
// [ErrSetBack] or [ErrOther], or is etcd's.
func Compare(ctx context.Context, kv coordinator.KV, copies []Copy) error {
	if len(copies) == 0 {
		return nil
	}
	newest := copies[len(copies)-1].ID
	item, _, err := kv.Get(ctx, coordinator.KeyCluster)
	if err != nil {
		return fmt.Errorf("compare etcd with its copies: %w", err)
	}
	if item.ModRevision == 0 {
		return fmt.Errorf("copy %d of cluster %s is in the bucket: %w", newest.Number, protocol.TopicID(newest.Cluster), ErrLost)
	}
	cluster, err := coordinator.Decode[coordinator.Cluster](item)
	if err != nil {
		return err
	}
	for _, c := range copies {
		if id := protocol.TopicID(c.ID.Cluster).String(); id != cluster.ID {
			return fmt.Errorf("copy %d in the bucket is of cluster %s, etcd is of cluster %s: %w", c.ID.Number, id, cluster.ID, ErrOther)
		}
	}
	next, err := nextCopy(ctx, kv)
	if err != nil {
		return err
	}
	if newest.Number >= next {
		return fmt.Errorf("copy %d, of revision %d, is in the bucket, and etcd has given numbers below %d: %w", newest.Number, newest.Revision, next, ErrSetBack)
	}
	return nil
}

// nextCopy reads the number that the next copy will get.
func nextCopy(ctx context.Context, kv coordinator.KV) (uint64, error) {
	item, _, err := kv.Get(ctx, coordinator.KeyNextCopy)
	switch {
	case err != nil:
		return 0, fmt.Errorf("compare etcd with its copies: %w", err)
	case item.ModRevision == 0:
		return 1, nil
	}
	n, err := coordinator.Decode[int64](item)
	return uint64(max(n, 0)), err
}
