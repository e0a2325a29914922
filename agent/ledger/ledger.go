// Package ledger writes what an agent decides for its shards (group records, consumer offsets, manifests) to the
// coordinator: gathered, guarded, and certain.
//
// Callers hand over the writes of one shard with [Ledger.Write] and are called back when they are durable. One
// transaction is under way at a time; what arrives meanwhile gathers for the next, of all shards together, so that a thousand consumers that commit at
// once cost a few transactions. Each shard in a transaction is guarded by its write counter: if another agent
// has taken a shard over, its writes fail with [coordinator.ErrFenced] and the others are sent again without them.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/varve-io/varve/coordinator"
)

// ErrNotLed: the shard is not in the ledger (any more), or the ledger has ended. It wraps [coordinator.ErrFenced], since to whoever writes it is the same.
var ErrNotLed = fmt.Errorf("shard is not led by this agent: %w", coordinator.ErrFenced)

// writesMax bounds the writes that wait; a Write beyond it fails with ErrBusy, as producers of writes wait for
// their answers and there are never so many of them in a healthy agent.
const writesMax = 100_000

// ErrBusy: too many writes wait already.
var ErrBusy = errors.New("too many coordinator writes wait")

// Ledger is the writer of one incarnation. Its methods may be called concurrently.
type Ledger struct {
	kv     coordinator.KV
	wake   chan struct{} // capacity 1
	onLost func(coordinator.ShardID)

	mu      sync.Mutex
	shards  map[coordinator.ShardID]*shard
	pending []write // in order of arrival
	ended   error   // not nil once Run has returned
}

// shard is a shard that this incarnation leads.
type shard struct {
	guard   coordinator.Guard
	write   coordinator.Write // what the guard's key holds now
	leaving bool              // its last write was handed over
}

type write struct {
	shard coordinator.ShardID
	ops   []coordinator.Op
	next  *coordinator.Write // what the guard's key holds afterwards, if it is the next owner's; nil while the shard stays
	done  func(error)
}

// New returns a ledger without shards. onLost is called, from the ledger's goroutine, for a shard whose guard
// somebody else has taken; not for one that is being handed over, whose last write tells.
func New(kv coordinator.KV, onLost func(coordinator.ShardID)) *Ledger {
	return &Ledger{kv: kv, onLost: onLost, wake: make(chan struct{}, 1), shards: make(map[coordinator.ShardID]*shard)}
}

// Adopt adds a shard that was just claimed: its guard holds w since revision.
func (l *Ledger) Adopt(id coordinator.ShardID, w coordinator.Write, revision int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shards[id] = &shard{guard: coordinator.Guard{Key: coordinator.KeyWrite(id), Revision: revision}, write: w}
}

// Write hands over writes of a shard, at most [coordinator.TxnOpsMax]/2 of them, each key once. done is called once, from another
// goroutine and in order of the calls: nil when they are durable; an error that wraps coordinator.ErrFenced or is [ErrNotLed] if this agent no
// longer leads the shard, and nothing was written; another if the store refused them. done must not block.
func (l *Ledger) Write(id coordinator.ShardID, ops []coordinator.Op, done func(error)) {
	l.add(write{shard: id, ops: ops, done: done})
}

// HandOver is the last write of a shard, after all that were handed over before: its guard goes to the next owner, as next says. From the call on, the shard takes
// no other write. If done is told nil or an error that wraps coordinator.ErrFenced, the shard is out of the ledger; after any other error it
// still is this agent's, and can be adopted again.
func (l *Ledger) HandOver(id coordinator.ShardID, next coordinator.Write, ops []coordinator.Op, done func(error)) {
	l.add(write{shard: id, ops: ops, next: &next, done: done})
}

