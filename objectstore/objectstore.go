// Package objectstore is the contract between Varve and a bucket: immutable objects under names that stand for
// fixed bytes.
//
// An object is put once, as a whole, with [Store.Put], which refuses to replace what is there
// ([ErrExists]); it is read by byte ranges and, in the end, deleted. Nothing is ever overwritten, so a reader may
// cache what it got for as long as it likes.
//
// In s3 and minio a large object goes in parts, by a multipart upload, which takes effect with its last request alone:
// see [Multipart], also for what is left of it when whoever uploads dies.
//
// Implementations live in rooms of their own (s3, minio, dir, mem), pass one suite (storetest) and are opened by
// URL through the room bucket. The rooms fault, metered and cache wrap any of them. Errors have a kind that says what
// the caller can do; see [ErrNotFound], [ErrExists], [ErrUnknownOutcome], [ErrUnavailable] and [ErrDenied].
//
//	store, err := bucket.Open(ctx, "s3://lake/varve?region=eu-central-1")
//	err = objectstore.Probe(ctx, store)
//	err = objectstore.ProbeMultipart(ctx, store)
//	err = store.Put(ctx, "wal/7/000001", objectstore.Bytes(segment))
//	err = store.Get(ctx, "wal/7/000001", off, p)
package objectstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Limits of the contract.
const (
	// ObjectBytesMax is the largest object. Whoever makes one has it in memory as a whole.
	ObjectBytesMax = 64 << 20
	// PartBytesMax is the largest object that a [Multipart] store sends as one request, and the largest part of a
	// larger one. A part costs a request, and an upload two more. So what is flushed, which is 16 MiB with what
	// describes it, goes at once: somebody waits for it, and there is much of it. What is merged, mostly 48 MiB,
	// goes in three parts side by side. Only the last part may be below 5 MiB, for S3, and may be of another size
	// than the others, for some servers that are like it.
	PartBytesMax = 20 << 20
	// NameBytesMax is the longest name.
	NameBytesMax = 512
	// NamePartBytesMax is the longest part of a name between slashes: stores that keep objects in a file system
	// (dir, MinIO, versitygw) take no longer file names.
	NamePartBytesMax = 255
)

// Kinds of errors. An implementation wraps exactly one of them so that errors.Is finds it. The exception is a call whose
// context ended: a read, or a write of which nothing was sent that could take effect, returns the context's error alone; a
// write under way returns ErrUnknownOutcome (and may wrap the context's error too).
var (
	// ErrNotFound: no object of that name. Final.
	ErrNotFound = errors.New("object not found")
	// ErrExists: a conditional Put lost; an object of that name is there (S3's 412 and 409). The bytes there may
	// or may not be the caller's own, from an attempt whose answer was lost: compare checksums.
	ErrExists = errors.New("object exists")
	// ErrUnavailable: nothing happened, or nothing that matters (a read failed, 503, SlowDown, connection refused
	// before sending). Try again later.
	ErrUnavailable = errors.New("object store unavailable")
	// ErrUnknownOutcome: a Put or Delete may or may not have happened, or may yet. Put the same bytes again.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrDenied: the store refuses by configuration (no such bucket, access denied) or by contract (bad name, bad range, body
	// too large). Trying again without an operator does not help, though the operator may be at work.
	ErrDenied = errors.New("object store refused")
)

// Info describes one object.
type Info struct {
	Name     string    // relative to the store's prefix
	Size     int64     // bytes
	Modified time.Time // by the store's clock, to the second or better
}

