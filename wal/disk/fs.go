package disk

import (
	"errors"
	"io"
)

// ErrFull: the file system has no room (or no quota) left.
var ErrFull = errors.New("disk full")

// FS is what a store needs of a file system: one folder of files, without sub-folders. [Folder] is the real one; disktest
// has one that can crash. Its methods may be called concurrently.
type FS interface {
	// Open opens the file of that name for reading and writing; create makes it, empty, if it is not there. With
	// direct, writes pass the page cache by where the file system can; their memory, place and length are then
	// multiples of 4 KiB. A name created is durable only after SyncFolder.
	Open(name string, create, direct bool) (File, error)
	// Names lists the folder's files, sorted.
	Names() ([]string, error)
	// Rename replaces what is at to. Durable after SyncFolder.
	Rename(from, to string) error
	// Exchange gives each of two files the other's name, at once. A file system that cannot do that takes it as Rename. Durable after SyncFolder.
	Exchange(from, to string) error
	// Remove deletes a file. Durable after SyncFolder.
	Remove(name string) error
	// SyncFolder makes creations, renames, exchanges and removals durable.
	SyncFolder() error
	// Lock takes the folder for this process until the result is closed. It fails at once if another has it.
	Lock(name string) (io.Closer, error)
	// Boot identifies the machine's current boot: what was not synced before another boot may be lost.
	Boot() string
}

// File is an open file. ReadAt may be called concurrently with everything; writes come from one goroutine at a time.
type File interface {
	io.ReaderAt
	io.Closer
	// WriteBuffers writes bufs, one behind the other, from place off. With durable it returns when they are durable,
	// at the cost of one device sync. After an error any part may be written, and what was not durable before may be
	// lost: the file must not be written any more. A full disk is ErrFull. The buffers are not kept.
	WriteBuffers(bufs [][]byte, off int64, durable bool) error
	// Sync makes all earlier writes durable, and the file's length.
	Sync() error
	// Bytes gives the file's length.
	Bytes() (int64, error)
}
