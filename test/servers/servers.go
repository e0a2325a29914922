// Package servers starts real servers for tests and benchmarks: Varve itself, Apache Kafka, MinIO, the Versity S3
// gateway and etcd. Each is a process of its own on loopback ports that were free, with a data folder of its own; a call
// returns when the server serves, which it learns from the server's output or from a connection, never from a pause.
//
//	func TestSomething(t *testing.T) {
//		kafka := servers.Kafka(t, servers.KafkaOptions{})
//		client := connect(kafka.Address)
//		...
//	}
//
// The functions named after a server take a testing.TB: they fail the test if the server does not start, kill it when the
// test ends, and log the end of its output if the test failed. The functions StartX do the same without a test.
//
// Programs other than Varve come from test/tools/install, which installs what is missing; the first use of MinIO takes
// minutes of CPU. Varve is built from the working tree.
package servers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Ports that FreeAddress gives: below those that systems choose for outgoing connections (from 32768 on Linux). One of those
// could be taken by any client while the server that it belongs to is down.
const (
	portMin = 20_000
	portMax = 32_000
)

// FreeAddress returns a loopback address whose port was free a moment ago.
func FreeAddress() (string, error) { return freeAddress(context.Background()) }

func freeAddress(ctx context.Context) (string, error) {
	const attempts = 100
	var refused error
	for range attempts {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(portMin+rand.IntN(portMax-portMin)))
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err == nil {
			return address, listener.Close()
		}
		refused = err
	}
	return "", fmt.Errorf("find a free port: %d attempts, the last: %w", attempts, refused)
}

// addressOr returns address, or a free one where it is empty.
func addressOr(ctx context.Context, address string) (string, error) {
	if address != "" {
		return address, nil
	}
	return freeAddress(ctx)
}

// Root is the top folder of the repository, found upwards of the working folder.
func Root() (string, error) {
	folder, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for start := folder; ; folder = filepath.Dir(folder) {
		if _, err := os.Stat(filepath.Join(folder, "test", "tools", "install")); err == nil {
			return folder, nil
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("find the repository: no test/tools/install above %s", start)
		}
	}
}

// Install runs test/tools/install for one name and returns the path that it prints. It is quick when the tool is there.
func Install(ctx context.Context, name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "test", "tools", "install"), name)
	printed, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return "", fmt.Errorf("install %s: %w: %s", name, err, exit.Stderr)
		}
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	return strings.TrimSpace(string(printed)), nil
}

var buildVarve = sync.OnceValues(func() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache := os.Getenv("VARVE_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("build varve: %w", err)
		}
		cache = filepath.Join(home, ".cache", "varve")
	}
	// One place per checkout: go build leaves the binary alone if it is up to date, which saves linking it.
	binary := filepath.Join(cache, "build", strings.ReplaceAll(root, string(filepath.Separator), "-"), "varve")
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", binary, ".")
	cmd.Dir = root
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build varve: %w: %s", err, said)
	}
	return binary, nil
})

// BuildVarve builds the varve command from the working tree, once per process, and returns the binary's path.
func BuildVarve() (string, error) { return buildVarve() }

// VarveOptions say how to start Varve. The zero value starts "varve dev" on free ports.
type VarveOptions struct {
	// Binary is the program; empty builds it from the working tree.
	Binary string
	// Command is "dev" or "agent"; empty means "dev".
	Command string
	// Data is the data folder, which may hold an earlier start's data. Varve and StartVarve differ in what empty means:
	// a folder that goes with the test, and an error.
	Data string
	// Listen and HTTP are the addresses for Kafka clients and for operations; empty means a free loopback port.
	Listen, HTTP string
	// Args are further arguments; Env is added to the environment, as NAME=value.
	Args, Env []string
	// Under is a command that Varve is run under, with its arguments: one that ends by executing those that follow. See
	// network.Host.
	Under []string
	// started is what command.started is.
	started func(*Server)
}

// StartVarve starts Varve. It is ready when it has printed the line "ready".
func StartVarve(ctx context.Context, o VarveOptions) (*Server, error) {
	if o.Data == "" {
		return nil, errors.New("start varve: no data folder given")
	}
	if o.Binary == "" {
		binary, err := BuildVarve()
		if err != nil {
			return nil, err
		}
		o.Binary = binary
	}
	if o.Command == "" {
		o.Command = "dev"
	}
	listen, err := addressOr(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	http, err := addressOr(ctx, o.HTTP)
	if err != nil {
		return nil, err
	}
	return start(ctx, command{
		name: "varve", under: o.Under, program: o.Binary,
		args: append([]string{o.Command, "--listen", listen, "--http", http, "--data", o.Data}, o.Args...),
		env:  o.Env, data: o.Data, address: listen, http: http,
		ready: regexp.MustCompile(`^ready\s*$`), started: o.started,
	})
}

// Varve starts Varve for a test.
func Varve(t testing.TB, o VarveOptions) *Server {
	t.Helper()
	o.Data, o.started = forTest(t, o.Data, "varve")
	return must(t)(StartVarve(t.Context(), o))
}

// logMax is how many bytes of a server's output a failed test logs.
const logMax = 4 << 10

// forTest fills in what ties a server to a test: a data folder, if none is given, and the server's end.
func forTest(t testing.TB, data, name string) (string, func(*Server)) {
	t.Helper()
	if data == "" {
		data = filepath.Join(t.TempDir(), name)
	}
	return data, func(s *Server) {
		t.Cleanup(func() {
			s.Kill()
			if t.Failed() {
				said := s.Output()
				t.Logf("the output of %s ends with:\n%s", s.Name, said[max(0, len(said)-logMax):])
			}
		})
	}
}

func must(t testing.TB) func(*Server, error) *Server {
	t.Helper()
	return func(s *Server, err error) *Server {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}
