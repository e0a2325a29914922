package bucket_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/varve-io/varve/objectstore/bucket"
)

func TestParse(t *testing.T) {
	tests := []struct {
		raw  string
		want bucket.URL
	}{
		{"s3://lake", bucket.URL{Scheme: bucket.S3, Bucket: "lake"}},
		{"s3://lake/", bucket.URL{Scheme: bucket.S3, Bucket: "lake"}},
		{"s3://lake/a/b/?region=&endpoint=", bucket.URL{Scheme: bucket.S3, Bucket: "lake", Prefix: "a/b"}},
		{
			"s3://lake/a?region=eu-central-1&endpoint=http://127.0.0.1:9000/",
			bucket.URL{Scheme: bucket.S3, Bucket: "lake", Prefix: "a", Region: "eu-central-1", Endpoint: "http://127.0.0.1:9000"},
		},
		{"minio://h:9000/lake/p/q", bucket.URL{Scheme: bucket.MinIO, Host: "h:9000", Bucket: "lake", Prefix: "p/q", Secure: true}},
		{"minio://h/lake?secure=false", bucket.URL{Scheme: bucket.MinIO, Host: "h", Bucket: "lake"}},
		{"minio://[::1]:9000/lake?secure=true", bucket.URL{Scheme: bucket.MinIO, Host: "[::1]:9000", Bucket: "lake", Secure: true}},
		{"file:///var/lib/x/../varve%20data/", bucket.URL{Scheme: bucket.File, Folder: "/var/lib/varve data"}},
		{"mem://", bucket.URL{Scheme: bucket.Mem}},
	}
	for _, test := range tests {
		got, err := bucket.Parse(test.raw)
		if err != nil || got != test.want {
			t.Errorf("parse %q gives %+v, error %v; want %+v", test.raw, got, err, test.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ raw, place, seen, want string }{
		{"", "scheme", "", "s3://"},
		{"lake", "scheme", "", "s3://"},
		{"gs://lake", "scheme", "gs", "minio://host:port"},
		{"mem:x", "URL", "no // after mem:", "mem://"},
		{"s3://", "bucket", "", "lower-case"},
		{"s3://Lake", "bucket", "Lake", "lower-case"},
		{"s3://lake:90/x", "bucket", "lake:90", "lower-case"},
		{"s3://lake/a//b", "prefix", "a//b", "single slashes"},
		{"s3://lake/a/../b", "prefix", "a/../b", "single slashes"},
		{"s3://lake/" + strings.Repeat("a/", 300), "prefix", "a/a", "at most 400 bytes"},
		{"s3://lake?regoin=x", "parameter", "regoin", "region or endpoint"},
		{"s3://lake?region=a&region=b", "parameter region", "a, b", "once"},
		{"s3://lake?region=%zz", "parameters", "%zz", "name=value"},
		{"s3://lake?endpoint=localhost:9000", "endpoint", "localhost:9000", "http://host:port"},
		{"s3://lake?endpoint=http://h/path", "endpoint", "http://h/path", "http://host:port"},
		{"s3://lake#x", "fragment", "#x", "none"},
		{"minio:///lake", "host", "", "host:port"},
		{"minio://h:9000", "bucket", "", "lower-case"},
		{"minio://h:9000/lake?secure=yes", "secure", "yes", "true or false"},
		{"minio://h:9000/lake?region=x", "parameter", "region", "secure"},
		{"file://data", "host", "data", "file:///folder"},
		{"file://", "folder", "", "absolute"},
		{"file:data", "URL", "no //", "file:///folder"},
		{"file:///x?y=z", "parameter", "y", "none"},
		{"mem://x", "path", "x", "mem://"},
	}
	for _, test := range tests {
		_, err := bucket.Parse(test.raw)
		var urlErr *bucket.URLError
		if !errors.As(err, &urlErr) {
			t.Errorf("parse %q: error %v, want a URLError", test.raw, err)
			continue
		}
		if urlErr.Place != test.place || !strings.Contains(urlErr.Seen, test.seen) || !strings.Contains(urlErr.Want, test.want) {
			t.Errorf("parse %q: %v; want place %q, seen %q, want %q", test.raw, err, test.place, test.seen, test.want)
		}
		if strings.ContainsRune(err.Error(), '\n') {
			t.Errorf("parse %q: message of several lines: %v", test.raw, err)
		}
	}
}

func TestParseKeepsSecrets(t *testing.T) {
	for _, raw := range []string{"s3://key:hunter2@lake", "minio://key:hunter2@h:9000/lake", "s3://key:hunter2@%zz", "key:hunter2@lake", "s3://lake?secret=hunter2"} {
		_, err := bucket.Parse(raw)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("parse of a URL with a secret: %v, want an error without it", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, raw := range []string{"s3://lake/a?region=x&endpoint=http://h:1", "minio://h:1/lake/p?secure=false", "file:///x", "mem://", "s3://a:b@c"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := bucket.Parse(raw)
		var urlErr *bucket.URLError
		if err != nil && (!errors.As(err, &urlErr) || strings.ContainsAny(err.Error(), "\r\n")) {
			t.Errorf("parse %q: %v, want a URLError of one line", raw, err)
		}
	})
}
