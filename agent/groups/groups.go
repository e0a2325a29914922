// Package groups coordinates the consumer groups of the shards that this agent leads: it runs the machines of
// coordinator/group, keeps what they persist and the committed offsets in the coordinator, and answers Kafka's group APIs.
//
// # Model
//
// A group that somebody uses has an owner: one goroutine that holds the group's machine and its committed offsets,
// both loaded from the coordinator at the first request, and that carries out one task after another from a bounded
// mailbox. A group without members that nobody asks for is forgotten again after a while; what is durable stays.
//
//	API methods --task--> owner --event--> machine --effects--> owner --writes--> ledger --> coordinator
//	     ^                  |                                     ^                  |
//	     +----- answer -----+                                     +------ done ------+
//
// An owner never waits for a write: OffsetCommit and SyncGroup are answered when their write is durable, and
// meanwhile the owner goes on, so that many commits are under way at once. OffsetFetch sees durable offsets only.
//
// An owner is bound to the epoch in which the agent led the group's shard when it loaded. In another epoch it ends,
// and its requests are answered NOT_COORDINATOR.
//
// Besides, there is an index of all groups in the led shards, live or not, for ListGroups and for the upkeep that
// expires offsets ([Coordinator.Run]).
//
// # Transactions
//
// Offsets that a producer sends in a transaction (TxnOffsetCommit) are pending until its end: they stand under a key of their own,
// and take effect in the one write that deletes it, when the marker comes ([Coordinator.EndTransaction]). A shard stands in the
// transaction's set for all its groups; an index tells which of them have something of whom. Of several commits of a
// partition, in transactions or not, the one that came last counts, whichever ended first.
//
//	TxnOffsetCommit: check the member -> write what is pending -> Verify -> Prove -> answer
//	                                                               \-> refused: take it out again -> answer
//
// Written first, so that no marker can come between the transaction's knowing of the shard and the offsets. What is not verified
// when the marker comes is not committed. Where something is pending already the coordinator is asked before that, too, so that a copy of a
// request that was late changes nothing. Who has been told that offsets are in the transaction was told so by an agent that
// led the group after the transaction knew.
//
// An agent may die between the write and the answer. Then nobody knows whether the transaction knows of the shard, and if it
// does not, no marker will ever come, and the partitions would be unstable for ever. So every transaction that is loaded, or that a write has failed
// for, is in doubt: its coordinator is asked, at once and then every VerifyInterval, until it says that the transaction is open and has the
// shard, so that a marker will come; or that it is over, and then what is pending is deleted. Over means that no commit can be on its
// way: the epoch is the coordinator's own and no transaction with the shard is open, or the epoch is stale and a question with the next one, which the
// marker of a commit would carry, does not find a decision either. Any other answer leaves the doubt. A marker commits only what
// has exactly its transaction's epoch, and deletes what earlier ones left behind.
//
// One gap is left: a request that comes between its transaction's decision and the marker, to a group that has nothing pending of it, and whose
// agent dies before it is refused, is committed with the rest. Only a client that did not wait for the answer before it committed can send one.
//
// Behaviour and error codes are those of Kafka 4's GroupCoordinatorService and OffsetMetadataManager.
package groups

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// Config holds what an operator may set, and the limits. [DefaultConfig] has the defaults; all must be positive but for
// InitialDelay.
type Config struct {
	Shards             uint32        // of the cluster
	InitialDelay       time.Duration // group.initial.rebalance.delay.ms
	SessionTimeoutMin  time.Duration // group.min.session.timeout.ms
	SessionTimeoutMax  time.Duration // group.max.session.timeout.ms
	OffsetsRetention   time.Duration // offsets.retention.minutes
	UpkeepInterval     time.Duration // offsets.retention.check.interval.ms
	IdleTimeout        time.Duration // after which a group without members that nobody asks for is forgotten
	MembersMax         int           // per group (group.max.size)
	PayloadBytesMax    int           // of all subscriptions, and of all assignments, of a group
	MetadataBytesMax   int           // of one committed offset (offset.metadata.max.bytes)
	GroupsMax          int           // live at once
	MailboxMax         int           // tasks that wait for one owner; then its clients wait
	WritesInFlightMax  int           // of one owner; then its mailbox waits
	LoadTimeout        time.Duration // of reading a group from the coordinator
	TopicDeletionsLive int           // groups that a topic's deletion is carried out in at the same time
	TransactionsMax    int           // open in one group
	MarkersLive        int           // groups that the end of a transaction is carried out in at the same time
	VerifyTimeout      time.Duration // of asking a transaction's coordinator
	VerifyInterval     time.Duration // after which it is asked again about a transaction in doubt
}

