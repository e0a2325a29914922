// Package coordinators runs the coordinator's contract against real etcd processes, where the embedded server's
// settings do not apply and a process can be killed.
package coordinators_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/coordtest"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/test/servers"
)

// open connects for one test.
func open(t *testing.T, server *servers.Server, prefix string) *etcd.Store {
	t.Helper()
	store, err := etcd.New(etcd.Config{
		Endpoints:        []string{"http://" + server.Address},
		Prefix:           prefix,
		ProgressInterval: 20 * time.Millisecond,
	})
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
	server := servers.Etcd(t, servers.EtcdOptions{})
	var opened atomic.Int64
	coordtest.Run(t, func(t *testing.T) coordinator.KV {
		return open(t, server, fmt.Sprintf("/varve/%d/", opened.Add(1)))
	})
}

// TestKilledUnderLoad kills etcd while one client raises a counter, and starts it again: every rise that was answered
// is there, one in doubt may be, and a watch sees each once.
func TestKilledUnderLoad(t *testing.T) {
	const rounds, perRound = 3, 50
	server := servers.Etcd(t, servers.EtcdOptions{})
	store := open(t, server, "/varve/")
	id, err := store.ClusterID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan coordinator.Event, 10_000)
	go func() {
		_ = store.Watch(t.Context(), "counter", 0, func(b coordinator.Batch) {
			for _, e := range b.Events {
				seen <- e
			}
		})
	}()
	sure, doubted := 0, 0
	for range rounds {
		for i := range perRound {
			if i == perRound/2 {
				go server.Kill()
			}
			switch err := raise(t, store); {
			case err == nil:
				sure++
			case errors.Is(err, coordinator.ErrUnknownOutcome):
				doubted++
			case errors.Is(err, coordinator.ErrUnavailable):
			default:
				t.Fatalf("Txn: %v", err)
			}
		}
		<-server.Exited()
		if server, err = server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	item, _, err := store.Get(t.Context(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(item.Value); n < sure || n > sure+doubted {
		t.Errorf("the counter stands at %d after %d certain and %d doubtful rises", n, sure, doubted)
	}
	for i := 1; i <= len(item.Value); i++ {
		select {
		case e := <-seen:
			if len(e.Value) != i {
				t.Fatalf("event %d shows the counter at %d", i, len(e.Value))
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the watch did not see the counter at %d", i)
		}
	}
	if again, err := store.ClusterID(t.Context()); err != nil || again != id {
		t.Errorf("ClusterID = %d, %v; it was %d", again, err, id)
	}
}

// raise makes the counter's value one byte longer, with a short deadline.
func raise(t *testing.T, store *etcd.Store) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	item, _, err := store.Get(ctx, "counter")
	if err != nil {
		return err
	}
	result, err := store.Txn(ctx, []coordinator.Compare{{Key: "counter", Revision: item.ModRevision}},
		[]coordinator.Op{{Key: "counter", Value: append(item.Value, '1')}})
	if err == nil && !result.Succeeded {
		return fmt.Errorf("%w: another rise came between", coordinator.ErrUnavailable)
	}
	return err
}
