package chaos

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/test/network"
	"github.com/varve-io/varve/test/servers"
)

// node is an agent on a host of its own. It is started again when it ends, as a supervisor would, unless the test keeps it down.
type node struct {
	name    string
	host    *network.Host
	options servers.VarveOptions
	logf    func(format string, args ...any)

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced when anything below changes
	down     bool          // the test keeps it down
	mayEnd   bool          // it may end by itself, for what the test does to it
	might    bool          // it might until the fault before this one was over, and may not have noticed yet
	server   *servers.Server
	starting context.CancelFunc // while it starts
	ends     []error            // how it ended by itself where it may not
	ended    int                // how often it ended by itself
}

// What a supervisor waits before it starts again what has ended, and what did not even start.
const (
	restartPause = 200 * time.Millisecond
	startPause   = time.Second
)

// newNode makes a node that is down.
func newNode(name string, host *network.Host, o servers.VarveOptions, logf func(string, ...any)) *node {
	return &node{name: name, host: host, options: o, logf: logf, changed: make(chan struct{}), down: true}
}

// update changes the node's state.
func (n *node) update(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// await waits until something is true of the node's state.
func (n *node) await(ctx context.Context, what string, holds func() bool) error {
	for {
		n.mu.Lock()
		ok, changed := holds(), n.changed
		n.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("agent %s is not %s: %w", n.name, what, ctx.Err())
		case <-changed:
		}
	}
}

// supervise runs the node until ctx ends.
func (n *node) supervise(ctx context.Context) {
	for ctx.Err() == nil && n.await(ctx, "wanted", func() bool { return !n.down }) == nil {
		starting, cancel := context.WithCancel(ctx)
		n.update(func() { n.starting = cancel })
		server, err := servers.StartVarve(starting, n.options)
		cancel()
		rest, asked := startPause, false
		n.update(func() { n.starting, n.server, asked = nil, server, n.down })
		if err == nil {
			rest = restartPause
			<-server.Exited()
			n.update(func() { n.server, asked = nil, n.down })
			err = how(server)
		}
		if asked || ctx.Err() != nil {
			continue
		}
		n.note(err)
		select {
		case <-ctx.Done():
		case <-time.After(rest):
		}
	}
}

// how tells how a server ended.
func how(s *servers.Server) error {
	err := s.Err()
	if err == nil {
		err = errors.New("exit status 0")
	}
	if said := s.Output(); broken.MatchString(said) {
		return fmt.Errorf("%w:\n%s", err, said)
	}
	lines := strings.Split(strings.TrimSpace(s.Output()), "\n")
	return fmt.Errorf("%w; it said last:\n%s", err, strings.Join(lines[max(0, len(lines)-3):], "\n"))
}

// broken is what a process says that has met what must not be.
var broken = regexp.MustCompile(`(?m)^(panic: |fatal error: |WARNING: DATA RACE)`)

// note judges an end that nobody asked for.
func (n *node) note(err error) {
	n.logf("agent %s ended: %v", n.name, err)
	n.update(func() {
		n.ended++
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !n.mayEnd && !n.might || !ok || exit.ExitCode() != 1 || broken.MatchString(err.Error()) {
			n.ends = append(n.ends, fmt.Errorf("agent %s ended by itself: %w", n.name, err))
		}
	})
}

// up lets the node run.
func (n *node) up() { n.update(func() { n.down = false }) }

// ready waits until it serves.
func (n *node) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return n.await(ctx, "ready", func() bool { return n.server != nil })
}

// kill ends the process with SIGKILL, and keeps it down.
func (n *node) kill(ctx context.Context) error {
	n.update(func() {
		n.down = true
		if n.starting != nil {
			n.starting() // which kills it
		}
	})
	if s := n.current(); s != nil {
		s.Kill()
	}
	return n.gone(ctx)
}

// drain ends the process with SIGTERM and keeps it down. It must end with exit status 0.
func (n *node) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainWithin)
	defer cancel()
	if err := n.await(ctx, "ready", func() bool { return n.server != nil }); err != nil {
		return err
	}
	s := n.current()
	if s == nil {
		return fmt.Errorf("agent %s ended by itself when it was to drain", n.name)
	}
	n.update(func() { n.down = true })
	began := time.Now()
	if err := s.Stop(ctx); err != nil {
		return fmt.Errorf("agent %s: %w; its output ends with:\n%s", n.name, err, s.Output())
	}
	n.logf("agent %s drained in %v", n.name, time.Since(began).Round(time.Millisecond))
	return n.gone(ctx)
}

func (n *node) gone(ctx context.Context) error {
	return n.await(ctx, "gone", func() bool { return n.server == nil && n.starting == nil })
}

// current returns the process that serves; nil for none.
func (n *node) current() *servers.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.server
}

// allow says whether the node may end by itself during the next fault.
func (n *node) allow(may bool) { n.update(func() { n.might, n.mayEnd = n.mayEnd, may }) }

// misbehaved returns what it did wrong since the last time.
func (n *node) misbehaved() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := errors.Join(n.ends...)
	n.ends = nil
	return err
}
