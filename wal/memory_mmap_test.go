//go:build linux && !race

package wal

import (
	"errors"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
)

// TestNoMemory: an append for which there is no memory fails the log. Its caller has given the entry a place among its own by then, so that a
// log that went on without it would have a hole there.
func TestNoMemory(t *testing.T) {
	s, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	id := SegmentID{Log: 1, Number: 1}
	a, err := s.Create(id, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{Segment: id, Fence: 1, First: 1, BytesMax: 1 << 20}, Copy{Name: "own", Store: a})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.chunkBytes, l.free = 1<<62, nil // more than any address space
	l.mu.Unlock()
	for err == nil {
		_, err = l.Append(nil, make([]byte, 10<<10), crc32c.Tail{}, nil)
	}
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("append without memory: %v, want ErrFailed", err)
	}
	if _, again := l.Append(nil, nil, crc32c.Tail{}, nil); !errors.Is(again, ErrFailed) {
		t.Errorf("append after that: %v, want ErrFailed", again)
	}
	<-l.Failed()
	if err := l.Close(t.Context()); !errors.Is(err, ErrFailed) {
		t.Errorf("close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
