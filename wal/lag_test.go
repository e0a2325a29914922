package wal_test

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/quorum"
)

// Stores that lag, and memory while they do: each test is named after what went wrong once.

const (
	largeEntry = 60 << 10
	smallLog   = 1 << 20 // of which a store may lag by 128 KiB
)

func addLarge(t *testing.T, l *wal.Log, n int, w wal.Waiter) {
	t.Helper()
	a, err := l.Admit(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Done()
	if _, err := l.Append(nil, make([]byte, n), crc32c.Tail{}, w); err != nil {
		t.Fatal(err)
	}
}

func closeLog(t *testing.T, l *wal.Log) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// noneLost fails the test if a store drops out.
func noneLost(t *testing.T) func(uint32, string, error) {
	return func(segment uint32, name string, err error) { t.Errorf("segment %d lost %s: %v", segment, name, err) }
}

// TestEntryLargerThanLag: a frame that is longer than a store may lag drops out nobody who had no chance to take it.
func TestEntryLargerThanLag(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, _ := replicated(t, wal.Config{BytesMax: smallLog, OnLost: noneLost(t)}, hosts, 2)
	addLarge(t, l, 200<<10, nil)
	if err := l.Prove(t.Context()); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
}

// TestStoreThatIsNeededLags: a store without which there is no quorum may lag as far as Admit lets the log grow.
func TestStoreThatIsNeededLags(t *testing.T) {
	hosts := newHosts(t, 1, 2)
	l, _ := replicated(t, wal.Config{BytesMax: smallLog, OnLost: noneLost(t)}, hosts, 2)
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	hosts[1].disk.Hold()
	for range 8 {
		addLarge(t, l, largeEntry, nil)
	}
	hosts[1].disk.AwaitHeld(1)
	hosts[1].disk.Go()
	if err := l.Prove(t.Context()); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
}

// lose makes the last of the hosts drop out.
func lose(t *testing.T, l *wal.Log, h *host, lost <-chan string) {
	t.Helper()
	h.disk.Inject(disktest.Fault{Op: disktest.OpSync, Always: true, Err: syscall.EIO})
	if _, err := l.Append(nil, nil, crc32c.Tail{}, nil); err != nil {
		t.Fatal(err)
	}
	<-lost
}

// TestRollWithBacklog: what gathered while there was no quorum does not make the stores of the next ensemble drop out.
func TestRollWithBacklog(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	lost := make(chan string, 10)
	l, rec := replicated(t, wal.Config{BytesMax: smallLog, OnLost: func(_ uint32, name string, _ error) { lost <- name }}, hosts[:2], 2)
	lose(t, l, hosts[1], lost)
	for range 10 {
		addLarge(t, l, largeEntry, nil)
	}
	hosts[2].disk.Hold()
	size := quorum.Size{Copies: 2, Quorum: 2}
	opened := make(chan struct{})
	rolled := make(chan error)
	go func() {
		rolled <- l.Roll(2, size, &roll{record: rec, size: size, hosts: []*host{hosts[0], hosts[2]}, opened: func() { close(opened) }})
	}()
	hosts[2].disk.AwaitHeld(1) // it creates the segment
	hosts[2].disk.Go()
	<-opened
	for range 20 {
		if _, err := l.Append(nil, nil, crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-rolled; err != nil {
		t.Fatal(err)
	}
	if err := l.Prove(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case name := <-lost:
		t.Errorf("lost %s, too", name)
	default:
	}
	closeLog(t, l)
}

// TestRollOpensSlowly: what comes while the next ensemble is being opened is no fault of its stores.
func TestRollOpensSlowly(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, rec := replicated(t, wal.Config{BytesMax: smallLog, OnLost: noneLost(t)}, hosts[:2], 2)
	size := quorum.Size{Copies: 3, Quorum: 2}
	err := l.Roll(2, size, &roll{record: rec, size: size, hosts: hosts, opened: func() {
		for range 10 {
			addLarge(t, l, largeEntry, nil)
		}
		if err := l.Prove(t.Context()); err != nil {
			t.Error(err)
		}
		hosts[2].disk.Hold()
	}, during: func() error {
		hosts[2].disk.Go()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Prove(t.Context()); err != nil {
		t.Error(err)
	}
	closeLog(t, l)
}

// TestLongListPinsNothing: while a roll waits for etcd, what is flushed lets go of its memory.
func TestLongListPinsNothing(t *testing.T) {
	hosts := newHosts(t, 1, 2)
	l, rec := replicated(t, wal.Config{BytesMax: smallLog, CacheBytes: 128 << 10, OnLost: noneLost(t)}, hosts, 2)
	size := quorum.Size{Copies: 2, Quorum: 2}
	err := l.Roll(2, size, &roll{record: rec, size: size, hosts: hosts, during: func() error {
		for range 100 {
			addLarge(t, l, largeEntry, nil)
			if err := l.Prove(t.Context()); err != nil {
				return err
			}
			l.Trim(l.Durable())
		}
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
	closeLog(t, l)
}

// TestProofsWithoutQuorum: proofs of a log that has no quorum wait together, and take no memory each.
func TestProofsWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 1, 3)
		lost := make(chan string, 10)
		l, rec := replicated(t, wal.Config{BytesMax: smallLog, OnLost: func(_ uint32, name string, _ error) { lost <- name }}, hosts[:2], 2)
		lose(t, l, hosts[1], lost)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			_ = l.Prove(ended) // is asked for, and not waited for
			synctest.Wait()
		}
		if got := l.Stats().Appends; got > 2 {
			t.Errorf("%d frames for an entry and proofs", got)
		}
		size := quorum.Size{Copies: 2, Quorum: 2}
		if err := l.Roll(2, size, &roll{record: rec, size: size, hosts: []*host{hosts[0], hosts[2]}}); err != nil {
			t.Fatal(err)
		}
		if err := l.Prove(t.Context()); err != nil {
			t.Error(err)
		}
		closeLog(t, l)
		for _, h := range hosts {
			_ = h.store.Close() // one of them is broken
		}
	})
}

// TestOldSegmentIsTrimmedWhileItEnds: the writer's own disk is so full that the append to the old segment waits for room, and then the log rolls; room comes from
// trims of the old segment.
func TestOldSegmentIsTrimmedWhileItEnds(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, rec := replicated(t, wal.Config{OnLost: noneLost(t)}, hosts, 2)
	add := func() {
		t.Helper()
		addLarge(t, l, largeEntry, nil)
		if err := l.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 18 {
		add()
	}
	size := quorum.Size{Copies: 3, Quorum: 2}
	err := l.Roll(2, size, &roll{record: rec, size: size, hosts: hosts, opened: func() {
		hosts[0].disk.Inject(disktest.Fault{Op: disktest.OpOpen, Always: true, Err: disk.ErrFull}) // there is room for no further file
		for n := wal.LogID(9); ; n++ {                                                             // until no file is ready
			if _, err := hosts[0].store.Create(wal.SegmentID{Log: n, Number: 1}, 1, 1); err != nil {
				return
			}
		}
	}, during: func() error {
		for range 8 { // the own store has no room for them
			add()
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	l.Trim(l.Durable())
	for range 8 {
		add()
		l.Trim(l.Durable())
	}
	closeLog(t, l)
}
