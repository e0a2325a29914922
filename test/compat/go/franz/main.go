// Command franz is the compatibility driver of franz-go.
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/compat/go/driver"
)

func main() { driver.Main(franz{}) }

type franz struct{}

var codecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

func (franz) Produce(ctx context.Context, job driver.Job, records []driver.Record) error {
	options := []kgo.Opt{
		kgo.SeedBrokers(job.Bootstrap), kgo.DefaultProduceTopic(job.Topic()),
		kgo.ProducerBatchCompression(codecs[job.Codec]), kgo.ProducerLinger(20 * time.Millisecond),
	}
	if !job.Idempotent {
		options = append(options, kgo.DisableIdempotentWrite())
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer client.Close()
	batch := make([]*kgo.Record, 0, len(records))
	for _, r := range records {
		batch = append(batch, &kgo.Record{Key: r.Key, Value: r.Value})
	}
	return client.ProduceSync(ctx, batch...).FirstErr()
}

// isolation is what a consumer sees.
func isolation(job driver.Job) kgo.Opt {
	if job.ReadCommitted {
		return kgo.FetchIsolationLevel(kgo.ReadCommitted())
	}
	return kgo.FetchIsolationLevel(kgo.ReadUncommitted())
}

// poll prints records until there are max of them, and returns those.
func poll(ctx context.Context, client *kgo.Client, maximum int, out *driver.Output) ([]*kgo.Record, error) {
	var seen []*kgo.Record
	for len(seen) < maximum {
		fetches := client.PollRecords(ctx, maximum-len(seen))
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("poll, after %d of %d records: %w", len(seen), maximum, err)
		}
		for _, r := range fetches.Records() {
			out.Record(driver.Record{Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
			seen = append(seen, r)
		}
	}
	return seen, nil
}

func (franz) Consume(ctx context.Context, job driver.Job, out *driver.Output) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap), kgo.ConsumeTopics(job.Topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), isolation(job))
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = poll(ctx, client, job.Max, out)
	return err
}

func (franz) Resume(ctx context.Context, job driver.Job, out *driver.Output) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap), kgo.ConsumerGroup(job.Group), kgo.ConsumeTopics(job.Topic()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		return err
	}
	defer client.Close() // leaves the group
	records, err := poll(ctx, client, job.Max, out)
	if err != nil {
		return err
	}
	return client.CommitRecords(ctx, records...)
}

func (franz) Member(ctx context.Context, job driver.Job, out *driver.Output) error {
	var mu sync.Mutex
	own := map[int32]bool{}
	change := func(now bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, changed map[string][]int32) {
			mu.Lock()
			defer mu.Unlock()
			for _, partition := range changed[job.Topic()] {
				if now {
					own[partition] = true
				} else {
					delete(own, partition)
				}
			}
			out.Assigned(slices.Collect(maps.Keys(own)))
		}
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap), kgo.ConsumerGroup(job.Group), kgo.ConsumeTopics(job.Topic()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.HeartbeatInterval(500*time.Millisecond), kgo.SessionTimeout(job.Session),
		kgo.OnPartitionsAssigned(change(true)), kgo.OnPartitionsRevoked(change(false)), kgo.OnPartitionsLost(change(false)))
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		for _, r := range fetches.Records() {
			out.Record(driver.Record{Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
		}
	}
	return client.CommitUncommittedOffsets(context.WithoutCancel(ctx))
}

func (franz) Seek(ctx context.Context, job driver.Job, out *driver.Output) error {
	from := kgo.NewOffset().AfterMilli(job.Since.UnixMilli())
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap), isolation(job),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{job.Topic(): {0: from}}))
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = poll(ctx, client, job.Max, out)
	return err
}

func (franz) Admin(ctx context.Context, job driver.Job, out *driver.Output) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(job.Bootstrap))
	if err != nil {
		return err
	}
	admin, topic := kadm.NewClient(client), job.Topic()
	defer admin.Close()

	first := driver.RetentionAtFirst
	if _, err := admin.CreateTopic(ctx, driver.PartitionsAtFirst, -1, map[string]*string{driver.RetentionKey: &first}, topic); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	out.Line("created")
	partitions := func(want int) error {
		return driver.Eventually(ctx, "describe", func() (bool, error) {
			details, err := admin.ListTopics(ctx, topic)
			return len(details[topic].Partitions) == want, err
		})
	}
	if err := partitions(driver.PartitionsAtFirst); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtFirst)

	retention := func(want string) error {
		return driver.Eventually(ctx, "describe config", func() (bool, error) {
			configs, err := admin.DescribeTopicConfigs(ctx, topic)
			if err != nil {
				return false, err
			}
			resource, err := configs.On(topic, nil)
			if err != nil {
				return false, err
			}
			return slices.ContainsFunc(resource.Configs, func(c kadm.Config) bool {
				return c.Key == driver.RetentionKey && c.MaybeValue() == want
			}), resource.Err
		})
	}
	if err := retention(driver.RetentionAtFirst); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, driver.RetentionAtFirst)
	last := driver.RetentionAtLast
	altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: driver.RetentionKey, Value: &last}}, topic)
	if err != nil {
		return fmt.Errorf("alter config: %w", err)
	}
	if _, err := altered.On(topic, func(r *kadm.AlterConfigsResponse) error { return r.Err }); err != nil {
		return fmt.Errorf("alter config: %w", err)
	}
	if err := retention(driver.RetentionAtLast); err != nil {
		return err
	}
	out.Line("%s %s", driver.RetentionKey, driver.RetentionAtLast)

	updated, err := admin.UpdatePartitions(ctx, driver.PartitionsAtLast, topic)
	if err != nil {
		return fmt.Errorf("add partitions: %w", err)
	}
	if err := updated.Error(); err != nil {
		return fmt.Errorf("add partitions: %w", err)
	}
	if err := partitions(driver.PartitionsAtLast); err != nil {
		return err
	}
	out.Line("partitions %d", driver.PartitionsAtLast)

	if _, err := admin.DeleteTopic(ctx, topic); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	err = driver.Eventually(ctx, "describe after delete", func() (bool, error) {
		details, err := admin.ListTopics(ctx, topic)
		return errors.Is(details[topic].Err, kerr.UnknownTopicOrPartition), err
	})
	if err != nil {
		return err
	}
	out.Line("deleted")
	return nil
}
