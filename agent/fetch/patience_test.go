package fetch

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// distant is a bucket of which some GETs take time.
type distant struct {
	objectstore.Store
	get  time.Duration
	only string // of this object; empty for all
}

func (d *distant) Get(ctx context.Context, name string, off int64, p []byte) error {
	if d.only != "" && d.only != name {
		return d.Store.Get(ctx, name, off, p)
	}
	select {
	case <-time.After(d.get):
		return d.Store.Get(ctx, name, off, p)
	case <-ctx.Done():
		return objectstore.ErrUnavailable
	}
}

// far puts the bucket so far away that one GET takes that long, for a cache of so many blocks that is empty.
func (b *bucket) far(t *testing.T, get time.Duration, blocks int64) {
	t.Helper()
	store := &distant{Store: b.store, get: get}
	var err error
	if b.cache, err = cache.New(cache.Config{BytesMax: blocks * blockBytes, BlockBytes: blockBytes, GetBytesMax: 4 * blockBytes}, cache.NewBucket(store)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cache.Close)
	b.reader = NewReader(b.index, NewFooters(store, 1<<20), b.cache)
}

// others is an object of another partition, for readers that take the cache's memory.
func (b *bucket) others(t *testing.T, blocks int64) cache.Object {
	t.Helper()
	b.add(t, map[int32][][]byte{50: {raw(t, 0, int(blocks)*blockBytes, 1)}})
	o := b.index.Extents(id(50))[0].Object
	return cache.Object{Name: o.Name, Size: o.Size}
}

// fetchesUntil fetches what a consumer wants that has the first partition's records in memory until it has all others', and returns how many fetches it took; no more than most. In between does between.
func (b *bucket) fetchesUntil(t *testing.T, most int, wants []Want, between func()) int {
	t.Helper()
	missing := make(map[int]bool)
	for i := range wants[1:] {
		missing[1+i] = true
	}
	for n := 1; ; n++ {
		began := time.Now()
		r := b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Second}, wants...)
		if took := time.Since(began); r.Parts[0].Bytes == 0 || took > coldPatience {
			t.Fatalf("fetch %d brings %d bytes from memory after %v", n, r.Parts[0].Bytes, took)
		}
		for i := range r.Parts {
			if r.Parts[i].Err != nil {
				t.Fatalf("partition %d: %v", i, r.Parts[i].Err)
			}
			if r.Parts[i].Bytes > 0 {
				delete(missing, i)
			}
		}
		r.Release()
		if len(missing) == 0 || n == most {
			if len(missing) > 0 {
				t.Errorf("%d of %d old partitions have not come in %d fetches", len(missing), len(wants)-1, n)
			}
			return n
		}
		between()
	}
}

// TestHurriedReadsGoOn has a consumer at the end of one partition, and behind with another, whose old records take longer than it waits, while other readers fill the cache anew all the time: what was begun for it
// is there when it comes again.
func TestHurriedReadsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {raw(t, 0, 600, 1)}})
		o := b.others(t, 60)
		b.far(t, 80*time.Millisecond, 16)
		wants := []Want{{Partition: live(t, 99), BytesMax: 1 << 20}, {Partition: restored(0, 0, 1), BytesMax: 4000}}
		b.fetchesUntil(t, 3, wants, func() { // the footer, the block, both
			for off := int64(0); off+10*blockBytes < o.Size; off += 10 * blockBytes {
				span, err := b.cache.Read(t.Context(), o, off, 10*blockBytes)
				if err != nil {
					t.Fatal(err)
				}
				span.Release()
			}
		})
	})
}

