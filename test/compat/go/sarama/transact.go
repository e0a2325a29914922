package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/IBM/sarama"

	"github.com/varve-io/varve/test/compat/go/driver"
)

// producer is the verb transact's. Sarama sends what it is given, offsets too, no later than at the transaction's end.
type producer struct {
	sarama.SyncProducer
	waiting []*sarama.ProducerMessage
}

func transactional(job driver.Job) (*producer, error) {
	c := config()
	c.Producer.Idempotent, c.Net.MaxOpenRequests = true, 1
	c.Producer.Transaction.ID, c.Producer.Transaction.Timeout = job.ID, job.Timeout
	c.Producer.Partitioner = sarama.NewManualPartitioner
	p, err := sarama.NewSyncProducer([]string{job.Bootstrap}, c)
	if err != nil {
		return nil, err
	}
	return &producer{SyncProducer: p}, nil
}

func (client) Transactions(_ context.Context, job driver.Job) (driver.Producer, error) {
	return transactional(job)
}

func (p *producer) Begin() error { return p.BeginTxn() }

func (p *producer) Send(_ context.Context, topic string, r driver.Record) error {
	p.waiting = append(p.waiting, &sarama.ProducerMessage{
		Topic: topic, Partition: r.Partition, Key: sarama.ByteEncoder(r.Key), Value: sarama.ByteEncoder(r.Value),
	})
	return nil
}

func (p *producer) Flush(context.Context) error {
	sent := p.waiting
	p.waiting = nil
	return p.SendMessages(sent)
}

func (p *producer) Offset(_ context.Context, group, topic string, partition int32, offset int64) error {
	return p.AddOffsetsToTxn(map[string][]*sarama.PartitionOffsetMetadata{topic: {{Partition: partition, Offset: offset}}}, group)
}

func (p *producer) Commit(ctx context.Context) error {
	if err := p.Flush(ctx); err != nil {
		return err
	}
	return p.CommitTxn()
}

func (p *producer) Abort(context.Context) error {
	p.waiting = nil
	return p.AbortTxn()
}

// copier is a member of a consumer group that copies. Its partitions share one producer, and so take turns.
type copier struct {
	job driver.Job
	out *driver.Output

	mu           sync.Mutex
	producer     *producer
	transactions int
}

func (client) Copy(ctx context.Context, job driver.Job, out *driver.Output) error {
	p, err := transactional(job)
	if err != nil {
		return err
	}
	c := config()
	c.Consumer.IsolationLevel = sarama.ReadCommitted
	c.Consumer.Group.Session.Timeout = job.Session
	group, err := sarama.NewConsumerGroup([]string{job.Bootstrap}, job.Group, c)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	copies := &copier{job: job, out: out, producer: p}
	for ctx.Err() == nil {
		if err := group.Consume(ctx, job.Topics, copies); err != nil && ctx.Err() == nil {
			return errors.Join(fmt.Errorf("consume: %w", err), group.Close(), p.Close())
		}
	}
	return errors.Join(group.Close(), p.Close())
}

func (c *copier) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (c *copier) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (c *copier) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for m := range claim.Messages() {
		messages := []*sarama.ConsumerMessage{m}
	more:
		for len(messages) < c.job.Max {
			select {
			case m, open := <-claim.Messages():
				if !open {
					break more
				}
				messages = append(messages, m)
			default:
				break more
			}
		}
		for copied := false; !copied && session.Context().Err() == nil; {
			var err error
			if copied, err = c.copy(session, messages); err != nil {
				return err
			}
		}
	}
	return nil
}

// copy copies some records in one transaction, and tells whether they were committed.
func (c *copier) copy(session sarama.ConsumerGroupSession, messages []*sarama.ConsumerMessage) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx := session.Context()
	if err := c.producer.Begin(); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	stall := false
	for _, m := range messages {
		stall = stall || string(m.Key) == c.job.Stall
		if err := c.producer.Send(ctx, c.job.To, driver.Record{Partition: m.Partition, Key: m.Key, Value: m.Value}); err != nil {
			return false, err
		}
	}
	if err := c.producer.Flush(ctx); err != nil {
		return false, fmt.Errorf("send: %w", err)
	}
	if stall {
		return false, c.out.Stall(context.WithoutCancel(ctx))
	}
	c.transactions++
	if c.transactions%driver.AbortedOf == 0 {
		return false, c.producer.Abort(ctx)
	}
	member := sarama.NewConsumerGroupMetadataFromSession(session, c.job.Group, nil)
	if err := c.producer.AddMessageToTxnWithGroupMetadata(messages[len(messages)-1], member, nil); err != nil {
		return false, fmt.Errorf("add offset: %w", err)
	}
	if err := c.producer.Commit(ctx); err != nil {
		// The group may have moved on meanwhile.
		return false, c.producer.Abort(ctx)
	}
	for _, m := range messages {
		c.out.Record(driver.Record{Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value})
	}
	return true, nil
}