// DefaultConfig returns Kafka's defaults where Kafka has the option, else Varve's.
func DefaultConfig(shards uint32) Config {
	return Config{
		Shards:             shards,
		InitialDelay:       3 * time.Second,
		SessionTimeoutMin:  6 * time.Second,
		SessionTimeoutMax:  30 * time.Minute,
		OffsetsRetention:   7 * 24 * time.Hour,
		UpkeepInterval:     10 * time.Minute,
		IdleTimeout:        time.Minute,
		MembersMax:         5000,
		PayloadBytesMax:    32 << 20,
		MetadataBytesMax:   4096,
		GroupsMax:          50_000,
		MailboxMax:         64,
		WritesInFlightMax:  64,
		LoadTimeout:        10 * time.Second,
		TopicDeletionsLive: 8,
		TransactionsMax:    5000,
		MarkersLive:        8,
		VerifyTimeout:      5 * time.Second,
		VerifyInterval:     5 * time.Second,
	}
}

// Ledger writes to the coordinator under the guards of shards.
type Ledger interface {
	// Write applies ops, at most [coordinator.TxnOpsMax]/2 with each key once, all or none, after those of earlier calls; of
	// several on one key the latest wins. It calls done once, from another goroutine: with nil when they are durable,
	// with an error that wraps [coordinator.ErrFenced] if the shard is another agent's now, or with another error.
	Write(shard coordinator.ShardID, ops []coordinator.Op, done func(error))
}

// Topics knows the cluster's topics. [coordinator.View] implements it.
type Topics interface {
	Topic(name string) (coordinator.Topic, int64, bool)
}

// Deps are what a Coordinator works with. Prove, Verify, Now, NewID and Log are required.
type Deps struct {
	KV     coordinator.KV // read only
	Ledger Ledger
	// Leads returns the epoch in which this agent leads the shard now, and false if it does not. It must neither
	// block nor call the Coordinator.
	Leads func(coordinator.ShardID) (epoch int32, ok bool)
	// Prove returns once it is certain that this agent led what it leads after the call began, or with an error.
	Prove func(context.Context) error
	// Verify asks the coordinator of a transaction whether it is open and has the shard, or with Add makes it so. It returns nil or
	// a [*protocol.Error]; any other error is that of a coordinator that cannot be reached. As long as markers of a decision are on
	// their way, the answer to a question with the epoch that these markers carry must be CONCURRENT_TRANSACTIONS, and consent to
	// Add must wait. It is called from many goroutines.
	Verify func(context.Context, Transaction) error
	// CoordinatorEpoch is the newest epoch known here in which a transactional id has had a coordinator. One that has consented to a transaction is known.
	CoordinatorEpoch func(transactionalID string) int32
	Topics           Topics
	Now              func() time.Time
	NewID            func() string // a new, random UUID, for ids of members
	Log              *slog.Logger
	Metrics          prometheus.Registerer
}

// Client is who sends a request, as DescribeGroups shows it.
type Client struct {
	ID   string // client.id
	Host string // address, as Kafka prints it: "/192.0.2.1"
}

// Coordinator answers the group APIs. Its methods may be called concurrently; they block until there is an answer or
// ctx ends. Requests are not kept.
type Coordinator struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	base    context.Context // of all owners
	stop    context.CancelFunc

	mu     sync.Mutex
	owners map[string]*owner
	index  map[string]entry
	// indexed holds the epoch for which the index of a shard is complete.
	indexed map[coordinator.ShardID]int32
	// producers tells which groups of a shard have pending offsets of whom.
	producers map[coordinator.ShardID]*producers
	// deleting counts the deletions of a topic's offsets that are under way.
	deleting map[string]int
	closed   bool

	scan   chan struct{}  // has capacity 1: who completes an index
	ending sync.WaitGroup // owners, and what they do aside
}

// New returns a coordinator without live groups. [Coordinator.Run] must run beside it.
func New(cfg Config, deps Deps) *Coordinator {
	base, stop := context.WithCancel(context.Background())
	return &Coordinator{
		base: base, stop: stop,
		cfg: cfg, deps: deps, log: deps.Log, metrics: newMetrics(deps.Metrics),
		owners: map[string]*owner{}, index: map[string]entry{}, indexed: map[coordinator.ShardID]int32{}, deleting: map[string]int{},
		producers: map[coordinator.ShardID]*producers{}, scan: make(chan struct{}, 1),
	}
}

