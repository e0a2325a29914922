package wal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk/disktest"
)

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