// TestHurriedReadsKeepTheirPlace has the cache's memory in the hands of readers that others wait for in line, always: who has little time gets its turn.
func TestHurriedReadsKeepTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {raw(t, 0, 600, 1)}})
		o := b.others(t, 60)
		b.far(t, 10*time.Millisecond, 16)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		for i := range int64(3) {
			go func() {
				for {
					span, err := b.cache.Read(ctx, o, 15*i*blockBytes, 15*blockBytes)
					if err != nil {
						return
					}
					time.Sleep(200 * time.Millisecond)
					span.Release()
				}
			}()
		}
		synctest.Wait()
		wants := []Want{{Partition: live(t, 99), BytesMax: 1 << 20}, {Partition: restored(0, 0, 1), BytesMax: 4000}}
		b.fetchesUntil(t, 30, wants, func() {})
	})
}

// TestHurriedReadsBeginAll holds that all old partitions of a fetch are begun, also those that are in line behind the first ones until time is over.
func TestHurriedReadsBeginAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		batches := make(map[int32][][]byte)
		for n := range int32(3 * coldMax) {
			batches[n] = [][]byte{raw(t, 0, 3000, 1)}
		}
		b.add(t, batches)
		b.far(t, 80*time.Millisecond, 4096)
		wants := []Want{{Partition: live(t, 99), BytesMax: 1 << 20}}
		for n := range int32(3 * coldMax) {
			wants = append(wants, Want{Partition: restored(n, 0, 1), BytesMax: 4000})
		}
		b.fetchesUntil(t, 3, wants, func() { time.Sleep(time.Minute) }) // the footer, the blocks, all
	})
}

// TestSlowBucket holds that a fetch which finds nothing in memory is answered while its client waits, that it says why it is empty, and that what it began is there for the next.
func TestSlowBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {raw(t, 0, 600, 1)}})
		b.far(t, 23*time.Second, 64)
		want := Want{Partition: restored(0, 0, 1), BytesMax: 4000}
		for n := range 5 {
			began := time.Now()
			r := b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Second}, want)
			switch code := protocol.CodeOf(r.Parts[0].Err); {
			case time.Since(began) > coldTime:
				t.Errorf("fetch %d took %v", n, time.Since(began))
			case n < 4 && (code != protocol.KafkaStorageError || r.Bytes != 0):
				t.Errorf("fetch %d: %d bytes, %v", n, r.Bytes, r.Parts[0].Err)
			case n == 4 && r.Bytes == 0:
				t.Errorf("nothing after %d fetches: %v", n, r.Parts[0].Err)
			}
			r.Release()
		}
	})
}

// TestTailWhileOldDataIsAwaited has records come to memory while a fetch waits for old ones of another partition: they do not wait for those.
func TestTailWhileOldDataIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {raw(t, 0, 600, 1)}})
		b.far(t, 5*time.Second, 64)
		p, produce := growing(t, 99)
		wants := []Want{{Partition: restored(0, 0, 1), BytesMax: 4000}, {Partition: p, BytesMax: 4000}}
		limits := Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Second}
		read := make(chan *Result, 1)
		go func() { read <- b.fetch(t, limits, wants...) }()
		time.Sleep(time.Second)
		if len(read) > 0 {
			t.Error("a fetch is answered before there is anything")
		}
		came := time.Now()
		produce()
		if r := <-read; r.Parts[1].Bytes == 0 || r.Parts[0].Err != nil || time.Since(came) > coldRound+coldPatience {
			t.Errorf("after %v: %d bytes, %v", time.Since(came), r.Parts[1].Bytes, r.Parts[0].Err)
		}
		began := time.Now()
		if r := b.fetch(t, limits, wants[:1]...); r.Bytes == 0 || time.Since(began) > 10*time.Second {
			t.Errorf("old records: %d bytes after %v, %v", r.Bytes, time.Since(began), r.Parts[0].Err)
		}
	})
}

