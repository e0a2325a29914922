package dir

import (
	"os"

	"golang.org/x/sys/unix"
)

// createFile creates a file for writing, past the page cache if direct. File systems that cannot do that refuse with
// EINVAL here or at the first write.
func createFile(path string, direct bool) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if direct {
		flags |= unix.O_DIRECT
	}
	return os.OpenFile(path, flags, fileMode)
}

// clearDirect lets further writes to f go through the page cache.
func clearDirect(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	return os.NewSyscallError("fcntl", err)
}

// syncData makes the file's bytes and size durable, and leaves out its times.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
