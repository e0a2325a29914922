package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// warmupMax is how much of the start of the latency phase is not counted:
	// connections, page faults and the broker's first flush are not the
	// steady state. A fifth of a phase shorter than five times this.
	warmupMax = 5 * time.Second
	// drainTimeout is how long the last records may take to reach a consumer.
	drainTimeout = 10 * time.Second
	// latencyBatchBytes bounds a raw producer's batch, which grows while five
	// requests are open: the default batch size of the Java client.
	latencyBatchBytes = 16 << 10
)

// schedule says when records are due: one every interval, the first at start.
// A slice of it, as a flight holds, starts later and has fewer records.
type schedule struct {
	start    time.Time
	interval time.Duration
	records  int64
}

// at is when record i is due.
func (s schedule) at(i int64) time.Time { return s.start.Add(time.Duration(i) * s.interval) }

// due is how many records are due by now.
func (s schedule) due(now time.Time) int64 {
	if now.Before(s.start) {
		return 0
	}
	return min(s.records, int64(now.Sub(s.start)/s.interval)+1)
}

// slice returns the n records from the first on.
func (s schedule) slice(first, n int64) schedule {
	return schedule{start: s.at(first), interval: s.interval, records: n}
}

// each calls f with the due time of every record.
func (s schedule) each(f func(due time.Time)) {
	for i := range s.records {
		f(s.at(i))
	}
}

// stopwatch keeps the latencies of one kind, past the warm-up. One goroutine
// records.
type stopwatch struct {
	countFrom time.Time
	histogram *histogram
}

// observe counts a record that was due then and arrived now.
func (s *stopwatch) observe(due, now time.Time) {
	if !due.Before(s.countFrom) {
		s.histogram.record(now.Sub(due))
	}
}

// open is one run of the open loop: the schedule, and what came of it.
type open struct {
	cfg      Config
	topic    *topic
	schedule schedule
	late     stopwatch // by how much the generator itself sent late
	ack      stopwatch
	e2e      stopwatch
	acked    atomic.Int64
	received int64
}

// runLatency offers records at a fixed rate and follows each to the
// acknowledgement and to a consumer that waits at the end of the log.
func runLatency(ctx context.Context, cfg Config) (result *Latency, err error) {
	t, err := createTopic(ctx, cfg.Target.Bootstrap, cfg.Partitions)
	if err != nil {
		return nil, err
	}
	defer func() { err = joinClose(err, t.delete(ctx)) }()

	interval := time.Duration(float64(cfg.RecordBytes) / cfg.RateBytes * float64(time.Second))
	start := time.Now().Add(time.Second) // for the clients to connect
	countFrom := start.Add(min(warmupMax, cfg.Duration/5))
	o := &open{
		cfg: cfg, topic: t,
		schedule: schedule{start: start, interval: interval, records: int64(cfg.Duration / interval)},
		late:     stopwatch{countFrom, newHistogram()},
		ack:      stopwatch{countFrom, newHistogram()},
		e2e:      stopwatch{countFrom, newHistogram()},
	}
	meter := startMeter(ctx, cfg)
	if err := o.run(ctx); err != nil {
		return nil, err
	}
	cost, err := meter.stop(ctx)
	if err != nil {
		return nil, err
	}
	return &Latency{
		Client: cfg.Client, RateBytes: cfg.RateBytes, Records: o.schedule.records, Cost: cost,
		Ack: o.ack.histogram.quantiles(), EndToEnd: o.e2e.histogram.quantiles(), SentLate: o.late.histogram.quantiles(),
	}, nil
}

// run starts the consumer and the producer and waits until every record has
// come back.
func (o *open) run(ctx context.Context) error {
	ctx, cancel := context.WithDeadline(ctx, o.schedule.at(o.schedule.records).Add(drainTimeout))
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	switch o.cfg.Client {
	case ClientFranz:
		group.Go(func() error { return o.produceFranz(ctx) })
		group.Go(func() error { return o.consumeFranz(ctx) })
	case ClientRaw:
		group.Go(func() error { return o.produceRaw(ctx) })
		group.Go(func() error { return o.consumeRaw(ctx) })
	}
	err := group.Wait()
	if acked := o.acked.Load(); err != nil {
		return fmt.Errorf("%d of %d records were acknowledged and %d read: %w", acked, o.schedule.records, o.received, err)
	}
	return nil
}

