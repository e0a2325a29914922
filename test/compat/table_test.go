package compat

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// table is a Kafka Streams application that keeps a topic as a table (java/Table.java), with processing.guarantee=exactly_once_v2,
// and what it must have.
type table struct {
	suite   *suite
	in      string
	command []string
	records int               // written
	values  map[string]string // of each key; "" if it is deleted
	changes map[string]int    // deletions included
}

// tableApplication is the application's id, with which the names of its changelogs begin.
const tableApplication = "table"

func (a *table) topics() []string {
	return []string{tableApplication + "-values-changelog", tableApplication + "-changes-changelog"}
}

// fill has the application follow a table of which each key changes often, and kills it while it does.
func (a *table) fill(ctx context.Context, t *testing.T) error {
	in, err := a.suite.topic(ctx, "table-in", 1)
	if err != nil {
		return err
	}
	a.in, a.values, a.changes = in, map[string]string{}, map[string]int{}
	a.command = append(java(a.suite.classes, filepath.Join(a.suite.tools.jars, "*")), "Table", "--bootstrap", a.suite.bootstrap,
		"--topic", in, "--id", tableApplication, "--commit", "100", "--session", strconv.FormatInt(copySession.Milliseconds(), 10),
		"--timeout", strconv.FormatInt(streamsTimeout.Milliseconds(), 10))
	m, err := a.start(ctx, t)
	if err != nil {
		return err
	}
	for range 20 {
		if err := errors.Join(a.write(ctx), a.same(ctx, m)); err != nil {
			return err
		}
	}
	err = a.write(ctx)
	m.kill()
	return err
}

// resume starts the application with an empty folder: what it has then comes from the changelogs, but for what it was
// killed in.
func (a *table) resume(ctx context.Context, t *testing.T) error {
	m, err := a.start(ctx, t)
	if err != nil {
		return err
	}
	if err := a.same(ctx, m); err != nil {
		return fmt.Errorf("restored: %w", err)
	}
	if err := errors.Join(a.write(ctx), a.same(ctx, m)); err != nil {
		return fmt.Errorf("after it was restored: %w", err)
	}
	return m.leave(ctx, false)
}

func (a *table) start(ctx context.Context, t *testing.T) (*member, error) {
	m, err := startMember(ctx, t, nil, parseEvent, slices.Concat(a.command, []string{"--state", t.TempDir()})...)
	if err != nil {
		return nil, err
	}
	return m, await(ctx, "the application runs", func() bool { return slices.Contains(m.said(), "state\tRUNNING") }, m)
}

// write changes most keys several times, and deletes some; ten keys it leaves alone after a while.
func (a *table) write(ctx context.Context) error {
	var batch []*kgo.Record
	for range 100 {
		of := a.records * 7 % 50
		if a.records > 1000 {
			of = 10 + of%40
		}
		r := &kgo.Record{Topic: a.in, Key: fmt.Appendf(nil, "layer-%02d", of)}
		if a.records%6 != 5 { // the others are deletions
			r.Value = strconv.AppendInt(nil, int64(a.records), 10)
		}
		a.changes[string(r.Key)]++
		a.values[string(r.Key)] = string(r.Value)
		batch = append(batch, r)
		a.records++
	}
	return a.suite.probe.ProduceSync(ctx, batch...).FirstErr()
}

// same waits until the application has what was written.
func (a *table) same(ctx context.Context, m *member) error {
	var rows []string
	for key, changes := range a.changes {
		rows = append(rows, fmt.Sprintf("%s=%s:%d", key, a.values[key], changes))
	}
	slices.Sort(rows)
	want := "table\t" + strings.Join(rows, " ")
	for {
		before := len(m.said())
		if _, err := m.stdin.Write([]byte("\n")); err != nil {
			return fmt.Errorf("ask for the table: %w: %s", err, m)
		}
		if err := await(ctx, "the application shows its table", func() bool { return len(m.said()) > before }, m); err != nil {
			return err
		}
		said := m.said()
		if slices.Contains(said[before:], want) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("the application has %q, want %q: %w", said[len(said)-1], want, err)
		}
	}
}
