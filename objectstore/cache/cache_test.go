package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
)

const blockBytes = 10

// fixture is a cache over a store with one object of 95 bytes: nine blocks and a half.
type fixture struct {
	store   *fault.Store
	cache   *cache.Cache
	object  cache.Object
	content []byte
}

func newFixture(t *testing.T, blocks int, rules ...fault.Rule) *fixture {
	t.Helper()
	f := &fixture{store: fault.New(mem.New()), object: cache.Object{Name: "a", Size: 95}, content: make([]byte, 95)}
	for i := range f.content {
		f.content[i] = byte(i)
	}
	if err := f.store.Put(t.Context(), "a", objectstore.Bytes(f.content)); err != nil {
		t.Fatal(err)
	}
	f.store.Add(rules...)
	c, err := cache.New(cache.Config{BytesMax: int64(blocks * blockBytes), BlockBytes: blockBytes, GetBytesMax: 3 * blockBytes}, cache.NewBucket(f.store))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	f.cache = c
	return f
}

// read reads a range that must succeed, and checks its bytes.
func (f *fixture) read(t *testing.T, off, n int64) *cache.Span {
	t.Helper()
	span, err := f.cache.Read(t.Context(), f.object, off, n)
	if err != nil {
		t.Fatalf("read of %d bytes from %d: %v", n, off, err)
	}
	f.check(t, span, off, n)
	return span
}

func (f *fixture) check(t *testing.T, span *cache.Span, off, n int64) {
	t.Helper()
	if got := bytes.Join(span.Parts(), nil); !bytes.Equal(got, f.content[off:off+n]) {
		t.Errorf("read of %d bytes from %d gives %v, want %v", n, off, got, f.content[off:off+n])
	}
	for _, part := range span.Parts() {
		if len(part) == 0 {
			t.Errorf("read of %d bytes from %d has an empty part", n, off)
		}
	}
}

func (f *fixture) wantStats(t *testing.T, want cache.Stats) {
	t.Helper()
	if got := f.cache.Stats(); got != want {
		t.Errorf("counters are\n%+v, want\n%+v", got, want)
	}
}

func TestReadEveryRange(t *testing.T) {
	f := newFixture(t, 10)
	for off := int64(0); off <= 95; off++ {
		for n := int64(0); n <= 95-off; n++ {
			f.read(t, off, n).Release()
		}
	}
	if stats := f.cache.Stats(); stats.GetBytes != 95 || stats.PinnedBytes != 0 {
		t.Errorf("counters are %+v, want every byte fetched once and nothing pinned", stats)
	}
}

func TestReadRefuses(t *testing.T) {
	f := newFixture(t, 5)
	for _, r := range []struct{ off, n int64 }{{0, 96}, {95, 1}, {96, 0}, {-1, 1}, {0, -1}, {1 << 62, 1 << 62}, {0, 51}, {5, 46}} {
		if _, err := f.cache.Read(t.Context(), f.object, r.off, r.n); !errors.Is(err, objectstore.ErrDenied) {
			t.Errorf("read of %d bytes from %d: %v, want %v", r.n, r.off, err, objectstore.ErrDenied)
		}
	}
	f.wantStats(t, cache.Stats{})
}

func TestNeighboursShareAGet(t *testing.T) {
	f := newFixture(t, 10)
	f.read(t, 45, 1).Release()  // block 4
	f.read(t, 12, 70).Release() // blocks 1 to 8, in pieces of three: GETs for 1-2, 3, 5 and 6-8
	f.wantStats(t, cache.Stats{Hits: 1, Misses: 8, Gets: 5, GetBytes: 80, BlockBytes: 80})
}

// TestSizeTellsObjectsApart reads an object of which somebody believes that it is shorter, in either order: it gets what it asks for, and
// others theirs.
func TestSizeTellsObjectsApart(t *testing.T) {
	for _, sizes := range [][]int64{{92, 95}, {95, 92}} {
		f := newFixture(t, 10)
		for _, size := range sizes {
			f.object.Size = size
			f.read(t, size-5, 5).Release()
		}
	}
}

