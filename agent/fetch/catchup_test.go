package fetch

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/objectstore/zone"
	"github.com/varve-io/varve/protocol"
)

// counted is a bucket that counts GETs: those of footers, and of what is before.
type counted struct {
	objectstore.Store
	footers map[string]int64 // where they begin; is not changed while anybody reads

	mu                   sync.Mutex
	blockGets, otherGets int
	most                 int // bytes of a GET
}

func (c *counted) Get(ctx context.Context, name string, off int64, p []byte) error {
	c.mu.Lock()
	if off < c.footers[name] {
		c.blockGets++
	} else {
		c.otherGets++
	}
	c.most = max(c.most, len(p))
	c.mu.Unlock()
	return c.Store.Get(ctx, name, off, p)
}

// history is old data: partitions of which nothing is in memory.
type history struct {
	*bucket
	counted *counted
	ends    map[int32]protocol.Offset
}

func newHistory(t *testing.T) *history {
	b := newBucket(t, 1<<20)
	return &history{bucket: b, counted: &counted{Store: b.store, footers: make(map[string]int64)}, ends: make(map[int32]protocol.Offset)}
}

// batch returns a partition's next batch, of that many bytes and a few, whose timestamp is ten times its offset.
func (h *history) batch(t *testing.T, n int32, size int) []byte {
	h.ends[n]++
	at := h.ends[n] - 1
	return raw(t, at, size, int64(at)*10)
}

// flushed puts batches into a segment as a flush does, merged as a merge does.
func (h *history) flushed(t *testing.T, batches map[int32][][]byte) {
	h.add(t, batches)
	o := h.index.Tail(id(0))
	h.counted.footers[o[len(o)-1].Object.Name] = o[len(o)-1].Object.FooterPos
}

