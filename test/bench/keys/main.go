// Command keys has one agent compact a topic of very many keys, and measures how long that takes, and in how much memory. Then it reads the topic from its beginning, past the agent's memory, and
// compares it with what was written. It writes what it measured to test/bench/KEYS.md:
//
//	go run ./test/bench/keys             ten million keys, some minutes
//	go run ./test/bench/keys --smoke     a hundred thousand; writes no file
//
// Each round writes each key once, in an order of its own, the last round as a tombstone for some. So every record but those of the last round must go, but for what is too new to be compacted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

func main() {
	keys := flag.Int("keys", 10_000_000, "how many keys there are")
	smoke := flag.Bool("smoke", false, "a hundred thousand keys, written to no file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if *smoke {
		*keys = 100_000
	}
	err := run(ctx, *keys, *smoke)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "keys: %v\n", err)
		os.Exit(1)
	}
}

const (
	partitions  = 4
	rounds      = 2
	valueBytes  = 100
	mergeAfter  = 2 * time.Second
	cleanWithin = 30 * time.Minute
	look        = 200 * time.Millisecond // between two looks at the agent
)

// result is what a run measured.
type result struct {
	keys    int
	machine string
	varve   string
	began   time.Time

	write, clean  time.Duration // until all is acknowledged, and from then on until all is merged and compacted
	empty, peak   load.Memory   // of the agent: before anything is written, and the largest until all is compacted
	cpu           time.Duration // of the agent, from the last acknowledgement until all is compacted
	judged, kept  float64       // bytes of batches that were compacted
	compactions   float64       // of a partition each
	bucket        int64         // bytes in the end
	records       int           // that are left
	wrong         int           // keys whose last record is another than was written
	readBack      time.Duration
	bytesProduced int64
}

func run(ctx context.Context, keys int, smoke bool) (err error) {
	if keys < partitions {
		return fmt.Errorf("--keys %d, want %d at least", keys, partitions)
	}
	root, err := servers.Root()
	if err != nil {
		return err
	}
	if _, err := servers.BuildVarve(); err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "varve-keys-")
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	r := result{keys: keys, machine: report.Machine(), varve: report.VarveVersion(ctx), began: time.Now()}
	if err := r.measure(ctx, folder); err != nil {
		return err
	}
	text := r.markdown()
	fmt.Print(text)
	if r.wrong > 0 {
		return fmt.Errorf("%d of %d keys have another last record than was written", r.wrong, r.keys)
	}
	if smoke {
		return nil
	}
	if err := os.WriteFile(filepath.Join(root, "test", "bench", "KEYS.md"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// measure fills in a result.
func (r *result) measure(ctx context.Context, folder string) error {
	n, err := start(ctx, folder)
	if err != nil {
		return err
	}
	defer n.end()
	r.empty, _ = load.ReadMemory(n.agent.PID())
	began := time.Now()
	if r.bytesProduced, err = write(ctx, n.agent.Address, r.keys); err != nil {
		return n.explain(err)
	}
	r.write = time.Since(began)
	if err := n.awaitCompacted(ctx, r); err != nil {
		return n.explain(err)
	}
	if r.bucket, err = load.FolderBytes(n.bucket()); err != nil {
		return err
	}
	if err := n.restart(ctx); err != nil { // which forgets what is in memory, and not compacted there
		return n.explain(err)
	}
	began = time.Now()
	if err := r.compare(ctx, n.agent.Address); err != nil {
		return n.explain(err)
	}
	r.readBack = time.Since(began)
	return nil
}

// markdown is the page that the run writes.
func (r *result) markdown() string {
	var b strings.Builder
	b.WriteString("# A compacted topic of many keys\n\nWritten by `go run ./test/bench/keys`, whose package comment says what is done. Not to be edited.\n\n")
	fmt.Fprintf(&b, "- Machine: %s\n- Varve %s: one agent at its defaults, but that it merges after %v, one etcd, a bucket that is a folder on the same disk\n", r.machine, r.varve, mergeAfter)
	fmt.Fprintf(&b, "- %s: %d keys of 8 bytes, each written %d times with values of %d bytes to %d partitions, every tenth deleted in the end\n\n",
		r.began.UTC().Format("2006-01-02 15:04 UTC"), r.keys, rounds, valueBytes, partitions)
	mib := func(bytes float64) string { return fmt.Sprintf("%.0f MiB", bytes/(1<<20)) }
	b.WriteString("| | |\n| --- | --: |\n")
	for _, row := range [][2]string{
		{"written", mib(float64(r.bytesProduced))},
		{"until all was acknowledged", fmt.Sprintf("%.1f s", r.write.Seconds())},
		{"from then on until all was merged and compacted", fmt.Sprintf("%.1f s", r.clean.Seconds())},
		{"CPU of the agent meanwhile", fmt.Sprintf("%.1f s", r.cpu.Seconds())},
		{"compactions of a partition, from the beginning", fmt.Sprintf("%.0f", r.compactions)},
		{"bytes of batches that they judged, and left", mib(r.judged) + ", " + mib(r.kept)},
		{"memory of the agent, empty", mib(float64(r.empty.Resident))},
		{"memory of the agent, at most", mib(float64(r.peak.Peak))},
		{"bucket in the end, with what waits for its deletion", mib(float64(r.bucket))},
		{"records in the end", fmt.Sprintf("%d (%.2f for each key)", r.records, float64(r.records)/float64(r.keys))},
		{"reading them, after a restart", fmt.Sprintf("%.1f s", r.readBack.Seconds())},
		{"keys whose last record is another than was written", fmt.Sprint(r.wrong)},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	return b.String()
}