func TestOneFlightForAllReaders(t *testing.T) {
	gate := fault.NewGate()
	f := newFixture(t, 4, fault.Rule{Op: fault.Get, Gate: gate})
	const readers = 20
	var wg sync.WaitGroup
	read := func() {
		span, err := f.cache.Read(t.Context(), f.object, 5, 10)
		if err != nil {
			t.Errorf("read: %v", err)
			return
		}
		f.check(t, span, 5, 10)
		span.Release()
	}
	wg.Go(read)
	<-gate.Entered()
	for range readers {
		wg.Go(read)
	}
	gate.Open()
	wg.Wait()
	stats := f.cache.Stats()
	if stats.Gets != 1 || stats.Misses != 2 || stats.Hits+stats.Joins != 2*readers {
		t.Errorf("counters are %+v, want one GET for all", stats)
	}
}

// TestReaderLeavesItsFlight cancels the reader that caused a flight: those who wait for it get their bytes.
func TestReaderLeavesItsFlight(t *testing.T) {
	gate := fault.NewGate()
	f := newFixture(t, 4, fault.Rule{Op: fault.Get, Gate: gate})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := f.cache.Read(ctx, f.object, 0, 10)
		first <- err
	}()
	<-gate.Entered()
	second := make(chan *cache.Span)
	go func() {
		span, err := f.cache.Read(t.Context(), f.object, 0, 10)
		if err != nil {
			t.Errorf("read of the reader that stayed: %v", err)
		}
		second <- span
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("read of the reader that left: %v, want the context's error", err)
	}
	gate.Open()
	if span := <-second; span != nil {
		f.check(t, span, 0, 10)
		span.Release()
	}
	if stats := f.cache.Stats(); stats.Gets != 1 || stats.PinnedBytes != 0 {
		t.Errorf("counters are %+v, want one GET and nothing pinned", stats)
	}
}

func TestFailureIsNotRemembered(t *testing.T) {
	for _, rule := range []struct {
		effect fault.Effect
		want   error
	}{{fault.Unavailable, objectstore.ErrUnavailable}, {fault.Denied, objectstore.ErrDenied}} {
		f := newFixture(t, 4, fault.Rule{Op: fault.Get, Nth: 2, Effect: rule.effect})
		f.read(t, 0, 30).Release()
		if _, err := f.cache.Read(t.Context(), f.object, 25, 10); !errors.Is(err, rule.want) {
			t.Errorf("read: %v, want %v", err, rule.want)
		}
		f.wantStats(t, cache.Stats{Hits: 1, Misses: 4, Gets: 2, GetBytes: 30, Failures: 1, BlockBytes: 40})
		f.read(t, 25, 10).Release()
	}
}

func TestMissingObject(t *testing.T) {
	f := newFixture(t, 4)
	if _, err := f.cache.Read(t.Context(), cache.Object{Name: "b", Size: 10}, 0, 1); !errors.Is(err, objectstore.ErrNotFound) {
		t.Errorf("read: %v, want %v", err, objectstore.ErrNotFound)
	}
}

func TestDrop(t *testing.T) {
	f := newFixture(t, 4, fault.Rule{Op: fault.Get, Effect: fault.WrongBytes})
	damaged, err := f.cache.Read(t.Context(), f.object, 0, 25)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Join(damaged.Parts(), nil)
	if bytes.Equal(before, f.content[:25]) {
		t.Fatal("the first read is not damaged")
	}
	f.cache.Drop(f.object)
	if _, err := f.cache.TryRead(t.Context(), f.object, 0, 25); !errors.Is(err, cache.ErrBusy) {
		t.Errorf("read with one free block for three: %v, want %v", err, cache.ErrBusy)
	}
	if after := bytes.Join(damaged.Parts(), nil); !bytes.Equal(before, after) {
		t.Error("bytes of a span changed before it was released")
	}
	damaged.Release()
	f.read(t, 0, 25).Release()
}

func TestLeastRecentlyUsedGoes(t *testing.T) {
	f := newFixture(t, 3)
	for _, off := range []int64{0, 10, 20, 0, 30} { // 30 takes the place of 10
		f.read(t, off, 1).Release()
	}
	before := f.cache.Stats()
	for _, off := range []int64{0, 20, 30} {
		f.read(t, off, 1).Release()
	}
	if after := f.cache.Stats(); after.Gets != before.Gets || after.Evictions != 1 || after.BlockBytes != 30 {
		t.Errorf("counters are %+v, want one eviction, of the block that was not used for longest", after)
	}
}

func TestPinnedBlocksStay(t *testing.T) {
	f := newFixture(t, 3)
	held := f.read(t, 0, 20)
	for off := int64(20); off < 90; off += 10 {
		f.read(t, off, 10).Release()
	}
	f.check(t, held, 0, 20)
	held.Release()
	held.Release() // counts once
	if stats := f.cache.Stats(); stats.PinnedBytes != 0 || stats.BlockBytes != 30 {
		t.Errorf("counters are %+v, want three blocks, none pinned", stats)
	}
}

