package wal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
)

var segment = wal.SegmentID{Log: 1, Number: 1}

// simulated opens a log on a simulated disk.
func simulated(tb testing.TB, d *disktest.Disk, cfg wal.Config) (*disk.Store, *wal.Log) {
	tb.Helper()
	s, err := disk.Open(disk.Config{FS: d, FileBytes: 256 << 10})
	if err != nil {
		tb.Fatal(err)
	}
	return s, newLog(tb, s, cfg)
}

// order records what waiters are told, in order.
type order struct {
	mu     sync.Mutex
	told   []int // 1, 2 ... for durable entries, -1, -2 ... for failed ones
	errs   []error
	wanted int
	all    chan struct{}
}

func newOrder(wanted int) *order { return &order{wanted: wanted, all: make(chan struct{})} }

func (o *order) tell(n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = append(o.told, n)
	if err != nil {
		o.errs = append(o.errs, err)
	}
	if len(o.told) == o.wanted {
		close(o.all)
	}
}

type ordered struct {
	*order
	n      int
	stored atomic.Bool
}

func (w *ordered) Stored()          { w.stored.Store(true) }
func (w *ordered) Durable()         { w.tell(w.n, nil) }
func (w *ordered) Failed(err error) { w.tell(-w.n, err) }

// TestFailure: an I/O error fails what is on its way and what has gathered, in order, and everything later.
func TestFailure(t *testing.T) {
	d := disktest.New(1)
	_, l := simulated(t, d, wal.Config{})
	o := newOrder(5)
	appendOne := func(n int) {
		t.Helper()
		if _, err := l.Append(nil, make([]byte, 100), crc32c.Tail{}, &ordered{order: o, n: n}); err != nil {
			t.Fatal(err)
		}
	}
	appendOne(1)
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Hold()
	appendOne(2)
	appendOne(3)
	d.AwaitHeld(1)
	d.Inject(disktest.Fault{Op: disktest.OpSync, Err: syscall.EIO})
	appendOne(4)
	appendOne(5)
	proved := make(chan error)
	go func() { proved <- l.Prove(t.Context()) }()
	d.Go()
	<-l.Failed()
	if err := <-proved; !errors.Is(err, wal.ErrFailed) && !errors.Is(err, syscall.EIO) {
		t.Errorf("proof: %v", err)
	}
	<-o.all
	if !slices.Equal(o.told, []int{1, -2, -3, -4, -5}) {
		t.Errorf("told %v", o.told)
	}
	for _, err := range append(o.errs, l.Err(), l.Close(t.Context())) {
		if !errors.Is(err, wal.ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := l.Append(nil, nil, crc32c.Tail{}, nil); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("append: %v", err)
	}
	if _, err := l.Admit(t.Context(), 1); !errors.Is(err, wal.ErrFailed) {
		t.Errorf("admit: %v", err)
	}
	if l.Durable() != 1 {
		t.Errorf("durable %d", l.Durable())
	}
}

// TestProveNeedsALaterAppend: a sync that is in flight when the proof is asked for does not prove anything.
func TestProveNeedsALaterAppend(t *testing.T) {
	d := disktest.New(1)
	s, l := simulated(t, d, wal.Config{})
	d.Hold()
	if _, err := l.Append(nil, []byte("x"), crc32c.Tail{}, nil); err != nil {
		t.Fatal(err)
	}
	d.AwaitHeld(1)
	proved := make(chan error, 1)
	asked := make(chan struct{})
	go func() { close(asked); proved <- l.Prove(t.Context()) }()
	<-asked
	// Somebody seals while that sync is in flight; it is acknowledged, and the proof, sent later, must fail.
	sealed := make(chan error)
	go func() {
		_, err := s.Seal(segment, 2)
		sealed <- err
	}()
	for s.Fence(segment.Log) != 2 {
		runtime.Gosched()
	}
	d.Go()
	if err := <-sealed; err != nil {
		t.Fatal(err)
	}
	if err := <-proved; !errors.Is(err, disk.ErrFenced) {
		t.Errorf("proof under a seal: %v", err)
	}
	if l.Durable() != 1 {
		t.Errorf("durable %d", l.Durable())
	}
}

func TestProofsShareAnAppend(t *testing.T) {
	d := disktest.New(1)
	_, l := simulated(t, d, wal.Config{})
	before := l.Stats().Appends
	d.Hold()
	first := make(chan error, 1)
	go func() { first <- l.Prove(t.Context()) }()
	d.AwaitHeld(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		if err := l.Prove(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("proof: %v", err)
		}
	}
	d.Go()
	if err := errors.Join(<-first, l.Prove(t.Context())); err != nil {
		t.Fatal(err)
	}
	if n := l.Stats().Appends - before; n > 3 {
		t.Errorf("%d appends for 12 proofs", n)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Prove(t.Context()); !errors.Is(err, wal.ErrClosed) {
		t.Errorf("proof after the end: %v", err)
	}
}

// TestProofsTakeNoRoom: a proof holds no entry that a trim could free, so that nobody may wait for its room.
func TestProofsTakeNoRoom(t *testing.T) {
	d := disktest.New(1)
	_, l := simulated(t, d, wal.Config{BytesMax: 1 << 20})
	d.Hold()
	proved := make(chan error, 1)
	go func() { proved <- l.Prove(t.Context()) }()
	d.AwaitHeld(1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Prove(ended) // stays open while the first one is written
	admitted := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		a, err := l.Admit(ctx, 1<<20)
		a.Done()
		admitted <- err
	}()
	for l.Stats().Admitting == 0 && len(admitted) == 0 {
		runtime.Gosched()
	}
	d.Go()
	if err := errors.Join(<-proved, <-admitted, l.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// TestAdmission: first come first served, slowed rather than refused, cancellable, and with memory bounded.
func TestAdmission(t *testing.T) {
	_, l := simulated(t, disktest.New(1), wal.Config{BytesMax: 1 << 20})
	admit := func(n int) (chan wal.Admission, context.CancelFunc) {
		waiting := l.Stats().Admitting
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan wal.Admission, 1)
		go func() {
			defer close(got)
			if a, err := l.Admit(ctx, n); err == nil {
				got <- a
			}
		}()
		for l.Stats().Admitting == waiting && len(got) == 0 {
			runtime.Gosched()
		}
		return got, cancel
	}
	all, err := l.Admit(t.Context(), 5<<20) // more than the limit, alone
	if err != nil {
		t.Fatal(err)
	}
	large, cancelLarge := admit(900 << 10)
	small, _ := admit(1)
	last, _ := admit(200 << 10)
	all.Done()
	a, b := <-large, <-small
	select {
	case <-last:
		t.Fatal("admitted beyond the limit")
	default:
	}
	huge, cancelHuge := admit(1 << 20)
	tiny, _ := admit(1)
	a.Done()
	a.Done() // does nothing
	c := <-last
	select {
	case <-tiny:
		t.Fatal("a small one overtook")
	default:
	}
	cancelHuge() // whoever waits behind goes on
	if _, ok := <-huge; ok {
		t.Error("admitted though cancelled")
	}
	d := <-tiny
	for _, x := range []wal.Admission{b, c, d} {
		x.Done()
	}
	cancelLarge()

	// What is appended counts until it is trimmed.
	for range 15 {
		if _, err := l.Append(nil, make([]byte, 64<<10), crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	waits, _ := admit(200 << 10)
	select {
	case <-waits:
		t.Fatal("admitted beyond the limit")
	default:
	}
	l.Trim(10)
	e := <-waits
	e.Done()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestOwnersMemoryCounts: what entries cost whoever appended them is room too, so that many small ones do not take a multiple of the limit.
func TestOwnersMemoryCounts(t *testing.T) {
	_, l := simulated(t, disktest.New(1), wal.Config{BytesMax: 1 << 20, OwnerBytes: 200})
	for range 5000 { // of 14 bytes with their lengths: 70 KB, but 1 MB with what owners keep
		if _, err := l.Append(nil, make([]byte, 10), crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Admit(ended, 100<<10); !errors.Is(err, context.Canceled) {
		t.Errorf("admission with 5000 small entries: %v, want it to wait", err)
	}
	l.Trim(4000)
	a, err := l.Admit(t.Context(), 100<<10)
	if err != nil {
		t.Fatal(err)
	}
	a.Done()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

type evictions struct {
	mu     sync.Mutex
	chunks []*wal.Chunk
	more   chan struct{}
}

func (e *evictions) Evicted(c *wal.Chunk) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.chunks = append(e.chunks, c)
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// TestEviction: trimmed entries stay readable until memory is needed; who holds a chunk keeps it; the rest is told.
func TestEviction(t *testing.T) {
	gone := &evictions{more: make(chan struct{}, 1)}
	_, l := simulated(t, disktest.New(1), wal.Config{BytesMax: 1 << 20, CacheBytes: 512 << 10})
	var first, second wal.Ref
	var secondIs uint64
	var noted *wal.Chunk
	for i := range 200 {
		payload := make([]byte, 32<<10)
		binary.LittleEndian.PutUint64(payload, uint64(i))
		admission, err := l.Admit(t.Context(), len(payload))
		if err != nil {
			t.Fatal(err)
		}
		ref, err := l.Append([]byte("head"), payload, crc32c.Tail{}, nil)
		admission.Done()
		if err != nil {
			t.Fatal(err)
		}
		if ref.Chunk != noted {
			noted = ref.Chunk
			if !ref.Chunk.Note(gone) {
				t.Fatal("a chunk in use is evicted")
			}
		}
		switch {
		case i == 0:
			if first = ref; !first.Chunk.Acquire() {
				t.Fatal("not acquired")
			}
		case ref.Chunk != first.Chunk && second.Chunk == nil:
			second, secondIs = ref, uint64(i)
		}
		if err := l.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Trim(ref.Entry)
		if i == 5 {
			if !second.Chunk.Acquire() || binary.LittleEndian.Uint64(second.Payload) != secondIs {
				t.Fatal("a trimmed entry is gone already")
			}
			second.Chunk.Release()
		}
	}
	for second.Chunk.Acquire() {
		second.Chunk.Release()
		<-gone.more
	}
	if second.Chunk.Note(gone) {
		t.Error("noted in an evicted chunk")
	}
	if binary.LittleEndian.Uint64(first.Payload) != 0 || len(first.Payload) != 32<<10 {
		t.Error("a chunk that is held was reused")
	}
	first.Chunk.Release()
	if m := l.Stats().MemoryBytes; m > 2<<20 {
		t.Errorf("%d bytes of memory", m)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone.mu.Lock()
	defer gone.mu.Unlock()
	for i, c := range gone.chunks {
		if slices.Contains(gone.chunks[:i], c) {
			t.Error("told twice of one chunk")
		}
	}
}

// TestPinned: slow readers that hold all memory stop producers, and no longer than they hold it.
func TestPinned(t *testing.T) {
	_, l := simulated(t, disktest.New(1), wal.Config{BytesMax: 1 << 20, CacheBytes: 256 << 10, PinnedBytesMax: 256 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var held []*wal.Chunk
	for {
		admitted := make(chan wal.Admission, 1)
		go func() {
			if a, err := l.Admit(ctx, 64<<10); err == nil {
				admitted <- a
			}
		}()
		for l.Stats().Admitting == 0 && len(admitted) == 0 {
			runtime.Gosched()
		}
		if len(admitted) == 0 {
			if m := l.Stats().MemoryBytes; m > 2<<20 {
				t.Errorf("%d bytes of memory", m)
			}
			for _, c := range held {
				c.Release()
			}
			a := <-admitted
			a.Done()
			break
		}
		a := <-admitted
		ref, err := l.Append(nil, make([]byte, 64<<10), crc32c.Tail{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		a.Done()
		if !ref.Chunk.Acquire() {
			t.Fatal("not acquired")
		}
		held = append(held, ref.Chunk)
		if err := l.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Trim(ref.Entry)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLargeEntries(t *testing.T) {
	s, l := simulated(t, disktest.New(1), wal.Config{BytesMax: 1 << 20})
	for _, n := range []int{l.EntryBytesMax(), 1, l.EntryBytesMax(), 100 << 10, 0} {
		if _, err := l.Append(make([]byte, n/2), make([]byte, n-n/2), crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Append([]byte{1}, make([]byte, l.EntryBytesMax()), crc32c.Tail{}, nil); !errors.Is(err, wal.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sealed, err := wal.Seal(segment, 2, one, []wal.Sealer{s})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	if err := sealed.Read(1, func(_ wal.EntryID, b []byte) error { sizes = append(sizes, len(b)); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []int{l.EntryBytesMax(), 1, l.EntryBytesMax(), 100 << 10, 0}; !slices.Equal(sizes, want) {
		t.Errorf("read %v, want %v", sizes, want)
	}
}

// TestCrash appends from several goroutines while the machine crashes at some moment: what had been acknowledged by
// then is there, at its number, nothing is invented, and no number is missing.
func TestCrash(t *testing.T) {
	for seed := range uint64(150) {
		if crashRun(t, seed); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// acks remembers what was acknowledged, by entry, with the writer's own mark of what it appended.
type acks struct {
	mu    sync.Mutex
	acked map[wal.EntryID]uint64
}

type ack struct {
	*acks
	mark  uint64
	entry chan wal.EntryID
	done  chan struct{}
}

func (a *ack) Stored() {}

func (a *ack) Durable() {
	entry := <-a.entry
	a.mu.Lock()
	a.acked[entry] = a.mark
	a.mu.Unlock()
	close(a.done)
}

func (a *ack) Failed(error) { close(a.done) }

func crashRun(t *testing.T, seed uint64) {
	d := disktest.New(seed)
	s, l := simulated(t, d, wal.Config{BytesMax: 1 << 20})
	rng := rand.New(rand.NewPCG(seed, 2))
	told := &acks{acked: make(map[wal.EntryID]uint64)}
	var ackedAtCrash map[wal.EntryID]uint64
	var trimmed, trimmedAtCrash atomic.Uint64
	d.CrashAt(1+rng.IntN(150), func() {
		trimmedAtCrash.Store(trimmed.Load())
		told.mu.Lock()
		defer told.mu.Unlock()
		ackedAtCrash = make(map[wal.EntryID]uint64, len(told.acked))
		maps.Copy(ackedAtCrash, told.acked)
	})
	var writers sync.WaitGroup
	for w := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 100+w))
		writers.Go(func() {
			for n := w << 32; ; n++ {
				select {
				case <-d.Crashed():
					return
				default:
				}
				a := &ack{acks: told, mark: n, entry: make(chan wal.EntryID, 1), done: make(chan struct{})}
				ref, err := l.Append(binary.LittleEndian.AppendUint64(nil, n), make([]byte, rng.IntN(20000)), crc32c.Tail{}, a)
				if err != nil {
					t.Error(err)
					return
				}
				a.entry <- ref.Entry
				<-a.done
				if rng.IntN(8) == 0 {
					through := l.Durable() / 2
					old := trimmed.Load()
					for old < uint64(through) && !trimmed.CompareAndSwap(old, uint64(through)) {
						old = trimmed.Load()
					}
					l.Trim(through)
				}
			}
		})
	}
	writers.Wait()
	if err := errors.Join(l.Close(t.Context()), s.Close()); err != nil {
		t.Error(err)
	}
	after, err := disk.Open(disk.Config{FS: d.Crash(), FileBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = after.Close() }()
	sealed, err := wal.Seal(segment, 2, one, []wal.Sealer{after})
	if err != nil {
		t.Error(err)
		return
	}
	if uint64(sealed.First) > trimmedAtCrash.Load()+1 {
		t.Errorf("first %d, trimmed to %d", sealed.First, trimmedAtCrash.Load())
	}
	found := make(map[wal.EntryID]uint64)
	if err := sealed.Read(sealed.First, func(id wal.EntryID, b []byte) error {
		found[id] = binary.LittleEndian.Uint64(b)
		return nil
	}); err != nil {
		t.Error(err)
	}
	for id, mark := range ackedAtCrash {
		if got, ok := found[id]; id >= sealed.First && (!ok || got != mark) {
			t.Errorf("entry %d, acknowledged with %x, is %x (%v); sealed %d to %d", id, mark, got, ok, sealed.First, sealed.Last)
		}
	}
	for id, mark := range found {
		if was, ok := told.acked[id]; ok && was != mark {
			t.Errorf("entry %d holds %x, which was written as %x", id, mark, was)
		}
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	s := openStore(t, t.TempDir(), 4<<20)
	l := newLog(t, s, wal.Config{BytesMax: 8 << 20})
	payload := make([]byte, 1000)
	durable := make(signal, 1)
	run := func() {
		if _, err := l.Append(nil, payload, crc32c.Tail{}, durable); err != nil {
			t.Fatal(err)
		}
		<-durable
		l.Trim(l.Durable())
	}
	for range 500 {
		run()
	}
	// A chunk's struct and a file's header are new once per megabytes.
	if allocs := testing.AllocsPerRun(500, run); allocs >= 1 {
		t.Errorf("%v allocations per append", allocs)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
