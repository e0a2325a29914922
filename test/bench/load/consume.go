package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// What a fetch asks for: the defaults of the Java consumer.
const (
	fetchWait           = 500 * time.Millisecond
	fetchBytesMin       = 1
	fetchBytesMax       = 50 << 20
	fetchPartitionBytes = 1 << 20
	fetchTimeout        = 30 * time.Second
)

// windowTurns is how many times Config.BytesMax is read from memory: reading is
// faster than writing and fills no disk.
const windowTurns = 4

// readMode is what the consume phase reads.
type readMode int

const (
	// readWindow reads the last Config.WindowBytes again and again, which a
	// broker has in memory.
	readWindow readMode = iota
	// readAll reads the topic once from its start, and fails if a record is
	// missing.
	readAll
)

// runConsume reads the topic as fast as the broker gives it.
func runConsume(ctx context.Context, cfg Config, t *topic, mode readMode) (Throughput, error) {
	ends, err := t.ends(ctx)
	if err != nil {
		return Throughput{}, err
	}
	var total int64
	starts := make([]int64, len(ends))
	for p, end := range ends {
		total += end
		if mode == readWindow {
			starts[p] = max(0, end-cfg.WindowBytes/int64(len(ends)*cfg.RecordBytes))
		}
	}
	if total == 0 {
		return Throughput{}, errors.New("nothing to read")
	}

	connCtx, closeConns := context.WithCancel(ctx)
	defer closeConns()
	group, connCtx := errgroup.WithContext(connCtx)
	var consumers []*consumer
	for _, s := range disjoint(t.shares(cfg.Connections)) {
		c, err := newConsumer(connCtx, t, s)
		if err != nil {
			return Throughput{}, err
		}
		for i, p := range s.partitions {
			c.cursors[i] = cursor{partition: p, start: starts[p], end: ends[p], next: starts[p]}
		}
		consumers = append(consumers, c)
	}

	budget := newBudget(windowTurns*cfg.BytesMax, cfg.Duration)
	if mode == readAll {
		budget = newBudget(total*int64(cfg.RecordBytes)+1, 10*cfg.Duration)
	}
	meter := startMeter(ctx, cfg)
	budget.start()
	for _, c := range consumers {
		group.Go(func() error { return c.run(budget, mode, cfg.RecordBytes) })
	}
	if err := group.Wait(); err != nil {
		return Throughput{}, err
	}
	cost, err := meter.stop(ctx)
	if err != nil {
		return Throughput{}, err
	}
	var result Throughput
	latencies := make([]*histogram, 0, len(consumers))
	for _, c := range consumers {
		result.Records += c.records
		latencies = append(latencies, c.latency)
	}
	if mode == readAll && result.Records != total {
		return Throughput{}, fmt.Errorf("read %d records, want %d", result.Records, total)
	}
	result.Bytes = result.Records * int64(cfg.RecordBytes)
	result.Request = mergeQuantiles(latencies)
	result.Cost = cost
	return result, nil
}

// disjoint drops the shares that repeat a partition: two consumers of one
// group never read the same one.
func disjoint(shares []share) []share {
	var taken []int32
	return slices.DeleteFunc(shares, func(s share) bool {
		repeated := slices.Contains(taken, s.partitions[0])
		taken = append(taken, s.partitions...)
		return repeated
	})
}

// cursor is a partition's place in the reading.
type cursor struct {
	partition        int32
	start, end, next int64 // offsets; end is exclusive
}

// consumer reads some partitions over one connection, one fetch at a time, as
// the Java consumer does with one broker. It is used by one goroutine.
type consumer struct {
	conn     *conn
	topic    *topic
	cursors  []cursor
	request  *kmsg.FetchRequest
	response *kmsg.FetchResponse
	frame    []byte

	records int64
	latency *histogram // of whole fetches
	// rateBytes is how many bytes per second it reads at most; 0 is as many as it gets.
	rateBytes float64
}