// TestReadersWaitInOrder lets a large read wait for memory, and a small one behind it that would have enough.
func TestReadersWaitInOrder(t *testing.T) {
	f := newFixture(t, 3)
	held := f.read(t, 0, 20)
	order := make(chan string, 2)
	var wg sync.WaitGroup
	start := func(name string, off, n int64, waits uint64) {
		wg.Go(func() {
			span, err := f.cache.Read(t.Context(), f.object, off, n)
			if err != nil {
				t.Errorf("%s read: %v", name, err)
				return
			}
			order <- name
			f.check(t, span, off, n)
			span.Release()
		})
		for f.cache.Stats().Waits < waits {
			yield()
		}
	}
	start("large", 30, 30, 1)
	start("small", 70, 10, 2)

	f.read(t, 5, 10).Release() // needs no memory, and passes
	if _, err := f.cache.TryRead(t.Context(), f.object, 70, 10); !errors.Is(err, cache.ErrBusy) {
		t.Errorf("a try past those who wait: %v, want %v", err, cache.ErrBusy)
	}
	held.Release()
	wg.Wait()
	if first := <-order; first != "large" {
		t.Errorf("the %s read was first, want the large one, which came first", first)
	}
}

// TestWaiterLeaves cancels a read that waits for memory: the one behind it gets its turn.
func TestWaiterLeaves(t *testing.T) {
	f := newFixture(t, 3)
	held := f.read(t, 0, 20)
	ctx, cancel := context.WithCancel(t.Context())
	large, small := make(chan error), make(chan error)
	go func() {
		_, err := f.cache.Read(ctx, f.object, 30, 30)
		large <- err
	}()
	for f.cache.Stats().Waits < 1 {
		yield()
	}
	go func() {
		span, err := f.cache.Read(t.Context(), f.object, 70, 10)
		if err == nil {
			span.Release()
		}
		small <- err
	}()
	for f.cache.Stats().Waits < 2 {
		yield()
	}
	cancel()
	if err := <-large; !errors.Is(err, context.Canceled) {
		t.Errorf("read that left: %v, want the context's error", err)
	}
	if err := <-small; err != nil {
		t.Errorf("read behind it: %v", err)
	}
	held.Release()
	if stats := f.cache.Stats(); stats.PinnedBytes != 0 {
		t.Errorf("counters are %+v, want nothing pinned", stats)
	}
}

func TestPrefetch(t *testing.T) {
	f := newFixture(t, 40)
	f.cache.Prefetch(f.object, 25, 1000, 1000, 0) // blocks 2 to 9, in pieces of three: 2, 3-5, 6-8 and 9
	f.read(t, 20, 75).Release()
	stats := f.cache.Stats()
	if stats.Prefetches != 4 || stats.Gets != 4 || stats.Misses != 0 || stats.GetBytes != 75 || stats.PrefetchesDropped != 0 {
		t.Errorf("counters are %+v, want four GETs, all of prefetches", stats)
	}
	f.cache.Prefetch(f.object, 20, 75, 75, 0)
	f.cache.Prefetch(f.object, 95, 10, 10, 0)
	f.cache.Prefetch(f.object, -5, 5, 5, 0)
	if again := f.cache.Stats(); again.Prefetches != 4 {
		t.Errorf("counters are %+v, want no more prefetches of what is there or not in the object", again)
	}
}

func TestPrefetchIsDropped(t *testing.T) {
	t.Run("without memory", func(t *testing.T) {
		f := newFixture(t, 4)
		held := f.read(t, 0, 30)
		f.cache.Prefetch(f.object, 30, 20, 20, 0)
		f.read(t, 30, 10).Release()
		held.Release()
		if stats := f.cache.Stats(); stats.Prefetches != 1 || stats.PrefetchesDropped != 1 || stats.Evictions != 0 {
			t.Errorf("counters are %+v, want one block prefetched and one dropped", stats)
		}
	})
	t.Run("with many under way", func(t *testing.T) {
		gate := fault.NewGate()
		defer gate.Open()
		f := newFixture(t, 10, fault.Rule{Op: fault.Get, Times: fault.Always, Gate: gate})
		for off := int64(0); off < 90; off += 20 { // blocks 0, 2, 4, 6, 8
			f.cache.Prefetch(f.object, off, 10, 10, 0)
		}
		if stats := f.cache.Stats(); stats.Prefetches != 4 || stats.PrefetchesDropped != 1 {
			t.Errorf("counters are %+v, want four prefetches and one dropped", stats)
		}
	})
}

