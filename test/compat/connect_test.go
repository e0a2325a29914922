package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/varve-io/varve/test/servers"
)

// connect is a worker of Kafka Connect, which copies lines of files into a topic, and from there into another file.
type connect struct {
	suite   *suite
	folder  string // of the files
	address string // of the worker's REST API
	worker  *member
	topic   string
	lines   map[string]int    // written, by source
	weir    map[string]string // the configuration of that connector

	// What was there when the worker was killed:
	read  map[string]int // how many lines were committed as read, by source; of the first one, fewer than the topic has
	taken int64          // the sink's committed offset
	sunk  int            // lines in the sink's file
}

// The connectors. Lines of the first source end first; the source whose configuration changes, and the one that is paused, have none.
const (
	earlySource    = "pond"
	pausedSource   = "mill"
	changingSource = "weir"
	deletedSource  = "ford"
	sink           = "lake"
)

// steadySources have lines all the time.
var steadySources = []string{"spring", "brook", "creek"}

const connectWorkers = "workers" // the group of workers, with which the names of its topics begin

func newConnect(t *testing.T, s *suite) *connect {
	t.Helper()
	address, err := servers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return &connect{suite: s, folder: t.TempDir(), address: address, lines: map[string]int{}}
}

func (c *connect) topics() []string {
	return []string{connectWorkers + "-config", connectWorkers + "-offset", connectWorkers + "-status"}
}

// fill makes connectors, has some of them change in each way, and kills the worker while a source has sent lines and not
// committed their offset.
func (c *connect) fill(ctx context.Context, t *testing.T) (err error) {
	if c.topic, err = c.suite.topic(ctx, "connect-lines", 1); err != nil {
		return err
	}
	if err := c.start(ctx, t, "disabled"); err != nil {
		return err
	}
	for _, name := range slices.Concat(steadySources, []string{earlySource, pausedSource, changingSource, deletedSource}) {
		if err := errors.Join(c.write(name, 0), c.configure(ctx, name, c.source(name))); err != nil {
			return err
		}
	}
	err = errors.Join(
		c.configure(ctx, sink, map[string]string{"connector.class": "FileStreamSink", "topics": c.topic, "file": c.file(sink)}),
		c.call(ctx, http.MethodPut, pausedSource+"/pause", nil, nil),
		c.write(earlySource, 10),
	)
	if err != nil {
		return err
	}
	const rounds = 16
	for i := range rounds {
		c.weir = c.source(changingSource)
		c.weir["batch.size"] = strconv.Itoa(1 + i)
		if err := errors.Join(c.configure(ctx, changingSource, c.weir), c.flow(ctx)); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		if i == rounds/2 {
			if err := c.call(ctx, http.MethodDelete, deletedSource, nil, nil); err != nil {
				return err
			}
		}
	}
	if err := c.stands(ctx); err != nil {
		return err
	}
	return c.kill(ctx)
}

// resume starts another worker, which now sends lines in transactions. It has to know all that the one that was killed had said.
func (c *connect) resume(ctx context.Context, t *testing.T) error {
	if err := c.start(ctx, t, "enabled"); err != nil {
		return err
	}
	if err := c.stands(ctx); err != nil {
		return err
	}
	var config map[string]string
	if err := c.call(ctx, http.MethodGet, changingSource+"/config", nil, &config); err != nil {
		return err
	}
	c.weir["name"] = changingSource
	if !maps.Equal(config, c.weir) {
		return fmt.Errorf("the configuration of %s is %v, want %v", changingSource, config, c.weir)
	}
	for range 3 {
		if err := errors.Join(c.write(earlySource, 1), c.flow(ctx)); err != nil {
			return err
		}
	}
	if err := errors.Join(c.sentOnce(ctx), c.sunkOnce(ctx)); err != nil {
		return err
	}
	return c.worker.leave(ctx, true)
}

// start starts a worker.
func (c *connect) start(ctx context.Context, t *testing.T, exactlyOnce string) error {
	session := strconv.FormatInt(copySession.Milliseconds(), 10)
	properties := map[string]string{
		"bootstrap.servers":           c.suite.bootstrap,
		"group.id":                    connectWorkers,
		"listeners":                   "http://" + c.address,
		"key.converter":               "org.apache.kafka.connect.storage.StringConverter",
		"value.converter":             "org.apache.kafka.connect.storage.StringConverter",
		"plugin.discovery":            "service_load",
		"offset.flush.interval.ms":    "500",
		"exactly.once.source.support": exactlyOnce,
		// Who was killed is not waited for longer than it takes to notice: neither the worker nor the sink's consumer.
		"session.timeout.ms":               session,
		"heartbeat.interval.ms":            "500",
		"scheduled.rebalance.max.delay.ms": "0",
		"consumer.session.timeout.ms":      session,
		"consumer.heartbeat.interval.ms":   "500",
	}
	for i, store := range []string{"config.storage.", "offset.storage.", "status.storage."} {
		properties[store+"topic"] = c.topics()[i]
		properties[store+"replication.factor"] = "-1"
		// What lets brokers compact at once. The worker itself asks for cleanup.policy=compact.
		properties[store+"min.cleanable.dirty.ratio"] = "0"
		properties[store+"segment.ms"] = "1000"
		properties[store+"delete.retention.ms"] = "0"
	}
	properties["offset.storage.partitions"], properties["status.storage.partitions"] = "1", "1"
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&text, "%s=%s\n", key, properties[key])
	}
	file := filepath.Join(c.folder, "worker.properties")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write the worker's configuration: %w", err)
	}
	ignore := func(string) (*event, error) { return nil, nil }
	worker, err := startMember(ctx, t, nil, ignore, append(java(filepath.Join(c.suite.tools.jars, "*")),
		"org.apache.kafka.connect.cli.ConnectDistributed", file)...)
	c.worker = worker
	return err
}

