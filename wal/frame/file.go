package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/varve-io/varve/protocol/crc32c"
)

// FileHeader is the first block of a WAL file. It is written when a file is taken into use, and again when it is freed.
type FileHeader struct {
	// Store is the identity of the store: a file that was copied from another one is refused.
	Store [16]byte
	// File is the sequence number of this use of the file, which its frames repeat. It never repeats in a store.
	File uint64
	// Segment is whose frames the file holds. The zero value marks a free file; then the fields below are zero.
	Segment SegmentID
	Fence   Fence
	// Ordinal counts the files of the segment in this store, from 0: a file that is missing from the middle shows.
	Ordinal uint32
	// First is the number of the first entry that the file may hold.
	First EntryID
}

// Free says whether the file belongs to no segment.
func (h *FileHeader) Free() bool { return h.Segment == SegmentID{} }

// ErrFileHeader: both copies of a WAL file's header are unreadable.
var ErrFileHeader = errors.New("file header damaged")

var fileMagic = [4]byte{'V', 'R', 'V', 'W'}

const (
	fileHeaderBytes  = 72
	fileHeaderSecond = BlockBytes / 2 // place of the second copy
)

// PutFileHeader writes the header into block, which is one block long. The header is there twice, in different
// sectors: a write that is torn within a sector leaves one copy whole, old or new, so that a block without a whole
// copy was damaged.
func PutFileHeader(block []byte, h *FileHeader) {
	clear(block[:BlockBytes])
	b := block[:fileHeaderBytes]
	copy(b, fileMagic[:])
	binary.LittleEndian.PutUint32(b[4:], version)
	copy(b[12:28], h.Store[:])
	binary.LittleEndian.PutUint64(b[28:], h.File)
	binary.LittleEndian.PutUint64(b[36:], uint64(h.Segment.Log))
	binary.LittleEndian.PutUint32(b[44:], h.Segment.Number)
	binary.LittleEndian.PutUint64(b[48:], uint64(h.Fence))
	binary.LittleEndian.PutUint32(b[56:], h.Ordinal)
	binary.LittleEndian.PutUint64(b[60:], uint64(h.First))
	binary.LittleEndian.PutUint32(b[8:], fileHeaderCRC(b))
	copy(block[fileHeaderSecond:], b)
}

func fileHeaderCRC(b []byte) uint32 {
	crc := crc32c.Update(0, b[:8])
	return crc32c.Update(crc, b[12:fileHeaderBytes])
}

// ParseFileHeader reads a WAL file's first block: the newer of the copies that are whole. The errors are ErrFileHeader and
// ErrVersion.
func ParseFileHeader(block []byte) (FileHeader, error) {
	if len(block) < BlockBytes {
		return FileHeader{}, fmt.Errorf("%d bytes: %w", len(block), ErrFileHeader)
	}
	first, errFirst := parseFileHeader(block[:fileHeaderBytes])
	second, errSecond := parseFileHeader(block[fileHeaderSecond : fileHeaderSecond+fileHeaderBytes])
	switch {
	case errFirst != nil && errSecond != nil:
		return FileHeader{}, errFirst
	case errFirst != nil:
		return second, nil //nolint:nilerr // one whole copy suffices
	case errSecond != nil:
		return first, nil //nolint:nilerr // as above
	}
	// Whole but different: a write that was torn between the copies, hence acknowledged to nobody. A free header
	// keeps the number of the use that it ends, so on a tie the free one is the newer.
	if second.File > first.File || second.File == first.File && second.Free() {
		return second, nil
	}
	return first, nil
}

func parseFileHeader(b []byte) (FileHeader, error) {
	if [4]byte(b) != fileMagic || binary.LittleEndian.Uint32(b[8:]) != fileHeaderCRC(b) {
		return FileHeader{}, ErrFileHeader
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != version {
		return FileHeader{}, fmt.Errorf("WAL file of version %d, want %d: %w", v, version, ErrVersion)
	}
	return FileHeader{
		Store: [16]byte(b[12:28]),
		File:  binary.LittleEndian.Uint64(b[28:]),
		Segment: SegmentID{
			Log:    LogID(binary.LittleEndian.Uint64(b[36:])),
			Number: binary.LittleEndian.Uint32(b[44:]),
		},
		Fence:   Fence(binary.LittleEndian.Uint64(b[48:])),
		Ordinal: binary.LittleEndian.Uint32(b[56:]),
		First:   EntryID(binary.LittleEndian.Uint64(b[60:])),
	}, nil
}
