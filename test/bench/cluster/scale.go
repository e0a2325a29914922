package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/load"
)

// scaled is what many partitions show.
type scaled struct {
	created                   time.Duration // until each had a leader
	memoryBefore, memoryAfter load.Memory   // of the agent that holds most: empty, and under load
	etcdBefore, etcdAfter     database
	metadata, metadataBusy    time.Duration // median time of an answer about all partitions, and about those in use
	left, back                episode       // an agent drains, and comes back
	killed, again             episode       // another one is killed, and comes back
	cold                      time.Duration // until there are leaders again after all agents had left and were started
	kept                      gaps.Kept
	failed                    int
}

// idleTopicPartitions is how many partitions each of the topics has that nobody uses.
const idleTopicPartitions = 1000

// scale runs a cluster with many partitions, each of which has records, and of which some are in use.
func scale(ctx context.Context, p plan, r *results) error {
	var m scaled
	err := within(ctx, startVarve, func(n *nodes) (err error) {
		m.memoryBefore = n.largest()
		if m.etcdBefore, err = n.database(ctx); err != nil {
			return err
		}
		a, err := newAdmin(n, "busy")
		if err != nil {
			return err
		}
		defer a.close()
		began := time.Now()
		if err := a.createIdle(ctx, p.many-p.manyBusy); err != nil {
			return err
		}
		if err := a.create(ctx, p.manyBusy); err != nil {
			return err
		}
		m.created = time.Since(began)
		progress("  created %d partitions in %v", p.many, m.created.Round(time.Millisecond))
		if _, err := a.settled(ctx, p.manyBusy); err != nil {
			return err
		}
		if err := a.fillIdle(ctx, p.many-p.manyBusy); err != nil {
			return err
		}
		s := &stage{nodes: n, admin: a, partitions: p.manyBusy}
		cfg := p.load(n, a.topic, p.manyBusy)
		cfg.RateBytes = p.manyRateBytes
		if m.kept, m.failed, err = s.underLoad(ctx, cfg, func(s *stage) error { return m.live(ctx, s, cfg.Interval()) }); err != nil {
			return err
		}
		m.cold, err = s.coldStart(ctx)
		return err
	})
	if err == nil {
		r.scaled = &m
	}
	return err
}

// live lets agents go and come.
func (m *scaled) live(ctx context.Context, s *stage, interval time.Duration) (err error) {
	if err := pause(ctx, 2*interval); err != nil {
		return err
	}
	m.memoryAfter = s.largest()
	if m.etcdAfter, err = s.database(ctx); err != nil {
		return err
	}
	if m.metadata, err = s.admin.askMetadata(ctx, nil); err != nil {
		return err
	}
	if m.metadataBusy, err = s.admin.askMetadata(ctx, []string{s.admin.topic}); err != nil {
		return err
	}
	progress("  metadata of all in %v, of those in use in %v", m.metadata.Round(time.Microsecond), m.metadataBusy.Round(time.Microsecond))
	var drains, kills series
	if err := drains.repeat(ctx, 1, s, s.drainAgent); err != nil {
		return err
	}
	if err := kills.repeat(ctx, 1, s, s.killAgent); err != nil {
		return err
	}
	m.left, m.back, m.killed, m.again = drains.struck[0], drains.undone[0], kills.struck[0], kills.undone[0]
	return nil
}

// coldStart ends all agents, starts them all, and returns how long they took from then until all were ready and each partition in use had a leader.
func (s *stage) coldStart(ctx context.Context) (time.Duration, error) {
	exiting, cancel := context.WithTimeout(ctx, exitWithin)
	defer cancel()
	stopped, stoppedCtx := errgroup.WithContext(exiting)
	for _, b := range s.brokers {
		stopped.Go(func() error { return b.Stop(stoppedCtx) })
	}
	if err := stopped.Wait(); err != nil {
		return 0, fmt.Errorf("stop all agents: %w", err)
	}
	began := time.Now()
	started, startedCtx := errgroup.WithContext(ctx)
	for i, b := range s.brokers {
		started.Go(func() (err error) {
			again, err := b.Restart(startedCtx)
			if err == nil {
				s.brokers[i] = again
			}
			return err
		})
	}
	if err := started.Wait(); err != nil {
		return 0, fmt.Errorf("start all agents: %w", err)
	}
	if err := s.admin.awaitLeaders(ctx, s.partitions); err != nil {
		return 0, err
	}
	took := time.Since(began)
	progress("  all agents stopped, and leading again in %v", took.Round(time.Millisecond))
	return took, nil
}

