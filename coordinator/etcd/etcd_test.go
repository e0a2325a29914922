package etcd_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/coordtest"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/coordinator/etcd/embedded"
)

// startServer runs an etcd for one test.
func startServer(t *testing.T) *embedded.Server {
	t.Helper()
	server, err := embedded.Start(t.Context(), embedded.Config{Dir: t.TempDir(), UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// open connects for one test.
func open(t *testing.T, cfg etcd.Config) *etcd.Store {
	t.Helper()
	cfg.ProgressInterval = 20 * time.Millisecond
	store, err := etcd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

func TestContract(t *testing.T) {
	server := startServer(t)
	var opened atomic.Int64
	coordtest.Run(t, func(t *testing.T) coordinator.KV {
		return open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: fmt.Sprintf("/varve/%d/", opened.Add(1))})
	})
}
