package groups

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// TestAgentDiesWhileItVerifies: what was written for a transaction that may never have known of it. Each case says how the
// transaction stands when the next agent finds it.
func TestAgentDiesWhileItVerifies(t *testing.T) {
	shard := shardOf("g")
	for _, test := range []struct {
		name   string
		now    producer
		shards []coordinator.ShardID
		want   int64 // of the stable offset, some seconds later
	}{
		{name: "it has the shard", now: producer{epoch: 5, open: true}, shards: []coordinator.ShardID{shard}, want: unstable},
		{name: "it has another shard", now: producer{epoch: 5, open: true}, shards: []coordinator.ShardID{shard + 1}, want: 10},
		{name: "none is open", now: producer{epoch: 5}, want: 10},
		{name: "it is about to end, with its epoch", now: producer{epoch: 5, deciding: true}, want: unstable},
		{name: "it is about to end, with a raised epoch", now: producer{epoch: 6, deciding: true}, want: unstable},
		{name: "the next is open", now: producer{epoch: 6, open: true}, shards: []coordinator.ShardID{shard}, want: 10},
		{name: "it has ended", now: producer{epoch: 6}, want: 10},
		{name: "another has ended since", now: producer{epoch: 9}, want: 10},
		{name: "another is about to end", now: producer{epoch: 9, deciding: true}, want: 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				a := c.start(1)
				code(t, "commit", a.commit("g", nobody, "orders", 0, 10), protocol.None)
				c.txns.hold(0)
				sent := later(func() int16 { return a.send("g", 7, 5, "orders", 0, 20) })
				pending(t, sent, "send")
				a.stop()
				code(t, "send", <-sent, protocol.NotCoordinator)
				equal(t, "pending", len(c.pendingKeys()), 1)

				unreachable := errors.New("unreachable")
				c.txns.answer(unreachable)
				b := c.start(2)
				equal(t, "offset before the answer", b.stableOffset("g", "orders", 0), unstable)
				time.Sleep(time.Minute)
				equal(t, "offset without an answer", b.stableOffset("g", "orders", 0), unstable)
				c.txns.setHook(nil)
				c.txns.set(7, test.now, test.shards...)
				time.Sleep(6 * time.Second)
				equal(t, "offset", b.stableOffset("g", "orders", 0), test.want)
				equal(t, "something is pending", len(c.pendingKeys()) > 0, test.want == unstable)
			})
		})
	}
}

// Nobody asks for the group any more: the upkeep finds what was left.
func TestUpkeepFindsWhatWasLeftPending(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.hold(0)
		sent := later(func() int16 { return a.send("g", 7, 5, "orders", 0, 20) })
		pending(t, sent, "send")
		a.stop()
		<-sent
		c.txns.setHook(nil)
		c.txns.set(7, producer{epoch: 6})
		b := c.start(2)
		time.Sleep(30 * time.Minute)
		equalSlices(t, "pending", c.pendingKeys())
		equalSlices(t, "listed", b.list())
		equal(t, "questions stop", b.live(), 0)
	})
}

// The producer sends again to the next agent, while that one asks about what it found.
func TestSenderComesAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{epoch: 5})
		c.txns.hold(0)
		sent := later(func() int16 { return a.send("g", 7, 5, "orders", 0, 20) })
		pending(t, sent, "send")
		a.stop()
		<-sent

		// The question is answered before the producer sends again, and heard after.
		b := c.start(2)
		heard := make(chan struct{})
		c.txns.setHook(func(_ context.Context, t Transaction) error {
			if t.Add {
				return nil
			}
			<-heard
			return protocol.TransactionAbortable.Err()
		})
		equal(t, "offset", b.stableOffset("g", "orders", 0), unstable)
		synctest.Wait()
		code(t, "send", b.send("g", 7, 5, "orders", 0, 20), protocol.None)
		close(heard)
		time.Sleep(time.Minute)
		equal(t, "offset", b.stableOffset("g", "orders", 0), unstable)
		b.finish("g", 7, 5, true)
		equal(t, "offset", b.stableOffset("g", "orders", 0), 20)
	})
}

