package coordtest

import (
	"context"
	"testing"

	"github.com/varve-io/varve/coordinator"
)

func testIdentity(t *testing.T, kv coordinator.KV) {
	id, err := kv.ClusterID(t.Context())
	if err != nil || id == 0 {
		t.Fatalf("ClusterID = %d, %v; want a number", id, err)
	}
	rev := write(t, kv, put("a", "some bytes"))
	if again, err := kv.ClusterID(t.Context()); err != nil || again != id {
		t.Errorf("ClusterID = %d, %v; it was %d", again, err, id)
	}
	status, err := kv.Status(t.Context())
	if err != nil || status.Revision < rev || status.SizeBytes <= 0 || status.UsedBytes <= 0 || status.UsedBytes > status.SizeBytes {
		t.Errorf("Status = %+v, %v; want revision %d or later and sizes", status, err, rev)
	}
}

func testContextEnded(t *testing.T, kv coordinator.KV) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := kv.Txn(ctx, nil, []coordinator.Op{put("a", "1")})
	wantKind(t, "Txn", err, coordinator.ErrUnavailable)
	_, _, err = kv.Get(ctx, "a")
	wantKind(t, "Get", err, coordinator.ErrUnavailable)
	_, _, err = kv.List(ctx, "a", 0)
	wantKind(t, "List", err, coordinator.ErrUnavailable)
	wantKind(t, "List", err, context.Canceled)
	wantKind(t, "Watch", kv.Watch(ctx, "a", 0, func(coordinator.Batch) {}), context.Canceled)
	wantKind(t, "KeepAlive", kv.KeepAlive(ctx, 1), context.Canceled)
	wantAbsent(t, kv, "a")
}

func testClose(t *testing.T, kv coordinator.KV) {
	w := watch(t, kv, "w/", head(t, kv))
	rev := write(t, kv, put("w/a", "1"))
	wantBatch(t, w.next(t), rev, "w/a=1")
	lease := grant(t, kv)
	ended := keepAlive(t.Context(), kv, lease)
	awaitKept(t, kv, lease)
	if err := kv.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	wantKind(t, "Watch of a closed store", w.end(t), coordinator.ErrUnavailable)
	wantEnd(t, "KeepAlive of a closed store", ended, coordinator.ErrUnavailable)
	_, _, err := kv.Get(t.Context(), "w/a")
	wantKind(t, "Get of a closed store", err, coordinator.ErrUnavailable)
	_, err = kv.Txn(t.Context(), nil, []coordinator.Op{put("w/a", "1")})
	wantKind(t, "Txn of a closed store", err, coordinator.ErrUnavailable)
	if err := kv.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}
