package diskcache

import (
	"errors"
	"os"
)

// osFile is a file of the operating system.
type osFile struct{ *os.File }

// Close implements file.
func (f osFile) Close() error { return errors.Join(f.File.Close(), os.Remove(f.Name())) }
