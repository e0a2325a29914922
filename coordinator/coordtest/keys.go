package coordtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/varve-io/varve/coordinator"
)

func testGet(t *testing.T, kv coordinator.KV) {
	item, before, err := kv.Get(t.Context(), "a")
	if err != nil || item.Key != "a" || item.ModRevision != 0 || item.CreateRevision != 0 {
		t.Fatalf("Get of no key = %+v, %v; want zero revisions", item, err)
	}
	created := write(t, kv, put("a", "1"))
	if created <= before {
		t.Errorf("a write raised the revision from %d to %d", before, created)
	}
	changed := write(t, kv, put("a", ""))
	item, rev, err := kv.Get(t.Context(), "a")
	if err != nil || len(item.Value) != 0 || item.CreateRevision != created || item.ModRevision != changed || item.Lease != 0 {
		t.Errorf("Get = %+v, %v; want an empty value created at %d, changed at %d", item, err, created, changed)
	}
	if rev < changed {
		t.Errorf("Get's revision is %d, after a write at %d", rev, changed)
	}
	_, _, err = kv.Get(t.Context(), "")
	wantKind(t, "Get of an empty key", err, coordinator.ErrLimit)
}

func testList(t *testing.T, kv coordinator.KV) {
	const n = 1300 // several pages of any sensible size
	fill(t, kv, "p/", n)
	write(t, kv, put("p", "before"), put("p0", "after"), put("p/\xff", "last"), put("o", ""))
	items, _, err := kv.List(t.Context(), "p/", 0)
	if err != nil || len(items) != n+1 {
		t.Fatalf("List returned %d items, %v; want %d", len(items), err, n+1)
	}
	for i, item := range items[:n] {
		if want := fmt.Sprintf("p/%05d", i); item.Key != want || string(item.Value) != "old" {
			t.Fatalf("item %d is %+v, want key %s", i, item, want)
		}
	}
	if items[n].Key != "p/\xff" {
		t.Errorf("the last key is %q", items[n].Key)
	}
	all, _, err := kv.List(t.Context(), "", 0)
	if err != nil || len(all) != n+4 || all[0].Key != "o" {
		t.Errorf("List of everything returned %d items, %v; want %d from o on", len(all), err, n+4)
	}
	none, _, err := kv.List(t.Context(), "q", 0)
	if err != nil || len(none) != 0 {
		t.Errorf("List of nothing = %v, %v", none, err)
	}
}

func testListAtRevision(t *testing.T, kv coordinator.KV) {
	const n = 700
	then := fill(t, kv, "p/", n)
	write(t, kv, put("p/00000", "new"), put("p/x", "new"), coordinator.Op{Key: "p/00001", Delete: true})
	items, rev, err := kv.List(t.Context(), "p/", then)
	if err != nil || rev != then || len(items) != n {
		t.Fatalf("List at %d returned %d items at %d, %v; want %d", then, len(items), rev, err, n)
	}
	for _, item := range items {
		if string(item.Value) != "old" || item.ModRevision > then {
			t.Fatalf("List at %d returned %+v", then, item)
		}
	}
	items, rev, err = kv.List(t.Context(), "p/", 0)
	if err != nil || rev <= then || len(items) != n || string(items[0].Value) != "new" {
		t.Errorf("List of the newest returned %d items at %d, %v", len(items), rev, err)
	}
	_, _, err = kv.List(t.Context(), "p/", rev+1_000_000)
	wantKind(t, "List at a future revision", err, coordinator.ErrUnavailable)
}

func testTxnCompare(t *testing.T, kv coordinator.KV) {
	created := write(t, kv, put("a", "1"), put("empty", ""))
	for _, c := range []struct {
		name    string
		compare coordinator.Compare
		want    bool
	}{
		{"absent, is", coordinator.Compare{Key: "none"}, true},
		{"absent, is not", coordinator.Compare{Key: "a"}, false},
		{"revision", coordinator.Compare{Key: "a", Revision: created}, true},
		{"older revision", coordinator.Compare{Key: "a", Revision: created - 1}, false},
		{"newer revision", coordinator.Compare{Key: "a", Revision: created + 1}, false},
		{"revision of no key", coordinator.Compare{Key: "none", Revision: created}, false},
		{"value", coordinator.Compare{Key: "a", Value: []byte("1")}, true},
		{"value, revision ignored", coordinator.Compare{Key: "a", Value: []byte("1"), Revision: 1}, true},
		{"other value", coordinator.Compare{Key: "a", Value: []byte("10")}, false},
		{"empty value", coordinator.Compare{Key: "empty", Value: []byte{}}, true},
		{"empty value, is not", coordinator.Compare{Key: "a", Value: []byte{}}, false},
		{"empty value of no key", coordinator.Compare{Key: "none", Value: []byte{}}, false},
	} {
		key := "written by " + c.name
		result, err := kv.Txn(t.Context(), []coordinator.Compare{c.compare}, []coordinator.Op{put(key, "")})
		if err != nil || result.Succeeded != c.want {
			t.Errorf("%s: Txn = %+v, %v; want succeeded %t", c.name, result, err, c.want)
		}
		if written := get(t, kv, key).ModRevision; (written != 0) != c.want {
			t.Errorf("%s: the key was written at %d, want that only on success", c.name, written)
		}
	}
	result, err := kv.Txn(t.Context(), []coordinator.Compare{{Key: "a", Revision: created}}, nil)
	if err != nil || !result.Succeeded || result.Revision == 0 {
		t.Errorf("Txn without operations = %+v, %v; want success", result, err)
	}
}

