package groups

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// Transaction names a transaction that offsets were sent in, for [Deps].Verify.
type Transaction struct {
	ID       string
	Producer protocol.ProducerID
	Epoch    protocol.ProducerEpoch
	Shard    coordinator.ShardID // of the group that the offsets are for
	// Add makes the shard part of the transaction, which begins with it if none is open (KIP-890). Without it, the transaction must be
	// open; that it then has the shard, or takes it in, is its coordinator's to see to.
	Add bool
}

// The versions of TxnOffsetCommit from which on clients know TRANSACTION_ABORTABLE, and let the group's coordinator add the
// group to the transaction (KIP-890).
const (
	abortableVersion = 4
	addingVersion    = 5
)

// TxnOffsetCommit stores offsets that take effect if and when the producer's transaction commits. It returns when they are
// durable, and the transaction's coordinator knows that the transaction has them. Members are held to their generation (KIP-447);
// versions before 3 do not say who sends.
func (c *Coordinator) TxnOffsetCommit(ctx context.Context, req *kmsg.TxnOffsetCommitRequest) *kmsg.TxnOffsetCommitResponse {
	resp := kmsg.NewPtrTxnOffsetCommitResponse()
	resp.Version = req.Version
	codes := map[partition]protocol.ErrorCode{}
	var wanted []change
	for _, t := range req.Topics {
		known, ok := c.topic(t.Topic)
		for _, p := range t.Partitions {
			if !ok || p.Partition < 0 || p.Partition >= known.Partitions {
				codes[partition{t.Topic, p.Partition}] = protocol.UnknownTopicOrPartition
				continue
			}
			wanted = append(wanted, change{topic: t.Topic, partition: p.Partition, offset: &coordinator.GroupOffset{
				Offset: p.Offset, LeaderEpoch: p.LeaderEpoch, Metadata: deref(p.Metadata), CommitMs: c.deps.Now().UnixMilli(),
			}})
		}
	}
	if len(wanted) > 0 {
		result := c.txnCommit(ctx, req, wanted)
		result.code = txnCode(req.Version, result.code)
		result.tell(wanted, codes, c.metrics.txnCommits)
	}
	for _, t := range req.Topics {
		topic := kmsg.NewTxnOffsetCommitResponseTopic()
		topic.Topic = t.Topic
		for _, p := range t.Partitions {
			answer := kmsg.NewTxnOffsetCommitResponseTopicPartition()
			answer.Partition, answer.ErrorCode = p.Partition, int16(codes[partition{t.Topic, p.Partition}])
			topic.Partitions = append(topic.Partitions, answer)
		}
		resp.Topics = append(resp.Topics, topic)
	}
	return resp
}

// txnCommit has the owner take what is wanted into the producer's transaction.
func (c *Coordinator) txnCommit(ctx context.Context, req *kmsg.TxnOffsetCommitRequest, wanted []change) commitOutcome {
	if req.Group == "" {
		return commitOutcome{code: protocol.InvalidGroupID}
	}
	event := func(id group.RequestID) group.Event {
		return group.Commit{
			Request: id, MemberID: req.MemberID, InstanceID: deref(req.InstanceID), Generation: req.Generation, Transactional: true,
		}
	}
	result, code := call(ctx, c, req.Group, func(o *owner, done func(commitOutcome)) {
		if !o.exists() && req.Generation >= 0 {
			done(commitOutcome{code: protocol.IllegalGeneration})
			return
		}
		o.ask(event, func(r group.Result) {
			if code := r.(group.CodeResult).Code; code != protocol.None {
				done(commitOutcome{code: code})
				return
			}
			fitting, refused := c.fitting(wanted)
			if len(fitting) == 0 {
				done(commitOutcome{refused: refused})
				return
			}
			t := Transaction{
				ID: req.TransactionalID, Producer: protocol.ProducerID(req.ProducerID), Epoch: protocol.ProducerEpoch(req.ProducerEpoch),
				Shard: o.shard, Add: req.Version >= addingVersion,
			}
			o.sendOffsets(t, fitting, false, func(code protocol.ErrorCode) { done(commitOutcome{code, refused}) })
		})
	})
	if code != protocol.None {
		result.code = code
	}
	return result
}

