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
	disk   load.Quantiles // just before the latency phases; the broker is idle
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
	target := load.Target{Bootstrap: server.Address, PIDs: []int{server.PID()}}
	if server.HTTP != "" {
		target.MetricsURL = "http://" + server.HTTP + "/metrics"
	}
	err = p.measure(ctx, target, folder, &r)
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

// measure takes a broker that is up through all phases. The folder is on the
// disk that the broker uses.
func (p plan) measure(ctx context.Context, target load.Target, folder string, r *run) (err error) {
	if _, err := phase(ctx, "warm-up", p.warmup, target); err != nil {
		return err
	}
	if r.kib, err = phase(ctx, "records of 1 KiB", p.kib, target); err != nil {
		return err
	}
	if r.small, err = phase(ctx, "records of 100 B", p.small, target); err != nil {
		return err
	}
	unix.Sync()
	if r.disk, err = load.ProbeDisk(ctx, folder); err != nil {
		return err
	}
	own, err := phase(ctx, "latency", p.latency, target)
	if err != nil {
		return err
	}
	withFranz := p.latency
	withFranz.Client = load.ClientFranz
	franz, err := phase(ctx, "latency of franz-go", withFranz, target)
	if err != nil {
		return err
	}
	r.raw, r.franz = *own.Latency, *franz.Latency
	if franz.Memory != nil {
		r.memory = *franz.Memory
	}
	return p.rest(ctx, target, r)
}

// phase runs one part of the plan on a disk with nothing left to write.
func phase(ctx context.Context, name string, cfg load.Config, target load.Target) (load.Report, error) {
	progress("  %s", name)
	unix.Sync()
	cfg.Target = target
	measured, err := load.Run(ctx, cfg)
	if err != nil {
		return load.Report{}, fmt.Errorf("%s: %w", name, err)
	}
	return measured, nil
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

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("idle: %w", ctx.Err())
	case <-time.After(d):
		return nil
	}
}
