package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/check"
)

const (
	// errorsShown bounds how many errors and findings of a kind a run prints.
	errorsShown = 10
	// readWithin bounds the reading of everything that transactions wrote.
	readWithin = 10 * time.Minute
)

// logHistory is the history of one partition.
type logHistory struct {
	mu    sync.Mutex
	sends []check.Send
	floor int64 // highest acknowledged offset
	seen  []check.Record
	due   int64 // offset that the reader is given next

	newest       int   // latest send that is acknowledged, -1 for none
	newestOffset int64 // and its offset

	ackAt time.Time     // of the latest acknowledgement, or when quiet was reset
	quiet time.Duration // the longest time without one
}

// sent notes a send, and returns its number.
func (h *logHistory) sent(s check.Send) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Floor = h.floor
	h.sends = append(h.sends, s)
	return len(h.sends) - 1
}

// acknowledged notes the acknowledgement of a send.
func (h *logHistory) acknowledged(send int, offset int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sends[send].Outcome, h.sends[send].Offset = check.Acked, offset
	h.floor = max(h.floor, offset)
	if send > h.newest {
		h.newest, h.newestOffset = send, offset
	}
	now := time.Now()
	h.quiet, h.ackAt = max(h.quiet, now.Sub(h.ackAt)), now
}

// saw notes what the reader is given, and tells which offset was due and whether it is this one.
func (h *logHistory) saw(r check.Record) (int64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	due := h.due
	h.seen, h.due = append(h.seen, r), r.Offset+1
	return due, r.Offset == due
}

// mark is a moment in the history of all logs.
type mark struct {
	name   string
	floors []int64
}

// mark names what happens from now on, so that findings tell when they came about, and starts to measure quiet.
func (l *load) mark(name string) {
	m := mark{name: name}
	for i := range l.logs {
		h := &l.logs[i]
		h.mu.Lock()
		m.floors = append(m.floors, h.floor)
		h.quiet, h.ackAt = 0, time.Now()
		h.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, m)
}

// during tells what was going on when an offset was written.
func (l *load) during(log int, offset int64) string {
	for _, m := range slices.Backward(l.marks) {
		if offset > m.floors[log] {
			return m.name
		}
	}
	return "the start"
}

// quiet tells of each partition the longest time without an acknowledgement since the last mark, and the longest of all.
func (l *load) quiet() (each string, longest time.Duration) {
	var b strings.Builder
	for i := range l.logs {
		h := &l.logs[i]
		h.mu.Lock()
		quiet := max(h.quiet, time.Since(h.ackAt))
		h.mu.Unlock()
		longest = max(longest, quiet)
		fmt.Fprintf(&b, " %s %v", l.name(i), quiet.Round(time.Millisecond))
	}
	return b.String()[1:], longest
}

// await asks every few milliseconds whether something has come true. The error says what has not.
func await(ctx context.Context, what func() string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, progressWithin)
	defer cancel()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: within %v not %s", ctx.Err(), progressWithin, what())
		case <-tick.C:
		}
	}
}

// through waits until records that were sent after the call are acknowledged in every partition and, for all clients, are read by
// the reader, and are committed by every group. It tells what came last.
func (l *load) through(ctx context.Context, all bool) (last string, err error) {
	goals := make([]goal, len(l.logs))
	for i := range l.logs {
		h := &l.logs[i]
		h.mu.Lock()
		goals[i] = goal{send: len(h.sends), offset: -1}
		h.mu.Unlock()
	}
	err = await(ctx, func() string { return last }, func() (bool, error) {
		late := l.late(goals, all)
		if late != "" {
			last = late
		}
		return late == "", nil
	})
	return last, err
}

// goal is what through awaits in one log.
type goal struct {
	send   int
	offset int64 // of the send or one after it; -1 until it is acknowledged
}

// late tells what has not got through, and "" if all has.
func (l *load) late(goals []goal, all bool) string {
	var late []string
	for i := range goals {
		g, h := &goals[i], &l.logs[i]
		h.mu.Lock()
		if g.offset < 0 && h.newest >= g.send {
			g.offset = h.newestOffset
		}
		due := h.due
		h.mu.Unlock()
		switch {
		case g.offset < 0:
			late = append(late, "acknowledged in "+l.name(i))
		case all && due <= g.offset:
			late = append(late, fmt.Sprintf("read in %s beyond offset %d, to %d", l.name(i), due, g.offset))
		case all:
			for _, group := range l.groups {
				if acked := group.committed(i); acked <= g.offset {
					late = append(late, fmt.Sprintf("committed by %s in %s beyond %d, to %d", group.name, l.name(i), acked, g.offset+1))
				}
			}
		}
	}
	return strings.Join(late, ", ")
}

