// Command compare runs the load of test/bench/load on Varve and on Apache
// Kafka, alternating, and writes what it measured to pages of test/bench:
//
//	go run ./test/bench/compare                        all, about an hour
//	go run ./test/bench/compare --only records         RESULTS.md, about twenty minutes
//	go run ./test/bench/compare --only transactions    TRANSACTIONS.md, about ten minutes
//	go run ./test/bench/compare --only catchup         CATCHUP.md, about half an hour
//	go run ./test/bench/compare --smoke                all, a few minutes; writes no file
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/varve-io/varve/test/servers"
)

func main() {
	rounds := flag.Int("rounds", 3, "how often each broker runs")
	smoke := flag.Bool("smoke", false, "one short round, written to no file")
	only := flag.String("only", "", "the page to make: "+pageNames()+"; empty for all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := compare(ctx, *rounds, *smoke, *only)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(1)
	}
}

// page is one page of results.
type page struct {
	name string
	file string // in test/bench
	// make measures, and returns the text.
	make func(context.Context, contest) (string, error)
}

var pages = []page{{"records", "RESULTS.md", recordsPage}, {"transactions", "TRANSACTIONS.md", transactionsPage}, {"catchup", "CATCHUP.md", catchupPage}}

func pageNames() string {
	names := make([]string, len(pages))
	for i, p := range pages {
		names[i] = p.name
	}
	return strings.Join(names, ", ")
}

// contest is what the pages have in common.
type contest struct {
	contenders [2]contender // Varve comes first
	rounds     int
	smoke      bool // phases are short
}

// compare makes the pages.
func compare(ctx context.Context, rounds int, smoke bool, only string) error {
	if rounds < 1 {
		return fmt.Errorf("--rounds: %d, want at least 1", rounds)
	}
	if only != "" && !slices.ContainsFunc(pages, func(p page) bool { return p.name == only }) {
		return fmt.Errorf("--only: %q, want one of %s", only, pageNames())
	}
	root, err := servers.Root()
	if err != nil {
		return err
	}
	contenders, err := newContenders(ctx)
	if err != nil {
		return err
	}
	if smoke {
		rounds = 1
	}
	for _, p := range pages {
		if only != "" && only != p.name {
			continue
		}
		progress("%s", p.name)
		text, err := p.make(ctx, contest{contenders: contenders, rounds: rounds, smoke: smoke})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Print(text)
		if smoke {
			continue
		}
		if err := os.WriteFile(filepath.Join(root, "test", "bench", p.file), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write results: %w", err)
		}
	}
	return nil
}

// progress tells the person who waits what is going on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
}
