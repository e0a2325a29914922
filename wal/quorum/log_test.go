package quorum

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// breakage is a rule of a roll that a run leaves out.
type breakage int

const (
	sound         breakage = iota
	listsBehind            // the next ensemble is listed before it holds what is durable
	openAlone              // while the outcome is unknown, the open ensemble decides alone
	nextAlone              // while the outcome is unknown, the next ensemble decides alone
	beginsTooLate          // the next ensemble is not sent what is not durable yet
)

// listed is what etcd may say, and what the stores of a segment hold.
type listed struct {
	segment uint32
	size    Size
	from    Position
	stored  [copiesMax]Position
	last    Position // of a segment that was rolled away; 0: it is open
}

// finds reports whether any seal of the segment, if it is the open one, finds everything up to durable. What lies before it must be durable on the
// segment before.
func (s *listed) finds(durable Position) bool {
	if durable <= s.from {
		return true
	}
	// The worst seal asks the stores that hold least.
	holds := 0
	for _, p := range s.stored[:s.size.Copies] {
		if p >= durable {
			holds++
		}
	}
	return holds >= s.size.Quorum
}

// rolls drives a log through acknowledgements, rolls whose outcomes are unknown for a while, and abandoned ones; after each step, whatever etcd may list
// must hold what was acknowledged. It says what is lost.
func rolls(rng *rand.Rand, broken breakage) error {
	size := func() Size {
		c := 1 + rng.IntN(3)
		return Size{Copies: c, Quorum: 1 + rng.IntN(c)}
	}
	first := size()
	l, err := NewLog(1, first)
	if err != nil {
		return err
	}
	open, next := &listed{segment: 1, size: first}, (*listed)(nil)
	var appended Position
	listing, number := false, uint32(1)
	var before []listed // segments that were rolled away
	for range 200 {
		switch n := rng.IntN(20); {
		case n < 4:
			appended++
		case n < 14:
			s := open
			if next != nil && rng.IntN(2) == 0 {
				s = next
			}
			i := rng.IntN(s.size.Copies)
			through := min(appended, s.stored[i]+Position(rng.IntN(3)))
			s.stored[i] = through
			l.Ack(s.segment, i, through)
		case n < 16 && next == nil:
			number++
			next = &listed{segment: number, size: size()}
			if next.from, err = l.Begin(next.segment, next.size); err != nil {
				return err
			}
			if broken == beginsTooLate {
				next.from = appended
			}
			for i := range next.stored {
				next.stored[i] = next.from
			}
			if broken == beginsTooLate {
				for i := range next.size.Copies {
					l.Ack(next.segment, i, appended)
				}
			}
		case n < 18 && next != nil && !listing:
			if rng.IntN(6) == 0 {
				if _, ok := l.Abandon(); !ok {
					return errors.New("abandon before List: false")
				}
				next = nil
				continue
			}
			if rng.IntN(3) == 0 {
				l.HoldBack()
				continue
			}
			err := l.List()
			if errors.Is(err, ErrBehind) && broken == listsBehind {
				l.listing, err = true, nil
			}
			if listing = err == nil; listing {
				open.last = next.from
			}
			if broken == openAlone || broken == nextAlone {
				l.listing, l.heldBack = false, false
			}
		case listing && rng.IntN(3) == 0:
			if _, ok := l.Abandon(); ok && broken == sound {
				return errors.New("abandon after List: true")
			}
			l.rolling, l.listing = true, true
			before = append(before, *open)
			l.Listed()
			open, next, listing = next, nil, false
		}
		if listing && broken == nextAlone {
			l.durable = max(l.durable, l.next.tracker.durable)
		}
		// Whatever etcd says, or comes to say, an agent that seals it now must find everything.
		d := l.Durable()
		if !listing && !open.finds(d) {
			return fmt.Errorf("segment %d misses append %d: %s", open.segment, d, l)
		}
		if listing && (!open.finds(d) || !next.finds(d)) {
			return fmt.Errorf("one of segments %d and %d misses append %d: %s", open.segment, next.segment, d, l)
		}
		for i := range before {
			if s := &before[i]; !s.finds(s.last) {
				return fmt.Errorf("segment %d, rolled away, misses append %d: %s", s.segment, s.last, l)
			}
		}
	}
	return nil
}

