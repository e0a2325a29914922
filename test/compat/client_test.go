package compat

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// record is what a client printed of a Kafka record, or was given to produce.
type record struct {
	partition int
	offset    int64
	key       string
	value     string
}

func (r record) String() string {
	return fmt.Sprintf("(partition %d, offset %d, %q, %.60q)", r.partition, r.offset, r.key, r.value)
}

// client is a Kafka client as the suite drives it; doc.go says what each verb does.
type client interface {
	produce(ctx context.Context, topic, codec string, idempotent bool, records []record) error
	consume(ctx context.Context, topics []string, maximum int, sees isolation) ([]record, error)
	resume(ctx context.Context, topic, group string, maximum int) ([]record, error)
	member(t *testing.T, topic, group string) (*member, error)
	seek(ctx context.Context, topic string, since time.Time, maximum int, sees isolation) ([]record, error)
	// admin returns what the client saw, line by line.
	admin(ctx context.Context, topic string) (string, error)
}

// isolation is the isolation level of a consumer.
type isolation string

const (
	readUncommitted isolation = "read_uncommitted"
	readCommitted   isolation = "read_committed"
)

// subject is a row of the table: a client, and what the client itself cannot do.
type subject struct {
	name    string
	version string
	client  client
	// lacks gives the reason for each feature that is not available.
	lacks map[feature]string
	// fenced is how the client names the error of a producer whose transactional id another one has taken over.
	fenced string
	// late is how it names the error of a commit after the transaction's timeout: by its version of the protocol, of a
	// producer that was fenced, or of a transaction that is not open.
	late string
	// offsetsLast is whether the client keeps a transaction's offsets to itself until it commits.
	offsetsLast bool
}

// driver is a client behind the drivers' common command line.
type driver struct {
	bootstrap string
	command   []string // the program and its first arguments
	env       []string // added to the environment
}

func (d driver) run(ctx context.Context, input string, verb string, args ...string) (string, error) {
	argv := slices.Concat(d.command, []string{verb, "--bootstrap", d.bootstrap}, args)
	return run(ctx, d.env, input, argv...)
}

func (d driver) records(ctx context.Context, verb string, args ...string) ([]record, error) {
	printed, err := d.run(ctx, "", verb, args...)
	if err != nil {
		return nil, err
	}
	return parseRecords(printed)
}

func (d driver) produce(ctx context.Context, topic, codec string, idempotent bool, records []record) error {
	_, err := d.run(ctx, lines(records), "produce", "--topic", topic, "--codec", codec, "--idempotent", strconv.FormatBool(idempotent))
	return err
}

func (d driver) consume(ctx context.Context, topics []string, maximum int, sees isolation) ([]record, error) {
	return d.records(ctx, "consume", "--topic", strings.Join(topics, ","), "--max", strconv.Itoa(maximum), "--isolation", string(sees))
}

func (d driver) resume(ctx context.Context, topic, group string, maximum int) ([]record, error) {
	return d.records(ctx, "resume", "--topic", topic, "--group", group, "--max", strconv.Itoa(maximum))
}

func (d driver) seek(ctx context.Context, topic string, since time.Time, maximum int, sees isolation) ([]record, error) {
	return d.records(ctx, "seek", "--topic", topic, "--timestamp", strconv.FormatInt(since.UnixMilli(), 10), "--max", strconv.Itoa(maximum),
		"--isolation", string(sees))
}

func (d driver) admin(ctx context.Context, topic string) (string, error) {
	return d.run(ctx, "", "admin", "--topic", topic)
}

func (d driver) member(t *testing.T, topic, group string) (*member, error) {
	return d.start(t.Context(), t, "member", "--topic", topic, "--group", group)
}

// start runs a verb that goes on until its standard input ends.
func (d driver) start(ctx context.Context, t *testing.T, verb string, args ...string) (*member, error) {
	argv := slices.Concat(d.command, []string{verb, "--bootstrap", d.bootstrap}, args)
	return startMember(ctx, t, d.env, parseEvent, argv...)
}

// run executes a program to its end and returns its standard output. An error carries the end of its standard error.
func run(ctx context.Context, env []string, input string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), fmt.Errorf("%w: %s", err, end(said, 1500))
	}
	return stdout.String(), nil
}

// end returns the last part of a text.
func end(text string, maximum int) string {
	return text[max(0, len(text)-maximum):]
}

// lines writes records as producers read them.
func lines(records []record) string {
	var b strings.Builder
	for _, r := range records {
		b.WriteString(r.key + "\t" + r.value + "\n")
	}
	return b.String()
}

// event is a line that a member printed: a record, an answer, or else its assignment.
type event struct {
	record   *record
	answer   string
	assigned []int
}