func testTxnFailedItems(t *testing.T, kv coordinator.KV) {
	rev := write(t, kv, put("a", "1"), put("b", "2"))
	compares := []coordinator.Compare{{Key: "b", Revision: rev}, {Key: "none"}, {Key: "a"}, {Key: "b", Value: []byte("2")}}
	result, err := kv.Txn(t.Context(), compares, []coordinator.Op{put("c", "")})
	if err != nil || result.Succeeded || result.Revision < rev || len(result.Failed) != len(compares) {
		t.Fatalf("Txn = %+v, %v; want failure with %d items", result, err, len(compares))
	}
	for i, want := range []coordinator.Item{
		{Key: "b", Value: []byte("2"), CreateRevision: rev, ModRevision: rev},
		{Key: "none"},
		{Key: "a", Value: []byte("1"), CreateRevision: rev, ModRevision: rev},
		{Key: "b", Value: []byte("2"), CreateRevision: rev, ModRevision: rev},
	} {
		got := result.Failed[i]
		if got.Key != want.Key || string(got.Value) != string(want.Value) || got.CreateRevision != want.CreateRevision || got.ModRevision != want.ModRevision {
			t.Errorf("item %d is %+v, want %+v", i, got, want)
		}
	}
}

func testTxnOneRevision(t *testing.T, kv coordinator.KV) {
	first := write(t, kv, put("a", "1"))
	second := write(t, kv, put("a", "2"), put("b", "2"))
	a, b := get(t, kv, "a"), get(t, kv, "b")
	if a.CreateRevision != first || a.ModRevision != second || b.CreateRevision != second || b.ModRevision != second {
		t.Errorf("a = %+v, b = %+v; want created at %d and %d, both changed at %d", a, b, first, second, second)
	}
	write(t, kv, coordinator.Op{Key: "a", Delete: true})
	third := write(t, kv, put("a", "3"))
	if a := get(t, kv, "a"); a.CreateRevision != third {
		t.Errorf("a, deleted and made again at %d, says that it was created at %d", third, a.CreateRevision)
	}
}

func testTxnDelete(t *testing.T, kv coordinator.KV) {
	write(t, kv, put("d", ""), put("d/1", ""), put("d/2", ""), put("d/2/3", ""), put("d0", ""), put("x", ""))
	write(t, kv, coordinator.Op{Key: "d/", Delete: true, Prefix: true}, coordinator.Op{Key: "x", Delete: true}, put("y", ""))
	wantAbsent(t, kv, "d/1", "d/2", "d/2/3", "x")
	for _, key := range []string{"d", "d0", "y"} {
		if get(t, kv, key).ModRevision == 0 {
			t.Errorf("%q is gone", key)
		}
	}
	write(t, kv, coordinator.Op{Key: "x", Delete: true}, coordinator.Op{Key: "d/", Delete: true, Prefix: true})
	write(t, kv, coordinator.Op{Key: "d0", Delete: true}, coordinator.Op{Key: "d0", Delete: true}, coordinator.Op{Key: "d", Delete: true, Prefix: true})
	wantAbsent(t, kv, "d", "d0")
}

func testTxnCopies(t *testing.T, kv coordinator.KV) {
	value := []byte("1")
	write(t, kv, coordinator.Op{Key: "a", Value: value})
	value[0] = '2'
	item := get(t, kv, "a")
	if string(item.Value) != "1" {
		t.Errorf("the store follows its caller's buffer: %q", item.Value)
	}
	item.Value[0] = '3'
	if again := get(t, kv, "a"); string(again.Value) != "1" {
		t.Errorf("a caller changed the stored value to %q", again.Value)
	}
}

