package disk_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

const fileBytes = 64 << 10

func create(tb testing.TB, s *disk.Store, fence frame.Fence) *disk.Appender {
	tb.Helper()
	a, err := s.Create(segment, fence, 1)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}

// appendEach appends entries of the given size one by one, numbered from first.
func appendEach(tb testing.TB, a *disk.Appender, first frame.EntryID, n, size int) {
	tb.Helper()
	for i := range n {
		must(tb, a.Append([][]byte{framed(5, first+frame.EntryID(i), size)}))
	}
}

// TestRealFolder goes through the operating system: direct I/O, rename, flock.
func TestRealFolder(t *testing.T) {
	dir := t.TempDir()
	s, err := disk.Open(disk.Config{Dir: dir, FileBytes: fileBytes})
	must(t, err)
	if _, err := disk.Open(disk.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is held by process") {
		t.Errorf("opened twice: %v", err)
	}
	a := create(t, s, 5)
	appendEach(t, a, 1, 40, 5000)
	identity := s.Identity()
	must(t, a.Close(), s.Close())

	s, err = disk.Open(disk.Config{Dir: dir, FileBytes: fileBytes})
	must(t, err)
	if s.Identity() != identity {
		t.Errorf("identity %s, was %s", s.Identity(), identity)
	}
	answer, err := s.Seal(segment, 6)
	must(t, err)
	if answer.First != 1 || answer.Last != 40 {
		t.Errorf("answer %+v", answer)
	}
	checkRead(t, s, 1, 40)
	must(t, s.Drop(segment), s.Close())
}

func TestFilesAreRecycled(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	for first := frame.EntryID(1); first < 2000; first += 10 {
		appendEach(t, a, first, 10, 5000)
		must(t, a.Trim(first+9))
	}
	names, err := d.Names()
	must(t, err)
	if len(names) > 15 {
		t.Errorf("%d files after trimming: %v", len(names), names)
	}
	must(t, a.Close(), s.Close())
}

func TestSealFencesTheWriter(t *testing.T) {
	s := open(t, disktest.New(1), fileBytes)
	a := create(t, s, 5)
	appendEach(t, a, 1, 3, 100)
	if err := s.Read(segment, 1, nil); !errors.Is(err, disk.ErrLive) {
		t.Errorf("read under a writer: %v", err)
	}
	if _, err := s.Seal(segment, 5); !errors.Is(err, disk.ErrFenced) {
		t.Errorf("sealed by the writer's own fence: %v", err)
	}
	answer, err := s.Seal(segment, 7)
	must(t, err)
	if answer.Last != 3 {
		t.Errorf("answer %+v", answer)
	}
	if err := a.Append([][]byte{framed(5, 4, 10)}); !errors.Is(err, disk.ErrFenced) {
		t.Errorf("appended after a seal: %v", err)
	}
	if _, err := s.Seal(segment, 6); !errors.Is(err, disk.ErrFenced) {
		t.Errorf("sealed by an older claimer: %v", err)
	}
	checkRead(t, s, 1, 3)
	must(t, a.Close(), s.Close())
}

// TestFenceMarkOutlivesTheLog: also that of a log of which the store never held anything.
func TestFenceMarkOutlivesTheLog(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	must(t, a.Close())
	_, err := s.Seal(segment, 6)
	must(t, err, s.Drop(segment))
	other := frame.SegmentID{Log: 99, Number: 1}
	if _, err := s.Seal(other, 3); !errors.Is(err, disk.ErrUnknown) {
		t.Errorf("sealed what is not there: %v", err)
	}
	s = open(t, d.Crash(), fileBytes)
	for id, fence := range map[frame.SegmentID]frame.Fence{{Log: 7, Number: 2}: 5, other: 2} {
		if _, err := s.Create(id, fence, 1); !errors.Is(err, disk.ErrFenced) {
			t.Errorf("created %s with fence %d: %v", id, fence, err)
		}
	}
}

