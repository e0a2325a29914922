package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// stamp is what the values of a transaction's records begin with.
type stamp struct {
	counts   bool          // its latency is wanted
	begin    time.Duration // since the start of the run
	producer uint32
	number   uint32 // of the producer's transactions
	records  uint32 // in the transaction
}

// stampBytes is the size of a stamp, and the least size of a value.
const stampBytes = 1 + 8 + 4 + 4 + 4

func (s stamp) write(value []byte) {
	value[0] = 0
	if s.counts {
		value[0] = 1
	}
	binary.BigEndian.PutUint64(value[1:], uint64(s.begin))
	binary.BigEndian.PutUint32(value[9:], s.producer)
	binary.BigEndian.PutUint32(value[13:], s.number)
	binary.BigEndian.PutUint32(value[17:], s.records)
}

func readStamp(value []byte) (stamp, error) {
	if len(value) < stampBytes {
		return stamp{}, fmt.Errorf("a value of %d bytes, want %d for its stamp", len(value), stampBytes)
	}
	return stamp{
		counts:   value[0] == 1,
		begin:    time.Duration(binary.BigEndian.Uint64(value[1:])),
		producer: binary.BigEndian.Uint32(value[9:]),
		number:   binary.BigEndian.Uint32(value[13:]),
		records:  binary.BigEndian.Uint32(value[17:]),
	}, nil
}

// tally is what a consumer has seen of transactions. It may be used by several goroutines.
type tally struct {
	mu        sync.Mutex
	left      map[[2]uint32]uint32 // the records that are missing, by producer and number
	complete  int64
	expected  int64 // -1 until it is known
	all       chan struct{}
	histogram *histogram
}

func newTally() *tally {
	return &tally{left: make(map[[2]uint32]uint32), expected: -1, all: make(chan struct{}), histogram: newHistogram()}
}

// arrive takes a record of which the consumer has learnt so long after the start of the run.
func (y *tally) arrive(s stamp, now time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	key := [2]uint32{s.producer, s.number}
	left, begun := y.left[key]
	if !begun {
		left = s.records
	}
	if left > 1 {
		y.left[key] = left - 1
		return
	}
	delete(y.left, key)
	y.complete++
	if s.counts {
		y.histogram.record(now - s.begin)
	}
	if y.complete == y.expected {
		close(y.all)
	}
}

// await waits until so many transactions are complete. It fails if the consumer does, and if it has parts of others by then.
func (y *tally) await(transactions int64, consumer <-chan error) error {
	y.mu.Lock()
	y.expected = transactions
	if y.complete == y.expected {
		close(y.all)
	}
	y.mu.Unlock()
	var err error
	limit := time.NewTimer(drainTimeout)
	defer limit.Stop()
	select {
	case <-y.all:
	case err = <-consumer:
	case <-limit.C:
		err = errors.New("the consumer waits for more")
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if err == nil && len(y.left) > 0 {
		err = errors.New("more than was committed")
	}
	if err != nil {
		return fmt.Errorf("%d of %d transactions were read, and parts of %d others: %w", y.complete, transactions, len(y.left), err)
	}
	return nil
}

// follow reads the output of transactions until ctx ends.
func (r *transactions) follow(ctx context.Context) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(r.cfg.Target.Bootstrap),
		kgo.ClientID(clientID),
		kgo.ConsumeTopics(r.output.name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(fetchWait),
		kgo.FetchMinBytes(fetchBytesMin),
	)
	if err != nil {
		return fmt.Errorf("franz-go consumer: %w", err)
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		now := time.Since(r.start)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("franz-go fetch: %w", err)
		}
		var failed error
		fetches.EachRecord(func(record *kgo.Record) {
			s, err := readStamp(record.Value)
			if err != nil {
				failed = err
				return
			}
			r.tally.arrive(s, now)
		})
		if failed != nil {
			return failed
		}
	}
}
