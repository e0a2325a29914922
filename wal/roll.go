package wal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/varve-io/varve/wal/quorum"
)

// ErrNotRolled: a roll came to nothing, and the log goes on with the ensemble that it has.
var ErrNotRolled = errors.New("WAL log not rolled")

// Roller does a roll's work outside of the log.
type Roller interface {
	// Open creates the segment, whose first entry will be first, on every store of the next ensemble, the writer's own first. It fails if one of them
	// does not take it, and leaves none of them open then. The log keeps all memory meanwhile, so that it must not take long.
	Open(id SegmentID, first EntryID) ([]Copy, error)
	// List makes the segment known: by one transaction, the open segment ends before first, and this one follows it. It returns nil when that is
	// certain; an error ends the log, as one that may have lost its segment.
	List(first EntryID) error
}

// Roll gives the log another ensemble: size is the ensemble's, and number that of its segment, which must be higher than any that the log has used. Appends go on
// meanwhile. Entries that are not durable when it begins are sent to the next ensemble again. While it is not known whether List has taken effect, an entry
// counts as durable when quorums of both ensembles hold it.
//
// It fails with [ErrNotRolled] if the next ensemble cannot be had; another attempt, under another number, is allowed. One roll at a time.
func (l *Log) Roll(number uint32, size quorum.Size, r Roller) error {
	id := SegmentID{Log: l.cfg.Segment.Log, Number: number}
	first, err := l.beginRoll(id, size)
	if err != nil {
		return fmt.Errorf("%w to segment %s: %w", ErrNotRolled, id, err)
	}
	copies, err := r.Open(id, first)
	if err == nil {
		err = l.prepareRoll(id, size, copies)
	} else {
		l.abandonRoll(id)
	}
	if err != nil {
		return fmt.Errorf("%w to segment %s: %w", ErrNotRolled, id, err)
	}
	err = r.List(first)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fail(fmt.Errorf("list segment %s: %w", id, err))
	}
	if l.err != nil { // by now, perhaps, for another reason
		l.rolling = false
		l.deliverable.Signal()
		return l.err
	}
	l.listed(id, first)
	return nil
}

// beginRoll fixes the entry with which the next segment begins.
func (l *Log) beginRoll(id SegmentID, size quorum.Size) (EntryID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.endErr(); err != nil {
		return 0, err
	}
	keep, err := l.quorum.Begin(id.Number, size)
	if err != nil {
		return 0, err
	}
	l.rolling, l.keep = true, keep
	return l.Durable() + 1, nil
}

// endErr says why nothing more can begin; nil if it can.
func (l *Log) endErr() error {
	if l.err == nil && l.closing {
		return ErrClosed
	}
	return l.err
}

// prepareRoll sends the next ensemble what is not durable yet, until it holds everything that is.
func (l *Log) prepareRoll(id SegmentID, size quorum.Size, copies []Copy) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.startCopiers(id, l.keep, copies)
	l.keep = ^quorum.Position(0) // the copiers keep what they have not taken
	for looks := 0; ; {
		err := l.endErr()
		switch {
		case err != nil:
		case len(copies) != size.Copies:
			err = fmt.Errorf("%d stores, want %d", len(copies), size.Copies)
		case slices.ContainsFunc(copies, func(c Copy) bool { return c.Store.FrameBytesMax() < l.frameMax }):
			err = ErrTooLarge
		case l.quorum.NextShort():
			err = errNoQuorum
		}
		if err != nil {
			l.abandon(id)
			return err
		}
		err = l.quorum.List()
		if !errors.Is(err, quorum.ErrBehind) {
			return err
		}
		if looks++; looks > looksMax {
			l.quorum.HoldBack()
		}
		l.writable.Wait()
	}
}

func (l *Log) abandonRoll(id SegmentID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.abandon(id)
}

// looksMax is how often a roll looks, each time that a store has answered, whether the next ensemble has caught up with one that may be faster; then what it lacks is held back.
const looksMax = 32

// abandon gives the next segment up; its stores drop it.
func (l *Log) abandon(id SegmentID) {
	p, _ := l.quorum.Abandon() // before List, so that it is done
	l.acknowledged(p)
	l.rolling = false
	l.endSegment(id, 0)
	l.letGo()
	l.deliverable.Signal()
}

// listed makes the next segment the open one.
func (l *Log) listed(id SegmentID, first EntryID) {
	before := l.segment
	l.segment, l.rolling = id, false
	l.acknowledged(l.quorum.Listed())
	l.endSegment(before, first-1)
	l.storedHere()
	l.letGo()
	l.deliverable.Signal()
	l.recyclable.Signal()
}

// endSegment has a segment's stores closed, and dropped once its last entry is trimmed.
func (l *Log) endSegment(id SegmentID, last EntryID) {
	p := past{last: last}
	for _, c := range l.copiers {
		if c.segment == id {
			if c.ended = true; !c.lost {
				p.copiers = append(p.copiers, c)
			}
		}
	}
	if len(p.copiers) > 0 {
		l.past = append(l.past, p)
	}
	l.writable.Broadcast()
}