func (c *connect) file(name string) string { return filepath.Join(c.folder, name+".txt") }

// source is the configuration of a source.
func (c *connect) source(name string) map[string]string {
	return map[string]string{"connector.class": "FileStreamSource", "topic": c.topic, "file": c.file(name)}
}

func (c *connect) configure(ctx context.Context, name string, config map[string]string) error {
	return c.call(ctx, http.MethodPut, name+"/config", config, nil)
}

// call asks the worker for something below /connectors/, as often as it says that it starts, or that it cannot for now.
func (c *connect) call(ctx context.Context, method, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	for {
		status, said, err := c.ask(ctx, method, path, body)
		switch {
		case err == nil && (status < 300 || method == http.MethodDelete && status == http.StatusNotFound):
			if answer == nil {
				return nil
			}
			if err := json.Unmarshal(said, answer); err != nil {
				return fmt.Errorf("%s %s: %w in %s", method, path, err, said)
			}
			return nil
		case err == nil && status < 500 && status != http.StatusConflict && status != http.StatusNotFound:
			return fmt.Errorf("%s %s: status %d, %s", method, path, status, said)
		}
		if err := errors.Join(c.worker.broken(), pause(ctx)); err != nil {
			return fmt.Errorf("%s %s: status %d, %s: %w: %s", method, path, status, said, err, c.worker)
		}
	}
}

func (c *connect) ask(ctx context.Context, method, path string, body []byte) (status int, said []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+c.address+"/connectors/"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err // it does not listen yet
	}
	defer answer.Body.Close()
	said, err = io.ReadAll(answer.Body)
	return answer.StatusCode, said, err
}

// stands waits until the worker has the connectors that it should have, in the states that they should be in.
func (c *connect) stands(ctx context.Context) error {
	want := map[string]string{sink: "RUNNING RUNNING", earlySource: "RUNNING RUNNING", changingSource: "RUNNING RUNNING", pausedSource: "PAUSED PAUSED"}
	for _, name := range steadySources {
		want[name] = "RUNNING RUNNING"
	}
	for {
		var all map[string]struct {
			Status struct {
				Connector struct{ State string }
				Tasks     []struct{ State string }
			}
		}
		if err := c.call(ctx, http.MethodGet, "?expand=status", nil, &all); err != nil {
			return err
		}
		got := map[string]string{}
		for name, each := range all {
			got[name] = each.Status.Connector.State
			for _, task := range each.Status.Tasks {
				got[name] += " " + task.State
			}
		}
		if maps.Equal(got, want) {
			return nil
		}
		if err := errors.Join(c.worker.broken(), pause(ctx)); err != nil {
			return fmt.Errorf("connectors are %v, want %v: %w", got, want, err)
		}
	}
}

