package groups

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// transactions coordinates transactions as far as groups see it: one transactional id "t<producer>" for each producer.
type transactions struct {
	mu        sync.Mutex
	producers map[protocol.ProducerID]*producer
	hook      func(context.Context, Transaction) error // called first, unless nil; an error is the answer
	asked     int
}

// producer is a transactional id's state. Its zero value has no transaction.
type producer struct {
	epoch    protocol.ProducerEpoch
	open     bool
	deciding bool // markers of a decision, which carry epoch, are on their way
	shards   map[coordinator.ShardID]bool
}

func (s *transactions) verify(ctx context.Context, t Transaction) error {
	s.mu.Lock()
	hook := s.hook
	s.asked++
	s.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, t); err != nil {
			return err
		}
	}
	return s.judge(t)
}

// judge answers a question.
func (s *transactions) judge(t Transaction) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.producers[t.Producer]
	switch {
	case p == nil || t.ID != fmt.Sprintf("t%d", t.Producer):
		return protocol.InvalidProducerIDMapping.Err()
	case p.epoch != t.Epoch:
		return protocol.ProducerFenced.Err()
	case p.deciding:
		return protocol.ConcurrentTransactions.Err()
	case t.Add:
		p.open = true
		p.shards[t.Shard] = true
	case !p.open || !p.shards[t.Shard]:
		return protocol.TransactionAbortable.Err()
	}
	return nil
}

// set replaces a producer's state; shards are those of its open transaction.
func (s *transactions) set(id protocol.ProducerID, p producer, shards ...coordinator.ShardID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.shards = map[coordinator.ShardID]bool{}
	for _, shard := range shards {
		p.shards[shard] = true
	}
	s.producers[id] = &p
}

