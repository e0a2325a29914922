package frame

import (
	"errors"
	"fmt"
	"io"
)

// Source is one file of a segment, as a scan reads it.
type Source struct {
	Name   string // for reports
	Header FileHeader
	Bytes  int64 // length of the file
	Reader io.ReaderAt
}

// End is where a scan found the gapless prefix of a segment to end.
type End struct {
	// Next is the number after the last entry.
	Next EntryID
	// Source and Offset are the place after the last frame: an index of the scanned files, and bytes.
	Source int
	Offset int64
	// Dropped counts whole frames behind a hole in the torn tail: they were written together with what is
	// missing, so nobody was told that they are durable.
	Dropped int
}

// CorruptError reports entries that had been durable and cannot be read any more. They lie in the middle, because
// something behind them says that they had been durable; nothing from First on is served.
type CorruptError struct {
	Segment SegmentID
	File    string  // the file where reading fails
	Offset  int64   // the place in it, in bytes
	First   EntryID // the first entry that cannot be read
	Last    EntryID // the last one, as far as is known: the next readable entry comes after it; 0 when none was found
	Reason  string
}

// Error names file, place, and the entries.
func (e *CorruptError) Error() string {
	entries := fmt.Sprintf("entries from %d", e.First)
	if e.Last != 0 {
		entries = fmt.Sprintf("entries %d to %d", e.First, e.Last)
	}
	return fmt.Sprintf("WAL segment %s: %s unreadable at %s byte %d: %s", e.Segment, entries, e.File, e.Offset, e.Reason)
}

const scanWindowBytes = 256 << 10

// Scan reads a segment from its files, in the order of their ordinals, and calls visit with each frame of the gapless
// prefix; the body is checked, and valid until visit returns. It stops before entry before, up to which the caller knows the
// segment to be whole, or at the prefix's end if that is 0.
//
// What ends the prefix is either a torn tail, which was acknowledged to nobody and is cut silently, or damage: then the
// error is a [*CorruptError], and End is the place before it. An error of a read is returned as it is, since what cannot be
// read now may be there. Memory is bounded by the longest frame, and a frame by its file.
func Scan(files []Source, before EntryID, visit func(h *Header, body []byte) error) (End, error) {
	if len(files) == 0 {
		return End{}, errors.New("scan of a segment without files")
	}
	s := scan{files: files, end: End{Next: files[0].Header.First, Offset: BlockBytes}}
	for i := range files {
		if i > 0 && !s.follows(i) {
			break
		}
		s.end.Source, s.end.Offset = i, BlockBytes
		if err := s.file(i, before, visit); err != nil {
			return s.end, err
		}
	}
	if before != 0 && s.end.Next >= before {
		return s.end, nil
	}
	return s.end, s.verdict(before)
}

type scan struct {
	files  []Source
	end    End
	window []byte
	start  int64 // the window's place in the file
	broken string
}

// follows says whether file i continues where the scan stands.
func (s *scan) follows(i int) bool {
	prev, h := &s.files[i-1].Header, &s.files[i].Header
	return h.Ordinal == prev.Ordinal+1 && h.First == s.end.Next
}

// file visits the frames of file i until one is missing.
func (s *scan) file(i int, before EntryID, visit func(*Header, []byte) error) error {
	s.window, s.start = s.window[:0], 0
	for s.end.Offset < s.files[i].Bytes && (before == 0 || s.end.Next < before) {
		h, body, err := s.frame(i, s.end.Offset)
		if err == nil && h.First != s.end.Next {
			err = fmt.Errorf("entry %d where %d was due: %w", h.First, s.end.Next, ErrNoFrame)
		}
		if errors.Is(err, ErrNoFrame) || errors.Is(err, ErrBody) {
			s.broken = err.Error()
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s at byte %d: %w", s.files[i].Name, s.end.Offset, err)
		}
		if err := visit(&h, body); err != nil {
			return err
		}
		s.end.Next, s.end.Offset = h.Next(), s.end.Offset+h.Bytes()
	}
	return nil
}

// verdict looks behind the end of the prefix for something that was written when the missing part was durable: then the
// part is damaged, otherwise the tail is torn.
func (s *scan) verdict(before EntryID) error {
	at := s.end
	corrupt := func(last EntryID) error {
		reason := s.broken
		if reason == "" {
			reason = "file ends"
		}
		return &CorruptError{
			Segment: s.files[0].Header.Segment, File: s.files[at.Source].Name, Offset: at.Offset,
			First: at.Next, Last: last, Reason: reason,
		}
	}
	// A file is begun only when all before it is durable.
	if at.Source+1 < len(s.files) {
		next := &s.files[at.Source+1].Header
		if next.First > at.Next {
			return corrupt(next.First - 1)
		}
		return corrupt(0)
	}
	f := &s.files[at.Source]
	for off := at.Offset; off < f.Bytes; {
		h, err := s.header(at.Source, off)
		switch {
		case errors.Is(err, ErrNoFrame):
			off += BlockBytes
			continue
		case err != nil:
			return fmt.Errorf("read %s at byte %d: %w", f.Name, off, err)
		}
		if off > at.Offset && int64(h.Place.Synced)*BlockBytes > at.Offset {
			last := EntryID(0)
			if h.First > at.Next {
				last = h.First - 1
			}
			return corrupt(last)
		}
		if off > at.Offset {
			s.end.Dropped++
		}
		off += h.Bytes()
	}
	if before != 0 {
		return corrupt(before - 1)
	}
	return nil
}

// header reads and checks the header of a frame of file i at off. ErrNoFrame says that none of this use of the file lies
// there.
func (s *scan) header(i int, off int64) (Header, error) {
	b, err := s.bytes(i, off, HeaderBytes)
	if err != nil {
		return Header{}, err
	}
	h, err := ParseHeader(b)
	if err != nil {
		return Header{}, err
	}
	f := &s.files[i]
	if h.Segment != f.Header.Segment || h.Place.File != f.Header.File || int64(h.Place.Block)*BlockBytes != off {
		return Header{}, fmt.Errorf("stale frame: %w", ErrNoFrame)
	}
	if h.Bytes() > f.Bytes-off {
		return Header{}, fmt.Errorf("frame of %d bytes, %d left in the file: %w", h.Bytes(), f.Bytes-off, ErrNoFrame)
	}
	return h, nil
}

func (s *scan) frame(i int, off int64) (Header, []byte, error) {
	h, err := s.header(i, off)
	if err != nil {
		return Header{}, nil, err
	}
	b, err := s.bytes(i, off, HeaderBytes+int(h.BodyBytes))
	if err != nil {
		return Header{}, nil, err
	}
	body := b[HeaderBytes:]
	return h, body, CheckBody(&h, body)
}

// bytes gives n bytes of file i from off, through a window, so that small frames do not cost a read each. A file that is
// shorter than it should be reads as ErrNoFrame.
func (s *scan) bytes(i int, off int64, n int) ([]byte, error) {
	if off >= s.start && off+int64(n) <= s.start+int64(len(s.window)) {
		return s.window[off-s.start:][:n], nil
	}
	size := max(scanWindowBytes, int(Padded(int64(n))))
	if cap(s.window) < size {
		s.window = make([]byte, size)
	}
	s.window = s.window[:size]
	read, err := s.files[i].Reader.ReadAt(s.window, off)
	s.window, s.start = s.window[:read], off
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if read < n {
		return nil, fmt.Errorf("file ends: %w", ErrNoFrame)
	}
	return s.window[:n], nil
}
