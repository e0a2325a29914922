package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Told is an offset that the broker told: of the next record that a group reads, or the last stable one of a log.
type Told struct {
	Group  int32 // if it is a group's
	Log    int32
	Offset int64
	// Began and Ended are when it was asked for and when the answer was there, by the clock of Operation.Asked.
	Began, Ended time.Duration
	// Stable says that offsets of a group were asked for of which no transaction was open (KIP-447). Without it, the offset from before a
	// transaction that is decided may be told for some time yet.
	Stable bool
}

// Offsets returns what is wrong with offsets that were told. Each must be just behind the last record of its log that some committed
// transaction of the group read, whose commit had been asked for by then; 0 is before all. And it must not be below one that had
// been confirmed when it was asked for. O(n log n).
func Offsets(h TxnHistory, told []Told) []Finding {
	a := newAnalysis(h)
	a.prove()
	commits := make(map[groupLog][]certainOffset)
	asked := make(map[committedAt]time.Duration)
	for i := range a.history.Operations {
		if o := &a.history.Operations[i]; o.Group != 0 && a.committed[i] {
			for log, offset := range ends(o) {
				at := groupLog{o.Group, log}
				if before, ok := asked[committedAt{at, offset}]; !ok || o.Asked < before {
					asked[committedAt{at, offset}] = o.Asked
				}
				if o.Outcome == Acked {
					commits[at] = append(commits[at], certainOffset{offset, o.Confirmed})
				}
			}
		}
	}
	for _, c := range commits {
		slices.SortFunc(c, func(a, b certainOffset) int { return cmp.Compare(a.since, b.since) })
		for i := 1; i < len(c); i++ { // from here on, the highest that was confirmed by then
			c[i].offset = max(c[i].offset, c[i-1].offset)
		}
	}
	var findings []Finding
	report := func(kind Kind, t Told, format string, args ...any) {
		findings = append(findings, Finding{Kind: kind, Log: t.Log, Offset: t.Offset, Detail: fmt.Sprintf(format, args...)})
	}
	for _, t := range told {
		at := groupLog{t.Group, t.Log}
		switch began, ok := asked[committedAt{at, t.Offset}]; {
		case t.Offset == 0:
		case !ok:
			report(EarlyOffset, t, "told at %v, and no committed transaction ends there", t.Ended)
		case t.Ended < began:
			report(EarlyOffset, t, "told at %v, and its commit was asked for at %v", t.Ended, began)
		}
		c := commits[at]
		n, _ := slices.BinarySearchFunc(c, t.Began, func(o certainOffset, began time.Duration) int { return cmp.Compare(o.since, began) })
		if t.Stable && n > 0 && t.Offset < c[n-1].offset {
			report(OldOffset, t, "asked for at %v, and %d had been committed", t.Began, c[n-1].offset)
		}
	}
	return findings
}

// groupLog is a log that a group reads.
type groupLog struct{ group, log int32 }

// committedAt is an offset that a group committed.
type committedAt struct {
	groupLog
	offset int64
}

// certainOffset is an offset and since when it has been certain.
type certainOffset struct {
	offset int64
	since  time.Duration
}

// ends returns the offsets behind what an operation read, by log.
func ends(o *Operation) map[int32]int64 {
	ends := make(map[int32]int64)
	for r := range readsOf(o) {
		ends[r.Log] = max(ends[r.Log], r.Offset+1)
	}
	return ends
}

// Stable returns what is wrong with last stable offsets that were told. Below one there may be no record whose commit, or whose sending
// outside of a transaction, had not been asked for; and none may be below another that had been told when it was asked for. O(n log n).
func Stable(h TxnHistory, told []Told) []Finding {
	a := newAnalysis(h)
	a.offsets()
	a.prove()
	asked := make([][]time.Duration, len(a.logs)) // by log and place of a committed record: the latest up to there
	for log := range a.logs {
		latest := time.Duration(0)
		for _, offset := range a.logs[log].committed {
			s := a.sends[a.logs[log].ids[offset]]
			latest = max(latest, a.operations[s.operation].Asked)
			asked[log] = append(asked[log], latest)
		}
	}
	a.findings = nil // which are for Transactions to return
	highest := make([][]certainOffset, len(a.logs))
	ordered := slices.Clone(told)
	slices.SortFunc(ordered, func(a, b Told) int { return cmp.Compare(a.Ended, b.Ended) })
	for _, t := range ordered {
		l := &a.logs[t.Log]
		below, _ := slices.BinarySearch(l.committed, t.Offset)
		if below > 0 && asked[t.Log][below-1] > t.Ended {
			a.report(EarlyStable, t.Log, ID{}, t.Offset, "told at %v, and below it is a record whose commit was asked for at %v", t.Ended, asked[t.Log][below-1])
		}
		h := highest[t.Log]
		n, _ := slices.BinarySearchFunc(h, t.Began, func(o certainOffset, began time.Duration) int { return cmp.Compare(o.since, began) })
		if n > 0 && t.Offset < h[n-1].offset {
			a.report(OldOffset, t.Log, ID{}, t.Offset, "asked for at %v, and %d had been told", t.Began, h[n-1].offset)
		}
		top := t.Offset
		if len(h) > 0 {
			top = max(top, h[len(h)-1].offset)
		}
		highest[t.Log] = append(h, certainOffset{top, t.Ended})
	}
	return a.findings
}