// questions returns how many questions were asked.
func (s *transactions) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// setHook sets the hook.
func (s *transactions) setHook(hook func(context.Context, Transaction) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// answer lets all questions have one answer.
func (s *transactions) answer(err error) {
	s.setHook(func(context.Context, Transaction) error { return err })
}

// hold lets questions wait, but for the next ones to pass, until the returned function is called, or for ever.
func (s *transactions) hold(pass int64) (release func()) {
	held := make(chan struct{})
	var asked atomic.Int64
	s.setHook(func(ctx context.Context, _ Transaction) error {
		if asked.Add(1) <= pass {
			return nil
		}
		select {
		case <-held:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return sync.OnceFunc(func() {
		s.setHook(nil)
		close(held)
	})
}

// shardOf is the shard of a group.
func shardOf(group string) coordinator.ShardID { return coordinator.ShardOfName(group, testShards) }

func sendRequest(group string, id protocol.ProducerID, epoch protocol.ProducerEpoch, topic string, offsets map[int32]int64) *kmsg.TxnOffsetCommitRequest {
	r := kmsg.NewPtrTxnOffsetCommitRequest()
	r.Version, r.Group, r.TransactionalID = 5, group, fmt.Sprintf("t%d", id)
	r.ProducerID, r.ProducerEpoch = int64(id), int16(epoch)
	t := kmsg.NewTxnOffsetCommitRequestTopic()
	t.Topic = topic
	for p, offset := range offsets {
		part := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset, part.Metadata = p, offset, new(fmt.Sprintf("at %d", offset))
		t.Partitions = append(t.Partitions, part)
	}
	r.Topics = append(r.Topics, t)
	return r
}

// sendCode sends a request and returns the code of its first partition.
func (a *agent) sendCode(r *kmsg.TxnOffsetCommitRequest) int16 {
	return a.TxnOffsetCommit(a.t.Context(), r).Topics[0].Partitions[0].ErrorCode
}

// send sends one offset in a transaction.
func (a *agent) send(group string, id protocol.ProducerID, epoch protocol.ProducerEpoch, topic string, partition int32, offset int64) int16 {
	return a.sendCode(sendRequest(group, id, epoch, topic, map[int32]int64{partition: offset}))
}

// finish ends a transaction of version 2: the marker's epoch is one above.
func (a *agent) finish(group string, id protocol.ProducerID, epoch protocol.ProducerEpoch, commit bool) {
	a.t.Helper()
	if err := a.EndTransaction(a.t.Context(), shardOf(group), Marker{Producer: id, Epoch: epoch + 1, Strict: true, Commit: commit}); err != nil {
		a.t.Fatal(err)
	}
}

const unstable = -88 // what stableOffset returns of an unstable offset

// stableOffset fetches a partition's offset for one who wants it stable.
func (a *agent) stableOffset(group, topic string, partition int32) int64 {
	a.t.Helper()
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Version, r.RequireStable = 8, true
	topics := []kmsg.OffsetFetchRequestGroupTopic{{Topic: topic, Partitions: []int32{partition}}}
	r.Groups = []kmsg.OffsetFetchRequestGroup{{Group: group, Topics: topics}}
	resp := a.OffsetFetch(a.t.Context(), r)
	code(a.t, "fetch offset", resp.Groups[0].ErrorCode, protocol.None)
	p := resp.Groups[0].Topics[0].Partitions[0]
	if p.ErrorCode == int16(protocol.UnstableOffsetCommit) {
		equal(a.t, "unstable offset", p.Offset, -1)
		return unstable
	}
	code(a.t, "fetch offset of partition", p.ErrorCode, protocol.None)
	return p.Offset
}

// pendingKeys returns the keys of pending offsets in the store.
func (c *cluster) pendingKeys() []string {
	c.t.Helper()
	synctest.Wait()
	items, _, err := c.store.List(c.t.Context(), coordinator.PrefixPending, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	var keys []string
	for _, item := range items {
		keys = append(keys, item.Key)
	}
	return keys
}

func TestTransaction(t *testing.T) {
	for _, commit := range []bool{true, false} {
		t.Run(fmt.Sprintf("commit=%v", commit), func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				a := c.start(1)
				c.txns.set(7, producer{epoch: 2})
				code(t, "commit", a.commit("g", nobody, "orders", 0, 10), protocol.None)
				code(t, "send", a.send("g", 7, 2, "orders", 0, 20), protocol.None)
				code(t, "send", a.send("g", 7, 2, "bills", 1, 21), protocol.None)
				equal(t, "in the transaction", c.txns.producers[7].shards[shardOf("g")], true)
				equal(t, "offset", a.fetchOffset("g", "orders", 0), 10)
				equal(t, "stable offset", a.stableOffset("g", "orders", 0), unstable)
				equal(t, "stable offset", a.stableOffset("g", "bills", 1), unstable)
				equal(t, "stable offset of another partition", a.stableOffset("g", "orders", 1), -1)
				equalSlices(t, "pending", c.pendingKeys(), coordinator.KeyPending(shardOf("g"), "g", 7))

				orders, bills := int64(10), int64(-1)
				if commit {
					orders, bills = 20, 21
				}
				for range 2 { // a marker may come again
					a.finish("g", 7, 2, commit)
					equal(t, "offset", a.stableOffset("g", "orders", 0), orders)
					equal(t, "offset", a.stableOffset("g", "bills", 1), bills)
					equalSlices(t, "pending", c.pendingKeys())
				}
				equal(t, "index", len(a.groupsOf(shardOf("g"), 7)), 0)
				a.stop()
				equal(t, "offset after takeover", c.start(2).stableOffset("g", "bills", 1), bills)
			})
		})
	}
}

// A marker is not answered, and the offsets not shown, before they are durable.
func TestMarkerWaitsForDurability(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		code(t, "send", a.send("g", 7, 0, "orders", 0, 20), protocol.None)
		a.ledger.hold()
		mark := func() error {
			return a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		}
		first, second := later(mark), later(mark)
		pending(t, first, "marker")
		pending(t, second, "the same marker")
		equal(t, "writes", len(a.ledger.queue), 1)
		equal(t, "stable offset", a.stableOffset("g", "orders", 0), unstable)
		equal(t, "offset", a.fetchOffset("g", "orders", 0), -1)
		code(t, "send meanwhile", a.send("g", 7, 0, "orders", 0, 21), protocol.CoordinatorLoadInProgress)
		a.ledger.release()
		equal(t, "marker", <-first, nil)
		equal(t, "marker", <-second, nil)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
	})
}