// TestSealWaitsForTheSync: a store answers a seal while a sync is in flight, then acknowledges that sync.
func TestSealWaitsForTheSync(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	appendEach(t, a, 1, 1, 100)
	d.Hold()
	appended := make(chan error)
	go func() { appended <- a.Append([][]byte{framed(5, 2, 100)}) }()
	d.AwaitHeld(1)
	sealed := make(chan frame.EntryID)
	go func() {
		answer, err := s.Seal(segment, 6)
		if err != nil {
			t.Error(err)
		}
		sealed <- answer.Last
	}()
	// The mark is in force and, as another one that came later is on disk, durable too: nothing but the append under way
	// can hold the answer back.
	for s.Fence(segment.Log) != 6 {
		runtime.Gosched()
	}
	if _, err := s.Seal(frame.SegmentID{Log: 99, Number: 1}, 1); !errors.Is(err, disk.ErrUnknown) {
		t.Fatal(err)
	}
	for range 100 {
		runtime.Gosched()
	}
	select {
	case last := <-sealed:
		t.Fatalf("answered with entry %d before the sync had ended", last)
	case err := <-appended:
		t.Fatalf("appended: %v", err)
	default:
	}
	d.Go()
	must(t, <-appended)
	if last := <-sealed; last != 2 {
		t.Errorf("the answer ends with entry %d, 2 was acknowledged", last)
	}
}

func TestDamageIsReported(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	appendEach(t, a, 1, 5, 100)
	must(t, a.Close())
	name := fileOf(t, d, 5)
	must(t, s.Close())
	d.Damage(name, 3*frame.BlockBytes+100, 1) // entry 3
	s = open(t, d.Kill(), fileBytes)
	_, err := s.Seal(segment, 6)
	var corrupt *frame.CorruptError
	if !errors.As(err, &corrupt) || corrupt.File != name || corrupt.Offset != 3*frame.BlockBytes || corrupt.First != 3 || corrupt.Last != 3 {
		t.Fatalf("sealed: %v", err)
	}
	if err := s.Read(segment, 1, func(id frame.EntryID, _ []byte) error {
		if id >= 3 {
			t.Errorf("entry %d served", id)
		}
		return nil
	}); !errors.As(err, &corrupt) {
		t.Errorf("read: %v", err)
	}
	must(t, s.AcceptLoss(segment, corrupt.First))
	answer, err := s.Seal(segment, 6)
	must(t, err)
	if answer.Last != 2 {
		t.Errorf("answer %+v", answer)
	}
	checkRead(t, s, 1, 2)
}

// fileOf finds the file that is in use under the given fence.
func fileOf(tb testing.TB, d *disktest.Disk, fence frame.Fence) string {
	tb.Helper()
	names, err := d.Names()
	must(tb, err)
	for _, name := range names {
		if b := d.Contents(name); len(b) >= frame.BlockBytes {
			if h, err := frame.ParseFileHeader(b); err == nil && h.Fence == fence {
				return name
			}
		}
	}
	tb.Fatal("no such file")
	return ""
}

func TestDamagedHeaderIsReported(t *testing.T) {
	d := disktest.New(1)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	appendEach(t, a, 1, 5, 100)
	name := fileOf(t, d, 5)
	d.Damage(name, 20, 1)
	open(t, d.Kill(), fileBytes) // one copy is left
	d.Damage(name, frame.BlockBytes/2+20, 1)
	if _, err := disk.Open(disk.Config{FS: d.Kill()}); !errors.Is(err, frame.ErrFileHeader) || !strings.Contains(err.Error(), name) {
		t.Errorf("opened: %v", err)
	}
}

// TestFailureIsFinal: after an I/O error nothing is written any more, and what is on disk behind the last acknowledged
// entry is not served.
func TestFailureIsFinal(t *testing.T) {
	for _, op := range []disktest.Op{disktest.OpWrite, disktest.OpSync} {
		d := disktest.New(1)
		s := open(t, d, fileBytes)
		a := create(t, s, 5)
		appendEach(t, a, 1, 2, 100)
		d.Inject(disktest.Fault{Op: op, Name: fileOf(t, d, 5), Err: syscall.EIO})
		if err := a.Append([][]byte{framed(5, 3, 100)}); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", op, err)
		}
		if err := a.Append([][]byte{framed(5, 3, 100)}); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s, again: %v", op, err)
		}
		must(t, a.Close())
		answer, err := s.Seal(segment, 6)
		must(t, err)
		if answer.Last != 2 {
			t.Errorf("%s: answer %+v", op, answer)
		}
		checkRead(t, s, 1, 2)
	}
}

