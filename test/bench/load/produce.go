package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// produceTimeout is what a request allows the broker, and how long the
// generator waits for an answer before it gives up.
const produceTimeout = 30 * time.Second

// runProduce fills the topic as fast as the broker takes it.
func runProduce(ctx context.Context, cfg Config, t *topic) (Throughput, error) {
	template := newBatchTemplate(cfg.RecordBytes, cfg.BatchBytes, time.Now().UnixMilli())
	batch := template.cut(template.recordsMax())
	budget := newBudget(cfg.BytesMax, cfg.Duration)

	connCtx, closeConns := context.WithCancel(ctx)
	defer closeConns()
	group, connCtx := errgroup.WithContext(connCtx)
	var producers []*producer
	for _, s := range t.shares(cfg.Connections) {
		p, err := newProducer(connCtx, cfg.idempotent(), t, s)
		if err != nil {
			return Throughput{}, err
		}
		producers = append(producers, p)
		if err := p.build(cfg.Acks, batch, template); err != nil {
			return Throughput{}, err
		}
	}

	var batches atomic.Int64
	latencies := make([]*histogram, len(producers))
	for i, p := range producers {
		latency := newHistogram()
		latencies[i] = latency
		p.acknowledged = func(f flight, now time.Time) {
			latency.record(now.Sub(f.sent))
			batches.Add(int64(len(p.batches)))
		}
	}
	meter := startMeter(ctx, cfg)
	budget.start()
	for _, p := range producers {
		group.Go(p.receive)
		group.Go(func() error { return p.send(budget) })
	}
	if err := group.Wait(); err != nil {
		return Throughput{}, err
	}
	cost, err := meter.stop(ctx)
	if err != nil {
		return Throughput{}, err
	}
	result := Throughput{
		Records: batches.Load() * int64(template.recordsMax()),
		Request: mergeQuantiles(latencies),
	}
	result.Bytes = result.Records * int64(cfg.RecordBytes)
	result.Cost = cost
	return result, nil
}

// budget ends a throughput phase after so many bytes or so long, whichever
// comes first. It may be used by many goroutines.
type budget struct {
	bytes    atomic.Int64
	duration time.Duration
	deadline time.Time
}

func newBudget(bytesMax int64, duration time.Duration) *budget {
	b := &budget{duration: duration}
	b.bytes.Store(bytesMax)
	return b
}

// start begins to count the time; to be called before any take.
func (b *budget) start() { b.deadline = time.Now().Add(b.duration) }

// take asks for leave to move n more bytes.
func (b *budget) take(n int64) bool {
	return b.bytes.Add(-n) > -n && time.Now().Before(b.deadline)
}

// producer sends over one connection, with up to inFlightMax requests open.
// The sender and the receiver share nothing but flight, whose order is that of
// the requests and therefore of the responses (Kafka answers in order).
type producer struct {
	conn     *conn
	topic    *topic
	share    share
	identity producerID
	version  int16
	flight   chan flight
	slots    chan struct{} // holds one token per open request

	// Of the sender alone.
	frame     []byte // a whole Produce request
	batches   [][]byte
	sequences []int32
	records   int32 // in each batch
	values    int64 // bytes of record values in the request

	// acknowledged is called by the receiver for each answered request.
	acknowledged func(f flight, now time.Time)
}

// flight is one request that waits for its answer.
type flight struct {
	correlation int32
	sent        time.Time // of the throughput phases
	due         schedule  // of the latency phase: the records in the request
}

// newProducer connects, and asks for a producer id if it is to be idempotent.
func newProducer(ctx context.Context, idempotent bool, t *topic, s share) (*producer, error) {
	c, err := dial(ctx, s.address)
	if err != nil {
		return nil, err
	}
	p := &producer{
		conn: c, topic: t, share: s, identity: noProducer,
		flight:    make(chan flight, inFlightMax),
		slots:     make(chan struct{}, inFlightMax),
		sequences: make([]int32, len(s.partitions)),
	}
	request := kmsg.NewPtrProduceRequest()
	if err := c.prepare(request); err != nil {
		return nil, err
	}
	p.version = request.Version
	if !idempotent {
		return p, nil
	}
	p.identity, err = initProducerID(ctx, c)
	return p, err
}

