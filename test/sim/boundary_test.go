package sim

import (
	"context"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/mem"
)

// agentKV is etcd as one agent reaches it.
type agentKV struct {
	*kvmem.Store // for what the rooms under test do not call
	w            *world
	by           *process
}

var _ coordinator.KV = (*agentKV)(nil)

func (k *agentKV) call(ctx context.Context, c *call) error {
	c.by = k.by
	if c.kind == "" {
		c.kind = kindKV
	}
	if k.w.call(ctx, c) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
	}
	return errDead
}

// Get implements coordinator.KV.
func (k *agentKV) Get(ctx context.Context, key string) (item coordinator.Item, rev int64, err error) {
	parked := k.call(ctx, &call{what: "get " + key, run: func(e effect) {
		if e != happens {
			err = coordinator.ErrUnavailable
			return
		}
		item, rev, err = k.w.kv.Get(k.w.ctx, key)
		rev = k.saw(rev)
		if change := k.w.broken.got; change != nil && err == nil {
			change(k.w, &item, &rev)
		}
	}})
	if parked != nil {
		return item, 0, parked
	}
	return item, rev, err
}

// List implements coordinator.KV.
func (k *agentKV) List(ctx context.Context, prefix string, at int64) (items []coordinator.Item, rev int64, err error) {
	who, _ := pprof.Label(ctx, "varve")
	parked := k.call(ctx, &call{what: "list " + prefix, run: func(e effect) {
		if e != happens {
			err = coordinator.ErrUnavailable
			return
		}
		items, rev, err = k.w.kv.List(k.w.ctx, prefix, at)
		if at == 0 {
			rev = k.saw(rev)
		}
		if change := k.w.broken.logs; change != nil && prefix == coordinator.PrefixLogs && err == nil {
			items = changeLogs(items, func(all []coordinator.Log) { change(k.w, who, at, all) })
		}
		if change := k.w.broken.lists; change != nil && err == nil {
			items = change(prefix, items)
		}
	}})
	if parked != nil {
		return nil, 0, parked
	}
	return items, rev, err
}

// changeLogs returns other records of WAL logs.
func changeLogs(items []coordinator.Item, change func([]coordinator.Log)) []coordinator.Item {
	items = slices.Clone(items)
	var all []coordinator.Log
	for _, it := range items {
		l, err := coordinator.Decode[coordinator.Log](it)
		if err != nil {
			panic(err)
		}
		all = append(all, l)
	}
	change(all)
	for i := range items {
		items[i].Value = coordinator.Encode(all[i])
	}
	return items
}

// txn is a transaction on its way.
type txn struct {
	compares []coordinator.Compare
	ops      []coordinator.Op
}

// writes returns the value that it writes to the first key with the prefix.
func (x *txn) writes(prefix string) *coordinator.Op {
	i := slices.IndexFunc(x.ops, func(op coordinator.Op) bool { return strings.HasPrefix(op.Key, prefix) })
	if i < 0 {
		return nil
	}
	return &x.ops[i]
}

func (x *txn) String() string {
	s := "txn"
	for _, op := range x.ops {
		s += " " + op.Key
	}
	return s
}

// saw takes note of the revision of an answer, and returns it.
func (k *agentKV) saw(revision int64) int64 {
	k.by.seen = max(k.by.seen, revision)
	if k.w.broken.unseen {
		return k.by.seen
	}
	return revision
}

// Txn implements coordinator.KV.
func (k *agentKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (res coordinator.TxnResult, err error) {
	x := &txn{compares: slices.Clone(compares), ops: slices.Clone(ops)}
	for i := range x.ops {
		x.ops[i].Value = slices.Clone(x.ops[i].Value)
	}
	kv := k.w.kv
	late := func() lateWrite {
		return lateWrite{what: k.by.name + " " + x.String(), apply: func() {
			if k.w.kv == kv { // else it was on its way to an etcd that is gone
				_, _ = k.w.apply(x)
			}
		}}
	}
	c := &call{what: x.String(), late: late, run: func(e effect) {
		switch e {
		case unavailable:
			err = coordinator.ErrUnavailable
		case comesLate:
			err = coordinator.ErrUnknownOutcome
			k.w.drop(late())
		case noRoom:
			err = coordinator.ErrNoSpace
		default:
			res, err = k.w.apply(x)
			res.Revision = k.saw(res.Revision)
			if e == answerLost && err == nil {
				err = coordinator.ErrUnknownOutcome
			}
			if e == noRoomLeft && err == nil {
				err = fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace)
			}
		}
		if change := k.w.broken.answered; change != nil {
			err = change(x, &res, err)
		}
	}}
	if parked := k.call(ctx, c); parked != nil {
		if ctx.Err() == nil || k.w.isDead(k.by) {
			return res, parked
		}
		// Its deadline passed while it was on its way. Goroutines may not draw, so it is lost; those of the dead are not (see abandon).
		return res, fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, ctx.Err())
	}
	return res, err
}

