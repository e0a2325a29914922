// Command sarama is the compatibility driver of IBM/sarama.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"

	"github.com/varve-io/varve/test/compat/go/driver"
)

func main() { driver.Main(client{}) }

type client struct{}

var codecs = map[string]sarama.CompressionCodec{
	"none": sarama.CompressionNone, "gzip": sarama.CompressionGZIP, "snappy": sarama.CompressionSnappy,
	"lz4": sarama.CompressionLZ4, "zstd": sarama.CompressionZSTD,
}

func config() *sarama.Config {
	c := sarama.NewConfig()
	c.Version = sarama.MaxVersion
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Group.Heartbeat.Interval = 500 * time.Millisecond
	c.Consumer.Offsets.AutoCommit.Enable = false
	c.Producer.Return.Successes = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	return c
}

func (client) Produce(_ context.Context, job driver.Job, records []driver.Record) error {
	c := config()
	c.Producer.Compression = codecs[job.Codec]
	c.Producer.Flush.Messages = 50
	c.Producer.Flush.Frequency = 20 * time.Millisecond
	if job.Idempotent {
		c.Producer.Idempotent = true
		c.Net.MaxOpenRequests = 1
	}
	producer, err := sarama.NewSyncProducer([]string{job.Bootstrap}, c)
	if err != nil {
		return err
	}
	messages := make([]*sarama.ProducerMessage, 0, len(records))
	for _, r := range records {
		messages = append(messages, &sarama.ProducerMessage{
			Topic: job.Topic(), Key: sarama.ByteEncoder(r.Key), Value: sarama.ByteEncoder(r.Value),
		})
	}
	return errors.Join(producer.SendMessages(messages), producer.Close())
}

// consume prints some records of partition 0 of a topic, from an offset on.
func consume(ctx context.Context, consumer sarama.Consumer, topic string, from int64, count int, out *driver.Output) error {
	partition, err := consumer.ConsumePartition(topic, 0, from)
	if err != nil {
		return fmt.Errorf("consume %s: %w", topic, err)
	}
	for seen := range count {
		select {
		case <-ctx.Done():
			return fmt.Errorf("consume %s, after %d of %d records: %w", topic, seen, count, ctx.Err())
		case m := <-partition.Messages():
			out.Record(driver.Record{Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value})
		}
	}
	return partition.Close()
}

func (client) Consume(ctx context.Context, job driver.Job, out *driver.Output) error {
	return with(job, func(_ sarama.Client, consumer sarama.Consumer) error {
		for _, topic := range job.Topics {
			if err := consume(ctx, consumer, topic, sarama.OffsetOldest, job.Max/len(job.Topics), out); err != nil {
				return err
			}
		}
		return nil
	})
}

func with(job driver.Job, use func(sarama.Client, sarama.Consumer) error) error {
	configured := config()
	if job.ReadCommitted {
		configured.Consumer.IsolationLevel = sarama.ReadCommitted
	}
	c, err := sarama.NewClient([]string{job.Bootstrap}, configured)
	if err != nil {
		return err
	}
	consumer, err := sarama.NewConsumerFromClient(c)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	return errors.Join(use(c, consumer), consumer.Close(), c.Close())
}

func (client) Seek(ctx context.Context, job driver.Job, out *driver.Output) error {
	return with(job, func(c sarama.Client, consumer sarama.Consumer) error {
		from, err := c.GetOffset(job.Topic(), 0, job.Since.UnixMilli())
		if err != nil {
			return fmt.Errorf("offset at %v: %w", job.Since, err)
		}
		return consume(ctx, consumer, job.Topic(), from, job.Max, out)
	})
}

// handler is a member of a consumer group. It prints what it gets; with a maximum, it marks and commits that many
// records and ends the session.
type handler struct {
	topic   string
	maximum int // 0 means no end
	out     *driver.Output
	stop    context.CancelFunc
}