func TestWhoMaySendOffsets(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		static := joinRequest("g", "")
		static.InstanceID = new("instance")
		joined := a.JoinGroup(t.Context(), client, static)
		code(t, "join", joined.ErrorCode, protocol.None)
		id, generation := joined.MemberID, joined.Generation
		for i, test := range []struct {
			name, group, member, instance string
			generation                    int32
			version                       int16
			want                          protocol.ErrorCode
		}{
			{name: "a member", group: "g", member: id, instance: "instance", generation: generation, want: protocol.None},
			{name: "of an old generation", group: "g", member: id, generation: generation - 1, want: protocol.IllegalGeneration},
			{name: "a stranger", group: "g", member: "stranger", generation: generation, want: protocol.UnknownMemberID},
			{name: "a fenced instance", group: "g", member: "before", instance: "instance", generation: generation, want: protocol.FencedInstanceID},
			{name: "an old client", group: "g", generation: -1, version: 2, want: protocol.None},
			{name: "nobody to no group", group: "none", generation: -1, want: protocol.None},
			{name: "a member of no group", group: "nowhere", member: "m", generation: 1, want: protocol.IllegalGeneration},
			{name: "to a group without a name", group: "", generation: -1, want: protocol.InvalidGroupID},
		} {
			producerID := protocol.ProducerID(i)
			c.txns.set(producerID, producer{open: true}, shardOf(test.group))
			r := sendRequest(test.group, producerID, 0, "orders", map[int32]int64{0: 1})
			r.MemberID, r.Generation = test.member, test.generation
			if test.instance != "" {
				r.InstanceID = &test.instance
			}
			if test.version != 0 {
				r.Version = test.version
			}
			code(t, test.name, a.sendCode(r), test.want)
			wrote := 0
			for _, key := range c.pendingKeys() {
				if strings.HasSuffix(key, fmt.Sprintf("/%d", producerID)) {
					wrote++
				}
			}
			equal(t, test.name+": was written", wrote == 1, test.want == protocol.None)
		}
		equalSlices(t, "listed", a.list("Empty"), "none//Empty")
	})
}

func TestRefusedTransactions(t *testing.T) {
	unreachable := fmt.Errorf("dial: %w", context.DeadlineExceeded)
	for _, test := range []struct {
		answer  error
		version int16
		want    protocol.ErrorCode
	}{
		{protocol.InvalidProducerEpoch.Err(), 5, protocol.InvalidProducerEpoch},
		{protocol.ProducerFenced.Err(), 5, protocol.InvalidProducerEpoch},
		{protocol.InvalidProducerIDMapping.Err(), 3, protocol.InvalidProducerIDMapping},
		{protocol.InvalidTxnState.Err(), 5, protocol.InvalidTxnState},
		{protocol.TransactionAbortable.Err(), 4, protocol.TransactionAbortable},
		{protocol.TransactionAbortable.Err(), 3, protocol.InvalidTxnState},
		{protocol.ConcurrentTransactions.Err(), 5, protocol.ConcurrentTransactions},
		{protocol.ConcurrentTransactions.Err(), 4, protocol.CoordinatorLoadInProgress},
		{protocol.CoordinatorLoadInProgress.Err(), 2, protocol.CoordinatorLoadInProgress},
		{protocol.CoordinatorLoadInProgress.Err(), 1, protocol.CoordinatorNotAvailable},
		{protocol.NotCoordinator.Err(), 3, protocol.CoordinatorLoadInProgress},
		{protocol.NetworkException.Err(), 3, protocol.CoordinatorLoadInProgress},
		{unreachable, 5, protocol.CoordinatorLoadInProgress},
	} {
		inBubble(t, func(t *testing.T, c *cluster) {
			a := c.start(1)
			c.txns.set(7, producer{})
			code(t, "send", a.send("before", 7, 0, "orders", 0, 1), protocol.None)
			kept := len(c.pendingKeys())
			c.txns.answer(test.answer)
			r := sendRequest("g", 7, 0, "orders", map[int32]int64{0: 1})
			r.Version = test.version
			code(t, fmt.Sprint(test), a.sendCode(r), test.want)
			equal(t, "pending", len(c.pendingKeys()), kept)
			equal(t, "offset", a.stableOffset("g", "orders", 0), -1)
			// What the transaction had before stays.
			code(t, fmt.Sprint(test), a.send("before", 7, 0, "orders", 1, 2), protocol.CodeOf(txnCode(5, refusal(test.answer)).Err()))
			equal(t, "offset", a.stableOffset("before", "orders", 1), -1)
			equal(t, "offset", a.stableOffset("before", "orders", 0), unstable)
			a.finish("before", 7, 0, true)
			equal(t, "offset", a.stableOffset("before", "orders", 0), 1)
			equal(t, "offset", a.stableOffset("before", "orders", 1), -1)
		})
	}
}

