package coordinator_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// forgetful is a store that writes and forgets its past after the first list.
type forgetful struct {
	*mem.Store
	t     *testing.T
	lists int
}

func (f *forgetful) List(ctx context.Context, prefix string, revision int64) ([]coordinator.Item, int64, error) {
	items, asOf, err := f.Store.List(ctx, prefix, revision)
	if f.lists++; f.lists == 1 {
		put(ctx, f.t, f.Store, "b/", "2")
		put(ctx, f.t, f.Store, "a/", "2")
		if err := f.Compact(ctx, asOf+2); err != nil {
			f.t.Fatal(err)
		}
	}
	return items, asOf, err
}

func put(ctx context.Context, t *testing.T, kv coordinator.KV, prefix, value string) {
	t.Helper()
	if _, err := kv.Txn(ctx, nil, []coordinator.Op{{Key: prefix + value, Value: []byte(value)}}); err != nil {
		t.Fatal(err)
	}
}

// TestListAll: prefixes are read as of one revision, even if the first one is forgotten before all are.
func TestListAll(t *testing.T) {
	kv := &forgetful{Store: mem.New(mem.Config{Start: time.Now()}), t: t}
	put(t.Context(), t, kv, "a/", "1")
	put(t.Context(), t, kv, "b/", "1")
	items, revision, err := coordinator.ListAll(t.Context(), kv, "b/", "a/")
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 0, len(items))
	for _, it := range items {
		keys = append(keys, it.Key)
	}
	if want := []string{"b/1", "b/2", "a/1", "a/2"}; !slices.Equal(keys, want) || kv.lists != 4 {
		t.Errorf("%d lists gave %v as of revision %d; want %v after 4", kv.lists, keys, revision, want)
	}
}
