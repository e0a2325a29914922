package dir

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	tempFolder = "~put" // not a part of any object's name: those have no tilde
	folderMode = 0o755
	fileMode   = 0o644
)

// openTemp makes and locks this store's folder for temporary files, and removes those of stores that are gone.
func (s *Store) openTemp() error {
	all := filepath.Join(s.root, tempFolder)
	if err := os.Mkdir(all, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := removeAbandoned(all); err != nil {
		return err
	}
	for {
		temp := filepath.Join(all, rand.Text())
		if err := os.Mkdir(temp, folderMode); err != nil {
			return err
		}
		lock, err := lockFolder(temp)
		switch {
		case err != nil && !errors.Is(err, errLocked) && !errors.Is(err, fs.ErrNotExist):
			return err
		case err != nil:
			continue // another Open took it for abandoned before it was locked
		}
		// The other may also have locked it, removed it and let go before this lock.
		if _, err := os.Stat(temp); err != nil {
			lock.Close() //nolint:errcheck // a lock on nothing
			continue
		}
		s.temp, s.lock = temp, lock
		return nil
	}
}

// removeAbandoned removes the folders below all whose store is gone, with their files.
func removeAbandoned(all string) error {
	entries, err := os.ReadDir(all)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		temp := filepath.Join(all, entry.Name())
		lock, err := lockFolder(temp)
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(temp)
		lock.Close() //nolint:errcheck // only unlocks
		if err != nil {
			return err
		}
	}
	return nil
}

// errLocked: a living store holds the folder.
var errLocked = errors.New("folder is in use")

// lockFolder takes the folder's lock, which the kernel releases when the file is closed or its process ends.
func lockFolder(folder string) (*os.File, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close() //nolint:errcheck // opened for reading
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return f, nil
}

// makeFolders is os.MkdirAll, durably: it syncs the parent of each folder that it makes.
func makeFolders(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeFolders(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

// syncFolder makes the folder's entries durable.
func syncFolder(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}
