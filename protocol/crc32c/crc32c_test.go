package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

func TestCombine(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 300_000)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	for range 500 {
		end := r.IntN(len(b))
		at := r.IntN(end + 1)
		want := crc32.Checksum(b[:end], castagnoli)
		if got := combine(crc32.Checksum(b[:at], castagnoli), crc32.Checksum(b[at:end], castagnoli), end-at); got != want {
			t.Fatalf("%d and %d bytes: %08x, want %08x", at, end-at, got, want)
		}
	}
}

// TestExtend holds that what is known of a tail changes nothing, whatever part it is.
func TestExtend(t *testing.T) {
	b := make([]byte, 5*combineBytesMin)
	for i := range b {
		b[i] = byte(i * i)
	}
	for _, tail := range []int{0, 1, combineBytesMin - 1, combineBytesMin, combineBytesMin + 1, len(b) - 21, len(b)} {
		known := Tail{Bytes: tail, Sum: Checksum(b[len(b)-tail:])}
		if got, want := Extend(0x1234, b, known), Update(0x1234, b); got != want {
			t.Errorf("%d bytes known: %08x, want %08x", tail, got, want)
		}
	}
}

func BenchmarkCombine(b *testing.B) {
	for b.Loop() {
		_ = combine(0x12345678, 0x9abcdef0, 64<<10-137)
	}
}
