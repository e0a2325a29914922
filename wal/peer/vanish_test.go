package peer_test

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

// wire has both ends of the connections of a test, and can be cut.
type wire struct {
	net.Listener
	tb   testing.TB
	mu   sync.Mutex
	ends []net.Conn
}

func (w *wire) add(c net.Conn, err error) (net.Conn, error) {
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ends = append(w.ends, c)
	}
	return c, err
}

func (w *wire) Accept() (net.Conn, error) { return w.add(w.Listener.Accept()) }

func (w *wire) dial(ctx context.Context, address string) (net.Conn, error) {
	return w.add(new(net.Dialer).DialContext(ctx, "tcp", address))
}

// cut has the kernel ignore all packets for these connections, as if the machine at the other end had vanished. Nobody is told.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	for _, c := range w.ends {
		sys, err := c.(*net.TCPConn).SyscallConn()
		must(w.tb, err)
		must(w.tb, sys.Control(func(fd uintptr) {
			must(w.tb, unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing}))
		}))
	}
}

// wired starts an agent, and gives another's view of its store, with patience of its own.
func wired(t *testing.T, patience time.Duration) (*remote, *peer.Store, *wire) {
	t.Helper()
	w := &wire{tb: t}
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.Timeout = 2 * time.Second })
	var err error
	w.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = r.server.Serve(w) }()
	s := r.dial(t, func(cfg *peer.Config) {
		cfg.Address, cfg.Dialer, cfg.Stall, cfg.Timeout = w.Addr().String(), dialer(t, w.dial), patience, patience
	})
	return r, s, w
}

// soon fails if something took longer than the kernel's time for a machine that does not answer, which is 5 s, with room for a busy machine.
func soon(tb testing.TB, what string, since time.Time) {
	tb.Helper()
	if took := time.Since(since); took > 15*time.Second {
		tb.Errorf("%s took %s", what, took)
	}
}

// TestVanishedServer: a client that waits for an answer finds out that the server's machine is gone.
func TestVanishedServer(t *testing.T) {
	t.Parallel()
	t.Run("append on its way", func(t *testing.T) {
		t.Parallel()
		_, s, w := wired(t, time.Minute)
		a := create(t, s, segment)
		w.cut()
		began := time.Now()
		wants(t, "append", a.Append([][]byte{framed(segment, 1, 10)}), peering.ErrUnreachable)
		soon(t, "append", began)
	})
	t.Run("append over there", func(t *testing.T) {
		t.Parallel()
		r, s, w := wired(t, time.Minute)
		a := create(t, s, segment)
		r.disk.Hold()
		defer r.disk.Go()
		appended := make(chan error)
		go func() { appended <- a.Append([][]byte{framed(segment, 1, 10)}) }()
		r.disk.AwaitHeld(1)
		w.cut()
		began := time.Now()
		wants(t, "append", <-appended, peering.ErrUnreachable)
		soon(t, "append", began)
	})
	t.Run("seal", func(t *testing.T) {
		t.Parallel()
		r, s, w := wired(t, time.Minute)
		a := create(t, s, segment)
		r.disk.Hold()
		defer r.disk.Go()
		go func() { _ = a.Append([][]byte{framed(segment, 1, 10)}) }()
		r.disk.AwaitHeld(1)
		sealed := make(chan error)
		go func() {
			_, err := s.Seal(segment, 6)
			sealed <- err
		}()
		for r.Fence(segment.Log) != 6 {
			runtime.Gosched()
		}
		w.cut()
		began := time.Now()
		wants(t, "seal", <-sealed, peering.ErrUnreachable)
		soon(t, "seal", began)
	})
}

// TestVanishedWriter: a segment has no writer any more soon after the writer's machine is gone, whether an answer is on its way or not.
func TestVanishedWriter(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"idle", "answered"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, s, w := wired(t, time.Minute)
			a := create(t, s, segment)
			last := frame.EntryID(0)
			if name == "answered" {
				r.disk.Hold()
				go func() { _ = a.Append([][]byte{framed(segment, 1, 10)}) }()
				r.disk.AwaitHeld(1)
				last = 1
			}
			w.cut()
			began := time.Now()
			r.disk.Go()
			r.log.await("WAL peer gone")
			soon(t, "the writer's end", began)
			answer, err := r.Seal(segment, 6)
			must(t, err)
			if answer.Last != last {
				t.Errorf("answer %+v, want to %d", answer, last)
			}
		})
	}
}
