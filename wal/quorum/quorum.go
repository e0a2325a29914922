// Package quorum decides what the stores of a WAL segment's ensemble prove together: which entries are durable while
// the log is written ([Log]), and what the segment holds once it is sealed ([Seal]).
//
// With c copies and an ack quorum of q, an entry is durable when q stores hold it. A seal that is answered by c-q+1
// stores has met at least one store of every such quorum, so the longest of these answers contains every entry that was ever
// acknowledged, and no store is left that could make another one durable:
//
//	copies 3, quorum 2:  entry 7 on {A B},  sealed {B C}  ->  B's answer has it
//
// The package is pure: answers in, decisions out, no goroutine, clock or I/O. Its machines are not safe for concurrent
// use.
package quorum

import (
	"fmt"
	"strings"

	"github.com/varve-io/varve/wal/frame"
)

// copiesMax bounds an ensemble, so that the machines need no allocation.
const copiesMax = 9

// Size is how a segment is replicated. Both numbers are recorded with the segment, since a configuration may change between
// its opening and its seal.
type Size struct {
	Copies int // stores in the ensemble, 1 to 9
	Quorum int // how many of them must hold an entry before it is acknowledged, 1 to Copies
}

// Check says whether the numbers make sense.
func (s Size) Check() error {
	if s.Copies < 1 || s.Copies > copiesMax || s.Quorum < 1 || s.Quorum > s.Copies {
		return fmt.Errorf("quorum %d of %d copies: want 1 <= quorum <= copies <= %d", s.Quorum, s.Copies, copiesMax)
	}
	return nil
}

// SealAnswers is how many stores must answer a seal.
func (s Size) SealAnswers() int { return s.Copies - s.Quorum + 1 }

// Position counts the appends (frames) of a log, from 1. Acknowledgements count appends rather than entries, because an
// append without entries, which only proves that nobody has sealed the segment, must be acknowledged too.
type Position uint64

// tracker follows the acknowledgements of a segment.
type tracker struct {
	size    Size
	stored  [copiesMax]Position // by store: everything up to here is durable there
	durable Position
}

// newTracker starts a segment of which no store holds anything. Everything up to from was durable before.
func newTracker(size Size, from Position) (tracker, error) {
	if err := size.Check(); err != nil {
		return tracker{}, err
	}
	t := tracker{size: size, durable: from}
	for i := range size.Copies {
		t.stored[i] = from
	}
	return t, nil
}

// ack takes store's word that it durably holds all appends up to through, and gives the segment's durable position:
// the quorum-th highest of the stores' positions. Acknowledgements are cumulative; one that is older than the last, or of a
// store that is not in the ensemble, changes nothing. The position never goes back.
func (t *tracker) ack(store int, through Position) Position {
	if store < 0 || store >= t.size.Copies || through <= t.stored[store] {
		return t.durable
	}
	t.stored[store] = through
	// The quorum-th highest, by insertion into a short sorted list.
	var top [copiesMax]Position
	for i, v := range t.stored[:t.size.Copies] {
		j := i
		for ; j > 0 && top[j-1] < v; j-- {
			top[j] = top[j-1]
		}
		top[j] = v
	}
	t.durable = max(t.durable, top[t.size.Quorum-1])
	return t.durable
}

// String shows every store's position: "durable 7 (2 of 3): 9 7 4".
func (t *tracker) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "durable %d (%d of %d):", t.durable, t.size.Quorum, t.size.Copies)
	for _, v := range t.stored[:t.size.Copies] {
		fmt.Fprintf(&b, " %d", v)
	}
	return b.String()
}

// Answer is what a store says that has been sealed: it durably refuses older fences from now on, and what it says
// includes all that it ever acknowledged.
type Answer struct {
	// First and Last bound the entries that the store holds, without a gap. A store that never got one answers with
	// Last = First-1.
	First, Last frame.EntryID
}

// Seal collects the answers to the seal of one segment.
type Seal struct {
	size     Size
	answered [copiesMax]bool
	failed   [copiesMax]bool
	answers  [copiesMax]Answer
}

// State is how far a seal has come.
type State int

// The states of a seal.
const (
	// Waiting: fewer stores than needed have answered, and enough others still may.
	Waiting State = iota
	// Sealed: enough have answered. Further answers are welcome, and may lengthen the result by entries that were
	// never acknowledged.
	Sealed
	// Impossible: too many stores failed to answer. Ask them again, until an operator accepts the loss.
	Impossible
)

// String names the state.
func (s State) String() string {
	return [...]string{"waiting", "sealed", "impossible"}[s]
}

// NewSeal begins the seal of a segment, with the numbers of the segment's own record.
func NewSeal(size Size) (*Seal, error) {
	if err := size.Check(); err != nil {
		return nil, err
	}
	return &Seal{size: size}, nil
}

// Answered takes a store's answer. Asking a store again is allowed: its newer answer counts.
func (s *Seal) Answered(store int, a Answer) {
	if store < 0 || store >= s.size.Copies {
		return
	}
	s.answered[store], s.failed[store], s.answers[store] = true, false, a
}

// Failed notes that a store could not be sealed: away, damaged, or in doubt. It counts as absent until it answers.
func (s *Seal) Failed(store int) {
	if store < 0 || store >= s.size.Copies || s.answered[store] {
		return
	}
	s.failed[store] = true
}

// Result gives the state and, when Sealed, the store with the longest answer and that answer. Between equal ones the store
// listed first is chosen, so that the same answers give the same result.
func (s *Seal) Result() (State, int, Answer) {
	answered, failed, longest := 0, 0, -1
	for i := range s.size.Copies {
		switch {
		case s.failed[i]:
			failed++
		case s.answered[i]:
			answered++
			if longest < 0 || s.answers[i].Last > s.answers[longest].Last {
				longest = i
			}
		}
	}
	switch {
	case answered >= s.size.SealAnswers():
		return Sealed, longest, s.answers[longest]
	case s.size.Copies-failed < s.size.SealAnswers():
		return Impossible, -1, Answer{}
	}
	return Waiting, -1, Answer{}
}

// String shows the state and every store's answer: "sealed (2 of 3 needed): 1-7 absent 1-9".
func (s *Seal) String() string {
	state, _, _ := s.Result()
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%d of %d needed):", state, s.size.SealAnswers(), s.size.Copies)
	for i := range s.size.Copies {
		switch {
		case s.failed[i]:
			b.WriteString(" absent")
		case s.answered[i]:
			fmt.Fprintf(&b, " %d-%d", s.answers[i].First, s.answers[i].Last)
		default:
			b.WriteString(" ?")
		}
	}
	return b.String()
}