// verify asks the transaction's coordinator, and then makes sure that nobody had taken over the group by the time that it
// consented: whoever has since finds the shard in the transaction.
func (c *Coordinator) verify(ctx context.Context, t Transaction) error {
	if err := c.deps.Verify(ctx, t); err != nil {
		return err
	}
	return c.deps.Prove(ctx)
}

// certainty is what is known of a transaction in doubt.
type certainty uint8

const (
	unknown certainty = iota
	stillOpen
	over // no marker is to come that would apply its offsets
)

// examine finds out whether a transaction that may be over is. Who is told that its epoch is stale cannot tell whether the
// transaction is over or about to commit under a raised epoch: the next epoch's answer tells.
func (c *Coordinator) examine(ctx context.Context, t Transaction) certainty {
	err := c.deps.Verify(ctx, t)
	if err == nil {
		return stillOpen
	}
	if code := refusal(err); code == protocol.InvalidProducerEpoch {
		t.Epoch++
		err = c.deps.Verify(ctx, t)
	}
	switch refusal(err) {
	case protocol.None, protocol.InvalidProducerEpoch, protocol.InvalidTxnState, protocol.TransactionAbortable,
		protocol.InvalidProducerIDMapping:
		return over
	default:
		return unknown
	}
}

// refusal is what a request is told whose transaction could not be verified. Whatever went wrong on the way to the transaction's
// coordinator is COORDINATOR_LOAD_IN_PROGRESS, on which clients try again without looking for another coordinator of the
// group (CoordinatorOperationExceptionHelper).
func refusal(err error) protocol.ErrorCode {
	var told *protocol.Error
	if err != nil && !errors.As(err, &told) {
		return protocol.CoordinatorLoadInProgress
	}
	switch code := protocol.CodeOf(err); code {
	case protocol.ProducerFenced:
		return protocol.InvalidProducerEpoch
	case protocol.NetworkException, protocol.NotCoordinator, protocol.CoordinatorNotAvailable, protocol.RequestTimedOut,
		protocol.NotEnoughReplicas, protocol.NotLeaderOrFollower:
		return protocol.CoordinatorLoadInProgress
	default:
		return code
	}
}

// txnCode fits a code to what clients of a version know. Those before 5 take CONCURRENT_TRANSACTIONS for fatal here, those
// before 2 COORDINATOR_LOAD_IN_PROGRESS too (KafkaApis.handleTxnOffsetCommit).
func txnCode(version int16, code protocol.ErrorCode) protocol.ErrorCode {
	if code == protocol.TransactionAbortable && version < abortableVersion {
		code = protocol.InvalidTxnState
	}
	if code == protocol.ConcurrentTransactions && version < addingVersion {
		code = protocol.CoordinatorLoadInProgress
	}
	if code == protocol.CoordinatorLoadInProgress && version < 2 {
		code = protocol.CoordinatorNotAvailable
	}
	return code
}

// Marker tells how a transaction ended.
type Marker struct {
	Producer protocol.ProducerID
	Epoch    protocol.ProducerEpoch
	Strict   bool // the epoch was raised at the end (KIP-890), so that it is above the transaction's
	Commit   bool
	// CoordinatorEpoch is that of the shard of the transactional id in which its coordinator sends the marker.
	CoordinatorEpoch int32
}

// ends tells whether the marker is of a transaction of this epoch or a later one.
func (m Marker) ends(epoch protocol.ProducerEpoch) bool {
	return epoch < m.Epoch || !m.Strict && epoch == m.Epoch
}

// applies tells whether the marker commits the transaction of this epoch. One of an earlier epoch, which it ends too, was left behind.
func (m Marker) applies(epoch protocol.ProducerEpoch) bool {
	if m.Strict {
		epoch++
	}
	return m.Commit && epoch == m.Epoch
}

