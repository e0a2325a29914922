package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// transactionLoad is one kind of transactions.
type transactionLoad struct {
	name string
	load.TransactionsConfig
}

// transactionPlan is how long and how large the phases are.
type transactionPlan struct {
	warmup load.TransactionsConfig
	loads  []transactionLoad

	produceWarmup load.Config
	produce       load.Config // as fast as the broker can, idempotent or not
}

// The loads that aims speak of, by index.
const (
	aloneSmall = iota
	aloneKiB
	manySmall
	manyKiB
	aloneCopy
	manyCopy
)

// manyProducers is how many producers are at work at once in the loads of many.
const manyProducers = 8

func newTransactionPlan(smoke bool) transactionPlan {
	duration, warmup := 3*time.Second, 8*time.Second
	produce := load.Defaults()
	produce.Phases = load.Phases{Produce: true}
	produce.Duration, produce.BytesMax = 3*time.Second, 3<<29
	if smoke {
		duration, warmup = time.Second, time.Second
		produce.Duration, produce.BytesMax = time.Second, 128<<20
	}
	of := func(producers, bytes int, copied bool) load.TransactionsConfig {
		return load.TransactionsConfig{Producers: producers, Records: 100, RecordBytes: bytes, Partitions: 4, Duration: duration, Copy: copied}
	}
	p := transactionPlan{
		warmup: of(manyProducers, 100, true),
		loads: []transactionLoad{
			aloneSmall: {"1 producer, 100 B", of(1, 100, false)},
			aloneKiB:   {"1 producer, 1 KiB", of(1, 1024, false)},
			manySmall:  {"8 producers, 100 B", of(manyProducers, 100, false)},
			manyKiB:    {"8 producers, 1 KiB", of(manyProducers, 1024, false)},
			aloneCopy:  {"1 member copies, 100 B", of(1, 100, true)},
			manyCopy:   {"8 members copy, 100 B", of(manyProducers, 100, true)},
		},
		produceWarmup: produce, produce: produce,
	}
	p.warmup.Duration = warmup
	return p
}

// transactionRun is what one broker showed in one round.
type transactionRun struct {
	disk    load.Quantiles     // before the transactions; the broker is idle
	loads   []transactionPhase // by index of the plan
	on, off load.Throughput    // with idempotence and without
}

// transactionPhase is what came of one load.
type transactionPhase struct {
	load.Transactions
	writes *writes // nil for a broker without etcd
}

// transactionsPage measures what idempotence and transactions cost.
func transactionsPage(ctx context.Context, c contest) (string, error) {
	p := newTransactionPlan(c.smoke)
	began := time.Now()
	runs, err := turns(ctx, c, p.measure)
	if err != nil {
		return "", err
	}
	return transactionResults{
		plan: p, setting: setting{contest: c, machine: report.Machine(), began: began, took: time.Since(began)}, runs: runs,
	}.markdown(), nil
}

// measure takes a broker that is up through all phases.
func (p transactionPlan) measure(ctx context.Context, s started) (r transactionRun, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch *writesWatch
	if s.etcd != "" {
		if watch, err = watchWrites(ctx, s.etcd); err != nil {
			return r, err
		}
		defer watch.close()
	}
	if _, err := p.transact(ctx, s, transactionLoad{"warm-up", p.warmup}, watch); err != nil {
		return r, err
	}
	unix.Sync()
	if r.disk, err = load.ProbeDisk(ctx, s.folder); err != nil {
		return r, err
	}
	for _, l := range p.loads {
		phase, err := p.transact(ctx, s, l, watch)
		if err != nil {
			return r, err
		}
		r.loads = append(r.loads, phase)
	}
	return r, p.idempotence(ctx, s, &r)
}

// transact runs one load.
func (p transactionPlan) transact(ctx context.Context, s started, l transactionLoad, watch *writesWatch) (phase transactionPhase, err error) {
	progress("  %s", l.name)
	unix.Sync()
	l.Target = s.target
	if phase.Transactions, err = load.RunTransactions(ctx, l.TransactionsConfig); err != nil {
		return phase, fmt.Errorf("%s: %w", l.name, err)
	}
	if watch != nil {
		written, err := watch.between(phase.Began, phase.Elapsed)
		if err != nil {
			return phase, err
		}
		phase.writes = &written
	}
	return phase, nil
}

// idempotence produces with and without. On, off, off, on: a broker that gets faster, or a disk that gets slower, favours neither.
func (p transactionPlan) idempotence(ctx context.Context, s started, r *transactionRun) error {
	if _, err := phase(ctx, "warm-up, producing", p.produceWarmup, s.target); err != nil {
		return err
	}
	for _, on := range []bool{true, false, false, true} {
		cfg, name, sum := p.produce, "producing, idempotent", &r.on
		if !on {
			cfg.NotIdempotent, name, sum = true, "producing, not idempotent", &r.off
		}
		measured, err := phase(ctx, name, cfg, s.target)
		if err != nil {
			return err
		}
		add(sum, *measured.Produce)
	}
	return nil
}

// add sums up two phases of one kind.
func add(sum *load.Throughput, t load.Throughput) {
	sum.Records += t.Records
	sum.Bytes += t.Bytes
	sum.Elapsed += t.Elapsed
	if t.ServerCPU != nil {
		if sum.ServerCPU == nil {
			sum.ServerCPU = new(time.Duration)
		}
		*sum.ServerCPU += *t.ServerCPU
	}
}
