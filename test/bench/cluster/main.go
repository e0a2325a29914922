// Command cluster measures three Varve agents, beside three Apache Kafka brokers and on their own while things happen to
// them, and writes what it measured to pages of test/bench:
//
//	go run ./test/bench/cluster                     all, about a quarter of an hour
//	go run ./test/bench/cluster --only scale        SCALE.md, some minutes
//	go run ./test/bench/cluster --only kill,drain   some parts; writes the pages all of whose parts ran
//	go run ./test/bench/cluster --smoke             all, a minute or two; writes no file
//
// The parts of CLUSTER.md:
//
//	compare  throughput, cost and latency beside Apache Kafka, in turns
//	kill     an agent is killed under load, and comes back
//	drain    an agent with a thousand partitions leaves under load, and comes back
//	move     a fourth agent joins under load and is given shards, and leaves
//	outage   a minute without the bucket, and one without etcd
//
// The part of SCALE.md:
//
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
	only := flag.String("only", "", "parts to run, separated by commas; empty for all: "+strings.Join(partNames(), ", "))
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

// part is one part of a page, which adds to its results.
type part struct {
	name string
	run  func(context.Context, plan, *results) error
}

// page is one page of results.
type page struct {
	file  string // in test/bench
	parts []part
	text  func(results) string
}

var pages = []page{
	{"CLUSTER.md", []part{{"compare", compare}, {"kill", kill}, {"drain", drain}, {"move", move}, {"outage", outages}}, results.markdown},
	{"SCALE.md", []part{{"scale", scale}}, results.scaleMarkdown},
}

func partNames() []string {
	var names []string
	for _, page := range pages {
		for _, part := range page.parts {
			names = append(names, part.name)
		}
	}
	return names
}

// selectParts returns the names of the parts that a list has, or of all for an empty one.
func selectParts(only string) ([]string, error) {
	if only == "" {
		return partNames(), nil
	}
	names := strings.Split(only, ",")
	for _, name := range names {
		if !slices.Contains(partNames(), name) {
			return nil, fmt.Errorf("--only: %q, want some of %s", name, strings.Join(partNames(), ", "))
		}
	}
	return names, nil
}

// run makes the pages of which parts are selected. One that fails does not keep the others from being made.
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
	var failed error
	for _, page := range pages {
		text, whole, err := page.make(ctx, p, selected)
		failed = errors.Join(failed, err)
		fmt.Print(text)
		if !whole || smoke {
			continue
		}
		if err := os.WriteFile(filepath.Join(root, "test", "bench", page.file), []byte(text), 0o644); err != nil {
			failed = errors.Join(failed, fmt.Errorf("write results: %w", err))
		}
	}
	return errors.Join(failed, ctx.Err())
}

// make runs the selected parts of the page, and returns its text: whole if all parts ran and none failed, empty if none is selected. A
// part that fails does not keep the others from running.
func (page page) make(ctx context.Context, p plan, selected []string) (text string, whole bool, err error) {
	r := results{plan: p, machine: report.Machine(), varve: report.VarveVersion(ctx), began: time.Now()}
	ran, whole := false, true
	for _, part := range page.parts {
		if !slices.Contains(selected, part.name) || ctx.Err() != nil {
			whole = false
			continue
		}
		ran = true
		progress("%s", part.name)
		if failure := part.run(ctx, p, &r); failure != nil {
			err, whole = errors.Join(err, fmt.Errorf("%s: %w", part.name, failure)), false
			progress("%s failed", part.name)
		}
	}
	if !ran {
		return "", false, nil
	}
	r.took = time.Since(r.began)
	return page.text(r), whole, err
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