// apply runs a transaction, and shows what it did to the checker.
func (w *world) apply(x *txn) (coordinator.TxnResult, error) {
	compares, ops := x.compares, x.ops
	if change := w.broken.txn; change != nil {
		y := &txn{compares: slices.Clone(compares), ops: slices.Clone(ops)}
		change(w, y)
		compares, ops = y.compares, y.ops
	}
	if change := w.broken.restored; change != nil && w.restoring() {
		ops = slices.Clone(ops)
		for i := range ops {
			change(w.scene.(*cluster).loss, &ops[i])
		}
	}
	res, err := w.kv.Txn(w.ctx, compares, ops)
	if err == nil && res.Succeeded && !w.restoring() {
		w.check.applied(ops)
	}
	return res, err
}

// Watch implements coordinator.KV.
func (k *agentKV) Watch(ctx context.Context, prefix string, rev int64, fn func(coordinator.Batch)) error {
	kv := k.w.kv
	cursor := kv.NewCursor(prefix, rev)
	for {
		var b coordinator.Batch
		var ok bool
		var err error
		if parked := k.call(ctx, &call{
			kind: kindWatch, what: "watch " + prefix,
			ready: func() bool { return k.w.revision() > rev && k.by.away[kindKV] <= k.w.step },
			run: func(effect) {
				if kv != k.w.kv { // another one is in its place: the watch begins anew where it was
					kv = k.w.kv
					cursor = kv.NewCursor(prefix, rev)
				}
				b, ok, err = cursor.Next()
			},
		}); parked != nil {
			return parked
		}
		if err != nil {
			return err
		}
		if ok {
			rev = b.Revision
			fn(b)
		}
	}
}

// revision is that of etcd.
func (w *world) revision() int64 {
	status, err := w.kv.Status(w.ctx)
	if err != nil {
		panic(err) // no fault is ever injected there
	}
	return status.Revision
}

// agentBucket is the bucket as one agent reaches it.
type agentBucket struct {
	*mem.Store // for what the rooms under test do not call
	w          *world
	by         *process
}

var _ objectstore.Store = (*agentBucket)(nil)

func (b *agentBucket) call(ctx context.Context, what string, late func() lateWrite, run func(effect)) error {
	if b.w.call(ctx, &call{by: b.by, kind: kindBucket, what: what, late: late, run: run}) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errDead
}

// Put implements objectstore.Store.
func (b *agentBucket) Put(ctx context.Context, name string, body objectstore.Body) (err error) {
	put := func(content []byte) error {
		return b.w.bucket.Put(b.w.ctx, name, objectstore.Bytes(content))
	}
	content := slices.Concat(body.Parts...)
	if change := b.w.broken.content; change != nil {
		content = change(name, content)
	}
	late := func() lateWrite {
		return lateWrite{what: b.by.name + " put " + name, apply: func() { _ = put(content) }}
	}
	parked := b.call(ctx, "put "+name, late, func(e effect) {
		if b.w.broken.squat && strings.HasSuffix(name, "-00000000") {
			other := slices.Clone(content)
			other[len(other)-1]++
			_ = b.w.bucket.Put(b.w.ctx, name, objectstore.Bytes(other))
		}
		switch e {
		case unavailable:
			err = objectstore.ErrUnavailable
		case comesLate:
			err = objectstore.ErrUnknownOutcome
			b.w.drop(late())
		default:
			if err = put(content); e == answerLost {
				err = objectstore.ErrUnknownOutcome
			}
		}
		if change := b.w.broken.put; change != nil {
			err = change(err)
		}
	})
	if parked != nil {
		return parked
	}
	return err
}

// Delete implements objectstore.Store.
func (b *agentBucket) Delete(ctx context.Context, name string) error {
	if change := b.w.broken.deletes; change != nil {
		name = change(b.w, name)
	}
	return b.Store.Delete(ctx, name)
}

// Get implements objectstore.Store.
func (b *agentBucket) Get(ctx context.Context, name string, off int64, p []byte) (err error) {
	parked := b.call(ctx, "get "+name, nil, func(e effect) {
		if err = objectstore.ErrUnavailable; e == happens {
			err = b.w.bucket.Get(b.w.ctx, name, off, p)
		}
	})
	if parked != nil {
		return parked
	}
	return err
}

// Stat implements objectstore.Store.
func (b *agentBucket) Stat(ctx context.Context, name string) (info objectstore.Info, err error) {
	parked := b.call(ctx, "stat "+name, nil, func(e effect) {
		if err = objectstore.ErrUnavailable; e == happens {
			info, err = b.w.bucket.Stat(b.w.ctx, name)
		}
	})
	if parked != nil {
		return info, parked
	}
	return info, err
}