func (l *Ledger) add(w write) {
	id, ops, done := w.shard, w.ops, w.done
	limits := coordinator.CheckTxn(nil, ops) // the store would refuse the whole transaction, and with it the writes of others
	l.mu.Lock()
	err := l.ended
	switch {
	case err != nil:
	case limits != nil:
		err = fmt.Errorf("write to shard %d: %w", id, limits)
	case l.shards[id] == nil, l.shards[id].leaving:
		err = fmt.Errorf("write to shard %d: %w", id, ErrNotLed)
	case len(l.pending) >= writesMax:
		err = fmt.Errorf("write to shard %d: %w", id, ErrBusy)
	case len(ops) > coordinator.TxnOpsMax/2:
		err = fmt.Errorf("write to shard %d: %d operations at once: %w", id, len(ops), coordinator.ErrLimit)
	default:
		l.pending = append(l.pending, w)
		l.shards[id].leaving = w.next != nil
	}
	l.mu.Unlock()
	if err != nil {
		go done(err)
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends; then writes that wait fail with an error that wraps ctx's and ErrNotLed.
func (l *Ledger) Run(ctx context.Context) {
	for ctx.Err() == nil {
		batch := l.next()
		if len(batch.writes) == 0 {
			select {
			case <-l.wake:
			case <-ctx.Done():
			}
			continue
		}
		l.apply(ctx, batch)
	}
	l.end(fmt.Errorf("ledger ended: %w (%w)", ErrNotLed, ctx.Err()))
}

func (l *Ledger) end(err error) {
	l.mu.Lock()
	l.ended = err
	rest := l.pending
	l.pending = nil
	l.mu.Unlock()
	for _, w := range rest {
		w.done(err)
	}
}

// batch is one transaction in the making.
type batch struct {
	writes []write
	shards []coordinator.ShardID
	leave  map[coordinator.ShardID]coordinator.Write // of those that are handed over, what their guards hold then
	ops    []coordinator.Op                          // one per key: the latest write of a key wins
	bytes  int
	alone  bool // it deletes a prefix, and takes no other write
}

// next takes from the pending writes as many, from the oldest on, as one transaction holds.
func (l *Ledger) next() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{leave: make(map[coordinator.ShardID]coordinator.Write)}
	byKey := make(map[string]int)
	taken := 0
	for _, w := range l.pending {
		size := 256 // the guard
		for _, op := range w.ops {
			size += len(op.Key) + len(op.Value)
		}
		full := len(b.ops)+len(b.shards)+len(w.ops)+1 > coordinator.TxnOpsMax || b.bytes+size > coordinator.TxnBytesMax
		// A prefix may cover keys that others write; a transaction must not touch a key twice.
		alone := slices.ContainsFunc(w.ops, func(op coordinator.Op) bool { return op.Prefix })
		if taken > 0 && (full || alone || b.alone) {
			break
		}
		b.alone = alone
		taken++
		b.bytes += size
		b.writes = append(b.writes, w)
		if !slices.Contains(b.shards, w.shard) {
			b.shards = append(b.shards, w.shard)
		}
		if w.next != nil {
			b.leave[w.shard] = *w.next
		}
		for _, op := range w.ops {
			if i, ok := byKey[op.Key]; ok {
				b.ops[i] = op
				continue
			}
			byKey[op.Key] = len(b.ops)
			b.ops = append(b.ops, op)
		}
	}
	l.pending = l.pending[taken:]
	if len(l.pending) == 0 {
		l.pending = nil // lets go of the array that it was
	}
	return b
}

// apply runs the transaction; if some shards are lost, the rest is tried again without them.
func (l *Ledger) apply(ctx context.Context, b batch) {
	guards := l.guards(b)
	err := coordinator.Apply(ctx, l.kv, guards, b.ops)
	if fenced, ok := errors.AsType[*coordinator.FencedError](err); ok {
		l.drop(b, fenced)
		return
	}
	if err == nil {
		l.advance(b)
	}
	for _, w := range b.writes {
		w.done(err)
	}
}

// guards raises the write number of each shard for the transaction to come.
func (l *Ledger) guards(b batch) []*coordinator.Guard {
	l.mu.Lock()
	defer l.mu.Unlock()
	guards := make([]*coordinator.Guard, 0, len(b.shards))
	for _, id := range b.shards {
		s := l.shards[id]
		next, leaves := b.leave[id]
		if !leaves {
			next = s.write
			next.Number++
		}
		s.guard.Next = coordinator.Encode(next)
		guards = append(guards, &s.guard)
	}
	return guards
}

func (l *Ledger) advance(b batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range b.shards {
		l.applied(b, id)
	}
}

// applied takes note that a shard's part of a transaction is durable.
func (l *Ledger) applied(b batch, id coordinator.ShardID) {
	if _, leaves := b.leave[id]; leaves {
		delete(l.shards, id)
	} else {
		l.shards[id].write.Number++
	}
}

// drop removes the lost shards. What was written with them has applied as a whole, or is applied again without them, in order, before anything newer.
func (l *Ledger) drop(b batch, fenced *coordinator.FencedError) {
	lost := make(map[coordinator.ShardID]bool)
	var taken []coordinator.ShardID
	var ended, applied, again []write
	l.mu.Lock()
	for _, id := range b.shards {
		if lost[id] = slices.Contains(fenced.Keys, coordinator.KeyWrite(id)); lost[id] {
			if !l.shards[id].leaving {
				taken = append(taken, id)
			}
			delete(l.shards, id)
		} else if fenced.Applied {
			l.applied(b, id)
		}
	}
	pending := l.pending
	if fenced.Applied {
		applied = b.writes
	} else {
		pending = append(b.writes, pending...)
	}
	for _, w := range pending {
		if lost[w.shard] {
			ended = append(ended, w)
		} else {
			again = append(again, w)
		}
	}
	l.pending = again
	l.mu.Unlock()
	for _, w := range applied {
		w.done(nil)
	}
	for _, w := range ended {
		w.done(fmt.Errorf("write to shard %d: %w", w.shard, fenced))
	}
	for _, id := range taken { // last: whoever resigns a shard may wait for its writes
		l.onLost(id)
	}
}
