package ingest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/frame"
)

// store is a WAL store whose appends wait for the test, or fail.
type store struct {
	gate chan struct{} // an append takes one token; closed: none waits
	fail chan error

	mu     sync.Mutex
	frames [][]byte // that were appended
}

func newStore() *store { return &store{gate: make(chan struct{}, 1000), fail: make(chan error, 1)} }

func (s *store) Append(frames [][]byte) error {
	select {
	case err := <-s.fail:
		return err
	case <-s.gate:
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range frames {
			s.frames = append(s.frames, bytes.Clone(f))
		}
		return nil
	}
}

// entries returns the headers of the entries that were appended.
func (s *store) entries(t *testing.T) (all []EntryHeader) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.frames {
		h, err := frame.Unstamped(f)
		if err != nil {
			t.Fatal(err)
		}
		err = frame.Entries(&h, f[frame.HeaderBytes:][:h.BodyBytes], func(_ wal.EntryID, entry []byte) error {
			e, _, err := ParseEntry(entry)
			all = append(all, e)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}
func (s *store) Trim(wal.EntryID) error { return nil }
func (s *store) Close() error           { return nil }
func (s *store) Drop() error            { return nil }
func (s *store) FrameBytesMax() int64   { return 1 << 20 }

// flushed remembers what came to the flush.
type flushed struct {
	mu      sync.Mutex
	entries []Entry
}

func (f *flushed) Durable(e Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entries = append(f.entries, e)
}

// fixture is an ingest into a WAL on a store that the test commands.
type fixture struct {
	store   *store
	log     *wal.Log
	flushed *flushed
	ingest  *Ingest
	once    sync.Once
}

func newFixture(t *testing.T, cfg wal.Config) *fixture {
	t.Helper()
	f := &fixture{store: newStore(), flushed: new(flushed)}
	cfg.Segment, cfg.Fence, cfg.First = wal.SegmentID{Log: 1, Number: 1}, 1, 1
	var err error
	if f.log, err = wal.New(cfg, wal.Copy{Name: "own", Store: f.store}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-f.log.Failed():
		default:
			f.open()
		}
		_ = f.log.Close(context.Background()) //nolint:usetesting // it runs when the test, and its context, have ended
	})
	f.ingest = New(f.log, f.flushed, time.Now)
	return f
}

// open lets every append through from now on.
func (f *fixture) open() { f.once.Do(func() { close(f.store.gate) }) }

func newPartition(n int32) *Partition {
	return NewPartition(partition.ID{Topic: protocol.TopicID{1}, Partition: n}, "t", 3, partition.New(7))
}

// of returns a batch of one record for the partition, of a producer if id is not negative.
func of(t *testing.T, p *Partition, id int64, sequence int32, value []byte) Batch {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	if id >= 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = protocol.ProducerID(id), 0, sequence
	}
	b.Append(1, nil, value)
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return Batch{Partition: p, Header: h, Bytes: raw}
}

func (f *fixture) produce(acks Acks, batches ...Batch) *Request {
	r := NewRequest(len(batches), acks)
	copy(r.Batches, batches)
	f.ingest.Produce(context.Background(), r)
	return r
}

func pending(r *Request) bool {
	select {
	case <-r.Done():
		return false
	default:
		return true
	}
}

func await(t *testing.T, r *Request) {
	t.Helper()
	select {
	case <-r.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the request has no answer")
	}
}

func TestEmptyRequest(t *testing.T) {
	f := newFixture(t, wal.Config{})
	await(t, f.produce(AcksAll))
}

// TestDurable holds that nothing is readable or answered before it is durable, that all of it is then, and that the flush gets the batches in order.
func TestDurable(t *testing.T) {
	f := newFixture(t, wal.Config{})
	p, q := newPartition(0), newPartition(1)
	w := NewWatcher()
	p.Watch(w)
	r := f.produce(AcksAll, of(t, p, -1, 0, []byte("a")), of(t, q, -1, 0, []byte("b")), of(t, p, -1, 0, []byte("c")))
	if st, _ := p.State(); !pending(r) || st.HighWatermark != 0 || st.End != 2 {
		t.Errorf("before it is durable: %+v", st)
	}
	if _, _, _, n, _ := p.Read(0, 0, 1<<20, nil, nil, true); n != 0 {
		t.Errorf("%d bytes are readable before they are durable", n)
	}
	select {
	case <-w.C:
		t.Error("the watcher wakes before anything is durable")
	default:
	}
	f.open()
	await(t, r)
	<-w.C
	if st, err := p.State(); err != nil || st.HighWatermark != 2 || st.Epoch != 7 {
		t.Errorf("once durable: %+v, %v", st, err)
	}
	for i, want := range []protocol.Offset{0, 0, 1} {
		if got := r.Batches[i].Result; got.Err != nil || got.Base != want {
			t.Errorf("batch %d: %+v, want offset %d", i, got, want)
		}
	}
	bufs, chunks, next, _, ok := p.Read(1, 2, 1, nil, nil, true)
	if !ok || next != 2 || !bytes.Contains(bufs[0], []byte("c")) {
		t.Errorf("read: %v up to %d", ok, next)
	}
	for _, c := range chunks {
		c.Release()
	}
	p.Unwatch(w)
	f.flushed.mu.Lock()
	defer f.flushed.mu.Unlock()
	for i, e := range f.flushed.entries {
		h, err := batch.Parse(e.Ref.Payload)
		if err != nil || int(e.Ref.Entry) != i+1 || h.LeaderEpoch != 7 {
			t.Errorf("entry %d for the flush: %+v, %v", e.Ref.Entry, h, err)
		}
	}
	if len(f.flushed.entries) != 3 {
		t.Errorf("%d batches come to the flush, want 3", len(f.flushed.entries))
	}
}

