package etcd_test

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
)

func TestConfig(t *testing.T) {
	for _, cfg := range []etcd.Config{{Prefix: "/varve/"}, {Endpoints: []string{"http://127.0.0.1:1"}}} {
		if _, err := etcd.New(cfg); err == nil {
			t.Errorf("New(%+v) succeeded", cfg)
		}
	}
}

// TestEtcdStartsLater tells that a store may be made, and called, before its etcd is there.
func TestEtcdStartsLater(t *testing.T) {
	p := startProxy(t, "http://127.0.0.1:1") // where nobody listens; a port that was free a moment ago may be taken when etcd starts
	store := open(t, etcd.Config{Endpoints: []string{p.endpoint()}, Prefix: "/varve/"})
	early, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := store.ClusterID(early); !errors.Is(err, coordinator.ErrUnavailable) {
		t.Fatalf("ClusterID without an etcd: %v, want ErrUnavailable", err)
	}
	p.lead(startServer(t).Endpoint())
	if result, err := store.Txn(t.Context(), nil, []coordinator.Op{{Key: "a"}}); err != nil || !result.Succeeded {
		t.Errorf("Txn = %+v, %v", result, err)
	}
}

// TestPrefixes tells that stores with different prefixes see nothing of each other.
func TestPrefixes(t *testing.T) {
	server := startServer(t)
	a := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/a/"})
	b := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/b/"})
	if _, err := a.Txn(t.Context(), []coordinator.Compare{{Key: "x"}}, []coordinator.Op{{Key: "x"}}); err != nil {
		t.Fatal(err)
	}
	if result, err := b.Txn(t.Context(), []coordinator.Compare{{Key: "x"}}, []coordinator.Op{{Key: "y"}}); err != nil || !result.Succeeded {
		t.Errorf("Txn = %+v, %v; a key of another prefix is seen", result, err)
	}
	if items, _, err := b.List(t.Context(), "", 0); err != nil || len(items) != 1 || items[0].Key != "y" {
		t.Errorf("List = %+v, %v; want y alone", items, err)
	}
}

func TestAuthentication(t *testing.T) {
	server := startServer(t)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	for _, step := range []func() error{
		func() error { _, err := admin.UserAdd(t.Context(), "root", "secret"); return err },
		func() error { _, err := admin.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := admin.AuthEnable(t.Context()); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	ops := []coordinator.Op{{Key: "a"}}
	patient, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a password takes a busy machine seconds
	defer cancel()
	for _, c := range []struct {
		username, password string
		want               bool
	}{{"root", "secret", true}, {"root", "guess", false}, {"nobody", "secret", false}, {"", "", false}} {
		store := open(t, etcd.Config{Endpoints: []string{server.Endpoint()}, Prefix: "/varve/", DialTimeout: time.Minute, Username: c.username, Password: c.password})
		_, err := store.Txn(patient, nil, ops)
		if (err == nil) != c.want || err != nil && !errors.Is(err, coordinator.ErrUnavailable) {
			t.Errorf("%s:%s: Txn: %v; want success %t", c.username, c.password, err, c.want)
		}
		if _, _, err := store.Get(patient, "a"); (err == nil) != c.want {
			t.Errorf("%s:%s: Get: %v; want success %t", c.username, c.password, err, c.want)
		}
	}
	// A store made before its etcd can be reached authenticates later.
	absent := open(t, etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/varve/", Username: "root", Password: "secret"})
	ctx, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer end()
	if _, err := absent.Txn(ctx, nil, ops); !errors.Is(err, coordinator.ErrUnavailable) {
		t.Errorf("Txn without an etcd: %v, want ErrUnavailable", err)
	}
}
