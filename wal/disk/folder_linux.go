package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder is the FS of a real folder, which must exist.
type Folder string

// Open implements FS. Direct I/O that the file system refuses becomes buffered I/O.
func (d Folder) Open(name string, create, direct bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	path := filepath.Join(string(d), name)
	if direct {
		f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o640)
		if err == nil {
			return newOSFile(f), nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return nil, fullError(err)
		}
	}
	f, err := os.OpenFile(path, flags, 0o640)
	if err != nil {
		return nil, fullError(err)
	}
	return newOSFile(f), nil
}

// Names implements FS.
func (d Folder) Names() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Rename implements FS.
func (d Folder) Rename(from, to string) error {
	return fullError(os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to)))
}

// Exchange implements FS, by renameat2(2). NFS and some others have no such thing.
func (d Folder) Exchange(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(string(d), from), unix.AT_FDCWD, filepath.Join(string(d), to), unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM): // the kernel, the file system, or a filter of system calls
		return d.Rename(from, to)
	}
	if err != nil {
		return fullError(fmt.Errorf("exchange %s and %s: %w", from, to, err))
	}
	return nil
}

// Remove implements FS.
func (d Folder) Remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

// SyncFolder implements FS.
func (d Folder) SyncFolder() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(fullError(f.Sync()), f.Close())
}

// Lock implements FS by flock(2), which ends with the process however it ends. The file says who holds it.
func (d Folder) Lock(name string) (io.Closer, error) {
	path := filepath.Join(string(d), name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fullError(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		err = errors.Join(err, f.Close())
		return nil, fmt.Errorf("%s is held by process %s: %w", path, strings.TrimSpace(string(holder[:n])), err)
	}
	if err := f.Truncate(0); err == nil {
		// Only a hint for the reader of the error above; the lock is the flock.
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

// Boot implements FS.
func (d Folder) Boot() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// osFile is a File of the operating system.
type osFile struct {
	*os.File
	fd int
	// twoCalls says that the file system does not know RWF_DSYNC: write, then fdatasync.
	twoCalls bool
}

func newOSFile(f *os.File) *osFile { return &osFile{File: f, fd: int(f.Fd())} }

// WriteBuffers implements File by pwritev2 with RWF_DSYNC: one system call, and on a device that can force a single write
// through its cache one round trip. Into blocks that were written before, nothing else needs to become durable.
func (f *osFile) WriteBuffers(bufs [][]byte, off int64, durable bool) error {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	for written := 0; written < total; {
		flags := 0
		if durable && !f.twoCalls {
			flags = unix.RWF_DSYNC
		}
		n, err := unix.Pwritev2(f.fd, bufs, off+int64(written), flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP) && durable && !f.twoCalls:
			f.twoCalls = true
			continue
		case err != nil:
			return f.failed("write", off, err)
		case n == 0:
			return f.failed("write", off, io.ErrShortWrite)
		}
		if written += n; written < total {
			bufs = after(bufs, n)
		}
	}
	if durable && f.twoCalls {
		return f.failed("sync", off, unix.Fdatasync(f.fd))
	}
	return nil
}

// after gives the rest of bufs behind their first n bytes. A short write is rare, so that it may allocate.
func after(bufs [][]byte, n int) [][]byte {
	for i, b := range bufs {
		if n < len(b) {
			return append([][]byte{b[n:]}, bufs[i+1:]...)
		}
		n -= len(b)
	}
	return nil
}

// Sync implements File.
func (f *osFile) Sync() error { return f.failed("sync", 0, f.File.Sync()) }

// Bytes implements File.
func (f *osFile) Bytes() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) failed(operation string, off int64, err error) error {
	if err == nil {
		return nil
	}
	return fullError(fmt.Errorf("%s %s at byte %d: %w", operation, f.Name(), off, err))
}

func fullError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
