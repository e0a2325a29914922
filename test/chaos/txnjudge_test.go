package chaos

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/check"
)

// mark names what happens from now on, so that findings tell when they came about, and starts to measure quiet.
func (l *txnLoad) mark(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := mark{name: name}
	for log := range txnLogs {
		m.floors = append(m.floors, l.ends[log]-1)
		l.quietest[log] = quietness{since: time.Now()}
	}
	l.marks = append(l.marks, m)
}

// quiet tells of each partition the longest time in which nothing came at read_committed since the last mark, and the longest of all.
func (l *txnLoad) quiet() (each string, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for log := range txnLogs {
		q := l.quietest[log]
		q.longest = max(q.longest, time.Since(q.since))
		longest = max(longest, q.longest)
		fmt.Fprintf(&b, " %s %v", l.name(log), q.longest.Round(time.Millisecond))
	}
	return b.String()[1:], longest
}

// healthy is nil as long as no client has met an error that none may meet.
func (l *txnLoad) healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errors) > 0 {
		return l.errors[0]
	}
	return nil
}

// txnGoal is what has to get through.
type txnGoal struct {
	input [partitions]int64 // sequence of the input, by partition
	slots map[int32]int64   // sequence of records that are not copies, by slot
}

// through waits until records of the input that were sent after the call are acknowledged in every partition and, for all
// clients, their copies are read at read_committed, and so is what every mover and spreader has sent after the call. It tells
// what came last.
func (l *txnLoad) through(ctx context.Context, all bool) (last string, err error) {
	g := txnGoal{slots: make(map[int32]int64)}
	for i := range g.input {
		g.input[i] = l.inputs.Load() + 1
	}
	for _, s := range l.slots {
		if s.kind != copier {
			g.slots[s.number] = s.sequence.Load() + 1
		}
	}
	return l.await(ctx, g, all)
}

// caughtUp waits until the copies of all of the input are read.
func (l *txnLoad) caughtUp(ctx context.Context) error {
	l.mu.Lock()
	g := txnGoal{input: l.acked}
	l.mu.Unlock()
	_, err := l.await(ctx, g, true)
	return err
}

func (l *txnLoad) await(ctx context.Context, g txnGoal, all bool) (last string, err error) {
	err = await(ctx, func() string { return last }, func() (bool, error) {
		late := l.late(g, all)
		if late != "" {
			last = late
		}
		return late == "", nil
	})
	return last, err
}

// late tells what has not got through, and "" if all has.
func (l *txnLoad) late(g txnGoal, all bool) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var late []string
	for p, goal := range g.input {
		switch {
		case l.acked[p] < goal:
			late = append(late, "acknowledged in "+l.name(inputLogs+p))
		case all && l.copied[p] < goal:
			late = append(late, "copied to "+l.name(outputLogs+p))
		}
	}
	for _, s := range l.slots {
		if all && l.read[s.number] < g.slots[s.number] {
			late = append(late, "read of "+s.name)
		}
	}
	return strings.Join(late, ", ")
}

// readAll reads every partition at read_committed from its start to its end.
func (l *txnLoad) readAll(ctx context.Context) ([][]check.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	// What a log ends with may be a marker, and stands for all before it.
	client, err := l.reader(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ends, err := l.listEnds(ctx, client)
	if err != nil {
		return nil, err
	}
	final := make([][]check.Record, txnLogs)
	left := 0
	for _, end := range ends {
		if end > 0 {
			left++
		}
	}
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("%w, with %d logs to read", err, left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			log := l.find(r.Topic, r.Partition)
			if r.Offset == ends[log]-1 {
				left--
			}
			if !r.Attrs.IsControl() {
				final[log] = append(final[log], l.record(r))
			}
		})
	}
	return final, nil
}

// listEnds asks where all logs end until it is told.
func (l *txnLoad) listEnds(ctx context.Context, client *kgo.Client) ([]int64, error) {
	ends := make([]int64, txnLogs)
	var refused error
	return ends, await(ctx, func() string { return fmt.Sprintf("told where logs end: %v", refused) }, func() (bool, error) {
		listed, err := kadm.NewClient(client).ListEndOffsets(ctx, l.topics...)
		if refused = err; refused == nil {
			refused = listed.Error() // a shard may just move
		}
		listed.Each(func(o kadm.ListedOffset) { ends[l.find(o.Topic, o.Partition)] = o.Offset })
		return refused == nil, nil
	})
}

