package s3

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/internal/s3http"
)

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

// Uploads implements [objectstore.Multipart]. Off AWS the whole bucket is asked for: MinIO takes a prefix for the name of one object.
func (s *Store) Uploads(ctx context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(yield func(objectstore.Upload, error) bool) {
		in := &awss3.ListMultipartUploadsInput{Bucket: &s.config.Bucket}
		if s.config.Endpoint == "" {
			in.Prefix = &s.prefix
		}
		for {
			page, err := s.client.ListMultipartUploads(ctx, in)
			if err != nil {
				yield(objectstore.Upload{}, s3http.ReadError(ctx, "list uploads to", s.String(), answer(err), err))
				return
			}
			for _, u := range page.Uploads {
				name, ours := strings.CutPrefix(aws.ToString(u.Key), s.prefix)
				if !ours || !objectstore.ValidName(name) {
					continue // of somebody else
				}
				if !yield(objectstore.Upload{Name: name, ID: aws.ToString(u.UploadId), Began: aws.ToTime(u.Initiated)}, nil) {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) || aws.ToString(page.NextKeyMarker) == "" {
				return
			}
			in.KeyMarker, in.UploadIdMarker = page.NextKeyMarker, page.NextUploadIdMarker
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
	err := (&upload{store: s, key: s.key(u.Name), id: &u.ID}).Abort(followed)
	if err == nil || answer(err).Code == s3http.CodeNoUpload {
		return nil
	}
	return trail.WriteError(ctx, "abort the upload of", u.Name, answer(err), err)
}

// upload implements [s3http.Upload].
type upload struct {
	store *Store
	key   *string
	id    *string // since Begin
}

var _ s3http.Upload[types.CompletedPart] = (*upload)(nil)

// Begin implements [s3http.Upload]. On AWS the library says that parts will have checksums.
func (u *upload) Begin(ctx context.Context) error {
	out, err := u.store.client.CreateMultipartUpload(ctx, &awss3.CreateMultipartUploadInput{Bucket: &u.store.config.Bucket, Key: u.key})
	if err != nil {
		return err
	}
	u.id = out.UploadId
	return nil
}

// Send implements [s3http.Upload].
func (u *upload) Send(ctx context.Context, number int, body objectstore.Body) (types.CompletedPart, error) {
	part := types.CompletedPart{PartNumber: aws.Int32(int32(number))} //nolint:gosec // a few
	out, err := u.store.client.UploadPart(ctx, &awss3.UploadPartInput{
		Bucket:        &u.store.config.Bucket,
		Key:           u.key,
		UploadId:      u.id,
		PartNumber:    part.PartNumber,
		Body:          body.Reader(),
		ContentLength: &body.Size,
	}, u.store.put...)
	if err != nil {
		return part, err
	}
	part.ETag = out.ETag
	part.ChecksumCRC32, part.ChecksumCRC32C, part.ChecksumCRC64NVME = out.ChecksumCRC32, out.ChecksumCRC32C, out.ChecksumCRC64NVME
	return part, nil
}

// Complete implements [s3http.Upload].
func (u *upload) Complete(ctx context.Context, parts []types.CompletedPart) error {
	_, err := u.store.client.CompleteMultipartUpload(ctx, &awss3.CompleteMultipartUploadInput{
		Bucket:          &u.store.config.Bucket,
		Key:             u.key,
		UploadId:        u.id,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		IfNoneMatch:     aws.String("*"),
	})
	return err
}

// Abort implements [s3http.Upload].
func (u *upload) Abort(ctx context.Context) error {
	_, err := u.store.client.AbortMultipartUpload(ctx, &awss3.AbortMultipartUploadInput{Bucket: &u.store.config.Bucket, Key: u.key, UploadId: u.id})
	return err
}

// Answer implements [s3http.Upload].
func (u *upload) Answer(err error) s3http.Answer { return answer(err) }
