package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Told is an offset that the broker gave for committed by a group: of the next record to read.
type Told struct {
	Group  int32
	Log    int32
	Offset int64
	// Began and Ended are when it was asked for and when the answer was there, by the clock of Operation.Asked.
	Began, Ended time.Duration
	// Stable says that offsets were asked for of which no transaction was open (KIP-447). Without it, the offset from before a
	// transaction that is decided may be told for some time yet.
	Stable bool
}

// Offsets returns what is wrong with offsets that were told. Each must be just behind the last record of its log that some committed
// transaction of the group read, whose commit had been asked for by then; 0 is before all. And it must not be below one that had
// been confirmed when it was asked for. O(n log n).
func Offsets(h TxnHistory, told []Told) []Finding {
	a := newAnalysis(h)
	a.prove()
	commits := make(map[groupLog][]committedOffset)
	asked := make(map[committedAt]time.Duration)
	for i := range a.history.Operations {
		if o := &a.history.Operations[i]; o.Group != 0 && a.committed[i] {
			for log, offset := range ends(o) {
				at := groupLog{o.Group, log}
				if before, ok := asked[committedAt{at, offset}]; !ok || o.Asked < before {
					asked[committedAt{at, offset}] = o.Asked
				}
				if o.Outcome == Acked {
					commits[at] = append(commits[at], committedOffset{offset, o.Confirmed})
				}
			}
		}
	}
	for _, c := range commits {
		slices.SortFunc(c, func(a, b committedOffset) int { return cmp.Compare(a.confirmed, b.confirmed) })
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
		n, _ := slices.BinarySearchFunc(c, t.Began, func(o committedOffset, began time.Duration) int { return cmp.Compare(o.confirmed, began) })
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

// committedOffset is when it was confirmed.
type committedOffset struct {
	offset    int64
	confirmed time.Duration
}

// ends returns the offsets behind what an operation read, by log.
func ends(o *Operation) map[int32]int64 {
	ends := make(map[int32]int64)
	for r := range readsOf(o) {
		ends[r.Log] = max(ends[r.Log], r.Offset+1)
	}
	return ends
}
