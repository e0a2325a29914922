//go:build !linux || race

package wal

import "unsafe"

const pageBytes = 4096

// newMemory gives n bytes on a page boundary from Go's heap: the race detector sees no other memory, and it is to see who
// reads a chunk that is being reused.
func newMemory(n int) ([]byte, error) {
	b := make([]byte, n+pageBytes)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (pageBytes - 1)
	return b[skip : skip+n : skip+n], nil
}

func freeMemory([]byte) {}