// TestFullDisk: an append for which the disk has no room for another file waits until there is, or the store needs none any more.
func TestFullDisk(t *testing.T) {
	const entries = 100
	for name, c := range map[string]struct {
		end  func(d *disktest.Disk, s *disk.Store, a *disk.Appender) error
		want error
	}{
		"room": {func(d *disktest.Disk, _ *disk.Store, _ *disk.Appender) error { d.Capacity(0); return nil }, nil},
		"seal": {func(_ *disktest.Disk, s *disk.Store, _ *disk.Appender) error {
			_, err := s.Seal(segment, 6)
			return err
		}, disk.ErrFenced},
		"close": {func(_ *disktest.Disk, s *disk.Store, _ *disk.Appender) error { return s.Close() }, disk.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := disktest.New(1)
				d.Capacity(6*fileBytes + 8192)
				s := open(t, d, fileBytes)
				a := create(t, s, 5)
				appended, ended := 0, make(chan error, 1)
				go func() {
					err := error(nil)
					for ; err == nil && appended < entries; appended++ {
						err = a.Append([][]byte{framed(5, frame.EntryID(appended+1), 12000)})
					}
					ended <- err
				}()
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(ended) > 0 {
					t.Fatalf("ended at entry %d: %v", appended, <-ended)
				}
				if appended < 20 || appended >= entries {
					t.Errorf("%d entries fit, want more than 20 and less than %d", appended, entries)
				}
				must(t, c.end(d, s, a))
				if err := <-ended; !errors.Is(err, c.want) {
					t.Errorf("append after the wait: %v, want %v", err, c.want)
				}
				_ = a.Close() // reported before, if it failed
				must(t, s.Close())
			})
		})
	}
	// A segment is not begun without room: its writer has nothing yet that must not be lost.
	d := disktest.New(3)
	d.Capacity(fileBytes)
	s := open(t, d, fileBytes)
	if _, err := s.Create(segment, 5, 1); !errors.Is(err, disk.ErrFull) {
		t.Errorf("create on a full disk: %v, want ErrFull", err)
	}
	must(t, s.Close())
}

// TestSealAfterFull: a seal that finds no room for its mark fails; the next one, when there is room, does not.
func TestSealAfterFull(t *testing.T) {
	d := disktest.New(4)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	must(t, a.Append([][]byte{framed(5, 1, 100)}))
	d.Capacity(1)
	if _, err := s.Seal(segment, 6); !errors.Is(err, disk.ErrFull) {
		t.Errorf("seal on a full disk: %v, want ErrFull", err)
	}
	d.Capacity(1 << 30)
	if answer, err := s.Seal(segment, 6); err != nil || answer.Last != 1 {
		t.Errorf("seal when there is room again: %+v, %v", answer, err)
	}
	_ = a.Close()
	must(t, s.Close())
}

// TestSealAfterError: a seal whose mark cannot be saved fails, whatever fails about it; the next one does not, and its mark outlives a crash.
func TestSealAfterError(t *testing.T) {
	for _, fault := range []disktest.Fault{
		{Op: disktest.OpWrite, Name: "store.new"}, {Op: disktest.OpSync, Name: "store.new"}, {Op: disktest.OpRename, Name: "store.new"}, {Op: disktest.OpFolder},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := disktest.New(4)
			s := open(t, d, fileBytes)
			a := create(t, s, 5)
			must(t, a.Append([][]byte{framed(5, 1, 100)}), a.Close())
			synctest.Wait() // until the files of later appends are prepared, which sync the folder too
			fault.Err = syscall.EIO
			d.Inject(fault)
			if _, err := s.Seal(segment, 6); !errors.Is(err, syscall.EIO) {
				t.Errorf("seal when %s of %q fails: %v, want EIO", fault.Op, fault.Name, err)
			}
			if answer, err := s.Seal(segment, 7); err != nil || answer.Last != 1 {
				t.Errorf("seal after %s of %q failed: %+v, %v", fault.Op, fault.Name, answer, err)
			}
			d = d.Crash()
			_ = s.Close()
			s = open(t, d, fileBytes)
			if got := s.Fence(segment.Log); got != 7 {
				t.Errorf("fence %d after the crash, want 7", got)
			}
			must(t, s.Close())
		})
	}
}