// createIdle creates topics that nobody will use, so many partitions in all, and waits until each has a leader.
func (a *admin) createIdle(ctx context.Context, partitions int) error {
	ctx, cancel := context.WithTimeout(ctx, createWithin)
	defer cancel()
	for i, left := 0, partitions; left > 0; i, left = i+1, left-idleTopicPartitions {
		if _, err := a.kadm.CreateTopic(ctx, int32(min(left, idleTopicPartitions)), -1, nil, idleTopic(i)); err != nil {
			return fmt.Errorf("create topic %s: %w", idleTopic(i), err)
		}
	}
	for {
		metadata, err := a.kadm.Metadata(ctx)
		led := 0
		if err == nil {
			metadata.Topics.EachPartition(func(p kadm.PartitionDetail) {
				if p.Err == nil && p.Leader >= 0 {
					led++
				}
			})
		}
		if led == partitions {
			return nil
		}
		if pauseErr := pause(ctx, lookEvery); pauseErr != nil {
			return fmt.Errorf("create topics: %d of %d partitions have leaders: %w", led, partitions, errors.Join(err, pauseErr))
		}
	}
}

func idleTopic(i int) string { return fmt.Sprintf("idle-%03d", i) }

// fillIdle writes a record to each partition that createIdle created.
func (a *admin) fillIdle(ctx context.Context, partitions int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(a.client.OptValue(kgo.SeedBrokers).([]string)...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MaxBufferedRecords(idleTopicPartitions), kgo.AlwaysRetryEOF())
	if err != nil {
		return fmt.Errorf("client of the cluster: %w", err)
	}
	defer client.Close()
	value := make([]byte, recordBytes)
	for first := 0; first < partitions; first += idleTopicPartitions {
		records := make([]*kgo.Record, min(partitions-first, idleTopicPartitions))
		for i := range records {
			records[i] = &kgo.Record{Topic: idleTopic(first / idleTopicPartitions), Partition: int32(i), Value: value}
		}
		if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return fmt.Errorf("write to each partition: %w", err)
		}
	}
	return nil
}

// metadataAsks is how often askMetadata asks.
const metadataAsks = 15

// askMetadata returns the median of the times that an answer about topics takes, decoding included; about all of them if topics is nil.
func (a *admin) askMetadata(ctx context.Context, topics []string) (time.Duration, error) {
	request := kmsg.NewPtrMetadataRequest()
	for _, topic := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &topic
		request.Topics = append(request.Topics, t)
	}
	took := make([]time.Duration, metadataAsks)
	for i := range took {
		began := time.Now()
		if _, err := request.RequestWith(ctx, a.client); err != nil {
			return 0, fmt.Errorf("ask for metadata: %w", err)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// largest is the memory of the agent that holds most.
func (n *nodes) largest() (most load.Memory) {
	for _, s := range n.brokers {
		if memory, ok := load.ReadMemory(s.PID()); ok && memory.Resident > most.Resident {
			most = memory
		}
	}
	return most
}

// database is the size of etcd's database, in bytes.
type database struct {
	used float64 // by what is in it
	file float64 // which grows in steps, and does not shrink
}

// database asks etcd.
func (n *nodes) database(ctx context.Context) (d database, err error) {
	page := "http://" + n.etcd.Address + "/metrics"
	if d.used, err = load.ReadMetric(ctx, page, "etcd_mvcc_db_total_size_in_use_in_bytes"); err != nil {
		return d, err
	}
	d.file, err = load.ReadMetric(ctx, page, "etcd_mvcc_db_total_size_in_bytes")
	return d, err
}
