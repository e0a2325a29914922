package txns

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// verifyVersion is the version of AddPartitionsToTxn that agents ask each other in: the one for brokers, with TRANSACTION_ABORTABLE.
const verifyVersion = 5

// verifyMax is how long a coordinator is asked that cannot be reached, or does not coordinate; verifyPause is the wait between two times.
const (
	verifyMax   = 5 * time.Second
	verifyPause = 20 * time.Millisecond
)

// Part is a transaction's part in one topic.
type Part struct {
	Topic      string
	ID         protocol.TopicID // zero for OffsetsTopic
	Partitions []int32
}

// Codes say, by topic and partition, what a coordinator said.
type Codes map[string]map[int32]protocol.ErrorCode

// Of is what was said of a partition; of one of which nothing was said, that nobody could be asked.
func (c Codes) Of(topic string, partition int32) protocol.ErrorCode {
	code, ok := c[topic][partition]
	if !ok {
		return protocol.CoordinatorNotAvailable
	}
	return code
}

// topicTag is the tagged field in which agents tell each other a topic's id beside its name: names come back.
const topicTag = 10_000

// TopicOf is the id that an agent has told; zero if none.
func TopicOf(tags *kmsg.Tags) (id protocol.TopicID) {
	tags.Each(func(tag uint32, value []byte) {
		if tag == topicTag && len(value) == len(id) {
			id = protocol.TopicID(value)
		}
	})
	return id
}

// Member is what has to be in a transaction.
type Member struct {
	ID       string // transactional id
	Producer protocol.ProducerID
	Epoch    protocol.ProducerEpoch
	// Add has it added (KIP-890's second version); else it must be in the transaction already.
	Add   bool
	Parts []Part
}

// Verifier asks the coordinators of transactional ids, wherever they are. It may be used concurrently.
type Verifier struct {
	View *coordinator.View
	Ask  func(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error)
}

// Verify returns what the transaction's coordinator says of each partition: None if it may be written to. A coordinator that is about to move is waited for.
func (v *Verifier) Verify(ctx context.Context, m Member) Codes {
	ctx, cancel := context.WithTimeout(ctx, verifyMax)
	defer cancel()
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.Version = verifyVersion
	one := kmsg.NewAddPartitionsToTxnRequestTransaction()
	one.TransactionalID, one.ProducerID, one.ProducerEpoch, one.VerifyOnly = m.ID, int64(m.Producer), int16(m.Epoch), !m.Add
	for _, p := range m.Parts {
		t := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
		t.Topic, t.Partitions = p.Topic, p.Partitions
		t.UnknownTags.Set(topicTag, p.ID[:])
		one.Topics = append(one.Topics, t)
	}
	req.Transactions = append(req.Transactions, one)
	for {
		codes, again := v.once(ctx, m, req)
		if !again {
			return codes
		}
		select {
		case <-time.After(verifyPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// once asks whoever coordinates the id now; again says that it is not known, or not reached, or about to move.
func (v *Verifier) once(ctx context.Context, m Member, req *kmsg.AddPartitionsToTxnRequest) (codes Codes, again bool) {
	shard, _ := v.View.Shard(coordinator.ShardOfName(m.ID, v.View.Cluster().Shards))
	for _, a := range v.View.Agents() {
		if a.Log != shard.Owner {
			continue
		}
		resp, err := v.Ask(ctx, a, req)
		answer, ok := resp.(*kmsg.AddPartitionsToTxnResponse)
		if err != nil || !ok || len(answer.Transactions) != 1 {
			return nil, true
		}
		codes := make(Codes)
		for _, t := range answer.Transactions[0].Topics {
			for _, p := range t.Partitions {
				code := protocol.ErrorCode(p.ErrorCode)
				if code == protocol.NotCoordinator || code == protocol.CoordinatorLoadInProgress || code == protocol.CoordinatorNotAvailable {
					return nil, true
				}
				if codes[t.Topic] == nil {
					codes[t.Topic] = make(map[int32]protocol.ErrorCode)
				}
				codes[t.Topic][p.Partition] = code
			}
		}
		return codes, false
	}
	return nil, true
}

// VerifyGroup returns why offsets cannot be sent to the groups of a shard in a transaction: nil if they can, or a [*protocol.Error].
func (v *Verifier) VerifyGroup(ctx context.Context, id string, producer protocol.ProducerID, epoch protocol.ProducerEpoch, shard coordinator.ShardID, add bool) error {
	codes := v.Verify(ctx, Member{ID: id, Producer: producer, Epoch: epoch, Add: add, Parts: []Part{{Topic: OffsetsTopic, Partitions: []int32{int32(shard)}}}})
	return codes.Of(OffsetsTopic, int32(shard)).Err()
}
