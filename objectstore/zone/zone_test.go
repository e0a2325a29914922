package zone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/mem"
)

// counted is a bucket that remembers what was read from it.
type counted struct {
	objectstore.Store

	mu   sync.Mutex
	gets map[string]int // by name, offset and length
}

func (c *counted) Get(ctx context.Context, name string, off int64, p []byte) error {
	c.mu.Lock()
	c.gets[fmt.Sprint(name, " ", off, "+", len(p))]++
	c.mu.Unlock()
	return c.Store.Get(ctx, name, off, p)
}

func (c *counted) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	gets := c.gets
	c.gets = make(map[string]int)
	return gets
}

// world is a bucket with one object, and agents of a zone that read it, with node ids from 1 on.
type world struct {
	t       *testing.T
	bucket  *counted
	object  cache.Object
	content []byte
	agents  []*agent

	mu    sync.Mutex
	links []net.Conn // of homes
}

type agent struct {
	source *Source
	cache  *cache.Cache
	server *Server
	homes  []int32
	dials  int
	refuse error                   // of its server's dials
	behave func(conn net.Conn)     // instead of its server
	alter  func(net.Conn) net.Conn // of connections to its server, as who asks sees them
}

const blockBytes = 1 << 20

// newWorld makes an object of that many bytes and n agents, each with a cache of cacheBytes, who all ask each other.
func newWorld(t *testing.T, n int, objectBytes, cacheBytes int64) *world {
	t.Helper()
	w := &world{
		t: t, bucket: &counted{Store: mem.New(), gets: make(map[string]int)},
		object: cache.Object{Name: "a", Size: objectBytes}, content: make([]byte, objectBytes),
	}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(w.content)
	if err := w.bucket.Put(t.Context(), w.object.Name, objectstore.Bytes(w.content)); err != nil {
		t.Fatal(err)
	}
	var all []int32
	for node := range int32(n) {
		all = append(all, node+1)
	}
	var serving sync.WaitGroup
	for _, node := range all {
		a := &agent{homes: all}
		a.source = New(Config{
			Self: node, Homes: func() []int32 { return slices.Clone(a.homes) }, Log: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, to int32) (net.Conn, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				home := w.agents[to-1]
				home.dials++
				if home.refuse != nil {
					return nil, home.refuse
				}
				here, there := net.Pipe()
				w.links = append(w.links, there)
				serving.Go(func() {
					defer func() { _ = there.Close() }()
					if home.behave != nil {
						home.behave(there)
						return
					}
					home.server.Serve(context.WithoutCancel(ctx), there)
				})
				if home.alter != nil {
					here = home.alter(here)
				}
				return here, nil
			},
		}, cache.NewBucket(w.bucket))
		var err error
		if a.cache, err = cache.New(cache.Config{BytesMax: cacheBytes}, a.source); err != nil {
			t.Fatal(err)
		}
		a.server = NewServer(a.cache, cacheBytes)
		w.agents = append(w.agents, a)
	}
	t.Cleanup(func() {
		for _, a := range w.agents {
			a.cache.Close()
			a.source.Close()
		}
		w.hangUp()
		serving.Wait()
	})
	return w
}

// hangUp ends all connections at the homes' ends.
func (w *world) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, conn := range w.links {
		_ = conn.Close()
	}
	w.links = nil
}

// read has an agent, by node id, read a range, which must give the right bytes.
func (w *world) read(node int32, off, n int64) *cache.Span {
	w.t.Helper()
	span, err := w.agents[node-1].cache.Read(w.t.Context(), w.object, off, n)
	if err != nil {
		w.t.Errorf("agent %d reads %d bytes from %d: %v", node, n, off, err)
		return &cache.Span{}
	}
	if !bytes.Equal(bytes.Join(span.Parts(), nil), w.content[off:off+n]) {
		w.t.Errorf("agent %d reads other bytes than were written", node)
	}
	return span
}

// home returns the home of the object's piece, and an agent that is not.
func (w *world) home(piece int64) (home, other int32) {
	nodes := w.agents[0].homes
	node := homeOf(w.object.Name, piece, nodes)
	return node, node%int32(len(nodes)) + 1
}

func (w *world) wantGets(want map[string]int) {
	w.t.Helper()
	if got := w.bucket.take(); !maps.Equal(got, want) {
		w.t.Errorf("GETs were %v, want %v", got, want)
	}
}

func (w *world) wantStats(node int32, want Stats) {
	w.t.Helper()
	if got := w.agents[node-1].source.Stats(); got != want {
		w.t.Errorf("agent %d counts %+v, want %+v", node, got, want)
	}
}