func newConsumer(ctx context.Context, t *topic, s share) (*consumer, error) {
	nc, err := dial(ctx, s.address)
	if err != nil {
		return nil, err
	}
	c := &consumer{
		conn: nc, topic: t,
		cursors:  make([]cursor, len(s.partitions)),
		request:  kmsg.NewPtrFetchRequest(),
		response: kmsg.NewPtrFetchResponse(),
		latency:  newHistogram(),
	}
	if err := nc.prepare(c.request); err != nil {
		return nil, err
	}
	c.request.MaxWaitMillis = int32(fetchWait.Milliseconds())
	c.request.MinBytes = fetchBytesMin
	c.request.MaxBytes = fetchBytesMax
	c.response.Version = c.request.Version
	return c, nil
}

// run reads until the budget is used up or, with readAll, everything is read.
func (c *consumer) run(b *budget, mode readMode, recordBytes int) error {
	start := time.Now()
	for b.take(0) {
		if c.rateBytes > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(c.records*int64(recordBytes)) / c.rateBytes * float64(time.Second)))))
		}
		began := time.Now()
		if err := c.fetch(); err != nil {
			return err
		}
		c.latency.record(time.Since(began))
		before := c.records
		err := c.eachBatch(func(cur *cursor, header batchHeader, _ []byte) error {
			first, last := max(header.baseOffset, cur.next), min(header.nextOffset, cur.end)
			c.records += max(0, last-first)
			cur.next = max(cur.next, header.nextOffset)
			return nil
		})
		if err != nil {
			return err
		}
		if !c.advance(mode) || !b.take((c.records-before)*int64(recordBytes)) {
			return nil
		}
	}
	return nil
}

// advance makes the next fetch begin with another partition, so that all get
// their turn, and deals with those read to their end: readWindow begins them
// again, readAll drops them. It reports whether anything is left to read.
func (c *consumer) advance(mode readMode) bool {
	if mode == readAll {
		c.cursors = slices.DeleteFunc(c.cursors, func(cur cursor) bool { return cur.next >= cur.end })
	}
	for i, cur := range c.cursors {
		if cur.next >= cur.end {
			c.cursors[i].next = cur.start
		}
	}
	if len(c.cursors) > 1 {
		c.cursors = append(c.cursors[1:], c.cursors[0])
	}
	return len(c.cursors) > 0
}

// fetch asks for all cursors' partitions and reads the response, which stays
// valid until the next fetch.
func (c *consumer) fetch() error {
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = c.topic.name, c.topic.id
	for _, cur := range c.cursors {
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition = cur.partition
		part.FetchOffset = cur.next
		part.PartitionMaxBytes = fetchPartitionBytes
		topic.Partitions = append(topic.Partitions, part)
	}
	c.request.Topics = append(c.request.Topics[:0], topic)
	c.frame = formatter.AppendRequest(c.frame[:0], c.request, 0)
	if err := c.conn.SetDeadline(time.Now().Add(fetchTimeout)); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if _, err := c.conn.Write(c.frame); err != nil {
		return fmt.Errorf("write fetch request: %w", err)
	}
	if _, err := c.conn.read(c.response); err != nil {
		return err
	}
	if err := kerr.ErrorForCode(c.response.ErrorCode); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	return nil
}

// eachBatch calls f for each whole batch of the last fetch, with the cursor of
// its partition, which f moves.
func (c *consumer) eachBatch(f func(cur *cursor, header batchHeader, batch []byte) error) error {
	for _, topic := range c.response.Topics {
		for i := range topic.Partitions {
			p := &topic.Partitions[i]
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("fetch from partition %d: %w", p.Partition, err)
			}
			at := slices.IndexFunc(c.cursors, func(cur cursor) bool { return cur.partition == p.Partition })
			if at < 0 {
				return fmt.Errorf("fetch: partition %d was not asked for", p.Partition)
			}
			for rest := p.RecordBatches; ; {
				var header batchHeader
				var batch []byte
				var err error
				if header, batch, rest, err = nextBatch(rest); err != nil {
					return fmt.Errorf("fetch from partition %d: %w", p.Partition, err)
				}
				if batch == nil {
					break
				}
				if err := f(&c.cursors[at], header, batch); err != nil {
					return fmt.Errorf("fetch from partition %d: %w", p.Partition, err)
				}
			}
		}
	}
	return nil
}
