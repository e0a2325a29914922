// Package coordtest is the contract of [coordinator.KV] as a test suite, which every implementation passes:
//
//	coordtest.Run(t, func(t *testing.T) coordinator.KV { return mem.New(mem.Config{ClusterID: 1}) })
//
// Time passes by itself unless the implementation is a [Clock].
// Several stores may share a server, each with a prefix of its own, if nothing else compacts that server's history.
package coordtest

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// patience is how long the suite waits for something that must happen.
const patience = 30 * time.Second

// Clock is an implementation whose time passes by hand.
type Clock interface {
	Now() time.Time
	Advance(now time.Time)
	// Kept tells whether a KeepAlive of the lease runs.
	Kept(lease int64) bool
}

// Run runs the suite. open returns an empty store, for one test, and closes it at that test's end; some of the tests run
// in parallel, and so does open then.
func Run(t *testing.T, open func(t *testing.T) coordinator.KV) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, kv coordinator.KV)
	}{
		{"Get", testGet},
		{"List", testList},
		{"ListAtRevision", testListAtRevision},
		{"TxnCompare", testTxnCompare},
		{"TxnFailedItems", testTxnFailedItems},
		{"TxnOneRevision", testTxnOneRevision},
		{"TxnDelete", testTxnDelete},
		{"TxnCopies", testTxnCopies},
		{"TxnAtLimits", testTxnAtLimits},
		{"TxnOverLimits", testTxnOverLimits},
		{"TxnRaces", testTxnRaces},
		{"TxnIncrements", testTxnIncrements},
		{"Watch", testWatch},
		{"WatchFromPast", testWatchFromPast},
		{"WatchWholeRevision", testWatchWholeRevision},
		{"WatchProgress", testWatchProgress},
		{"WatchEnds", testWatchEnds},
		{"Compaction", testCompaction},
		{"LeaseRevoke", testLeaseRevoke},
		{"LeaseUnknown", testLeaseUnknown},
		{"LeaseOverwrite", testLeaseOverwrite},
		{"Identity", testIdentity},
		{"ContextEnded", testContextEnded},
		{"Close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
	// These wait for real leases, so they wait together.
	for _, c := range []struct {
		name string
		test func(t *testing.T, kv coordinator.KV)
	}{
		{"LeaseEnds", testLeaseEnds},
		{"LeaseKeptAlive", testLeaseKeptAlive},
		{"LeaseGone", testLeaseGone},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

// elapse makes time pass where it does not pass by itself.
func elapse(kv coordinator.KV, d time.Duration) {
	if clock, ok := kv.(Clock); ok {
		clock.Advance(clock.Now().Add(d))
	}
}

// awaitKept waits until a KeepAlive of the lease runs, where time passes by hand; elsewhere it would be in time anyway.
func awaitKept(t *testing.T, kv coordinator.KV, lease int64) {
	t.Helper()
	clock, ok := kv.(Clock)
	for start := time.Now(); ok && !clock.Kept(lease); runtime.Gosched() {
		if time.Since(start) > patience {
			t.Fatalf("no KeepAlive of lease %d runs", lease)
		}
	}
}

// put is an operation that writes a key.
func put(key, value string) coordinator.Op { return coordinator.Op{Key: key, Value: []byte(value)} }

// write applies operations without a comparison and returns the revision.
func write(t *testing.T, kv coordinator.KV, ops ...coordinator.Op) int64 {
	t.Helper()
	result, err := kv.Txn(t.Context(), nil, ops)
	if err != nil || !result.Succeeded {
		t.Fatalf("Txn(%d operations) = %+v, %v; want success", len(ops), result, err)
	}
	return result.Revision
}

// fill writes n keys under a prefix, in several transactions, and returns the last revision.
func fill(t *testing.T, kv coordinator.KV, prefix string, n int) int64 {
	t.Helper()
	var rev int64
	for from := 0; from < n; from += coordinator.TxnOpsMax {
		var ops []coordinator.Op
		for i := from; i < min(from+coordinator.TxnOpsMax, n); i++ {
			ops = append(ops, put(fmt.Sprintf("%s%05d", prefix, i), "old"))
		}
		rev = write(t, kv, ops...)
	}
	return rev
}

func get(t *testing.T, kv coordinator.KV, key string) coordinator.Item {
	t.Helper()
	item, _, err := kv.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return item
}

func wantAbsent(t *testing.T, kv coordinator.KV, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if item := get(t, kv, key); item.ModRevision != 0 {
			t.Errorf("Get(%q) = %+v, want that it does not exist", key, item)
		}
	}
}

func wantKind(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s = %v, want an error that is %q", what, err, kind)
	}
}

func head(t *testing.T, kv coordinator.KV) int64 {
	t.Helper()
	_, rev, err := kv.Get(t.Context(), "head")
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return rev
}
