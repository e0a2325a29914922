package dir

import (
	"context"
	"unsafe"
)

const (
	// sectorBytes is the alignment of direct I/O, in memory and in the file: a multiple of what any disk asks for.
	sectorBytes = 4096
	// bufferBytes is the size of one direct read or write. Larger ones gain little more (measured from 256 KiB to 4 MiB).
	bufferBytes = 1 << 20
	// buffersMax bounds the memory of the pool, and with it the number of large Puts, or Gets, at the same time.
	buffersMax = 8
)

// bufferPool lends aligned buffers of bufferBytes. They are made when first wanted and then kept, as fresh memory
// costs more than what is done with it.
type bufferPool struct {
	free  chan []byte   // buffers that were made and are not lent
	slots chan struct{} // one token for each buffer lent
}

func newBufferPool() *bufferPool {
	return &bufferPool{free: make(chan []byte, buffersMax), slots: make(chan struct{}, buffersMax)}
}

// take returns a buffer, whose content is undefined, or the context's error if it ended before one was free.
func (p *bufferPool) take(ctx context.Context) ([]byte, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case buffer := <-p.free:
		return buffer, nil
	default:
		return alignedBuffer(), nil
	}
}

// put takes a buffer back.
func (p *bufferPool) put(buffer []byte) {
	p.free <- buffer
	<-p.slots
}

// alignedBuffer returns new memory that starts at a multiple of sectorBytes. The garbage collector does not move it.
func alignedBuffer() []byte {
	memory := make([]byte, bufferBytes+sectorBytes)
	start := alignUp(int(uintptr(unsafe.Pointer(&memory[0]))%sectorBytes)) - int(uintptr(unsafe.Pointer(&memory[0]))%sectorBytes)
	return memory[start : start+bufferBytes : start+bufferBytes]
}

// alignUp returns the smallest multiple of sectorBytes that is not less than n.
func alignUp(n int) int { return (n + sectorBytes - 1) &^ (sectorBytes - 1) }