// judge reads everything and reports what is wrong with the history.
func (l *txnLoad) judge(ctx context.Context, t *testing.T) {
	t.Helper()
	final, err := l.readAll(ctx)
	if err != nil {
		t.Fatalf("read everything: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	shown := make(map[check.Kind]int)
	for _, f := range l.findings(final) {
		if shown[f.Kind]++; shown[f.Kind] <= errorsShown {
			t.Errorf("%s: %v (written during %s)", l.where(f), f, l.during(f))
		}
	}
	for kind, n := range shown {
		if n > errorsShown {
			t.Errorf("%s: %d in all", kind, n)
		}
	}
	for i, err := range l.errors {
		if i == errorsShown {
			t.Errorf("%d errors of clients in all", len(l.errors))
			break
		}
		t.Errorf("a client: %v", err)
	}
	records := 0
	for _, log := range final {
		records += len(log)
	}
	t.Logf("%d operations, %d committed records, %d cuts through the accounts, %d offsets told",
		len(l.operations), records, len(l.cuts), len(l.told)+len(l.stable))
	for _, what := range slices.Sorted(maps.Keys(l.outcomes)) {
		t.Logf("%6d %s", l.outcomes[what], what)
	}
}

// findings judges the history.
func (l *txnLoad) findings(final [][]check.Record) []check.Finding {
	history := check.TxnHistory{Operations: l.operations, Final: final}
	found := slices.Concat(check.Transactions(history), check.Offsets(history, l.told), check.Stable(history, l.stable))
	for p := range partitions {
		var copies []check.Copy
		for _, r := range final[outputLogs+p] {
			copies = append(copies, check.Copy{Offset: r.Offset, Source: l.facts[r.ID].source})
		}
		found = append(found, check.Copies(int32(outputLogs+p), final[inputLogs+p], copies)...)
	}
	for _, f := range check.Sums(check.Books{Cuts: l.cuts, Views: l.views(final)}) {
		if f.Log >= 0 {
			f.Log += moneyLogs
		}
		found = append(found, f)
	}
	return found
}

// views are what those have seen of the accounts who have read all of them at read_committed.
func (l *txnLoad) views(final [][]check.Record) []check.View {
	last := check.View{Name: "the final read", Whole: true, Logs: make([][]check.Posting, partitions)}
	for p := range partitions {
		for _, r := range final[moneyLogs+p] {
			last.Logs[p] = append(last.Logs[p], l.posting(r))
		}
	}
	reader := check.View{Name: "the reader", Logs: make([][]check.Posting, partitions)}
	for i := range l.operations {
		o := &l.operations[i]
		if o.Uncommitted {
			continue
		}
		for _, p := range o.Polls {
			for _, r := range p.Records {
				if account := int(r.Log) - moneyLogs; account >= 0 && account < partitions { // copiers read the input alone
					reader.Logs[account] = append(reader.Logs[account], l.posting(r.Record))
				}
			}
		}
	}
	return []check.View{reader, last}
}

// posting tells what a record moves. The two of a transfer have successive numbers.
func (l *txnLoad) posting(r check.Record) check.Posting {
	f := l.facts[r.ID]
	transfer := r.ID
	if f.amount > 0 {
		transfer.Seq--
	}
	return check.Posting{Offset: r.Offset, Transfer: transfer, Amount: f.amount}
}

// where names the log of a finding.
func (l *txnLoad) where(f check.Finding) string {
	if f.Log < 0 {
		return "everywhere"
	}
	return l.name(int(f.Log))
}

// during tells what was going on when an offset was written.
func (l *txnLoad) during(f check.Finding) string {
	for _, m := range slices.Backward(l.marks) {
		if f.Log >= 0 && f.Offset > m.floors[f.Log] {
			return m.name
		}
	}
	return l.marks[0].name
}