// TestHomes holds that pieces are spread evenly over agents, whatever their names, and that of n agents that come or go one takes about one n-th of
// the pieces with it, and no other piece moves.
func TestHomes(t *testing.T) {
	for _, c := range []struct {
		agents  []int32
		objects int
		pieces  int64
	}{{[]int32{1}, 100, 4}, {[]int32{1, 2}, 2500, 4}, {[]int32{1, 2, 3}, 2500, 4}, {[]int32{7, 1001, 1002, 1 << 30}, 10000, 1}, {[]int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 10, 1000}} {
		count := make(map[int32]int)
		total, moved := 0, 0
		come := append(slices.Clone(c.agents), 4711)
		for o := range c.objects {
			name := fmt.Sprintf("segments/%020d/%d", o/7, o)
			for piece := range c.pieces {
				node := homeOf(name, piece, c.agents)
				count[node]++
				total++
				switch after := homeOf(name, piece, come); after {
				case node:
				case 4711:
					moved++
				default:
					t.Fatalf("a piece moves from %d to %d when 4711 comes", node, after)
				}
			}
		}
		for _, node := range c.agents {
			if fair := total / len(c.agents); count[node] < fair*9/10 || count[node] > fair*11/10 {
				t.Errorf("agent %d of %v is home of %d of %d pieces", node, c.agents, count[node], total)
			}
		}
		if fair := total / len(come); moved < fair*8/10 || moved > fair*12/10 {
			t.Errorf("%d of %d pieces move when an agent joins %v", moved, total, c.agents)
		}
	}
	if node := homeOf("a", 0, nil); node != 0 {
		t.Errorf("home of a piece without agents is %d", node)
	}
	if homeOf("a", 0, []int32{1, 2, 3}) != homeOf("a", 0, []int32{3, 1, 2}) {
		t.Error("the home depends on the order of agents")
	}
}

// TestOneGetPerPiece has all agents of a zone read the same object at the same time, several readers each.
func TestOneGetPerPiece(t *testing.T) { synctest.Test(t, testOneGetPerPiece) }

func testOneGetPerPiece(t *testing.T) {
	const agents, size = 5, 15 << 20
	w := newWorld(t, agents, size, 64<<20)
	var wg sync.WaitGroup
	for node := range int32(agents) {
		for range 3 {
			wg.Go(func() {
				for off := int64(0); off < size; off += cache.GetBytesDefault {
					w.read(node+1, off, min(cache.GetBytesDefault, size-off)).Release()
				}
			})
		}
	}
	wg.Wait()
	w.wantGets(map[string]int{"a 0+4194304": 1, "a 4194304+4194304": 1, "a 8388608+4194304": 1, "a 12582912+3145728": 1})
	var sum Stats
	served := uint64(0)
	for _, a := range w.agents {
		st := a.source.Stats()
		sum.Bytes += st.Bytes
		sum.Fallbacks += st.Fallbacks
		served += a.server.Served().Bytes
	}
	if want := uint64(size * (agents - 1)); sum.Bytes != want || served != want || sum.Fallbacks != 0 {
		t.Errorf("agents got %d bytes from each other, handed out %d, and went to the bucket %d times instead, want %d bytes", sum.Bytes, served, sum.Fallbacks, want)
	}
}

// TestPrefetchAsksHomes holds that what is fetched ahead comes through homes too.
func TestPrefetchAsksHomes(t *testing.T) { synctest.Test(t, testPrefetchAsksHomes) }

func testPrefetchAsksHomes(t *testing.T) {
	w := newWorld(t, 2, 8<<20, 64<<20)
	for node := int32(1); node <= 2; node++ {
		w.agents[node-1].cache.Prefetch(w.object, 0, 8<<20, 8<<20, 0)
		w.read(node, 0, 8<<20).Release()
	}
	w.wantGets(map[string]int{"a 0+4194304": 1, "a 4194304+4194304": 1})
}

// TestHomeAsksNobody has two agents that both take the other for the home of everything.
func TestHomeAsksNobody(t *testing.T) {
	w := newWorld(t, 2, 1<<20, 64<<20)
	w.agents[0].homes, w.agents[1].homes = []int32{2}, []int32{1}
	w.read(1, 0, 1<<20).Release()
	w.wantGets(map[string]int{"a 0+1048576": 1})
	w.wantStats(1, Stats{Answers: 1, Bytes: 1 << 20})
	w.wantStats(2, Stats{})
}

// TestDirect holds that who wants bytes from the bucket itself gets them from there.
func TestDirect(t *testing.T) {
	w := newWorld(t, 2, 1<<20, 64<<20)
	home, other := w.home(0)
	w.read(home, 0, 1<<20).Release()
	w.object.Direct = true
	w.read(other, 0, 1<<20).Release()
	w.wantGets(map[string]int{"a 0+1048576": 2})
	w.wantStats(other, Stats{})
}

