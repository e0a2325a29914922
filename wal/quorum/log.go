package quorum

import (
	"errors"
	"fmt"
	"strings"
)

// Log decides what is durable in a log whose ensemble changes while it is written. It has one open ensemble, and during a roll a next one:
//
//	Begin    the next ensemble opens behind what is durable; it is sent all that is not, and all that comes
//	HoldBack nothing becomes durable any more that it does not hold, if it cannot catch up otherwise
//	List     once it holds all that is durable, it may be listed in etcd, in place of the open one: until the outcome
//	         is known, an append is durable when quorums of both hold it
//	Listed   it is the open ensemble now
//	Abandon  before List, the next ensemble may be given up, and another begun
//
// Whichever ensemble etcd lists, and however late a transaction applies, a seal of that ensemble finds everything that was acknowledged: what lies
// before its first append was durable on the one before.
//
// Ensembles are named by their WAL segment's number. Positions count the appends of the whole log, through all segments.
type Log struct {
	open, next ensemble
	rolling    bool // next is there
	heldBack   bool // nothing becomes durable that next does not hold
	listing    bool // the transaction that lists it may have been sent
	highest    uint32
	durable    Position
}

// ensemble is the stores of one segment.
type ensemble struct {
	segment uint32
	from    Position // the segment's first append follows it
	tracker tracker
	lost    [copiesMax]bool
}

// NewLog starts a log with its first ensemble. No store holds anything.
func NewLog(segment uint32, size Size) (*Log, error) {
	l := &Log{highest: segment}
	err := l.open.start(segment, size, 0)
	return l, err
}

func (e *ensemble) start(segment uint32, size Size, from Position) error {
	t, err := newTracker(size, from)
	if err != nil {
		return err
	}
	*e = ensemble{segment: segment, from: from, tracker: t}
	return nil
}

// Errors of a roll.
var (
	// ErrRolling: another roll is under way.
	ErrRolling = errors.New("another roll is under way")
	// ErrBehind: the next ensemble does not hold yet what is durable.
	ErrBehind = errors.New("the next ensemble does not hold what is durable")
)

// Ack takes the word of a store of a segment's ensemble that it durably holds all appends up to through, and gives the log's durable position, which
// never goes back. Words of stores that dropped out count, too: what they hold, they hold. Those of other segments change nothing.
func (l *Log) Ack(segment uint32, store int, through Position) Position {
	if e := l.ensemble(segment); e != nil {
		e.tracker.ack(store, through)
		l.advance()
	}
	return l.durable
}

// advance moves the durable position to what the rules allow.
func (l *Log) advance() {
	d := l.open.tracker.durable
	if l.listing || l.heldBack {
		d = min(d, l.next.tracker.durable)
	}
	l.durable = max(l.durable, d)
}

func (l *Log) ensemble(segment uint32) *ensemble {
	switch {
	case segment == l.open.segment:
		return &l.open
	case l.rolling && segment == l.next.segment:
		return &l.next
	}
	return nil
}

// Quorum gives the open ensemble's ack quorum.
func (l *Log) Quorum() int { return l.open.tracker.size.Quorum }

// Durable gives the log's durable position.
func (l *Log) Durable() Position { return l.durable }

// Lost notes that a store of a segment's ensemble takes no further appends.
func (l *Log) Lost(segment uint32, store int) {
	if e := l.ensemble(segment); e != nil && store >= 0 && store < e.tracker.size.Copies {
		e.lost[store] = true
	}
}

// Short reports whether the open ensemble has lost so many stores that nothing more can become durable on it.
func (l *Log) Short() bool { return l.open.live() < l.open.tracker.size.Quorum }

// NextShort is Short of the next ensemble, which can then never be listed.
func (l *Log) NextShort() bool { return l.rolling && l.next.live() < l.next.tracker.size.Quorum }

func (e *ensemble) live() int {
	n := 0
	for _, lost := range e.lost[:e.tracker.size.Copies] {
		if !lost {
			n++
		}
	}
	return n
}

// Begin opens a next ensemble, whose stores hold nothing yet. Its first append is the one after the position that comes back. It fails with
// [ErrRolling] if there is one.
func (l *Log) Begin(segment uint32, size Size) (Position, error) {
	if l.rolling {
		return 0, ErrRolling
	}
	if segment <= l.highest { // a late word of a store about another attempt must not count for this one
		return 0, fmt.Errorf("roll to segment %d: want a number above %d, which was used", segment, l.highest)
	}
	if err := l.next.start(segment, size, l.durable); err != nil {
		return 0, err
	}
	l.rolling, l.highest = true, segment
	return l.durable, nil
}

// List is asked before the transaction is sent that ends the open segment before the next one's first entry and lists the next one. From then on, both
// ensembles decide. It fails with [ErrBehind] while entries were acknowledged that the next ensemble does not hold on a quorum: the seal of either would
// miss them once it is listed.
func (l *Log) List() error {
	switch {
	case !l.rolling:
		return fmt.Errorf("list the next ensemble: there is none")
	case l.next.tracker.durable < l.durable:
		return ErrBehind
	}
	l.listing = true
	return nil
}

// HoldBack lets nothing become durable that the next ensemble does not hold, so that it catches up with one that is faster.
func (l *Log) HoldBack() { l.heldBack = l.rolling }

// Listed says that the transaction applied: the next ensemble is the open one, and decides alone.
func (l *Log) Listed() Position {
	if l.listing {
		l.open = l.next
		l.rolling, l.listing, l.heldBack = false, false, false
		l.advance()
	}
	return l.durable
}

// Abandon gives the next ensemble up, and gives the durable position. It is false, and changes nothing, if the transaction that lists it may have been sent.
func (l *Log) Abandon() (Position, bool) {
	if l.listing {
		return l.durable, false
	}
	l.rolling, l.heldBack = false, false
	l.advance()
	return l.durable, true
}

// String shows the ensembles: "durable 7: segment 1: durable 7 (2 of 3): 9 7 4; segment 2, listing: durable 7 (2 of 2): 7 7".
func (l *Log) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "durable %d: segment %d: ", l.durable, l.open.segment)
	l.open.write(&b)
	if l.rolling {
		fmt.Fprintf(&b, "; segment %d", l.next.segment)
		if l.listing {
			b.WriteString(", listing")
		}
		b.WriteString(": ")
		l.next.write(&b)
	}
	return b.String()
}

func (e *ensemble) write(b *strings.Builder) {
	b.WriteString(e.tracker.String())
	for i, lost := range e.lost[:e.tracker.size.Copies] {
		if lost {
			fmt.Fprintf(b, ", store %d lost", i)
		}
	}
}
