package compat

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	transactionsCommand = "org.apache.kafka.tools.TransactionsCommand"
	hangingTopic        = "tools-transactions"
	hangingID           = "tools-transaction"
	hangingRecords      = 10
	hangingTimeout      = 10 * time.Minute // longer than the tools take
)

// openTools are what an operator sees of a transaction that is open, and does to it (KIP-664), in this order.
var openTools = []tool{
	{
		"kafka-transactions", "lists an open transaction", transactionsCommand,
		[]string{"list"},
		`(?m)^` + hangingID + `\s+1\s+\d+\s+Ongoing\s*$`,
	},
	{
		"kafka-transactions", "describes it", transactionsCommand,
		[]string{"describe", "--transactional-id", hangingID},
		`(?m)^1\s+` + hangingID + `\s+\d+\s+\d+\s+Ongoing\s+600000\s+\d+\s+\d+\s+` + hangingTopic + `-0\s*$`,
	},
	{
		"kafka-transactions", "describes a partition's producers", transactionsCommand,
		[]string{"describe-producers", "--topic", hangingTopic, "--partition", "0"},
		// id, epoch, epoch of the coordinator, last sequence number, its timestamp, first offset
		`(?m)^\d+\s+\d+\s+-?\d+\s+9\s+\d+\s+0\s*$`,
	},
	{
		"kafka-transactions", "does not take it for one that hangs", transactionsCommand,
		[]string{"find-hanging", "--topic", hangingTopic, "--max-transaction-timeout", "1"},
		`^Topic\s+Partition\s+ProducerId\s+ProducerEpoch\s+CoordinatorEpoch\s+StartOffset\s+LastTimestamp\s+Duration\(min\)\s*$`,
	},
	{
		"kafka-transactions", "aborts it in a partition", transactionsCommand,
		[]string{"abort", "--topic", hangingTopic, "--partition", "0", "--start-offset", "0"},
		`^$`,
	},
	{
		"kafka-transactions", "terminates it", transactionsCommand,
		[]string{"forceTerminateTransaction", "--transactionalId", hangingID},
		`^$`,
	},
}

