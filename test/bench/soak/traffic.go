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

// topicsTotal is how many topics there are.
const topicsTotal = 3

// tombstoneEvery is how many of the records with keys there are for each that deletes its key.
const tombstoneEvery = 20

// pulse is how often the writer writes what is due.
const pulse = 10 * time.Millisecond

// topic is one that is written to.
type topic struct {
	name    string
	configs map[string]string
}

// topics are those of a plan; each gets the same part of the load.
func (p plan) topics() []topic {
	retention := strconv.FormatInt(p.retention.Milliseconds(), 10)
	return []topic{
		{"by-time", map[string]string{"retention.ms": retention}},
		{"by-size", map[string]string{"retention.bytes": strconv.Itoa(p.share() / partitions)}},
		{compacted, map[string]string{"cleanup.policy": "compact", "delete.retention.ms": retention}},
	}
}

// compacted is the topic whose records have keys.
const compacted = "by-key"

// share is how many bytes come to a topic in the time of retention.
func (p plan) share() int { return int(p.rateBytes / topicsTotal * p.retention.Seconds()) }

// keys is how many keys the compacted topic has: as many as there come records in the time of retention.
func (p plan) keys() int { return max(p.share()/recordBytes, partitions) }

// traffic writes at a steady rate, and reads all of it at the tail.
type traffic struct {
	plan   plan
	topics []topic
	seeds  []string
	client *kgo.Client
	// last is, for each key, the number of the last record with it, negative if that is a tombstone, and 0 if there is none. The writer's until end.
	last          []int64
	work          sync.WaitGroup
	reading       context.CancelFunc
	written, read atomic.Int64 // bytes of values
	failure       atomic.Pointer[error]
}

// newTraffic creates the topics.
func newTraffic(ctx context.Context, p plan, seeds []string) (*traffic, error) {
	t := &traffic{plan: p, topics: p.topics(), seeds: seeds, last: make([]int64, p.keys())}
	var names []string
	for _, of := range t.topics {
		names = append(names, of.name)
	}
	var err error
	t.client, err = kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.MaxBufferedRecords(bufferedMax), kgo.RecordPartitioner(kgo.ManualPartitioner()),
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
	random := rand.New(rand.NewPCG(1, 1))
	for sent := int64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for due := int64(time.Since(began).Seconds() * t.plan.rateBytes / recordBytes); sent < due && ctx.Err() == nil; {
			sent++
			t.client.Produce(context.WithoutCancel(ctx), t.record(sent, random), func(r *kgo.Record, err error) {
				if err != nil {
					t.failure.CompareAndSwap(nil, &err)
					return
				}
				t.written.Add(int64(len(r.Value)))
			})
		}
	}
}

// record makes the record with a number. Its value does not compress, and begins with the number.
func (t *traffic) record(number int64, random *rand.Rand) *kgo.Record {
	of := t.topics[number%topicsTotal].name
	record := &kgo.Record{Topic: of, Partition: int32(number / topicsTotal % partitions)}
	if of == compacted {
		key := random.IntN(len(t.last))
		record.Partition, record.Key = int32(key%partitions), binary.BigEndian.AppendUint64(nil, uint64(key))
		if random.IntN(tombstoneEvery) == 0 {
			t.last[key] = -number
			return record
		}
		t.last[key] = number
	}
	record.Value = binary.BigEndian.AppendUint64(make([]byte, 0, recordBytes), uint64(number))
	for len(record.Value) < recordBytes {
		record.Value = binary.LittleEndian.AppendUint64(record.Value, random.Uint64())
	}
	return record
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

// remaining is what compaction has left of a topic.
type remaining struct {
	keys, records int
	wrong         int // keys whose last record is not the last that was written
}

// compare reads the compacted topic from its beginning and compares it with what was written. Nobody writes any more.
func (t *traffic) compare(ctx context.Context) (left remaining, err error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(t.seeds...), kgo.ConsumeTopics(compacted), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return left, fmt.Errorf("make client: %w", err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, compacted)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return left, fmt.Errorf("end of %s: %w", compacted, err)
	}
	read, next := make([]int64, len(t.last)), make([]int64, partitions)
	behind := func() bool {
		for p, at := range next {
			if end, ok := ends.Lookup(compacted, int32(p)); ok && at < end.Offset {
				return true
			}
		}
		return false
	}
	for behind() {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return left, fmt.Errorf("read %s: %w", compacted, err)
		}
		for _, r := range fetches.Records() {
			key := binary.BigEndian.Uint64(r.Key)
			if r.Offset < next[r.Partition] {
				return left, fmt.Errorf("read %s: offset %d of partition %d comes after %d", compacted, r.Offset, r.Partition, next[r.Partition]-1)
			}
			next[r.Partition] = r.Offset + 1
			left.records++
			read[key] = 0
			if r.Value != nil {
				read[key] = int64(binary.BigEndian.Uint64(r.Value))
			}
		}
	}
	for key, number := range t.last {
		if number != 0 {
			left.keys++
		}
		if read[key] != max(number, 0) {
			left.wrong++
		}
	}
	return left, nil
}

func (t *traffic) close() { t.client.Close() }
