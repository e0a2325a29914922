// Package objectstore is the contract between Varve and a bucket: immutable objects under names that stand for
// fixed bytes.
//
// An object is put once, as a whole, with [Store.Put], which refuses to replace what is there
// ([ErrExists]); it is read by byte ranges and, in the end, deleted. Nothing is ever overwritten, so a reader may
// cache what it got for as long as it likes.
//
// Implementations live in rooms of their own (s3, minio, dir, mem) and pass one suite, storetest. Errors have a
// kind that says what the caller can do; see [ErrNotFound], [ErrExists], [ErrUnknownOutcome], [ErrUnavailable] and
// [ErrDenied].
package objectstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// Kinds of errors. An implementation wraps exactly one of them (or a context's error, if the caller's context ended
// before anything was sent) so that errors.Is finds it.
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
	// ErrDenied: the store refuses by configuration (no such bucket, access denied, bad range). Trying again
	// without an operator does not help, though the operator may be at work.
	ErrDenied = errors.New("object store refused")
)

// Info describes one object.
type Info struct {
	Name     string    // relative to the store's prefix
	Size     int64     // bytes
	Modified time.Time // by the store's clock, to the second or better
}

// Store is a bucket, or a prefix of one. All methods may be called concurrently.
//
// Names are slash-separated, made of [A-Za-z0-9._=-], at most 512 bytes, without empty, "." or ".." parts
// ([ValidName]).
type Store interface {
	// Put stores the object of that name, whole or not at all, and durably, unless one exists: then ErrExists,
	// and the object that is there stays as it is. Body is read from its start and may be read more than once (retries); it is
	// not kept after Put returned.
	Put(ctx context.Context, name string, body Body) error

	// Get reads len(p) bytes from offset off of the object into p. A range that passes the object's end is
	// ErrDenied, as nothing but a damaged reference asks for one.
	Get(ctx context.Context, name string, off int64, p []byte) error

	// Stat returns size and time of the object.
	Stat(ctx context.Context, name string) (Info, error)

	// List yields the objects whose name starts with prefix, in ascending byte order of names, from the first name that is
	// greater than after ("" means all). It stops at the first error, which it yields with a zero Info.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]

	// Delete removes the object. Deleting what is not there succeeds.
	Delete(ctx context.Context, name string) error

	// String names the store for people: its URL without secrets.
	String() string
}

// Body is the content of an object to be put: slices that stand one after the other, so that what was gathered
// from many places need not be copied into one. The zero Body is an empty object.
type Body struct {
	Parts [][]byte // not to be changed until Put returned
	Size  int64    // sum of the lengths of Parts
}

// Bytes returns a Body of one slice.
func Bytes(b []byte) Body {
	return Body{Parts: [][]byte{b}, Size: int64(len(b))}
}

// Reader returns a new reader over the body, which also seeks and writes itself to an io.Writer without copying.
func (b Body) Reader() *BodyReader {
	return &BodyReader{body: b}
}

// BodyReader reads a [Body] as one stream. It is not safe for concurrent use.
type BodyReader struct {
	body Body
	part int   // index of the part that holds pos
	off  int   // offset in that part
	pos  int64 // position in the whole
}

var (
	_ io.ReadSeeker = (*BodyReader)(nil)
	_ io.WriterTo   = (*BodyReader)(nil)
)

// Read implements io.Reader.
func (r *BodyReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && r.part < len(r.body.Parts) {
		part := r.body.Parts[r.part]
		c := copy(p[n:], part[r.off:])
		n += c
		r.advance(c)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// advance moves the reader n bytes on, which all lie in the current part.
func (r *BodyReader) advance(n int) {
	r.off += n
	r.pos += int64(n)
	for r.part < len(r.body.Parts) && r.off == len(r.body.Parts[r.part]) {
		r.part++
		r.off = 0
	}
}

// WriteTo implements io.WriterTo.
func (r *BodyReader) WriteTo(w io.Writer) (int64, error) {
	start := r.pos
	for r.part < len(r.body.Parts) {
		n, err := w.Write(r.body.Parts[r.part][r.off:])
		r.advance(n)
		if err != nil {
			return r.pos - start, err
		}
	}
	return r.pos - start, nil
}

// Seek implements io.Seeker.
func (r *BodyReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.body.Size
	}
	if offset < 0 || offset > r.body.Size {
		return 0, errors.New("seek body: outside of the object")
	}
	r.part, r.off, r.pos = 0, 0, 0
	for r.part < len(r.body.Parts) && r.pos < offset {
		left := offset - r.pos
		r.advance(int(min(left, int64(len(r.body.Parts[r.part])))))
	}
	r.advance(0)
	return r.pos, nil
}

// ValidName reports whether name may name an object.
func ValidName(name string) bool {
	if name == "" || len(name) > 512 {
		return false
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '/' {
			part := name[start:i]
			if part == "" || part == "." || part == ".." {
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
