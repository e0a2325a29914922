//go:build !linux

package dir

import "os"

// createFile creates a file for writing; writing past the page cache is for Linux alone, and direct is ignored.
func createFile(path string, _ bool) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
}

func clearDirect(*os.File) error { return nil }

func syncData(f *os.File) error { return f.Sync() }
