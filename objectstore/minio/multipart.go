package minio

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/internal/s3http"
)

// uploadsPage is how many uploads a request lists: the most that S3 gives.
const uploadsPage = 1000

// SetMultipart implements [objectstore.Multipart].
func (s *Store) SetMultipart(on bool) { s.multipart.Store(on) }

// PutRequests implements [objectstore.Multipart].
func (s *Store) PutRequests(size int64) int64 { return s3http.PutRequests(s.multipart.Load(), size) }

// PutMultipart implements [objectstore.Multipart].
func (s *Store) PutMultipart(ctx context.Context, name string, body objectstore.Body) error {
	if err := objectstore.CheckPut(name, body); err != nil {
		return err
	}
	return s3http.PutMultipart(ctx, &upload{store: s, key: s.key(name)}, name, body)
}

// Uploads implements [objectstore.Multipart]. The whole bucket is asked for: MinIO takes a prefix for the name of one object.
func (s *Store) Uploads(ctx context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(yield func(objectstore.Upload, error) bool) {
		afterKey, afterID := "", ""
		for {
			page, err := s.core.ListMultipartUploads(ctx, s.config.Bucket, "", afterKey, afterID, "", uploadsPage)
			if err != nil {
				yield(objectstore.Upload{}, s3http.ReadError(ctx, "list uploads to", s.String(), answer(err), err))
				return
			}
			for _, u := range page.Uploads {
				name, ours := strings.CutPrefix(u.Key, s.prefix)
				if !ours || !objectstore.ValidName(name) {
					continue // of somebody else
				}
				if !yield(objectstore.Upload{Name: name, ID: u.UploadID, Began: u.Initiated}, nil) {
					return
				}
			}
			if !page.IsTruncated || page.NextKeyMarker == "" {
				return
			}
			afterKey, afterID = page.NextKeyMarker, page.NextUploadIDMarker
		}
	}
}

// Abort implements [objectstore.Multipart].
func (s *Store) Abort(ctx context.Context, u objectstore.Upload) error {
	if err := objectstore.CheckName("abort the upload of", u.Name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("abort the upload of %s: %w", u.Name, err)
	}
	followed, trail := s3http.Follow(ctx)
	err := (&upload{store: s, key: s.key(u.Name), id: u.ID}).Abort(followed)
	if err == nil || answer(err).Code == s3http.CodeNoUpload {
		return nil
	}
	return trail.WriteError(ctx, "abort the upload of", u.Name, answer(err), err)
}

// upload implements [s3http.Upload].
type upload struct {
	store *Store
	key   string
	id    string // since Begin
}

var _ s3http.Upload[minio.CompletePart] = (*upload)(nil)

// Begin implements [s3http.Upload].
func (u *upload) Begin(ctx context.Context) (err error) {
	u.id, err = u.store.core.NewMultipartUpload(ctx, u.store.config.Bucket, u.key, minio.PutObjectOptions{})
	return err
}

// Send implements [s3http.Upload].
func (u *upload) Send(ctx context.Context, number int, body objectstore.Body) (minio.CompletePart, error) {
	part, err := u.store.core.PutObjectPart(ctx, u.store.config.Bucket, u.key, u.id, number, body.Reader(), body.Size,
		minio.PutObjectPartOptions{DisableContentSha256: true})
	return minio.CompletePart{PartNumber: number, ETag: part.ETag}, err
}

// Complete implements [s3http.Upload].
func (u *upload) Complete(ctx context.Context, parts []minio.CompletePart) error {
	var options minio.PutObjectOptions
	options.SetMatchETagExcept("*")
	_, err := u.store.core.CompleteMultipartUpload(ctx, u.store.config.Bucket, u.key, u.id, parts, options)
	return err
}

// Abort implements [s3http.Upload].
func (u *upload) Abort(ctx context.Context) error {
	return u.store.core.AbortMultipartUpload(ctx, u.store.config.Bucket, u.key, u.id)
}

// Answer implements [s3http.Upload].
func (u *upload) Answer(err error) s3http.Answer { return answer(err) }