func TestRefusedPartitionsOfTransactions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.topics["wide"] = coordinator.Topic{Name: "wide", Partitions: 100_000}
		a := c.start(1)
		c.txns.set(7, producer{})
		code(t, "unknown topic", a.send("g", 7, 0, "none", 0, 1), protocol.UnknownTopicOrPartition)
		code(t, "unknown partition", a.send("g", 7, 0, "bills", 3, 1), protocol.UnknownTopicOrPartition)
		r := sendRequest("g", 7, 0, "orders", map[int32]int64{0: 1})
		r.Topics[0].Partitions[0].Metadata = new(strings.Repeat("x", 4097))
		code(t, "metadata too large", a.sendCode(r), protocol.OffsetMetadataTooLarge)
		equal(t, "questions", c.txns.questions(), 0)
		r.Topics = append(r.Topics, sendRequest("g", 7, 0, "bills", map[int32]int64{0: 1}).Topics...)
		resp := a.TxnOffsetCommit(t.Context(), r)
		code(t, "metadata too large", resp.Topics[0].Partitions[0].ErrorCode, protocol.OffsetMetadataTooLarge)
		code(t, "another partition", resp.Topics[1].Partitions[0].ErrorCode, protocol.None)
		everything := map[int32]int64{}
		for p := range int32(100_000) {
			everything[p] = 1
		}
		code(t, "too many", a.sendCode(sendRequest("g", 7, 0, "wide", everything)), protocol.InvalidCommitOffsetSize)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "bills", 0), 1)
		equal(t, "offset", a.stableOffset("g", "wide", 0), -1)
	})
}

// TestMarkers: which markers commit, delete, or leave alone what a producer sent with epoch 5.
func TestMarkers(t *testing.T) {
	for _, test := range []struct {
		epoch          protocol.ProducerEpoch
		strict, commit bool
		want           int64
	}{
		{epoch: 6, strict: true, commit: true, want: 20},
		{epoch: 6, strict: true, commit: false, want: 10},
		{epoch: 5, strict: true, commit: true, want: unstable}, // of the transaction before
		{epoch: 5, strict: true, commit: false, want: unstable},
		{epoch: 7, strict: true, commit: true, want: 10}, // of the transaction after: these offsets were left behind
		{epoch: 7, strict: true, commit: false, want: 10},
		{epoch: 5, commit: true, want: 20},
		{epoch: 5, commit: false, want: 10},
		{epoch: 4, commit: true, want: unstable},
		{epoch: 4, commit: false, want: unstable},
		{epoch: 6, commit: true, want: 10},
		{epoch: 6, commit: false, want: 10}, // the producer was fenced
	} {
		inBubble(t, func(t *testing.T, c *cluster) {
			a := c.start(1)
			c.txns.set(7, producer{epoch: 5})
			code(t, "commit", a.commit("g", nobody, "orders", 0, 10), protocol.None)
			code(t, "send", a.send("g", 7, 5, "orders", 0, 20), protocol.None)
			for _, other := range []protocol.ProducerID{8, 7} {
				if err := a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: other, Epoch: test.epoch, Strict: test.strict, Commit: test.commit}); err != nil {
					t.Fatal(err)
				}
				want := test.want
				if other == 8 {
					want = unstable
				}
				equal(t, fmt.Sprintf("%+v, marker of %d", test, other), a.stableOffset("g", "orders", 0), want)
			}
			equal(t, "something is pending", len(c.pendingKeys()) > 0, test.want == unstable)
		})
	}
}

