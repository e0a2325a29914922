package groups

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// Deliberate breakages of the shell, and what catches each (tried by hand):
//
//	fetch offsets that are not durable yet                 TestCommitsPipeline
//	build a commit upon durable offsets only               TestCommitsPipeline, TestFailedCommits
//	keep what a failed commit changed                      TestFailedCommits
//	answer a commit before it is durable                   TestFailedCommits, TestResign
//	write in another epoch than the owner's                TestNothingIsWrittenAfterTheLeadershipIsLost
//	use an owner of another epoch                          TestAnotherEpochLoadsAnew
//	forget an owner with writes under way                  TestGroupWithWritesUnderWayIsKept
//	go on after being fenced                               TestFencedOwnerEnds
//	go on after a deletion that failed                     TestDeleteFails
//	no bound on writes under way                           TestWritesInFlightAreBounded
//	expire from the commit, not from when the group emptied  TestExpiry
//	expire offsets of subscribed topics                    TestExpiryOfTopicsThatAMemberLeftBehind
//	no record for a group that only has offsets            TestTopicDeleted, TestExpiry
//	keep a lost shard's groups in the index                TestResign
//
//	apply offsets before the marker                        TestTransaction, TestWalk
//	apply those that are not verified                      TestMarkerOvertakesARequest
//	do not compare a marker's epoch                        TestMarkers
//	take a lower epoch                                     TestEpochsOfSenders
//	replace what is pending before its marker              TestEpochsOfSenders, TestWalk
//	do not load what is pending                            TestAgentDiesWhileItVerifies, TestWalk
//	never UNSTABLE_OFFSET_COMMIT                           TestTransaction, TestWalk
//	leave what was refused                                 TestRefusedTransactions
//	answer without a proof of the leadership               TestTransactionsAtADeposedAgent
//	do not list what is pending, for markers               TestMarkerAfterTakeover
//	never ask about transactions in doubt                  TestAgentDiesWhileItVerifies, TestUpkeepFindsWhatWasLeftPending
//	a stale epoch is over, without a second question       TestAgentDiesWhileItVerifies, TestWalk
//	no answer means that a transaction is over             TestAgentDiesWhileItVerifies, TestWalk
//	heed an answer that something has happened since       TestSenderComesAgain
//	the last transaction that ends wins                    TestOrderOfCommits, TestWalk
//	compare commits by clocks alone                        TestOrderOfCommits, TestOrderOfCommitsByAnotherClock
//	touch what is pending before the coordinator consents  TestEpochsOfSenders
//	expire, or forget, under a transaction                 TestTransactionsKeepOffsetsAndGroups
//	deletions leave what is pending                        TestDeletionsTakeOutPendingOffsets
//	delete what is pending before all of it is applied     TestLargeTransaction

// cluster is a store with topics, on which agents coordinate groups one after another. It lives in a synctest bubble.
type cluster struct {
	t      *testing.T
	store  *mem.Store
	topics map[string]coordinator.Topic
	txns   *transactions
	skew   time.Duration // of the clocks of agents that are started
}

// agent is one coordinator with its ledger.
type agent struct {
	*Coordinator
	t      *testing.T
	ledger *fakeLedger
	stop   func()      // ends it and returns when it has ended
	sealed atomic.Bool // its WAL log was

	mu     sync.Mutex
	epochs map[coordinator.ShardID]int32 // of the shards that it leads
}

const testShards = 4

// inBubble runs a test in a synctest bubble with a cluster.
func inBubble(t *testing.T, test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		topic := func(name string, partitions int32) coordinator.Topic {
			return coordinator.Topic{Name: name, Partitions: partitions}
		}
		test(t, &cluster{
			t:      t,
			store:  mem.New(mem.Config{ClusterID: 1, Start: time.Now()}),
			topics: map[string]coordinator.Topic{"orders": topic("orders", 200), "bills": topic("bills", 3)},
			txns:   &transactions{producers: map[protocol.ProducerID]*producer{}},
		})
	})
}

// Topic implements Topics.
func (c *cluster) Topic(name string) (coordinator.Topic, int64, bool) {
	t, ok := c.topics[name]
	return t, 1, ok
}

