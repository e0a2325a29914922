package compat

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// words is a Kafka Streams application that counts words (java/WordCount.java), and what it must have counted.
type words struct {
	suite   *suite
	command []string
	in, out string
	counts  map[string]int
	lines   int
}

// wordsApplication is the application's id, with which its transactional ids begin.
const wordsApplication = "words"

// streamsTimeout is the timeout of the application's transactions; Streams' own default.
const streamsTimeout = 10 * time.Second

// countsWords runs a Kafka Streams application with processing.guarantee=exactly_once_v2: words, counted in a store with
// a changelog. It ends and starts again, is killed while it counts, and starts once more. Each word's counts come out as
// 1, 2, 3 and so on, without a gap or a repetition.
func (s *suite) countsWords(ctx context.Context, t *testing.T) error {
	const partitions = 2
	in, err := s.topic(ctx, "words-in", partitions)
	if err != nil {
		return err
	}
	out, err := s.topic(ctx, "words-out", partitions)
	if err != nil {
		return err
	}
	w := &words{suite: s, in: in, out: out, counts: map[string]int{}}
	w.command = append(java(s.classes, filepath.Join(s.tools.jars, "*")), "WordCount", "--bootstrap", s.bootstrap,
		"--topic", in, "--to", out, "--id", wordsApplication, "--commit", "100", "--session", strconv.FormatInt(copySession.Milliseconds(), 10),
		"--timeout", strconv.FormatInt(streamsTimeout.Milliseconds(), 10))
	kept := t.TempDir()

	first, err := w.start(ctx, t, kept)
	if err != nil {
		return err
	}
	if err := errors.Join(w.write(ctx, 100), w.counted(ctx, first)); err != nil {
		return fmt.Errorf("first start: %w", err)
	}
	if err := first.leave(ctx, false); err != nil {
		return fmt.Errorf("first start: %w", err)
	}
	second, err := w.start(ctx, t, kept)
	if err != nil {
		return fmt.Errorf("second start: %w", err)
	}
	if err := w.killed(ctx, second); err != nil {
		return fmt.Errorf("second start: %w", err)
	}
	// What was on disk has to be thrown away, and the store filled from the changelog.
	third, err := w.start(ctx, t, kept)
	if err != nil {
		return fmt.Errorf("start after a kill: %w", err)
	}
	if err := errors.Join(w.write(ctx, 100), w.counted(ctx, third)); err != nil {
		return fmt.Errorf("start after a kill: %w", err)
	}
	return third.leave(ctx, false)
}

// start starts the application with a folder for its state, and waits until it runs.
func (w *words) start(ctx context.Context, t *testing.T, state string) (*member, error) {
	m, err := startMember(ctx, t, nil, parseEvent, slices.Concat(w.command, []string{"--state", state})...)
	if err != nil {
		return nil, err
	}
	return m, await(ctx, "the application runs", func() bool { return slices.Contains(m.said(), "state\tRUNNING") }, m)
}

// write writes some lines of words, in batches of ten lines.
func (w *words) write(ctx context.Context, lines int) error {
	for range lines / 10 {
		var batch []record
		for range 10 {
			// Some words are frequent, and some come once.
			line := []string{"silt", "layer-" + strconv.Itoa(w.lines%7), "year-" + strconv.Itoa(w.lines)}
			for _, word := range line {
				w.counts[word]++
			}
			batch = append(batch, record{partition: w.lines % 2, key: strconv.Itoa(w.lines), value: strings.Join(line, " ")})
			w.lines++
		}
		if err := w.suite.write(ctx, w.in, batch, func(int) time.Time { return time.Now() }); err != nil {
			return err
		}
	}
	return nil
}

// killed kills the application while it counts, with a transaction open in which it has counted.
func (w *words) killed(ctx context.Context, m *member) error {
	for {
		if err := errors.Join(w.write(ctx, 20), m.broken()); err != nil {
			return err
		}
		// Stopped, it cannot end the transaction that is found.
		if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return fmt.Errorf("stop the application: %w", err)
		}
		counting, err := w.counting(ctx)
		if err != nil {
			return err
		}
		if counting {
			m.kill()
			return nil
		}
		if err := m.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			return fmt.Errorf("continue the application: %w", err)
		}
	}
}

// counting tells whether there are counts in a transaction that is open.
func (w *words) counting(ctx context.Context) (bool, error) {
	open, err := w.suite.admin.ListTransactions(ctx, nil, []string{"Ongoing"})
	if err != nil {
		return false, fmt.Errorf("list transactions: %w", err)
	}
	stable, ends, err := w.suite.ends(ctx, w.out)
	own := func(id string) bool { return strings.HasPrefix(id, wordsApplication+"-") }
	return slices.ContainsFunc(open.TransactionalIDs(), own) && !slices.Equal(stable, ends), err
}

// counted waits until all that was written is counted, and looks at each count on the way there.
func (w *words) counted(ctx context.Context, m *member) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(w.suite.bootstrap), kgo.ConsumeTopics(w.out), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	counts := map[string]int{}
	for !maps.Equal(counts, w.counts) {
		for _, r := range client.PollFetches(ctx).Records() {
			word := string(r.Key)
			count, err := strconv.Atoi(string(r.Value))
			if err != nil {
				return fmt.Errorf("parse count: %w", err)
			}
			if count != counts[word]+1 || count > w.counts[word] {
				return fmt.Errorf("%q is counted %d after %d, and was written %d times", word, count, counts[word], w.counts[word])
			}
			counts[word] = count
		}
		if err := errors.Join(ctx.Err(), m.broken()); err != nil {
			return fmt.Errorf("%d of %d words are counted, %d of %q: %w: %s", len(counts), len(w.counts), counts["silt"], "silt", err, m)
		}
	}
	return nil
}
