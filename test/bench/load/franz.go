package load

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// produceFranz runs the schedule through franz-go, without linger, to one
// partition after the other.
func (o *open) produceFranz(ctx context.Context) error {
	options := []kgo.Opt{
		kgo.SeedBrokers(o.cfg.Target.Bootstrap),
		kgo.ClientID(clientID),
		kgo.DefaultProduceTopic(o.topic.name),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
	}
	if o.cfg.Acks == 1 {
		options = append(options, kgo.RequiredAcks(kgo.LeaderAck()))
	}
	if !o.cfg.idempotent() {
		options = append(options, kgo.DisableIdempotentWrite())
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return fmt.Errorf("franz-go producer: %w", err)
	}
	defer client.Close()

	group, ctx := errgroup.WithContext(ctx)
	failed := make(chan error, 1) // the first failure
	group.Go(func() error {
		o.sendFranz(ctx, client, failed)
		if err := client.Flush(ctx); err != nil {
			return fmt.Errorf("franz-go flush: %w", err)
		}
		close(failed) // after the flush no promise is left to send
		return <-failed
	})
	return group.Wait()
}

// sendFranz is produceFranz's sender. The client calls promises one at a time.
func (o *open) sendFranz(ctx context.Context, client *kgo.Client, failed chan<- error) {
	pace := newPacer()
	defer pace.stop()
	for i := range o.schedule.records {
		due := o.schedule.at(i)
		pace.until(due)
		o.late.observe(due, time.Now())
		value := make([]byte, o.cfg.RecordBytes)
		o.stamp(value, due)
		client.Produce(ctx, &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- fmt.Errorf("franz-go produce: %w", err):
				default:
				}
				return
			}
			o.ack.observe(due, time.Now())
			o.acked.Add(1)
		})
	}
}

// consumeFranz reads the topic with a franz-go consumer.
func (o *open) consumeFranz(ctx context.Context) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(o.cfg.Target.Bootstrap),
		kgo.ClientID(clientID),
		kgo.ConsumeTopics(o.topic.name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMinBytes(fetchBytesMin),
	)
	if err != nil {
		return fmt.Errorf("franz-go consumer: %w", err)
	}
	defer client.Close()
	for o.received < o.schedule.records {
		fetches := client.PollFetches(ctx)
		now := time.Now()
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("franz-go fetch: %w", err)
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			if err := o.arrive(r.Value, now); err != nil && failed == nil {
				failed = err
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}