// write adds lines to a source's file.
func (c *connect) write(name string, lines int) error {
	var text strings.Builder
	for range lines {
		text.WriteString(line{name, c.lines[name]}.String())
		c.lines[name]++
	}
	file, err := os.OpenFile(c.file(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("write lines: %w", err)
	}
	_, err = file.WriteString(text.String())
	return errors.Join(err, file.Close())
}

// flow lets some lines into each steady source, and waits until the sink has them.
func (c *connect) flow(ctx context.Context) error {
	for _, name := range steadySources {
		if err := c.write(name, 20); err != nil {
			return err
		}
	}
	for {
		lines, err := c.sink()
		if err != nil {
			return err
		}
		seen := map[string]int{}
		for _, l := range lines {
			seen[l.source] = max(seen[l.source], l.number+1)
		}
		if maps.Equal(seen, c.lines) {
			return nil
		}
		if err := errors.Join(c.worker.broken(), pause(ctx)); err != nil {
			return fmt.Errorf("the sink has lines up to %v of %v: %w: %s", seen, c.lines, err, c.worker)
		}
	}
}

// line is what a source reads: the number counts the lines of its file.
type line struct {
	source string
	number int
}

func (l line) String() string { return fmt.Sprintf("%s %d\n", l.source, l.number) }

func parseLine(text string) (line, error) {
	var l line
	if _, err := fmt.Sscanf(text, "%s %d", &l.source, &l.number); err != nil {
		return line{}, fmt.Errorf("parse line %q: %w", text, err)
	}
	return l, nil
}

// sink returns what the sink has written.
func (c *connect) sink() ([]line, error) {
	text, err := os.ReadFile(c.file(sink))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the sink's file: %w", err)
	}
	var lines []line
	for each := range strings.Lines(string(text)) {
		if !strings.HasSuffix(each, "\n") {
			break // it is just being written
		}
		l, err := parseLine(each)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// sent returns what is committed in the topic from an offset on.
func (c *connect) sent(ctx context.Context, from int64) ([]line, error) {
	records, err := c.suite.readAll(ctx, c.topic, readCommitted)
	if err != nil {
		return nil, err
	}
	var lines []line
	for _, r := range records[0] {
		if r.offset < from {
			continue
		}
		l, err := parseLine(r.value)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// positions returns how many lines of each source are committed as read.
func (c *connect) positions(ctx context.Context) (map[string]int, error) {
	records, err := c.suite.kept(ctx, c.topics()[1])
	if err != nil {
		return nil, err
	}
	read := map[string]int{}
	for _, r := range records {
		var key [2]any // the source, and its file
		var value struct{ Position int }
		if err := errors.Join(json.Unmarshal([]byte(r.key), &key), json.Unmarshal([]byte(r.value), &value)); err != nil {
			return nil, fmt.Errorf("parse the offset %v: %w", r, err)
		}
		name := fmt.Sprint(key[0])
		l, size := line{source: name}, 0
		for ; size < value.Position; l.number++ {
			size += len(l.String())
		}
		read[name] = l.number
	}
	return read, nil
}

// kill kills the worker while the topic has lines that are not committed as read.
func (c *connect) kill(ctx context.Context) error {
	source := steadySources[0]
	for {
		if err := c.write(source, 20); err != nil {
			return err
		}
		for sent := 0; sent < c.lines[source]; {
			lines, err := c.sent(ctx, 0)
			if err := errors.Join(err, c.worker.broken(), pause(ctx)); err != nil {
				return fmt.Errorf("%d of %d lines are sent: %w: %s", sent, c.lines[source], err, c.worker)
			}
			for _, l := range lines {
				if l.source == source {
					sent = l.number + 1
				}
			}
		}
		// Stopped, it cannot commit what is found not to be committed.
		if err := c.worker.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return fmt.Errorf("stop the worker: %w", err)
		}
		read, err := c.positions(ctx)
		if err != nil {
			return err
		}
		if read[source] < c.lines[source] {
			return c.killed(ctx, read)
		}
		if err := c.worker.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			return fmt.Errorf("continue the worker: %w", err)
		}
	}
}

// killed kills the worker that is stopped, and looks at what it has left.
func (c *connect) killed(ctx context.Context, read map[string]int) error {
	c.read = read
	c.worker.kill()
	lines, err := c.sink()
	if err != nil {
		return err
	}
	c.sunk = len(lines)
	c.taken, err = c.suite.groupOffset(ctx, "connect-"+sink, c.topic, false)
	return err
}

// sentOnce looks whether the sources have sent each line, and sent again what was not committed when the worker was killed alone.
func (c *connect) sentOnce(ctx context.Context) error {
	lines, err := c.sent(ctx, 0)
	if err != nil {
		return err
	}
	next, again := map[string]int{}, map[string]bool{}
	for _, l := range lines {
		if l.number != next[l.source] {
			if again[l.source] || l.number > next[l.source] || l.number < c.read[l.source] {
				return fmt.Errorf("line %d of %s was sent after line %d; lines before %d were committed as read when the worker was killed",
					l.number, l.source, next[l.source]-1, c.read[l.source])
			}
			again[l.source] = true
		}
		next[l.source] = l.number + 1
	}
	if !maps.Equal(next, c.lines) {
		return fmt.Errorf("lines up to %v were sent, want %v", next, c.lines)
	}
	return nil
}

// sunkOnce looks whether the sink has written each line, and again at most those that were not committed when the worker was killed.
func (c *connect) sunkOnce(ctx context.Context) error {
	lines, err := c.sink()
	if err != nil {
		return err
	}
	next := map[string]int{}
	for _, l := range lines {
		if l.number > next[l.source] {
			return fmt.Errorf("the sink wrote line %d of %s, and none from %d on before it", l.number, l.source, next[l.source])
		}
		next[l.source] = max(next[l.source], l.number+1)
	}
	open, err := c.sent(ctx, c.taken)
	if err != nil {
		return err
	}
	if len(lines) > c.sunk+len(open) {
		return fmt.Errorf("the sink wrote %d lines, of which %d before it was killed, with offset %d committed; there are %d lines from there on",
			len(lines), c.sunk, c.taken, len(open))
	}
	return nil
}
