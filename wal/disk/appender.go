package disk

import (
	"fmt"

	"github.com/varve-io/varve/wal/frame"
)

// Appender writes one segment in one store. Append and Close come from one goroutine.
type Appender struct {
	store *Store
	seg   *segment
	fence frame.Fence

	next      frame.EntryID
	file      *walFile
	off       int64 // where the next frame goes
	synced    int64 // everything before is durable
	appended  bool  // since the last frame that says so
	header    []byte
	headerDue bool // the file's header goes out with its first frames
	writes    [][]byte
	err       error // guarded by the store's mutex: the first failure, which is final
}

// Create begins a segment whose first entry will be first. It fails with ErrFenced if the log has a mark above fence,
// and with ErrExists if the segment was begun before, in whatever run: what is there is only ever sealed and read; with ErrClosed after Leave. When
// Create returns, the segment is durably in the store, empty.
func (s *Store) Create(id frame.SegmentID, fence frame.Fence, first frame.EntryID) (*Appender, error) {
	if id.Log == 0 || id.Number == 0 || fence == 0 || first == 0 {
		return nil, fmt.Errorf("create WAL segment %s, fence %d, first entry %d: want all above 0", id, fence, first)
	}
	a := &Appender{
		store: s, fence: fence, next: first, header: Aligned(frame.BlockBytes),
		seg: &segment{id: id, fence: fence, last: first - 1, scanned: true},
	}
	a.seg.live = a
	if err := a.create(); err != nil {
		return nil, fmt.Errorf("create WAL segment %s: %w", id, err)
	}
	return a, nil
}

func (a *Appender) create() error {
	s := a.store
	if err := a.roll(); err != nil {
		return err
	}
	s.mu.Lock()
	err := s.fenced(a.seg.id.Log, a.fence)
	if s.segments[a.seg.id] != nil {
		err = ErrExists
	}
	if err == nil && (s.closing || s.leaving) {
		err = ErrClosed
	}
	if err != nil {
		s.retired = append(s.retired, a.file)
		s.cond.Broadcast()
		s.mu.Unlock()
		return err
	}
	s.segments[a.seg.id] = a.seg
	s.mu.Unlock()
	return a.Append(nil)
}

// fenced says whether fence is too old. The mutex is held.
func (s *Store) fenced(log frame.LogID, fence frame.Fence) error {
	if mark := s.marks[log]; mark > fence {
		return fmt.Errorf("fence %d, the log's mark is %d: %w", fence, mark, ErrFenced)
	}
	return nil
}

// Append writes frames and returns when they are durable, or, with SyncNone, handed to the kernel. Each of bufs holds one
// or more whole frames, as [frame.Finish] leaves them; it begins and ends on a block boundary in memory too. The frames
// continue the segment's entries without a gap. Append stamps them, so their memory belongs to it until it returns.
//
// Any error is final: what is on disk is unknown then, and a later append could leave a hole, so every later call gets the
// same error. ErrFenced says that the segment was sealed. A disk that has no room for another file is waited for, which the log says, until a
// trim or somebody else makes room, the segment is sealed, or the store closed: nothing is lost by it.
func (a *Appender) Append(bufs [][]byte) error {
	if err := a.begin(); err != nil {
		return err
	}
	err := a.write(bufs)
	return a.end(err)
}

func (a *Appender) begin() error {
	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.err == nil {
		a.err = s.fenced(a.seg.id.Log, a.fence)
	}
	if a.err == nil && s.closing {
		a.err = ErrClosed
	}
	if a.err != nil {
		return fmt.Errorf("append to WAL segment %s: %w", a.seg.id, a.err)
	}
	a.seg.appending = true
	return nil
}

func (a *Appender) end(err error) error {
	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	a.seg.appending = false
	s.cond.Broadcast() // a seal waits
	if err != nil {
		a.err = err
		return fmt.Errorf("append to WAL segment %s: %w", a.seg.id, err)
	}
	a.seg.last = a.next - 1
	return nil
}

