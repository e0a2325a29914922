package mem

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// ttlSecondsMin is the shortest lease, that of etcd at its default election timeout.
const ttlSecondsMin = 2

type lease struct {
	ttl     time.Duration
	ends    time.Time
	keepers int // calls of KeepAlive that run now
	keys    map[string]struct{}
}

// Advance moves time forward to now and ends the leases that are over, in the order of their ids, each in a revision
// of its own. A lease with a running [Store.KeepAlive] starts its life anew instead. Time never goes back: an earlier
// now does nothing.
func (s *Store) Advance(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now.After(s.now) {
		return
	}
	s.now = now
	for _, id := range slices.Sorted(maps.Keys(s.leases)) {
		switch l := s.leases[id]; {
		case l.keepers > 0:
			l.ends = now.Add(l.ttl)
		case !now.Before(l.ends):
			s.endLease(id)
		}
	}
}

// Now returns the store's time.
func (s *Store) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// Grant implements [coordinator.KV]. A shorter ttl than two seconds counts as two.
func (s *Store) Grant(ctx context.Context, ttlSeconds int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallGrant); err != nil {
		return 0, fmt.Errorf("grant lease: %w", err)
	}
	ttl := time.Duration(max(ttlSeconds, ttlSecondsMin)) * time.Second
	s.lastLease++
	s.leases[s.lastLease] = &lease{ttl: ttl, ends: s.now.Add(ttl), keys: make(map[string]struct{})}
	return s.lastLease, nil
}

// Renew makes the lease last its whole time from now on, once. Its error is ErrLeaseGone or ErrUnavailable.
func (s *Store) Renew(ctx context.Context, id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallKeepAlive); err != nil {
		return fmt.Errorf("renew lease %d: %w", id, err)
	}
	l := s.leases[id]
	if l == nil {
		return fmt.Errorf("renew lease %d: %w", id, coordinator.ErrLeaseGone)
	}
	l.ends = s.now.Add(l.ttl)
	return nil
}

// KeepAlive implements [coordinator.KV]. While it runs, the lease does not end by time.
func (s *Store) KeepAlive(ctx context.Context, id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	if l != nil {
		l.keepers++
		l.ends = s.now.Add(l.ttl)
		defer func() { l.keepers-- }()
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.closed {
			return fmt.Errorf("keep lease %d alive: %w: closed", id, coordinator.ErrUnavailable)
		}
		if s.leases[id] == nil {
			return fmt.Errorf("keep lease %d alive: %w", id, coordinator.ErrLeaseGone)
		}
		s.await(ctx)
	}
}

// Kept tells whether a KeepAlive of the lease runs now.
func (s *Store) Kept(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	return l != nil && l.keepers > 0
}

// Revoke implements [coordinator.KV].
func (s *Store) Revoke(ctx context.Context, id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallRevoke); err != nil {
		return fmt.Errorf("revoke lease %d: %w", id, err)
	}
	if s.leases[id] == nil {
		return fmt.Errorf("revoke lease %d: %w", id, coordinator.ErrLeaseGone)
	}
	s.endLease(id)
	return nil
}

// endLease deletes the lease's keys in one revision, and the lease. The caller holds mu.
func (s *Store) endLease(id int64) {
	var ops []coordinator.Op
	for _, key := range slices.Sorted(maps.Keys(s.leases[id].keys)) {
		ops = append(ops, coordinator.Op{Key: key, Delete: true})
	}
	s.apply(ops)
	delete(s.leases, id)
	s.wake()
}

// detach takes an item off its lease, because it is overwritten or deleted.
func (s *Store) detach(item coordinator.Item) {
	if l := s.leases[item.Lease]; l != nil {
		delete(l.keys, item.Key)
	}
}

// await gives up mu until something changes or ctx ends. The caller holds mu.
func (s *Store) await(ctx context.Context) {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-changed:
	case <-ctx.Done():
	}
}
