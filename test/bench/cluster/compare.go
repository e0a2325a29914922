package main

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

// Names of the contenders.
const (
	nameVarve = "Varve"
	nameKafka = "Apache Kafka"
)

// comparison is what the clusters showed, Varve first.
type comparison struct {
	kafka string // its version
	runs  [2][]compared
}

// compared is what one cluster showed in one round.
type compared struct {
	disk    load.Quantiles // just before the latency phase; the cluster is idle
	kib     load.Throughput
	small   load.Throughput
	latency load.Latency
	memory  load.Memory
}

// compare runs the clusters in turns.
func compare(ctx context.Context, p plan, r *results) error {
	jars, err := servers.Install(ctx, "kafka")
	if err != nil {
		return err
	}
	c := &comparison{}
	if c.kafka, err = report.KafkaVersion(jars); err != nil {
		return err
	}
	if err := report.SetKafkaJVM(); err != nil {
		return err
	}
	for round := range p.rounds {
		for i, contender := range []struct {
			name  string
			start starter
		}{{nameVarve, startVarve}, {nameKafka, startKafka}} {
			progress("  round %d of %d: %s", round+1, p.rounds, contender.name)
			err := within(ctx, contender.start, func(n *nodes) error {
				measured, err := p.compared(ctx, n)
				c.runs[i] = append(c.runs[i], measured)
				return err
			})
			if err != nil {
				return fmt.Errorf("round %d: %s: %w", round+1, contender.name, err)
			}
		}
	}
	r.comparison = c
	return nil
}

// compared takes a cluster through all phases.
func (p plan) compared(ctx context.Context, n *nodes) (c compared, err error) {
	if err := p.awaitSettled(ctx, n); err != nil {
		return c, err
	}
	target := load.Target{Bootstrap: n.brokers[0].Address, PIDs: n.pids()}
	if _, err := phase(ctx, "warm-up", p.warmup, target); err != nil {
		return c, err
	}
	kib, err := phase(ctx, "records of 1 KiB", p.kib, target)
	if err != nil {
		return c, err
	}
	small, err := phase(ctx, "records of 100 B", p.small, target)
	if err != nil {
		return c, err
	}
	unix.Sync()
	if c.disk, err = load.ProbeDisk(ctx, n.folder); err != nil {
		return c, err
	}
	latency, err := phase(ctx, "latency", p.latency, target)
	if err != nil {
		return c, err
	}
	c.kib, c.small, c.latency = *kib.Produce, *small.Produce, *latency.Latency
	if latency.Memory != nil {
		c.memory = *latency.Memory
	}
	return c, nil
}

// awaitSettled waits until a cluster that has just started has placed its leaders, since the load generator takes a leader that
// moves for an error.
func (p plan) awaitSettled(ctx context.Context, n *nodes) error {
	a, err := newAdmin(n, "placed")
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.create(ctx, p.partitions); err != nil {
		return err
	}
	_, err = a.settled(ctx, p.partitions)
	return err
}

// phase runs one part of the load on a disk with nothing left to write.
func phase(ctx context.Context, name string, cfg load.Config, target load.Target) (load.Report, error) {
	progress("    %s", name)
	unix.Sync()
	cfg.Target = target
	measured, err := load.Run(ctx, cfg)
	if err != nil {
		return load.Report{}, fmt.Errorf("%s: %w", name, err)
	}
	return measured, nil
}
