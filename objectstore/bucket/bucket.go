// Package bucket opens object stores by their URL:
//
//	s3://bucket/prefix?region=eu-central-1               AWS; region may also come from AWS's configuration
//	s3://bucket/prefix?endpoint=http://127.0.0.1:9000    any S3 look-alike, by aws-sdk-go-v2, with paths for buckets
//	minio://host:port/bucket/prefix?secure=false         MinIO and its like, by minio-go; TLS unless secure=false
//	file:///folder                                       a folder, created if it is not there
//	mem://                                               memory, new for each Open
//
// Credentials are never part of the URL. They come from where the libraries look for them: the environment, shared
// files, the machine's role.
package bucket

import (
	"context"
	"fmt"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/dir"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/minio"
	"github.com/varve-io/varve/objectstore/s3"
)

// Open returns the store of the URL. Only a bad URL or a bad configuration of this process fails (the first with a
// [*URLError]); a server that does not answer or a bucket that does not exist does not: [objectstore.Probe] finds out,
// and may be called until it succeeds.
func Open(ctx context.Context, raw string) (objectstore.Store, error) {
	u, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return OpenURL(ctx, u)
}

// OpenURL is [Open] for a URL that was parsed before.
func OpenURL(ctx context.Context, u URL) (objectstore.Store, error) {
	switch u.Scheme {
	case S3:
		return s3.Open(ctx, s3.Config{Bucket: u.Bucket, Prefix: u.Prefix, Region: u.Region, Endpoint: u.Endpoint})
	case MinIO:
		return minio.Open(minio.Config{Host: u.Host, Secure: u.Secure, Bucket: u.Bucket, Prefix: u.Prefix})
	case File:
		return dir.Open(u.Folder)
	case Mem:
		return mem.New(), nil
	default:
		return nil, fmt.Errorf("open bucket: unknown scheme %q", u.Scheme)
	}
}
