//go:build !linux

package diskcache

import (
	"math"
	"os"
)

// openFile makes an empty file, or empties the one that is there.
func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// Free implements file: it does not know.
func (f osFile) Free() (int64, error) { return math.MaxInt64, nil }
