// Package fields reads encoded values one field after the other: bytes, big-endian integers, and varints as in
// [encoding/binary]. All lengths come from the bytes themselves, which may be anything, so each read is checked; the caller asks once, at the end.
//
//	r := fields.NewReader(b)
//	name := r.Take(int(r.UvarintMax(nameBytesMax)))
//	offset := r.Uvarint()
//	if r.Bad() || r.Left() > 0 {
//		return errBad
//	}
//
// Writers need no more than encoding/binary's Append functions.
package fields

import "encoding/binary"

// Reader walks over encoded fields. Once bad, it has no bytes left and every read returns zero. It is not safe for concurrent use.
type Reader struct {
	b   []byte
	at  int // next byte to read
	bad bool
}

// NewReader returns a reader of b, which it does not copy.
func NewReader(b []byte) Reader { return Reader{b: b} }

// Bad reports whether a field was not there, or was not what a writer writes.
func (r *Reader) Bad() bool { return r.bad }

// Fail makes the reader bad, for a caller to whom a field says nonsense.
func (r *Reader) Fail() { r.at, r.bad = len(r.b), true }

// Left returns how many bytes are left.
func (r *Reader) Left() int { return len(r.b) - r.at }

// Rest returns the bytes that are left, a part of those that are read. It does not move the reader.
func (r *Reader) Rest() []byte { return r.b[r.at:] }

// Take returns the next n bytes, a part of those that are read. A negative n fails.
func (r *Reader) Take(n int) []byte {
	if n < 0 || n > r.Left() {
		r.Fail()
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if r.at >= len(r.b) {
		r.Fail()
		return 0
	}
	r.at++
	return r.b[r.at-1]
}

// Uint16 reads two bytes, big endian.
func (r *Reader) Uint16() uint16 {
	if p := r.Take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

// Uint32 reads four bytes, big endian.
func (r *Reader) Uint32() uint32 {
	if p := r.Take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// Uvarint reads an unsigned varint of up to 64 bits. Numbers of one byte, as most are, are taken without a loop.
func (r *Reader) Uvarint() uint64 {
	if r.at < len(r.b) && r.b[r.at] < 0x80 {
		r.at++
		return uint64(r.b[r.at-1])
	}
	return r.longUvarint()
}

func (r *Reader) longUvarint() uint64 {
	v, n := binary.Uvarint(r.b[r.at:])
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.at += n
	return v
}

// UvarintMax reads an unsigned varint that must not be above limit.
func (r *Reader) UvarintMax(limit uint64) uint64 {
	v := r.Uvarint()
	if v > limit {
		r.Fail()
		return 0
	}
	return v
}

// Varint reads a signed varint of up to 64 bits, in zigzag.
func (r *Reader) Varint() int64 {
	u := r.Uvarint()
	return int64(u>>1) ^ -int64(u&1)
}
