package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// bucket is a bucket with segments, and what reads them.
type bucket struct {
	store  *fault.Store
	index  *index.Index
	cache  *cache.Cache
	reader *Reader
	commit uint64
	stable protocol.Offset // what segments say is the last stable offset, if they reach so far
}

// blockBytes is small, so that batches lie across blocks.
const blockBytes = 512

func newBucket(t *testing.T, cacheBytes int64) *bucket {
	t.Helper()
	b := &bucket{store: fault.New(mem.New()), index: index.New(), stable: 1 << 40}
	var err error
	if b.cache, err = cache.New(cache.Config{BytesMax: cacheBytes, BlockBytes: blockBytes, GetBytesMax: 4 * blockBytes}, cache.NewBucket(b.store)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cache.Close)
	b.reader = NewReader(b.index, NewFooters(b.store, 1<<20), b.cache)
	return b
}

func id(n int32) partition.ID { return partition.ID{Topic: protocol.TopicID{1}, Partition: n} }

// raw returns a batch of one record per timestamp, with the offset as value, padded.
func raw(t *testing.T, base protocol.Offset, pad int, timestamps ...int64) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch = base, 1
	for i, ts := range timestamps {
		b.Append(ts, nil, append(fmt.Append(nil, int(base)+i), make([]byte, pad)...))
	}
	data, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// add puts one segment with those batches, by partition.
func (b *bucket) add(t *testing.T, batches map[int32][][]byte) {
	t.Helper()
	var builder segment.Builder
	for n, list := range batches {
		for _, data := range list {
			if err := builder.Add(segment.Key{Topic: protocol.TopicID{1}, Partition: n}, "t", data); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.commit++
	parts, footer, err := builder.Finish(segment.Header{ID: segment.ID{Log: 1, Fence: 1, Commit: b.commit}, FirstEntry: 1, LastEntry: 2, CreatedMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	name := footer.Header.ID.Name()
	if err := b.store.Put(t.Context(), name, objectstore.Body{Parts: parts, Size: footer.ObjectSize}); err != nil {
		t.Fatal(err)
	}
	o := &index.Object{Name: name, Size: footer.ObjectSize, FooterPos: footer.Pos}
	for i := range footer.Sections {
		s := &footer.Sections[i]
		err := b.index.Add(id(s.Partition), index.Extent{
			First: s.FirstOffset, Next: s.NextOffset, LastStable: min(s.NextOffset, b.stable), Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: 1, Object: o,
		}, 0)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// restored returns the partition as its leader restores it: up to offset end, and nothing in memory.
func restored(n int32, start, end protocol.Offset) *ingest.Partition {
	l := partition.New(1)
	l.RestoreStart(start)
	l.RestoreEnd(1, 0, end)
	return ingest.NewPartition(id(n), "t", 0, l)
}

func (b *bucket) fetch(t *testing.T, limits Limits, wants ...Want) *Result {
	t.Helper()
	for i := range wants {
		wants[i].CurrentEpoch, wants[i].LastEpoch = protocol.NoLeaderEpoch, protocol.NoLeaderEpoch
	}
	r := New(b.reader).Fetch(t.Context(), wants, limits)
	t.Cleanup(r.Release)
	return r
}

var unlimited = Limits{BytesMax: 1 << 30}

// TestBatchesAcrossBlocks reads batches of many sizes, from and up to each of them, through blocks that cut them anywhere.
func TestBatchesAcrossBlocks(t *testing.T) {
	b := newBucket(t, 1<<20)
	var all [][]byte
	for i := range 40 {
		all = append(all, raw(t, protocol.Offset(i), i*i%700, 1))
	}
	b.add(t, map[int32][][]byte{0: all[:25], 1: {raw(t, 0, 300, 1)}})
	b.add(t, map[int32][][]byte{0: all[25:]})
	p := restored(0, 0, 40)
	for from := range all {
		sum := 0
		for to := from; to < len(all); to++ {
			sum += len(all[to])
			r := b.fetch(t, unlimited, Want{Partition: p, Offset: protocol.Offset(from), BytesMax: sum})
			part := &r.Parts[0]
			got := bytes.Join(part.Records, nil)
			if part.Err != nil || !bytes.HasPrefix(got, all[from]) || len(got) > sum {
				t.Fatalf("%d bytes from %d: %v and %d bytes", sum, from, part.Err, len(got))
			}
			if want := bytes.Join(all[from:to+1], nil); !bytes.HasPrefix(want, got) {
				t.Fatalf("%d bytes from %d are not what was written", sum, from)
			}
			r.Release()
		}
	}
}

// TestGapAtTheEnd has compaction leave nothing of the end of a log: who reads there waits for what comes next, and gets it.
func TestGapAtTheEnd(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 10, 1, 2, 3)}})
	merged := index.Merged{End: 10, LastStable: 10, Extents: b.index.Extents(id(0))}
	if err := b.index.Replace(id(0), merged); err != nil {
		t.Fatal(err)
	}
	want := Want{Partition: restored(0, 0, 10), Offset: 4, BytesMax: 1 << 20}
	limits := Limits{BytesMin: 1, BytesMax: 1 << 20, ReadCommitted: true}
	if got := b.fetch(t, limits, want).Parts[0]; got.Err != nil || got.Bytes > 0 || got.Next != 4 {
		t.Errorf("in the gap: %d bytes up to %d, %v", got.Bytes, got.Next, got.Err)
	}
	b.add(t, map[int32][][]byte{0: {raw(t, 10, 10, 4)}})
	want.Partition = restored(0, 0, 11)
	if got := b.fetch(t, limits, want).Parts[0]; got.Err != nil || got.Next != 11 {
		t.Errorf("behind the gap: up to %d, %v", got.Next, got.Err)
	}
}

// TestFairShares holds that a fetch of many cold partitions takes a share of the cache, and that nobody waits for ever when all of it is held.
func TestFairShares(t *testing.T) {
	b := newBucket(t, 16*blockBytes)
	wants := func() []Want {
		var all []Want
		for n := range int32(8) {
			all = append(all, Want{Partition: restored(n, 0, 1), BytesMax: 1 << 20})
		}
		return all
	}
	batches := make(map[int32][][]byte)
	for n := range int32(8) {
		batches[n] = [][]byte{raw(t, 0, 400, 1)}
	}
	b.add(t, batches)
	r := b.fetch(t, unlimited, wants()...)
	if r.Bytes == 0 || r.Bytes > 16*blockBytes/roomShare {
		t.Errorf("one fetch holds %d bytes, want at most an eighth of %d", r.Bytes, 16*blockBytes)
	}
	r.Release()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 50 {
				r := New(b.reader).Fetch(t.Context(), func() []Want {
					ws := wants()
					for i := range ws {
						ws[i].CurrentEpoch, ws[i].LastEpoch = protocol.NoLeaderEpoch, protocol.NoLeaderEpoch
					}
					return ws
				}(), unlimited)
				if r.Bytes == 0 {
					t.Error("a fetch brings nothing")
				}
				r.Release()
			}
		})
	}
	wg.Wait()
	if st := b.cache.Stats(); st.PinnedBytes != 0 {
		t.Errorf("%d bytes are held after all is released", st.PinnedBytes)
	}
}

