package zone

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/fault"
)

// waits runs f, which must take that long.
func waits(t *testing.T, what string, want time.Duration, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	if took := time.Since(begin); took != want {
		t.Errorf("%s takes %v, want %v", what, took, want)
	}
}

// TestSlowHomes holds how long a reader waits for a home that is there and does not do its part, and that it then does without it for a while.
func TestSlowHomes(t *testing.T) {
	for _, c := range []struct {
		name   string
		behave func(net.Conn)
		want   time.Duration
	}{
		{"takes nothing", func(net.Conn) {}, beginMax},
		{"says nothing", func(c net.Conn) { _, _ = readRequest(c) }, beginMax},
		{"stops in mid-answer", func(c net.Conn) {
			_, _ = readRequest(c)
			_, _ = c.Write(make([]byte, 1+100))
		}, answerMax},
		{"trickles", func(c net.Conn) {
			_, _ = readRequest(c)
			for _, err := c.Write([]byte{0}); err == nil; _, err = c.Write(make([]byte, 100)) {
				time.Sleep(beginMax / 2)
			}
		}, answerMax},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2, 4<<20, 16<<20)
				home, other := w.home(0)
				w.agents[home-1].behave = func(conn net.Conn) {
					c.behave(conn)
					_, _ = io.Copy(io.Discard, conn) // until who asked hangs up
				}
				waits(t, "the first read", c.want, func() { w.read(other, 0, 10).Release() })
				waits(t, "a read while the home is left out", 0, func() { w.read(other, 1<<20, 10).Release() })
				time.Sleep(leftOutFor)
				w.agents[home-1].behave = nil
				w.read(other, 2<<20, 10).Release()
				w.wantStats(other, Stats{Answers: 1, Bytes: 1 << 20, Fallbacks: 1})
			})
		})
	}
}

// TestSlowBucket holds that who asks waits less for a home whose bucket is slow than for one that is frozen, and does not think badly of it, and that the home
// keeps what came.
func TestSlowBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 4<<20, 16<<20)
		home, other := w.home(0)
		gate := fault.NewGate()
		store := fault.New(w.bucket.Store)
		store.Add(fault.Rule{Op: fault.Get, Gate: gate})
		w.bucket.Store = store
		waits(t, "the read", readMax, func() { w.read(other, 0, 10).Release() })
		gate.Open()
		w.read(home, 0, 10).Release()
		w.wantGets(map[string]int{"a 0+1048576": 2})
		w.read(other, 1<<20, 10).Release()
		w.wantStats(other, Stats{Answers: 1, Bytes: 1 << 20, Fallbacks: 1})
	})
}

// TestFrozenBucket holds that a home whose bucket does not answer pins no more than its share for others, however many ask and give up.
func TestFrozenBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const share = 2 // pieces
		w := newWorld(t, 1, 32<<20, share*pinnedShare*cache.GetBytesDefault)
		a := w.agents[0]
		gate := fault.NewGate()
		store := fault.New(w.bucket.Store)
		store.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Gate: gate})
		w.bucket.Store = store
		here, there := net.Pipe()
		w.links = append(w.links, there)
		go a.server.Serve(t.Context(), there)
		const asked = share + 2
		ask := func(piece int64, want status) {
			t.Helper()
			r := request{object: w.object, off: piece * cache.GetBytesDefault, n: cache.GetBytesDefault}
			if _, err := here.Write(r.append(nil)); err != nil {
				t.Fatal(err)
			}
			st := make([]byte, 1)
			if _, err := io.ReadFull(here, st); err != nil || status(st[0]) != want {
				t.Fatalf("piece %d: %d, %v, want %d", piece, st, err, want)
			}
			if want == statusHere {
				_, _ = io.CopyN(io.Discard, here, r.n)
			}
		}
		for piece := range int64(asked) {
			ask(piece, statusRefused)
		}
		synctest.Wait()
		if got := a.cache.Stats().PinnedBytes; got != share*cache.GetBytesDefault {
			t.Errorf("%d bytes are pinned for those who have given up, want %d", got, share*cache.GetBytesDefault)
		}
		gate.Open()
		synctest.Wait()
		if got := a.cache.Stats().PinnedBytes; got != 0 {
			t.Errorf("%d bytes are pinned when the bucket has answered", got)
		}
		ask(asked, statusHere)
	})
}

// TestAskersInLine holds that an agent has few requests to a home under way, and that those in line for too long go to the bucket, without thinking badly of
// the home.
func TestAskersInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers = asksMax + 3
		w := newWorld(t, 2, readers, 16<<20)
		home, other := w.home(0)
		w.agents[home-1].behave = func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
		var wg sync.WaitGroup
		p := w.agents[other-1].source
		for i := range int64(readers) {
			wg.Go(func() {
				b := make([]byte, 1)
				if err := p.Get(t.Context(), w.object, i, [][]byte{b}); err != nil || b[0] != w.content[i] {
					t.Errorf("read of byte %d: %v", i, err)
				}
			})
		}
		synctest.Wait()
		w.mu.Lock()
		dials := w.agents[home-1].dials
		w.mu.Unlock()
		if dials != asksMax {
			t.Errorf("%d requests are under way, want %d", dials, asksMax)
		}
		wg.Wait()
		w.wantStats(other, Stats{Fallbacks: readers})
	})
}

