//go:build linux && !race

package wal

import "golang.org/x/sys/unix"

// newMemory gives n bytes, a multiple of the page size, outside of Go's heap: half a gigabyte that the collector counted as
// live would let the garbage grow as large. Of huge pages direct I/O has fewer to pin. The pages are touched here, by
// the recycler, rather than by the first Append that needs them.
func newMemory(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	// Both are for speed; a kernel without them serves as well.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(b, unix.MADV_POPULATE_WRITE)
	return b, nil
}

func freeMemory(b []byte) { _ = unix.Munmap(b) }
