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
	Partitions []int32
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

// Verify returns why partitions cannot be written to in a transaction, by topic and partition; those that can are not there. A coordinator that is about to move is waited for.
func (v *Verifier) Verify(ctx context.Context, m Member) map[string]map[int32]protocol.ErrorCode {
	ctx, cancel := context.WithTimeout(ctx, verifyMax)
	defer cancel()
	req := kmsg.NewPtrAddPartitionsToTxnRequest()
	req.Version = verifyVersion
	one := kmsg.NewAddPartitionsToTxnRequestTransaction()
	one.TransactionalID, one.ProducerID, one.ProducerEpoch, one.VerifyOnly = m.ID, int64(m.Producer), int16(m.Epoch), !m.Add
	for _, p := range m.Parts {
		t := kmsg.NewAddPartitionsToTxnRequestTransactionTopic()
		t.Topic, t.Partitions = p.Topic, p.Partitions
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
			return all(m, protocol.CoordinatorNotAvailable)
		}
	}
}

// once asks whoever coordinates the id now; again says that it is not known, or not reached, or about to move.
func (v *Verifier) once(ctx context.Context, m Member, req *kmsg.AddPartitionsToTxnRequest) (codes map[string]map[int32]protocol.ErrorCode, again bool) {
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
		codes := make(map[string]map[int32]protocol.ErrorCode)
		for _, t := range answer.Transactions[0].Topics {
			for _, p := range t.Partitions {
				switch code := protocol.ErrorCode(p.ErrorCode); code {
				case protocol.None:
				case protocol.NotCoordinator, protocol.CoordinatorLoadInProgress, protocol.CoordinatorNotAvailable:
					return nil, true
				default:
					set(codes, t.Topic, p.Partition, code)
				}
			}
		}
		return codes, false
	}
	return nil, true
}

func set(codes map[string]map[int32]protocol.ErrorCode, topic string, partition int32, code protocol.ErrorCode) {
	if codes[topic] == nil {
		codes[topic] = make(map[int32]protocol.ErrorCode)
	}
	codes[topic][partition] = code
}

// all says the same of everything.
func all(m Member, code protocol.ErrorCode) map[string]map[int32]protocol.ErrorCode {
	codes := make(map[string]map[int32]protocol.ErrorCode)
	for _, p := range m.Parts {
		for _, n := range p.Partitions {
			set(codes, p.Topic, n, code)
		}
	}
	return codes
}

// VerifyGroup returns why offsets cannot be sent to the groups of a shard in a transaction: nil if they can, or a [*protocol.Error].
func (v *Verifier) VerifyGroup(ctx context.Context, id string, producer protocol.ProducerID, epoch protocol.ProducerEpoch, shard coordinator.ShardID, add bool) error {
	codes := v.Verify(ctx, Member{ID: id, Producer: producer, Epoch: epoch, Add: add, Parts: []Part{{Topic: OffsetsTopic, Partitions: []int32{int32(shard)}}}})
	return codes[OffsetsTopic][int32(shard)].Err()
}
