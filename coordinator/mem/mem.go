// Package mem is the in-memory twin of etcd: a [coordinator.KV] for tests and for the simulation.
//
// A [Store] holds every version of every key since the last compaction, and a list of the changes of each revision.
// Revisions start at 1 (an empty store, as in etcd) and rise by one with each transaction that changes something.
//
// # Time
//
// The store has no clock, no timer and no goroutine. Time passes when the owner says so, with [Store.Advance]; a lease
// that nobody kept alive since then ends there, and its keys are deleted in one revision, in the order of lease ids.
// The same calls in the same order give the same revisions, lease ids and events.
//
// # Use from one thread
//
// [Store.Watch] and [Store.KeepAlive] block, on the caller's goroutine. A single-threaded simulation uses what they
// are made of: [Store.NewCursor] with [Cursor.Next], and [Store.Renew].
//
// # Faults
//
// [Store.Inject] takes faults as data: which call, how many to let pass, and what happens. A transaction whose
// outcome the caller must not learn can be applied at once, never, or when [Store.Settle] is called.
package mem

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// historyRevisionsMax is the default of [Config.HistoryRevisionsMax].
const historyRevisionsMax = 100_000

// Config of a [Store].
type Config struct {
	// ClusterID is what [Store.ClusterID] answers.
	ClusterID uint64
	// Start is the time until the first Advance.
	Start time.Time
	// HistoryRevisionsMax is how many revisions are kept before the oldest are compacted; 0 means 100,000.
	HistoryRevisionsMax int
}

// Store is a key-value store in memory. It implements [coordinator.KV]; all methods may be called concurrently. Byte
// slices are copied on the way in and out.
type Store struct {
	mu        sync.Mutex
	cfg       Config
	now       time.Time
	revision  int64
	compacted int64                // versions and history below it are gone
	keys      map[string][]version // ascending by revision, never empty
	history   []coordinator.Batch  // revisions after compacted, ascending, with every key
	leases    map[int64]*lease
	lastLease int64
	faults    []Fault
	pending   []pendingTxn
	closed    bool
	changed   chan struct{} // closed and replaced whenever a blocked Watch or KeepAlive should look again
}

var _ coordinator.KV = (*Store)(nil)

// version is a key's state from one revision on.
type version struct {
	item    coordinator.Item // ModRevision is set for a deletion too
	deleted bool
}

// New makes an empty store at revision 1.
func New(cfg Config) *Store {
	if cfg.HistoryRevisionsMax == 0 {
		cfg.HistoryRevisionsMax = historyRevisionsMax
	}
	return &Store{
		cfg:      cfg,
		now:      cfg.Start,
		revision: 1,
		keys:     make(map[string][]version),
		leases:   make(map[int64]*lease),
		changed:  make(chan struct{}),
	}
}

// Get implements [coordinator.KV].
func (s *Store) Get(ctx context.Context, key string) (coordinator.Item, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallGet); err != nil {
		return coordinator.Item{}, 0, fmt.Errorf("get %q: %w", key, err)
	}
	if key == "" {
		return coordinator.Item{}, 0, fmt.Errorf("get: %w: no key", coordinator.ErrLimit)
	}
	return clone(s.at(key, s.revision)), s.revision, nil
}

// List implements [coordinator.KV].
func (s *Store) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallList); err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	if rev == 0 {
		rev = s.revision
	}
	if rev < s.compacted {
		return nil, 0, fmt.Errorf("list %q at revision %d: %w: the oldest is %d", prefix, rev, coordinator.ErrCompacted, s.compacted)
	}
	if rev > s.revision {
		return nil, 0, fmt.Errorf("list %q at revision %d: %w: the newest is %d", prefix, rev, coordinator.ErrUnavailable, s.revision)
	}
	var items []coordinator.Item
	for key := range s.keys {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if item := s.at(key, rev); item.ModRevision != 0 {
			items = append(items, clone(item))
		}
	}
	slices.SortFunc(items, func(a, b coordinator.Item) int { return cmp.Compare(a.Key, b.Key) })
	return items, rev, nil
}

// Txn implements [coordinator.KV].
func (s *Store) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if err := coordinator.CheckTxn(compares, ops); err != nil {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.alive(ctx); err != nil {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", err)
	}
	if kind := s.takeFault(CallTxn); kind != 0 {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", s.failTxn(kind, compares, ops))
	}
	result, err := s.txn(compares, ops)
	if err != nil {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", err)
	}
	return result, nil
}

// txn decides and applies a transaction. The caller holds mu. Its only error is ErrLeaseGone.
func (s *Store) txn(compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	for _, c := range compares {
		if !s.holds(c) {
			result := coordinator.TxnResult{Revision: s.revision, Failed: make([]coordinator.Item, len(compares))}
			for i, c := range compares {
				result.Failed[i] = clone(s.at(c.Key, s.revision))
			}
			return result, nil
		}
	}
	for _, op := range ops {
		if !op.Delete && op.Lease != 0 && s.leases[op.Lease] == nil {
			return coordinator.TxnResult{}, fmt.Errorf("put %q: %w: %d", op.Key, coordinator.ErrLeaseGone, op.Lease)
		}
	}
	s.apply(ops)
	return coordinator.TxnResult{Succeeded: true, Revision: s.revision}, nil
}

