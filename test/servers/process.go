package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"
)

// readyWithin is how long a server may take until it serves. A JVM on a busy machine of two cores needs a few seconds.
const readyWithin = 90 * time.Second

// outputMax is how many bytes of a server's latest output are kept in memory for Output; the file has all of it.
const outputMax = 64 << 10

// Server is one running server process. Its methods may be called from several goroutines.
type Server struct {
	// Name is the program's name, for messages.
	Name string
	// Address is the host:port of the server's main protocol: Kafka's, S3's or etcd's.
	Address string
	// HTTP is the host:port of the server's operations endpoint; empty for servers without one.
	HTTP string
	// Data is the server's data folder.
	Data string
	// Log is the file that the server's standard output and standard error go to. Starts on one data folder append.
	Log string

	command command
	cmd     *exec.Cmd
	exited  chan struct{}
	err     error // how the process ended; set before exited is closed
	output  *output
}

// command is what start runs.
type command struct {
	name string
	// under is a command that runs the program; empty for none.
	under   []string
	program string
	args    []string
	env     []string // added to this process's own
	data    string
	address string
	http    string
	// ready matches the output line that says that the server serves. Nil: the server is ready when its address accepts
	// a connection.
	ready *regexp.Regexp
	// started is told of each process of this command that has become ready; nil tells nobody.
	started func(*Server)
}

// start runs a command and waits until it is ready, has ended, or ctx is done.
func start(ctx context.Context, c command) (*Server, error) {
	if err := os.MkdirAll(c.data, 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	logName := filepath.Join(filepath.Dir(c.data), filepath.Base(c.data)+"."+c.name+".log")
	file, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	s := &Server{
		command: c,
		Name:    c.name, Address: c.address, HTTP: c.http, Data: c.data, Log: logName,
		exited: make(chan struct{}),
		output: &output{file: file, want: c.ready, seen: make(chan struct{})},
	}
	// The process outlives ctx, which bounds the start only; Stop and Kill end it.
	argv := slices.Concat(c.under, []string{c.program}, c.args)
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	s.cmd.Env = append(os.Environ(), c.env...)
	s.cmd.Dir = filepath.Dir(c.data)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.SysProcAttr = childAttributes()
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", c.name, err), file.Close())
	}
	go func() {
		s.err = errors.Join(s.cmd.Wait(), file.Close())
		close(s.exited)
	}()
	if err := s.awaitReady(ctx, c.ready != nil); err != nil {
		s.Kill()
		return nil, fmt.Errorf("start %s: %w; its output ends with:\n%s", c.name, err, s.Output())
	}
	if c.started != nil {
		c.started(s)
	}
	return s, nil
}

// awaitReady waits for the awaited line, or else for a connection to the server's address.
func (s *Server) awaitReady(ctx context.Context, byLine bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	ready := s.output.seen
	if !byLine {
		ready = make(chan struct{})
		go func() {
			if dial(ctx, s.Address) {
				close(ready)
			}
		}()
	}
	select {
	case <-ready:
		return nil
	case <-s.exited:
		return fmt.Errorf("ended before it was ready: %w", s.err)
	case <-ctx.Done():
		return fmt.Errorf("not ready within %v: %w", readyWithin, ctx.Err())
	}
}

// dial tries to connect until it succeeds or ctx is done. A port that nobody listens on yet refuses at once, hence the pause.
func dial(ctx context.Context, address string) bool {
	var dialer net.Dialer
	for ctx.Err() == nil {
		connection, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			return connection.Close() == nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	return false
}

// PID is the id of the server's process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Exited is closed when the process has ended and its output is complete.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Err tells how the process ended, once it has: nil for exit status 0, and otherwise an error that wraps an exec.ExitError.
func (s *Server) Err() error {
	<-s.exited
	return s.err
}

// Output returns the latest part of the server's output, standard output and standard error as they came.
func (s *Server) Output() string { return s.output.tail() }

// Signal sends a signal to the process.
func (s *Server) Signal(signal os.Signal) error {
	if err := s.cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("signal %s %d: %w", s.Name, s.PID(), err)
	}
	return nil
}

// Kill ends the process with SIGKILL, as a crash would, and returns when it is gone. It does nothing to one that has ended.
func (s *Server) Kill() {
	// The only error is that the process has ended already.
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// Stop asks the process to end with SIGTERM and returns how it ended: nil for exit status 0. When ctx is done first, it
// kills the process and says so.
func (s *Server) Stop(ctx context.Context) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", s.Name, err)
	}
	select {
	case <-s.exited:
		if s.err != nil {
			return fmt.Errorf("stop %s: %w", s.Name, s.err)
		}
		return nil
	case <-ctx.Done():
		s.Kill()
		return fmt.Errorf("stop %s: still running after SIGTERM, killed: %w", s.Name, ctx.Err())
	}
}

// Restart starts the same program again with the same arguments, on the same addresses and data, and returns the new
// process. It kills the old one if that still runs.
func (s *Server) Restart(ctx context.Context) (*Server, error) {
	s.Kill()
	return start(ctx, s.command)
}

// output receives what a process writes: all of it goes to a file, the end of it stays in memory, and seen is closed at
// the first line that matches want.
type output struct {
	want *regexp.Regexp // nil looks for nothing
	seen chan struct{}

	mu    sync.Mutex
	file  *os.File
	last  []byte // at most outputMax bytes
	line  []byte // the line that has not ended yet
	found bool
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = append(o.last, p...)
	if extra := len(o.last) - outputMax; extra > 0 {
		o.last = append(o.last[:0], o.last[extra:]...)
	}
	if !o.found && o.want != nil {
		o.line = append(o.line, p...)
		for line, rest, whole := bytes.Cut(o.line, []byte{'\n'}); whole && !o.found; line, rest, whole = bytes.Cut(rest, []byte{'\n'}) {
			if o.want.Match(line) {
				o.found = true
				close(o.seen)
			}
			o.line = rest
		}
	}
	return o.file.Write(p)
}

func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.last)
}
