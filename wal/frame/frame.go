// Package frame is the byte format of the write-ahead log: frames, the header of the files that they lie in, and the
// scan that tells a torn tail from damage. The byte tables are in wal/FORMAT.md.
//
// A frame is one append: a header and the entries that were gathered since the last append. It begins and ends on a
// 4 KiB boundary ([BlockBytes]), in memory and on disk, so that it can be written by direct I/O from where it was gathered,
// and so that a block which is durable is never written again.
//
//	| header 72 | u32 length | entry | u32 length | entry | ... | zeros to the boundary |
//
// A frame is made in two steps, because it is written to several stores but lies at another place in each: its writer
// fills in what is the same everywhere with [Finish], each store what is its own with [Stamp].
//
// Everything is little endian; the checksums are CRC32C. The package is pure: it does no I/O but through the
// [io.ReaderAt] that a scan is given.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/varve-io/varve/protocol/crc32c"
)

// EntryID numbers the entries of a WAL log: 1, 2, 3 ... without a gap. One number has one content for ever. 0 is "none".
type EntryID uint64

// LogID names a WAL log: one agent incarnation. It is never used twice; 0 is "none".
type LogID uint64

// Fence orders the owners of a WAL log: its writer has one, whoever claims the log to recover it a higher one.
type Fence uint64

// SegmentID names a WAL segment: a stretch of a log with one ensemble of stores.
type SegmentID struct {
	Log    LogID
	Number uint32 // 1 is the log's first segment
}

// String gives the log in hexadecimal and the segment's number: "1f/1".
func (id SegmentID) String() string { return fmt.Sprintf("%x/%d", uint64(id.Log), id.Number) }

const (
	// BlockBytes is the alignment of frames in memory and on disk.
	BlockBytes = 4096
	// HeaderBytes is the size of a frame's header.
	HeaderBytes = 72
	// EntryHeaderBytes is what an entry takes beside its own bytes.
	EntryHeaderBytes = 4
	// UnplacedBytes is the size of a header without its place.
	UnplacedBytes = 48

	version = 1
)

// Offsets of the header's fields.
const (
	offMagic     = 0
	offVersion   = 4
	offHeaderCRC = 8
	offBodyCRC   = 12
	offBodyBytes = 16
	offCount     = 20
	offLog       = 24
	offFence     = 32
	offSegment   = 40
	offBlock     = 44
	offFile      = 48
	offFirst     = 56
	offSynced    = 64
	offZero      = 68
)

var frameMagic = [4]byte{'V', 'R', 'V', 'F'}

// Why bytes are not a frame.
var (
	// ErrNoFrame: no frame's header lies here: the magic or the header's checksum is wrong.
	ErrNoFrame = errors.New("no frame")
	// ErrBody: the header is whole, its entries are not.
	ErrBody = errors.New("frame's body damaged")
	// ErrVersion: a WAL file of a version that this build does not know.
	ErrVersion = errors.New("unknown version of the WAL format")
)

// Header is what a frame says of itself.
type Header struct {
	Segment SegmentID
	Fence   Fence
	// First is the number of the frame's first entry; of a frame without entries, the number that the next
	// entry will have.
	First EntryID
	// Count is the number of entries. A frame without any is a proof: appended only to be acknowledged.
	Count uint32
	// BodyBytes is the length of the entries with their lengths, without padding.
	BodyBytes uint32
	// BodyCRC is the CRC32C of these bytes.
	BodyCRC uint32
	// Place is where the frame lies in one store.
	Place Place
}

// Place is the part of a header that each store fills in for itself.
type Place struct {
	// File is the sequence number of the use of the file: a file that is recycled gets a new one, so that frames
	// of an earlier use are known for stale.
	File uint64
	// Block is the frame's place in the file, in blocks. It tells a frame that was written elsewhere, or copied
	// into an entry, from one that belongs here.
	Block uint32
	// Synced is the place in the file up to which everything was durable on this store when the frame was
	// written. A block below it that cannot be read was damaged; one above may be torn.
	Synced uint32
}

// Bytes gives the frame's length on disk, a multiple of BlockBytes.
func (h *Header) Bytes() int64 { return Padded(HeaderBytes + int64(h.BodyBytes)) }

// Next gives the number that follows the frame's last entry.
func (h *Header) Next() EntryID { return h.First + EntryID(h.Count) }