// write stamps the frames with their places and writes them, by one call for what goes into one file.
func (a *Appender) write(bufs [][]byte) error {
	a.gather()
	pos := a.off
	for _, b := range bufs {
		from := 0 // the part of b before it is gathered
		for at := 0; at < len(b); {
			h, err := frame.Unstamped(b[at:])
			if err != nil {
				return err
			}
			if h.Segment != a.seg.id || h.Fence != a.fence || h.First != a.next {
				return fmt.Errorf("frame of segment %s, fence %d, entry %d: want %s, %d, %d",
					h.Segment, h.Fence, h.First, a.seg.id, a.fence, a.next)
			}
			n := h.Bytes()
			if pos+n > a.store.fileBytes {
				if at > from {
					a.writes = append(a.writes, b[from:at])
				}
				if err := a.nextFile(pos, n); err != nil {
					return err
				}
				pos, from = a.off, at
			}
			frame.Stamp(b[at:], frame.Place{
				File: a.file.header.File, Block: uint32(pos / frame.BlockBytes), Synced: uint32(a.synced / frame.BlockBytes),
			})
			pos, at, a.next = pos+n, at+int(n), h.Next()
		}
		a.writes = append(a.writes, b[from:])
	}
	return a.flush(pos)
}

// nextFile writes what was gathered up to pos, so that all before a file is durable when it begins, and goes on in another
// file, in which a frame of n bytes comes first.
func (a *Appender) nextFile(pos, n int64) error {
	if n > a.store.FrameBytesMax() {
		return fmt.Errorf("%d bytes, want at most %d: %w", n, a.store.FrameBytesMax(), ErrTooLarge)
	}
	if err := a.flush(pos); err != nil {
		return err
	}
	if err := a.roll(); err != nil {
		return err
	}
	a.gather()
	return nil
}

// gather begins a list of writes.
func (a *Appender) gather() {
	a.writes = a.writes[:0]
	if a.headerDue {
		a.writes = append(a.writes, a.header)
	}
}

// flush writes what was gathered up to pos.
func (a *Appender) flush(pos int64) error {
	if len(a.writes) == 0 {
		return nil
	}
	start := a.off
	if a.headerDue {
		start = 0
	}
	if err := a.file.file.WriteBuffers(a.writes, start, a.store.durable); err != nil {
		return err
	}
	a.off, a.synced = pos, pos
	a.appended = true
	if a.headerDue {
		a.headerDue = false
		a.store.mu.Lock()
		a.file.written = true
		a.store.mu.Unlock()
	}
	return nil
}

// roll takes a new file for entries from a.next on. Its header goes out with the first frames.
func (a *Appender) roll() error {
	f, err := a.store.take(a)
	if err != nil {
		return err
	}
	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	f.header.Segment, f.header.Fence, f.header.First = a.seg.id, a.fence, a.next
	if a.file != nil {
		f.header.Ordinal = a.file.header.Ordinal + 1
	}
	frame.PutFileHeader(a.header, &f.header)
	a.seg.files = append(a.seg.files, f)
	a.file, a.off, a.synced, a.headerDue = f, frame.BlockBytes, 0, true
	return nil
}

// Trim is [Store.Trim] of the appender's segment.
func (a *Appender) Trim(through frame.EntryID) error { return a.store.Trim(a.seg.id, through) }

// Drop is [Store.Drop] of the appender's segment.
func (a *Appender) Drop() error { return a.store.Drop(a.seg.id) }

// FrameBytesMax is [Store.FrameBytesMax].
func (a *Appender) FrameBytesMax() int64 { return a.store.FrameBytesMax() }

// Close ends the segment on this store; it can be sealed, read and dropped from now on. Unless the appender failed or was
// fenced, it leaves a frame without entries behind the last ones, whose place says that they were durable: damage to them
// is then told from a torn tail.
func (a *Appender) Close() error {
	var err error
	if a.appended {
		block := Aligned(frame.BlockBytes)
		frame.Finish(block, &frame.Header{Segment: a.seg.id, Fence: a.fence, First: a.next})
		err = a.Append([][]byte{block})
	}
	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.err == nil {
		a.err = ErrClosed
	} else {
		err = nil // reported before
	}
	a.seg.live = nil
	return err
}