func TestClose(t *testing.T) {
	gate := fault.NewGate()
	defer gate.Open()
	f := newFixture(t, 2, fault.Rule{Op: fault.Get, Nth: 2, Gate: gate})
	held := f.read(t, 0, 10)
	flying, waiting := make(chan error), make(chan error)
	go func() {
		_, err := f.cache.Read(t.Context(), f.object, 10, 10)
		flying <- err
	}()
	<-gate.Entered()
	go func() {
		_, err := f.cache.Read(t.Context(), f.object, 50, 10)
		waiting <- err
	}()
	for f.cache.Stats().Waits < 1 {
		yield()
	}
	go f.cache.Close()
	for name, done := range map[string]chan error{"flying": flying, "waiting": waiting} {
		err := <-done
		if !errors.Is(err, objectstore.ErrUnavailable) || errors.Is(err, context.Canceled) {
			t.Errorf("%s read: %v, want %v", name, err, objectstore.ErrUnavailable)
		}
	}
	f.cache.Close()
	f.check(t, held, 0, 10)
	held.Release()
	if _, err := f.cache.Read(t.Context(), f.object, 0, 10); !errors.Is(err, objectstore.ErrUnavailable) {
		t.Errorf("read of a closed cache: %v, want %v", err, objectstore.ErrUnavailable)
	}
	f.cache.Prefetch(f.object, 0, 95, 95, 0)
}

func TestConfig(t *testing.T) {
	for _, config := range []cache.Config{{}, {BytesMax: 9, BlockBytes: 10}, {BytesMax: 100, BlockBytes: -1}} {
		if _, err := cache.New(config, cache.NewBucket(mem.New())); err == nil {
			t.Errorf("cache of %+v was made", config)
		}
	}
}

// TestManyReaders reads random ranges of several objects through a small cache, with failures, and checks every byte.
func TestManyReaders(t *testing.T) {
	const objects, readers, rounds = 4, 8, 400
	f := newFixture(t, 12, fault.Rule{Op: fault.Get, Prefix: "o", Nth: 50, Times: 20, Effect: fault.Unavailable})
	for i := range objects {
		if err := f.store.Put(t.Context(), fmt.Sprintf("o%d", i), objectstore.Bytes(f.content)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for reader := range readers {
		random := rand.New(rand.NewPCG(uint64(reader), 1))
		wg.Go(func() {
			for range rounds {
				o := cache.Object{Name: fmt.Sprintf("o%d", random.IntN(objects)), Size: 95}
				off := random.Int64N(95)
				n := 1 + random.Int64N(95-off)
				ctx, cancel := context.WithCancel(t.Context())
				switch random.IntN(8) {
				case 0:
					f.cache.Prefetch(o, off, n, n, 0)
				case 1:
					f.cache.Drop(o)
				case 2:
					go cancel()
				}
				span, err := f.cache.Read(ctx, o, off, n)
				cancel()
				if err != nil {
					if !errors.Is(err, context.Canceled) && !errors.Is(err, objectstore.ErrUnavailable) {
						t.Errorf("read: %v", err)
					}
					continue
				}
				// Another range while this one is held.
				if more, err := f.cache.TryRead(t.Context(), o, 0, 30); err == nil {
					f.check(t, more, 0, 30)
					more.Release()
				}
				f.check(t, span, off, n)
				span.Release()
			}
		})
	}
	wg.Wait()
	f.cache.Close()
	if stats := f.cache.Stats(); stats.PinnedBytes != 0 || stats.BlockBytes > 120 {
		t.Errorf("counters are %+v, want nothing pinned and at most 12 blocks", stats)
	}
}

func yield() { runtime.Gosched() }

func BenchmarkReadHit(b *testing.B) {
	store := mem.New()
	o := cache.Object{Name: "a", Size: 8 << 20}
	if err := store.Put(b.Context(), "a", objectstore.Bytes(make([]byte, o.Size))); err != nil {
		b.Fatal(err)
	}
	c, err := cache.New(cache.Config{BytesMax: 16 << 20}, cache.NewBucket(store))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		span, err := c.Read(b.Context(), o, off, 512<<10)
		if err != nil {
			b.Fatal(err)
		}
		span.Release()
		off = (off + 512<<10) % o.Size
	}
}
