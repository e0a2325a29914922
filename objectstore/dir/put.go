package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/varve-io/varve/objectstore"
)

// directBytesMin is the smallest body or range that is written or read past the page cache. Fresh page cache costs two to ten times the
// CPU of direct I/O, and what is written or read here is read again from memory above this store, if at all soon; less is not
// worth the padding.
const directBytesMin = 64 << 10

// Put implements [objectstore.Store].
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	if err := objectstore.CheckPut(name, body); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	temp := filepath.Join(s.temp, strconv.FormatUint(s.tempSeq.Add(1), 10))
	defer os.Remove(temp) //nolint:errcheck // what stays is removed by the next Open
	if err := s.writeTemp(ctx, temp, body); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("put %s: %w", name, ctx.Err())
		}
		// Whatever it is, of the object itself nothing happened.
		return fmt.Errorf("put %s: %w: %w", name, writeKind(err), err)
	}
	return s.publish(temp, name)
}

// writeTemp writes the body to a new file and syncs it.
func (s *Store) writeTemp(ctx context.Context, temp string, body objectstore.Body) (err error) {
	f, direct, err := openDirect(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, body.Size >= directBytesMin)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	if direct {
		err = s.writeDirect(ctx, f, body)
	} else {
		_, err = body.Reader().WriteTo(f)
	}
	if err != nil {
		return err
	}
	return syncData(f)
}

// openDirect opens a file past the page cache, if that is wanted and the file system can; direct says whether it did. Some refuse only the first read or write.
func openDirect(path string, flags int, want bool) (f *os.File, direct bool, err error) {
	if want {
		if f, err = os.OpenFile(path, flags|flagDirect, fileMode); !errors.Is(err, syscall.EINVAL) {
			return f, true, err
		}
	}
	f, err = os.OpenFile(path, flags, fileMode)
	return f, false, err
}

// writeDirect writes the body past the page cache: through aligned memory, in whole sectors, the last of them padded
// and cut off afterwards. If the file system turns out not to allow it, it goes on through the page cache.
func (s *Store) writeDirect(ctx context.Context, f *os.File, body objectstore.Body) error {
	buffer, err := s.writes.take(ctx)
	if err != nil {
		return err
	}
	defer s.writes.put(buffer)

	r := body.Reader()
	padded := false
	for off := int64(0); off < body.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buffer[:min(int64(len(buffer)), body.Size-off)])
		if err != nil {
			return err
		}
		chunk := buffer[:alignUp(n)]
		clear(chunk[n:])
		padded = padded || len(chunk) > n
		if _, err = f.WriteAt(chunk, off); errors.Is(err, syscall.EINVAL) {
			if err = clearDirect(f); err == nil {
				_, err = f.WriteAt(chunk, off)
			}
		}
		if err != nil {
			return err
		}
		off += int64(n)
	}
	if padded {
		return f.Truncate(body.Size)
	}
	return nil
}

// read fills p from a file that was opened direct or not.
func (s *Store) read(ctx context.Context, f *os.File, direct bool, p []byte, off int64) error {
	if direct {
		err := s.readDirect(ctx, f, p, off)
		if !errors.Is(err, syscall.EINVAL) {
			return err
		}
		if err := clearDirect(f); err != nil {
			return err
		}
	}
	_, err := f.ReadAt(p, off)
	return err
}

// readDirect fills p past the page cache: whole sectors, through aligned memory.
func (s *Store) readDirect(ctx context.Context, f *os.File, p []byte, off int64) error {
	buffer, err := s.reads.take(ctx)
	if err != nil {
		return err
	}
	defer s.reads.put(buffer)
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		skip := int(off % sectorBytes)
		sectors := buffer[:min(len(buffer), alignUp(skip+len(p)))]
		// One call, and no second one for what is missing: that would begin within a sector.
		n, err := readAt(f, sectors, off-int64(skip))
		if err != nil {
			return err
		}
		if n <= skip {
			return io.EOF
		}
		n = copy(p, sectors[skip:n])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// publish gives the synced file temp its name, unless the name is taken, and makes that durable.
func (s *Store) publish(temp, name string) error {
	final := s.path(name)
	folder := path.Dir(name)
	if err := s.makeFolder(folder); err != nil {
		return fmt.Errorf("put %s: %w: %w", name, writeKind(err), err)
	}
	err := os.Link(temp, final)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the folder behind our back. What we know of folders is not worth much then.
		s.forgetFolders()
		if err := s.makeFolder(folder); err != nil {
			return fmt.Errorf("put %s: %w: %w", name, writeKind(err), err)
		}
		err = os.Link(temp, final)
	}
	exists := errors.Is(err, fs.ErrExist)
	if err != nil && !exists {
		return fmt.Errorf("put %s: %w: %w", name, writeKind(err), err)
	}
	// A loser syncs too: it may find its own bytes there and report success, while the winner has not synced yet.
	if err := syncFolder(filepath.Dir(final)); err != nil {
		return fmt.Errorf("put %s: sync folder: %w: %w", name, objectstore.ErrUnknownOutcome, err)
	}
	if exists {
		return fmt.Errorf("put %s: %w", name, objectstore.ErrExists)
	}
	return nil
}

// makeFolder makes sure that the folder (a relative, slash-separated path, "." for the root) exists durably.
func (s *Store) makeFolder(folder string) error {
	if folder == "." || s.knowsFolder(folder) {
		return nil
	}
	parent := path.Dir(folder)
	if err := s.makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(s.path(folder), folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also if it was there: whoever made it may not have synced it yet.
	if err := syncFolder(s.path(parent)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.folders) >= foldersMax {
		clear(s.folders)
	}
	s.folders[folder] = struct{}{}
	return nil
}

func (s *Store) knowsFolder(folder string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.folders[folder]
	return ok
}

func (s *Store) forgetFolders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.folders)
}

// writeKind is the kind of an error of a Put that changed nothing. That something is not found or in the way is not for
// the caller to handle here: it means that a folder is a file, or that the store's own folder was removed.
func writeKind(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrExist),
		errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		return objectstore.ErrDenied
	default:
		return objectstore.ErrUnavailable
	}
}
