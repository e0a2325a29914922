// Package txns coordinates the transactions of the transactional ids whose shards this agent leads: it runs the machines of coordinator/txn, keeps what
// they persist in the coordinator, sends markers to the leaders of partitions and groups, and answers Kafka's transaction APIs.
//
// # Model
//
//	API methods --event--> machine --effects--> ledger -> txns/<shard>/<id>
//	     ^                   ^  |                   |
//	     +---- answer -------|--+ <--- persisted ---+
//	                         |  +--> markers, by the agents that lead --> control batches, offsets of groups
//	                         +------ marked --------+
//
// Every id of a shard is in memory from when the agent leads the shard: what was decided must be marked, and what is open must end at its timeout, whether
// a client asks or not. A machine is stepped by whoever has an event for it, under the lock of its [transaction]; nothing waits under that lock.
//
// The flip of an id's record decides its transaction: markers go out once it is durable, and once the leaders of all partitions have them durably the machine may begin the next
// one. An agent that takes the shard over sends the markers of every decision that may not be marked everywhere, under its own epoch.
//
// An answer that writes nothing is given only once it is certain that the shard was led here when it was made: an agent that has lost it would let
// batches into a transaction that is over.
//
// The other side is here too: [Verifier] asks the coordinator of an id whether a producer's transaction includes a partition, for leaders of partitions and groups.
//
// Behaviour and error codes are those of Kafka 4's TransactionCoordinator; see coordinator/txn for what differs.
package txns

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// OffsetsTopic is the name that clients know the offsets of groups by. In a transaction's set its partitions are the shards of groups.
const OffsetsTopic = "__consumer_offsets"

// Config holds what an operator may set, and the limits. [DefaultConfig] has the defaults; all must be positive.
type Config struct {
	Shards        uint32        // of the cluster
	TimeoutMax    time.Duration // transaction.max.timeout.ms
	Expiration    time.Duration // transactional.id.expiration.ms
	PartitionsMax int           // of one transaction
	IDsMax        int           // in memory; a new one is refused beyond it
	WaitMax       time.Duration // that a request waits for what Kafka answers with CONCURRENT_TRANSACTIONS
	ParkedMax     int           // requests that wait for one id
}

// DefaultConfig returns Kafka's defaults where Kafka has the option, else Varve's.
func DefaultConfig(shards uint32) Config {
	return Config{
		Shards: shards, TimeoutMax: 15 * time.Minute, Expiration: 7 * 24 * time.Hour, PartitionsMax: 10_000, IDsMax: 100_000, WaitMax: 5 * time.Second, ParkedMax: 16,
	}
}

// Ledger writes to the coordinator under the guards of shards, as agent/ledger does.
type Ledger interface {
	Write(shard coordinator.ShardID, ops []coordinator.Op, done func(error))
}

// Deps is what a [Coordinator] works with.
type Deps struct {
	KV     coordinator.KV // read only
	Ledger Ledger
	View   *coordinator.View
	// Ask has an agent, this one or another, answer a request of Kafka's protocol.
	Ask func(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error)
	// NextID returns a producer id that nobody had before.
	NextID func(context.Context) (protocol.ProducerID, error)
	// Prove returns once it is certain that this agent led what it leads after the call began, or with an error.
	Prove   func(context.Context) error
	Now     func() time.Time
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Coordinator answers the transaction APIs. Its methods may be called concurrently; they block until there is an answer or ctx ends.
type Coordinator struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	markers *markers
	run     context.Context // ends with Run
	stop    context.CancelFunc

	mu     sync.Mutex
	shards map[coordinator.ShardID]*shard
	ids    int // in memory
}

// shard is what there is of one shard while this agent leads it in one epoch.
type shard struct {
	id     coordinator.ShardID
	epoch  int32
	led    context.Context // ends when the shard is not led any more
	resign context.CancelFunc
	loaded chan struct{} // closed when txns is complete
	txns   map[string]*transaction
	// unreadable are keys of records that this build cannot read.
	unreadable map[string]bool
}

