// Package crc32c is the checksum of everything that Varve writes, and of Kafka's record batches: CRC32C (Castagnoli), for which processors have an
// instruction.
//
// Checksums are linear, so that the checksum of two stretches of bytes follows from theirs. What holds record batches is checksummed with the checksums that
// producers have put into them, which were checked when the batches came: that saves reading every byte once more for each layer, and makes a
// layer's checksum one of what the producers sent rather than of what lies in memory now.
package crc32c

import (
	"hash/crc32"
	"math/bits"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the checksum of b.
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Update returns the checksum of a stretch with checksum sum followed by b.
func Update(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// Tail is what is known of a slice: its last Bytes bytes have the checksum Sum. The zero Tail says nothing.
type Tail struct {
	Bytes int
	Sum   uint32
}

// combineBytesMin is the size from which a known checksum is used; below it, reading the bytes is cheaper.
const combineBytesMin = 8 << 10

// Extend is [Update] by a slice of which a tail is known.
func Extend(sum uint32, b []byte, known Tail) uint32 {
	if known.Bytes < combineBytesMin {
		return Update(sum, b)
	}
	return combine(Update(sum, b[:len(b)-known.Bytes]), known.Sum, known.Bytes)
}

// polynomial is CRC32C's, reflected, as hash/crc32 has it.
const polynomial = 0x82f63b78

// powers are x^(8*2^k) modulo the polynomial: a shift by 2^k bytes.
var powers = func() (p [32]uint32) {
	v := uint32(1) << 31 // x^0: the highest bit is the lowest power
	for range 8 {
		v = timesX(v)
	}
	for k := range p {
		p[k] = v
		v = multiply(v, v)
	}
	return p
}()

// timesX multiplies by x.
func timesX(v uint32) uint32 { return v>>1 ^ polynomial&-(v&1) }

// multiply multiplies two polynomials modulo the polynomial.
func multiply(a, b uint32) uint32 {
	var product uint32
	for a != 0 {
		if a&(1<<31) != 0 {
			product ^= b
		}
		a <<= 1
		b = timesX(b)
	}
	return product
}

// combine returns the checksum of a stretch with checksum a followed by one of n bytes with checksum b.
func combine(a, b uint32, n int) uint32 {
	for left := uint(n); left != 0; left &= left - 1 {
		a = multiply(powers[bits.TrailingZeros(left)], a)
	}
	return a ^ b
}
