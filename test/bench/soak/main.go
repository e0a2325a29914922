// Command soak has three Varve agents written to at a steady rate for a long time, with retention and compaction on, and looks whether anything grows that should not: memory, etcd, the WAL's files, the number of objects. It writes what it measured to
// test/bench/SOAK.md:
//
//	go run ./test/bench/soak --for 1h
//	go run ./test/bench/soak --smoke     a minute; writes no file
//
// All times follow from how long it takes: retention is a twelfth of that, five minutes at most, and what waits in a cluster for hours (merges, garbage, the look for what is past its retention) waits for a part of the retention. So everything that
// becomes of a record happens to most of them. Once the oldest records have left, the rest of the time is divided into three parts. Each number is the median of the samples of a part, but for requests, which are counted over the part.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

func main() {
	length := flag.Duration("for", time.Hour, "how long records are written")
	rate := flag.Float64("rate", 4, "MB/s of records that are written, to all topics together")
	smoke := flag.Bool("smoke", false, "for a minute, written to no file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := newPlan(*length, *rate*1e6)
	if *smoke {
		p = newPlan(time.Minute, *rate*1e6)
	}
	err := run(ctx, p, *smoke)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// plan is what the run does.
type plan struct {
	length    time.Duration
	rateBytes float64
	retention time.Duration
	merge     time.Duration // after which what was flushed is merged
	look      time.Duration // between two looks for what is past its retention
	grace     time.Duration // of garbage
	warm      time.Duration // until as much leaves as comes
	sample    time.Duration // between two samples
}

const (
	shortest    = time.Minute
	recordBytes = 1000
	partitions  = 12 // of each topic
	parts       = 3  // of the time that counts
)

func newPlan(length time.Duration, rateBytes float64) plan {
	retention := min(max(length/12, 8*time.Second), 5*time.Minute)
	p := plan{
		length: length, rateBytes: rateBytes, retention: retention,
		merge: max(retention/5, 2*time.Second).Truncate(time.Second), look: max(retention/10, time.Second).Truncate(time.Second), grace: max(retention/10, 2*time.Second).Truncate(time.Second),
		sample: max(length/200, 500*time.Millisecond),
	}
	p.warm = 2*p.retention + p.merge + p.look + 2*p.grace
	return p
}

// run runs the plan and reports it. What was measured is printed even if something failed, and written if nothing did.
func run(ctx context.Context, p plan, smoke bool) error {
	if p.length < shortest || p.rateBytes < 1e5 {
		return fmt.Errorf("--for %v, --rate %v: want %v and 0.1 at least", p.length, p.rateBytes/1e6, shortest)
	}
	root, err := servers.Root()
	if err != nil {
		return err
	}
	if _, err := servers.BuildVarve(); err != nil {
		return err
	}
	r := results{plan: p, machine: report.Machine(), varve: report.VarveVersion(ctx), began: time.Now()}
	if err := soak(ctx, p, &r); err != nil {
		return err
	}
	text := r.markdown()
	fmt.Print(text)
	if err := r.check(); err != nil || smoke {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "test", "bench", "SOAK.md"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// soak runs a cluster under load and takes samples.
func soak(ctx context.Context, p plan, r *results) (err error) {
	folder, err := os.MkdirTemp("", "varve-soak-")
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	n, err := start(ctx, p, folder)
	if err != nil {
		return err
	}
	defer n.end()
	t, err := newTraffic(ctx, p, n.seeds())
	if err != nil {
		return n.explain(err)
	}
	defer t.close()
	writing, stop := context.WithTimeout(ctx, p.length)
	defer stop()
	t.begin(writing)
	if err := r.watch(writing, n); err != nil && ctx.Err() == nil {
		return n.explain(err)
	}
	if err := errors.Join(t.end(ctx), ctx.Err()); err != nil {
		return n.explain(err)
	}
	r.written, r.read = t.written.Load(), t.read.Load()
	if r.left, err = t.compare(ctx); err != nil {
		return n.explain(err)
	}
	return nil
}

// watch takes samples until ctx ends.
func (r *results) watch(ctx context.Context, n *nodes) error {
	tick := time.NewTicker(r.plan.sample)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		s, err := n.measure(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		s.at = time.Since(r.began)
		if len(r.samples) == 0 {
			r.first = s.at
		}
		r.samples = append(r.samples, s)
	}
}
