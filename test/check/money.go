package check

import (
	"cmp"
	"fmt"
	"slices"
)

// Posting is one side of a transfer: what it adds to an account, in the log that the account is in.
type Posting struct {
	Offset   int64
	Transfer ID
	Amount   int64
}

// View is what one reader at read_committed read of all logs from their starts on, by log, in the order of reading.
type View struct {
	Name string
	Logs [][]Posting
	// Whole says that the reader came to the end of every log after the load.
	Whole bool
}

// Books are the history of accounts that are spread over logs. Each transfer is a transaction whose postings add up to nothing.
//
// The sum over what a reader has read is nothing at the end. It need not be before: a reader at read_committed gets
// to the last stable offset of each log by itself, and may have one side of a transfer while the other is still behind an open transaction, or
// unread. Positions in all logs at one moment are a cut that no transfer crosses only if none was under way then.
type Books struct {
	// Cuts are the end offsets of all logs at moments when no transfer was under way: each that had begun was known to be
	// committed or aborted, and nothing that a client had sent for one could arrive any more.
	Cuts  [][]int64
	Views []View
}

// Sums returns a finding for each view and cut whose sum is not nothing, as soon as the view has come to the cut. O(n log n).
func Sums(b Books) []Finding {
	var findings []Finding
	for _, view := range b.Views {
		sums := make([][]int64, len(view.Logs)) // sums of the first postings of each log
		for log, postings := range view.Logs {
			sums[log] = make([]int64, len(postings)+1)
			for i, p := range postings {
				sums[log][i+1] = sums[log][i] + p.Amount
			}
		}
		for i, cut := range b.Cuts {
			if view.covers(cut) {
				findings = append(findings, view.sum(sums, view.until(cut), fmt.Sprintf("at cut %d", i))...)
			}
		}
		if view.Whole {
			ends := make([]int, len(view.Logs))
			for log, postings := range view.Logs {
				ends[log] = len(postings)
			}
			findings = append(findings, view.sum(sums, ends, "at the end")...)
		}
	}
	return findings
}

// covers tells whether the reader has come to the cut in every log.
func (v *View) covers(cut []int64) bool {
	for log, end := range cut {
		// What is just below the end may be a marker, which readers do not see.
		last := int64(-1)
		if n := len(v.Logs[log]); n > 0 {
			last = v.Logs[log][n-1].Offset
		}
		if last < end-1 && !v.Whole {
			return false
		}
	}
	return true
}

// until returns how many postings of each log are below the cut.
func (v *View) until(cut []int64) []int {
	counts := make([]int, len(cut))
	for log, end := range cut {
		counts[log], _ = slices.BinarySearchFunc(v.Logs[log], end, func(p Posting, end int64) int { return cmp.Compare(p.Offset, end) })
	}
	return counts
}

// sum reports the sum over the first postings of each log, as many as counts says, if it is not nothing.
func (v *View) sum(sums [][]int64, counts []int, where string) []Finding {
	total := int64(0)
	for log, n := range counts {
		total += sums[log][n]
	}
	if total == 0 {
		return nil
	}
	f := Finding{Kind: Unbalanced, Log: -1, Offset: -1, Detail: fmt.Sprintf("%s has %d too much %s", v.Name, total, where)}
	left := make(map[ID]int64)
	for log, n := range counts {
		for _, p := range v.Logs[log][:n] {
			if left[p.Transfer] += p.Amount; left[p.Transfer] == 0 {
				delete(left, p.Transfer)
			}
		}
	}
	for log, n := range counts { // the first that is torn
		for _, p := range v.Logs[log][:n] {
			if left[p.Transfer] != 0 {
				f.Log, f.ID, f.Offset = int32(log), p.Transfer, p.Offset
				return []Finding{f}
			}
		}
	}
	return []Finding{f}
}