// TestSlowConsumers holds that consumers which do not take their answers, however many, leave something of the cache to the next one.
func TestSlowConsumers(t *testing.T) {
	const consumers = 24
	b := newBucket(t, 256*blockBytes)
	batches := make(map[int32][][]byte)
	for n := range int32(consumers) {
		for i := range protocol.Offset(100) {
			batches[n] = append(batches[n], raw(t, i, 300, 1))
		}
	}
	b.add(t, batches)
	for n := range int32(consumers) {
		r := b.fetch(t, unlimited, Want{Partition: restored(n, 0, 100), BytesMax: 1 << 20}) // is not released
		if r.Bytes == 0 {
			t.Fatalf("consumer %d gets nothing: %v", n, r.Parts[0].Err)
		}
	}
	if st := b.cache.Stats(); st.Waits > 0 || b.cache.Room() < 4*blockBytes {
		t.Errorf("%d reads waited for memory, and there is room for %d bytes more", st.Waits, b.cache.Room())
	}
}

// TestDamagedBatch holds that the good batches before a damaged one are served, and it never, and that the place is named.
func TestDamagedBatch(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 2000, 1)}})
	p := restored(0, 0, 1)
	b.store.Add(fault.Rule{Op: fault.Get, Nth: 2, Times: fault.Always, Effect: fault.WrongBytes}) // the first is the footer's
	r := b.fetch(t, unlimited, Want{Partition: p, BytesMax: 1 << 20})
	if code := protocol.CodeOf(r.Parts[0].Err); code != protocol.KafkaStorageError || r.Bytes != 0 {
		t.Errorf("a damaged batch: %v and %d bytes", r.Parts[0].Err, r.Bytes)
	}
	b.store.Clear()
	r = b.fetch(t, unlimited, Want{Partition: p, BytesMax: 1 << 20})
	if r.Parts[0].Err != nil || r.Bytes == 0 {
		t.Errorf("the damage stays in the cache: %v", r.Parts[0].Err)
	}
}

