package s3http

import (
	"context"
	"fmt"
	"net/http"

	"github.com/varve-io/varve/objectstore"
)

// Answer is the last answer of a failed call: the HTTP status, or 0 if there was none, and S3's error code, or "".
type Answer struct {
	Status int
	Code   string
}

// S3's error codes that mean something of their own here.
const (
	codeNoBucket       = "NoSuchBucket"
	codeSlowDown       = "SlowDown"
	codeRequestTimeout = "RequestTimeout"
	// codeIsFolder is versitygw's answer to a PUT whose last step failed, often because a DELETE has just removed the
	// folder that its last object was in. It did nothing.
	codeIsFolder = "ExistingObjectIsDirectory"
)

// CodeNoUpload is S3's error code for a multipart upload that somebody has aborted. Or it is complete, after a completion
// whose answer was lost, which is in doubt by its trail.
const CodeNoUpload = "NoSuchUpload"

// lostRace reports whether the answer to a conditional PUT says that an object of that name is there.
func lostRace(answer Answer) bool {
	switch answer.Status {
	case http.StatusPreconditionFailed:
		return true
	case http.StatusConflict:
		switch answer.Code {
		case codeIsFolder, "ObjectParentIsFile", "XMinioParentIsObject": // versitygw, versitygw, MinIO
			return false // a part of the name is in the way
		}
		return true
	default:
		return false
	}
}

// ReadError returns the error, with its kind, of a Get, Stat or List that failed with err.
func ReadError(ctx context.Context, op, name string, answer Answer, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w", op, name, ctx.Err())
	}
	kind := kindOf(answer)
	if answer.Status == http.StatusNotFound && answer.Code != codeNoBucket {
		kind = objectstore.ErrNotFound
	}
	return fmt.Errorf("%s %s: %w: %w", op, name, kind, err)
}

// WriteError returns the error, with its kind, of a Put or Delete that failed with err.
func (t *Trail) WriteError(ctx context.Context, op, name string, answer Answer, err error) error {
	sent, unsure, taken := t.outcome()
	kind := kindOf(answer)
	switch {
	case lostRace(answer):
		// Even if an attempt before it is in doubt: an object of that name is there now, and Put's contract says that it
		// may be the caller's own.
		kind = objectstore.ErrExists
	case unsure, taken:
		kind = objectstore.ErrUnknownOutcome
	case ctx.Err() != nil && !sent:
		return fmt.Errorf("%s %s: %w", op, name, ctx.Err())
	}
	return fmt.Errorf("%s %s: %w: %w", op, name, kind, err)
}

// stepError returns the error, with its kind, of a request of a Put that can have no effect on the object.
func stepError(ctx context.Context, step, name string, answer Answer, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("put %s: %s: %w", name, step, ctx.Err())
	}
	return fmt.Errorf("put %s: %s: %w: %w", name, step, kindOf(answer), err)
}

// kindOf is the kind of an answer that is no proof that the object exists or does not.
func kindOf(answer Answer) error {
	switch answer.Status {
	case 0, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return objectstore.ErrUnavailable
	case http.StatusNotImplemented:
		return objectstore.ErrDenied
	}
	switch answer.Code {
	case codeSlowDown, codeRequestTimeout, codeIsFolder, CodeNoUpload:
		return objectstore.ErrUnavailable
	}
	if answer.Status >= http.StatusInternalServerError {
		return objectstore.ErrUnavailable
	}
	return objectstore.ErrDenied
}

// CheckRange returns an error of kind ErrDenied if the answer to a ranged GET does not hold exactly n bytes from off, by
// its headers Content-Range and Content-Length: the range passes the object's end, or the store ignores ranges.
func CheckRange(name string, off int64, n int, contentRange string, contentLength int64) error {
	first := int64(-1)
	_, err := fmt.Sscanf(contentRange, "bytes %d-", &first)
	if err == nil && first == off && contentLength == int64(n) {
		return nil
	}
	return fmt.Errorf("get %s: seen range %q of %d bytes, want %d bytes from %d: %w",
		name, contentRange, contentLength, n, off, objectstore.ErrDenied)
}
