package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/servers"
)

// stopWithin is how long a broker may take to end after SIGTERM.
const stopWithin = time.Minute

// run is what one broker showed in one round.
type run struct {
	disk   load.Quantiles // before the broker started
	kib    load.Report
	small  load.Report
	raw    load.Latency
	franz  load.Latency
	memory load.Memory
	// idle are the object requests of a while without load; nil without counters.
	idle *load.ObjectRequests
}

// run starts the broker on an empty folder and takes it through all phases.
func (p plan) run(ctx context.Context, c contender) (r run, err error) {
	folder, err := os.MkdirTemp("", "varve-bench-")
	if err != nil {
		return run{}, fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	unix.Sync()
	if r.disk, err = load.ProbeDisk(ctx, folder); err != nil {
		return run{}, err
	}
	server, err := c.start(ctx, filepath.Join(folder, "data"))
	if err != nil {
		return run{}, err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		if stopErr := stop(stopCtx, server); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
		if err != nil {
			err = fmt.Errorf("%w; the broker's output ends with:\n%s", err, server.Output())
		}
	}()
	target := load.Target{Bootstrap: server.Address, PID: server.PID()}
	if server.HTTP != "" {
		target.MetricsURL = "http://" + server.HTTP + "/metrics"
	}
	err = p.measure(ctx, target, &r)
	return r, err
}

// stop ends a broker. The JVM reports the signal that ended it as its exit
// status, after an orderly shutdown, which is no failure here.
func stop(ctx context.Context, server *servers.Server) error {
	err := server.Stop(ctx)
	if ctx.Err() == nil {
		return nil
	}
	return err
}

// measure takes a broker that is up through all phases.
func (p plan) measure(ctx context.Context, target load.Target, r *run) error {
	franz := p.latency
	franz.Client = load.ClientFranz
	var warmup, own, library load.Report
	for _, phase := range []struct {
		name   string
		config load.Config
		report *load.Report
	}{
		{"warm-up", p.warmup, &warmup},
		{"records of 1 KiB", p.kib, &r.kib},
		{"records of 100 B", p.small, &r.small},
		{"latency", p.latency, &own},
		{"latency of franz-go", franz, &library},
	} {
		progress("  %s", phase.name)
		unix.Sync()
		phase.config.Target = target
		report, err := load.Run(ctx, phase.config)
		if err != nil {
			return fmt.Errorf("%s: %w", phase.name, err)
		}
		*phase.report = report
	}
	r.raw, r.franz = *own.Latency, *library.Latency
	if library.Memory != nil {
		r.memory = *library.Memory
	}
	return p.rest(ctx, target, r)
}

// rest leaves the broker alone and counts what it still asks of its object
// store.
func (p plan) rest(ctx context.Context, target load.Target, r *run) error {
	if err := load.AwaitSettled(ctx, target.PID, p.kib.Duration); err != nil {
		return err
	}
	before := load.ReadObjectRequests(ctx, target.MetricsURL)
	if before == nil {
		return nil
	}
	progress("  idle")
	select {
	case <-ctx.Done():
		return fmt.Errorf("idle: %w", ctx.Err())
	case <-time.After(p.idle):
	}
	if after := load.ReadObjectRequests(ctx, target.MetricsURL); after != nil {
		delta := after.Minus(*before)
		r.idle = &delta
	}
	return nil
}
