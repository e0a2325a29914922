package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/test/compat/go/driver"
)

// producer is the verb transact's. Like the library, it ends a transaction at the coordinator only if the transaction has
// records.
type producer struct {
	client *kgo.Client
	id     string
}

func (franz) Transactions(ctx context.Context, job driver.Job) (driver.Producer, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap), kgo.TransactionalID(job.ID),
		kgo.TransactionTimeout(job.Timeout), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return nil, err
	}
	if _, _, err := client.ProducerID(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("initialize: %w", err)
	}
	return producer{client: client, id: job.ID}, nil
}

func (p producer) Begin() error { return p.client.BeginTransaction() }

func (p producer) Send(ctx context.Context, topic string, r driver.Record) error {
	p.client.Produce(ctx, &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value}, nil)
	return nil
}

func (p producer) Flush(ctx context.Context) error { return p.client.Flush(ctx) }

// Offset asks for what the library asks for on behalf of a GroupTransactSession.
func (p producer) Offset(ctx context.Context, group, topic string, partition int32, offset int64) error {
	id, epoch, err := p.client.ProducerID(ctx)
	if err != nil {
		return err
	}
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = p.id, id, epoch, group
	added, err := add.RequestWith(ctx, p.client)
	if err != nil {
		return fmt.Errorf("add offsets: %w", err)
	}
	if err := kerr.ErrorForCode(added.ErrorCode); err != nil {
		return fmt.Errorf("add offsets: %w", err)
	}
	commit := kmsg.NewPtrTxnOffsetCommitRequest()
	commit.TransactionalID, commit.ProducerID, commit.ProducerEpoch, commit.Group = p.id, id, epoch, group
	each := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	each.Partition, each.Offset = partition, offset
	commit.Topics = []kmsg.TxnOffsetCommitRequestTopic{{
		Topic: topic, Partitions: []kmsg.TxnOffsetCommitRequestTopicPartition{each},
	}}
	committed, err := commit.RequestWith(ctx, p.client)
	if err != nil {
		return fmt.Errorf("commit offsets: %w", err)
	}
	if err := kerr.ErrorForCode(committed.Topics[0].Partitions[0].ErrorCode); err != nil {
		return fmt.Errorf("commit offsets: %w", err)
	}
	return nil
}

func (p producer) Commit(ctx context.Context) error {
	return errors.Join(p.client.Flush(ctx), p.client.EndTransaction(ctx, kgo.TryCommit))
}

func (p producer) Abort(ctx context.Context) error {
	return errors.Join(p.client.AbortBufferedRecords(ctx), p.client.EndTransaction(ctx, kgo.TryAbort))
}

func (p producer) Close() error {
	p.client.Close()
	return nil
}

func (franz) Copy(ctx context.Context, job driver.Job, out *driver.Output) error {
	session, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(job.Bootstrap), kgo.TransactionalID(job.ID),
		kgo.TransactionTimeout(job.Timeout), kgo.RecordPartitioner(kgo.ManualPartitioner()), isolation(job), kgo.ConsumerGroup(job.Group),
		kgo.ConsumeTopics(job.Topic()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.HeartbeatInterval(500*time.Millisecond), kgo.SessionTimeout(job.Session))
	if err != nil {
		return err
	}
	defer session.Close()
	for transaction := 1; ctx.Err() == nil; {
		fetches := session.PollRecords(ctx, job.Max)
		if err := fetches.Err(); err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("poll: %w", err)
		}
		if fetches.NumRecords() == 0 {
			continue
		}
		if err := copyAll(ctx, session, job, fetches.Records(), transaction, out); err != nil {
			return err
		}
		transaction++
	}
	return nil
}

// copyAll copies some records in one transaction, which the session aborts, and reads again, if the group has moved on.
func copyAll(
	ctx context.Context, session *kgo.GroupTransactSession, job driver.Job, records []*kgo.Record, transaction int, out *driver.Output,
) error {
	if err := session.Begin(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	copies := make([]*kgo.Record, 0, len(records))
	stall := false
	for _, r := range records {
		stall = stall || string(r.Key) == job.Stall
		copies = append(copies, &kgo.Record{Topic: job.To, Partition: r.Partition, Key: r.Key, Value: r.Value})
	}
	end := kgo.TransactionEndTry(transaction%driver.AbortedOf != 0)
	if err := session.ProduceSync(ctx, copies...).FirstErr(); err != nil {
		end = kgo.TryAbort
	}
	if stall {
		return out.Stall(ctx)
	}
	committed, err := session.End(context.WithoutCancel(ctx), end)
	if err != nil {
		return fmt.Errorf("end: %w", err)
	}
	if committed {
		for _, r := range records {
			out.Record(driver.Record{Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
		}
	}
	return nil
}
