package coordtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
)

const ttlSeconds = 2 // the shortest that etcd grants

func grant(t *testing.T, kv coordinator.KV) int64 {
	t.Helper()
	lease, err := kv.Grant(t.Context(), ttlSeconds)
	if err != nil || lease == 0 {
		t.Fatalf("Grant = %d, %v", lease, err)
	}
	return lease
}

// leased is an operation that writes a key on a lease.
func leased(key string, lease int64) coordinator.Op {
	return coordinator.Op{Key: key, Value: []byte("1"), Lease: lease}
}

// keepAlive runs KeepAlive and returns the channel of its result.
func keepAlive(ctx context.Context, kv coordinator.KV, lease int64) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- kv.KeepAlive(ctx, lease) }()
	return ended
}

func wantEnd(t *testing.T, what string, ended <-chan error, kind error) {
	t.Helper()
	select {
	case err := <-ended:
		wantKind(t, what, err, kind)
	case <-time.After(patience):
		t.Errorf("%s did not end", what)
	}
}

func testLeaseEnds(t *testing.T, kv coordinator.KV) {
	lease := grant(t, kv)
	rev := write(t, kv, leased("l/a", lease), leased("l/b", lease), put("l/c", "1"))
	if item := get(t, kv, "l/a"); item.Lease != lease {
		t.Errorf("the key hangs on lease %d, want %d", item.Lease, lease)
	}
	w := watch(t, kv, "l/", rev)
	elapse(kv, ttlSeconds*time.Second)
	b := w.next(t)
	wantBatch(t, b, b.Revision, "-l/a -l/b")
	wantAbsent(t, kv, "l/a", "l/b")
	if get(t, kv, "l/c").ModRevision != rev {
		t.Error("a key without a lease is gone or changed")
	}
}

func testLeaseKeptAlive(t *testing.T, kv coordinator.KV) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kept := grant(t, kv)
	ended := keepAlive(ctx, kv, kept)
	awaitKept(t, kv, kept)
	left := grant(t, kv) // later, so it ends later than the other one would without being kept
	rev := write(t, kv, leased("l/kept", kept), leased("l/left", left))
	w := watch(t, kv, "l/", rev)
	elapse(kv, ttlSeconds*time.Second)
	b := w.next(t)
	wantBatch(t, b, b.Revision, "-l/left")

	cancel()
	wantEnd(t, "a cancelled KeepAlive", ended, context.Canceled)
	elapse(kv, ttlSeconds*time.Second)
	b = w.next(t)
	wantBatch(t, b, b.Revision, "-l/kept")
}

func testLeaseGone(t *testing.T, kv coordinator.KV) {
	lease := grant(t, kv)
	ended := keepAlive(t.Context(), kv, lease)
	awaitKept(t, kv, lease)
	if err := kv.Revoke(t.Context(), lease); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	wantEnd(t, "KeepAlive of a revoked lease", ended, coordinator.ErrLeaseGone)
	wantEnd(t, "KeepAlive of a lease that is gone", keepAlive(t.Context(), kv, lease), coordinator.ErrLeaseGone)
}

func testLeaseRevoke(t *testing.T, kv coordinator.KV) {
	lease, other := grant(t, kv), grant(t, kv)
	rev := write(t, kv, leased("l/a", lease), leased("l/b", lease), leased("l/other", other))
	w := watch(t, kv, "l/", rev)
	if err := kv.Revoke(t.Context(), lease); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	wantAbsent(t, kv, "l/a", "l/b")
	b := w.next(t)
	wantBatch(t, b, b.Revision, "-l/a -l/b")
	wantKind(t, "Revoke again", kv.Revoke(t.Context(), lease), coordinator.ErrLeaseGone)
}

func testLeaseUnknown(t *testing.T, kv coordinator.KV) {
	lease := grant(t, kv)
	if err := kv.Revoke(t.Context(), lease); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	_, err := kv.Txn(t.Context(), nil, []coordinator.Op{put("a", "1"), leased("b", lease)})
	wantKind(t, "Txn with a lease that is gone", err, coordinator.ErrLeaseGone)
	if errors.Is(err, coordinator.ErrUnknownOutcome) || errors.Is(err, coordinator.ErrUnavailable) {
		t.Errorf("the error says more than one thing: %v", err)
	}
	wantAbsent(t, kv, "a", "b")
	// A transaction that does not hold does not come to its operations.
	result, err := kv.Txn(t.Context(), []coordinator.Compare{{Key: "a", Revision: 1}}, []coordinator.Op{leased("b", lease)})
	if err != nil || result.Succeeded {
		t.Errorf("Txn = %+v, %v; want that it does not hold", result, err)
	}
}

func testLeaseOverwrite(t *testing.T, kv coordinator.KV) {
	first, second := grant(t, kv), grant(t, kv)
	write(t, kv, leased("plain", first), leased("moved", first), leased("again", first))
	write(t, kv, put("plain", "2"), leased("moved", second), coordinator.Op{Key: "again", Delete: true})
	write(t, kv, put("again", "2"))
	if err := kv.Revoke(t.Context(), first); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	for key, lease := range map[string]int64{"plain": 0, "moved": second, "again": 0} {
		if item := get(t, kv, key); item.ModRevision == 0 || item.Lease != lease {
			t.Errorf("%s is %+v, want it on lease %d", key, item, lease)
		}
	}
	if err := kv.Revoke(t.Context(), second); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	wantAbsent(t, kv, "moved")
}