func (h handler) Setup(session sarama.ConsumerGroupSession) error {
	h.out.Assigned(append([]int32(nil), session.Claims()[h.topic]...))
	return nil
}

func (h handler) Cleanup(sarama.ConsumerGroupSession) error {
	h.out.Assigned(nil)
	return nil
}

func (h handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for m := range claim.Messages() {
		seen := h.out.Record(driver.Record{Partition: m.Partition, Offset: m.Offset, Key: m.Key, Value: m.Value})
		session.MarkMessage(m, "")
		session.Commit()
		if seen == h.maximum {
			h.stop()
			return nil
		}
	}
	return nil
}

func join(ctx context.Context, job driver.Job, maximum int, out *driver.Output) error {
	group, err := sarama.NewConsumerGroup([]string{job.Bootstrap}, job.Group, config())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := handler{topic: job.Topic(), maximum: maximum, out: out, stop: cancel}
	for ctx.Err() == nil {
		if err := group.Consume(ctx, job.Topics, h); err != nil && ctx.Err() == nil {
			return errors.Join(fmt.Errorf("consume: %w", err), group.Close())
		}
	}
	return group.Close()
}

func (client) Resume(ctx context.Context, job driver.Job, out *driver.Output) error {
	if err := join(ctx, job, job.Max, out); err != nil {
		return err
	}
	return ctx.Err()
}

func (client) Member(ctx context.Context, job driver.Job, out *driver.Output) error {
	return join(ctx, job, 0, out)
}

func (client) Admin(ctx context.Context, job driver.Job, out *driver.Output) error {
	admin, err := sarama.NewClusterAdmin([]string{job.Bootstrap}, config())
	if err != nil {
		return err
	}
	return errors.Join(administer(ctx, admin, job.Topic(), out), admin.Close())
}

func administer(ctx context.Context, admin sarama.ClusterAdmin, topic string, out *driver.Output) error {
	first, last := driver.RetentionAtFirst, driver.RetentionAtLast
	err := admin.CreateTopic(topic, &sarama.TopicDetail{
		NumPartitions: driver.PartitionsAtFirst, ReplicationFactor: 1,
		ConfigEntries: map[string]*string{driver.RetentionKey: &first},
	}, false)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	out.Line("created")
	partitions := func(want int) error {
		return driver.Eventually(ctx, "describe", func() (bool, error) {
			topics, err := admin.DescribeTopics([]string{topic})
			return err == nil && len(topics) == 1 && len(topics[0].Partitions) == want, err
		})
	}
	if err := partitions(driver.PartitionsAtFirst); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtFirst)

	retention := func(want string) error {
		return driver.Eventually(ctx, "describe config", func() (bool, error) {
			described, err := admin.DescribeConfigs([]*sarama.ConfigResource{
				{Type: sarama.TopicResource, Name: topic, ConfigNames: []string{driver.RetentionKey}},
			}, sarama.DescribeConfigsOptions{})
			if err != nil {
				return false, err
			}
			if code := described[0].ErrorCode; code != sarama.ErrNoError {
				return false, code
			}
			return len(described[0].Configs) == 1 && described[0].Configs[0].Value == want, nil
		})
	}
	if err := retention(first); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, first)
	err = admin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{
		driver.RetentionKey: {Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &last},
	}, false)
	if err != nil {
		return fmt.Errorf("alter config: %w", err)
	}
	if err := retention(last); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, last)

	if err := admin.CreatePartitions(topic, driver.PartitionsAtLast, nil, false); err != nil {
		return fmt.Errorf("add partitions: %w", err)
	}
	if err := partitions(driver.PartitionsAtLast); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtLast)

	if err := admin.DeleteTopic(topic); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err = driver.Eventually(ctx, "describe after delete", func() (bool, error) {
		topics, err := admin.ListTopics()
		_, there := topics[topic]
		return !there, err
	})
	if err != nil {
		return err
	}
	out.Line("deleted")
	return nil
}