// start starts an agent that leads all shards in an epoch.
func (c *cluster) start(epoch int32, adjust ...func(*Config)) *agent {
	c.t.Helper()
	cfg := DefaultConfig(testShards)
	for _, f := range adjust {
		f(&cfg)
	}
	a := &agent{t: c.t, ledger: newFakeLedger(c.store), epochs: map[coordinator.ShardID]int32{}}
	for s := range coordinator.ShardID(testShards) {
		a.epochs[s] = epoch
	}
	ids, skew := 0, c.skew
	a.Coordinator = New(cfg, Deps{
		KV: c.store, Ledger: a.ledger, Leads: a.leads, Prove: a.prove, Verify: c.txns.verify, CoordinatorEpoch: func(string) int32 { return 0 }, Topics: c,
		Now:     func() time.Time { return time.Now().Add(skew) },
		NewID:   func() string { a.mu.Lock(); defer a.mu.Unlock(); ids++; return fmt.Sprintf("%d-%d", epoch, ids) },
		Log:     slog.New(slog.DiscardHandler),
		Metrics: prometheus.NewPedanticRegistry(),
	})
	ctx, cancel := context.WithCancel(c.t.Context())
	var running sync.WaitGroup
	running.Go(func() { a.Run(ctx) })
	running.Go(func() { a.ledger.run(ctx) })
	a.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	c.t.Cleanup(a.stop)
	return a
}

func (a *agent) leads(s coordinator.ShardID) (int32, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	epoch, ok := a.epochs[s]
	return epoch, ok
}

// prove is the proof of an agent whose log has its quorum, unless it is sealed.
func (a *agent) prove(context.Context) error {
	if a.sealed.Load() {
		return coordinator.ErrFenced
	}
	return nil
}

// lose takes all shards from the agent, without telling it.
func (a *agent) lose() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.epochs)
}

// fakeLedger writes to the store at once unless it is held up, in order.
type fakeLedger struct {
	store *mem.Store
	wake  chan struct{}

	mu     sync.Mutex
	queue  []fakeWrite
	held   bool
	errs   []error // outcomes of the next writes, which are not applied; nil applies one
	writes int
}

type fakeWrite struct {
	ops  []coordinator.Op
	done func(error)
}

func newFakeLedger(store *mem.Store) *fakeLedger {
	return &fakeLedger{store: store, wake: make(chan struct{}, 1)}
}

func (l *fakeLedger) Write(_ coordinator.ShardID, ops []coordinator.Op, done func(error)) {
	l.mu.Lock()
	l.queue = append(l.queue, fakeWrite{ops, done})
	l.writes++
	l.mu.Unlock()
	l.signal()
}

func (l *fakeLedger) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hold lets writes wait until release.
func (l *fakeLedger) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = true
}

func (l *fakeLedger) release() {
	l.mu.Lock()
	l.held = false
	l.mu.Unlock()
	l.signal()
}

func (l *fakeLedger) fail(errs ...error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = errs
}

func (l *fakeLedger) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for {
			l.mu.Lock()
			if l.held || len(l.queue) == 0 {
				l.mu.Unlock()
				break
			}
			w := l.queue[0]
			l.queue = l.queue[1:]
			var err error
			if len(l.errs) > 0 {
				err, l.errs = l.errs[0], l.errs[1:]
			}
			l.mu.Unlock()
			if len(w.ops) > coordinator.TxnOpsMax/2 {
				err = coordinator.ErrLimit
			}
			if err == nil {
				_, err = l.store.Txn(ctx, nil, w.ops)
			}
			w.done(err)
		}
	}
}

var client = Client{ID: "client", Host: "/192.0.2.1"}

// later runs f and returns its result from a channel, once there is one.
func later[T any](f func() T) <-chan T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return c
}

func pending[T any](t *testing.T, c <-chan T, what string) {
	t.Helper()
	synctest.Wait()
	select {
	case v := <-c:
		t.Fatalf("%s: answered too early: %+v", what, v)
	default:
	}
}

func code(t *testing.T, what string, got int16, want protocol.ErrorCode) {
	t.Helper()
	if protocol.ErrorCode(got) != want {
		t.Fatalf("%s: %s, want %s", what, protocol.ErrorCode(got), want)
	}
}

func joinRequest(group, member string) *kmsg.JoinGroupRequest {
	r := kmsg.NewPtrJoinGroupRequest()
	r.Version, r.Group, r.MemberID, r.ProtocolType = 9, group, member, "consumer"
	r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = 10_000, 60_000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name, p.Metadata = "range", subscription("orders")
	r.Protocols = append(r.Protocols, p)
	return r
}

func subscription(topics ...string) []byte {
	return (&kmsg.ConsumerMemberMetadata{Version: 0, Topics: topics}).AppendTo(nil)
}

// member is a member of a generation.
type member struct {
	id         string
	generation int32
}

