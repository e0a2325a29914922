package load

import (
	"os"

	"golang.org/x/sys/unix"
)

// syncData is fdatasync(2).
func syncData(file *os.File) error { return unix.Fdatasync(int(file.Fd())) }