func (h *history) merged(t *testing.T, batches map[int32][][]byte) {
	t.Helper()
	builder := segment.Builder{Level: segment.Merged}
	for n, list := range batches {
		for _, data := range list {
			if err := builder.Add(segment.Key{Topic: protocol.TopicID{1}, Partition: n}, "t", data); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.commit++
	parts, footer, err := builder.Finish(segment.Header{ID: segment.ID{Level: segment.Merged, Fence: 1, Commit: h.commit}, CreatedMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	o := &index.Object{Name: footer.Header.ID.Name(), Size: footer.ObjectSize, FooterPos: footer.Pos}
	if err := h.store.Put(t.Context(), o.Name, objectstore.Body{Parts: parts, Size: o.Size}); err != nil {
		t.Fatal(err)
	}
	h.counted.footers[o.Name] = o.FooterPos
	for i := range footer.Sections {
		s := &footer.Sections[i]
		e := index.Extent{
			First: s.FirstOffset, Next: s.NextOffset, LastStable: s.NextOffset, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: 1, Object: o,
		}
		if err := h.index.Replace(id(s.Partition), index.Merged{End: e.Next, LastStable: e.Next, Extents: append(h.index.Extents(id(s.Partition)), e)}); err != nil {
			t.Fatal(err)
		}
	}
}

// cold returns a reader that has nothing in memory, with pieces of 4 blocks.
func (h *history) cold(t *testing.T, cacheBytes int64) *Reader {
	t.Helper()
	blocks, err := cache.New(cache.Config{BytesMax: cacheBytes, BlockBytes: blockBytes, GetBytesMax: 4 * blockBytes}, cache.NewBucket(h.counted))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(blocks.Close)
	return NewReader(h.index, NewFooters(h.counted, 1<<20), blocks)
}

// TestColdLookup counts what a lookup by time costs that finds nothing in memory: the footer and the batch, wherever the batch lies.
func TestColdLookup(t *testing.T) {
	for name, level := range map[string]func(*history, *testing.T, map[int32][][]byte){"flushed": (*history).flushed, "merged": (*history).merged} {
		t.Run(name, func(t *testing.T) {
			h := newHistory(t)
			for range 3 {
				batches := make(map[int32][][]byte)
				for i := range 60 {
					n := int32(i % 2)
					batches[n] = append(batches[n], h.batch(t, n, 37*i%600))
				}
				level(h, t, batches)
			}
			for n, end := range h.ends {
				for offset := range end {
					h.counted.blockGets, h.counted.otherGets, h.counted.most = 0, 0, 0
					lookup := NewLookup(h.index, h.cold(t, 1<<20), 1<<20)
					found, ok, err := lookup.FirstAtOrAfter(t.Context(), restored(n, 0, end), int64(offset)*10-5, end)
					if err != nil || !ok || found.Offset != offset {
						t.Fatalf("partition %d at the time of offset %d: %+v, %v, %v", n, offset, found, ok, err)
					}
					if h.counted.blockGets > 1 || h.counted.otherGets > 1 || h.counted.most > 4*blockBytes {
						t.Errorf("partition %d, offset %d: %d GETs of footers and %d of batches, the largest of %d bytes, want one each", n, offset, h.counted.otherGets, h.counted.blockGets, h.counted.most)
					}
				}
				for _, start := range []protocol.Offset{0, 7, end - 1} {
					h.counted.blockGets, h.counted.otherGets = 0, 0
					found, ok, err := NewLookup(h.index, h.cold(t, 1<<20), 1<<20).Latest(t.Context(), restored(n, start, end), end)
					if err != nil || !ok || found.Offset != end-1 || h.counted.blockGets+h.counted.otherGets > 2 {
						t.Errorf("partition %d from %d, latest: %+v, %v, %v by %d and %d GETs", n, start, found, ok, err, h.counted.otherGets, h.counted.blockGets)
					}
				}
			}
		})
	}
}

// TestColdLookupCut counts the same where the log begins within a segment, whose largest timestamp is of its first record.
func TestColdLookupCut(t *testing.T) {
	h := newHistory(t)
	h.merged(t, map[int32][][]byte{0: {raw(t, 0, 10, 1000, 10), raw(t, 2, 10, 20)}})
	h.merged(t, map[int32][][]byte{0: {raw(t, 3, 10, 500)}})
	for _, test := range []struct {
		start            protocol.Offset
		ts               int64
		offset           protocol.Offset
		footers, batches int
	}{
		{0, 100, 0, 1, 1}, // nothing is cut
		{1, 5, 1, 1, 1},
		{1, 15, 2, 1, 1},
		{1, 100, 3, 2, 2}, // within a batch
		{2, 15, 2, 1, 1},
		{2, 100, 3, 2, 1}, // between two
		{3, 100, 3, 1, 1},
	} {
		h.counted.blockGets, h.counted.otherGets = 0, 0
		found, ok, err := NewLookup(h.index, h.cold(t, 1<<20), 1<<20).FirstAtOrAfter(t.Context(), restored(0, test.start, 4), test.ts, 4)
		if err != nil || !ok || found.Offset != test.offset || h.counted.otherGets != test.footers || h.counted.blockGets != test.batches {
			t.Errorf("%+v: found %+v, %v, %v by %d GETs of footers and %d of batches", test, found, ok, err, h.counted.otherGets, h.counted.blockGets)
		}
	}
}

// readAll reads partitions from their starts to their ends, as a consumer does, and checks each byte.
func readAll(t *testing.T, r *Reader, bytesMax int, log map[int32][]byte, ends map[int32]protocol.Offset) {
	f := New(r)
	at := make(map[int32]protocol.Offset)
	left := maps.Clone(log)
	for len(left) > 0 {
		var wants []Want
		for n := range left {
			wants = append(wants, Want{Partition: restored(n, 0, ends[n]), Offset: at[n], BytesMax: bytesMax, CurrentEpoch: protocol.NoLeaderEpoch, LastEpoch: protocol.NoLeaderEpoch})
		}
		result := f.Fetch(t.Context(), wants, Limits{BytesMax: 50 * bytesMax})
		for i := range wants {
			n, part := wants[i].Partition.ID.Partition, &result.Parts[i]
			got := bytes.Join(part.Records, nil)
			if part.Err != nil || !bytes.HasPrefix(left[n], got) {
				t.Errorf("partition %d, offset %d: %d bytes that are not what was written, or %v", n, at[n], len(got), part.Err)
				return
			}
			if left[n] = left[n][len(got):]; len(left[n]) == 0 {
				delete(left, n)
			}
			at[n] = part.Next
		}
		result.Release()
	}
}

// TestSequentialGets counts what it costs to read all of a topic that was merged: one GET for each piece, one more where two partitions meet, and the footers; for several consumers
// on one agent no more than for one.
func TestSequentialGets(t *testing.T) {
	const segments, partitions = 3, 2
	h := newHistory(t)
	log := make(map[int32][]byte)
	pieces := 0
	for range segments {
		batches := make(map[int32][][]byte)
		size := 0
		for n := range int32(partitions) {
			for i := range 150 {
				data := h.batch(t, n, 100+37*i%900)
				batches[n] = append(batches[n], data)
				log[n] = append(log[n], data...)
				size += len(data)
			}
		}
		h.merged(t, batches)
		pieces += size/(4*blockBytes) + partitions + 1
	}
	for _, c := range []struct {
		consumers, bytesMax int
	}{{1, 700}, {1, 5000}, {1, 100_000}, {3, 5000}} {
		t.Run(fmt.Sprint(c.consumers, " consumers, ", c.bytesMax, " bytes"), func(t *testing.T) {
			h.counted.blockGets, h.counted.otherGets = 0, 0
			r := h.cold(t, 1<<20)
			var wg sync.WaitGroup
			for range c.consumers {
				wg.Go(func() { readAll(t, r, c.bytesMax, log, h.ends) })
			}
			wg.Wait()
			if h.counted.blockGets > pieces || h.counted.otherGets > segments {
				t.Errorf("%d GETs of at most %d pieces, and %d of %d footers", h.counted.blockGets, pieces, h.counted.otherGets, segments)
			}
		})
	}
}

// TestUnmergedAhead holds that a reader of many small segments has those that follow fetched while it reads, footers too.
func TestUnmergedAhead(t *testing.T) {
	h := newHistory(t)
	log := make(map[int32][]byte)
	for range 40 {
		data := h.batch(t, 0, 3000)
		log[0] = append(log[0], data...)
		h.flushed(t, map[int32][][]byte{0: {data}})
	}
	r := h.cold(t, 1<<20)
	result := New(r).Fetch(t.Context(), []Want{{Partition: restored(0, 0, 40), BytesMax: 3200, CurrentEpoch: protocol.NoLeaderEpoch, LastEpoch: protocol.NoLeaderEpoch}}, Limits{BytesMax: 3200})
	defer result.Release()
	if result.Bytes == 0 {
		t.Fatalf("nothing: %v", result.Parts[0].Err)
	}
	want := index.Extent{}
	for _, e := range h.index.Next(id(0), 1, 2) {
		want = e
	}
	for r.footers.lookup(want.Object.Name) == nil || r.cache.Stats().Prefetches < 2 {
		// Nobody asks for them.
		runtime.Gosched()
	}
	readAll(t, r, 3200, log, h.ends)
	if h.counted.otherGets > 40 || h.counted.blockGets > 2*40 { // a batch of 3,000 bytes lies in two pieces of 2,048
		t.Errorf("%d GETs of footers and %d of blocks for 40 segments", h.counted.otherGets, h.counted.blockGets)
	}
}

// TestSmallExtentsShare holds that a reader of many small segments leaves to others what it would of a large one: of the half of the cache that is for what is fetched ahead, half.
func TestSmallExtentsShare(t *testing.T) {
	h := newHistory(t)
	for range 20 {
		h.flushed(t, map[int32][][]byte{0: {h.batch(t, 0, 50)}})
	}
	r := h.cold(t, 32*blockBytes)
	for range 5 { // not all at once
		result := New(r).Fetch(t.Context(), []Want{{Partition: restored(0, 0, 20), BytesMax: 10, CurrentEpoch: protocol.NoLeaderEpoch, LastEpoch: protocol.NoLeaderEpoch}}, Limits{BytesMax: 10})
		result.Release()
		for r.cache.Stats().PinnedBytes > 0 {
			runtime.Gosched()
		}
	}
	if st := r.cache.Stats(); st.Prefetches > 8 || st.Prefetches < 6 {
		t.Errorf("%d blocks were fetched ahead of one reader, want 8 of 16 at most", st.Prefetches)
	}
}

// TestZoneGets has consumers on three agents of one zone read the same old data, one after the other and side by side: each piece comes from the bucket once.
func TestZoneGets(t *testing.T) {
	for name, together := range map[string]bool{"one after the other": false, "side by side": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testZoneGets(t, together) })
		})
	}
}

