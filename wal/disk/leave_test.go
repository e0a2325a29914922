package disk_test

import (
	"errors"
	"testing"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

// TestLeave: a store that is about to leave takes no new segment, and goes on with those that it has.
func TestLeave(t *testing.T) {
	s, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	old, err := s.Create(frame.SegmentID{Log: 1, Number: 1}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	s.Leave()
	if _, err := s.Create(frame.SegmentID{Log: 1, Number: 2}, 1, 1); !errors.Is(err, disk.ErrClosed) {
		t.Errorf("a new segment: %v, want %v", err, disk.ErrClosed)
	}
	if err := old.Append(nil); err != nil {
		t.Errorf("append to an old one: %v", err)
	}
	if n := len(s.Segments()); n != 1 {
		t.Errorf("%d segments, want 1", n)
	}
}
