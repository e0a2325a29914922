package groups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// claim makes the ledger's agent the leader of shard 0 in an epoch, as far as the coordinator's store is concerned.
func claim(ctx context.Context, t *testing.T, store *mem.Store, l *ledger.Ledger, epoch int32) {
	t.Helper()
	w := coordinator.Write{Owner: coordinator.LogID(epoch), Epoch: epoch}
	result, err := store.Txn(ctx, nil, []coordinator.Op{{Key: coordinator.KeyWrite(0), Value: coordinator.Encode(w)}})
	if err != nil {
		t.Fatal(err)
	}
	l.Adopt(0, w, result.Revision)
}

// withLedger starts an agent with a real ledger that leads shard 0, the only one.
func (c *cluster) withLedger(ctx context.Context, running *sync.WaitGroup, kv coordinator.KV, epoch int32) *agent {
	a := &agent{t: c.t, epochs: map[coordinator.ShardID]int32{0: epoch}}
	l := ledger.New(kv, func(shard coordinator.ShardID) {
		a.lose()
		a.Resign(shard)
	})
	a.Coordinator = New(DefaultConfig(1), Deps{
		KV: kv, Ledger: l, Leads: a.leads, Prove: a.prove, Topics: c, Now: time.Now, NewID: uuid.NewString, Log: slog.New(slog.DiscardHandler),
	})
	claim(ctx, c.t, c.store, l, epoch)
	running.Go(func() { a.Run(ctx) })
	running.Go(func() { l.Run(ctx) })
	return a
}

// TestWithLedger runs two agents with real ledgers over one store: the second takes the shard from under the first.
func TestWithLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, store: mem.New(mem.Config{ClusterID: 1, Start: time.Now()})}
		c.topics = map[string]coordinator.Topic{"orders": {Name: "orders", Partitions: 10}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		start := func(epoch int32) *agent { return c.withLedger(ctx, &running, c.store, epoch) }
		a := start(1)
		members := a.form("g", 2)
		var answers []<-chan int16
		for i := range int64(100) {
			answers = append(answers, later(func() int16 { return a.commit("g", members[i%2], "orders", int32(i%10), i) }))
		}
		for _, answer := range answers {
			code(t, "commit", <-answer, protocol.None)
		}

		b := start(2)
		code(t, "commit at the new leader", b.commit("g", members[0], "orders", 0, 1000), protocol.None)
		code(t, "commit at the old leader", a.commit("g", members[1], "orders", 0, 2000), protocol.NotCoordinator)
		code(t, "commit at the old leader", a.commit("g", members[1], "orders", 0, 2000), protocol.NotCoordinator)
		equal(t, "live", a.live(), 0)
		equal(t, "offset", b.fetchOffset("g", "orders", 0), 1000)
		if err := a.TopicDeleted(t.Context(), "orders"); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		equal(t, "offset", b.fetchOffset("g", "orders", 0), 1000)
	})
}

// farKV is a store some way off, that counts transactions.
type farKV struct {
	coordinator.KV
	txns atomic.Int64
}

func (k *farKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	k.txns.Add(1)
	time.Sleep(5 * time.Millisecond)
	return k.KV.Txn(ctx, compares, ops)
}

// TestCommitsShareTransactions: commits that are under way together, of one group or of many, take few transactions: as many as their keys need, and what was under
// way when they came.
func TestCommitsShareTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, store: mem.New(mem.Config{ClusterID: 1, Start: time.Now()})}
		c.topics = map[string]coordinator.Topic{"orders": {Name: "orders", Partitions: 64}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		kv := &farKV{KV: c.store}
		a := c.withLedger(ctx, &running, kv, 1)
		commits := func(group func(i int) string, offset int64) int64 {
			t.Helper()
			before := kv.txns.Load()
			var answers []<-chan int16
			for i := range 1000 {
				answers = append(answers, later(func() int16 { return a.commit(group(i), member{generation: -1}, "orders", int32(i%64), offset) }))
			}
			for _, answer := range answers {
				code(t, "commit", <-answer, protocol.None)
			}
			return kv.txns.Load() - before
		}
		many := func(i int) string { return fmt.Sprint("g", i) }
		one := func(int) string { return "g" }
		commits(many, 1) // makes the groups
		const full = (1000 + coordinator.TxnOpsMax - 2) / (coordinator.TxnOpsMax - 1)
		if n := commits(many, 2); n > full+2 {
			t.Errorf("1,000 commits of as many groups took %d transactions, want %d and the one or two under way", n, full)
		}
		commits(one, 1)
		// Of one group 64 writes may be under way, of one block of offsets and so of one key: half of them in a transaction, and half waiting for the next.
		if n := commits(one, 2); n > 1000/32+2 {
			t.Errorf("1,000 commits of one group took %d transactions, want at most one for each 32", n)
		}
	})
}