// TestHomeLimits holds that a home pins no more than its share for others, takes it back from who does not take the answer, and refuses at once when all of
// its memory is held.
func TestHomeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const share = 2 // pieces
		w := newWorld(t, 1, 32<<20, share*pinnedShare*cache.GetBytesDefault)
		a := w.agents[0]
		ask := func(piece int64) net.Conn {
			here, there := net.Pipe()
			w.links = append(w.links, there)
			go func() {
				a.server.Serve(t.Context(), there)
				_ = there.Close()
			}()
			r := request{object: w.object, off: piece * cache.GetBytesDefault, n: cache.GetBytesDefault}
			if _, err := here.Write(r.append(nil)); err != nil {
				t.Fatal(err)
			}
			return here
		}
		stuck := []net.Conn{ask(0), ask(1), ask(2)}
		synctest.Wait()
		if got := a.cache.Stats().PinnedBytes; got != share*cache.GetBytesDefault {
			t.Errorf("%d bytes are pinned for those who do not take them, want %d", got, share*cache.GetBytesDefault)
		}
		time.Sleep(answerMax + time.Millisecond)
		synctest.Wait()
		if got := a.cache.Stats().PinnedBytes; got != 0 {
			t.Errorf("%d bytes are pinned for those who have not taken them in time", got)
		}
		time.Sleep(2 * beginMax) // the refusal of the third is not taken either
		for i, c := range stuck {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("connection %d of who takes nothing: %v, want its end", i, err)
			}
		}
		if got := a.server.Served(); got != (Served{Answers: 2, Bytes: share * cache.GetBytesDefault, Refusals: 1}) {
			t.Errorf("the home counts %+v", got)
		}

		defer w.read(1, 0, 32<<20).Release()
		waits(t, "a refusal", 0, func() {
			st := []byte{byte(statusHere)}
			if _, err := io.ReadFull(ask(0), st); err != nil || status(st[0]) != statusHere {
				t.Errorf("a request for what is there: %d, %v", st, err)
			}
			if err := w.bucket.Put(t.Context(), "b", objectstore.Bytes(make([]byte, 10))); err != nil {
				t.Error(err)
			}
			w.object = cache.Object{Name: "b", Size: cache.GetBytesDefault}
			if _, err := io.ReadFull(ask(0), st); err != nil || status(st[0]) != statusRefused {
				t.Errorf("a request without memory: %d, %v", st, err)
			}
		})
	})
}

// TestIdle holds that connections without requests end, first those of who asks.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 4<<20, 16<<20)
		home, other := w.home(0)
		s := w.agents[other-1].source
		links := func() (n int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, p := range s.peers {
				n += len(p.idle)
			}
			return n
		}
		w.read(other, 0, 10).Release()
		if got := links(); got != 1 {
			t.Errorf("%d connections wait after a request, want 1", got)
		}
		time.Sleep(idleMax + time.Second)
		if got := links(); got != 0 {
			t.Errorf("%d connections wait after a while, want none", got)
		}
		w.read(other, 1<<20, 10).Release()
		w.agents[other-1].homes = []int32{other, 6 - home - other} // the home leaves
		w.read(other, 2<<20, 10).Release()
		s.mu.Lock()
		if s.peers[home] != nil {
			t.Error("an agent that has left is still known")
		}
		s.mu.Unlock()

		here, there := net.Pipe()
		waits(t, "a connection without a request", idleCut, func() { w.agents[0].server.Serve(t.Context(), there) })
		_ = here.Close()
	})
}

func TestRequest(t *testing.T) {
	want := request{object: cache.Object{Name: "a/b", Size: 1 << 40}, off: 1<<40 - 10, n: 10}
	encoded := want.append(nil)
	if got, err := readRequest(bytes.NewReader(encoded)); err != nil || got != want {
		t.Errorf("read back %+v, %v, want %+v", got, err, want)
	}
	for n := range encoded {
		if _, err := readRequest(bytes.NewReader(encoded[:n])); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d of %d bytes: %v", n, len(encoded), err)
		}
	}
	for name, change := range map[string]func(*request){
		"no bytes":          func(r *request) { r.n = 0 },
		"more than a piece": func(r *request) { r.off, r.n = 0, cache.GetBytesDefault+1 },
		"past the end":      func(r *request) { r.off++ },
		"far past the end":  func(r *request) { r.off = 1<<63 - 1 },
		"negative offset":   func(r *request) { r.off = -1 },
		"negative size":     func(r *request) { r.object.Size = -1 },
		"no name":           func(r *request) { r.object.Name = "" },
		"long name":         func(r *request) { r.object.Name = string(make([]byte, objectstore.NameBytesMax+1)) },
		"bad name":          func(r *request) { r.object.Name = "../secret" },
	} {
		r := want
		change(&r)
		if _, err := readRequest(bytes.NewReader(r.append(nil))); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	encoded[0]++
	if _, err := readRequest(bytes.NewReader(encoded)); !errors.Is(err, errProtocol) {
		t.Errorf("another version: %v", err)
	}
}

// FuzzServe holds that a home survives whatever is said to it, and keeps no memory pinned.
func FuzzServe(f *testing.F) {
	good := request{object: cache.Object{Name: "a", Size: 10}, off: 2, n: 5}
	f.Add(good.append(nil))
	f.Add(good.append(good.append(nil)))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: varve\r\n\r\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		w := newWorld(t, 1, 10, 1<<20)
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.agents[0].server.Serve(t.Context(), there)
			_ = there.Close()
		}()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		_, _ = here.Write(said)
		_ = here.Close()
		<-done
		if got := w.agents[0].cache.Stats().PinnedBytes; got != 0 {
			t.Errorf("%d bytes are pinned", got)
		}
	})
}
