// Command compare runs the load of test/bench/load on Varve and on Apache
// Kafka, alternating, and writes what it measured to test/bench/RESULTS.md:
//
//	go run ./test/bench/compare            about twenty minutes
//	go run ./test/bench/compare --smoke    about a minute; writes no file
//
// # What makes the comparison fair
//
//   - Only one broker runs at a time. Each run starts it on an empty data folder,
//     warms it up with load that is not counted (a JVM compiles what is hot), and
//     deletes the folder afterwards.
//   - Between two phases everything dirty in the page cache is written back, so
//     that no phase pays for the bytes that the one before left unwritten.
//   - The brokers take turns, several rounds long; medians are compared, and the
//     spread is shown.
//   - Kafka runs at its defaults: the JVM options of its start script, and no
//     sync. Varve syncs its log before each acknowledgement.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

func main() {
	rounds := flag.Int("rounds", 3, "how often each broker runs")
	smoke := flag.Bool("smoke", false, "one short round, written to no file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := compare(ctx, *rounds, *smoke)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(1)
	}
}

// plan is how long and how large the phases are.
type plan struct {
	rounds  int
	warmup  load.Config
	kib     load.Config // records of 1 KiB
	small   load.Config // records of 100 B
	latency load.Config // records of 1 KiB at 5 MB/s
	// lastFlush is how long after the last record a broker may still flush, and
	// idle how long it must then stay quiet.
	lastFlush, idle time.Duration
}

func newPlan(rounds int, smoke bool) plan {
	defaults := load.Defaults()
	defaults.Duration, defaults.BytesMax = 15*time.Second, 3<<30
	idle := 15 * time.Second
	if smoke {
		rounds, idle = 1, 2*time.Second
		defaults.Duration, defaults.BytesMax = 3*time.Second, 256<<20
	}
	p := plan{rounds: rounds, warmup: defaults, kib: defaults, small: defaults, latency: defaults, lastFlush: 10 * time.Second, idle: idle}
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

// compare runs the whole plan and reports it.
func compare(ctx context.Context, rounds int, smoke bool) error {
	if rounds < 1 {
		return fmt.Errorf("--rounds: %d, want at least 1", rounds)
	}
	root, err := servers.Root()
	if err != nil {
		return err
	}
	p := newPlan(rounds, smoke)
	contenders, err := newContenders(ctx)
	if err != nil {
		return err
	}
	runs := make([][]run, len(contenders))
	began := time.Now()
	for round := range p.rounds {
		for i, c := range contenders {
			progress("round %d of %d: %s", round+1, p.rounds, c.name)
			r, err := p.run(ctx, c)
			if err != nil {
				return fmt.Errorf("round %d: %s: %w", round+1, c.name, err)
			}
			runs[i] = append(runs[i], r)
		}
	}
	text := results{plan: p, machine: report.Machine(), contenders: contenders, runs: runs, began: began, took: time.Since(began)}.markdown()
	fmt.Print(text)
	if smoke {
		return nil
	}
	name := filepath.Join(root, "test", "bench", "RESULTS.md")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// progress tells the person who waits what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}
