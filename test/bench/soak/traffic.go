package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// bufferedMax is how many records wait in the client until the writer waits, too.
const bufferedMax = 10_000

// pulse is how often the writer writes what is due.
const pulse = 10 * time.Millisecond

// topic is one that is written to.
type topic struct {
	name    string
	configs map[string]string
}

// topics are those of a plan; each gets the same part of the load.
func (p plan) topics() []topic {
	share := p.rateBytes / 2 / partitions * p.retention.Seconds()
	return []topic{
		{"by-time", map[string]string{"retention.ms": strconv.FormatInt(p.retention.Milliseconds(), 10)}},
		{"by-size", map[string]string{"retention.bytes": strconv.FormatInt(int64(share), 10)}},
	}
}

// traffic writes at a steady rate, and reads all of it at the tail.
type traffic struct {
	topics        []topic
	rateBytes     float64
	client        *kgo.Client
	work          sync.WaitGroup
	reading       context.CancelFunc
	written, read atomic.Int64 // bytes of values
	failure       atomic.Pointer[error]
}

// newTraffic creates the topics.
func newTraffic(ctx context.Context, p plan, seeds []string) (*traffic, error) {
	t := &traffic{topics: p.topics(), rateBytes: p.rateBytes}
	var names []string
	for _, of := range t.topics {
		names = append(names, of.name)
	}
	var err error
	t.client, err = kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.MaxBufferedRecords(bufferedMax), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.ProducerLinger(pulse), kgo.ConsumeTopics(names...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.UnknownTopicRetries(-1))
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	admin := kadm.NewClient(t.client)
	for _, of := range t.topics {
		configs := make(map[string]*string)
		for name, value := range of.configs {
			configs[name] = &value
		}
		if _, err := admin.CreateTopic(ctx, partitions, -1, configs, of.name); err != nil {
			t.client.Close()
			return nil, fmt.Errorf("create topic %s: %w", of.name, err)
		}
	}
	return t, nil
}

// begin writes until ctx ends, and reads until end.
func (t *traffic) begin(ctx context.Context) {
	t.work.Go(func() { t.write(ctx) })
	reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.reading = cancel
	t.work.Go(func() {
		for reading.Err() == nil {
			fetches := t.client.PollFetches(reading)
			fetches.EachRecord(func(r *kgo.Record) { t.read.Add(int64(len(r.Value))) })
		}
	})
}

// write writes what is due by the clock. What could not be written in time is written later.
func (t *traffic) write(ctx context.Context) {
	began, tick := time.Now(), time.NewTicker(pulse)
	defer tick.Stop()
	random := rand.NewChaCha8([32]byte{1}) // does not compress
	for sent := int64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for due := int64(time.Since(began).Seconds() * t.rateBytes / recordBytes); sent < due && ctx.Err() == nil; sent++ {
			value := make([]byte, recordBytes)
			for at := 0; at < recordBytes; at += 8 {
				binary.LittleEndian.PutUint64(value[at:], random.Uint64())
			}
			record := &kgo.Record{Topic: t.topics[sent%int64(len(t.topics))].name, Value: value}
			t.client.Produce(context.WithoutCancel(ctx), record, func(r *kgo.Record, err error) {
				if err != nil {
					t.failure.CompareAndSwap(nil, &err)
					return
				}
				t.written.Add(int64(len(r.Value)))
			})
		}
	}
}

// end waits for what is under way, and returns what went wrong.
func (t *traffic) end(ctx context.Context) error {
	err := t.client.Flush(ctx)
	t.reading()
	t.work.Wait()
	if failure := t.failure.Load(); failure != nil {
		err = errors.Join(err, fmt.Errorf("produce: %w", *failure))
	}
	return err
}

func (t *traffic) close() { t.client.Close() }