// Run does the upkeep until ctx ends, then ends all groups and returns once they have ended. Requests that still wait,
// and later ones, are answered NOT_COORDINATOR.
func (c *Coordinator) Run(ctx context.Context) {
	c.upkeep(ctx)
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end(func(*owner) bool { return true }, protocol.NotCoordinator)
	c.ending.Wait()
	c.stop()
}

// Resign ends the groups of a shard that this agent does not lead any more; requests that wait are answered
// NOT_COORDINATOR. It returns when the groups' owners have ended. It must be called before the agent leads the
// shard again.
func (c *Coordinator) Resign(shard coordinator.ShardID) {
	ended := c.end(func(o *owner) bool { return o.shard == shard }, protocol.NotCoordinator)
	c.mu.Lock()
	delete(c.indexed, shard)
	delete(c.producers, shard)
	for name, e := range c.index {
		if e.shard == shard {
			delete(c.index, name)
		}
	}
	c.mu.Unlock()
	for _, o := range ended {
		<-o.ended
	}
}

// end tells owners to end and returns them.
func (c *Coordinator) end(which func(*owner) bool, code protocol.ErrorCode) []*owner {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []*owner
	for _, o := range c.owners {
		if which(o) {
			o.tellEnd(code)
			found = append(found, o)
		}
	}
	return found
}

// groupNameBytesMax bounds the names of groups, which become keys of the coordinator.
const groupNameBytesMax = 1024

// acquire returns the group's owner, started if need be, which does not end by itself until it is released.
func (c *Coordinator) acquire(name string) (*owner, protocol.ErrorCode) {
	if len(name) > groupNameBytesMax {
		return nil, protocol.InvalidGroupID
	}
	shard := coordinator.ShardOfName(name, c.cfg.Shards)
	epoch, ok := c.deps.Leads(shard)
	if !ok {
		return nil, protocol.NotCoordinator
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.owners[name]
	switch {
	case c.closed:
		return nil, protocol.NotCoordinator
	case o != nil && o.epoch != epoch: // Resign is on its way
		o.tellEnd(protocol.NotCoordinator)
		return nil, protocol.CoordinatorLoadInProgress
	case o == nil && len(c.owners) >= c.cfg.GroupsMax:
		return nil, protocol.CoordinatorNotAvailable
	case o == nil:
		o = newOwner(c, name, shard, epoch)
		c.owners[name] = o
		c.ending.Add(1)
		go o.run()
	}
	o.refs++
	return o, protocol.None
}

func (c *Coordinator) release(o *owner) {
	c.mu.Lock()
	o.refs--
	unused := o.refs == 0
	c.mu.Unlock()
	if unused {
		o.wake() // it may have waited for this to be forgotten
	}
}

// call has the group's owner carry out a task and waits for what it passes to done, which it must call at most once,
// at once or later. The code is that of a task that was not carried out.
func call[T any](ctx context.Context, c *Coordinator, name string, task func(o *owner, done func(T))) (T, protocol.ErrorCode) {
	var none T
	o, code := c.acquire(name)
	if code != protocol.None {
		return none, code
	}
	defer c.release(o)
	answer := make(chan T, 1)
	select {
	case o.mailbox <- func() { task(o, func(v T) { answer <- v }) }:
	case <-o.ended:
		return none, o.endCode()
	case <-ctx.Done():
		return none, protocol.CoordinatorNotAvailable
	}
	select {
	case v := <-answer:
		return v, protocol.None
	case <-o.ended:
	case <-ctx.Done():
		return none, protocol.CoordinatorNotAvailable
	}
	select {
	case v := <-answer: // given before it ended
		return v, protocol.None
	default:
		return none, o.endCode()
	}
}

// ask passes a request to the group's machine and waits for the answer.
func ask[R group.Result](ctx context.Context, c *Coordinator, name string, event func(group.RequestID) group.Event) (R, protocol.ErrorCode) {
	result, code := call(ctx, c, name, func(o *owner, done func(group.Result)) { o.ask(event, done) })
	if code != protocol.None {
		var none R
		return none, code
	}
	return result.(R), protocol.None
}
