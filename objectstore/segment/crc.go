package segment

import (
	"hash/crc32"
	"math/bits"

	"github.com/varve-io/varve/protocol/batch"
)

// Checksums of the format are linear, so that the checksum of two stretches of bytes follows from theirs: a section's is put together from those that
// producers have put into their batches, which were checked when the batches came. That saves reading every byte once more, and makes the
// section's checksum one of what the producers sent rather than of what lies in memory now.

// combineBytesMin is the size from which a batch's own checksum is used; below it, reading the bytes is cheaper.
const combineBytesMin = 8 << 10

// castagnoliPoly is the polynomial of CRC32C, reflected, as hash/crc32 has it.
const castagnoliPoly = 0x82f63b78

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
func timesX(v uint32) uint32 { return v>>1 ^ castagnoliPoly&-(v&1) }

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

// extend returns the checksum of a stretch with checksum sum followed by a whole batch.
func extend(sum uint32, data []byte, h *batch.Header) uint32 {
	if len(data) < combineBytesMin {
		return crc32.Update(sum, castagnoli, data)
	}
	sum = crc32.Update(sum, castagnoli, data[:batch.ChecksumFrom])
	return combine(sum, h.CRC, len(data)-batch.ChecksumFrom)
}
