package bucket_test

import (
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
