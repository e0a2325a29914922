package main

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// plan is how long and how large the phases are.
type plan struct {
	warmup  load.Config
	kib     load.Config // records of 1 KiB
	small   load.Config // records of 100 B
	latency load.Config // records of 1 KiB at 5 MB/s
	// lastFlush is how long after the last record a broker may still flush, and
	// idle how long it must then stay quiet.
	lastFlush, idle time.Duration
}

func newPlan(smoke bool) plan {
	defaults := load.Defaults()
	defaults.Duration, defaults.BytesMax = 15*time.Second, 3<<30
	lastFlush, idle := 10*time.Second, 15*time.Second
	if smoke {
		lastFlush, idle = time.Second, time.Second
		defaults.Duration, defaults.BytesMax = time.Second, 64<<20
	}
	p := plan{warmup: defaults, kib: defaults, small: defaults, latency: defaults, lastFlush: lastFlush, idle: idle}
	p.small.RecordBytes = 100
	if !smoke {
		// A JVM takes some gigabytes until its cost per byte no longer falls.
		p.warmup.Duration, p.warmup.BytesMax = 45*time.Second, 6<<30
	}
	for _, throughput := range []*load.Config{&p.warmup, &p.kib, &p.small} {
		throughput.Phases = load.Phases{Produce: true, Consume: true}
	}
	p.latency.Phases = load.Phases{Latency: true}
	return p
}

// recordsPage measures how fast records go in and come out.
func recordsPage(ctx context.Context, c contest) (string, error) {
	p := newPlan(c.smoke)
	began := time.Now()
	runs, err := turns(ctx, c, p.measure)
	if err != nil {
		return "", err
	}
	return results{plan: p, setting: setting{contest: c, machine: report.Machine(), began: began, took: time.Since(began)}, runs: runs}.markdown(), nil
}

// run is what one broker showed in one round.
type run struct {
	disk   load.Quantiles // just before the latency phases; the broker is idle
	kib    load.Report
	small  load.Report
	raw    load.Latency
	franz  load.Latency
	memory load.Memory
	// idle are the object requests of a while without load; nil without counters.
	idle *load.ObjectRequests
}

// measure takes a broker that is up through all phases.
func (p plan) measure(ctx context.Context, s started) (r run, err error) {
	target := s.target
	if _, err := phase(ctx, "warm-up", p.warmup, target); err != nil {
		return r, err
	}
	if r.kib, err = phase(ctx, "records of 1 KiB", p.kib, target); err != nil {
		return r, err
	}
	if r.small, err = phase(ctx, "records of 100 B", p.small, target); err != nil {
		return r, err
	}
	unix.Sync()
	if r.disk, err = load.ProbeDisk(ctx, s.folder); err != nil {
		return r, err
	}
	own, err := phase(ctx, "latency", p.latency, target)
	if err != nil {
		return r, err
	}
	withFranz := p.latency
	withFranz.Client = load.ClientFranz
	franz, err := phase(ctx, "latency of franz-go", withFranz, target)
	if err != nil {
		return r, err
	}
	r.raw, r.franz = *own.Latency, *franz.Latency
	if franz.Memory != nil {
		r.memory = *franz.Memory
	}
	return r, p.rest(ctx, target, &r)
}

// rest leaves the broker alone and counts what it still asks of its object
// store, from when the last records have had the time to be flushed.
func (p plan) rest(ctx context.Context, target load.Target, r *run) error {
	if load.ReadObjectRequests(ctx, target.MetricsURL) == nil {
		return nil
	}
	progress("  idle")
	if err := pause(ctx, p.lastFlush); err != nil {
		return err
	}
	before := load.ReadObjectRequests(ctx, target.MetricsURL)
	if err := pause(ctx, p.idle); err != nil {
		return err
	}
	if after := load.ReadObjectRequests(ctx, target.MetricsURL); before != nil && after != nil {
		delta := after.Minus(*before)
		r.idle = &delta
	}
	return nil
}
