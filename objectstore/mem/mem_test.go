package mem_test

import (
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) objectstore.Store { return mem.New() })
}
