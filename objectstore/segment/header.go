package segment

import (
	"encoding/binary"
	"fmt"
)

// Header says where a segment comes from. In level 0 it suffices, with the footer, to rebuild the coordinator's commit, so that
// a cluster can be restored from its bucket alone.
type Header struct {
	Cluster    [16]byte // UUID of the cluster
	ID         ID
	CreatedMs  int64 // Unix milliseconds by the writer's clock
	FirstEntry int64 // first WAL entry that was flushed into it; 0 in level 1
	LastEntry  int64 // last one; 0 in level 1
}

// magic opens a header and stands in each trailer.
const magic = "VSEG"

// valid reports whether a segment can have that header.
func (h *Header) valid() bool {
	return h.ID.valid() && (h.ID.Level == Flushed || h.FirstEntry == 0 && h.LastEntry == 0)
}

func (h *Header) append(b []byte) []byte {
	start := len(b)
	b = append(b, magic...)
	b = append(b, Version, h.ID.Level, 0, 0)
	b = append(b, h.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.ID.Log)
	b = binary.BigEndian.AppendUint64(b, h.ID.Fence)
	b = binary.BigEndian.AppendUint64(b, h.ID.Commit)
	b = binary.BigEndian.AppendUint32(b, h.ID.Attempt)
	b = binary.BigEndian.AppendUint64(b, uint64(h.CreatedMs))
	b = binary.BigEndian.AppendUint64(b, uint64(h.FirstEntry))
	b = binary.BigEndian.AppendUint64(b, uint64(h.LastEntry))
	return binary.BigEndian.AppendUint32(b, checksum(b[start:]))
}

// ParseHeader reads the first [HeaderSize] bytes of a segment, or of its footer; b may be longer.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize {
		return h, fmt.Errorf("parse segment header: %w: %d bytes, want %d", ErrCorrupt, len(b), HeaderSize)
	}
	if string(b[:4]) != magic {
		return h, fmt.Errorf("parse segment header: %w: magic %q, want %q", ErrCorrupt, b[:4], magic)
	}
	if b[4] != Version || b[5] > Merged {
		return h, fmt.Errorf("parse segment header: %w: version %d level %d, want %d and %d at most", ErrVersion, b[4], b[5], Version, Merged)
	}
	const sumAt = HeaderSize - 4
	if got, want := checksum(b[:sumAt]), binary.BigEndian.Uint32(b[sumAt:]); got != want {
		return h, fmt.Errorf("parse segment header: %w: CRC32C %08x, want %08x", ErrCorrupt, got, want)
	}
	copy(h.Cluster[:], b[8:])
	h.ID.Level = b[5]
	h.ID.Log = binary.BigEndian.Uint64(b[24:])
	h.ID.Fence = binary.BigEndian.Uint64(b[32:])
	h.ID.Commit = binary.BigEndian.Uint64(b[40:])
	h.ID.Attempt = binary.BigEndian.Uint32(b[48:])
	h.CreatedMs = int64(binary.BigEndian.Uint64(b[52:]))
	h.FirstEntry = int64(binary.BigEndian.Uint64(b[60:]))
	h.LastEntry = int64(binary.BigEndian.Uint64(b[68:]))
	if !h.valid() {
		return Header{}, fmt.Errorf("parse segment header: %w: %+v, entries %d to %d", ErrCorrupt, h.ID, h.FirstEntry, h.LastEntry)
	}
	return h, nil
}