// runTransactionTools opens a transaction and runs the tools on it.
func (s *suite) runTransactionTools(t *testing.T) {
	producer, err := s.openTransaction(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	s.runTool(t, "kadm", "lists and describes an open transaction, and its producer", func(ctx context.Context, _ *testing.T) error {
		return s.describesTransaction(ctx)
	})
	for _, use := range openTools {
		s.runTool(t, use.name, use.does, func(ctx context.Context, _ *testing.T) error {
			if err := s.uses(ctx, use); err != nil || use.args[0] != "abort" {
				return err
			}
			_, err := s.settled(ctx, hangingTopic)
			return err
		})
	}
	s.runTool(t, "Java clients", "are refused offsets of a group's strangers", s.refusesStrangers)
	s.runTool(t, "franz-go", "is refused its commit", func(ctx context.Context, _ *testing.T) error {
		described, err := s.admin.DescribeTransactions(ctx, hangingID)
		if err != nil {
			return fmt.Errorf("describe transactions: %w", err)
		}
		// The termination took the id over, as a producer would.
		if got := described[hangingID]; got.State != "Empty" || len(got.Topics) > 0 {
			return fmt.Errorf("the terminated transaction is described as %+v", got)
		}
		if err := producer.EndTransaction(ctx, kgo.TryCommit); err == nil {
			return errors.New("the commit succeeded")
		}
		return s.holds(ctx, &transacted{topic: hangingTopic, all: map[int][]record{0: numbered("hanging", 1, hangingRecords)}})
	})
}

// openTransaction leaves a transaction open whose records say that they are an hour old.
func (s *suite) openTransaction(ctx context.Context) (*kgo.Client, error) {
	if _, err := s.topic(ctx, hangingTopic, 1); err != nil {
		return nil, err
	}
	producer, err := kgo.NewClient(kgo.SeedBrokers(s.bootstrap), kgo.TransactionalID(hangingID), kgo.TransactionTimeout(hangingTimeout),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, err
	}
	if err := producer.BeginTransaction(); err != nil {
		return nil, fmt.Errorf("open a transaction: %w", err)
	}
	var batch []*kgo.Record
	for _, r := range numbered("hanging", 1, hangingRecords) {
		batch = append(batch, &kgo.Record{Topic: hangingTopic, Key: []byte(r.key), Value: []byte(r.value), Timestamp: time.Now().Add(-time.Hour)})
	}
	if err := producer.ProduceSync(ctx, batch...).FirstErr(); err != nil {
		return nil, fmt.Errorf("open a transaction: %w", err)
	}
	return producer, nil
}

// describesTransaction asks for the open transaction as kadm does.
func (s *suite) describesTransaction(ctx context.Context) error {
	described, err := s.admin.DescribeTransactions(ctx, hangingID)
	if err != nil {
		return fmt.Errorf("describe transactions: %w", err)
	}
	got := described[hangingID]
	if got.Err != nil || got.State != "Ongoing" || got.TimeoutMillis != int32(hangingTimeout.Milliseconds()) || !got.Topics.Lookup(hangingTopic, 0) {
		return fmt.Errorf("the transaction is described as %+v", got)
	}
	if age := time.Since(time.UnixMilli(got.StartTimestamp)); age < 0 || age > featureWithin {
		return fmt.Errorf("the transaction has begun %v ago", age)
	}
	listed, err := s.admin.ListTransactions(ctx, []int64{got.ProducerID}, []string{"Ongoing"})
	if err != nil {
		return fmt.Errorf("list transactions: %w", err)
	}
	if len(listed) != 1 || listed[hangingID].ProducerID != got.ProducerID || listed[hangingID].State != "Ongoing" {
		return fmt.Errorf("the open transactions of producer %d are listed as %+v", got.ProducerID, listed)
	}
	if listed, err = s.admin.ListTransactions(ctx, []int64{got.ProducerID}, []string{"CompleteCommit"}); err != nil || len(listed) != 0 {
		return fmt.Errorf("the committed transactions of producer %d are listed as %+v: %w", got.ProducerID, listed, err)
	}
	var topics kadm.TopicsSet
	topics.Add(hangingTopic, 0)
	producers, err := s.admin.DescribeProducers(ctx, topics)
	if err != nil {
		return fmt.Errorf("describe producers: %w", err)
	}
	partition := producers[hangingTopic].Partitions[0]
	producer, found := partition.ActiveProducers[got.ProducerID]
	if !found || producer.CurrentTxnStartOffset != 0 || producer.LastSequence != hangingRecords-1 || producer.ProducerEpoch != got.ProducerEpoch {
		return fmt.Errorf("the partition's producers are described as %+v, the transaction as %+v", partition, got)
	}
	return nil
}

// refusesStrangers lets a Java producer commit a group's offsets on behalf of members that the group does not have.
func (s *suite) refusesStrangers(ctx context.Context, t *testing.T) error {
	of := s.subject("Java clients")
	topic, err := s.topic(ctx, "strangers", 1)
	if err != nil {
		return err
	}
	member, err := of.client.member(t, topic, topic+"-group")
	if err != nil {
		return err
	}
	if err := await(ctx, "the member has joined", func() bool { return len(member.owns()) == 1 }, member); err != nil {
		return err
	}
	p, err := s.producer(ctx, t, of, topic+"-id", transactionTimeout)
	if err != nil {
		return err
	}
	described, err := s.admin.DescribeGroups(ctx, topic+"-group")
	if err != nil || len(described[topic+"-group"].Members) != 1 {
		return fmt.Errorf("describe the group: %+v: %w", described, err)
	}
	for _, stranger := range []struct {
		member     string
		generation int
	}{{"nobody", 1}, {described[topic+"-group"].Members[0].MemberID, 1000}} {
		if err := p.do(ctx, "begin"); err != nil {
			return err
		}
		step := offset(topic+"-group", topic, 7) + "\t" + stranger.member + "\t" + strconv.Itoa(stranger.generation)
		if err := refuses(p.do(ctx, step), "^CommitFailedException$"); err != nil {
			return fmt.Errorf("offsets of member %q in generation %d: %w", stranger.member, stranger.generation, err)
		}
		if err := p.do(ctx, "abort"); err != nil {
			return err
		}
	}
	// The member itself commits where it stands, at the start.
	if got, err := s.stableOffset(ctx, topic+"-group", topic); err != nil || got > 0 {
		return fmt.Errorf("the group's offset is %d: %w", got, err)
	}
	return errors.Join(p.leave(ctx, false), member.leave(ctx, false))
}
