//go:build !linux

package dir

import (
	"errors"
	"io"
	"os"
)

// flagDirect is nothing: passing the page cache by is for Linux alone.
const flagDirect = 0

// readAt reads what is there, at most p.
func readAt(f *os.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func clearDirect(*os.File) error { return nil }

func syncData(f *os.File) error { return f.Sync() }
