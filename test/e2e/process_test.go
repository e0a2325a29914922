package e2e_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/varve-io/varve/test/servers"
)

// patience bounds every wait: nothing here takes as long, even on a busy machine.
const patience = 90 * time.Second

// process is a varve process whose two outputs can be told apart, and that need not become ready.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *output
	exited         chan struct{}
}

// start runs varve. The process is killed when the test ends.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	binary, err := servers.BuildVarve()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{
		cmd:    exec.CommandContext(context.WithoutCancel(t.Context()), binary, args...),
		stdout: newOutput(), stderr: newOutput(), exited: make(chan struct{}),
	}
	p.cmd.Dir = t.TempDir()
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says it all
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // may have ended
		<-p.exited
		if t.Failed() {
			t.Logf("varve %s\nstandard output:\n%s\nstandard error:\n%s", strings.Join(args, " "), p.stdout, p.stderr)
		}
	})
	return p
}

// signal sends a signal.
func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("send %v: %v", s, err)
	}
}

// status waits for the end of the process and returns its exit status; -1 if a signal ended it.
func (p *process) status(t *testing.T) int {
	t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatal("the process does not end")
		return 0
	}
}

// await waits for a line of an output.
func (p *process) await(t *testing.T, o *output, pattern string) {
	t.Helper()
	late := time.After(patience)
	for {
		found, changed := o.look(regexp.MustCompile("(?m)" + pattern))
		if found {
			return
		}
		select {
		case <-changed:
		case <-p.exited:
			if found, _ = o.look(regexp.MustCompile("(?m)" + pattern)); !found {
				t.Fatalf("ended with status %d before it printed %q", p.cmd.ProcessState.ExitCode(), pattern)
			}
			return
		case <-late:
			t.Fatalf("did not print %q", pattern)
		}
	}
}

// ready waits until the process serves clients.
func (p *process) ready(t *testing.T) {
	t.Helper()
	p.await(t, p.stdout, "^ready$")
}

// output keeps what a process writes.
type output struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed and replaced with every write
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

// String implements fmt.Stringer.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

func (o *output) look(pattern *regexp.Regexp) (found bool, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return pattern.Match(o.text), o.changed
}

// freeAddress returns a loopback address whose port is free.
func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := servers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// get returns the status and the body of a page.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}
