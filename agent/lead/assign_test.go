package lead_test

import (
	"context"
	"errors"
	"testing"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

var cluster = coordinator.Cluster{Shards: 200}

// put writes a record as it is.
func put(t *testing.T, kv *mem.Store, key string, value any) {
	t.Helper()
	if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(value)}}); err != nil {
		t.Fatal(err)
	}
}

// all assigns that many shards.
func all(shards int, from, to coordinator.LogID) []lead.Assignment {
	plan := make([]lead.Assignment, shards)
	for id := range plan {
		plan[id] = lead.Assignment{Shard: coordinator.ShardID(id), From: from, To: to, Node: int32(to) + 10}
	}
	return plan
}

// wants checks that a log, and nobody else, has that many shards, of this epoch.
func wants(t *testing.T, kv coordinator.KV, log coordinator.LogID, shards int, epoch int32) []lead.Given {
	t.Helper()
	given, revision, err := lead.GivenTo(t.Context(), kv, 200, log)
	if err != nil || len(given) != shards || (revision == 0) != (shards == 0) {
		t.Fatalf("log %s has %d shards at revision %d, %v, want %d", log, len(given), revision, err, shards)
	}
	for _, g := range given {
		if g.Shard.Owner != log || g.Shard.Epoch != epoch || g.Shard.Node != int32(log)+10 || g.Write != (coordinator.Write{Owner: log, Epoch: epoch}) {
			t.Fatalf("shard %d: %+v, guard %+v, want epoch %d", g.ID, g.Shard, g.Write, epoch)
		}
		guard, _, err := kv.Get(t.Context(), coordinator.KeyWrite(g.ID))
		if err != nil || guard.ModRevision != g.Revision {
			t.Fatalf("the guard of shard %d is of revision %d, %v, want %d", g.ID, guard.ModRevision, err, g.Revision)
		}
	}
	return given
}

// TestAssign holds that shards, more than one transaction takes, go from owner to owner under new epochs, and not while the log of their owner is open.
func TestAssign(t *testing.T) {
	kv := mem.New(mem.Config{})
	put(t, kv, coordinator.KeyLog(1), coordinator.Log{ID: 1, Fence: 1})
	put(t, kv, coordinator.KeyLog(2), coordinator.Log{ID: 2, Fence: 1})
	if err := lead.Assign(t.Context(), kv, cluster, all(200, 0, 1)); err != nil {
		t.Fatal(err)
	}
	wants(t, kv, 1, 200, 1)
	// Its owner has written under its guard, and the controller wanted to move it.
	put(t, kv, coordinator.KeyShard(7), coordinator.Shard{Owner: 1, Node: 11, Epoch: 1, Manifest: "m"})
	put(t, kv, coordinator.KeyWrite(7), coordinator.Write{Owner: 1, Epoch: 1, Number: 5})
	put(t, kv, coordinator.KeyMove(7), coordinator.Move{To: 3})

	for name, plan := range map[string][]lead.Assignment{
		"open":                       all(200, 1, 2),
		"of another owner":           all(200, 3, 2),
		"that never had one, it did": all(200, 0, 2),
	} {
		if err := lead.Assign(t.Context(), kv, cluster, plan); !errors.Is(err, lead.ErrLed) {
			t.Errorf("assign shards whose log is %s: %v, want ErrLed", name, err)
		}
	}
	if given, _, err := lead.GivenTo(t.Context(), kv, 200, 2); err != nil || len(given) != 0 {
		t.Fatalf("log 2 has %d shards, %v", len(given), err)
	}
	put(t, kv, coordinator.KeyLog(1), coordinator.Log{ID: 1, Fence: 2, Closed: true})
	if err := lead.Assign(t.Context(), kv, cluster, all(200, 1, 2)); err != nil {
		t.Fatal(err)
	}
	if given := wants(t, kv, 2, 200, 2); given[7].Shard.Manifest != "m" {
		t.Errorf("the manifest of shard 7 is %q", given[7].Shard.Manifest)
	}
	if move, _, err := kv.Get(t.Context(), coordinator.KeyMove(7)); err != nil || move.ModRevision != 0 {
		t.Errorf("the wish about shard 7 still stands: %s, %v", move.Value, err)
	}
}

