package disk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

var segment = frame.SegmentID{Log: 7, Number: 1}

func open(tb testing.TB, fs disk.FS, fileBytes int64) *disk.Store {
	tb.Helper()
	s, err := disk.Open(disk.Config{FS: fs, FileBytes: fileBytes})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// aligned gives n bytes at a block boundary.
func aligned(n int64) []byte {
	b := make([]byte, n+frame.BlockBytes)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (frame.BlockBytes - 1)
	return b[skip : int64(skip)+n]
}

// content is what entry id holds in these tests.
func content(id frame.EntryID, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(id))
	return append(b, bytes.Repeat([]byte{byte(id)}, n)...)
}

// framed makes one frame of entries from first on, with sizes as given.
func framed(fence frame.Fence, first frame.EntryID, sizes ...int) []byte {
	body := 0
	for _, n := range sizes {
		body += frame.EntryHeaderBytes + 8 + n
	}
	h := frame.Header{Segment: segment, Fence: fence, First: first}
	b := aligned(frame.Padded(frame.HeaderBytes + int64(body)))
	at := frame.HeaderBytes
	for i, n := range sizes {
		at += h.Put(b[at:], nil, content(first+frame.EntryID(i), n), crc32c.Tail{})
	}
	frame.Finish(b, &h)
	return b
}

// checkRead reads the segment and compares every entry.
func checkRead(tb testing.TB, s *disk.Store, first, last frame.EntryID) {
	tb.Helper()
	next := first
	err := s.Read(segment, first, func(id frame.EntryID, b []byte) error {
		if id != next {
			tb.Fatalf("entry %d where %d was due", id, next)
		}
		if want := content(id, len(b)-8); !bytes.Equal(b, want) {
			tb.Fatalf("entry %d holds %.20x, want %.20x", id, b, want)
		}
		next++
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	if next != last+1 {
		tb.Fatalf("read to %d, want %d", next-1, last)
	}
}

// TestCrash runs a store until the machine crashes at a random moment, and looks at what is found afterwards. In each run
// the store was used before, so that files are recycled, and it is trimmed meanwhile.
func TestCrash(t *testing.T) {
	for seed := range uint64(300) {
		crashRun(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func crashRun(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := disktest.New(seed)
	s := open(t, d, fileBytes)
	a, err := s.Create(segment, 5, 1)
	if err != nil {
		t.Fatal(err)
	}
	var acked, trimmed atomic.Uint64 // the keeper's steps may be the one
	var sent, ackedAtCrash, trimmedAtCrash frame.EntryID
	d.CrashAt(1+rng.IntN(400), func() {
		ackedAtCrash, trimmedAtCrash = frame.EntryID(acked.Load()), frame.EntryID(trimmed.Load())
	})
	for crashed := false; !crashed; {
		select {
		case <-d.Crashed():
			crashed = true
			continue
		default:
		}
		var bufs [][]byte
		for range 1 + rng.IntN(3) {
			var sizes []int
			for range rng.IntN(5) {
				sizes = append(sizes, rng.IntN(9000))
			}
			bufs = append(bufs, framed(5, sent+1, sizes...))
			sent += frame.EntryID(len(sizes))
		}
		if err := a.Append(bufs); err != nil {
			t.Fatal(err)
		}
		acked.Store(uint64(sent))
		if rng.IntN(4) == 0 {
			trimmed.Store(max(trimmed.Load(), rng.Uint64N(uint64(sent)+1)))
			if err := a.Trim(frame.EntryID(trimmed.Load())); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := open(t, d.Crash(), fileBytes)
	answer, err := after.Seal(segment, 6)
	if err != nil {
		t.Errorf("seal: %v", err)
		return
	}
	if answer.First > trimmedAtCrash+1 {
		t.Errorf("first %d, trimmed only to %d", answer.First, trimmedAtCrash)
	}
	if answer.Last < ackedAtCrash || answer.Last > sent {
		t.Errorf("last %d, acknowledged %d, sent %d", answer.Last, ackedAtCrash, sent)
	}
	checkRead(t, after, answer.First, answer.Last)
	if _, err := after.Create(segment, 9, answer.Last+1); !errors.Is(err, disk.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	// Another log takes the files over; the answer stays, also after another crash.
	other, err := after.Create(frame.SegmentID{Log: 8, Number: 1}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	must(t, after.Close())
	again := open(t, d.Crash().Crash(), fileBytes)
	if second, err := again.Seal(segment, 6); err != nil || second != answer {
		t.Errorf("sealed again: %v, %v; was %v", second, err, answer)
	}
	if err := errors.Join(again.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
}