func TestTrimsMakeRoom(t *testing.T) {
	d := disktest.New(2)
	d.Capacity(6*fileBytes + 8192)
	s := open(t, d, fileBytes)
	a := create(t, s, 5)
	for first := frame.EntryID(1); first < 500; first++ {
		must(t, a.Append([][]byte{framed(5, first, 12000)}), a.Trim(first))
	}
	must(t, a.Close(), s.Close())
}

func TestRefusals(t *testing.T) {
	s := open(t, disktest.New(1), fileBytes)
	a := create(t, s, 5)
	if _, err := s.Create(segment, 5, 1); !errors.Is(err, disk.ErrExists) {
		t.Errorf("created twice: %v", err)
	}
	if err := s.Drop(segment); !errors.Is(err, disk.ErrLive) {
		t.Errorf("dropped under a writer: %v", err)
	}
	if err := s.Trim(frame.SegmentID{Log: 1, Number: 1}, 1); !errors.Is(err, disk.ErrUnknown) {
		t.Errorf("trimmed: %v", err)
	}
	if err := a.Append([][]byte{framed(5, 1, fileBytes)}); !errors.Is(err, disk.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	s = open(t, disktest.New(1), fileBytes)
	a = create(t, s, 5)
	if err := a.Append([][]byte{framed(5, 2, 10)}); err == nil {
		t.Error("a gap was accepted")
	}
	s = open(t, disktest.New(1), fileBytes)
	a = create(t, s, 5)
	must(t, s.Close())
	if err := a.Append([][]byte{framed(5, 1, 10)}); !errors.Is(err, disk.ErrClosed) {
		t.Errorf("appended to a closed store: %v", err)
	}
}

// TestIdentity: a copied or emptied folder is not taken for the store.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	use := func() *disk.Store {
		s, err := disk.Open(disk.Config{Dir: dir, FileBytes: fileBytes})
		must(t, err)
		a, err := s.Create(frame.SegmentID{Log: frame.LogID(len(s.Segments()) + 1), Number: 1}, 1, 1)
		must(t, err, a.Close(), s.Close())
		return s
	}
	was := use().Identity()
	if now := use().Identity(); now != was {
		t.Errorf("identity %s, was %s", now, was)
	}
	must(t, os.Remove(filepath.Join(dir, "store")))
	if _, err := disk.Open(disk.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), `no file "store"`) {
		t.Errorf("opened without identity: %v", err)
	}
	other := t.TempDir()
	s, err := disk.Open(disk.Config{Dir: other, FileBytes: fileBytes})
	must(t, err, s.Close())
	b, err := os.ReadFile(filepath.Join(other, "store"))
	must(t, err, os.WriteFile(filepath.Join(dir, "store"), b, 0o600))
	if _, err := disk.Open(disk.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "belongs to the store") {
		t.Errorf("opened another store's files: %v", err)
	}
}

// TestSyncNone: the death of the process loses nothing, an unclean reboot everything, and says so by a new identity.
func TestSyncNone(t *testing.T) {
	d := disktest.New(1)
	run := func(d *disktest.Disk) *disk.Store {
		s, err := disk.Open(disk.Config{FS: d, FileBytes: fileBytes, SyncNone: true})
		must(t, err)
		return s
	}
	s := run(d)
	a := create(t, s, 5)
	appendEach(t, a, 1, 20, 5000)

	killed := run(d.Kill())
	if killed.Identity() != s.Identity() {
		t.Error("a new store after the death of the process")
	}
	answer, err := killed.Seal(segment, 6)
	must(t, err)
	if answer.Last != 20 {
		t.Errorf("answer %+v", answer)
	}
	crashed := run(d.Crash())
	if crashed.Identity() == s.Identity() || len(crashed.Segments()) != 0 {
		t.Error("the same store after an unclean reboot")
	}
	must(t, a.Close(), s.Close())
	rebooted := run(d.Kill())
	if rebooted.Identity() != s.Identity() {
		t.Error("a new store after a clean end")
	}
	must(t, rebooted.Close())
}