func TestEpochsOfSenders(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{epoch: 5})
		code(t, "send", a.send("g", 7, 5, "orders", 0, 20), protocol.None)
		asked := c.txns.questions()
		code(t, "lower epoch", a.send("g", 7, 4, "orders", 0, 19), protocol.InvalidProducerEpoch)
		equal(t, "questions", c.txns.questions(), asked)

		// A copy that was late comes when its transaction is decided: nothing of it is ever written, though its agent may die.
		c.txns.set(7, producer{epoch: 6, deciding: true})
		writes := a.ledger.writes
		code(t, "late copy", a.send("g", 7, 5, "orders", 0, 18), protocol.InvalidProducerEpoch)
		equal(t, "writes", a.ledger.writes, writes)

		// The transaction is decided, and its marker on the way, when the next one sends.
		c.txns.set(7, producer{epoch: 6, deciding: true})
		code(t, "next transaction", a.send("g", 7, 6, "bills", 0, 30), protocol.ConcurrentTransactions)
		equal(t, "offset", a.stableOffset("g", "orders", 0), unstable)
		equal(t, "offset", a.stableOffset("g", "bills", 0), -1)
		a.finish("g", 7, 5, true)
		c.txns.set(7, producer{epoch: 6})
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
		code(t, "next transaction", a.send("g", 7, 6, "bills", 0, 30), protocol.None)
		a.finish("g", 7, 6, true)
		equal(t, "offset", a.stableOffset("g", "bills", 0), 30)

		// What a transaction left behind goes when the coordinator consents to a later one.
		code(t, "send", a.send("g", 7, 6, "orders", 0, 50), protocol.None)
		c.txns.set(7, producer{epoch: 8})
		code(t, "send", a.send("g", 7, 8, "bills", 0, 60), protocol.None)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
		a.finish("g", 7, 8, true)
		equal(t, "offset", a.stableOffset("g", "bills", 0), 60)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
	})
}

// TestOrderOfCommits: of several commits of a partition that came last counts, whichever transaction ends first.
func TestOrderOfCommits(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		c.txns.set(8, producer{})
		code(t, "send", a.send("g", 7, 0, "orders", 0, 10), protocol.None)
		code(t, "send", a.send("g", 8, 0, "orders", 0, 20), protocol.None)
		code(t, "send", a.send("g", 7, 0, "orders", 1, 11), protocol.None)
		code(t, "commit", a.commit("g", nobody, "orders", 1, 30), protocol.None)
		a.finish("g", 8, 0, true)
		equal(t, "offset", a.fetchOffset("g", "orders", 0), 20)
		equal(t, "offset", a.stableOffset("g", "orders", 0), unstable)
		a.finish("g", 7, 0, true)
		equal(t, "offset", a.stableOffset("g", "orders", 0), 20)
		equal(t, "offset", a.stableOffset("g", "orders", 1), 30)
	})
}

// The clock of the next agent may be behind.
func TestOrderOfCommitsByAnotherClock(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		code(t, "commit", a.commit("g", nobody, "orders", 0, 10), protocol.None)
		a.stop()
		c.skew = -time.Hour
		b := c.start(2)
		code(t, "send", b.send("g", 7, 0, "orders", 0, 20), protocol.None)
		b.finish("g", 7, 0, true)
		equal(t, "offset", b.stableOffset("g", "orders", 0), 20)
	})
}