// form makes a stable group of n members and returns them, the leader first.
func (a *agent) form(group string, n int) []member {
	a.t.Helper()
	var joins []<-chan *kmsg.JoinGroupResponse
	for range n {
		first := a.JoinGroup(a.t.Context(), client, joinRequest(group, ""))
		code(a.t, "join without id", first.ErrorCode, protocol.MemberIDRequired)
		joins = append(joins, later(func() *kmsg.JoinGroupResponse {
			return a.JoinGroup(a.t.Context(), client, joinRequest(group, first.MemberID))
		}))
	}
	var members []member
	sync := kmsg.NewPtrSyncGroupRequest()
	sync.Version, sync.Group = 5, group
	for _, c := range joins {
		r := <-c
		code(a.t, "join", r.ErrorCode, protocol.None)
		m := member{r.MemberID, r.Generation}
		if r.LeaderID != r.MemberID {
			members = append(members, m)
			continue
		}
		members = slices.Insert(members, 0, m)
		for _, other := range r.Members {
			assignment := kmsg.NewSyncGroupRequestGroupAssignment()
			assignment.MemberID, assignment.MemberAssignment = other.MemberID, []byte("for "+other.MemberID)
			sync.GroupAssignment = append(sync.GroupAssignment, assignment)
		}
	}
	for i, m := range members {
		sync.MemberID, sync.Generation = m.id, m.generation
		r := a.SyncGroup(a.t.Context(), sync)
		code(a.t, "sync", r.ErrorCode, protocol.None)
		if got := string(r.MemberAssignment); got != "for "+m.id {
			a.t.Fatalf("member %d was assigned %q", i, got)
		}
		sync = &kmsg.SyncGroupRequest{Version: 5, Group: group}
	}
	return members
}

func (a *agent) heartbeat(group string, m member) int16 {
	r := kmsg.NewPtrHeartbeatRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 4, group, m.id, m.generation
	return a.Heartbeat(a.t.Context(), r).ErrorCode
}

func commitRequest(group string, m member, topic string, offsets map[int32]int64) *kmsg.OffsetCommitRequest {
	r := kmsg.NewPtrOffsetCommitRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 9, group, m.id, m.generation
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = topic
	for p, offset := range offsets {
		part := kmsg.NewOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset, part.Metadata = p, offset, new(fmt.Sprintf("at %d", offset))
		t.Partitions = append(t.Partitions, part)
	}
	r.Topics = append(r.Topics, t)
	return r
}

// nobody commits without being a member.
var nobody = member{generation: -1}

// commit commits one offset.
func (a *agent) commit(group string, m member, topic string, partition int32, offset int64) int16 {
	a.t.Helper()
	r := a.OffsetCommit(a.t.Context(), commitRequest(group, m, topic, map[int32]int64{partition: offset}))
	return r.Topics[0].Partitions[0].ErrorCode
}

// fetch returns one offset.
func (a *agent) fetchOffset(group, topic string, partition int32) int64 {
	a.t.Helper()
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Version, r.Group = 7, group
	t := kmsg.NewOffsetFetchRequestTopic()
	t.Topic, t.Partitions = topic, []int32{partition}
	r.Topics = append(r.Topics, t)
	resp := a.OffsetFetch(a.t.Context(), r)
	code(a.t, "fetch offset", resp.ErrorCode, protocol.None)
	return resp.Topics[0].Partitions[0].Offset
}

func (a *agent) leave(group string, members ...member) {
	a.t.Helper()
	r := kmsg.NewPtrLeaveGroupRequest()
	r.Version, r.Group = 5, group
	for _, m := range members {
		left := kmsg.NewLeaveGroupRequestMember()
		left.MemberID = m.id
		r.Members = append(r.Members, left)
	}
	resp := a.LeaveGroup(a.t.Context(), r)
	code(a.t, "leave", resp.ErrorCode, protocol.None)
	for _, m := range resp.Members {
		code(a.t, "leave of "+m.MemberID, m.ErrorCode, protocol.None)
	}
}

// list returns the groups that the agent lists, as "name/type/state".
func (a *agent) list(states ...string) []string {
	a.t.Helper()
	r := kmsg.NewPtrListGroupsRequest()
	r.Version, r.StatesFilter = 5, states
	resp := a.ListGroups(a.t.Context(), r)
	code(a.t, "list groups", resp.ErrorCode, protocol.None)
	var names []string
	for _, g := range resp.Groups {
		names = append(names, g.Group+"/"+g.ProtocolType+"/"+g.GroupState)
	}
	return names
}

func (a *agent) state(group string) string {
	a.t.Helper()
	r := kmsg.NewPtrDescribeGroupsRequest()
	r.Version, r.Groups = 5, []string{group}
	resp := a.DescribeGroups(a.t.Context(), r)
	code(a.t, "describe", resp.Groups[0].ErrorCode, protocol.None)
	return resp.Groups[0].State
}

// live returns how many groups are in memory.
func (a *agent) live() int {
	synctest.Wait()
	a.Coordinator.mu.Lock()
	defer a.Coordinator.mu.Unlock()
	return len(a.owners)
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func equalSlices[T comparable](t *testing.T, what string, got []T, want ...T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}
