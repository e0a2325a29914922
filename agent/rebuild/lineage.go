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
	// ErrSetBack says that etcd has not given the number of a copy that is in the bucket, or has given it to another.
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

// Compare finds out whether etcd is of the cluster whose copies were listed before, and has all that they have. It returns the copy that etcd gave a number last. Its error wraps [ErrLost],
// [ErrSetBack] or [ErrOther], or is etcd's.
func Compare(ctx context.Context, kv coordinator.KV, copies []Copy) (coordinator.LastCopy, error) {
	if err := compareCluster(ctx, kv, copies); err != nil {
		return coordinator.LastCopy{}, err
	}
	last, err := lastCopy(ctx, kv)
	if err != nil {
		return coordinator.LastCopy{}, err
	}
	return last, compareNumbers(last, copies)
}

// compareCluster finds out whether etcd is of the cluster whose copies there are.
func compareCluster(ctx context.Context, kv coordinator.KV, copies []Copy) error {
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
	return nil
}

// compareNumbers finds out whether etcd has given all copies their numbers, by the number that it gave last: it gives one after the other, and so each nonce before this one's belongs to a lower number.
func compareNumbers(last coordinator.LastCopy, copies []Copy) error {
	for _, c := range copies {
		if c.ID.Number > last.Number || c.ID.Number == last.Number && c.ID.Nonce != last.Nonce {
			return fmt.Errorf("copy %d with nonce %016x, of revision %d, is in the bucket, and the last that etcd gave a number is copy %d with nonce %016x: %w",
				c.ID.Number, c.ID.Nonce, c.ID.Revision, last.Number, last.Nonce, ErrSetBack)
		}
	}
	return nil
}

// lastCopy reads which copy etcd gave a number last.
func lastCopy(ctx context.Context, kv coordinator.KV) (last coordinator.LastCopy, err error) {
	item, _, err := kv.Get(ctx, coordinator.KeyLastCopy)
	switch {
	case err != nil:
		return last, fmt.Errorf("compare etcd with its copies: %w", err)
	case item.ModRevision == 0:
		return last, nil
	}
	return coordinator.Decode[coordinator.LastCopy](item)
}

// errRival says that another agent has begun a copy meanwhile.
var errRival = errors.New("etcd has given another copy a number meanwhile")

// take has etcd give a copy its number, if the one before is the last that it gave one. It returns the revision that did.
func take(ctx context.Context, kv coordinator.KV, before coordinator.LastCopy, nonce uint64) (last coordinator.LastCopy, revision int64, err error) {
	as := coordinator.Compare{Key: coordinator.KeyLastCopy} // not there
	if before != last {
		as.Value = coordinator.Encode(before)
	}
	last = coordinator.LastCopy{Number: before.Number + 1, Nonce: nonce}
	res, err := kv.Txn(ctx, []coordinator.Compare{as}, []coordinator.Op{{Key: coordinator.KeyLastCopy, Value: coordinator.Encode(last)}})
	if err == nil && !res.Succeeded {
		err = errRival
	}
	if err != nil {
		return last, 0, fmt.Errorf("take the number of a copy: %w", err)
	}
	return last, res.Revision, nil
}