func testTxnAtLimits(t *testing.T, kv coordinator.KV) {
	var compares []coordinator.Compare
	var ops []coordinator.Op
	for i := range coordinator.TxnOpsMax {
		key := fmt.Sprintf("k%03d", i)
		compares, ops = append(compares, coordinator.Compare{Key: key}), append(ops, put(key, "1"))
	}
	for _, want := range []bool{true, false} {
		result, err := kv.Txn(t.Context(), compares, ops)
		if err != nil || result.Succeeded != want {
			t.Fatalf("Txn of %d operations = %t, %v; want %t", len(ops), result.Succeeded, err, want)
		}
	}
	value := strings.Repeat("v", coordinator.ValueBytesMax-1)
	write(t, kv, put("x", value), put("y", value))
	write(t, kv, put("z", value+"v"))
	items, _, err := kv.List(t.Context(), "", 0)
	if err != nil || len(items) != coordinator.TxnOpsMax+3 || len(items[len(items)-1].Value) != coordinator.ValueBytesMax {
		t.Errorf("List returned %d items, %v", len(items), err)
	}
}

func testTxnOverLimits(t *testing.T, kv coordinator.KV) {
	many := make([]coordinator.Op, coordinator.TxnOpsMax+1)
	compares := make([]coordinator.Compare, len(many))
	for i := range many {
		many[i], compares[i] = put(fmt.Sprint("k", i), ""), coordinator.Compare{Key: fmt.Sprint("k", i)}
	}
	half := strings.Repeat("v", coordinator.ValueBytesMax)
	for _, c := range []struct {
		name     string
		compares []coordinator.Compare
		ops      []coordinator.Op
	}{
		{"operations", nil, many},
		{"comparisons", compares, many[:1]},
		{"value", nil, []coordinator.Op{put("k0", half+"v")}},
		{"compared value", []coordinator.Compare{{Key: "a", Value: []byte(half + "v")}}, many[:1]},
		{"bytes", nil, []coordinator.Op{put("k0", half), put("k1", half)}},
		{"a key put twice", nil, []coordinator.Op{put("k0", "1"), put("k1", ""), put("k0", "2")}},
		{"a key put and deleted", nil, []coordinator.Op{{Key: "k0", Delete: true}, put("k0", "")}},
		{"a key put under a deleted prefix", nil, []coordinator.Op{put("k0", ""), {Key: "k", Delete: true, Prefix: true}}},
		{"no key to put", nil, []coordinator.Op{put("", "")}},
		{"no prefix to delete", nil, []coordinator.Op{{Delete: true, Prefix: true}}},
		{"no key to compare", []coordinator.Compare{{}}, many[:1]},
	} {
		_, err := kv.Txn(t.Context(), c.compares, c.ops)
		wantKind(t, "Txn with too much of: "+c.name, err, coordinator.ErrLimit)
	}
	if items, _, err := kv.List(t.Context(), "", 0); err != nil || len(items) != 0 {
		t.Errorf("refused transactions wrote %d items (%v)", len(items), err)
	}
}

func testTxnRaces(t *testing.T, kv coordinator.KV) {
	const rounds, racers = 5, 8
	for round := range rounds {
		key := fmt.Sprint("prize", round)
		var winners atomic.Int64
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				result, err := kv.Txn(t.Context(), []coordinator.Compare{{Key: key}}, []coordinator.Op{put(key, fmt.Sprint(i))})
				switch {
				case err != nil:
					t.Errorf("Txn: %v", err)
				case result.Succeeded:
					winners.Add(1)
				case len(result.Failed) != 1 || result.Failed[0].ModRevision == 0:
					t.Errorf("a loser does not see the winner: %+v", result)
				}
			})
		}
		wg.Wait()
		if winners.Load() != 1 {
			t.Errorf("round %d had %d winners", round, winners.Load())
		}
	}
}

func testTxnIncrements(t *testing.T, kv coordinator.KV) {
	const workers, each = 4, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := increment(t.Context(), kv, "counter"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := len(get(t, kv, "counter").Value); got != workers*each {
		t.Errorf("%d increments counted %d", workers*each, got)
	}
}

// increment makes the value one byte longer, by comparing and trying again with the items of the failure.
func increment(ctx context.Context, kv coordinator.KV, key string) error {
	item, _, err := kv.Get(ctx, key)
	for err == nil {
		var result coordinator.TxnResult
		result, err = kv.Txn(ctx, []coordinator.Compare{{Key: key, Revision: item.ModRevision}}, []coordinator.Op{put(key, string(item.Value)+"1")})
		if err == nil && result.Succeeded {
			return nil
		}
		if err == nil {
			item = result.Failed[0]
		}
	}
	return fmt.Errorf("increment: %w", err)
}
