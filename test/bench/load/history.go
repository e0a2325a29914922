package load

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// History is a topic that stays between phases, for consumers that read it from its start: each of them reads all of it, over a connection of its own. The brokers may
// be restarted on the same addresses meanwhile. One goroutine uses it.
type History struct {
	// Written is what it cost to write it.
	Written Throughput

	topic *topic
}

// WriteHistory produces to a new topic, as the throughput phase does. The caller deletes it.
func WriteHistory(ctx context.Context, cfg Config) (*History, error) {
	t, err := createTopic(ctx, cfg.Target.Bootstrap, cfg.Partitions)
	if err != nil {
		return nil, err
	}
	written, err := runProduce(ctx, cfg, t)
	if err != nil {
		return nil, joinClose(fmt.Errorf("produce: %w", err), t.delete(ctx))
	}
	return &History{Written: written, topic: t}, nil
}

// Delete removes the topic.
func (h *History) Delete(ctx context.Context) error { return h.topic.delete(ctx) }

// Read has consumers read the topic side by side, until each has read all of it or cfg.Duration is over. What it returns is the sum over all.
func (h *History) Read(ctx context.Context, cfg Config, consumers int) (Throughput, error) {
	all, closeConns, err := h.consumers(ctx, consumers)
	if err != nil {
		return Throughput{}, err
	}
	defer closeConns()
	var total int64
	for _, c := range all {
		for _, cur := range c.cursors {
			total += cur.end
		}
	}
	meter := startMeter(ctx, cfg)
	b := newBudget(total*int64(cfg.RecordBytes)+1, cfg.Duration)
	b.start()
	group := new(errgroup.Group)
	for _, c := range all {
		group.Go(func() error { return c.run(b, readAll, cfg.RecordBytes) })
	}
	if err := group.Wait(); err != nil {
		return Throughput{}, err
	}
	cost, err := meter.stop(ctx)
	if err != nil {
		return Throughput{}, err
	}
	result := Throughput{Cost: cost}
	latencies := make([]*histogram, 0, len(all))
	for _, c := range all {
		result.Records += c.records
		latencies = append(latencies, c.latency)
	}
	if result.Records < total && time.Now().Before(b.deadline) {
		return Throughput{}, fmt.Errorf("read %d records, want %d", result.Records, total)
	}
	result.Bytes = result.Records * int64(cfg.RecordBytes)
	result.Request = mergeQuantiles(latencies)
	return result, nil
}

// Beside has consumers read the topic again and again while do runs, at a rate of so many bytes per second together, or as fast as they can for a rate of 0. It
// returns how many bytes per second they read.
func (h *History) Beside(ctx context.Context, cfg Config, consumers int, rateBytes float64, do func() error) (read float64, err error) {
	all, closeConns, err := h.consumers(ctx, consumers)
	if err != nil {
		return 0, err
	}
	defer closeConns()
	b := newBudget(1<<62, time.Hour)
	b.start()
	var over atomic.Bool
	group := new(errgroup.Group)
	began := time.Now()
	for _, c := range all {
		c.rateBytes = rateBytes / float64(consumers)
		group.Go(func() error {
			if err := c.run(b, readWindow, cfg.RecordBytes); err != nil && !over.Load() {
				return err
			}
			return nil
		})
	}
	err = do()
	elapsed := time.Since(began)
	over.Store(true)
	b.take(1 << 62)
	closeConns()
	err = errors.Join(err, group.Wait())
	var records int64
	for _, c := range all {
		records += c.records
	}
	return float64(records*int64(cfg.RecordBytes)) / elapsed.Seconds(), err
}

// consumers connects consumers that each read all partitions. They lose their connections with closeConns.
func (h *History) consumers(ctx context.Context, n int) (all []*consumer, closeConns func(), err error) {
	ends, err := h.topic.ends(ctx)
	if err != nil {
		return nil, nil, err
	}
	shares := h.topic.shares(1)
	if len(shares) != 1 {
		return nil, nil, errors.New("a history is read from one broker")
	}
	ctx, closeConns = context.WithCancel(ctx)
	for range n {
		c, err := newConsumer(ctx, h.topic, shares[0])
		if err != nil {
			closeConns()
			return nil, nil, err
		}
		for i, p := range shares[0].partitions {
			c.cursors[i] = cursor{partition: p, end: ends[p]}
		}
		all = append(all, c)
	}
	return all, closeConns, nil
}
