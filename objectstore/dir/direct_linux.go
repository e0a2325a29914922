package dir

import (
	"os"

	"golang.org/x/sys/unix"
)

// flagDirect opens a file past the page cache. File systems that cannot do that refuse with EINVAL there, or at the first read or write.
const flagDirect = unix.O_DIRECT

// readAt is pread(2).
func readAt(f *os.File, p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(f.Fd()), p, off)
		if err != unix.EINTR {
			return max(n, 0), os.NewSyscallError("pread", err)
		}
	}
}

// clearDirect lets further reads and writes of f go through the page cache.
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
