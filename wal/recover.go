package wal

import (
	"errors"
	"fmt"

	"github.com/varve-io/varve/wal/quorum"
)

// Sealer is a store that holds an old segment. *disk.Store is one.
type Sealer interface {
	Seal(id SegmentID, fence Fence) (quorum.Answer, error)
	Read(id SegmentID, from EntryID, visit func(EntryID, []byte) error) error
}

// Sealed is a segment that has come to its end.
type Sealed struct {
	// First and Last bound its entries, as far as they were not trimmed. Last = First-1 when there are none. Every
	// entry that was ever acknowledged and not trimmed is among them.
	First, Last EntryID

	id    SegmentID
	store Sealer
}

// Seal ends an old segment in favour of fence, which the caller has claimed, on the stores of its ensemble, in the
// order of the segment's record; nil stands for a store that is out of reach. Size is the record's too. All are asked at once, and as soon as
// size.SealAnswers() have answered it returns; what the others answer does not matter. It fails if that many do not answer, with all
// errors; asking again is allowed, and may give a longer or a shorter result beyond the last acknowledged entry.
func Seal(id SegmentID, fence Fence, size quorum.Size, stores []Sealer) (*Sealed, error) {
	seal, err := quorum.NewSeal(size)
	if err != nil {
		return nil, fmt.Errorf("seal WAL segment %s: %w", id, err)
	}
	if len(stores) != size.Copies {
		return nil, fmt.Errorf("seal WAL segment %s: %d stores, want %d", id, len(stores), size.Copies)
	}
	type reply struct {
		store  int
		answer quorum.Answer
		err    error
	}
	replies := make(chan reply, len(stores)) // room for those that come after enough have come
	asked := 0
	for i, s := range stores {
		if s == nil {
			seal.Failed(i)
			continue
		}
		asked++
		go func() {
			answer, err := s.Seal(id, fence)
			replies <- reply{store: i, answer: answer, err: err}
		}()
	}
	var errs []error
	for range asked {
		r := <-replies
		if r.err != nil {
			seal.Failed(r.store)
			errs = append(errs, r.err)
			continue
		}
		seal.Answered(r.store, r.answer)
		if state, store, answer := seal.Result(); state == quorum.Sealed {
			return &Sealed{First: answer.First, Last: answer.Last, id: id, store: stores[store]}, nil
		}
	}
	return nil, fmt.Errorf("seal WAL segment %s: %s: %w", id, seal, errors.Join(errs...))
}

// Past finds a segment that was rolled away, and so ends with the entry last, on a store that holds all of it, for a reader that has claimed the log. Stores are
// asked in turn; nil stands for one that is out of reach. At least a quorum of the segment's stores holds it, as long as they have not lost their disks.
func Past(id SegmentID, fence Fence, last EntryID, stores []Sealer) (*Sealed, error) {
	var errs []error
	for _, s := range stores {
		if s == nil {
			continue
		}
		answer, err := s.Seal(id, fence)
		switch {
		case err != nil:
			errs = append(errs, err)
		case answer.Last < last:
			errs = append(errs, fmt.Errorf("a store has entries to %d only", answer.Last))
		default:
			return &Sealed{First: answer.First, Last: last, id: id, store: s}, nil
		}
	}
	return nil, fmt.Errorf("find WAL segment %s to entry %d on %d stores: %w", id, last, len(stores), errors.Join(append(errs, errNowhere)...))
}

// errNowhere: no store in reach holds a whole segment.
var errNowhere = errors.New("no store in reach holds it")

// Read calls visit with the entries from number from (at least First) to Last; the bytes are valid until visit returns.
// It fails if they cannot be read to the end.
func (s *Sealed) Read(from EntryID, visit func(EntryID, []byte) error) error {
	next := from
	err := s.store.Read(s.id, from, func(id EntryID, b []byte) error {
		if id > s.Last {
			return errPastLast
		}
		if id != next {
			return fmt.Errorf("read WAL segment %s: entry %d where %d was due", s.id, id, next)
		}
		next++
		return visit(id, b)
	})
	if err != nil && !errors.Is(err, errPastLast) {
		return err
	}
	if next <= s.Last {
		return fmt.Errorf("read WAL segment %s: entry %d is missing, the last is %d", s.id, next, s.Last)
	}
	return nil
}

var errPastLast = errors.New("past the segment's last entry")
