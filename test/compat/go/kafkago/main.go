// Command kafkago is the compatibility driver of segmentio/kafka-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/varve-io/varve/test/compat/go/driver"
)

func main() { driver.Main(client{}) }

type client struct{}

var codecs = map[string]kafka.Compression{
	"none": 0, "gzip": kafka.Gzip, "snappy": kafka.Snappy, "lz4": kafka.Lz4, "zstd": kafka.Zstd,
}

func (client) Produce(ctx context.Context, job driver.Job, records []driver.Record) error {
	if job.Idempotent {
		return errors.New("kafka-go has no idempotent producer")
	}
	writer := &kafka.Writer{
		Addr: kafka.TCP(job.Bootstrap), Topic: job.Topic(), RequiredAcks: kafka.RequireAll,
		Compression: codecs[job.Codec], BatchTimeout: 20 * time.Millisecond,
	}
	messages := make([]kafka.Message, 0, len(records))
	for _, r := range records {
		messages = append(messages, kafka.Message{Key: r.Key, Value: r.Value})
	}
	return errors.Join(writer.WriteMessages(ctx, messages...), writer.Close())
}

func show(out *driver.Output, m kafka.Message) {
	out.Record(driver.Record{Partition: int32(m.Partition), Offset: m.Offset, Key: m.Key, Value: m.Value})
}

func (client) Consume(ctx context.Context, job driver.Job, out *driver.Output) error {
	for _, topic := range job.Topics {
		connection, err := kafka.DialLeader(ctx, "tcp", job.Bootstrap, topic, 0)
		if err != nil {
			return fmt.Errorf("dial leader of %s: %w", topic, err)
		}
		end, err := connection.ReadLastOffset()
		if err := errors.Join(err, connection.Close()); err != nil {
			return fmt.Errorf("end of %s: %w", topic, err)
		}
		reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{job.Bootstrap}, Topic: topic, MaxWait: time.Second})
		for next := int64(0); next < end; {
			m, err := reader.ReadMessage(ctx)
			if err != nil {
				return fmt.Errorf("read %s, at offset %d of %d: %w", topic, next, end, err)
			}
			show(out, m)
			next = m.Offset + 1
		}
		if err := reader.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (client) Seek(ctx context.Context, job driver.Job, out *driver.Output) error {
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{job.Bootstrap}, Topic: job.Topic(), MaxWait: time.Second})
	if err := reader.SetOffsetAt(ctx, job.Since); err != nil {
		return fmt.Errorf("seek: %w", err)
	}
	for range job.Max {
		m, err := reader.ReadMessage(ctx)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		show(out, m)
	}
	return reader.Close()
}

func (client) Resume(ctx context.Context, job driver.Job, out *driver.Output) error {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{job.Bootstrap}, Topic: job.Topic(), GroupID: job.Group, StartOffset: kafka.FirstOffset, MaxWait: time.Second,
	})
	for range job.Max {
		m, err := reader.FetchMessage(ctx)
		if err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		show(out, m)
		if err := reader.CommitMessages(ctx, m); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
	}
	return reader.Close()
}

// Member uses kafka-go's ConsumerGroup: its Reader, which uses that too, does not tell the assignment.
func (client) Member(ctx context.Context, job driver.Job, out *driver.Output) error {
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: job.Group, Brokers: []string{job.Bootstrap}, Topics: job.Topics, StartOffset: kafka.FirstOffset,
		HeartbeatInterval: 500 * time.Millisecond, SessionTimeout: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	for {
		generation, err := group.Next(ctx)
		if ctx.Err() != nil {
			return group.Close()
		}
		if passing := kafka.Error(0); errors.As(err, &passing) && passing.Temporary() {
			continue // as its Reader does; the group has waited before it told
		}
		if err != nil {
			return errors.Join(fmt.Errorf("next generation: %w", err), group.Close())
		}
		var own []int32
		for _, assigned := range generation.Assignments[job.Topic()] {
			own = append(own, int32(assigned.ID))
			generation.Start(func(ctx context.Context) { follow(ctx, job, generation, assigned, out) })
		}
		out.Assigned(own)
	}
}

