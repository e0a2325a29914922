package disk

import (
	"errors"
	"fmt"

	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// Seal ends a segment on this store in favour of fence, and says what the store holds of it. When it returns,
//   - the store durably refuses appends to the segment's log from any fence below, for ever, even when the log is dropped;
//   - an append that was under way has ended: it is in the answer, or will never be acknowledged;
//   - everything in the answer is durable.
//
// It fails with ErrFenced if the log's mark is above fence, or if the segment's writer had the same fence; with
// ErrUnknown, after recording the mark, if the store holds nothing of the segment; and with a [*frame.CorruptError] if
// entries that it held cannot be read: such a store counts as absent until [Store.AcceptLoss]. Asking again is allowed.
func (s *Store) Seal(id frame.SegmentID, fence frame.Fence) (quorum.Answer, error) {
	seg, scanned, err := s.mark(id, fence)
	if err != nil {
		return quorum.Answer{}, fmt.Errorf("seal WAL segment %s: %w", id, err)
	}
	if !scanned {
		if err := s.syncAll(seg.files); err != nil {
			return quorum.Answer{}, s.unread(id, err)
		}
		end, err := s.scan(seg, nil)
		if err != nil {
			return quorum.Answer{}, s.unread(id, err)
		}
		if end.Dropped > 0 {
			s.log.Info("WAL tail torn", "segment", id, "last", end.Next-1, "framesDropped", end.Dropped)
		}
		s.mu.Lock()
		seg.last, seg.scanned = end.Next-1, true
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first := seg.files[0].header.First
	s.unreadLocked(seg)
	return quorum.Answer{First: first, Last: seg.last}, nil
}

// mark raises the log's fence, in memory first, so that no append begins any more, then waits for the one under way and
// for the disk. The segment comes back with a reader counted, and whether its end is known.
func (s *Store) mark(id frame.SegmentID, fence frame.Fence) (seg *segment, scanned bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, false, ErrClosed
	}
	if err := s.fenced(id.Log, fence); err != nil {
		return nil, false, err
	}
	seg = s.segments[id]
	if seg != nil && seg.fence >= fence {
		return nil, false, fmt.Errorf("fence %d, the writer's was %d: %w", fence, seg.fence, ErrFenced)
	}
	s.marks[id.Log] = fence
	for seg != nil && seg.appending {
		s.cond.Wait()
	}
	if err := s.saveState(); err != nil {
		return nil, false, err
	}
	if seg == nil || s.segments[id] != seg {
		return nil, false, ErrUnknown
	}
	seg.readers++
	return seg, seg.scanned, nil
}

// Read calls visit with the entries of a segment from number from on, in order and without a gap; the bytes are valid
// until visit returns. The segment must have no writer, or a fenced one (ErrLive). Memory is bounded by the longest frame.
// Damage ends the reading with a [*frame.CorruptError] before the first entry that cannot be read. Files that are trimmed
// meanwhile stay until Read returns.
func (s *Store) Read(id frame.SegmentID, from frame.EntryID, visit func(frame.EntryID, []byte) error) error {
	s.mu.Lock()
	seg := s.segments[id]
	err := error(nil)
	switch {
	case s.closing:
		err = ErrClosed
	case seg == nil:
		err = ErrUnknown
	case seg.appending || seg.live != nil && s.marks[id.Log] <= seg.fence:
		err = ErrLive
	case from < seg.files[0].header.First:
		err = fmt.Errorf("entry %d was trimmed, the first is %d: %w", from, seg.files[0].header.First, ErrUnknown)
	default:
		seg.readers++
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read WAL segment %s: %w", id, err)
	}
	_, err = s.scan(seg, func(h *frame.Header, body []byte) error {
		if h.Next() <= from {
			return nil
		}
		return frame.Entries(h, body, func(entry frame.EntryID, b []byte) error {
			if entry < from {
				return nil
			}
			return visit(entry, b)
		})
	})
	if err = s.unread(id, err); err != nil {
		return err
	}
	return nil
}

// unread ends the use of a segment by a reader.
func (s *Store) unread(id frame.SegmentID, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seg := s.segments[id]; seg != nil {
		s.unreadLocked(seg)
	}
	if err != nil {
		return fmt.Errorf("read WAL segment %s: %w", id, err)
	}
	return nil
}

func (s *Store) unreadLocked(seg *segment) {
	seg.readers--
	s.retireTrimmed(seg)
}

// scan reads a segment whose files a reader's count protects.
func (s *Store) scan(seg *segment, visit func(*frame.Header, []byte) error) (frame.End, error) {
	if visit == nil {
		visit = func(*frame.Header, []byte) error { return nil }
	}
	s.mu.Lock()
	files, before := seg.files, s.lossLocked(seg.id)
	if seg.scanned {
		// Entries behind what was answered, or acknowledged, are never served: the tail of a failed append may
		// be readable now and gone tomorrow.
		before = seg.last + 1
	}
	s.mu.Unlock()

	sources := make([]frame.Source, 0, len(files))
	var errs []error
	for _, w := range files {
		if !w.written {
			break // its writer failed before the file's first frames
		}
		f, err := s.fs.Open(w.name, false, false)
		if err != nil {
			errs = append(errs, err)
			break
		}
		defer func() { _ = f.Close() }() // only read from
		size, err := f.Bytes()
		errs = append(errs, err)
		sources = append(sources, frame.Source{Name: w.name, Header: w.header, Bytes: size, Reader: f})
	}
	if err := errors.Join(errs...); err != nil {
		return frame.End{}, err
	}
	return frame.Scan(sources, before, visit)
}

// AcceptLoss is an operator's word that a segment ends before entry before, because what follows is damaged: from now on
// Seal and Read take it so. It is durable when AcceptLoss returns. A [*frame.CorruptError] names the entry as First.
func (s *Store) AcceptLoss(id frame.SegmentID, before frame.EntryID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[id]
	if seg == nil {
		return fmt.Errorf("accept a loss in WAL segment %s: %w", id, ErrUnknown)
	}
	if seg.live != nil {
		return fmt.Errorf("accept a loss in WAL segment %s: %w", id, ErrLive)
	}
	s.state.Losses = append(s.state.Losses, loss{Segment: id, Before: before})
	seg.scanned = false
	if err := s.saveState(); err != nil {
		return fmt.Errorf("accept a loss in WAL segment %s: %w", id, err)
	}
	return nil
}

// lossLocked gives the entry before which a segment was cut; 0 if it was not.
func (s *Store) lossLocked(id frame.SegmentID) frame.EntryID {
	before := frame.EntryID(0)
	for _, l := range s.state.Losses {
		if l.Segment == id && (before == 0 || l.Before < before) {
			before = l.Before
		}
	}
	return before
}
