// Package s3 is an object store in a bucket of AWS S3, or of a server that speaks its protocol, through aws-sdk-go-v2.
//
// A Put carries If-None-Match:* and is one request, or a multipart upload whose completion carries it; both 412 and 409
// are a lost race. On AWS the library adds a checksum, to each part too, that the service verifies. Off AWS it adds none,
// as many servers cannot read them, and does not hash the payload for the signature, which would cost more CPU than all
// the rest: objects carry their own checksums.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/internal/s3http"
)

// Config says where the bucket is.
type Config struct {
	Bucket string
	// Prefix stands before all names, with a slash between. Empty for none.
	Prefix string
	// Region, or empty for that of AWS's own configuration (AWS_REGION, shared files) and, off AWS, us-east-1.
	Region string
	// Endpoint is the URL of a server that is not AWS, which is asked with the bucket in the path. Empty for AWS.
	Endpoint string
}

// Store implements [objectstore.Multipart].
type Store struct {
	client *awss3.Client
	config Config
	prefix string // of keys: empty, or with a slash at its end
	put    []func(*awss3.Options)
	// multipart says that large objects go in parts.
	multipart atomic.Bool
}

var _ objectstore.Multipart = (*Store)(nil)

// defaultRegion is what servers other than AWS take for a region, unless they are configured otherwise.
const defaultRegion = "us-east-1"

// Open returns the store. It sends no request. Credentials come from the library's default chain: environment, shared
// files, web identity, the role of the container or machine.
func Open(ctx context.Context, c Config) (*Store, error) {
	// The library would write to standard error by itself; what matters comes back as errors.
	aws, err := config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", c.Bucket, err)
	}
	if c.Region != "" {
		aws.Region = c.Region
	}
	if aws.Region == "" {
		if c.Endpoint == "" {
			return nil, fmt.Errorf("open bucket %s: seen no region, want region= in its URL, AWS_REGION or a region in AWS's shared configuration", c.Bucket)
		}
		aws.Region = defaultRegion
	}
	s := &Store{config: c}
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	s.client = awss3.NewFromConfig(aws, s.options)
	if c.Endpoint != "" {
		s.put = append(s.put, awss3.WithAPIOptions(v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware))
	}
	return s, nil
}

func (s *Store) options(o *awss3.Options) {
	o.HTTPClient = &http.Client{
		Transport: s3http.NewTransport(),
		// The default follows some, and would send a PUT as a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = s3http.Attempts
		o.MaxBackoff = s3http.BackoffMax
	})
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired // of ranges there is none
	if s.config.Endpoint != "" {
		o.BaseEndpoint = aws.String(s.config.Endpoint)
		o.UsePathStyle = true
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	}
}

// String implements [objectstore.Store].
func (s *Store) String() string {
	url := "s3://" + s.config.Bucket
	if s.config.Prefix != "" {
		url += "/" + s.config.Prefix
	}
	if s.config.Endpoint != "" {
		url += "?endpoint=" + s.config.Endpoint
	}
	return url
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
	followed, trail := s3http.Follow(ctx)
	_, err := s.client.PutObject(followed, &awss3.PutObjectInput{
		Bucket:        &s.config.Bucket,
		Key:           s.key(name),
		Body:          body.Reader(),
		ContentLength: &body.Size,
		IfNoneMatch:   aws.String("*"),
	}, s.put...)
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
	out, err := s.client.GetObject(ctx, &awss3.GetObjectInput{
		Bucket: &s.config.Bucket,
		Key:    s.key(name),
		Range:  aws.String(fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)),
	})
	if err != nil {
		return s3http.ReadError(ctx, "get", name, answer(err), err)
	}
	defer out.Body.Close() //nolint:errcheck // everything wanted was read, or an error is on its way
	if err := s3http.CheckRange(name, off, len(p), aws.ToString(out.ContentRange), aws.ToInt64(out.ContentLength)); err != nil {
		return err
	}
	if _, err := io.ReadFull(out.Body, p); err != nil {
		return s3http.ReadError(ctx, "get", name, s3http.Answer{}, err)
	}
	return nil
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	if err := objectstore.CheckName("stat", name); err != nil {
		return objectstore.Info{}, err
	}
	out, err := s.client.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &s.config.Bucket, Key: s.key(name)})
	if err == nil {
		return objectstore.Info{Name: name, Size: aws.ToInt64(out.ContentLength), Modified: aws.ToTime(out.LastModified)}, nil
	}
	if answer(err).Status == http.StatusNotFound {
		// The answer to HEAD has no code: it may be the bucket that is missing.
		if _, bucketErr := s.client.HeadBucket(ctx, &awss3.HeadBucketInput{Bucket: &s.config.Bucket}); bucketErr != nil {
			a := answer(bucketErr)
			if a.Status == http.StatusNotFound {
				a.Code = "NoSuchBucket"
			}
			return objectstore.Info{}, s3http.ReadError(ctx, "stat", name, a, fmt.Errorf("bucket %s: %w", s.config.Bucket, bucketErr))
		}
	}
	return objectstore.Info{}, s3http.ReadError(ctx, "stat", name, answer(err), err)
}

// List implements [objectstore.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		if !objectstore.ValidPrefix(prefix) {
			return // some servers refuse it
		}
		in := &awss3.ListObjectsV2Input{Bucket: &s.config.Bucket, Prefix: s.key(prefix)}
		if after != "" {
			in.StartAfter = s.key(after)
		}
		pages := awss3.NewListObjectsV2Paginator(s.client, in)
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(objectstore.Info{}, s3http.ReadError(ctx, "list", prefix, answer(err), err))
				return
			}
			for _, o := range page.Contents {
				name := strings.TrimPrefix(aws.ToString(o.Key), s.prefix)
				if !objectstore.ValidName(name) {
					continue // of somebody else
				}
				if !yield(objectstore.Info{Name: name, Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
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
	_, err := s.client.DeleteObject(followed, &awss3.DeleteObjectInput{Bucket: &s.config.Bucket, Key: s.key(name)})
	if err == nil || answer(err).Code == "NoSuchKey" { // S3 never says so here, others do
		return nil
	}
	return trail.WriteError(ctx, "delete", name, answer(err), err)
}

func (s *Store) key(name string) *string { return aws.String(s.prefix + name) }

// answer extracts what the store said from an error of the library.
func answer(err error) s3http.Answer {
	var a s3http.Answer
	if response, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		a.Status = response.HTTPStatusCode()
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		a.Code = api.ErrorCode()
	}
	return a
}
