package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/varve-io/varve/test/servers"
)

// dev starts "varve dev" on free ports and waits until it is ready.
func dev(t *testing.T, data string) (p *process, kafka, http string) {
	t.Helper()
	kafka, http = freeAddress(t), freeAddress(t)
	p = start(t, nil, "dev", "--listen", kafka, "--http", http, "--data", data)
	p.ready(t)
	return p, kafka, http
}

func TestDevSaysWhereEverythingIs(t *testing.T) {
	data := filepath.Join(t.TempDir(), "new", "data")
	p, kafka, http := dev(t, data)
	said := p.stdout.String()
	for _, want := range []string{kafka, "http://" + http, data} {
		if !strings.Contains(said, want) {
			t.Errorf("standard output lacks %q", want)
		}
	}
	if commands := regexp.MustCompile(`(?m)^  .*kcat -[PCL] -b `+regexp.QuoteMeta(kafka)).FindAllString(said, -1); len(commands) != 3 {
		t.Errorf("standard output has the commands %q, want three of kcat with the address", commands)
	}
	if !strings.HasSuffix(said, "\nready\n") || strings.Count(said, "ready\n") != 1 {
		t.Errorf("standard output does not end with one line ready: %q", said)
	}
	for _, folder := range []string{"wal", "objects", "etcd"} {
		if info, err := os.Stat(filepath.Join(data, folder)); err != nil || !info.IsDir() {
			t.Errorf("folder %s of the data: %v", folder, err)
		}
	}
}

func TestDevOperations(t *testing.T) {
	_, _, http := dev(t, t.TempDir())
	for path, want := range map[string]string{
		"/": "/metrics", "/healthz": "alive", "/readyz": "ready", "/metrics": "varve_connections", "/debug/pprof/": "goroutine",
	} {
		if status, body := get(t, "http://"+http+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("GET %s: status %d, want 200 and %q", path, status, want)
		}
	}
}

// TestDevEnds: either signal lets it drain and end well, and the data can be used again at once.
func TestDevEnds(t *testing.T) {
	data := t.TempDir()
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p, _, _ := dev(t, data)
		p.signal(t, signal)
		if status := p.status(t); status != 0 {
			t.Errorf("exit status %d after %v, want 0", status, signal)
		}
		worries := regexp.MustCompile(`(?m)^.*level=(WARN|ERROR).*$`).FindAllString(p.stderr.String(), -1)
		if len(worries) > 0 {
			t.Errorf("a quiet life is not quiet: %q", worries)
		}
	}
}

// TestDataInUse starts a second process on the data of a first.
func TestDataInUse(t *testing.T) {
	data := t.TempDir()
	dev(t, data)
	p := start(t, nil, "dev", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", data)
	if status := p.status(t); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	said := p.stderr.String()
	if !strings.HasPrefix(said, "varve: --data: ") || !strings.Contains(said, "held by process") || strings.Count(said, "\n") != 1 {
		t.Errorf("standard error %q, want one line that says whose the data is", said)
	}
}

// TestSecondSignal: a drain that cannot end, because etcd is gone, is cut short by the second signal. Meanwhile the process
// lives, and is not ready.
func TestSecondSignal(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	http := freeAddress(t)
	p := start(t, nil, "agent", "--wal-copies", "1", "--etcd", "http://"+etcd.Address, "--bucket", "file://"+t.TempDir(), "--data", t.TempDir(),
		"--listen", "127.0.0.1:0", "--http", http)
	p.ready(t)
	etcd.Kill()
	p.signal(t, syscall.SIGTERM)
	p.await(t, p.stderr, "msg=draining")
	if status, _ := get(t, "http://"+http+"/readyz"); status != 503 {
		t.Errorf("GET /readyz while draining: status %d, want 503", status)
	}
	if status, _ := get(t, "http://"+http+"/healthz"); status != 200 {
		t.Errorf("GET /healthz while draining: status %d, want 200", status)
	}
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 1 {
		t.Errorf("exit status %d after a second signal, want 1", status)
	}
}