func (s *Store) holds(c coordinator.Compare) bool {
	item := s.at(c.Key, s.revision)
	if c.Value == nil {
		return item.ModRevision == c.Revision
	}
	return item.ModRevision != 0 && bytes.Equal(item.Value, c.Value)
}

// apply runs operations as one revision, unless none of them changes anything. The caller holds mu.
func (s *Store) apply(ops []coordinator.Op) {
	rev := s.revision + 1
	var events []coordinator.Event
	for _, op := range ops {
		switch {
		case !op.Delete:
			events = append(events, s.put(rev, op))
		case op.Prefix:
			for _, key := range s.keysWithPrefix(op.Key) {
				events = append(events, s.remove(rev, key))
			}
		case s.at(op.Key, rev).ModRevision != 0:
			events = append(events, s.remove(rev, op.Key))
		}
	}
	if len(events) == 0 {
		return
	}
	s.revision = rev
	s.history = append(s.history, coordinator.Batch{Revision: rev, Events: events})
	if len(s.history) > s.cfg.HistoryRevisionsMax {
		// Half at a time, so that compacting costs little per revision.
		s.compact(s.history[len(s.history)/2].Revision)
	}
	s.wake()
}

func (s *Store) put(rev int64, op coordinator.Op) coordinator.Event {
	old := s.at(op.Key, rev)
	s.detach(old)
	item := coordinator.Item{Key: op.Key, Value: bytes.Clone(op.Value), CreateRevision: old.CreateRevision, ModRevision: rev, Lease: op.Lease}
	if old.ModRevision == 0 {
		item.CreateRevision = rev
	}
	if op.Lease != 0 {
		s.leases[op.Lease].keys[op.Key] = struct{}{}
	}
	s.keys[op.Key] = append(s.keys[op.Key], version{item: item})
	return coordinator.Event{Item: item}
}

func (s *Store) remove(rev int64, key string) coordinator.Event {
	s.detach(s.at(key, rev))
	item := coordinator.Item{Key: key, ModRevision: rev}
	s.keys[key] = append(s.keys[key], version{item: item, deleted: true})
	return coordinator.Event{Item: item, Deleted: true}
}

// at returns the item as revision rev had it, without copying its value. The caller holds mu.
func (s *Store) at(key string, rev int64) coordinator.Item {
	for _, v := range slices.Backward(s.keys[key]) {
		if v.item.ModRevision <= rev {
			if v.deleted {
				break
			}
			return v.item
		}
	}
	return coordinator.Item{Key: key}
}

// keysWithPrefix returns the keys that exist and start with prefix, sorted.
func (s *Store) keysWithPrefix(prefix string) []string {
	var keys []string
	for key, versions := range s.keys {
		if strings.HasPrefix(key, prefix) && !versions[len(versions)-1].deleted {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Compact implements [coordinator.KV].
func (s *Store) Compact(ctx context.Context, rev int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallCompact); err != nil {
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	if rev > s.revision {
		return fmt.Errorf("compact to revision %d: %w: the newest is %d", rev, coordinator.ErrUnavailable, s.revision)
	}
	s.compact(rev)
	return nil
}

func (s *Store) compact(rev int64) {
	if rev <= s.compacted {
		return
	}
	s.compacted = rev
	n, _ := slices.BinarySearchFunc(s.history, rev, func(b coordinator.Batch, rev int64) int { return cmp.Compare(b.Revision, rev) })
	s.history = slices.Clone(s.history[n:])
	for key, versions := range s.keys {
		// The newest version at or before rev stays, unless it is a deletion.
		keep := 0
		for i, v := range versions {
			if v.item.ModRevision <= rev {
				keep = i
				if v.deleted {
					keep = i + 1
				}
			}
		}
		switch {
		case keep == len(versions):
			delete(s.keys, key)
		case keep > 0:
			s.keys[key] = slices.Clone(versions[keep:])
		}
	}
	s.wake()
}

// ClusterID implements [coordinator.KV].
func (s *Store) ClusterID(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallClusterID); err != nil {
		return 0, fmt.Errorf("cluster id: %w", err)
	}
	return s.cfg.ClusterID, nil
}

// Status implements [coordinator.KV]. The size and what is in use are the same: keys and values of all versions.
func (s *Store) Status(ctx context.Context) (coordinator.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx, CallStatus); err != nil {
		return coordinator.Status{}, fmt.Errorf("status: %w", err)
	}
	status := coordinator.Status{Revision: s.revision}
	for key, versions := range s.keys {
		for _, v := range versions {
			status.UsedBytes += int64(len(key) + len(v.item.Value))
		}
	}
	status.SizeBytes = status.UsedBytes
	return status, nil
}

// Close implements [coordinator.KV]: later calls, and those that block, fail with ErrUnavailable.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wake()
	return nil
}

// begin refuses a call that cannot run: its context has ended, the store is closed, or a fault waits for it.
func (s *Store) begin(ctx context.Context, call Call) error {
	if err := s.alive(ctx); err != nil {
		return err
	}
	if s.takeFault(call) != 0 {
		return fmt.Errorf("%w: injected", coordinator.ErrUnavailable)
	}
	return nil
}

func (s *Store) alive(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
	}
	if s.closed {
		return fmt.Errorf("%w: closed", coordinator.ErrUnavailable)
	}
	return nil
}

// wake lets blocked calls look again. The caller holds mu.
func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func clone(item coordinator.Item) coordinator.Item {
	item.Value = bytes.Clone(item.Value)
	return item
}