// follow reads one partition until its generation ends.
func follow(ctx context.Context, job driver.Job, generation *kafka.Generation, assigned kafka.PartitionAssignment, out *driver.Output) {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{job.Bootstrap}, Topic: job.Topic(), Partition: assigned.ID, MaxWait: time.Second,
	})
	err := reader.SetOffset(assigned.Offset)
	for err == nil {
		var m kafka.Message
		if m, err = reader.ReadMessage(ctx); err == nil {
			show(out, m)
			err = generation.CommitOffsets(map[string]map[int]int64{job.Topic(): {m.Partition: m.Offset + 1}})
		}
	}
	if !errors.Is(err, context.Canceled) && !errors.Is(err, kafka.ErrGenerationEnded) && !errors.Is(err, io.EOF) {
		out.Line("error\tpartition %d: %v", assigned.ID, err)
	}
	if err := reader.Close(); err != nil {
		out.Line("error\tclose: %v", err)
	}
}

func (client) Admin(ctx context.Context, job driver.Job, out *driver.Output) error {
	c, topic := &kafka.Client{Addr: kafka.TCP(job.Bootstrap)}, job.Topic()
	created, err := c.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: driver.PartitionsAtFirst, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: driver.RetentionKey, ConfigValue: driver.RetentionAtFirst}},
	}}})
	if err == nil {
		err = created.Errors[topic]
	}
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	out.Line("created")
	if err := partitions(ctx, c, topic, driver.PartitionsAtFirst); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtFirst)
	if err := retention(ctx, c, topic, driver.RetentionAtFirst); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, driver.RetentionAtFirst)

	altered, err := c.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{
				Name: driver.RetentionKey, Value: driver.RetentionAtLast, ConfigOperation: kafka.ConfigOperationSet,
			}},
		}},
	})
	if err == nil {
		err = altered.Resources[0].Error
	}
	if err != nil {
		return fmt.Errorf("alter config: %w", err)
	}
	if err := retention(ctx, c, topic, driver.RetentionAtLast); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, driver.RetentionAtLast)

	added, err := c.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{
		Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: driver.PartitionsAtLast}},
	})
	if err == nil {
		err = added.Errors[topic]
	}
	if err != nil {
		return fmt.Errorf("add partitions: %w", err)
	}
	if err := partitions(ctx, c, topic, driver.PartitionsAtLast); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtLast)
	return remove(ctx, c, topic, out)
}

func remove(ctx context.Context, c *kafka.Client, topic string, out *driver.Output) error {
	deleted, err := c.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	if err == nil {
		err = deleted.Errors[topic]
	}
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err = driver.Eventually(ctx, "describe after delete", func() (bool, error) {
		metadata, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return false, err
		}
		return errors.Is(metadata.Topics[0].Error, kafka.UnknownTopicOrPartition), nil
	})
	if err != nil {
		return err
	}
	out.Line("deleted")
	return nil
}

func partitions(ctx context.Context, c *kafka.Client, topic string, want int) error {
	return driver.Eventually(ctx, "describe", func() (bool, error) {
		metadata, err := c.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			return false, err
		}
		return len(metadata.Topics[0].Partitions) == want, nil
	})
}

func retention(ctx context.Context, c *kafka.Client, topic, want string) error {
	return driver.Eventually(ctx, "describe config", func() (bool, error) {
		described, err := c.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{driver.RetentionKey},
		}}})
		if err != nil {
			return false, err
		}
		return slices.ContainsFunc(described.Resources[0].ConfigEntries, func(e kafka.DescribeConfigResponseConfigEntry) bool {
			return e.ConfigName == driver.RetentionKey && e.ConfigValue == want
		}), described.Resources[0].Error
	})
}
