package server

import (
	"math/bits"
	"sync"
)

// buffers are byte slices for frames, reused: memory that is touched for the first time costs more than the copy into it. They come
// in powers of two.
type buffers struct {
	pools [33]sync.Pool // of *[]byte with capacity 1<<i
}

// smallest is the exponent of the smallest buffer.
const smallest = 12

// get returns a buffer of n bytes and the pointer to give back.
func (b *buffers) get(n int) (*[]byte, []byte) {
	class := max(smallest, bits.Len(uint(n-1)))
	if p, ok := b.pools[class].Get().(*[]byte); ok {
		return p, (*p)[:n]
	}
	s := make([]byte, 1<<class)
	return &s, s[:n]
}

// put takes a buffer back.
func (b *buffers) put(p *[]byte) {
	b.pools[bits.Len(uint(len(*p)-1))].Put(p)
}
