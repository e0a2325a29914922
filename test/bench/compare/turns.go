package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/servers"
)

// stopWithin is how long a broker may take to end after SIGTERM.
const stopWithin = time.Minute

// started is a broker that is up.
type started struct {
	target load.Target
	folder string // on the disk that it uses
	etcd   string // the address of its etcd; empty without one
}

// turns has the contenders take turns, each on an empty folder every time, and returns what they showed by contender and
// round.
func turns[R any](ctx context.Context, c contest, measure func(context.Context, started) (R, error)) (runs [2][]R, err error) {
	for round := range c.rounds {
		for i, contender := range c.contenders {
			progress("round %d of %d: %s", round+1, c.rounds, contender.name)
			err := within(ctx, contender, func(s started) error {
				r, err := measure(ctx, s)
				runs[i] = append(runs[i], r)
				return err
			})
			if err != nil {
				return runs, fmt.Errorf("round %d: %s: %w", round+1, contender.name, err)
			}
		}
	}
	return runs, nil
}

// etcdSaid is how Varve says where its etcd listens.
var etcdSaid = regexp.MustCompile(`(?m)^\s*etcd\s+http://(\S+)$`)

// within starts the broker on an empty folder, does something with it, stops it and removes the folder.
func within(ctx context.Context, c contender, do func(started) error) (err error) {
	folder, err := os.MkdirTemp("", "varve-bench-")
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	server, err := c.start(ctx, filepath.Join(folder, "data"))
	if err != nil {
		return err
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
	s := started{target: load.Target{Bootstrap: server.Address, PIDs: []int{server.PID()}}, folder: folder}
	if server.HTTP != "" {
		s.target.MetricsURL = "http://" + server.HTTP + "/metrics"
	}
	if said := etcdSaid.FindStringSubmatch(server.Output()); said != nil {
		s.etcd = said[1]
	}
	return do(s)
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

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("idle: %w", ctx.Err())
	case <-time.After(d):
		return nil
	}
}
