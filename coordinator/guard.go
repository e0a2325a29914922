package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// Guard is a writer's knowledge of the key that makes it the only writer of other keys: what the key holds and
// since which revision. It is not safe for concurrent use; one transaction at a time is the point of it. Without Next it is only compared: then it makes
// nobody the only writer, and cannot tell whether a transaction applied, so that another guard must.
type Guard struct {
	Key      string
	Revision int64  // the key's ModRevision as the writer knows it; 0: the key must not exist yet
	Next     []byte // what the next transaction writes into it; must differ from every value it ever had. nil: it stays as it is
}

// retryPause is how long Apply waits before it sends a transaction again.
const retryPause = 50 * time.Millisecond

// Apply runs one transaction under one or more guards: if each guard's key is as the writer knows it, its Next value and all ops
// are written, at once or not at all. It sends the transaction again, the same one, until its outcome is certain, and
// then updates the guards.
//
// It returns nil once applied; a [*FencedError], which wraps [ErrFenced], if a guard was lost; [ErrLimit] and [ErrNoSpace] as the store says
// them, with nothing applied; or ctx's error, which leaves the outcome unknown: then the guards must not be used again except to end
// the writer.
func Apply(ctx context.Context, kv KV, guards []*Guard, ops []Op) error {
	compares := make([]Compare, 0, len(guards))
	all := make([]Op, 0, len(guards)+len(ops))
	for _, g := range guards {
		compares = append(compares, Compare{Key: g.Key, Revision: g.Revision})
		if g.Next != nil {
			all = append(all, Op{Key: g.Key, Value: g.Next})
		}
	}
	all = append(all, ops...)
	for doubt := false; ; {
		res, err := kv.Txn(ctx, compares, all)
		switch {
		case err == nil && res.Succeeded:
			for _, g := range guards {
				if g.Next != nil {
					g.Revision = res.Revision
				}
			}
			return nil
		case err == nil:
			return settle(guards, res.Failed)
		case errors.Is(err, ErrNoSpace):
			// Settled, as the guards tell; but for attempts before it.
			now, readErr := current(ctx, kv, guards)
			switch {
			case readErr != nil:
				doubt = true
			case moved(guards, now):
				return settle(guards, now)
			case !doubt:
				return fmt.Errorf("write under guard %s: %w", guards[0].Key, ErrNoSpace)
			}
		case errors.Is(err, ErrUnknownOutcome):
			doubt = true
		case errors.Is(err, ErrLimit):
			if !doubt {
				return err
			}
		case errors.Is(err, ErrUnavailable):
		default:
			if ctx.Err() == nil {
				return fmt.Errorf("write under guard %s: %w", guards[0].Key, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("write under guard %s: %w", guards[0].Key, ctx.Err())
		case <-time.After(retryPause):
		}
	}
}

// roomPause is how long Insist waits for room.
const roomPause = 3 * time.Second

// Insist is [Apply] for what must be written however long it takes: while the store has no room, it waits for an operator to make some. It
// gives what it waits for to tell, each time that it tries.
func Insist(ctx context.Context, kv KV, guards []*Guard, ops []Op, tell func(error)) error {
	for {
		err := Apply(ctx, kv, guards, ops)
		if !errors.Is(err, ErrNoSpace) {
			return err
		}
		tell(err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(roomPause):
		}
	}
}

// current reads the guards' present items.
func current(ctx context.Context, kv KV, guards []*Guard) ([]Item, error) {
	now := make([]Item, len(guards))
	for i, g := range guards {
		var err error
		if now[i], _, err = kv.Get(ctx, g.Key); err != nil {
			return nil, err
		}
	}
	return now, nil
}

// moved reports whether a guard is not as its writer knows it.
func moved(guards []*Guard, now []Item) bool {
	for i, g := range guards {
		if now[i].ModRevision != g.Revision {
			return true
		}
	}
	return false
}

// settle decides from the guards' present items whether an earlier attempt of the same transaction applied. A
// transaction writes all guards or none: if one holds its Next value, all of it applied, even where a guard was lost after that.
func settle(guards []*Guard, now []Item) error {
	var lost []string
	applied := false
	for i, g := range guards {
		switch {
		case g.Next != nil && now[i].ModRevision != 0 && bytes.Equal(now[i].Value, g.Next):
			applied = true
			g.Revision = now[i].ModRevision
		case now[i].ModRevision != g.Revision:
			lost = append(lost, g.Key)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return &FencedError{Keys: lost, Applied: applied}
}

// FencedError says which guards were lost. It wraps [ErrFenced].
type FencedError struct {
	Keys []string
	// Applied: another guard of the transaction shows that it applied before these were lost. If not, and the outcome of an attempt was unknown, it may have
	// applied or not; whoever took the guards over knows.
	Applied bool
}

// Error implements error.
func (e *FencedError) Error() string { return fmt.Sprintf("%v: %v", ErrFenced, e.Keys) }

// Unwrap makes errors.Is find ErrFenced.
func (e *FencedError) Unwrap() error { return ErrFenced }
