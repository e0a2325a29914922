package agent

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
)

// lineage is etcd as an agent reaches it. Revisions never fall: an answer of a lower one than an answer before it had, when it was asked for, is of an etcd that was set back. It is not
// passed on, and ends the agent: what etcd gives now, producer ids and epochs, it has given before.
type lineage struct {
	coordinator.KV
	seen    atomic.Int64 // the highest revision of an answer, or of a watch
	setBack func(error)  // is told; set before the first call
}

// check compares an answer's revision with what was seen before it was asked for.
func (l *lineage) check(before, revision int64) error {
	if revision < before {
		err := fmt.Errorf("etcd is at revision %d, and was at %d: %w", revision, before, rebuild.ErrSetBack)
		l.setBack(err)
		return err
	}
	l.raise(revision)
	return nil
}

func (l *lineage) raise(revision int64) {
	for {
		seen := l.seen.Load()
		if revision <= seen || l.seen.CompareAndSwap(seen, revision) {
			return
		}
	}
}

// Get implements [coordinator.KV].
func (l *lineage) Get(ctx context.Context, key string) (coordinator.Item, int64, error) {
	before := l.seen.Load()
	item, revision, err := l.KV.Get(ctx, key)
	if err == nil {
		err = l.check(before, revision)
	}
	return item, revision, err
}

// List implements [coordinator.KV]. One as of an old revision tells nothing.
func (l *lineage) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	before := l.seen.Load()
	items, revision, err := l.KV.List(ctx, prefix, rev)
	if err == nil && rev == 0 {
		err = l.check(before, revision)
	}
	return items, revision, err
}

// Txn implements [coordinator.KV].
func (l *lineage) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	before := l.seen.Load()
	result, err := l.KV.Txn(ctx, compares, ops)
	if err == nil {
		err = l.check(before, result.Revision)
	}
	return result, err
}

// Watch implements [coordinator.KV].
func (l *lineage) Watch(ctx context.Context, prefix string, rev int64, fn func(coordinator.Batch)) error {
	return l.KV.Watch(ctx, prefix, rev, func(b coordinator.Batch) {
		l.raise(b.Revision)
		fn(b)
	})
}