// A marker finds what is pending in groups that the agent has never heard of.
func TestMarkerAfterTakeover(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		var groups []string
		for i := range 30 {
			groups = append(groups, fmt.Sprintf("g%d", i))
			code(t, "send", a.send(groups[i], 7, 0, "orders", 0, int64(i)), protocol.None)
		}
		a.stop()
		err := a.EndTransaction(t.Context(), 0, Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		equal(t, "marker to who has ended", protocol.CodeOf(err), protocol.NotCoordinator)
		b := c.start(2)
		c.store.Inject(mem.Fault{Call: mem.CallList, Kind: mem.Unavailable})
		err = b.EndTransaction(t.Context(), 0, Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		equal(t, "marker while the store is away", protocol.CodeOf(err), protocol.CoordinatorLoadInProgress)
		c.store.Heal()
		for shard := range coordinator.ShardID(testShards) {
			if err := b.EndTransaction(t.Context(), shard, Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true}); err != nil {
				t.Fatal(err)
			}
		}
		equalSlices(t, "pending", c.pendingKeys())
		for i, group := range groups {
			equal(t, "offset", b.stableOffset(group, "orders", 0), int64(i))
		}
	})
}

// An agent that has lost the shard, and does not know it yet, must not say that a marker has nothing to do, nor that offsets
// are in a transaction.
func TestTransactionsAtADeposedAgent(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.None)
		release := c.txns.hold(1)
		sent := later(func() int16 { return a.send("g", 7, 0, "orders", 1, 21) })
		pending(t, sent, "send")
		a.sealed.Store(true)
		release()
		code(t, "send", <-sent, protocol.CoordinatorLoadInProgress)
		err := a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 8, Epoch: 1, Strict: true, Commit: true})
		equal(t, "marker", protocol.CodeOf(err), protocol.NotCoordinator)
		a.lose()
		err = a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		equal(t, "marker", protocol.CodeOf(err), protocol.NotCoordinator)
	})
}

func TestResignWithTransactions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.start(1), c.start(2)
		b.lose()
		c.txns.set(7, producer{})
		code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.None)
		shard := shardOf("g")
		move := func(from, to *agent, epoch int32) {
			from.mu.Lock()
			delete(from.epochs, shard)
			from.mu.Unlock()
			from.Resign(shard)
			to.mu.Lock()
			to.epochs[shard] = epoch
			to.mu.Unlock()
		}
		move(a, b, 3)
		equal(t, "marker", protocol.CodeOf(a.EndTransaction(t.Context(), shard, Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})), protocol.NotCoordinator)
		equal(t, "index of who resigned", len(a.producers), 0)
		code(t, "send", b.send("g", 7, 0, "orders", 1, 21), protocol.None)
		move(b, a, 4)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
		equal(t, "offset", a.stableOffset("g", "orders", 1), 21)
	})
}

func TestMarkerOvertakesARequest(t *testing.T) {
	for _, test := range []struct {
		epoch  protocol.ProducerEpoch
		strict bool
		want   protocol.ErrorCode
	}{
		{1, true, protocol.InvalidProducerEpoch},
		{0, false, protocol.InvalidTxnState},
	} {
		inBubble(t, func(t *testing.T, c *cluster) {
			a := c.start(1)
			c.txns.set(7, producer{})
			code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.None)
			release := c.txns.hold(1)
			sent := later(func() int16 { return a.send("g", 7, 0, "orders", 1, 21) })
			pending(t, sent, "send")
			equal(t, "offset", a.stableOffset("g", "orders", 1), unstable)
			code(t, "another request", a.send("g", 7, 0, "orders", 2, 22), protocol.CoordinatorLoadInProgress)
			if err := a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: test.epoch, Strict: test.strict, Commit: true}); err != nil {
				t.Fatal(err)
			}
			release()
			code(t, "send", <-sent, test.want)
			equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
			equal(t, "offset that was not verified", a.stableOffset("g", "orders", 1), -1)
			equalSlices(t, "pending", c.pendingKeys())
		})
	}
}

func TestWritesOfTransactionsFail(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		a.ledger.fail(coordinator.ErrNoSpace)
		code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.CoordinatorNotAvailable)
		equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
		equal(t, "questions", c.txns.questions(), 0)
		time.Sleep(6 * time.Second)
		equal(t, "index", len(a.groupsOf(shardOf("g"), 7)), 0)

		code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.None)
		for _, commit := range []bool{true, false} { // the second marker may not be of another mind, but must do no harm
			a.ledger.fail(coordinator.ErrNoSpace)
			err := a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: 1, Strict: true, Commit: commit})
			equal(t, "marker", protocol.CodeOf(err), protocol.CoordinatorNotAvailable)
			equal(t, "offset", a.stableOffset("g", "orders", 0), unstable)
		}
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)

		// What was refused cannot be taken out at once, and is later.
		c.txns.set(7, producer{epoch: 1})
		c.txns.answer(protocol.InvalidTxnState.Err())
		a.ledger.fail(nil, coordinator.ErrNoSpace)
		code(t, "send", a.send("g", 7, 1, "orders", 0, 30), protocol.InvalidTxnState)
		equal(t, "pending", len(c.pendingKeys()), 1)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
		time.Sleep(6 * time.Second)
		equalSlices(t, "pending", c.pendingKeys())
	})
}