// TestDuplicateWaits holds that a duplicate is answered like the first, and not before that one is durable.
func TestDuplicateWaits(t *testing.T) {
	f := newFixture(t, wal.Config{})
	p := newPartition(0)
	first := f.produce(AcksAll, of(t, p, 5, 0, []byte("a")))
	again := f.produce(AcksAll, of(t, p, 5, 0, []byte("a")))
	if !pending(first) || !pending(again) {
		t.Fatal("answered before it is durable")
	}
	f.open()
	await(t, first)
	await(t, again)
	late := f.produce(AcksAll, of(t, p, 5, 0, []byte("a")))
	await(t, late)
	for _, r := range []*Request{first, again, late} {
		if got := r.Batches[0].Result; got.Err != nil || got.Base != 0 {
			t.Errorf("answer: %+v", got)
		}
	}
	if st, _ := p.State(); st.End != 1 {
		t.Errorf("the log ends at %d, want 1", st.End)
	}
}

// TestFailure holds that every batch of a log that fails has an error that a client tries again on, duplicates included.
func TestFailure(t *testing.T) {
	f := newFixture(t, wal.Config{})
	p := newPartition(0)
	first := f.produce(AcksAll, of(t, p, 5, 0, []byte("a")))
	again := f.produce(AcksLeader, of(t, p, 5, 0, []byte("a")))
	second := f.produce(AcksAll, of(t, p, 5, 1, []byte("b")))
	f.store.fail <- errors.New("the disk is gone")
	await(t, first)
	await(t, again)
	await(t, second)
	after := f.produce(AcksAll, of(t, p, 5, 2, []byte("c")))
	await(t, after)
	for i, r := range []*Request{first, again, second, after} {
		if code := protocol.CodeOf(r.Batches[0].Result.Err); code != protocol.KafkaStorageError || r.Batches[0].Result.Base != -1 {
			t.Errorf("batch %d: %+v", i, r.Batches[0].Result)
		}
	}
	if st, _ := p.State(); st.HighWatermark != 0 {
		t.Errorf("the high watermark is %d", st.HighWatermark)
	}
}

// TestRefusals holds that what is refused takes no offset, and that the rest of the request goes on.
func TestRefusals(t *testing.T) {
	f := newFixture(t, wal.Config{})
	f.open()
	p, gone := newPartition(0), newPartition(1)
	gone.Close(protocol.NotLeaderOrFollower.Err())
	checked := of(t, p, -1, 0, nil)
	checked.Result.Err = protocol.CorruptMessage.Err()
	r := f.produce(AcksAll,
		of(t, p, -1, 0, make([]byte, f.log.EntryBytesMax())), of(t, gone, -1, 0, nil), checked, of(t, p, 5, 0, nil), of(t, p, 5, 7, nil))
	await(t, r)
	for i, want := range []protocol.ErrorCode{
		protocol.MessageTooLarge, protocol.NotLeaderOrFollower, protocol.CorruptMessage, protocol.None, protocol.OutOfOrderSequenceNumber,
	} {
		if got := protocol.CodeOf(r.Batches[i].Result.Err); got != want {
			t.Errorf("batch %d: %v, want %v", i, got, want)
		}
	}
	if st, _ := p.State(); st.End != 1 || !r.Refused {
		t.Errorf("the log ends at %d, refused is %v", st.End, r.Refused)
	}
}

