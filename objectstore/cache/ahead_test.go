package cache_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/fault"
)

// put puts an object of so many pieces of three blocks.
func (f *fixture) put(t *testing.T, name string, pieces int) cache.Object {
	t.Helper()
	content := make([]byte, pieces*3*blockBytes)
	if err := f.store.Put(t.Context(), name, objectstore.Bytes(content)); err != nil {
		t.Fatal(err)
	}
	return cache.Object{Name: name, Size: int64(len(content))}
}

// readOn reads n bytes from off of an object to the end of which the reader is expected to read on, and waits for all that is under way.
func (f *fixture) readOn(t *testing.T, o cache.Object, off, n int64) {
	t.Helper()
	span, err := f.cache.ReadOn(t.Context(), o, off, n, o.Size-off-n, true)
	if err != nil {
		t.Fatalf("read of %d bytes from %d: %v", n, off, err)
	}
	span.Release()
	for st := f.cache.Stats(); st.PinnedBytes > 0; st = f.cache.Stats() {
		yield()
	}
}

// TestReadOn reads an object from its start to its end, in steps that do not fit the blocks, and from its middle on: one GET for each piece, and nothing twice.
func TestReadOn(t *testing.T) {
	for _, c := range []struct {
		from int64
		gets uint64
	}{{0, 20}, {310, 10}} { // a part of a piece is one GET
		f := newFixture(t, 100)
		o := f.put(t, "long", 20)
		for off := c.from; off < o.Size; off += 7 {
			f.readOn(t, o, off, min(7, o.Size-off))
			ahead := int64(f.cache.Stats().GetBytes) - (off - c.from)
			if most := f.cache.AheadBytes() + f.cache.PieceBytes() + 2*blockBytes; ahead > most {
				t.Fatalf("at %d the cache is %d bytes ahead, want %d at most", off, ahead, most)
			}
		}
		if st := f.cache.Stats(); st.Gets != c.gets || int64(st.GetBytes) != o.Size-c.from/blockBytes*blockBytes || st.Misses > 2 {
			t.Errorf("from %d: counters are %+v, want %d GETs", c.from, st, c.gets)
		}
	}
}

// TestReadersShareWhatIsAhead has readers read objects side by side, in turns, through a cache that cannot hold what each would like to have ahead of it: all read ahead, and nothing that was fetched
// is gone when its reader comes.
func TestReadersShareWhatIsAhead(t *testing.T) {
	for readers := 1; readers <= 12; readers++ {
		f := newFixture(t, 60)
		var objects []cache.Object
		for i := range readers {
			objects = append(objects, f.put(t, fmt.Sprint("object", i), 10))
		}
		for off := int64(0); off < objects[0].Size; off += blockBytes {
			for _, o := range objects {
				f.readOn(t, o, off, blockBytes)
			}
		}
		st := f.cache.Stats()
		if int64(st.GetBytes) != int64(readers)*objects[0].Size {
			t.Errorf("%d readers of %d bytes have %d fetched", readers, objects[0].Size, st.GetBytes)
		}
		// The half of the cache has ten pieces.
		if pieces := uint64(10 * readers); st.Gets > pieces && readers < 5 || st.Gets > 2*pieces {
			t.Errorf("%d readers have %d pieces fetched by %d GETs", readers, pieces, st.Gets)
		}
		if st.BlockBytes > 60*blockBytes {
			t.Errorf("%d bytes of blocks, want %d at most", st.BlockBytes, 60*blockBytes)
		}
	}
}

// TestAheadLeavesRoom holds that what is fetched ahead never takes more than half of the cache, nor what a reader has just read.
func TestAheadLeavesRoom(t *testing.T) {
	f := newFixture(t, 20)
	f.read(t, 0, 90).Release()
	o := f.put(t, "long", 20)
	for off := int64(0); off < o.Size; off += 3 * blockBytes {
		f.cache.Prefetch(o, off, 3*blockBytes, 3*blockBytes, 0)
		for f.cache.Stats().PinnedBytes > 0 {
			yield()
		}
	}
	before := f.cache.Stats()
	if before.Prefetches == 0 || before.GetBytes-90 > 10*blockBytes {
		t.Errorf("counters are %+v, want at most 10 blocks ahead", before)
	}
	f.read(t, 0, 90).Release()
	if after := f.cache.Stats(); after.Misses != before.Misses {
		t.Errorf("counters are %+v, want nothing that was read gone", after)
	}
}

