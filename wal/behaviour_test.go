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

// TestStop: after Stop nothing is appended and nobody waits for room, and what was appended before becomes durable.
func TestStop(t *testing.T) {
	d := disktest.New(1)
	_, l := simulated(t, d, wal.Config{BytesMax: 1 << 20})
	d.Hold()
	full, err := l.Admit(t.Context(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	appended := appendEntries(t, l, 3)
	admitted := make(chan error, 1)
	go func() {
		_, err := l.Admit(t.Context(), 1<<20)
		admitted <- err
	}()
	for l.Stats().Admitting == 0 {
		runtime.Gosched()
	}
	l.Stop()
	if err := <-admitted; !errors.Is(err, wal.ErrClosed) {
		t.Errorf("who waited for room is told %v", err)
	}
	full.Done()
	if _, err := l.Admit(t.Context(), 1); !errors.Is(err, wal.ErrClosed) {
		t.Errorf("who asks for room is told %v", err)
	}
	if _, err := l.Append(nil, []byte{1}, crc32c.Tail{}, nil); !errors.Is(err, wal.ErrClosed) {
		t.Errorf("append: %v", err)
	}
	d.Go()
	if err := errors.Join(<-appended, l.Prove(t.Context())); err != nil {
		t.Fatal(err)
	}
	if l.Durable() != 3 {
		t.Errorf("durable up to entry %d, want 3", l.Durable())
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
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
