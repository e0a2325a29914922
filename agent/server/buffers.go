package server

import (
	"math/bits"
	"sync"
)

// Buffers are byte slices for frames, reused: memory that is touched for the first time costs more than the copy into it. They come
// in powers of two. The zero value is ready, and may be used concurrently.
type Buffers struct {
	pools [33]sync.Pool // of *[]byte with capacity 1<<i
}

// smallest is the exponent of the smallest buffer.
const smallest = 12

// Get returns a buffer of n bytes, not cleared, and the pointer to give back.
func (b *Buffers) Get(n int) (*[]byte, []byte) {
	class := max(smallest, bits.Len(uint(n-1)))
	if p, ok := b.pools[class].Get().(*[]byte); ok {
		return p, (*p)[:n]
	}
	s := make([]byte, 1<<class)
	return &s, s[:n]
}

// Put takes a buffer back, which nobody may use any more.
func (b *Buffers) Put(p *[]byte) {
	b.pools[bits.Len(uint(len(*p)-1))].Put(p)
}