// Store is a bucket, or a prefix of one. All methods may be called concurrently. A call lasts as long as its context
// lets it: give each a deadline.
//
// Names are slash-separated, made of [A-Za-z0-9._=-], at most [NameBytesMax] bytes, without empty, "." or ".." parts
// ([ValidName]). No object's name may be a folder of another's ("a" and "a/b"): stores in a file system cannot hold
// both, and what Put does with the second is not defined.
type Store interface {
	// Put stores the object of that name, whole or not at all, and durably, unless one exists: then ErrExists, and
	// the object that is there stays as it is. Body is read from its start and may be read more than once (retries);
	// it is not kept after Put returned. That may be some seconds after the context ended, in which a [Multipart]
	// store removes the parts of what failed.
	Put(ctx context.Context, name string, body Body) error

	// Get reads len(p) bytes from offset off of the object into p. A range that passes the object's end is
	// ErrDenied, as nothing but a damaged reference asks for one. An empty p is answered without asking the store.
	// After an error the content of p is undefined.
	Get(ctx context.Context, name string, off int64, p []byte) error

	// Stat returns size and time of the object.
	Stat(ctx context.Context, name string) (Info, error)

	// List yields the objects whose name starts with prefix, in ascending byte order of names, from the first name
	// that is greater than after ("" means all; the object named so need not exist). Prefix is a prefix of bytes, not
	// of parts: "a/b" finds "a/bc". A prefix that no name can have ([ValidPrefix]) gives an empty list. List stops at
	// the first error, which it yields with a zero Info. Objects that are put or deleted meanwhile may be missing or
	// present.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]

	// Delete removes the object. Deleting what is not there succeeds. A deletion may be undone by a crash of the
	// store's machine (dir does not sync it), so what deletes must come to the same conclusion again.
	Delete(ctx context.Context, name string) error

	// String names the store for people: its URL without secrets.
	String() string
}

// ValidName reports whether name may name an object.
func ValidName(name string) bool {
	if name == "" || len(name) > NameBytesMax {
		return false
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '/' {
			part := name[start:i]
			if part == "" || part == "." || part == ".." || len(part) > NamePartBytesMax {
				return false
			}
			start = i + 1
			continue
		}
		c := name[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '=' || c == '-'
		if !ok {
			return false
		}
	}
	return true
}

// ValidPrefix reports whether the name of an object may start with prefix.
func ValidPrefix(prefix string) bool {
	last := prefix
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		if !ValidName(prefix[:i]) {
			return false
		}
		last = prefix[i+1:]
	}
	return len(prefix) <= NameBytesMax && (last == "" || ValidName(last) || ValidName(last+"x"))
}

// CheckPut returns what every Put must refuse before it asks the store, with the kind [ErrDenied]: an invalid name,
// a body over [ObjectBytesMax], a body whose Size is not the sum of its parts. It is for implementations.
func CheckPut(name string, body Body) error {
	if !ValidName(name) {
		return fmt.Errorf("put %q: invalid name: %w", name, ErrDenied)
	}
	if body.Size > ObjectBytesMax {
		return fmt.Errorf("put %s: body of %d bytes, want at most %d: %w", name, body.Size, ObjectBytesMax, ErrDenied)
	}
	sum := int64(0)
	for _, part := range body.Parts {
		sum += int64(len(part))
	}
	if sum != body.Size {
		return fmt.Errorf("put %s: parts of %d bytes, want the body's size of %d: %w", name, sum, body.Size, ErrDenied)
	}
	return nil
}

// CheckGet returns what every Get must refuse before it asks the store, with the kind [ErrDenied]: an invalid name or
// a negative offset. It is for implementations.
func CheckGet(name string, off int64) error {
	if !ValidName(name) {
		return fmt.Errorf("get %q: invalid name: %w", name, ErrDenied)
	}
	if off < 0 {
		return fmt.Errorf("get %s: offset %d, want at least 0: %w", name, off, ErrDenied)
	}
	return nil
}

// CheckName returns an error of kind [ErrDenied] if name may not name an object. Op is for its message. It is for
// implementations.
func CheckName(op, name string) error {
	if !ValidName(name) {
		return fmt.Errorf("%s %q: invalid name: %w", op, name, ErrDenied)
	}
	return nil
}
