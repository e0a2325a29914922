package segment

import (
	"fmt"
	"iter"
	"sort"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/fields"
)

// Section is one partition's part of a segment. It is never changed and may be read concurrently.
//
// It covers the offsets from FirstOffset to NextOffset. In level 0 they are all in its batches. In level 1 there may be gaps, before,
// between and after the batches: what compaction has removed, or what was below the log's start.
//
// Its batch index is kept encoded, 5 to 10 bytes for a batch. A lookup walks it without allocating, from the last mark before the offset that it
// wants: of an index of more than 1,024 batches, [ParseFooter] remembers every 1,024th place. So a lookup costs what 1,024 entries do (some 30 µs,
// BenchmarkRange), however long the section is, and a footer is parsed at the price of one walk through its long indexes.
type Section struct {
	Key
	TopicName    string
	Pos          int64           // of its first byte in the object
	Size         int64           // bytes
	FirstOffset  protocol.Offset // first that it covers
	NextOffset   protocol.Offset // one past the last that it covers
	LastStable   protocol.Offset // last stable offset as of the section's end; NextOffset if no transaction was open
	MaxTimestamp int64           // largest of its batches, Unix milliseconds
	FirstEpoch   protocol.LeaderEpoch
	LeaderEpoch  protocol.LeaderEpoch // of its last batch; they never fall
	CRC          uint32               // CRC32C of its bytes
	Batches      int                  // at least one

	index  []byte
	marks  []cursor // after every stride-th batch of the index but the last
	object *ID      // whose section it is
}

// stride is how many batches are between marks. A mark takes some 180 bytes: a small part of what the index takes.
const stride = 1024

// All yields the batches in offset order. It stops after an error, which wraps [ErrCorrupt]; a batch before it is good,
// since the footer's checksum covers the index.
func (s *Section) All() iter.Seq2[Batch, error] { return s.all(s.cursor(), s.FirstOffset) }

// From is All from the first batch on that ends after offset.
func (s *Section) From(offset protocol.Offset) iter.Seq2[Batch, error] {
	return s.all(s.cursorBefore(offset), offset)
}

// all yields the batches that a cursor has before it and that end after offset.
func (s *Section) all(c cursor, offset protocol.Offset) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		c := c // each time anew
		for c.left > 0 {
			if !c.next() {
				yield(Batch{}, c.err())
				return
			}
			if c.offset > offset && !yield(c.batch, nil) {
				return
			}
		}
		if !c.complete() {
			yield(Batch{}, c.err())
		}
	}
}

// Range returns the byte range of the object that serves a fetch from offset: whole batches, from the one that holds
// offset, of maxBytes bytes at most, but always at least one batch. The batches in it are appended to dst, so that
// they can be told apart and verified. Of an offset that is in a gap, the batches after it are returned; if the section has none there, no batches
// and no bytes. An offset outside of the section is [ErrNoBatch].
func (s *Section) Range(dst []Batch, offset protocol.Offset, maxBytes int64) (pos, n int64, batches []Batch, err error) {
	if offset < s.FirstOffset || offset >= s.NextOffset {
		return 0, 0, dst, s.errorf(ErrNoBatch, "offset %d is not in [%d,%d)", offset, s.FirstOffset, s.NextOffset)
	}
	c := s.cursorBefore(offset)
	if !c.seek(offset) {
		if c.complete() {
			return s.Pos + s.Size, 0, dst, nil
		}
		return 0, 0, dst, c.err()
	}
	pos, n = c.batch.Pos, int64(c.batch.Size)
	batches = append(dst, c.batch)
	for n < maxBytes && c.left > 0 {
		if !c.next() {
			return 0, 0, dst, c.err()
		}
		if n+int64(c.batch.Size) > maxBytes {
			break
		}
		n += int64(c.batch.Size)
		batches = append(batches, c.batch)
	}
	return pos, n, batches, nil
}

// Verify checks the bytes of the whole section as they came from the object: Size bytes from Pos, gaps or not. Who reads them piece by
// piece extends a CRC32C over the pieces and compares it with CRC. The error wraps [ErrCorrupt] and says the place.
func (s *Section) Verify(data []byte) error {
	if int64(len(data)) != s.Size {
		return s.errorf(ErrCorrupt, "section at byte %d: %d bytes, want %d", s.Pos, len(data), s.Size)
	}
	if got := checksum(data); got != s.CRC {
		return s.errorf(ErrCorrupt, "section at byte %d: CRC32C %08x, want %08x", s.Pos, got, s.CRC)
	}
	return nil
}