// TestFallback has homes fail in all ways that show at once: who asks gets the bytes all the same.
func TestFallback(t *testing.T) {
	broken := errors.New("no route")
	ask := func(conn net.Conn) { _, _ = readRequest(conn) }
	for _, c := range []struct {
		name    string
		home    func(*agent)
		leftOut bool
	}{
		{"not reachable", func(a *agent) { a.refuse = broken }, true},
		{"hangs up at once", func(a *agent) { a.behave = func(c net.Conn) { _ = c.Close() } }, true},
		{"hangs up when asked", func(a *agent) { a.behave = func(c net.Conn) { ask(c); _ = c.Close() } }, true},
		{"dies in mid-answer", func(a *agent) {
			a.behave = func(c net.Conn) {
				ask(c)
				_, _ = c.Write(make([]byte, 1+100))
				_ = c.Close()
			}
		}, true},
		{"speaks another language", func(a *agent) {
			a.behave = func(c net.Conn) {
				ask(c)
				_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request"))
				_ = c.Close()
			}
		}, true},
		{"has no memory", func(a *agent) {
			held, err := a.cache.Read(t.Context(), cache.Object{Name: "b", Size: 8 << 20}, 0, 8<<20)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(held.Release)
		}, false},
		{"has closed its cache", func(a *agent) { a.cache.Close() }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 2, 2<<20, 8<<20)
			if err := w.bucket.Put(t.Context(), "b", objectstore.Bytes(make([]byte, 8<<20))); err != nil {
				t.Fatal(err)
			}
			home, other := w.home(0)
			c.home(w.agents[home-1])
			w.bucket.take()
			w.read(other, 0, blockBytes).Release()
			w.wantGets(map[string]int{"a 0+1048576": 1})
			w.wantStats(other, Stats{Fallbacks: 1})
			w.read(other, blockBytes, blockBytes).Release()
			if got := w.agents[other-1].source.Stats().Fallbacks; (got == 1) != c.leftOut {
				t.Errorf("the second time, %d requests to homes have failed; left out: want %v", got, c.leftOut)
			}
		})
	}
}

// TestErrorsAreTheBuckets holds that what a reader is told is what the bucket says.
func TestErrorsAreTheBuckets(t *testing.T) {
	w := newWorld(t, 2, 1<<20, 8<<20)
	for node := range 2 {
		if _, err := w.agents[node].cache.Read(t.Context(), cache.Object{Name: "b", Size: 10}, 0, 10); !errors.Is(err, objectstore.ErrNotFound) {
			t.Errorf("read of an object that is not there: %v", err)
		}
	}
}

// TestNextHome holds that who leaves the home out asks the next one, and that it serves although it is not the home.
func TestNextHome(t *testing.T) {
	w := newWorld(t, 3, 1<<20, 8<<20)
	home, other := w.home(0)
	next := 6 - home - other
	if homeOf("a", 0, []int32{other, next}) == other {
		other, next = next, other
	}
	w.agents[home-1].refuse = io.ErrUnexpectedEOF
	w.read(other, 0, 10).Release()
	w.wantStats(other, Stats{Fallbacks: 1})
	w.agents[other-1].cache.Drop(w.object)
	w.read(other, 0, 10).Release()
	w.wantStats(other, Stats{Answers: 1, Bytes: 1 << 20, Fallbacks: 1})
	if got := w.agents[next-1].server.Served().Answers; got != 1 {
		t.Errorf("the next home served %d requests, want 1", got)
	}
}

// TestHomeComesBack holds that connections which the home has ended meanwhile are replaced without a word.
func TestHomeComesBack(t *testing.T) {
	w := newWorld(t, 2, 4<<20, 8<<20)
	home, other := w.home(0)
	for i := range int64(4) {
		w.read(other, i<<20, 10).Release()
		w.hangUp()
	}
	w.wantStats(other, Stats{Answers: 4, Bytes: 4 << 20})
	if got := w.agents[home-1].dials; got != 4 {
		t.Errorf("%d connections were made, want 4", got)
	}
}

// TestConnectionsAreReused holds that the same connection serves requests that follow each other, those that are refused among them.
func TestConnectionsAreReused(t *testing.T) {
	w := newWorld(t, 2, 4<<20, 8<<20)
	home, other := w.home(0)
	w.read(other, 0, 10).Release()
	if _, err := w.agents[other-1].cache.Read(t.Context(), cache.Object{Name: w.object.Name, Size: 5 << 20}, 3<<20, 2<<20); !errors.Is(err, objectstore.ErrDenied) {
		t.Errorf("read behind the object's end: %v", err)
	}
	w.read(other, 1<<20, 10).Release()
	if got := w.agents[home-1].dials; got > 2 { // two pieces may have asked at once
		t.Errorf("%d connections were made, want one for each request at a time", got)
	}
}
