package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const topic = "keyed"

// bufferedMax is how many records wait in the client until the writer waits, too.
const bufferedMax = 200_000

// isDeleted reports whether the last record of a key is a tombstone.
func isDeleted(key int) bool { return key%10 == 0 }

// step is coprime to the number of keys, so that its multiples are all of them: the order of a round.
func step(keys, round int) int {
	at := int(float64(keys)*[]float64{0.618, 0.382}[round%2]) | 1
	for gcd(at, keys) != 1 {
		at += 2
	}
	return at
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// write creates the topic and writes all rounds. It returns how many bytes of keys and values were acknowledged.
func write(ctx context.Context, address string, keys int) (int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.MaxBufferedRecords(bufferedMax), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(5*time.Millisecond),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.UnknownTopicRetries(-1))
	if err != nil {
		return 0, fmt.Errorf("make client: %w", err)
	}
	defer client.Close()
	configs := make(map[string]*string)
	for name, value := range map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": strconv.FormatFloat(dirtyRatio, 'f', -1, 64)} {
		configs[name] = &value
	}
	if _, err := kadm.NewClient(client).CreateTopic(ctx, partitions, -1, configs, topic); err != nil {
		return 0, fmt.Errorf("create topic: %w", err)
	}
	var bytes atomic.Int64
	var failure atomic.Pointer[error]
	value := make([]byte, valueBytes)
	for i := range value {
		value[i] = byte(rand.Int())
	}
	for round := range rounds {
		by := step(keys, round)
		for i, key := 0, 0; i < keys && failure.Load() == nil; i, key = i+1, (key+by)%keys {
			r := &kgo.Record{Topic: topic, Partition: int32(key % partitions), Key: binary.BigEndian.AppendUint64(nil, uint64(key))}
			if round < rounds-1 || !isDeleted(key) {
				r.Value = append([]byte{byte(round)}, value[1:]...)
			}
			client.Produce(ctx, r, func(r *kgo.Record, err error) {
				if err != nil {
					failure.CompareAndSwap(nil, &err)
					return
				}
				bytes.Add(int64(len(r.Key) + len(r.Value)))
			})
		}
	}
	if err := client.Flush(ctx); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	if err := failure.Load(); err != nil {
		return 0, fmt.Errorf("write: %w", *err)
	}
	return bytes.Load(), nil
}

// compare reads the topic from its beginning.
func (r *result) compare(ctx context.Context, address string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(address), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the end: %w", err)
	}
	last := make([]int8, r.keys) // the round of each key's last record; 0 for none, negative for a tombstone
	next := make(map[int32]int64)
	left := 0
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left++
		}
	})
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			record := iter.Next()
			end, _ := ends.Lookup(topic, record.Partition)
			if record.Offset < next[record.Partition] {
				return fmt.Errorf("read: offset %d of partition %d comes after %d", record.Offset, record.Partition, next[record.Partition]-1)
			}
			next[record.Partition] = record.Offset + 1
			if record.Offset+1 == end.Offset {
				left--
			}
			r.records++
			key := binary.BigEndian.Uint64(record.Key)
			if last[key] = -1; record.Value != nil {
				last[key] = int8(record.Value[0]) + 1
			}
		}
	}
	for key, is := range last {
		deleted := isDeleted(key) && is <= 0 // by its tombstone, or with it
		if !deleted && (isDeleted(key) || is != rounds) {
			r.wrong++
		}
	}
	return nil
}