// New returns a coordinator of no shard. [Coordinator.Run] must run beside it.
func New(cfg Config, deps Deps) *Coordinator {
	c := &Coordinator{cfg: cfg, deps: deps, shards: make(map[coordinator.ShardID]*shard)}
	c.run, c.stop = context.WithCancel(context.Background())
	c.markers = newMarkers(c.run, deps)
	c.metrics = newMetrics(c)
	return c
}

// upkeepPause is how often ids are looked for that nobody has used for their expiration.
const upkeepPause = time.Hour

// Run does the upkeep until ctx ends, and then resigns all shards.
func (c *Coordinator) Run(ctx context.Context) error {
	defer c.stop()
	defer func() {
		for _, s := range c.led() {
			c.Resign(s.id)
		}
	}()
	return retry.Every(ctx, upkeepPause, func() error {
		c.expire()
		return nil
	})
}

// led returns the shards that are led, in order.
func (c *Coordinator) led() []*shard {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*shard, 0, len(c.shards))
	for _, s := range c.shards {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *shard) int { return int(a.id) - int(b.id) })
	return all
}

// Adopt begins to coordinate the ids of a shard that this agent has begun to lead in that epoch. It does not wait: requests do, until the ids are read.
func (c *Coordinator) Adopt(id coordinator.ShardID, epoch int32) {
	s := &shard{id: id, epoch: epoch, loaded: make(chan struct{}), txns: make(map[string]*transaction), unreadable: make(map[string]bool)}
	s.led, s.resign = context.WithCancel(c.run)
	c.Resign(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shards[id] = s
	go c.load(s)
}

// Resign ends the coordination of a shard's ids. Requests that wait are answered NOT_COORDINATOR.
func (c *Coordinator) Resign(id coordinator.ShardID) {
	c.mu.Lock()
	s := c.shards[id]
	if s != nil {
		s.resign()
		delete(c.shards, id)
		c.ids -= len(s.txns)
	}
	c.mu.Unlock()
	if s == nil {
		return
	}
	for _, t := range s.txns { // nobody else changes them any more
		t.stop()
	}
}

// load reads the ids of a shard, and goes on with what was under way.
func (c *Coordinator) load(s *shard) {
	var loaded []*transaction
	offsets := make(map[protocol.ProducerID]txn.Set)
	err := retry.Coordinator(s.led, c.deps.Log, "read transactions", func(ctx context.Context) (err error) {
		loaded, err = c.readIDs(ctx, s)
		return err
	})
	if err == nil && slices.ContainsFunc(loaded, func(t *transaction) bool { return t.machine.State() == txn.Ongoing }) {
		err = retry.Coordinator(s.led, c.deps.Log, "read offsets of transactions", func(ctx context.Context) error { return c.readOffsets(ctx, offsets) })
	}
	if err != nil {
		if s.led.Err() == nil {
			c.deps.Log.Error("the transactional ids of a shard cannot be read", "shard", s.id, "err", err)
		}
		return
	}
	for _, t := range loaded { // before anybody asks
		t.step(txn.Loaded{Offsets: offsets[t.machine.Snapshot().ProducerID]})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shards[s.id] != s {
		for _, t := range loaded {
			go t.stop()
		}
		return
	}
	for _, t := range loaded {
		s.txns[t.id] = t
	}
	c.ids += len(loaded)
	close(s.loaded)
}

// readIDs reads the ids of a shard. One whose record cannot be read is left out, and refused: what is open of it must end before anything else may be said.
func (c *Coordinator) readIDs(ctx context.Context, s *shard) ([]*transaction, error) {
	items, _, err := c.deps.KV.List(ctx, coordinator.PrefixShardTxns(s.id), 0)
	if err != nil {
		return nil, err
	}
	loaded := make([]*transaction, 0, len(items))
	for _, item := range items {
		t, err := c.read(s, item)
		if err != nil {
			c.deps.Log.Error("the record of a transactional id cannot be read: it is refused", "key", item.Key, "err", err)
			s.unreadable[item.Key] = true
			continue
		}
		loaded = append(loaded, t)
	}
	return loaded, nil
}

// readOffsets finds which shards of groups take part in producers' transactions that are open. All that were said to do so are there: their coordinators had them durable before they asked. Others are too,
// of transactions that are over: a marker more is harmless.
func (c *Coordinator) readOffsets(ctx context.Context, offsets map[protocol.ProducerID]txn.Set) error {
	items, _, err := c.deps.KV.List(ctx, coordinator.PrefixPending, 0)
	if err != nil {
		return err
	}
	for _, item := range items {
		group, producer, err := coordinator.ParseKeyPending(item.Key)
		if err != nil {
			c.deps.Log.Error("a key of offsets in transactions cannot be read", "key", item.Key, "err", err)
			continue
		}
		offsets[producer] = offsets[producer].Union(txn.NewSet(c.groupOf(group)))
	}
	return nil
}

// groupOf is a group's place in a transaction's set.
func (c *Coordinator) groupOf(name string) txn.Partition {
	return txn.Partition{Partition: int32(coordinator.ShardOfName(name, c.cfg.Shards))}
}

// read makes an id of its record.
func (c *Coordinator) read(s *shard, item coordinator.Item) (*transaction, error) {
	id, err := coordinator.ParseKeyTxn(item.Key)
	if err != nil {
		return nil, err
	}
	snapshot, err := coordinator.Decode[txn.Snapshot](item)
	if err != nil {
		return nil, err
	}
	m, err := txn.Load(c.machineConfig(), c.deps.Now(), snapshot)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", item.Key, err)
	}
	return c.newTransaction(s, id, m), nil
}

func (c *Coordinator) machineConfig() txn.Config {
	return txn.Config{TimeoutMax: c.cfg.TimeoutMax, Expiration: c.cfg.Expiration, PartitionsMax: c.cfg.PartitionsMax, ParkedMax: c.cfg.ParkedMax}
}

// idBytesMax bounds transactional ids, which become keys of the coordinator.
const idBytesMax = 1024

// find returns an id that is coordinated here; create says that it may be new. Without it, nil is returned for an id that is not known.
func (c *Coordinator) find(ctx context.Context, id string, create bool) (*transaction, protocol.ErrorCode) {
	if id == "" || len(id) > idBytesMax {
		return nil, protocol.InvalidRequest
	}
	c.mu.Lock()
	s := c.shards[coordinator.ShardOfName(id, c.cfg.Shards)]
	c.mu.Unlock()
	if s == nil {
		return nil, protocol.NotCoordinator
	}
	if !c.awaitLoaded(ctx, s) {
		return nil, protocol.CoordinatorLoadInProgress
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := s.txns[id]
	switch {
	case s.led.Err() != nil:
		return nil, protocol.NotCoordinator
	case s.unreadable[coordinator.KeyTxn(s.id, id)]:
		return nil, protocol.CoordinatorNotAvailable
	case t != nil || !create:
		return t, protocol.None
	case c.ids >= c.cfg.IDsMax:
		return nil, protocol.CoordinatorNotAvailable
	}
	t = c.newTransaction(s, id, txn.New(c.machineConfig(), c.deps.Now()))
	s.txns[id] = t
	c.ids++
	return t, protocol.None
}

// awaitLoaded waits, for a while, until a shard's ids are read, or it is not led any more.
func (c *Coordinator) awaitLoaded(ctx context.Context, s *shard) bool {
	limit := time.NewTimer(c.cfg.WaitMax)
	defer limit.Stop()
	select {
	case <-s.loaded:
	case <-s.led.Done():
	case <-limit.C:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}

// expire deletes ids that nobody has used for their expiration.
func (c *Coordinator) expire() {
	for _, t := range c.all() {
		t.step(txn.Expire{})
	}
}

// all returns the ids that are known here, in order of shards and then of names.
func (c *Coordinator) all() []*transaction {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*transaction
	for _, s := range c.shards {
		for _, t := range s.txns {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, compare)
	return all
}