// TestGoneReaders holds that what was fetched for readers who never come does not keep others from having something fetched, once time has passed.
func TestGoneReaders(t *testing.T) { synctest.Test(t, testGoneReaders) }

func testGoneReaders(t *testing.T) {
	f := newFixture(t, 20)
	for i := range 5 {
		f.readOn(t, f.put(t, fmt.Sprint("gone", i), 4), 0, 1)
	}
	before := f.cache.Stats()
	time.Sleep(time.Minute)
	o := f.put(t, "long", 1000)
	for off := int64(0); off < o.Size; off += blockBytes {
		f.readOn(t, o, off, blockBytes)
	}
	if gets := f.cache.Stats().Gets - before.Gets; gets > 1000 {
		t.Errorf("%d GETs for 1000 pieces", gets)
	}
}

// TestSlowReader holds that what was fetched ahead of a reader waits for it, however much others read meanwhile.
func TestSlowReader(t *testing.T) { synctest.Test(t, testSlowReader) }

func testSlowReader(t *testing.T) {
	f := newFixture(t, 40)
	slow, o := f.put(t, "slow", 1), f.put(t, "long", 1000)
	f.readOn(t, slow, 0, 1)
	for off := int64(0); off < o.Size; off += blockBytes {
		f.readOn(t, o, off, blockBytes)
		time.Sleep(5 * time.Millisecond)
	}
	before := f.cache.Stats()
	f.readOn(t, slow, blockBytes, 2*blockBytes)
	if after := f.cache.Stats(); after.Gets != before.Gets {
		t.Errorf("%d GETs for what was there", after.Gets-before.Gets)
	}
}

// TestAheadFails holds that a GET for blocks that nobody waits for may fail, and leaves nothing behind.
func TestAheadFails(t *testing.T) {
	f := newFixture(t, 40)
	o := f.put(t, "long", 8)
	f.store.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
	f.cache.Prefetch(o, 0, o.Size, f.cache.AheadBytes(), 0)
	for f.cache.Stats().PinnedBytes > 0 {
		yield()
	}
	f.store.Clear()
	for off := int64(0); off < o.Size; off += blockBytes {
		f.readOn(t, o, off, blockBytes)
	}
	if st := f.cache.Stats(); st.Failures != 3 || st.Gets != 8+3 || f.cache.Room() != 40*blockBytes {
		t.Errorf("counters are %+v with room for %d bytes, want 3 failures and 8 good GETs", st, f.cache.Room())
	}
}

// TestPlacesInLine: who comes again to its place in line, and wants less, is served at once if there is room; a place that nobody comes back to does not hold others up for ever.
func TestPlacesInLine(t *testing.T) { synctest.Test(t, testPlacesInLine) }

func testPlacesInLine(t *testing.T) {
	f := newFixture(t, 4)
	held := f.read(t, 0, 3*blockBytes)
	defer held.Release()
	hurried := func(blocks int64) (*cache.Span, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return f.cache.Read(ctx, f.object, 5*blockBytes, blocks*blockBytes)
	}
	if _, err := hurried(2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read of two blocks while there is room for one: %v", err)
	}
	span, err := hurried(1)
	if err != nil {
		t.Fatalf("read of one block at the place of two: %v", err)
	}
	span.Release()
	if _, err := hurried(2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read of two blocks while there is room for one: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := f.cache.Read(ctx, f.object, 8*blockBytes, blockBytes); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("somebody is served before who wants more and has waited for longer: %v", err)
	}
	time.Sleep(time.Minute)
	f.read(t, 4*blockBytes, blockBytes).Release()
}
