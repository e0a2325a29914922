package diskcache

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openFile makes an empty file, or empties the one that is there, past the page cache if the file system can: some refuse to open it so, and some only to read and write.
func openFile(path string) (file, error) {
	const flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, fileMode)
	if err == nil {
		if err = try(f); !errors.Is(err, unix.EINVAL) {
			return osFile{f}, nil // whatever else it is: it may pass
		}
		_ = f.Close() // nothing is in it
	}
	if !errors.Is(err, unix.EINVAL) {
		return nil, err
	}
	if f, err = os.OpenFile(path, flags, fileMode); err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// try writes and reads a sector.
func try(f *os.File) error {
	sector := aligned(sectorBytes)
	if _, err := f.WriteAt(sector, 0); err != nil {
		return err
	}
	_, err := f.ReadAt(sector, 0)
	return err
}

// Free implements file.
func (f osFile) Free() (int64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(int(f.Fd()), &st)
		if err != unix.EINTR {
			return int64(st.Bavail) * st.Bsize, os.NewSyscallError("fstatfs", err) //nolint:gosec // bytes of a disk
		}
	}
}
