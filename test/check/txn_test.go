package check

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

func put(log int32, writer int32, seq, offset int64) TxnSend {
	return TxnSend{Log: log, ID: ID{writer, seq}, Content: uint64(seq), Offset: offset}
}

func got(log int32, offset int64, writer int32, seq int64) Read {
	return Read{log, Record{Offset: offset, ID: ID{writer, seq}, Content: uint64(seq)}}
}

func polled(ended time.Duration, records ...Read) []Poll {
	return []Poll{{Ended: ended, Records: records}}
}

// The operations of soundTransactions.
const (
	opCommitted   = iota // commits 1/0 to log 0 and 1/1 to log 1
	opAborted            // 1/2 to log 0
	opCopied             // reads 1/0, and commits 2/0 to log 1
	opUnknown            // 3/0 to log 0, and is committed
	opUnknownLost        // 4/0 to log 0, and never arrives
	opFirstPoll          // of a reader at read_committed
	opSecondPoll         // of the same
	opDirty              // a poll at read_uncommitted
)

// soundTransactions is a history without anomalies. Offset 1 of both logs, 3 and 5 of log 0, and 3 of log 1 are markers.
func soundTransactions() TxnHistory {
	return TxnHistory{
		Operations: []Operation{
			opCommitted:   {Process: 1, Outcome: Acked, Asked: 10, Sends: []TxnSend{put(0, 1, 0, 0), put(1, 1, 1, 0)}},
			opAborted:     {Process: 1, Outcome: Failed, Sends: []TxnSend{put(0, 1, 2, 2)}},
			opCopied:      {Process: 2, Group: 1, Outcome: Acked, Asked: 30, Polls: polled(20, got(0, 0, 1, 0)), Sends: []TxnSend{put(1, 2, 0, 2)}},
			opUnknown:     {Process: 3, Outcome: Unknown, Asked: 40, Sends: []TxnSend{put(0, 3, 0, -1)}},
			opUnknownLost: {Process: 4, Outcome: Unknown, Asked: 40, Sends: []TxnSend{put(0, 4, 0, -1)}},
			opFirstPoll:   {Process: 5, Outcome: Acked, Polls: polled(25, got(0, 0, 1, 0), got(1, 0, 1, 1))},
			opSecondPoll:  {Process: 5, Outcome: Acked, Polls: polled(50, got(0, 4, 3, 0), got(1, 2, 2, 0))},
			opDirty:       {Process: 6, Outcome: Acked, Uncommitted: true, Polls: polled(26, got(0, 0, 1, 0), got(0, 2, 1, 2), got(0, 4, 3, 0))},
		},
		Final: [][]Record{
			{got(0, 0, 1, 0).Record, got(0, 4, 3, 0).Record},
			{got(1, 0, 1, 1).Record, got(1, 2, 2, 0).Record},
		},
	}
}

// brief gives findings without details.
func brief(findings []Finding) []string {
	var s []string
	for _, f := range findings {
		s = append(s, fmt.Sprintf("%s %v at %d/%d", f.Kind, f.ID, f.Log, f.Offset))
	}
	return s
}