// stamp writes into a value when its record is due.
func (o *open) stamp(value []byte, due time.Time) {
	binary.BigEndian.PutUint64(value, uint64(due.Sub(o.schedule.start)))
}

// arrive takes a value that a consumer read.
func (o *open) arrive(value []byte, now time.Time) error {
	if len(value) != o.cfg.RecordBytes {
		return fmt.Errorf("a value of %d bytes, want %d", len(value), o.cfg.RecordBytes)
	}
	o.received++
	o.e2e.observe(o.schedule.start.Add(time.Duration(binary.BigEndian.Uint64(value))), now)
	return nil
}

// produceRaw sends each record as soon as it is due, alone unless several are
// due, over one connection and to one partition after the other. With
// inFlightMax requests open it waits, and records gather for the next.
func (o *open) produceRaw(ctx context.Context) error {
	if address := o.topic.leaders[0]; len(o.topic.shares(1)) > 1 {
		return fmt.Errorf("the raw client measures one broker: not all partitions are led by %s; use --client %s", address, ClientFranz)
	}
	p, err := newProducer(ctx, o.cfg.idempotent(), o.topic, o.topic.shares(1)[0])
	if err != nil {
		return err
	}
	p.acknowledged = func(f flight, now time.Time) {
		f.due.each(func(due time.Time) { o.ack.observe(due, now) })
		o.acked.Add(f.due.records)
	}
	group, _ := errgroup.WithContext(ctx)
	group.Go(p.receive)
	group.Go(func() error { return o.sendRaw(p) })
	return group.Wait()
}

// sendRaw is produceRaw's sender.
func (o *open) sendRaw(p *producer) error {
	defer close(p.flight)
	template := newBatchTemplate(o.cfg.RecordBytes, max(latencyBatchBytes, o.cfg.RecordBytes+batchOverheadBytesMax), time.Now().UnixMilli())
	pace := newPacer()
	defer pace.stop()
	var frame []byte
	var correlation int32
	for sent := int64(0); sent < o.schedule.records; correlation++ {
		pace.until(o.schedule.at(sent))
		p.slots <- struct{}{}
		now := time.Now()
		n := min(o.schedule.due(now)-sent, int64(template.recordsMax()))
		due := o.schedule.slice(sent, n)
		batch := template.cut(int(n))
		for i := range n {
			o.stamp(batch[template.values[i]:], due.at(i))
			o.late.observe(due.at(i), now)
		}
		at := int(correlation) % len(p.share.partitions)
		seal(batch, p.identity, p.nextSequence(at, int32(n)))
		frame = formatter.AppendRequest(frame[:0], p.request(o.cfg.Acks, p.share.partitions[at:at+1], batch), correlation)
		p.flight <- flight{correlation: correlation, due: due}
		if _, err := p.conn.Write(frame); err != nil {
			return writeError(err)
		}
		sent += n
	}
	return nil
}

// consumeRaw reads the topic's end with long polls over one connection.
func (o *open) consumeRaw(ctx context.Context) error {
	s := o.topic.shares(1)[0]
	c, err := newConsumer(ctx, o.topic, s)
	if err != nil {
		return err
	}
	for i, p := range s.partitions {
		c.cursors[i] = cursor{partition: p}
	}
	for o.received < o.schedule.records {
		if err := c.fetch(); err != nil {
			return err
		}
		now := time.Now()
		err := c.eachBatch(func(cur *cursor, header batchHeader, batch []byte) error {
			if header.baseOffset != cur.next || header.compressed {
				return errors.New("a batch that was not produced like this")
			}
			cur.next = header.nextOffset
			var valueErr error
			err := eachValue(batch, func(value []byte) { valueErr = errors.Join(valueErr, o.arrive(value, now)) })
			return errors.Join(err, valueErr)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