// caughtUp waits until the reader and the groups have all that is acknowledged.
func (l *load) caughtUp(ctx context.Context) error {
	goals := make([]goal, len(l.logs))
	for i := range l.logs {
		h := &l.logs[i]
		h.mu.Lock()
		goals[i] = goal{offset: max(h.floor, 0)}
		h.mu.Unlock()
	}
	return await(ctx, func() string { return l.late(goals, true) }, func() (bool, error) { return l.late(goals, true) == "", nil })
}

// pending tells how many records of each partition have no answer.
func (l *load) pending() string {
	var b strings.Builder
	for i := range l.logs {
		h := &l.logs[i]
		h.mu.Lock()
		n := 0
		for _, s := range h.sends {
			if s.Outcome == check.Unknown {
				n++
			}
		}
		h.mu.Unlock()
		fmt.Fprintf(&b, " %s %d", l.name(i), n)
	}
	return b.String()[1:]
}

// readAll reads every partition from its start to its end.
func (l *load) readAll(ctx context.Context) ([][]check.Record, error) {
	client, err := l.reader()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var ends kadm.ListedOffsets
	var refused error
	err = await(ctx, func() string { return fmt.Sprintf("told where logs end: %v", refused) }, func() (bool, error) {
		if ends, refused = kadm.NewClient(client).ListEndOffsets(ctx, l.topics...); refused == nil {
			refused = ends.Error() // a shard may just move
		}
		return refused == nil, nil
	})
	if err != nil {
		return nil, err
	}
	left, due := int64(0), make([]int64, len(l.logs)) // offsets
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	final := make([][]check.Record, len(l.logs))
	for left > 0 {
		waiting, cancel := context.WithTimeout(ctx, progressWithin)
		fetches := client.PollFetches(waiting)
		cancel()
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%w, with %d offsets to read", err, left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			log := l.find(r.Topic, r.Partition)
			final[log] = append(final[log], l.record(r))
			left -= max(0, r.Offset+1-due[log])
			due[log] = max(due[log], r.Offset+1)
		})
	}
	return final, nil
}

// awaitCompacted waits until most of what a table was given is gone. What leaders have in memory is not compacted, so they must have been started since.
func (l *load) awaitCompacted(ctx context.Context) error {
	records := 0
	return await(ctx, func() string { return fmt.Sprintf("compacted: %d records of %d are there", records, l.acked.Load()) }, func() (bool, error) {
		final, err := l.readAll(ctx)
		records = 0
		for _, log := range final {
			records += len(log)
		}
		return int64(records) < l.acked.Load()/2, err
	})
}

// judge reads everything and reports what is wrong with the history.
func (l *load) judge(ctx context.Context, t *testing.T) {
	t.Helper()
	final, err := l.readAll(ctx)
	if err != nil {
		t.Fatalf("read everything: %v", err)
	}
	shown, records := make(map[check.Kind]int), 0
	for i := range l.logs {
		h := &l.logs[i]
		records += len(final[i])
		for _, f := range check.Log(check.History{Sends: h.sends, Compacted: l.table, Final: final[i], Seen: h.seen}) {
			if shown[f.Kind]++; shown[f.Kind] <= errorsShown {
				t.Errorf("%s: %v (written during %s)", l.name(i), f, l.during(i, f.Offset))
			}
		}
	}
	for kind, n := range shown {
		if n > errorsShown {
			t.Errorf("%s: %d in all", kind, n)
		}
	}
	for _, g := range l.groups {
		if err := g.judge(ctx); err != nil {
			t.Error(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, err := range l.errors {
		if i == errorsShown {
			t.Errorf("%d errors of clients in all", len(l.errors))
			break
		}
		t.Errorf("a client: %v", err)
	}
	t.Logf("%d records acknowledged, %d read", l.acked.Load(), records)
}

// healthy is nil as long as no client has met an error that it could not get over.
func (l *load) healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errors[:min(len(l.errors), errorsShown)]...)
}
