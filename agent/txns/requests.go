package txns

import (
	"context"
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// endVersion2 is the version of EndTxn from which on a producer has its epoch raised with each transaction (KIP-890).
const endVersion2 = 5

// agentsVersion is the version of AddPartitionsToTxn from which on agents ask: coordinators of groups when they have durably what was sent to them.
const agentsVersion = 4

// known is the code that a version of a request knows instead of PRODUCER_FENCED, which begins with version fenced, and TRANSACTION_ABORTABLE, which begins with version abortable.
func known(code protocol.ErrorCode, version, fenced, abortable int16) protocol.ErrorCode {
	switch {
	case code == protocol.ProducerFenced && version < fenced:
		return protocol.InvalidProducerEpoch
	case code == protocol.TransactionAbortable && version < abortable:
		return protocol.InvalidTxnState
	}
	return code
}

// InitProducerID gives the producer of a transactional id its producer id and a new epoch. What the one before it left open is aborted first.
func (c *Coordinator) InitProducerID(ctx context.Context, req *kmsg.InitProducerIDRequest) *kmsg.InitProducerIDResponse {
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.Version = req.Version
	resp.ProducerID, resp.ProducerEpoch = int64(protocol.NoProducerID), int16(protocol.NoProducerEpoch)
	expected, epoch := protocol.NoProducerID, protocol.NoProducerEpoch
	if req.Version >= 3 {
		expected, epoch = protocol.ProducerID(req.ProducerID), protocol.ProducerEpoch(req.ProducerEpoch)
	}
	result := c.ask(ctx, *req.TransactionalID, true, func(id txn.RequestID, fresh protocol.ProducerID) txn.Event {
		return txn.Init{Request: id, TimeoutMs: req.TransactionTimeoutMillis, ProducerID: expected, Epoch: epoch, FreshID: fresh}
	})
	if result.Code == protocol.None {
		resp.ProducerID, resp.ProducerEpoch = int64(result.ProducerID), int16(result.Epoch)
	}
	resp.ErrorCode = int16(known(result.Code, req.Version, 4, 5))
	return resp
}

// AddPartitions adds partitions to transactions, or only says whether they are in them.
func (c *Coordinator) AddPartitions(ctx context.Context, req *kmsg.AddPartitionsToTxnRequest) *kmsg.AddPartitionsToTxnResponse {
	resp := kmsg.NewPtrAddPartitionsToTxnResponse()
	resp.Version = req.Version
	if req.Version < agentsVersion {
		one := kmsg.NewAddPartitionsToTxnRequestTransaction()
		one.TransactionalID, one.ProducerID, one.ProducerEpoch = req.TransactionalID, req.ProducerID, req.ProducerEpoch
		for _, t := range req.Topics {
			topic := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
			topic.Topic, topic.Partitions = t.Topic, t.Partitions
			one.Topics = append(one.Topics, topic)
		}
		for _, t := range c.addTo(ctx, req.Version, &one) {
			topic := kmsg.NewAddPartitionsToTxnResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				part := kmsg.NewAddPartitionsToTxnResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, p.ErrorCode
				topic.Partitions = append(topic.Partitions, part)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp
	}
	for i := range req.Transactions {
		one := kmsg.NewAddPartitionsToTxnResponseTransaction()
		one.TransactionalID = req.Transactions[i].TransactionalID
		one.Topics = c.addTo(ctx, req.Version, &req.Transactions[i])
		resp.Transactions = append(resp.Transactions, one)
	}
	return resp
}

// addTo adds partitions to one transaction, all or none.
func (c *Coordinator) addTo(ctx context.Context, version int16, one *kmsg.AddPartitionsToTxnRequestTransaction) []kmsg.AddPartitionsToTxnResponseTransactionTopic {
	var wanted []txn.Partition
	unknown, sent := false, version >= agentsVersion && !one.VerifyOnly
	place := func(asked *kmsg.AddPartitionsToTxnRequestTransactionTopic, number int32) (txn.Partition, bool) {
		if asked.Topic == OffsetsTopic {
			return txn.Partition{Partition: number}, number >= 0 && uint32(number) < c.cfg.Shards
		}
		t, _, ok := c.deps.View.Topic(asked.Topic)
		if id := TopicOf(&asked.UnknownTags); id != (protocol.TopicID{}) && id != t.ID { // deleted and created again, which is not known here yet, or not there
			return txn.Partition{}, false
		}
		return txn.Partition{Topic: t.ID, Partition: number}, ok && number >= 0 && number < t.Partitions
	}
	for i := range one.Topics {
		t := &one.Topics[i]
		for _, n := range t.Partitions {
			p, ok := place(t, n)
			unknown, sent = unknown || !ok, sent && t.Topic == OffsetsTopic
			wanted = append(wanted, p)
		}
	}
	var result txn.Result
	if !unknown {
		result = c.add(ctx, one.TransactionalID, txn.Add{
			ProducerID: protocol.ProducerID(one.ProducerID), Epoch: protocol.ProducerEpoch(one.ProducerEpoch), Partitions: txn.NewSet(wanted...), VerifyOnly: one.VerifyOnly, Sent: sent,
		})
	}
	var topics []kmsg.AddPartitionsToTxnResponseTransactionTopic
	for i := range one.Topics {
		t := &one.Topics[i]
		topic := kmsg.NewAddPartitionsToTxnResponseTransactionTopic()
		topic.Topic = t.Topic
		for _, n := range t.Partitions {
			part := kmsg.NewAddPartitionsToTxnResponseTransactionTopicPartition()
			part.Partition = n
			code := result.Code
			switch p, ok := place(t, n); {
			case unknown && !ok:
				code = protocol.UnknownTopicOrPartition
			case unknown:
				code = protocol.OperationNotAttempted
			case code == protocol.None && slices.Contains(result.Missing, p):
				code = protocol.TransactionAbortable
			}
			part.ErrorCode = int16(known(code, version, 2, 5))
			topic.Partitions = append(topic.Partitions, part)
		}
		topics = append(topics, topic)
	}
	return topics
}

// add has an id's machine add partitions.
func (c *Coordinator) add(ctx context.Context, id string, add txn.Add) txn.Result {
	return c.ask(ctx, id, false, func(id txn.RequestID, _ protocol.ProducerID) txn.Event {
		add.Request = id
		return add
	})
}

// AddOffsets adds a group to a transaction before anything is sent to it: its shard, whose leader is told the outcome. Producers of the second version of the protocol let the group's coordinator do so.
func (c *Coordinator) AddOffsets(ctx context.Context, req *kmsg.AddOffsetsToTxnRequest) *kmsg.AddOffsetsToTxnResponse {
	resp := kmsg.NewPtrAddOffsetsToTxnResponse()
	resp.Version = req.Version
	result := c.add(ctx, req.TransactionalID, txn.Add{
		ProducerID: protocol.ProducerID(req.ProducerID), Epoch: protocol.ProducerEpoch(req.ProducerEpoch), Partitions: txn.NewSet(c.groupOf(req.Group)),
	})
	resp.ErrorCode = int16(known(result.Code, req.Version, 2, 4))
	return resp
}

// EndTxn decides a transaction. It returns when the decision is durable; markers follow.
func (c *Coordinator) EndTxn(ctx context.Context, req *kmsg.EndTxnRequest) *kmsg.EndTxnResponse {
	resp := kmsg.NewPtrEndTxnResponse()
	resp.Version = req.Version
	resp.ProducerID, resp.ProducerEpoch = int64(protocol.NoProducerID), int16(protocol.NoProducerEpoch)
	result := c.ask(ctx, req.TransactionalID, false, func(id txn.RequestID, fresh protocol.ProducerID) txn.Event {
		return txn.End{
			Request: id, ProducerID: protocol.ProducerID(req.ProducerID), Epoch: protocol.ProducerEpoch(req.ProducerEpoch),
			Commit: req.Commit, Version2: req.Version >= endVersion2, FreshID: fresh,
		}
	})
	if result.Code == protocol.None && req.Version >= endVersion2 {
		resp.ProducerID, resp.ProducerEpoch = int64(result.ProducerID), int16(result.Epoch)
	}
	resp.ErrorCode = int16(known(result.Code, req.Version, 2, 4))
	return resp
}

// DescribeTransactions tells what is known of transactional ids (KIP-664).
func (c *Coordinator) DescribeTransactions(ctx context.Context, req *kmsg.DescribeTransactionsRequest) *kmsg.DescribeTransactionsResponse {
	resp := kmsg.NewPtrDescribeTransactionsResponse()
	resp.Version = req.Version
	for _, id := range req.TransactionalIDs {
		state := kmsg.NewDescribeTransactionsResponseTransactionState()
		state.TransactionalID, state.ProducerID, state.ProducerEpoch, state.StartTimestamp = id, -1, -1, -1
		t, code := c.find(ctx, id, false)
		if code == protocol.None && t == nil {
			code = protocol.TransactionalIDNotFound
		}
		if code == protocol.None {
			s := t.snapshot()
			state.State, state.TimeoutMillis, state.StartTimestamp = s.State.String(), s.TimeoutMs, s.StartedMs
			state.ProducerID, state.ProducerEpoch = int64(s.ProducerID), int16(s.Epoch)
			state.Topics = c.describe(s)
		}
		state.ErrorCode = int16(code)
		resp.TransactionStates = append(resp.TransactionStates, state)
	}
	return resp
}

// describe lists the partitions of a transaction that is open, or not marked everywhere.
func (c *Coordinator) describe(s txn.Snapshot) []kmsg.DescribeTransactionsResponseTransactionStateTopic {
	var topics []kmsg.DescribeTransactionsResponseTransactionStateTopic
	for _, p := range s.Partitions {
		name := OffsetsTopic
		if p.Topic != (protocol.TopicID{}) {
			t, ok := c.deps.View.TopicByID(p.Topic)
			if !ok {
				continue
			}
			name = t.Name
		}
		if n := len(topics); n == 0 || topics[n-1].Topic != name {
			topic := kmsg.NewDescribeTransactionsResponseTransactionStateTopic()
			topic.Topic = name
			topics = append(topics, topic)
		}
		last := &topics[len(topics)-1]
		last.Partitions = append(last.Partitions, p.Partition)
	}
	return topics
}

func (t *transaction) snapshot() txn.Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.machine.Snapshot()
}

// ListTransactions lists the ids that this agent coordinates, by state, producer, age and pattern of their names (KIP-664, KIP-994, KIP-1152).
func (c *Coordinator) ListTransactions(ctx context.Context, req *kmsg.ListTransactionsRequest) *kmsg.ListTransactionsResponse {
	resp := kmsg.NewPtrListTransactionsResponse()
	resp.Version = req.Version
	var pattern *regexp.Regexp
	if req.Version >= 2 && req.TransactionalIDPattern != nil && *req.TransactionalIDPattern != "" {
		var err error
		if pattern, err = regexp.Compile("^(?:" + *req.TransactionalIDPattern + ")$"); err != nil {
			resp.ErrorCode = int16(protocol.InvalidRegularExpression)
			return resp
		}
	}
	for _, name := range req.StateFilters {
		if _, err := txn.ParseState(name); err != nil {
			resp.UnknownStateFilters = append(resp.UnknownStateFilters, name)
		}
	}
	for _, s := range c.led() {
		if !c.awaitLoaded(ctx, s) {
			resp.ErrorCode = int16(protocol.CoordinatorLoadInProgress)
			return resp
		}
	}
	now := c.deps.Now().UnixMilli()
	for _, t := range c.all() {
		s := t.snapshot()
		state := s.State.String()
		switch {
		case len(req.StateFilters) > 0 && !slices.Contains(req.StateFilters, state):
		case len(req.ProducerIDFilters) > 0 && !slices.Contains(req.ProducerIDFilters, int64(s.ProducerID)):
		case req.Version >= 1 && req.DurationFilterMillis >= 0 && (s.StartedMs <= 0 || now-s.StartedMs <= req.DurationFilterMillis):
		case pattern != nil && !pattern.MatchString(t.id):
		case s.State == txn.Dead: // nothing of it is durable yet
		default:
			one := kmsg.NewListTransactionsResponseTransactionState()
			one.TransactionalID, one.ProducerID, one.TransactionState = t.id, int64(s.ProducerID), state
			resp.TransactionStates = append(resp.TransactionStates, one)
		}
	}
	return resp
}