// TestSlowJudgement holds that the outcome of a transaction is not waited for longer than for records: they are left out, and come once it is known.
func TestSlowJudgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {transacted(t, 0)}})
		marker, err := batch.AppendControlBatch(nil, 1, 1, batch.EndMarker{Marker: batch.Abort, ProducerID: 7})
		if err != nil {
			t.Fatal(err)
		}
		b.add(t, map[int32][][]byte{0: {marker}})
		second := segment.ID{Log: 1, Fence: 1, Commit: 2}.Name()
		b.reader.footers.store = &distant{b.store, 20 * time.Second, second}
		want := Want{Partition: restored(0, 0, 2), BytesMax: 1}
		limits := Limits{BytesMin: 1, BytesMax: 100, Wait: time.Second, ReadCommitted: true}
		began := time.Now()
		r := b.fetch(t, limits, want)
		if took := time.Since(began); took > coldTime || r.Bytes != 0 || r.Parts[0].Records != nil || protocol.CodeOf(r.Parts[0].Err) != protocol.KafkaStorageError {
			t.Errorf("after %v: %d bytes, %v", took, r.Bytes, r.Parts[0].Err)
		}
		time.Sleep(time.Minute)
		r = b.fetch(t, limits, want)
		if len(r.Parts[0].Aborted) != 1 || r.Bytes == 0 {
			t.Errorf("then: %d bytes, %+v, %v", r.Bytes, r.Parts[0].Aborted, r.Parts[0].Err)
		}
	})
}

// TestTurns holds that batches are verified only when it is their turn, and that who has many lets others have theirs in between.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 8<<20)
		b.add(t, map[int32][][]byte{0: {raw(t, 0, turnBytes*2/3, 1), raw(t, 1, turnBytes*2/3, 1)}})
		b.reader.turns = make(chan struct{}, 1)
		b.reader.turns <- struct{}{}
		read := make(chan *Result, 1)
		go func() {
			read <- b.fetch(t, unlimited, Want{Partition: restored(0, 0, 2), BytesMax: 1 << 20})
		}()
		synctest.Wait()
		between := make(chan bool)
		go func() {
			b.reader.turns <- struct{}{}
			between <- len(read) == 0
			<-b.reader.turns
		}()
		synctest.Wait()
		if len(read) > 0 {
			t.Error("batches are verified while others have all turns")
		}
		<-b.reader.turns
		if !<-between {
			t.Error("the next turn came when all batches were verified")
		}
		if r := <-read; r.Parts[0].Err != nil || r.Parts[0].Next != 2 {
			t.Errorf("read up to %d: %v", r.Parts[0].Next, r.Parts[0].Err)
		}
	})
}

// TestTurnsAndPatience has patience end while a read is in line: it gets the turn that it waits for, and brings what it verified then. The next one brings the rest.
func TestTurnsAndPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 8<<20)
		batches := [][]byte{raw(t, 0, turnBytes/2, 1), raw(t, 1, turnBytes/3, 1), raw(t, 2, turnBytes/2, 1), raw(t, 3, 2*turnBytes, 1), raw(t, 4, 10, 1)}
		b.add(t, map[int32][][]byte{0: batches})
		b.reader.turns = make(chan struct{}, 1)
		for at, wants := range map[protocol.Offset]protocol.Offset{0: 2, 2: 3, 3: 4, 4: 5} {
			b.reader.turns <- struct{}{}
			read := make(chan *Result, 1)
			go func() {
				read <- b.fetch(t, unlimited, Want{Partition: restored(0, 0, 5), Offset: at, BytesMax: 8 << 20})
			}()
			time.Sleep(2 * coldRound)
			if len(read) > 0 {
				t.Error("batches are verified while others have all turns")
			}
			<-b.reader.turns
			r := <-read
			if part := &r.Parts[0]; part.Err != nil || part.Next != wants || !bytes.Equal(bytes.Join(part.Records, nil), bytes.Join(batches[at:wants], nil)) || part.Bytes != len(bytes.Join(batches[at:wants], nil)) {
				t.Errorf("from offset %d on it read up to %d, %d bytes: %v; want %d", at, part.Next, part.Bytes, part.Err, wants)
			}
			r.Release()
		}
	})
}