// TestRolls also breaks each rule on purpose, and must find that.
func TestRolls(t *testing.T) {
	for seed := range uint64(5000) {
		if err := rolls(rand.New(rand.NewPCG(seed, 1)), sound); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	for broken := listsBehind; broken <= beginsTooLate; broken++ {
		found := false
		for seed := range uint64(5000) {
			if found = rolls(rand.New(rand.NewPCG(seed, 1)), broken) != nil; found {
				break
			}
		}
		if !found {
			t.Errorf("breakage %d is not found", broken)
		}
	}
}

// TestRollStepByStep is a roll from three stores, one of which is lost, to two others.
func TestRollStepByStep(t *testing.T) {
	l, err := NewLog(1, Size{Copies: 3, Quorum: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := func(durable Position, short, nextShort bool) {
		t.Helper()
		if l.Durable() != durable || l.Short() != short || l.NextShort() != nextShort {
			t.Fatalf("%s, short %v and %v; want durable %d, short %v and %v", l, l.Short(), l.NextShort(), durable, short, nextShort)
		}
	}
	l.Ack(1, 0, 5)
	l.Ack(1, 1, 3)
	want(3, false, false)
	l.Lost(1, 2)
	want(3, false, false)
	l.Lost(1, 1)
	want(3, true, false)

	from, err := l.Begin(2, Size{Copies: 2, Quorum: 2})
	if err != nil || from != 3 {
		t.Fatalf("begins after %d, %v", from, err)
	}
	if _, err := l.Begin(3, Size{Copies: 2, Quorum: 2}); !errors.Is(err, ErrRolling) {
		t.Errorf("a second roll: %v", err)
	}
	l.Ack(1, 1, 4) // the store that was lost had stored it before
	want(4, true, false)
	if err := l.List(); !errors.Is(err, ErrBehind) {
		t.Errorf("list what is behind: %v", err)
	}
	l.Ack(2, 0, 5)
	l.Ack(2, 1, 4)
	if err := l.List(); err != nil {
		t.Fatal(err)
	}
	l.Ack(2, 1, 5)
	want(4, true, false) // the open ensemble has 5 on one store only
	l.Lost(2, 1)
	want(4, true, true)
	if _, ok := l.Abandon(); ok {
		t.Error("abandoned though it may be listed")
	}
	if l.Listed() != 5 {
		t.Errorf("listed: %s", l)
	}
	want(5, true, false)
	l.Ack(1, 0, 9)
	l.Ack(1, 1, 9) // of a segment that is over
	want(5, true, false)
}

// TestHoldBack: what the next ensemble lacks is not durable, until it is given up.
func TestHoldBack(t *testing.T) {
	l, err := NewLog(1, Size{Copies: 1, Quorum: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Begin(2, Size{Copies: 1, Quorum: 1}); err != nil {
		t.Fatal(err)
	}
	l.Ack(1, 0, 3)
	l.HoldBack()
	if got := l.Ack(1, 0, 7); got != 3 {
		t.Errorf("held back, and durable to %d", got)
	}
	if got := l.Ack(2, 0, 5); got != 5 || l.List() != nil {
		t.Errorf("caught up: %s", l)
	}
	if l, err = NewLog(1, Size{Copies: 1, Quorum: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Begin(2, Size{Copies: 1, Quorum: 1}); err != nil {
		t.Fatal(err)
	}
	l.HoldBack()
	l.Ack(1, 0, 7)
	if got, ok := l.Abandon(); !ok || got != 7 {
		t.Errorf("abandoned: durable to %d", got)
	}
}

func TestRollRefused(t *testing.T) {
	l, err := NewLog(4, Size{Copies: 1, Quorum: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.List(); err == nil {
		t.Error("listed without a next ensemble")
	}
	for segment, size := range map[uint32]Size{4: {1, 1}, 3: {1, 1}, 5: {1, 2}} {
		if _, err := l.Begin(segment, size); err == nil {
			t.Errorf("began segment %d with %+v", segment, size)
		}
	}
	if _, err := l.Begin(9, Size{Copies: 1, Quorum: 1}); err != nil {
		t.Fatal(err)
	}
	l.Abandon()
	if _, err := l.Begin(9, Size{Copies: 1, Quorum: 1}); err == nil {
		t.Error("began segment 9 again, of which a store may yet speak")
	}
	if _, err := NewLog(1, Size{Copies: 2, Quorum: 3}); err == nil {
		t.Error("a quorum of 3 of 2")
	}
}