// An owner must not wait for a coordinator that does not answer, nor must its other clients.
func TestOwnerDoesNotWaitForVerification(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.WritesInFlightMax, cfg.MailboxMax = 2, 2 })
		c.txns.hold(0)
		var sent []<-chan int16
		for id := range protocol.ProducerID(10) {
			sent = append(sent, later(func() int16 { return a.send("g", id, 0, "orders", int32(id), 1) }))
		}
		begin := time.Now()
		code(t, "commit", a.commit("g", nobody, "bills", 0, 5), protocol.None)
		a.finish("g", 11, 0, true)
		equal(t, "time", time.Since(begin), 0)
		for _, answer := range sent {
			code(t, "send", <-answer, protocol.CoordinatorLoadInProgress)
		}
		equal(t, "time", time.Since(begin), 5*time.Second)
		equalSlices(t, "pending", c.pendingKeys())
	})
}

func TestTransactionsKeepOffsetsAndGroups(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.OffsetsRetention = time.Hour })
		for id := range protocol.ProducerID(2) {
			c.txns.set(id, producer{})
		}
		code(t, "commit", a.commit("g", nobody, "orders", 0, 10), protocol.None)
		code(t, "commit", a.commit("g", nobody, "orders", 1, 11), protocol.None)
		code(t, "send", a.send("g", 0, 0, "orders", 0, 20), protocol.None)
		code(t, "send", a.send("only pending", 1, 0, "orders", 0, 30), protocol.None)
		time.Sleep(3 * time.Hour)
		equal(t, "live", a.live(), 2)
		equal(t, "expired", a.stableOffset("g", "orders", 1), -1)
		equal(t, "kept", a.fetchOffset("g", "orders", 0), 10)
		a.finish("g", 0, 0, false)
		a.finish("only pending", 1, 0, false)
		time.Sleep(time.Hour)
		equalSlices(t, "listed", a.list())
		equal(t, "live", a.live(), 0)
		if items, _, _ := c.store.List(t.Context(), "", 0); len(items) != 0 {
			t.Fatalf("left behind: %v", items)
		}
	})
}

func TestDeletionsTakeOutPendingOffsets(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		send := func() {
			t.Helper()
			code(t, "commit", a.commit("g", nobody, "orders", 0, 9), protocol.None)
			code(t, "send", a.send("g", 7, 0, "orders", 0, 10), protocol.None)
			code(t, "send", a.send("g", 7, 0, "orders", 1, 11), protocol.None)
			code(t, "send", a.send("g", 7, 0, "bills", 0, 12), protocol.None)
		}
		send()
		code(t, "delete offsets", a.OffsetDelete(t.Context(), deleteRequest("g", 0)).Topics[0].Partitions[0].ErrorCode, protocol.None)
		equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
		equal(t, "offset", a.stableOffset("g", "orders", 1), unstable)
		a.stop()
		a = c.start(2)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
		equal(t, "offset", a.stableOffset("g", "orders", 1), 11)
		equal(t, "offset", a.stableOffset("g", "bills", 0), -1)

		send()
		orders := c.topics["orders"]
		delete(c.topics, "orders")
		a.ledger.fail(coordinator.ErrNoSpace)
		if err := a.TopicDeleted(t.Context(), "orders"); err == nil {
			t.Fatal("no error")
		}
		equal(t, "offset", a.stableOffset("g", "orders", 1), unstable)
		if err := a.TopicDeleted(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		c.topics["orders"] = orders
		equal(t, "offset", a.stableOffset("g", "orders", 1), -1)
		equal(t, "offset", a.stableOffset("g", "bills", 0), unstable)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
		equal(t, "offset", a.stableOffset("g", "bills", 0), 12)

		send()
		del := &kmsg.DeleteGroupsRequest{Version: 2, Groups: []string{"g"}}
		a.ledger.fail(coordinator.ErrNoSpace)
		code(t, "delete", a.DeleteGroups(t.Context(), del).Groups[0].ErrorCode, protocol.CoordinatorNotAvailable)
		synctest.Wait()
		equal(t, "offset", a.stableOffset("g", "orders", 1), unstable)
		code(t, "delete", a.DeleteGroups(t.Context(), del).Groups[0].ErrorCode, protocol.None)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
		equal(t, "state", a.state("g"), "Dead")
		if items, _, _ := c.store.List(t.Context(), "", 0); len(items) != 0 {
			t.Fatalf("left behind: %v", items)
		}
	})
}