// parseEvent reads a line that a driver printed; other lines than events give nil.
func parseEvent(line string) (*event, error) {
	parts := strings.Split(line, "\t")
	switch parts[0] {
	case "record":
		if len(parts) != 5 {
			return nil, fmt.Errorf("parse record: %d parts in %q, want 5", len(parts), line)
		}
		partition, err := strconv.Atoi(parts[1])
		if err != nil {
			return nil, fmt.Errorf("parse partition: %w", err)
		}
		offset, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parse offset: %w", err)
		}
		return &event{record: &record{partition: partition, offset: offset, key: parts[3], value: parts[4]}}, nil
	case "assigned":
		e := &event{assigned: []int{}}
		for _, part := range strings.FieldsFunc(strings.Join(parts[1:], ","), func(r rune) bool { return r == ',' }) {
			partition, err := strconv.Atoi(part)
			if err != nil {
				return nil, fmt.Errorf("parse assignment: %w", err)
			}
			e.assigned = append(e.assigned, partition)
		}
		return e, nil
	case "ready", "done", "refused", "stalled", "state", "table":
		return &event{answer: line}, nil
	case "error":
		return nil, fmt.Errorf("the driver says: %s", line)
	}
	return nil, nil
}

func parseRecords(printed string) ([]record, error) {
	var records []record
	for line := range strings.Lines(printed) {
		e, err := parseEvent(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		if e != nil && e.record != nil {
			records = append(records, *e.record)
		}
	}
	return records, nil
}

// member is a running client: a member of a consumer group, a transactional producer, or both.
type member struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}
	err    error // how it ended; set before exited is closed

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change of what follows
	assigned []int
	records  []record
	answers  []string
	failure  error
	left     bool   // told to leave
	output   string // its end
}

// startMember starts a program whose output lines parse turns into events. The test's end kills it.
func startMember(ctx context.Context, t *testing.T, env []string, parse func(string) (*event, error), argv ...string) (*member, error) {
	m := &member{exited: make(chan struct{}), changed: make(chan struct{})}
	m.cmd = exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	m.cmd.Env = append(os.Environ(), env...)
	output := &lineWriter{line: func(line string) { m.receive(line, parse) }}
	m.cmd.Stdout, m.cmd.Stderr = output, output
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	m.stdin = stdin
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start member: %w", err)
	}
	go func() {
		m.err = m.cmd.Wait()
		m.change(func() { close(m.exited) })
	}()
	t.Cleanup(func() {
		// The only error is that the process has ended already.
		_ = m.cmd.Process.Kill()
		<-m.exited
	})
	return m, nil
}

// lineWriter calls line for each whole line written to it. One goroutine of os/exec writes to it.
type lineWriter struct {
	line func(string)
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte{'\n'})
		if !whole {
			return len(p), nil
		}
		w.line(string(line))
		w.rest = rest
	}
}

func (m *member) receive(line string, parse func(string) (*event, error)) {
	e, err := parse(line)
	m.change(func() {
		m.output = end(m.output+line+"\n", 3000)
		switch {
		case err != nil:
			m.failure = err
		case e == nil:
		case e.record != nil:
			m.records = append(m.records, *e.record)
		case e.answer != "":
			m.answers = append(m.answers, e.answer)
		default:
			m.assigned = e.assigned
		}
	})
}

func (m *member) change(apply func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	apply()
	close(m.changed)
	m.changed = make(chan struct{})
}

// next is closed at the next change of what a member has seen.
func (m *member) next() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// owns is what is assigned to a member.
func (m *member) owns() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.assigned
}

// delivered is the records that a member has seen.
func (m *member) delivered() []record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records)
}

// said is what a client has answered.
func (m *member) said() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.answers)
}

// broken says why the member cannot go on, if so.
func (m *member) broken() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.exited:
		if !m.left {
			return fmt.Errorf("ended by itself (%s): %s", m.cmd.ProcessState, m.output)
		}
	default:
	}
	return m.failure
}

func (m *member) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprintf("assigned %v, %d records, output ends with:\n%s", m.assigned, len(m.records), m.output)
}

// kill ends the member as a crash would.
func (m *member) kill() {
	m.change(func() { m.left = true })
	// The only error is that the process has ended already.
	_ = m.cmd.Process.Kill()
	<-m.exited
}

// leave asks the member to leave its group and waits for its end. Drivers end with their standard input, other programs
// by SIGTERM.
func (m *member) leave(ctx context.Context, bySignal bool) error {
	m.change(func() { m.left = true })
	if bySignal {
		if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("leave: %w", err)
		}
	} else if err := m.stdin.Close(); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	select {
	case <-m.exited:
		// A program that ends by SIGTERM says so in its status, or not.
		if m.err != nil && !bySignal {
			return fmt.Errorf("leave: %w: %s", m.err, m)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leave: %w: %s", ctx.Err(), m)
	}
}
