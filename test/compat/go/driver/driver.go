// Package driver is the frame of the Go drivers of Varve's compatibility suite: it reads the command line that the suite
// speaks to every driver (see package compat), runs one verb with a Kafka client, and prints what the client saw.
package driver

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// limit is how long a verb may take. The verb member runs until its standard input ends.
const limit = 60 * time.Second

// Values that the verb admin works with, the same in every driver.
const (
	PartitionsAtFirst = 2
	PartitionsAtLast  = 4
	RetentionKey      = "retention.ms"
	RetentionAtFirst  = "3600000"
	RetentionAtLast   = "7200000"
)

// Job is one command line.
type Job struct {
	Bootstrap  string
	Topics     []string
	Codec      string
	Idempotent bool
	Group      string
	Max        int
	// Since is the time to seek to.
	Since time.Time
	// ReadCommitted is whether to see committed records only; else all.
	ReadCommitted bool
	// ID is the transactional id, Timeout that of its transactions.
	ID      string
	Timeout time.Duration
	// Session is the session timeout of a group's member.
	Session time.Duration
	// To is the topic to copy to, Stall the key of the record in whose transaction to stop doing so.
	To, Stall string
}

// Topic is the only topic of verbs that work on one.
func (j Job) Topic() string { return j.Topics[0] }

// Record is what drivers read and print of a Kafka record.
type Record struct {
	Partition int32
	Offset    int64
	Key       []byte
	Value     []byte
}

// Client is one Kafka client library under test. Each method is a verb; package compat says what each must do.
type Client interface {
	Produce(ctx context.Context, job Job, records []Record) error
	Consume(ctx context.Context, job Job, out *Output) error
	Resume(ctx context.Context, job Job, out *Output) error
	Member(ctx context.Context, job Job, out *Output) error
	Seek(ctx context.Context, job Job, out *Output) error
	Admin(ctx context.Context, job Job, out *Output) error
}

// Output prints what a client saw, one event per line. It is safe for concurrent use.
type Output struct {
	mu      sync.Mutex
	records int
}

// Record prints one record and returns how many have been printed.
func (o *Output) Record(r Record) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Printf("record\t%d\t%d\t%s\t%s\n", r.Partition, r.Offset, r.Key, r.Value)
	o.records++
	return o.records
}

// Assigned prints the partitions that the member has now.
func (o *Output) Assigned(partitions []int32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	slices.Sort(partitions)
	fmt.Printf("assigned\t%s\n", strings.Trim(strings.ReplaceAll(fmt.Sprint(partitions), " ", ","), "[]"))
}

// Line prints one line of the verb admin.
func (o *Output) Line(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Printf(format+"\n", args...)
}

// Eventually calls check until it returns true or fails, or ctx is done: what an administrator changes shows up in
// Kafka's metadata a little later.
func Eventually(ctx context.Context, what string, check func() (bool, error)) error {
	for {
		done, err := check()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Main runs the command line and exits.
func Main(client Client) {
	if err := run(client, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(client Client, args []string) error {
	if len(args) == 0 {
		return errors.New("no verb given")
	}
	var job Job
	var topics, idempotent, isolation string
	var since, timeout, session int64
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&job.Bootstrap, "bootstrap", "", "address of the broker")
	flags.StringVar(&topics, "topic", "", "topics, separated by commas")
	flags.StringVar(&job.Codec, "codec", "none", "none, gzip, snappy, lz4 or zstd")
	flags.StringVar(&idempotent, "idempotent", "false", "true to produce with idempotence")
	flags.StringVar(&job.Group, "group", "", "consumer group")
	flags.IntVar(&job.Max, "max", 0, "records to consume")
	flags.Int64Var(&since, "timestamp", 0, "time to seek to, milliseconds since 1970")
	flags.StringVar(&isolation, "isolation", "read_uncommitted", "read_committed or read_uncommitted")
	flags.StringVar(&job.ID, "id", "", "transactional id")
	flags.Int64Var(&timeout, "timeout", 0, "timeout of transactions, milliseconds")
	flags.Int64Var(&session, "session", 10_000, "session timeout of a group's member, milliseconds")
	flags.StringVar(&job.To, "to", "", "topic to copy to")
	flags.StringVar(&job.Stall, "stall", "", "key of the record in whose transaction to stop copying")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	job.Topics, job.Idempotent, job.Since = strings.Split(topics, ","), idempotent == "true", time.UnixMilli(since)
	job.ReadCommitted = isolation == "read_committed"
	job.Timeout, job.Session = time.Duration(timeout)*time.Millisecond, time.Duration(session)*time.Millisecond

	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out := &Output{}
	switch args[0] {
	case "produce":
		records, err := readRecords(os.Stdin)
		if err != nil {
			return err
		}
		return client.Produce(ctx, job, records)
	case "consume":
		return client.Consume(ctx, job, out)
	case "resume":
		return client.Resume(ctx, job, out)
	case "member":
		return client.Member(untilEnd(os.Stdin), job, out)
	case "seek":
		return client.Seek(ctx, job, out)
	case "admin":
		return client.Admin(ctx, job, out)
	}
	if with, ok := client.(Transactional); ok {
		switch args[0] {
		case "transact":
			return transact(ctx, with, job, os.Stdin, out)
		case "copy":
			return with.Copy(untilEnd(os.Stdin), job, out)
		}
	}
	return fmt.Errorf("unknown verb %q", args[0])
}

// readRecords reads lines "key TAB value".
func readRecords(in io.Reader) ([]Record, error) {
	var records []Record
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		key, value, found := strings.Cut(lines.Text(), "\t")
		if !found {
			return nil, fmt.Errorf("read records: no tab in %q", lines.Text())
		}
		records = append(records, Record{Key: []byte(key), Value: []byte(value)})
	}
	return records, lines.Err()
}

// untilEnd returns a context that is done when in ends.
func untilEnd(in io.Reader) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		// However reading ends, there is nobody left who could ask for more.
		_, _ = io.Copy(io.Discard, in)
	}()
	return ctx
}
