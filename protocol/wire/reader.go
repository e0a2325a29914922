package wire

import "encoding/binary"

// reader walks over encoded fields. Once bad, it has no bytes and every read
// returns a zero value.
type reader struct {
	src []byte
	bad bool
}

func (r *reader) fail() {
	r.src, r.bad = nil, true
}

// take returns the next n bytes. A negative n fails.
func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.src) {
		r.fail()
		return nil
	}
	b := r.src[:n]
	r.src = r.src[n:]
	return b
}

func (r *reader) int16() int16 {
	if b := r.take(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) int32() int32 {
	if b := r.take(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

// uvarint reads an unsigned varint of at most 32 bits (KIP-482).
func (r *reader) uvarint() uint32 {
	v, n := binary.Uvarint(r.src)
	if n <= 0 || v > 1<<32-1 {
		r.fail()
		return 0
	}
	r.src = r.src[n:]
	return uint32(v)
}

// nullableString reads a string with an int16 length; null, any negative
// length as in Kafka, is empty.
func (r *reader) nullableString() []byte {
	n := r.int16()
	if n < 0 {
		return nil
	}
	return r.take(int(n))
}

// tags skips a section of tagged fields and returns how many there were.
func (r *reader) tags() int {
	count := int(r.uvarint())
	for n := count; n > 0 && !r.bad; n-- {
		r.uvarint()
		r.take(int(r.uvarint()))
	}
	return count
}
