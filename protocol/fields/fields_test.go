package fields

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
)

// TestReader reads back what encoding/binary wrote, and finds every cut.
func TestReader(t *testing.T) {
	b := []byte{7}
	b = binary.BigEndian.AppendUint16(b, 0x0102)
	b = binary.BigEndian.AppendUint32(b, 0x03040506)
	unsigned := []uint64{0, 1, 127, 128, 1 << 14, math.MaxUint32, math.MaxUint64}
	for _, v := range unsigned {
		b = binary.AppendUvarint(b, v)
	}
	signed := []int64{0, -1, 1, 63, -64, 64, math.MaxInt64, math.MinInt64}
	for _, v := range signed {
		b = binary.AppendVarint(b, v)
	}
	b = append(b, "name"...)
	read := func(b []byte) Reader {
		r := NewReader(b)
		if v := r.Byte(); v != 7 && !r.Bad() {
			t.Errorf("byte %d", v)
		}
		if v := r.Uint16(); v != 0x0102 && !r.Bad() {
			t.Errorf("uint16 %#x", v)
		}
		if v := r.Uint32(); v != 0x03040506 && !r.Bad() {
			t.Errorf("uint32 %#x", v)
		}
		for _, want := range unsigned {
			if v := r.UvarintMax(want); v != want && !r.Bad() {
				t.Errorf("uvarint %d, want %d", v, want)
			}
		}
		for _, want := range signed {
			if v := r.Varint(); v != want && !r.Bad() {
				t.Errorf("varint %d, want %d", v, want)
			}
		}
		if rest := r.Rest(); !r.Bad() && (len(rest) != r.Left() || !bytes.HasPrefix([]byte("name"), rest)) {
			t.Errorf("rest %q of %d bytes", rest, r.Left())
		}
		if v := r.Take(4); string(v) != "name" && !r.Bad() {
			t.Errorf("bytes %q", v)
		}
		return r
	}
	if r := read(b); r.Bad() || r.Left() != 0 {
		t.Errorf("%d bytes left, bad %v", r.Left(), r.Bad())
	}
	for n := range b {
		if r := read(b[:n:n]); !r.Bad() {
			t.Errorf("cut to %d of %d bytes: good", n, len(b))
		}
	}
}

// TestBad holds that a reader which met what nobody wrote reads zeros from then on.
func TestBad(t *testing.T) {
	for name, read := range map[string]func(*Reader){
		"limit":           func(r *Reader) { r.UvarintMax(0) },
		"negative length": func(r *Reader) { r.Take(-1) },
		"too long":        func(r *Reader) { r.Take(13) },
		"overflow":        func(r *Reader) { r.Byte(); r.Uvarint() },
		"the caller":      func(r *Reader) { r.Fail() },
	} {
		r := NewReader(append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...))
		read(&r)
		if !r.Bad() || r.Left() != 0 || len(r.Rest()) != 0 {
			t.Errorf("%s: bad %v with %d bytes left", name, r.Bad(), r.Left())
		}
		if r.Byte() != 0 || r.Uint16() != 0 || r.Uint32() != 0 || r.Uvarint() != 0 || r.Varint() != 0 || len(r.Take(1)) != 0 {
			t.Errorf("%s: something was read afterwards", name)
		}
	}
}
