package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

// fill leaves no room on a disk: what is there can be written over, and nothing more fits.
func fill(t *testing.T, d *disktest.Disk) {
	t.Helper()
	names, err := d.Names()
	must(t, err)
	used := 0
	for _, name := range names {
		used += len(d.Contents(name))
	}
	d.Capacity(int64(used))
}

// TestOpenFull: a store whose disk is full is opened, sealed, read, and closed, and what is dropped is room for new segments.
func TestOpenFull(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	must(t, s.Bind(uuid.New()))
	a := create(t, s, 5)
	appendEach(t, a, 1, 20, 5000)
	must(t, a.Close(), s.Close())

	// No file waits for use.
	names, err := d.Names()
	must(t, err)
	for _, name := range names {
		if b := d.Contents(name); filepath.Ext(name) == ".wal" {
			header, err := frame.ParseFileHeader(b[:frame.BlockBytes])
			must(t, err)
			if header.Free() {
				must(t, d.Remove(name))
			}
		}
	}
	fill(t, d)
	s = open(t, d, fileBytes)
	next := frame.SegmentID{Log: 8, Number: 1}
	if _, err := s.Create(next, 1, 1); !errors.Is(err, disk.ErrFull) {
		t.Errorf("create before anything is dropped: %v, want ErrFull", err)
	}
	answer, err := s.Seal(segment, 6)
	must(t, err)
	if answer.Last != 20 {
		t.Errorf("sealed at %d, want 20", answer.Last)
	}
	checkRead(t, s, 1, 20)
	must(t, s.Drop(segment))
	b, err := s.Create(next, 1, 1)
	must(t, err, b.Close(), s.Close())

	s = open(t, d.Crash(), fileBytes)
	if got := s.Fence(segment.Log); got != 6 {
		t.Errorf("fence %d after a crash, want 6", got)
	}
	must(t, s.Close())
}

// TestCrashWhileSealing: whenever the machine crashes, the state file is whole, and has the mark of each seal that was answered; also after a seal that failed when
// its mark was written and not known to be durable.
func TestCrashWhileSealing(t *testing.T) {
	for seed := range uint64(10) {
		for step, more := 1, true; more; step++ {
			synctest.Test(t, func(t *testing.T) { more = crashWhileSealing(t, seed, step) })
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// crashWhileSealing reports whether there were so many steps.
func crashWhileSealing(t *testing.T, seed uint64, step int) bool {
	d := disktest.New(seed)
	s := open(t, d, fileBytes)
	must(t, s.Bind(uuid.New()))
	seal := func(log frame.LogID, fence frame.Fence, want error) {
		if _, err := s.Seal(frame.SegmentID{Log: log, Number: 1}, fence); !errors.Is(err, want) {
			t.Fatalf("seal with fence %d: %v, want %v", fence, err, want)
		}
	}
	const last = 60 // its mark is in another sector than the checksum, so that a write can be torn between them
	for log := range frame.LogID(last) {
		seal(1+log, 2, disk.ErrUnknown)
	}
	synctest.Wait() // until files are prepared, which syncs the folder too

	d.Inject(disktest.Fault{Op: disktest.OpFolder, After: 1, Err: syscall.EIO}) // after the exchange
	seal(last, 3, syscall.EIO)
	answered, atCrash := frame.Fence(2), frame.Fence(0)
	d.CrashAt(step, func() { atCrash = answered })
	for fence := frame.Fence(4); fence < 7; fence++ {
		seal(last, fence, disk.ErrUnknown)
		answered = fence
	}
	after := open(t, d.Crash(), fileBytes)
	if got := after.Fence(last); got < atCrash {
		t.Errorf("fence %d, want at least %d", got, atCrash)
	}
	must(t, after.Close(), s.Close())
	return atCrash > 0
}

// TestStateFile: the names of the two state files change places in a real folder.
func TestStateFile(t *testing.T) {
	dir := t.TempDir()
	s, err := disk.Open(disk.Config{Dir: dir, FileBytes: fileBytes})
	must(t, err, s.Bind(uuid.New()))
	inode := func(name string) uint64 {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		return info.Sys().(*syscall.Stat_t).Ino
	}
	was, next := inode("store"), inode("store.new")
	if _, err := s.Seal(segment, 6); !errors.Is(err, disk.ErrUnknown) {
		t.Fatal(err)
	}
	if now, before := inode("store"), inode("store.new"); now != next || before != was {
		t.Errorf("the state is inode %d and was %d, want %d and %d", now, before, next, was)
	}
	must(t, s.Close())
}
