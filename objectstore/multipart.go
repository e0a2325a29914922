package objectstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"time"
)

// Multipart is a [Store] that can put an object as a multipart upload: begin, parts side by side, complete. Nothing is
// under the object's name until it is complete, and completion refuses if an object is there, as any Put does. That it
// does, [ProbeMultipart] has to see first: not all servers do, and without it the object would be replaced.
//
// Who dies between begin and completion leaves parts that cost money and that no list of objects shows. They are
// removed through [Uploads], or by a rule of the bucket.
type Multipart interface {
	Store
	Uploads

	// SetMultipart says whether Put uploads bodies over [PartBytesMax] in parts from now on, which it does not before.
	SetMultipart(on bool)

	// PutMultipart is Put, in parts however small the body is, which must not be empty.
	PutMultipart(ctx context.Context, name string, body Body) error

	// PutRequests returns how many requests Put sends for a body of so many bytes, if none has to be sent again.
	PutRequests(size int64) int64
}

// Upload is a multipart upload that was begun and is neither complete nor aborted.
type Upload struct {
	Name  string // of the object
	ID    string // which the store gave it
	Began time.Time
}

// Uploads is what is left of the uploads of a store.
type Uploads interface {
	// Uploads yields the uploads of objects of this store, in no order, and stops at the first error, which it yields
	// with a zero Upload. The list need not be complete: MinIO has those in it that were begun at the machine that
	// answers, since it started.
	Uploads(ctx context.Context) iter.Seq2[Upload, error]

	// Abort removes an upload and its parts. An upload that is not there is no error. Whoever is still at it gets
	// ErrUnavailable, or worse: a completion that comes at the same moment may leave a damaged object (MinIO), or be
	// told that it succeeded if another object of that name is there (versitygw). So it is for uploads that are so
	// old that nobody can be at them.
	Abort(ctx context.Context, upload Upload) error
}

// ProbeMultipart checks that a store that is [Multipart] carries out multipart uploads, and refuses to complete one if an
// object is there, and makes Put use them then. It leaves other stores as they are. It works on a small object of its
// own, as [Probe] does, which must have succeeded before.
//
// A store that cannot do it gives an error of kind [ErrDenied]. It can be used, as after any other error: it gets each object in one request.
func ProbeMultipart(ctx context.Context, store Store) (err error) {
	s, ok := store.(Multipart)
	if !ok {
		return nil
	}
	s.SetMultipart(false)
	name := ProbePrefix + rand.Text()
	first, second := []byte("first of two uploads"), []byte("second of two uploads")
	err = s.PutMultipart(ctx, name, Bytes(first))
	if err != nil && !errors.Is(err, ErrUnknownOutcome) {
		return fmt.Errorf("probe multipart uploads to %s: %w", store, err)
	}
	defer func() {
		if cleanErr := cleanProbe(ctx, store, name); err == nil && cleanErr != nil {
			err = cleanErr
		}
		if err != nil {
			err = fmt.Errorf("probe multipart uploads to %s: %w", store, err)
			return
		}
		s.SetMultipart(true)
	}()

	if err != nil {
		return err
	}
	switch err := s.PutMultipart(ctx, name, Bytes(second)); {
	case err == nil:
		return fmt.Errorf("an upload was completed over %s, want a refusal; the store ignores If-None-Match there: %w", name, ErrDenied)
	case !errors.Is(err, ErrExists):
		return fmt.Errorf("a second upload, want a refusal because the object exists: %w", err)
	}
	got := make([]byte, len(first))
	if err := s.Get(ctx, name, 0, got); err != nil {
		return err
	}
	if !bytes.Equal(got, first) {
		return fmt.Errorf("%s reads %q after a refused upload, want %q: %w", name, got, first, ErrDenied)
	}
	return nil
}