// Padded rounds n up to the next block boundary.
func Padded(n int64) int64 { return (n + BlockBytes - 1) &^ (BlockBytes - 1) }

// Put makes head||payload the next entry of the frame whose header h becomes: it writes the entry, its length first, to the start of b, which is
// where the body ends and must have room for EntryHeaderBytes more than both, and gives back the bytes taken. known is what the caller knows of the payload's
// checksum.
func (h *Header) Put(b, head, payload []byte, known crc32c.Tail) int {
	n := len(head) + len(payload)
	from := EntryHeaderBytes + len(head)
	binary.LittleEndian.PutUint32(b, uint32(n))
	copy(b[EntryHeaderBytes:], head)
	copy(b[from:], payload)
	h.BodyCRC = crc32c.Extend(crc32c.Update(h.BodyCRC, b[:from]), b[from:EntryHeaderBytes+n], known)
	h.BodyBytes += uint32(EntryHeaderBytes + n)
	h.Count++
	return EntryHeaderBytes + n
}

// Finish turns b into a frame of which only the place is missing: it fills in the header and clears the padding. The
// body, h.BodyBytes of entries made by [Header.Put], already lies behind the header; b is as long as h.Bytes(). Place of h is ignored.
func Finish(b []byte, h *Header) {
	copy(b[offMagic:], frameMagic[:])
	binary.LittleEndian.PutUint32(b[offVersion:], version)
	binary.LittleEndian.PutUint32(b[offBodyCRC:], h.BodyCRC)
	binary.LittleEndian.PutUint32(b[offBodyBytes:], h.BodyBytes)
	binary.LittleEndian.PutUint32(b[offCount:], h.Count)
	binary.LittleEndian.PutUint64(b[offLog:], uint64(h.Segment.Log))
	binary.LittleEndian.PutUint64(b[offFence:], uint64(h.Fence))
	binary.LittleEndian.PutUint32(b[offSegment:], h.Segment.Number)
	binary.LittleEndian.PutUint64(b[offFirst:], uint64(h.First))
	binary.LittleEndian.PutUint32(b[offZero:], 0)
	clear(b[HeaderBytes+int(h.BodyBytes):])
}

// Stamp completes a frame that [Finish] made by its place and the header's checksum. It may be called again, with
// another place.
func Stamp(b []byte, at Place) {
	binary.LittleEndian.PutUint32(b[offBlock:], at.Block)
	binary.LittleEndian.PutUint64(b[offFile:], at.File)
	binary.LittleEndian.PutUint32(b[offSynced:], at.Synced)
	binary.LittleEndian.PutUint32(b[offHeaderCRC:], headerCRC(b))
}

// headerCRC covers the header without the checksum's own four bytes.
func headerCRC(b []byte) uint32 {
	crc := crc32c.Update(0, b[:offHeaderCRC])
	return crc32c.Update(crc, b[offBodyCRC:HeaderBytes])
}

// Readdress copies the frame that b begins with, as [Finish] left it, to dst as a frame of another segment of the log, and gives back its length. dst must have
// room for it. What [Stamp] writes is not read: a store may be stamping b meanwhile.
func Readdress(dst, b []byte, segment SegmentID) int {
	h := decodeUnplaced(b)
	h.Segment = segment
	n := int(h.Bytes())
	copy(dst[HeaderBytes:n], b[HeaderBytes:])
	Finish(dst[:n], &h)
	return n
}

// Unstamped reads the header of a frame that [Finish] made, in memory that the caller trusts. It fails if the frame claims to be longer
// than b. Place and the header's checksum are not touched, so that a store may stamp them meanwhile.
func Unstamped(b []byte) (Header, error) {
	if len(b) < HeaderBytes || [4]byte(b[offMagic:]) != frameMagic {
		return Header{}, ErrNoFrame
	}
	h := decodeUnplaced(b)
	if h.Bytes() > int64(len(b)) {
		return Header{}, fmt.Errorf("frame of %d bytes in %d: %w", h.Bytes(), len(b), ErrNoFrame)
	}
	return h, nil
}

// AppendUnplaced appends UnplacedBytes to dst: what [Finish] filled in of the header at the start of b, for a store that is elsewhere. What
// [Stamp] fills in is not touched.
func AppendUnplaced(dst, b []byte) []byte {
	dst = append(dst, b[:offHeaderCRC]...)
	dst = append(dst, b[offBodyCRC:offBlock]...)
	return append(dst, b[offFirst:offSynced]...)
}