// initProducerID asks for an id without a transaction, which any broker gives
// (KIP-98). A broker that has run out of its block of ids answers with a
// retriable error until the controller has given it the next.
func initProducerID(ctx context.Context, c *conn) (producerID, error) {
	request, response := kmsg.NewPtrInitProducerIDRequest(), kmsg.NewPtrInitProducerIDResponse()
	if err := c.prepare(request); err != nil {
		return noProducer, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for {
		if err := c.roundTrip(request, response); err != nil {
			return noProducer, err
		}
		err := kerr.ErrorForCode(response.ErrorCode)
		if err == nil {
			return producerID{id: response.ProducerID, epoch: response.ProducerEpoch}, nil
		}
		if !kerr.IsRetriable(err) {
			return noProducer, fmt.Errorf("init producer id: %w", err)
		}
		select {
		case <-ctx.Done():
			return noProducer, fmt.Errorf("init producer id: %w", err)
		case <-ticker.C:
		}
	}
}

// request returns a Produce request with a batch for each of the given
// partitions of the topic.
func (p *producer) request(acks int16, partitions []int32, batch []byte) *kmsg.ProduceRequest {
	request := kmsg.NewPtrProduceRequest()
	request.Version = p.version
	request.Acks = acks
	request.TimeoutMillis = int32(produceTimeout.Milliseconds())
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.TopicID = p.topic.name, p.topic.id
	for _, partition := range partitions {
		part := kmsg.NewProduceRequestTopicPartition()
		part.Partition, part.Records = partition, batch
		topic.Partitions = append(topic.Partitions, part)
	}
	request.Topics = append(request.Topics, topic)
	return request
}

// build encodes the request that is sent again and again, and finds its
// batches in the encoded form.
func (p *producer) build(acks int16, batch []byte, template batchTemplate) error {
	p.records = int32(template.recordsMax())
	p.values = int64(p.records) * int64(template.recordBytes) * int64(len(p.share.partitions))
	p.frame = formatter.AppendRequest(nil, p.request(acks, p.share.partitions, batch), 0)
	rest := p.frame
	for range p.share.partitions {
		at := bytes.Index(rest, batch)
		if at < 0 {
			return errors.New("encoded produce request lacks a batch")
		}
		p.batches = append(p.batches, rest[at:at+len(batch)])
		rest = rest[at+len(batch):]
	}
	return nil
}

// send writes requests until the budget is used up or the receiver stops.
func (p *producer) send(b *budget) error {
	defer close(p.flight)
	for correlation := int32(0); b.take(p.values); correlation++ {
		p.slots <- struct{}{}
		binary.BigEndian.PutUint32(p.frame[8:], uint32(correlation))
		for i, batch := range p.batches { // without idempotence too: a client makes the checksum of each batch that it sends
			seal(batch, p.identity, p.nextSequence(i, p.records))
		}
		p.flight <- flight{
			correlation: correlation,
			sent:        time.Now(),
		}
		if _, err := p.conn.Write(p.frame); err != nil {
			return writeError(err)
		}
	}
	return nil
}

// writeError is what a sender returns when it cannot write. A connection that
// was closed on this side is no error: whoever closed it, the receiver or the
// end of the run, knows why.
func writeError(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("write Produce request: %w", err)
}

// nextSequence hands out the sequence numbers of n records for the partition
// at this index of the share.
func (p *producer) nextSequence(index int, n int32) int32 {
	if p.identity == noProducer {
		return -1
	}
	sequence := p.sequences[index]
	p.sequences[index] += n
	if p.sequences[index] < 0 { // wraps to zero after 2^31-1 (KIP-98)
		p.sequences[index] += -1 << 31
	}
	return sequence
}

// receive takes answers until the sender has stopped and nothing is open. On
// an error it closes the connection, so that the sender stops too.
func (p *producer) receive() (err error) {
	defer func() {
		if err != nil {
			err = joinClose(err, p.conn.Close())
			for range p.flight { // lets the sender run into the closed connection
				<-p.slots
			}
		}
	}()
	response := kmsg.NewPtrProduceResponse()
	response.Version = p.version
	for f := range p.flight {
		if err := p.conn.SetReadDeadline(time.Now().Add(2 * produceTimeout)); err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		correlation, err := p.conn.read(response)
		if err != nil {
			return err
		}
		now := time.Now()
		if correlation != f.correlation {
			return fmt.Errorf("produce response %d, want %d", correlation, f.correlation)
		}
		if err := produceError(response); err != nil {
			return err
		}
		<-p.slots
		p.acknowledged(f, now)
	}
	return nil
}

// produceError returns the first partition's error: the generator runs against
// a healthy broker, where none is expected.
func produceError(response *kmsg.ProduceResponse) error {
	for _, topic := range response.Topics {
		for _, p := range topic.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("produce to partition %d: %w", p.Partition, err)
			}
		}
	}
	return nil
}
