// Package minio is an object store in a bucket of MinIO, or of a server like it, through minio-go.
//
// A Put carries If-None-Match:* and is one request, or a multipart upload whose completion carries it; both 412 and 409
// are a lost race. The payload is not hashed, neither
// for the signature nor for a checksum, which would cost more CPU than all the rest: objects carry their own checksums.
package minio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/internal/s3http"
)

// Config says where the bucket is.
type Config struct {
	Host   string // host:port, or host for the scheme's own port
	Secure bool   // speak TLS
	Bucket string
	// Prefix stands before all names, with a slash between. Empty for none.
	Prefix string
}

// Store implements [objectstore.Multipart].
type Store struct {
	core   minio.Core
	config Config
	prefix string // of keys: empty, or with a slash at its end
	// multipart says that large objects go in parts.
	multipart atomic.Bool
}

var _ objectstore.Multipart = (*Store)(nil)

// Open returns the store. It sends no request. Credentials come from the environment (MINIO_ROOT_USER and
// MINIO_ROOT_PASSWORD, MINIO_ACCESS_KEY and MINIO_SECRET_KEY, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or from AWS's
// shared credentials file; without any, requests are anonymous. The bucket's region is asked for with the first request.
func Open(c Config) (*Store, error) {
	client, err := minio.New(c.Host, &minio.Options{
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvMinio{}, &credentials.EnvAWS{}, &credentials.FileAWSCredentials{},
		}),
		Secure:       c.Secure,
		Transport:    s3http.NewTransport(),
		BucketLookup: minio.BucketLookupPath,
		MaxRetries:   s3http.Attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s at %s: %w", c.Bucket, c.Host, err)
	}
	s := &Store{core: minio.Core{Client: client}, config: c}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	return s, nil
}

// String implements [objectstore.Store].
func (s *Store) String() string {
	url := "minio://" + s.config.Host + "/" + s.config.Bucket
	if s.config.Prefix != "" {
		url += "/" + s.config.Prefix
	}
	return url + "?secure=" + strconv.FormatBool(s.config.Secure)
}

// Put implements [objectstore.Store].
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	if err := objectstore.CheckPut(name, body); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if s.multipart.Load() && body.Size > objectstore.PartBytesMax {
		return s.PutMultipart(ctx, name, body)
	}
	options := minio.PutObjectOptions{DisableMultipart: true, DisableContentSha256: true}
	options.SetMatchETagExcept("*")
	followed, trail := s3http.Follow(ctx)
	_, err := s.core.Client.PutObject(followed, s.config.Bucket, s.key(name), body.Reader(), body.Size, options)
	if err != nil {
		return trail.WriteError(ctx, "put", name, answer(err), err)
	}
	return nil
}

// Get implements [objectstore.Store].
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	if err := objectstore.CheckGet(name, off); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	var options minio.GetObjectOptions
	options.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	// Core's Get is one request; Client's reads ahead on a goroutine.
	body, info, header, err := s.core.GetObject(ctx, s.config.Bucket, s.key(name), options)
	if err != nil {
		return s3http.ReadError(ctx, "get", name, answer(err), err)
	}
	defer body.Close() //nolint:errcheck // everything wanted was read, or an error is on its way
	if err := s3http.CheckRange(name, off, len(p), header.Get("Content-Range"), info.Size); err != nil {
		return err
	}
	if _, err := io.ReadFull(body, p); err != nil {
		return s3http.ReadError(ctx, "get", name, s3http.Answer{}, err)
	}
	return nil
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	if err := objectstore.CheckName("stat", name); err != nil {
		return objectstore.Info{}, err
	}
	info, err := s.core.StatObject(ctx, s.config.Bucket, s.key(name), minio.StatObjectOptions{})
	if err == nil {
		return objectstore.Info{Name: name, Size: info.Size, Modified: info.LastModified}, nil
	}
	a := answer(err)
	if a.Status == http.StatusNotFound {
		// The answer to HEAD has no code: it may be the bucket that is missing.
		exists, bucketErr := s.core.BucketExists(ctx, s.config.Bucket)
		switch {
		case bucketErr != nil:
			a, err = answer(bucketErr), fmt.Errorf("bucket %s: %w", s.config.Bucket, bucketErr)
		case !exists:
			a.Code, err = "NoSuchBucket", fmt.Errorf("no bucket %s", s.config.Bucket)
		}
	}
	return objectstore.Info{}, s3http.ReadError(ctx, "stat", name, a, err)
}

// List implements [objectstore.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		if !objectstore.ValidPrefix(prefix) {
			return // some servers refuse it
		}
		withoutOwner := false
		options := minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, FetchOwner: &withoutOwner}
		if after != "" {
			options.StartAfter = s.key(after)
		}
		for o := range s.core.ListObjectsIter(ctx, s.config.Bucket, options) {
			if o.Err != nil {
				yield(objectstore.Info{}, s3http.ReadError(ctx, "list", prefix, answer(o.Err), o.Err))
				return
			}
			name := strings.TrimPrefix(o.Key, s.prefix)
			if !objectstore.ValidName(name) {
				continue // of somebody else
			}
			if !yield(objectstore.Info{Name: name, Size: o.Size, Modified: o.LastModified}, nil) {
				return
			}
		}
		// The library ends a list without a word when the context ends.
		if err := ctx.Err(); err != nil {
			yield(objectstore.Info{}, s3http.ReadError(ctx, "list", prefix, s3http.Answer{}, err))
		}
	}
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := objectstore.CheckName("delete", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	followed, trail := s3http.Follow(ctx)
	err := s.core.RemoveObject(followed, s.config.Bucket, s.key(name), minio.RemoveObjectOptions{})
	if err == nil || answer(err).Code == minio.NoSuchKey { // S3 never says so here, others do
		return nil
	}
	return trail.WriteError(ctx, "delete", name, answer(err), err)
}

func (s *Store) key(name string) string { return s.prefix + name }

// answer extracts what the store said from an error of the library.
func answer(err error) s3http.Answer {
	var response minio.ErrorResponse
	if !errors.As(err, &response) {
		return s3http.Answer{}
	}
	return s3http.Answer{Status: response.StatusCode, Code: response.Code}
}
