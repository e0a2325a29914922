package agent_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/varve-io/varve/coordinator"
)

// lateKV lets something happen just before shards are first listed, which is when an agent claims them, and something else when it looks for open logs again.
type lateKV struct {
	coordinator.KV
	claims, looks   sync.Once
	claimed         atomic.Bool
	claiming, again func()
}

func (k *lateKV) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	switch {
	case prefix == coordinator.PrefixShards:
		k.claims.Do(func() {
			k.claiming()
			k.claimed.Store(true)
		})
	case prefix == coordinator.PrefixLogs && rev == 0 && k.claimed.Load():
		k.looks.Do(func() { go k.again() })
	}
	return k.KV.List(ctx, prefix, rev)
}

// TestTwoStartAtOnce: while an agent starts, one with another disk opens its log and leads the shards. The slower one must wait until that log is closed.
func TestTwoStartAtOnce(t *testing.T) {
	w := newWorld(t)
	kv := w.kv
	write := func(ops ...coordinator.Op) {
		t.Helper()
		if _, err := kv.Txn(t.Context(), nil, ops); err != nil {
			t.Error(err)
		}
	}
	other := coordinator.Log{
		ID: 77, Node: 9, Fence: 1, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"another disk"}, Quorum: 1}},
	}
	var closed atomic.Bool
	w.kv = &lateKV{KV: kv, claiming: func() {
		write(
			coordinator.Op{Key: coordinator.KeyLog(77), Value: coordinator.Encode(other)},
			coordinator.Op{Key: coordinator.KeyShard(0), Value: coordinator.Encode(coordinator.Shard{Owner: 77, Node: 9, Epoch: 1})},
			coordinator.Op{Key: coordinator.KeyWrite(0), Value: coordinator.Encode(coordinator.Write{Owner: 77, Epoch: 1})},
		)
	}, again: func() {
		item, _, err := kv.Get(t.Context(), coordinator.KeyShard(0))
		if err != nil || item.CreateRevision != item.ModRevision {
			t.Errorf("the shard was taken while its owner's log is open: %+v, %v", item, err)
		}
		closed.Store(true)
		other.Closed = true
		write(coordinator.Op{Key: coordinator.KeyLog(77), Value: coordinator.Encode(other)})
	}}
	r := w.start(t, nil)
	if !closed.Load() {
		t.Error("the agent serves, and the other's log is open")
	}
	produce(t, r, "t", 0, 10)
	consume(t, r, "t", 10)
}