func testZoneGets(t *testing.T, together bool) {
	h := newHistory(t)
	log := make(map[int32][]byte)
	pieces := 0
	for range 2 {
		batches := make(map[int32][][]byte)
		size := 0
		for range 18 {
			data := h.batch(t, 0, 900_000)
			batches[0] = append(batches[0], data)
			log[0] = append(log[0], data...)
			size += len(data)
		}
		h.merged(t, batches)
		pieces += size/cache.GetBytesDefault + 1
	}
	z := newZone(t, h, 3)
	defer z.close()
	var wg sync.WaitGroup
	for _, a := range z.agents {
		wg.Go(func() { readAll(t, a.reader, 1<<20, log, h.ends) })
		if !together {
			wg.Wait()
		}
	}
	wg.Wait()
	if h.counted.blockGets > pieces {
		t.Errorf("%d GETs of %d pieces", h.counted.blockGets, pieces)
	}
}

// agents are those of one zone, each with a reader of its own.
type agents struct {
	agents  []*neighbour
	serving sync.WaitGroup
	cancel  context.CancelFunc
}

type neighbour struct {
	reader *Reader
	source *zone.Source
	blocks *cache.Cache
	server *zone.Server
}

func newZone(t *testing.T, h *history, n int32) *agents {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	z := &agents{cancel: cancel}
	var homes []int32
	for node := range n {
		homes = append(homes, node+1)
	}
	for _, node := range homes {
		a := new(neighbour)
		a.source = zone.New(zone.Config{
			Self: node, Homes: func() []int32 { return append([]int32(nil), homes...) }, Log: slog.New(slog.DiscardHandler),
			Dial: func(_ context.Context, to int32) (net.Conn, error) {
				here, there := net.Pipe()
				context.AfterFunc(ctx, func() { _ = there.Close() })
				z.serving.Go(func() { z.agents[to-1].server.Serve(ctx, there) })
				return here, nil
			},
		}, cache.NewBucket(h.counted))
		var err error
		const cacheBytes = 64 << 20
		if a.blocks, err = cache.New(cache.Config{BytesMax: cacheBytes}, a.source); err != nil {
			t.Fatal(err)
		}
		a.server = zone.NewServer(a.blocks, cacheBytes)
		a.reader = NewReader(h.index, NewFooters(h.counted, 1<<20), a.blocks)
		z.agents = append(z.agents, a)
	}
	return z
}

func (z *agents) close() {
	for _, a := range z.agents {
		a.blocks.Close()
		a.source.Close()
	}
	z.cancel()
	z.serving.Wait()
}
