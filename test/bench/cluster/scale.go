package main

import (
	"context"
	"time"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/load"
)

// scaled is what many partitions show.
type scaled struct {
	created                   time.Duration
	memoryBefore, memoryAfter load.Memory // of the agent that holds most at the end of the load
	etcdBefore, etcdAfter     database
	left, back                episode // an agent drains, and comes back
	killed, again             episode // another one is killed, and comes back
	kept                      gaps.Kept
	failed                    int
}

// scale runs a cluster with many partitions.
func scale(ctx context.Context, p plan, r *results) error {
	var m scaled
	err := within(ctx, startVarve, func(n *nodes) (err error) {
		m.memoryBefore = n.largest()
		if m.etcdBefore, err = n.database(ctx); err != nil {
			return err
		}
		a, err := newAdmin(n, "many")
		if err != nil {
			return err
		}
		defer a.close()
		if m.created, err = a.create(ctx, p.many); err != nil {
			return err
		}
		progress("  created %d partitions in %v", p.many, m.created.Round(time.Millisecond))
		if _, err := a.settled(ctx, p.many); err != nil {
			return err
		}
		s := &stage{nodes: n, admin: a, partitions: p.many}
		cfg := p.load(n, a.topic, p.many)
		cfg.RateBytes = p.manyRateBytes
		m.kept, m.failed, err = s.underLoad(ctx, cfg, func(s *stage) error { return m.live(ctx, s, cfg.Interval()) })
		return err
	})
	if err == nil {
		r.scaled = &m
	}
	return err
}

// live lets agents go and come.
func (m *scaled) live(ctx context.Context, s *stage, interval time.Duration) (err error) {
	if err := pause(ctx, interval); err != nil { // every partition has been written to twice
		return err
	}
	m.memoryAfter = s.largest()
	if m.etcdAfter, err = s.database(ctx); err != nil {
		return err
	}
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
