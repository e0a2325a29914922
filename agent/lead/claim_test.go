package lead_test

import (
	"errors"
	"testing"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// TestClaim holds that shards, more than one transaction takes, go from owner to owner under new epochs, and not while the log of their owner is open.
func TestClaim(t *testing.T) {
	kv := mem.New(mem.Config{})
	cluster := coordinator.Cluster{Shards: 200}
	record := func(id coordinator.LogID, closed bool) {
		t.Helper()
		l := coordinator.Log{ID: id, Fence: 1, Closed: closed}
		ops := []coordinator.Op{{Key: coordinator.KeyLog(id), Value: coordinator.Encode(l)}}
		if _, err := kv.Txn(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
	}
	record(1, false)
	record(2, false)
	for epoch := int32(1); epoch <= 2; epoch++ { // claiming again, after an unknown outcome, is allowed
		all, err := lead.Claim(t.Context(), kv, cluster, 2, 7)
		if err != nil || len(all) != 200 || all[199].ID != 199 || all[199].Shard.Epoch != epoch || all[199].Shard.Owner != 2 {
			t.Fatalf("claim by log 2: %d shards, %v", len(all), err)
		}
	}
	if _, err := lead.Claim(t.Context(), kv, cluster, 1, 8); !errors.Is(err, lead.ErrLed) {
		t.Errorf("claim while log 2 is open: %v, want ErrLed", err)
	}
	record(2, true)
	all, err := lead.Claim(t.Context(), kv, cluster, 1, 8)
	if err != nil || all[0].Shard.Epoch != 3 {
		t.Fatalf("claim after log 2 was closed: %+v, %v", all, err)
	}
	guard, _, err := kv.Get(t.Context(), coordinator.KeyWrite(199))
	if err != nil || guard.ModRevision != all[199].Revision || string(guard.Value) != string(coordinator.Encode(all[199].Write)) {
		t.Errorf("guard of shard 199: %+v, %v; want what the claim says: %+v", guard, err, all[199])
	}
}