// damaging is a source that damages what does not come from the bucket itself.
type damaging struct{ cache.Source }

func (d damaging) Get(ctx context.Context, o cache.Object, off int64, parts [][]byte) error {
	err := d.Source.Get(ctx, o, off, parts)
	if !o.Direct {
		parts[0][len(parts[0])-1] ^= 1
	}
	return err
}

// TestDamagedByOthers holds that a batch which another agent hands out damaged is read from the bucket, before anybody is told of a damage.
func TestDamagedByOthers(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 2000, 1)}})
	blocks, err := cache.New(cache.Config{BytesMax: 1 << 20, BlockBytes: blockBytes}, damaging{cache.NewBucket(b.store)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(blocks.Close)
	b.reader.cache = blocks
	r := b.fetch(t, unlimited, Want{Partition: restored(0, 0, 1), BytesMax: 1 << 20})
	if r.Parts[0].Err != nil || r.Bytes == 0 {
		t.Errorf("a batch that is good in the bucket: %v and %d bytes", r.Parts[0].Err, r.Bytes)
	}
	found, ok, err := NewLookup(b.index, b.reader, 1<<20).FirstAtOrAfter(t.Context(), restored(0, 0, 1), 1, 1)
	if err != nil || !ok || found.Offset != 0 {
		t.Errorf("a lookup in it: %+v, %v, %v", found, ok, err)
	}
}

func TestDamagedFooter(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 10, 1)}})
	b.add(t, map[int32][][]byte{0: {raw(t, 1, 10, 1)}})
	first := b.index.Extents(id(0))[0].Object
	second := b.index.Extents(id(0))[1].Object
	b.store.Add(fault.Rule{Op: fault.Get, Effect: fault.WrongBytes})
	if _, err := b.reader.footers.Get(t.Context(), first); !errors.Is(err, segment.ErrCorrupt) {
		t.Errorf("a damaged footer: %v", err)
	}
	if _, err := b.reader.footers.Get(t.Context(), first); err != nil {
		t.Errorf("the damage is remembered: %v", err)
	}
	// A footer that is good, and another segment's.
	wrong := *second
	wrong.Name = first.Name
	fresh := NewFooters(b.store, 1<<20)
	object := make([]byte, second.Size)
	if err := b.store.Get(t.Context(), second.Name, 0, object); err != nil {
		t.Fatal(err)
	}
	swapped := mem.New()
	if err := swapped.Put(t.Context(), first.Name, objectstore.Bytes(object)); err != nil {
		t.Fatal(err)
	}
	fresh.store = swapped
	if _, err := fresh.Get(t.Context(), &wrong); !errors.Is(err, segment.ErrCorrupt) {
		t.Errorf("another segment's footer: %v", err)
	}
}

// TestFooters holds that concurrent readers of a footer share one GET, that the least recently used goes, and that a reader that leaves does not take
// the GET away from the others.
func TestFooters(t *testing.T) {
	b := newBucket(t, 1<<20)
	for n := range 3 {
		b.add(t, map[int32][][]byte{0: {raw(t, protocol.Offset(n), 10, 1)}})
	}
	extents := b.index.Extents(id(0))
	one, err := b.reader.footers.Get(t.Context(), extents[0].Object)
	if err != nil {
		t.Fatal(err)
	}
	before := b.store.Calls(fault.Get)
	footers := NewFooters(b.store, 2*one.MemoryBytes())
	gate := fault.NewGate()
	b.store.Add(fault.Rule{Op: fault.Get, Gate: gate})
	leaving, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := footers.Get(leaving, extents[0].Object); !errors.Is(err, context.Canceled) {
			t.Errorf("the reader that left: %v", err)
		}
	})
	<-gate.Entered()
	leave()
	for range 10 {
		wg.Go(func() {
			if _, err := footers.Get(t.Context(), extents[0].Object); err != nil {
				t.Error(err)
			}
		})
	}
	gate.Open()
	wg.Wait()
	if got := b.store.Calls(fault.Get) - before; got != 1 {
		t.Errorf("%d GETs for one footer", got)
	}
	for _, n := range []int{1, 0, 2, 0, 1} { // 0 stays in use: 2 puts 1 out, and 1 is read again
		if _, err := footers.Get(t.Context(), extents[n].Object); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.store.Calls(fault.Get) - before; got != 4 {
		t.Errorf("%d GETs, want 4", got)
	}
}