// ParseUnplaced reads what [AppendUnplaced] made, from the start of b, and checks all that can be checked without the body. The error is
// ErrNoFrame, also for another version.
func ParseUnplaced(b []byte) (Header, error) {
	if len(b) < UnplacedBytes {
		return Header{}, fmt.Errorf("header of %d bytes, want %d: %w", len(b), UnplacedBytes, ErrNoFrame)
	}
	var placed [HeaderBytes]byte
	n := copy(placed[:offHeaderCRC], b)
	n += copy(placed[offBodyCRC:offBlock], b[n:])
	copy(placed[offFirst:offSynced], b[n:])
	if [4]byte(placed[offMagic:]) != frameMagic {
		return Header{}, ErrNoFrame
	}
	return checkedHeader(placed[:])
}

// ParseHeader reads the header at the start of b and checks all that can be checked without the body. The error is
// ErrNoFrame, also for another version: a file has one version, so that frame is of an earlier use of the file.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderBytes || [4]byte(b[offMagic:]) != frameMagic ||
		binary.LittleEndian.Uint32(b[offHeaderCRC:]) != headerCRC(b) {
		return Header{}, ErrNoFrame
	}
	h, err := checkedHeader(b)
	if err != nil {
		return Header{}, err
	}
	h.Place = Place{
		File:   binary.LittleEndian.Uint64(b[offFile:]),
		Block:  binary.LittleEndian.Uint32(b[offBlock:]),
		Synced: binary.LittleEndian.Uint32(b[offSynced:]),
	}
	return h, nil
}

// checkedHeader decodes a header but for its place, and checks its version and whether it can be.
func checkedHeader(b []byte) (Header, error) {
	if v := binary.LittleEndian.Uint32(b[offVersion:]); v != version {
		return Header{}, fmt.Errorf("frame of version %d, want %d: %w", v, version, ErrNoFrame)
	}
	h := decodeUnplaced(b)
	if uint64(h.Count)*EntryHeaderBytes > uint64(h.BodyBytes) || h.First == 0 {
		return Header{}, ErrNoFrame
	}
	return h, nil
}

func decodeUnplaced(b []byte) Header {
	return Header{
		Segment: SegmentID{
			Log:    LogID(binary.LittleEndian.Uint64(b[offLog:])),
			Number: binary.LittleEndian.Uint32(b[offSegment:]),
		},
		Fence:     Fence(binary.LittleEndian.Uint64(b[offFence:])),
		First:     EntryID(binary.LittleEndian.Uint64(b[offFirst:])),
		Count:     binary.LittleEndian.Uint32(b[offCount:]),
		BodyBytes: binary.LittleEndian.Uint32(b[offBodyBytes:]),
		BodyCRC:   binary.LittleEndian.Uint32(b[offBodyCRC:]),
	}
}

// CheckBody says whether body holds exactly the entries that h promises: the checksum, and that the lengths add up. The
// error is ErrBody.
func CheckBody(h *Header, body []byte) error {
	if len(body) != int(h.BodyBytes) || crc32c.Checksum(body) != h.BodyCRC {
		return fmt.Errorf("checksum of %d bytes: %w", len(body), ErrBody)
	}
	rest := body
	for range h.Count {
		if len(rest) < EntryHeaderBytes {
			return fmt.Errorf("entries end early: %w", ErrBody)
		}
		n := binary.LittleEndian.Uint32(rest)
		if uint64(n) > uint64(len(rest)-EntryHeaderBytes) {
			return fmt.Errorf("entry of %d bytes, %d left: %w", n, len(rest)-EntryHeaderBytes, ErrBody)
		}
		rest = rest[EntryHeaderBytes+int(n):]
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes after the last entry: %w", len(rest), ErrBody)
	}
	return nil
}

// Entries calls fn with each entry of a body that [CheckBody] accepted, until fn fails. The bytes are a part of body.
func Entries(h *Header, body []byte, fn func(EntryID, []byte) error) error {
	for id := h.First; id < h.Next(); id++ {
		n := EntryHeaderBytes + int(binary.LittleEndian.Uint32(body))
		if err := fn(id, body[EntryHeaderBytes:n:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}
