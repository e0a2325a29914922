package diskcache

import (
	"io"
	"math/rand/v2"
	"os"
	"sync"
)

// memFile is a file in memory.
type memFile struct {
	mu                    sync.Mutex
	bytes                 []byte
	free                  int64
	freeErr               error
	writeErr, readErr     error
	closed                bool
	heldReads, heldWrites chan struct{}
}

func newMemFile() *memFile { return &memFile{free: 1 << 40} }

// hold has reads and writes wait until release.
func (f *memFile) hold() {
	f.holdReads()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heldWrites = f.heldReads
}

// holdReads has reads wait until release.
func (f *memFile) holdReads() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heldReads = make(chan struct{})
}

func (f *memFile) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.heldReads != nil {
		close(f.heldReads)
	}
	f.heldReads, f.heldWrites = nil, nil
}

// wait waits for release if held.
func (f *memFile) wait(held *chan struct{}) {
	f.mu.Lock()
	until := *held
	f.mu.Unlock()
	if until != nil {
		<-until
	}
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.wait(&f.heldReads)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return 0, os.ErrClosed
	case f.readErr != nil:
		return 0, f.readErr
	case off >= int64(len(f.bytes)):
		return 0, io.EOF
	}
	n := copy(p, f.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.wait(&f.heldWrites)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return 0, os.ErrClosed
	case f.writeErr != nil:
		return 0, f.writeErr
	}
	if end := int(off) + len(p); end > len(f.bytes) {
		f.bytes = append(f.bytes, make([]byte, end-len(f.bytes))...)
	}
	return copy(f.bytes[off:], p), nil
}

func (f *memFile) Truncate(bytes int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes = f.bytes[:min(bytes, int64(len(f.bytes)))]
	return nil
}

func (f *memFile) Free() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free, f.freeErr
}

func (f *memFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *memFile) setFree(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = bytes
}

func (f *memFile) length() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.bytes))
}

// flip damages a bit.
func (f *memFile) flip(off int64, random *rand.Rand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off < int64(len(f.bytes)) {
		f.bytes[off] ^= 1 << random.IntN(8)
	}
}