// A later commit that fails must not keep a transaction's offset from being committed.
func TestMarkerBehindACommitThatFails(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		c.txns.set(7, producer{})
		code(t, "send", a.send("g", 7, 0, "orders", 0, 10), protocol.None)
		a.ledger.hold()
		commit := later(func() int16 { return a.commit("g", nobody, "orders", 0, 30) })
		pending(t, commit, "commit")
		mark := later(func() error {
			return a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		})
		pending(t, mark, "marker")
		a.ledger.fail(coordinator.ErrNoSpace)
		a.ledger.release()
		code(t, "commit", <-commit, protocol.CoordinatorNotAvailable)
		equal(t, "marker", <-mark, nil)
		if got := a.stableOffset("g", "orders", 0); got < 10 {
			t.Fatalf("offset %d is from before the transaction", got)
		}
	})
}

func TestLargeTransaction(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.MetadataBytesMax = 200_000 })
		c.txns.set(7, producer{})
		r := sendRequest("g", 7, 0, "orders", nil)
		r.Topics = nil
		for i := range 500 {
			name := fmt.Sprintf("t%d", i)
			c.topics[name] = coordinator.Topic{Name: name, Partitions: 1}
			r.Topics = append(r.Topics, sendRequest("g", 7, 0, name, map[int32]int64{0: 5}).Topics...)
		}
		for _, topic := range a.TxnOffsetCommit(t.Context(), r).Topics {
			code(t, "send", topic.Partitions[0].ErrorCode, protocol.None)
		}
		// It takes several writes. The second fails, and then what was pending is still there.
		a.ledger.fail(nil, coordinator.ErrNoSpace)
		err := a.EndTransaction(t.Context(), shardOf("g"), Marker{Producer: 7, Epoch: 1, Strict: true, Commit: true})
		equal(t, "marker", protocol.CodeOf(err), protocol.CoordinatorNotAvailable)
		equal(t, "pending", len(c.pendingKeys()), 1)
		equal(t, "offset", a.stableOffset("g", "t0", 0), unstable)
		a.stop()
		b := c.start(2, func(cfg *Config) { cfg.MetadataBytesMax = 200_000 })
		b.finish("g", 7, 0, true)
		for i := range 500 {
			equal(t, "offset", b.stableOffset("g", fmt.Sprintf("t%d", i), 0), 5)
		}

		// A block that does not fit with its metadata must be committed all the same.
		large := strings.Repeat("x", 200_000)
		for p := range int32(2) {
			r := commitRequest("g", nobody, "orders", map[int32]int64{p: 1})
			r.Topics[0].Partitions[0].Metadata = &large
			code(t, "commit", b.OffsetCommit(t.Context(), r).Topics[0].Partitions[0].ErrorCode, protocol.None)
		}
		c.txns.set(8, producer{})
		r = sendRequest("g", 8, 0, "orders", map[int32]int64{2: 9})
		r.Topics[0].Partitions[0].Metadata = &large
		code(t, "send", b.sendCode(r), protocol.None)
		b.finish("g", 8, 0, true)
		equal(t, "offset", b.stableOffset("g", "orders", 2), 9)
		equal(t, "offset", b.stableOffset("g", "orders", 0), 1)
	})
}

func TestTooManyTransactions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.TransactionsMax = 2 })
		for id := range protocol.ProducerID(3) {
			c.txns.set(id, producer{})
			want := protocol.None
			if id == 2 {
				want = protocol.CoordinatorNotAvailable
			}
			code(t, "send", a.send("g", id, 0, "orders", int32(id), 1), want)
		}
		a.finish("g", 0, 0, false)
		code(t, "send", a.send("g", 2, 0, "orders", 2, 1), protocol.None)
	})
}