// TestAssignAfterRestore: while a log from before the restore is open no shard gets a leader, be its own last owner's log closed, or nobody's.
func TestAssignAfterRestore(t *testing.T) {
	kv := mem.New(mem.Config{})
	restored := coordinator.Cluster{Shards: 200, Restored: 100}
	put(t, kv, coordinator.KeyLog(1), coordinator.Log{ID: 1, Fence: 1, Closed: true})
	put(t, kv, coordinator.KeyLog(2), coordinator.Log{ID: 2, Fence: 1})
	put(t, kv, coordinator.KeyLog(100), coordinator.Log{ID: 100, Fence: 1})
	for id := range coordinator.ShardID(100) {
		put(t, kv, coordinator.KeyShard(id), coordinator.Shard{Owner: 1, Node: 11, Epoch: 7})
	}
	plan := append(all(100, 1, 100), all(200, 0, 100)[100:]...)
	for n, a := range plan {
		if err := lead.Assign(t.Context(), kv, restored, []lead.Assignment{a}); !errors.Is(err, lead.ErrOld) {
			t.Fatalf("assign shard %d while an old log is open: %v, want ErrOld", n, err)
		}
	}
	put(t, kv, coordinator.KeyLog(2), coordinator.Log{ID: 2, Fence: 2, Closed: true})
	if err := lead.Assign(t.Context(), kv, restored, plan); err != nil {
		t.Fatal(err)
	}
	if given, _, err := lead.GivenTo(t.Context(), kv, 200, 100); err != nil || len(given) != 200 {
		t.Errorf("log 100 has %d shards, %v", len(given), err)
	}
}

// lateKV lets something happen between an assignment's reading and its writing.
type lateKV struct {
	*mem.Store
	before func()
}

func (k *lateKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if before := k.before; before != nil {
		k.before = nil
		before()
	}
	return k.Store.Txn(ctx, compares, ops)
}

// TestAssignRace: somebody writes under a shard's guard while it is assigned: another controller that assigned it, or its owner.
func TestAssignRace(t *testing.T) {
	kv := mem.New(mem.Config{})
	late := &lateKV{Store: kv, before: func() {
		if err := lead.Assign(t.Context(), kv, cluster, []lead.Assignment{{Shard: 3, To: 5, Node: 15}}); err != nil {
			t.Fatal(err)
		}
	}}
	if err := lead.Assign(t.Context(), late, cluster, all(10, 0, 2)); !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("assign what another one assigns: %v, want ErrFenced", err)
	}
	wants(t, kv, 5, 1, 1)
	wants(t, kv, 2, 0, 0) // none of the same transaction
	// The same thing twice is once.
	kv = mem.New(mem.Config{})
	late = &lateKV{Store: kv, before: func() {
		if err := lead.Assign(t.Context(), kv, cluster, all(10, 0, 2)); err != nil {
			t.Fatal(err)
		}
	}}
	if err := lead.Assign(t.Context(), late, cluster, all(10, 0, 2)); err != nil {
		t.Errorf("assign what another one assigns alike: %v", err)
	}
	wants(t, kv, 2, 10, 1)
}

// TestAssignInDoubt: a transaction whose outcome is unknown is sent again, and applies once, whenever the first one does.
func TestAssignInDoubt(t *testing.T) {
	for name, kind := range map[string]mem.FaultKind{"applied": mem.UnknownApplied, "late": mem.UnknownLate, "lost": mem.UnknownLost} {
		kv := mem.New(mem.Config{})
		kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: kind})
		if err := lead.Assign(t.Context(), kv, cluster, all(10, 0, 2)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		kv.Settle()
		wants(t, kv, 2, 10, 1)
	}
}
