package segment

import "encoding/binary"

// decoder walks over an encoded stretch. Once bad, it has no bytes left and every read returns zero.
type decoder struct {
	b   []byte
	at  int // next byte to read
	bad bool
}

func (d *decoder) fail() { d.at, d.bad = len(d.b), true }

// left returns how many bytes are left.
func (d *decoder) left() int { return len(d.b) - d.at }

// take returns the next n bytes, not copied.
func (d *decoder) take(n int) []byte {
	if n < 0 || n > d.left() {
		d.fail()
		return nil
	}
	d.at += n
	return d.b[d.at-n : d.at]
}

func (d *decoder) byte() byte {
	if d.at >= len(d.b) {
		d.fail()
		return 0
	}
	d.at++
	return d.b[d.at-1]
}

func (d *decoder) uint32() uint32 {
	p := d.take(4)
	if p == nil {
		return 0
	}
	return binary.BigEndian.Uint32(p)
}

// uvarint takes numbers of one byte, as most are, without a loop.
func (d *decoder) uvarint() uint64 {
	if d.at < len(d.b) && d.b[d.at] < 0x80 {
		d.at++
		return uint64(d.b[d.at-1])
	}
	return d.longUvarint()
}

func (d *decoder) longUvarint() uint64 {
	v, n := binary.Uvarint(d.b[d.at:])
	if n <= 0 {
		d.fail()
		return 0
	}
	d.at += n
	return v
}

// uvarintMax reads a number that must not be above limit.
func (d *decoder) uvarintMax(limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.fail()
		return 0
	}
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}
