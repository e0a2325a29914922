package groups

import (
	"context"
	"errors"
	"log/slog"
	"sync"
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

// TestWithLedger runs two agents with real ledgers over one store: the second takes the shard from under the first.
func TestWithLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, store: mem.New(mem.Config{ClusterID: 1, Start: time.Now()})}
		c.topics = map[string]coordinator.Topic{"orders": {Name: "orders", Partitions: 10}}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		start := func(epoch int32) *agent {
			a := &agent{t: t, epochs: map[coordinator.ShardID]int32{0: epoch}}
			l := ledger.New(c.store, func(shard coordinator.ShardID) {
				a.lose()
				a.Resign(shard)
			})
			a.Coordinator = New(DefaultConfig(1), Deps{
				KV: c.store, Ledger: l, Leads: a.leads, Prove: a.prove, Topics: c, Now: time.Now, NewID: uuid.NewString, Log: slog.New(slog.DiscardHandler),
			})
			claim(ctx, t, c.store, l, epoch)
			running.Go(func() { a.Run(ctx) })
			running.Go(func() { l.Run(ctx) })
			return a
		}
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
