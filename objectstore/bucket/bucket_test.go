package bucket_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
)

func TestOpen(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "not", "there", "yet")
	for _, raw := range []string{"mem://", "file://" + folder} {
		s, err := bucket.Open(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := objectstore.Probe(t.Context(), s); err != nil {
			t.Error(err)
		}
		if s.String() != raw {
			t.Errorf("store of %s calls itself %s", raw, s)
		}
	}
}

// TestOpenAsksNobody opens stores whose servers do not exist, which the caller then waits for.
func TestOpenAsksNobody(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	for _, raw := range []string{"s3://lake/p?endpoint=http://127.0.0.1:1", "minio://127.0.0.1:1/lake/p?secure=false"} {
		s, err := bucket.Open(t.Context(), raw)
		if err != nil {
			t.Fatal(err)
		}
		if s.String() != raw {
			t.Errorf("store of %s calls itself %s", raw, s)
		}
		if err := objectstore.Probe(t.Context(), s); !errors.Is(err, objectstore.ErrUnavailable) {
			t.Errorf("probe of a server that is not there: %v, want %v", err, objectstore.ErrUnavailable)
		}
	}
}

func TestOpenWithoutRegion(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	if _, err := bucket.Open(t.Context(), "s3://lake"); err == nil {
		t.Error("opened a bucket of AWS without a region")
	}
}
