package dir_test

import (
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/dir"
	"github.com/varve-io/varve/objectstore/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objectstore.Store {
		s, err := dir.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