// TestReadAhead holds that what follows is there before it is asked for, in the same segment and in the next.
func TestReadAhead(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 3000, 1), raw(t, 1, 3000, 1)}})
	b.add(t, map[int32][][]byte{0: {raw(t, 2, 3000, 1)}})
	p := restored(0, 0, 3)
	for offset := range protocol.Offset(3) {
		r := b.fetch(t, unlimited, Want{Partition: p, Offset: offset, BytesMax: 10})
		if r.Parts[0].Err != nil || r.Bytes != 0 && r.Parts[0].Next != offset+1 {
			t.Fatalf("offset %d: %+v", offset, r.Parts[0])
		}
		r.Release()
	}
	if st := b.cache.Stats(); st.Prefetches == 0 || st.Misses > 8 {
		t.Errorf("%d blocks were not there when they were read, with %d GETs ahead", st.Misses, st.Prefetches)
	}
}

// TestLookup finds records by time in segments, with batches across blocks.
func TestLookup(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 400, 10, 20, 15), raw(t, 3, 400, 12)}})
	b.add(t, map[int32][][]byte{0: {raw(t, 4, 400, 30, 25), raw(t, 6, 400, 40)}})
	l := NewLookup(b.index, b.reader, 1<<20)
	for _, c := range []struct {
		start, limit protocol.Offset
		ts           int64
		want         protocol.Offset // -1: none
	}{
		{0, 7, 0, 0},
		{0, 7, 10, 0},
		{0, 7, 11, 1},
		{0, 7, 20, 1},
		{0, 7, 21, 4},
		{0, 7, 31, 6},
		{0, 7, 41, -1},
		{2, 7, 11, 2},
		{2, 7, 16, 4},
		{3, 7, 13, 4},
		{0, 6, 31, -1},
		{5, 7, 26, 6},
		{7, 7, 0, -1},
	} {
		p := restored(0, c.start, 7)
		found, ok, err := l.FirstAtOrAfter(t.Context(), p, c.ts, c.limit)
		if err != nil || ok != (c.want >= 0) || ok && found.Offset != c.want {
			t.Errorf("first at %d from %d below %d: %+v %v %v, want %d", c.ts, c.start, c.limit, found, ok, err, c.want)
		}
	}
	found, ok, err := l.Latest(t.Context(), restored(0, 0, 7), 7)
	if err != nil || !ok || found != (Found{Offset: 6, Timestamp: 40}) {
		t.Errorf("latest: %+v %v %v", found, ok, err)
	}
	// Where the log begins within a segment, and within a batch, records before do not count.
	b.add(t, map[int32][][]byte{1: {raw(t, 0, 10, 90, 50, 60, 55), raw(t, 4, 10, 58)}})
	b.add(t, map[int32][][]byte{1: {raw(t, 5, 10, 57)}})
	for start, want := range map[protocol.Offset]Found{0: {0, 90}, 1: {2, 60}, 3: {4, 58}, 4: {4, 58}, 5: {5, 57}} {
		found, ok, err := l.Latest(t.Context(), restored(1, start, 6), 6)
		if err != nil || !ok || found != want {
			t.Errorf("latest from %d: %+v %v %v, want %+v", start, found, ok, err, want)
		}
	}
	b.store.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
	cold := NewLookup(b.index, NewReader(b.index, NewFooters(b.store, 1<<20), b.cache), 1<<20)
	if _, _, err := cold.FirstAtOrAfter(t.Context(), restored(0, 0, 7), 11, 7); protocol.CodeOf(err) != protocol.KafkaStorageError {
		t.Errorf("without the bucket: %v", err)
	}
}

// TestLeave holds that a wait ends when the server drains, and holds no memory meanwhile.
func TestLeave(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 100, 1)}})
	leave := make(chan struct{})
	done := make(chan *Result)
	want := Want{
		Partition: restored(0, 0, 1), BytesMax: 1 << 20, CurrentEpoch: protocol.NoLeaderEpoch, LastEpoch: protocol.NoLeaderEpoch,
	}
	go func() {
		done <- New(b.reader).Fetch(t.Context(), []Want{want}, Limits{BytesMin: 1 << 19, BytesMax: 1 << 20, Wait: time.Hour, Leave: leave})
	}()
	for b.cache.Stats().Misses == 0 || b.cache.Stats().PinnedBytes != 0 { // until it has looked, and let go
		runtime.Gosched()
	}
	close(leave)
	r := <-done
	if r.Bytes == 0 {
		t.Error("what there is does not come with the end of the wait")
	}
	r.Release()
}
