// Package dir is an object store in a folder: an object is a file of the same name below it.
//
// It is what `varve dev` and the benchmark use, and good for a file system that several agents share on one machine.
// A Put writes a temporary file, syncs it, links it under its final name (which fails if one is there, and so decides
// between racing writers, in other processes too), and syncs the folder: an object that can be seen is whole, and an
// acknowledged one survives a loss of power. Temporary files live in a folder per opened store, under a name that no
// object can have:
//
//	folder/wal/7/000001        an object
//	folder/~put/K3UX…/17       a Put that is under way
//
// The folder of a store is locked while its process lives; [Open] removes the folders that nobody holds, and with them
// what crashed Puts left. Folders of objects stay when their last object is deleted: removing one would race with a
// Put that has just made sure of it.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/varve-io/varve/objectstore"
)

// Store implements [objectstore.Store]. It has no Close: it keeps one descriptor open, the lock of its temporary
// folder, which the garbage collector closes with it.
type Store struct {
	root    string // absolute
	temp    string // absolute; this store's own folder below tempFolder
	lock    *os.File
	tempSeq atomic.Uint64
	writes  *bufferPool // apart, so that consumers do not wait for uploads
	reads   *bufferPool

	mu      sync.Mutex
	folders map[string]struct{} // relative paths of folders whose entry in their parent is durable
}

var _ objectstore.Store = (*Store)(nil)

// foldersMax bounds what a store remembers of its folders; beyond it, it starts anew, at the price of a sync for each.
const foldersMax = 4096

// Open returns the store in the folder path, which it creates if it is not there. It removes temporary files that
// crashed processes left. Several stores, in several processes, may be open on one folder.
func Open(path string) (*Store, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open folder %s: %w", path, err)
	}
	if err := makeFolders(root); err != nil {
		return nil, fmt.Errorf("open folder %s: %w", root, err)
	}
	s := &Store{root: root, writes: newBufferPool(), reads: newBufferPool(), folders: make(map[string]struct{})}
	if err := s.openTemp(); err != nil {
		return nil, fmt.Errorf("open folder %s: %w", root, err)
	}
	return s, nil
}

// String implements [objectstore.Store].
func (s *Store) String() string { return "file://" + filepath.ToSlash(s.root) }

// Get implements [objectstore.Store]. It opens the file for each call: 10 us, against 100 us and more for reading a
// block, so that a cache of open files, and its race with deletion, does not pay.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	if err := objectstore.CheckGet(name, off); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("get %s: %w", name, err)
	}
	if len(p) == 0 {
		return nil
	}
	f, direct, err := openDirect(s.path(name), os.O_RDONLY, len(p) >= directBytesMin)
	if err != nil {
		return fail("get", name, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if err := s.read(ctx, f, direct, p, off); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("get %s: %d bytes from %d pass the object's end: %w", name, len(p), off, objectstore.ErrDenied)
		}
		return fail("get", name, err)
	}
	return nil
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	if err := objectstore.CheckName("stat", name); err != nil {
		return objectstore.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return objectstore.Info{}, fmt.Errorf("stat %s: %w", name, err)
	}
	info, err := os.Stat(s.path(name))
	if err != nil {
		return objectstore.Info{}, fail("stat", name, err)
	}
	if !info.Mode().IsRegular() {
		return objectstore.Info{}, fmt.Errorf("stat %s: %w", name, objectstore.ErrNotFound)
	}
	return objectstore.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := objectstore.CheckName("delete", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	// Not os.Remove, which would remove an empty folder of that name.
	err := syscall.Unlink(s.path(name))
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
		return nil
	default:
		return fail("delete", name, err)
	}
}

// List implements [objectstore.Store]. It reads one folder at a time.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		if !objectstore.ValidPrefix(prefix) {
			return
		}
		folder := ""
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			folder = prefix[:i]
		}
		w := walk{ctx: ctx, store: s, prefix: prefix, after: after, yield: yield}
		if err := w.folder(folder); err != nil && !errors.Is(err, errStopped) {
			yield(objectstore.Info{}, err)
		}
	}
}

// errStopped ends a walk whose caller has had enough.
var errStopped = errors.New("stopped")

// walk is one List under way.
type walk struct {
	ctx           context.Context //nolint:containedctx // lives as long as one call
	store         *Store
	prefix, after string
	yield         func(objectstore.Info, error) bool
}

// folder yields what matches in the folder of that name ("" is the root), in the order of names.
func (w *walk) folder(folder string) error {
	if err := w.ctx.Err(); err != nil {
		return fmt.Errorf("list %q: %w", w.prefix, err)
	}
	entries, err := os.ReadDir(w.store.path(folder))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fail("list", w.prefix, err)
	}
	// In the order of whole names a folder stands where its slash puts it: "a-b", "a/b", "a0".
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(key(a), key(b)) })
	for _, entry := range entries {
		name := entry.Name()
		if folder != "" {
			name = folder + "/" + name
		}
		if !objectstore.ValidName(name) {
			continue // temporary files, and what others put there
		}
		if err := w.entry(name, entry); err != nil {
			return err
		}
	}
	return nil
}

// entry yields the object of that name, or what matches in the folder of that name.
func (w *walk) entry(name string, entry fs.DirEntry) error {
	if entry.IsDir() {
		name += "/"
		// Every name in it starts with name. Skip it if none can match or if all are at or before after.
		if !strings.HasPrefix(name, w.prefix) && !strings.HasPrefix(w.prefix, name) {
			return nil
		}
		if name < w.after && !strings.HasPrefix(w.after, name) {
			return nil
		}
		return w.folder(strings.TrimSuffix(name, "/"))
	}
	if !strings.HasPrefix(name, w.prefix) || name <= w.after || !entry.Type().IsRegular() {
		return nil
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return fail("list", w.prefix, err)
	}
	if !w.yield(objectstore.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil) {
		return errStopped
	}
	return nil
}

// key is what a folder's entry sorts by.
func key(entry fs.DirEntry) string {
	if entry.IsDir() {
		return entry.Name() + "/"
	}
	return entry.Name()
}

func (s *Store) path(name string) string {
	return filepath.Join(s.root, filepath.FromSlash(name))
}

// fail wraps an error of the file system in its kind. What it says of a write is that nothing happened; where that is
// not so, the caller says it.
func fail(op, name string, err error) error {
	kind := objectstore.ErrUnavailable
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		kind = objectstore.ErrNotFound
	case errors.Is(err, fs.ErrExist):
		kind = objectstore.ErrExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = objectstore.ErrDenied
	}
	return fmt.Errorf("%s %s: %w: %w", op, name, kind, err)
}
