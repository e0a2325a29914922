// Command cluster measures three Varve agents, beside three Apache Kafka brokers and on their own while things happen to
// them, and writes what it measured to test/bench/CLUSTER.md:
//
//	go run ./test/bench/cluster                     about a quarter of an hour
//	go run ./test/bench/cluster --smoke             a minute or two; writes no file
//	go run ./test/bench/cluster --only kill,drain   some parts; writes no file
//
// The parts:
//
//	compare  throughput, cost and latency beside Apache Kafka, in turns
//	kill     an agent is killed under load, and comes back
//	drain    an agent with a thousand partitions leaves under load, and comes back
//	move     a fourth agent joins under load and is given shards, and leaves
//	outage   a minute without the bucket, and one without etcd
//	scale    a hundred thousand partitions, a thousand of them in use
//
// # What makes the comparison fair
//
//   - Only one cluster runs at a time, on empty folders. It is warmed up with load that is not counted, and between two
//     phases everything dirty in the page cache is written back.
//   - The clusters take turns, several rounds long; medians are compared, and the spread is shown.
//   - Both keep three copies and acknowledge with two: Varve has three copies of its log and a quorum of two, Kafka has
//     replication factor three and min.insync.replicas two. Kafka otherwise runs at its defaults, among them no sync. Varve
//     syncs two copies of its log before each acknowledgement, and puts everything into a bucket, which is a folder on the same disk.
//   - What a cluster costs is what all its processes use: for Varve that includes its etcd; Kafka's brokers are its controllers too.
//
// What clients notice is measured by [gaps.Probe], whose package says how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

func main() {
	rounds := flag.Int("rounds", 2, "how often each cluster runs in the comparison")
	outage := flag.Duration("outage", time.Minute, "how long the bucket and etcd are away")
	smoke := flag.Bool("smoke", false, "everything small and short, written to no file")
	only := flag.String("only", "", "parts to run, separated by commas, written to no file: "+strings.Join(partNames(), ", "))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := newPlan(*rounds, *outage)
	if *smoke {
		p = p.smoke()
	}
	err := run(ctx, p, *only, *smoke)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

// part is one part of the run, which adds to the results.
type part struct {
	name string
	run  func(context.Context, plan, *results) error
}

var parts = []part{
	{"compare", compare}, {"kill", kill}, {"drain", drain}, {"move", move}, {"outage", outages}, {"scale", scale},
}

func partNames() []string {
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.name
	}
	return names
}

// selectParts returns the parts that a list names; all for an empty one.
func selectParts(only string) ([]part, error) {
	if only == "" {
		return parts, nil
	}
	var selected []part
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(partNames(), name)
		if i < 0 {
			return nil, fmt.Errorf("--only: %q, want some of %s", name, strings.Join(partNames(), ", "))
		}
		selected = append(selected, parts[i])
	}
	return selected, nil
}

// run runs parts of the plan and reports them. A part that fails does not keep the others from running; what was measured is
// printed in any case, and written if it is everything.
func run(ctx context.Context, p plan, only string, smoke bool) error {
	if p.rounds < 1 || p.outage < time.Second {
		return fmt.Errorf("--rounds %d, --outage %v: want at least 1 and 1s", p.rounds, p.outage)
	}
	selected, err := selectParts(only)
	if err != nil {
		return err
	}
	root, err := servers.Root()
	if err != nil {
		return err
	}
	if _, err := servers.BuildVarve(); err != nil {
		return err
	}
	r := results{plan: p, machine: report.Machine(), varve: report.VarveVersion(ctx), began: time.Now()}
	var failed error
	for _, part := range selected {
		if ctx.Err() != nil {
			break
		}
		progress("%s", part.name)
		if err := part.run(ctx, p, &r); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", part.name, err))
			progress("%s failed", part.name)
		}
	}
	r.took = time.Since(r.began)
	text := r.markdown()
	fmt.Print(text)
	if failed != nil || ctx.Err() != nil || smoke || only != "" {
		return errors.Join(failed, ctx.Err())
	}
	if err := os.WriteFile(filepath.Join(root, "test", "bench", "CLUSTER.md"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// progress tells the person who waits what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// load returns the probe's configuration for a topic.
func (p plan) load(n *nodes, topic string, partitions int) gaps.Config {
	return gaps.Config{Seeds: n.seeds(), Topic: topic, Partitions: partitions, RecordBytes: recordBytes, RateBytes: p.rateBytes}
}