// EndTransaction applies what a producer has sent, in a transaction that is decided, to the groups of a shard, or deletes it. It
// returns nil when that is durable, at once if there is nothing; else a [*protocol.Error]: then it must be called again. It may be called
// any number of times. One that an earlier coordinator of the id sends late is TRANSACTION_COORDINATOR_FENCED: its transaction has ended, and what is there now may be of the next.
func (c *Coordinator) EndTransaction(ctx context.Context, shard coordinator.ShardID, m Marker) error {
	led, ok := c.deps.Leads(shard)
	if !ok {
		return protocol.NotCoordinator.Err()
	}
	// Who has lost the shard, and does not know it yet, must not say that there is nothing to do.
	if err := c.deps.Prove(ctx); err != nil {
		return protocol.NotCoordinator.Err()
	}
	if err := c.completeProducers(ctx, shard, led); err != nil {
		c.log.Warn("end transaction", "shard", shard, "producer", m.Producer, "error", err)
		return protocol.CoordinatorLoadInProgress.Err()
	}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.SetLimit(c.cfg.MarkersLive)
	for _, name := range c.groupsOf(shard, m.Producer) {
		tasks.Go(func() error {
			result, code := call(ctx, c, name, func(o *owner, done func(protocol.ErrorCode)) { o.endTransaction(m, done) })
			if code == protocol.None {
				code = result
			}
			return code.Err()
		})
	}
	if err := tasks.Wait(); err != nil {
		return err
	}
	if now, ok := c.deps.Leads(shard); !ok || now != led {
		return protocol.NotCoordinator.Err()
	}
	return nil
}

// producers is an index of which groups of a shard have offsets of which producers' transactions; it may name groups that
// have none any more.
type producers struct {
	epoch    int32 // for which it is complete; 0 for none
	groupsOf map[protocol.ProducerID]map[string]bool
}

// add enters a group.
func (p *producers) add(producer protocol.ProducerID, name string) {
	groups := p.groupsOf[producer]
	if groups == nil {
		groups = map[string]bool{}
		p.groupsOf[producer] = groups
	}
	groups[name] = true
}

// producersOf returns a shard's index. The caller holds Coordinator.mu.
func (c *Coordinator) producersOf(shard coordinator.ShardID) *producers {
	p := c.producers[shard]
	if p == nil {
		p = &producers{groupsOf: map[protocol.ProducerID]map[string]bool{}}
		c.producers[shard] = p
	}
	return p
}

// completeProducers lets the index of a shard hold all that was pending when the agent came to lead it.
func (c *Coordinator) completeProducers(ctx context.Context, shard coordinator.ShardID, epoch int32) error {
	if err := c.beginScan(ctx); err != nil {
		return err
	}
	defer c.endScan()
	c.mu.Lock()
	complete := c.producersOf(shard).epoch == epoch
	c.mu.Unlock()
	if complete {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.LoadTimeout)
	defer cancel()
	items, _, err := c.deps.KV.List(ctx, coordinator.PrefixShardPending(shard), 0)
	if err != nil {
		return fmt.Errorf("list pending offsets: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.producersOf(shard)
	for _, item := range items {
		name, producer, err := coordinator.ParseKeyPending(item.Key)
		if err != nil {
			return err
		}
		p.add(producer, name)
	}
	if now, ok := c.deps.Leads(shard); ok && now == epoch {
		p.epoch = epoch
	}
	return nil
}

// groupsOf returns the groups of a shard that have offsets of a producer's transaction, by name.
func (c *Coordinator) groupsOf(shard coordinator.ShardID, producer protocol.ProducerID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.producersOf(shard).groupsOf[producer]))
}

// indexProducer notes that the group has, or is about to have, offsets of a producer's transaction.
func (o *owner) indexProducer(producer protocol.ProducerID) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	o.c.producersOf(o.shard).add(producer, o.name)
}

// unindexProducer notes that it has none.
func (o *owner) unindexProducer(producer protocol.ProducerID) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	index := o.c.producersOf(o.shard).groupsOf
	delete(index[producer], o.name)
	if len(index[producer]) == 0 {
		delete(index, producer)
	}
}