// TestFullLog holds that a request waits for room, and is told of a time-out when there is none in time.
func TestFullLog(t *testing.T) {
	full := make(chan wal.EntryID, 10)
	f := newFixture(t, wal.Config{BytesMax: 64 << 10, OnFull: func(last wal.EntryID) { full <- last }})
	f.open()
	p := newPartition(0)
	value := make([]byte, 50<<10)
	await(t, f.produce(AcksAll, of(t, p, -1, 0, value)))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r := NewRequest(1, AcksAll)
	r.Batches[0] = of(t, p, -1, 0, value)
	f.ingest.Produce(ctx, r)
	await(t, r)
	if code := protocol.CodeOf(r.Batches[0].Result.Err); code != protocol.RequestTimedOut || !r.Refused {
		t.Errorf("without room: %v", r.Batches[0].Result.Err)
	}
	if last := <-full; last != 1 {
		t.Errorf("the log is full up to entry %d, want 1", last)
	}
	done := make(chan *Request)
	go func() { done <- f.produce(AcksAll, of(t, p, -1, 0, value)) }()
	<-full
	f.log.Trim(1)
	r = <-done
	await(t, r)
	if r.Batches[0].Result.Err != nil || r.Batches[0].Result.Base != 1 {
		t.Errorf("with room again: %+v", r.Batches[0].Result)
	}
}

// TestEviction lets batches be appended, trimmed, evicted and read at once: a reader gets what was written, or hears that it is not in memory.
func TestEviction(t *testing.T) {
	f := newFixture(t, wal.Config{BytesMax: 1 << 20, CacheBytes: 1})
	f.open()
	p := newPartition(0)
	const n = 3000
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 2000) }
	done := make(chan struct{})
	var readers sync.WaitGroup
	var hits, misses int
	var mu sync.Mutex
	for range 4 {
		readers.Go(func() {
			hit, miss := 0, 0
			for {
				st, _ := p.State()
				for from := max(0, st.HighWatermark-600); from < st.HighWatermark; from += 37 {
					bufs, chunks, next, _, ok := p.Read(from, st.HighWatermark, 10_000, nil, nil, true)
					if !ok {
						miss++
					}
					for i, b := range bufs {
						h, err := batch.Parse(b)
						if err != nil || h.BaseOffset != from+protocol.Offset(i) || batch.Verify(b, &h) != nil || b[len(b)-2] != byte(h.BaseOffset) {
							t.Errorf("at %d: %v, offset %d", from, err, h.BaseOffset)
						}
						hit++
					}
					if ok && next != from+protocol.Offset(len(bufs)) {
						t.Errorf("%d batches from %d end at %d", len(bufs), from, next)
					}
					for _, c := range chunks {
						c.Release()
					}
				}
				select {
				case <-done:
					mu.Lock()
					defer mu.Unlock()
					hits, misses = hits+hit, misses+miss
					return
				default:
				}
			}
		})
	}
	for i := range n {
		r := f.produce(AcksAll, of(t, p, -1, 0, value(i)))
		await(t, r)
		if i%20 == 0 {
			f.log.Trim(wal.EntryID(i - 100))
		}
	}
	close(done)
	readers.Wait()
	if hits == 0 {
		t.Error("nothing was read from memory")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if held := len(p.tail) - p.head; held == n {
		t.Errorf("all %d batches are in memory (%d reads missed)", held, misses)
	}
}

// TestClose holds that watchers hear of the end, and that what was on its way is answered.
func TestClose(t *testing.T) {
	f := newFixture(t, wal.Config{})
	p := newPartition(0)
	w := NewWatcher()
	p.Watch(w)
	r := f.produce(AcksAll, of(t, p, 5, 0, nil))
	again := f.produce(AcksAll, of(t, p, 5, 0, nil))
	p.Close(protocol.UnknownTopicOrPartition.Err())
	p.Close(protocol.NotLeaderOrFollower.Err())
	<-w.C
	if _, err := p.State(); protocol.CodeOf(err) != protocol.UnknownTopicOrPartition {
		t.Errorf("state after the end: %v", err)
	}
	f.open()
	await(t, r)
	await(t, again)
}

func TestEntry(t *testing.T) {
	h := EntryHeader{Shard: 9, Topic: protocol.TopicID{1, 2, 3}, Partition: 4, LastStable: 1 << 40}
	b := make([]byte, EntryHeaderBytes+3)
	h.Put(b)
	got, rest, err := ParseEntry(b)
	if err != nil || got != h || len(rest) != 3 {
		t.Errorf("read back: %+v, %d bytes, %v", got, len(rest), err)
	}
	if _, _, err := ParseEntry(b[:EntryHeaderBytes-1]); err == nil {
		t.Error("half a header is read")
	}
	b[0] = 1
	if _, _, err := ParseEntry(b); err == nil {
		t.Error("another version is read")
	}
}