// VerifyBatch checks the bytes of one of the section's batches as they came from the object: that they are that batch
// (base offset, length, leader epoch, magic) and whole (Kafka's CRC, which covers the rest). The error wraps [ErrCorrupt] and says
// the place.
func (s *Section) VerifyBatch(b Batch, data []byte) error {
	h, err := batch.Parse(data)
	if err != nil {
		return s.errorf(ErrCorrupt, "batch at byte %d: %v", b.Pos, err)
	}
	if len(data) != int(b.Size) || h.Size() != len(data) || h.BaseOffset != b.Offset || h.LeaderEpoch != b.LeaderEpoch {
		return s.errorf(ErrCorrupt, "batch at byte %d: %d bytes with one of %d at offset %d of leader epoch %d, want %d at %d of %d",
			b.Pos, len(data), h.Size(), h.BaseOffset, h.LeaderEpoch, b.Size, b.Offset, b.LeaderEpoch)
	}
	if err := batch.Verify(data, &h); err != nil {
		return s.errorf(ErrCorrupt, "batch at byte %d: %v", b.Pos, err)
	}
	return nil
}

// errorf says what is wrong where.
func (s *Section) errorf(kind error, format string, args ...any) error {
	return fmt.Errorf("segment %s: topic %q partition %d: %w: %s",
		s.object.Name(), s.TopicName, s.Partition, kind, fmt.Sprintf(format, args...))
}

// cursor walks a section's batch index.
type cursor struct {
	section *Section
	d       fields.Reader
	coding  coding
	left    int // batches that are not read yet
	pos     int64
	offset  protocol.Offset // after the last batch read
	batch   Batch           // the last one read
}

func (s *Section) cursor() cursor {
	return cursor{
		section: s, d: fields.NewReader(s.index), coding: coding{epoch: s.FirstEpoch},
		left: s.Batches, pos: s.Pos, offset: s.FirstOffset,
	}
}

// mark remembers places of a long index, from which lookups go on. It reports whether the index is in order; a short one it leaves unread.
func (s *Section) mark() bool {
	if s.Batches <= stride {
		return true
	}
	s.marks = make([]cursor, 0, (s.Batches-1)/stride)
	c := s.cursor()
	for c.next() {
		if c.left > 0 && (s.Batches-c.left)%stride == 0 {
			s.marks = append(s.marks, c)
		}
	}
	return c.complete()
}

// cursorBefore returns a cursor that has passed no batch which ends after offset.
func (s *Section) cursorBefore(offset protocol.Offset) cursor {
	after := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].offset > offset })
	if after == 0 {
		return s.cursor()
	}
	return s.marks[after-1]
}

// gaps reports whether the section's offsets may have gaps.
func (s *Section) gaps() bool { return s.object.Level == Merged }

// next reads the next batch. It is false at the end, and where the index contradicts the directory.
func (c *cursor) next() bool {
	if c.left == 0 {
		return false
	}
	b, s := &c.batch, c.section
	if s.gaps() {
		c.offset += protocol.Offset(c.d.UvarintMax(uint64(s.NextOffset - c.offset)))
	}
	if !c.coding.read(&c.d, b) {
		return false
	}
	b.Pos, b.Offset = c.pos, c.offset
	if int64(b.Size) > s.Pos+s.Size-c.pos || protocol.Offset(b.LastOffsetDelta) >= s.NextOffset-c.offset {
		return false
	}
	c.pos += int64(b.Size)
	c.offset = b.Next()
	c.left--
	return true
}

// seek reads up to the batch that holds offset, or is the first one after it. It is false if there is none, and where the index contradicts the
// directory; complete tells which.
func (c *cursor) seek(offset protocol.Offset) bool {
	for c.next() {
		if c.offset > offset {
			return true
		}
	}
	return false
}

// complete reports whether all batches were read, and the index is what the directory says.
func (c *cursor) complete() bool {
	s := c.section
	return c.left == 0 && c.d.Left() == 0 && c.pos == s.Pos+s.Size && c.coding.epoch == s.LeaderEpoch &&
		(c.offset == s.NextOffset || s.gaps())
}

func (c *cursor) err() error {
	s := c.section
	return s.errorf(ErrCorrupt, "batch index: entry %d of %d, for offset %d at byte %d", s.Batches-c.left, s.Batches, c.offset, c.pos)
}