// TestTransactions makes each anomaly in a history that has none.
func TestTransactions(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*TxnHistory)
		want   []string
	}{
		"none":          {func(*TxnHistory) {}, nil},
		"nothing":       {func(h *TxnHistory) { *h = TxnHistory{} }, nil},
		"no final read": {func(h *TxnHistory) { h.Final = nil }, nil},
		"two records at one offset": {
			func(h *TxnHistory) { h.Operations[opDirty].Polls[0].Records[2] = got(0, 4, 4, 0) },
			[]string{"inconsistent offsets 4/0 at 0/4"},
		},
		"one offset acknowledged for two": {
			func(h *TxnHistory) { h.Operations[opUnknownLost].Sends[0].Offset = 2 },
			[]string{"inconsistent offsets 4/0 at 0/2"},
		},
		"a record at two offsets": {
			func(h *TxnHistory) { h.Final[0] = append(h.Final[0], got(0, 6, 3, 0).Record) },
			[]string{"duplicate 3/0 at 0/6"},
		},
		"acknowledged at a wrong offset": {
			func(h *TxnHistory) { h.Operations[opUnknown].Sends[0].Offset = 7 },
			[]string{"wrong offset 3/0 at 0/4"},
		},
		"what nobody sent": {
			func(h *TxnHistory) { h.Final[0] = append(h.Final[0], got(0, 6, 9, 9).Record) },
			[]string{"foreign 9/9 at 0/6"},
		},
		"other content": {
			func(h *TxnHistory) { h.Final[0][1].Content = 7 },
			[]string{"changed 3/0 at 0/4"},
		},
		"an aborted record is read": {
			func(h *TxnHistory) {
				p := &h.Operations[opSecondPoll].Polls[0]
				p.Records = slices.Insert(p.Records, 0, got(0, 2, 1, 2))
			},
			[]string{"aborted read 1/2 at 0/2"},
		},
		"an aborted record stays": {
			func(h *TxnHistory) { h.Final[0] = slices.Insert(h.Final[0], 1, got(0, 2, 1, 2).Record) },
			[]string{"aborted read 1/2 at 0/2"},
		},
		"an open transaction is read": {
			func(h *TxnHistory) { h.Operations[opCopied].Asked = 60 },
			[]string{"premature read 2/0 at 1/2"},
		},
		"a transaction reads what it sent": {
			func(h *TxnHistory) {
				o := &h.Operations[opCopied]
				o.Polls = append(o.Polls, polled(21, got(1, 2, 2, 0))...)
			},
			[]string{"precommitted read 2/0 at 1/2"},
		},
		"half of a transaction is missing below what was read": {
			func(h *TxnHistory) {
				h.Operations[opFirstPoll].Polls = polled(25, got(0, 0, 1, 0))
				h.Final[1] = h.Final[1][1:]
			},
			[]string{"torn transaction 1/1 at 1/0"},
		},
		"half of a transaction is missing at the end": {
			func(h *TxnHistory) {
				o := &h.Operations[opCopied]
				o.Sends = append(o.Sends, put(0, 2, 1, 8))
			},
			[]string{"torn transaction 2/1 at 0/8"},
		},
		"half of an unknown transaction is missing": {
			func(h *TxnHistory) {
				o := &h.Operations[opUnknown]
				o.Sends = append(o.Sends, put(1, 3, 1, -1))
			},
			[]string{"torn transaction 3/1 at 1/-1"},
		},
		"a write is lost": {
			func(h *TxnHistory) { h.Operations[opAborted].Outcome = Acked },
			[]string{"lost 1/2 at 0/2", "poll skip 3/0 at 0/4", "poll skip 3/0 at 0/4"},
		},
		"a write is lost, and nobody read to the end": {
			func(h *TxnHistory) { h.Operations[opAborted].Outcome, h.Final = Acked, nil },
			[]string{"lost 1/2 at 0/2", "poll skip 3/0 at 0/4"},
		},
		"the end is lost": {
			func(h *TxnHistory) {
				h.Operations[opUnknownLost].Outcome, h.Operations[opUnknownLost].Sends[0].Offset = Acked, 6
			},
			[]string{"unseen 4/0 at 0/6"},
		},
		"nobody read to the end": {
			func(h *TxnHistory) {
				h.Operations[opUnknownLost].Outcome, h.Operations[opUnknownLost].Sends[0].Offset = Acked, 6
				h.Final = nil
			},
			nil,
		},
		"read and then gone": {
			func(h *TxnHistory) { h.Final[0] = h.Final[0][:1] },
			[]string{"unstable 3/0 at 0/4"},
		},
		"a poll leaves out a record": {
			func(h *TxnHistory) {
				h.Operations[opFirstPoll].Polls = polled(25, got(0, 0, 1, 0), got(1, 0, 1, 1), got(1, 2, 2, 0))
				h.Operations[opSecondPoll].Polls = polled(50, got(0, 4, 3, 0), got(1, 4, 4, 0))
				h.Operations[opUnknownLost].Sends[0] = put(1, 4, 0, 4)
				h.Operations[opDirty].Polls = polled(60, got(1, 0, 1, 1), got(1, 4, 4, 0))
				h.Final[1] = append(h.Final[1], got(1, 4, 4, 0).Record)
				h.Operations[opCopied].Asked = 0
			},
			[]string{"poll skip 4/0 at 1/4"},
		},
		"a poll at read_uncommitted leaves out an aborted record": {
			func(h *TxnHistory) { h.Operations[opDirty].Polls = polled(26, got(0, 0, 1, 0), got(0, 4, 3, 0)) },
			[]string{"poll skip 3/0 at 0/4"},
		},
		"a poll goes back": {
			func(h *TxnHistory) {
				p := &h.Operations[opSecondPoll].Polls[0]
				p.Records = slices.Insert(p.Records, 0, got(0, 0, 1, 0))
			},
			[]string{"non-monotonic poll 1/0 at 0/0"},
		},
		"a consumer goes back": {
			func(h *TxnHistory) {
				p := &h.Operations[opSecondPoll].Polls[0]
				p.Records, p.Moved = slices.Insert(p.Records, 0, got(0, 0, 1, 0)), []int32{0}
			},
			nil,
		},
		"sends change places": {
			func(h *TxnHistory) {
				o := &h.Operations[opCommitted]
				o.Sends = append(o.Sends, put(0, 1, 3, 8))
				h.Final[0] = append(h.Final[0], got(0, 8, 1, 3).Record)
			},
			[]string{"reordered 1/2 at 0/2"},
		},
		"two transactions read of each other": {
			func(h *TxnHistory) {
				h.Operations[opCommitted].Polls = polled(5, got(1, 2, 2, 0))
				h.Operations[opCopied].Asked = 4
			},
			[]string{"write-read circle 1/0 at 0/0"},
		},
		"three transactions read of one another": {
			func(h *TxnHistory) {
				h.Operations[opUnknown].Polls = polled(5, got(1, 2, 2, 0))
				h.Operations[opCopied].Asked = 4
				h.Operations[opCommitted].Polls = polled(45, got(0, 4, 3, 0))
			},
			[]string{"write-read circle 1/0 at 0/0"},
		},
		"a group processes a record twice": {
			func(h *TxnHistory) {
				h.Operations = append(h.Operations, Operation{Process: 7, Group: 1, Outcome: Acked, Polls: polled(99, got(0, 0, 1, 0))})
			},
			[]string{"processed twice 1/0 at 0/0"},
		},
		"a group processes again what it aborted": {
			func(h *TxnHistory) {
				h.Operations = append(h.Operations,
					Operation{Process: 7, Group: 2, Outcome: Failed, Polls: polled(98, got(0, 0, 1, 0))},
					Operation{Process: 7, Group: 2, Outcome: Acked, Polls: []Poll{{Ended: 99, Moved: []int32{0}, Records: []Read{got(0, 0, 1, 0)}}}},
				)
			},
			nil,
		},
		"read_uncommitted taken for read_committed": {
			func(h *TxnHistory) { h.Operations[opDirty].Uncommitted = false },
			[]string{"aborted read 1/2 at 0/2", "premature read 3/0 at 0/4"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := soundTransactions()
			c.change(&h)
			if found := brief(Transactions(h)); !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestCircleSaysWho shows what a finding tells of a circle.
func TestCircleSaysWho(t *testing.T) {
	h := soundTransactions()
	h.Operations[opCommitted].Polls = polled(5, got(1, 2, 2, 0))
	h.Operations[opCopied].Asked = 4
	const want = "write-read circle: record 1/0, offset 0: operation 2 of process 2 read 1/0, offset 0 of log 0, of operation 0 of process 1; " +
		"operation 0 of process 1 read 2/0, offset 2 of log 1, of operation 2 of process 2"
	if found := Transactions(h); len(found) != 1 || found[0].String() != want {
		t.Errorf("found %v", found)
	}
}

// TestTransactionsLarge checks a chain of transactions, each of which reads of the one before, and closes it.
func TestTransactionsLarge(t *testing.T) {
	const n = 30_000
	h := TxnHistory{Final: make([][]Record, 1)}
	for i := range int64(n) {
		o := Operation{Process: 1, Outcome: Acked, Asked: time.Duration(i), Sends: []TxnSend{put(0, 1, i, 2*i)}}
		if i > 0 {
			o.Polls = polled(time.Duration(i), got(0, 2*i-2, 1, i-1))
		}
		h.Operations = append(h.Operations, o)
		h.Final[0] = append(h.Final[0], got(0, 2*i, 1, i).Record)
	}
	if found := Transactions(h); len(found) > 0 {
		t.Errorf("found %v", found[0])
	}
	h.Operations[0].Polls = polled(n, got(0, 2*n-2, 1, n-1))
	h.Operations[1].Polls[0].Moved = []int32{0}
	if found := Transactions(h); len(found) != 1 || found[0].Kind != Circle {
		t.Errorf("found %d, want one circle", len(found))
	}
}

// TestCopies makes each way in which copying goes wrong.
func TestCopies(t *testing.T) {
	input := []Record{read(10, 0), read(11, 1), read(13, 2)}
	copied := func(offset, seq int64) Copy { return Copy{Offset: offset, Source: ID{1, seq}} }
	for name, c := range map[string]struct {
		output []Copy
		want   []string
	}{
		"none":        {[]Copy{copied(0, 0), copied(2, 1), copied(4, 2)}, nil},
		"nothing":     {nil, []string{"unprocessed 1/0 at 3/10", "unprocessed 1/1 at 3/11", "unprocessed 1/2 at 3/13"}},
		"left out":    {[]Copy{copied(0, 0), copied(4, 2)}, []string{"unprocessed 1/1 at 3/11"}},
		"twice":       {[]Copy{copied(0, 0), copied(2, 1), copied(3, 0), copied(4, 2)}, []string{"processed twice 1/0 at 3/3"}},
		"disorder":    {[]Copy{copied(0, 1), copied(2, 0), copied(4, 2)}, []string{"reordered 1/0 at 3/2"}},
		"of no input": {[]Copy{copied(0, 0), copied(2, 1), copied(4, 2), copied(5, 9)}, []string{"foreign 1/9 at 3/5"}},
	} {
		t.Run(name, func(t *testing.T) {
			if found := brief(Copies(3, input, c.output)); !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestSums tears transfers.
func TestSums(t *testing.T) {
	posting := func(offset, transfer, amount int64) Posting { return Posting{offset, ID{1, transfer}, amount} }
	sound := func() Books {
		logs := [][]Posting{
			{posting(0, 0, 5), posting(4, 2, -3)},
			{posting(0, 0, -5), posting(2, 1, 7)},
			{posting(1, 1, -7), posting(3, 2, 3)},
		}
		return Books{
			Cuts:  [][]int64{{0, 0, 0}, {2, 2, 0}, {2, 4, 3}, {6, 4, 5}},
			Views: []View{{Name: "the reader", Logs: logs}, {Name: "the final read", Logs: slices.Clone(logs), Whole: true}},
		}
	}
	for name, c := range map[string]struct {
		change func(*Books)
		want   []string
	}{
		"none":    {func(*Books) {}, nil},
		"nothing": {func(b *Books) { *b = Books{} }, nil},
		"one side is missing at the end": {
			func(b *Books) { b.Views[1].Logs[2] = b.Views[1].Logs[2][:1] },
			[]string{"unbalanced 1/2 at 0/4", "unbalanced 1/2 at 0/4"},
		},
		"one side is missing on the way": {
			func(b *Books) { b.Views[0].Logs[1] = b.Views[0].Logs[1][1:] },
			[]string{"unbalanced 1/0 at 0/0"},
		},
		"one side is there twice": {
			func(b *Books) { b.Views[1].Logs[1] = append(b.Views[1].Logs[1], posting(9, 0, -5)) },
			[]string{"unbalanced 1/0 at 0/0"},
		},
		"a reader that is behind": {
			func(b *Books) { b.Views[0].Logs[2] = nil },
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := sound()
			c.change(&b)
			if found := brief(Sums(b)); !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestOffsets tells offsets too early and too late.
func TestOffsets(t *testing.T) {
	h := soundTransactions()
	h.Operations[opCopied].Confirmed = 35
	h.Operations = append(h.Operations,
		Operation{Process: 7, Group: 1, Outcome: Failed, Polls: polled(30, got(0, 4, 3, 0))},
		Operation{Process: 7, Group: 1, Outcome: Acked, Asked: 60, Confirmed: 65, Polls: polled(50, got(0, 4, 3, 0))},
	)
	for name, c := range map[string]struct {
		told Told
		want []string
	}{
		"before all":                       {Told{Began: 10, Ended: 20}, nil},
		"while the first is decided":       {Told{Offset: 1, Began: 10, Ended: 31}, nil},
		"the first":                        {Told{Offset: 1, Began: 36, Ended: 40, Stable: true}, nil},
		"the second":                       {Told{Offset: 5, Began: 66, Ended: 70, Stable: true}, nil},
		"the first before its commit":      {Told{Offset: 1, Began: 10, Ended: 29}, []string{"early offset 0/0 at 0/1"}},
		"the second before its commit":     {Told{Offset: 5, Began: 40, Ended: 59}, []string{"early offset 0/0 at 0/5"}},
		"what nobody committed":            {Told{Offset: 3, Began: 40, Ended: 99}, []string{"early offset 0/0 at 0/3"}},
		"of another group":                 {Told{Offset: 1, Group: 1, Began: 36, Ended: 40}, []string{"early offset 0/0 at 0/1"}},
		"none after the first":             {Told{Began: 36, Ended: 40, Stable: true}, []string{"old offset 0/0 at 0/0"}},
		"the first after the second":       {Told{Offset: 1, Began: 66, Ended: 70, Stable: true}, []string{"old offset 0/0 at 0/1"}},
		"the first after it, but unstable": {Told{Offset: 1, Began: 66, Ended: 70}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.told.Group++ // the group is the first
			if found := brief(Offsets(h, []Told{c.told})); !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestStable tells last stable offsets that are too high, and that go back.
func TestStable(t *testing.T) {
	for name, c := range map[string]struct {
		told []Told
		want []string
	}{
		"nothing":               {nil, nil},
		"all":                   {[]Told{{Log: 0, Offset: 1, Ended: 11}, {Log: 0, Offset: 4, Ended: 30}, {Log: 0, Offset: 6, Began: 35, Ended: 41}}, nil},
		"an open transaction":   {[]Told{{Log: 0, Offset: 5, Ended: 39}}, []string{"early stable offset 0/0 at 0/5"}},
		"going back":            {[]Told{{Log: 1, Offset: 4, Ended: 50}, {Log: 1, Offset: 1, Began: 51, Ended: 52}}, []string{"old offset 0/0 at 1/1"}},
		"at the same time":      {[]Told{{Log: 1, Offset: 4, Ended: 50}, {Log: 1, Offset: 1, Began: 49, Ended: 52}}, nil},
		"another log goes back": {[]Told{{Log: 0, Offset: 4, Ended: 50}, {Log: 1, Offset: 1, Began: 51, Ended: 52}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if found := brief(Stable(soundTransactions(), c.told)); !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}
