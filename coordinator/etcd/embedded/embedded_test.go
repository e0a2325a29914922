package embedded_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/coordinator/etcd/embedded"
)

// childDir tells the test binary, started as a child, to run an etcd in this directory until it is killed.
const childDir = "VARVE_TEST_EMBEDDED_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := serveUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// serveUntilKilled prints the endpoint and then serves until its standard input ends, which it does if the parent dies.
func serveUntilKilled(dir string) error {
	server, err := embedded.Start(context.Background(), embedded.Config{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println(server.Endpoint())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func start(t *testing.T, dir string) *embedded.Server {
	t.Helper()
	server, err := embedded.Start(t.Context(), embedded.Config{Dir: dir, UnsafeNoFsync: true})
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

func connect(t *testing.T, endpoint string) *etcd.Store {
	t.Helper()
	store, err := etcd.New(etcd.Config{Endpoints: []string{endpoint}, Prefix: "/test/"})
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

func put(t *testing.T, store *etcd.Store, key string) {
	t.Helper()
	result, err := store.Txn(t.Context(), []coordinator.Compare{{Key: key}}, []coordinator.Op{{Key: key, Value: []byte("1")}})
	if err != nil || !result.Succeeded {
		t.Fatalf("Txn = %+v, %v", result, err)
	}
}

func wantKeys(t *testing.T, store *etcd.Store, n int) {
	t.Helper()
	items, _, err := store.List(t.Context(), "", 0)
	if err != nil || len(items) != n {
		t.Errorf("List returned %d items, %v; want %d", len(items), err, n)
	}
}

// Find knows where a server is while it runs, and only then.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	wantNone := func(when string) {
		t.Helper()
		if endpoint, err := embedded.Find(dir); !errors.Is(err, embedded.ErrNotRunning) {
			t.Errorf("Find %s: %q, %v; want ErrNotRunning", when, endpoint, err)
		}
	}
	wantNone("before the first start")
	for range 2 {
		server := start(t, dir)
		if endpoint, err := embedded.Find(dir); err != nil || endpoint != server.Endpoint() {
			t.Errorf("Find: %q, %v; want %q", endpoint, err, server.Endpoint())
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		wantNone("after the end")
	}
}

// A restart gets another port and keeps the data and the cluster's identity.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	ids := make(map[uint64]bool)
	for i := range 3 {
		server := start(t, dir)
		store := connect(t, server.Endpoint())
		wantKeys(t, store, i)
		put(t, store, fmt.Sprint("key", i))
		id, err := store.ClusterID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = true
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-server.Done():
		default:
			t.Error("Done is open after Close")
		}
	}
	if len(ids) != 1 {
		t.Errorf("three starts had %d cluster ids", len(ids))
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		if _, err := child.StdinPipe(); err != nil { // ends with this process, and the child with it
			t.Fatal(err)
		}
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		endpoint, err := bufio.NewReader(stdout).ReadString('\n')
		if err != nil {
			t.Fatalf("the child did not start: %v", err)
		}
		store := connect(t, strings.TrimSpace(endpoint))
		wantKeys(t, store, i)
		put(t, store, fmt.Sprint("key", i))
		if _, err := embedded.Start(t.Context(), embedded.Config{Dir: dir}); !errors.Is(err, embedded.ErrLocked) {
			t.Errorf("Start in a directory that another process uses: %v, want ErrLocked", err)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // it was killed
	}
	wantKeys(t, connect(t, start(t, dir).Endpoint()), 2)
}

// Close does not wait for open watches.
func TestCloseWithWatch(t *testing.T) {
	server := start(t, t.TempDir())
	store := connect(t, server.Endpoint())
	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan coordinator.Batch, 10), make(chan error, 1)
	go func() { ended <- store.Watch(ctx, "", 0, func(b coordinator.Batch) { seen <- b }) }()
	put(t, store, "a")
	<-seen
	begin := time.Now()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("Close took %v", took)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	server := start(t, t.TempDir())
	var log strings.Builder
	for name, cfg := range map[string]embedded.Config{
		"port in use":     {Dir: t.TempDir(), ClientURL: server.Endpoint()},
		"no URL":          {Dir: t.TempDir(), ClientURL: "http://127.0.0.1:x"},
		"not a directory": {Dir: os.Args[0]},
	} {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if s, err := embedded.Start(t.Context(), cfg); err == nil {
			t.Errorf("%s: Start succeeded at %s", name, s.Endpoint())
		} else if !strings.Contains(err.Error(), cfg.Dir) {
			t.Errorf("%s: the error does not name the directory: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := embedded.Start(ctx, embedded.Config{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with an ended context: %v", err)
	}
	start(t, dir) // the lock was given back
}
