package dir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/dir"
	"github.com/varve-io/varve/objectstore/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objectstore.Store { return mustOpen(t, t.TempDir()) })
}

// TestContractOnMemory runs on a file system without a disk, which may refuse to write past the page cache.
func TestContractOnMemory(t *testing.T) {
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		t.Logf("no %s on this machine: nothing to test", memory)
		return
	}
	t.Setenv("TMPDIR", memory)
	storetest.Run(t, func(t *testing.T) objectstore.Store { return mustOpen(t, t.TempDir()) })
}

// TestTwoStoresRace lets two stores on one folder, as in two processes, put the same name.
func TestTwoStoresRace(t *testing.T) {
	folder := t.TempDir()
	stores := []*dir.Store{mustOpen(t, folder), mustOpen(t, folder)}
	for round := range 20 {
		name := fmt.Sprintf("a/%d", round)
		errs := make([]error, len(stores))
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() { errs[i] = s.Put(t.Context(), name, body(byte(i), 100_000)) })
		}
		wg.Wait()
		winner := slices.Index(errs, nil)
		if winner < 0 || !errors.Is(errs[1-winner], objectstore.ErrExists) {
			t.Fatalf("puts gave %v, want one winner and one loser", errs)
		}
		got := make([]byte, 100_000)
		if err := stores[1-winner].Get(t.Context(), name, 0, got); err != nil || got[0] != byte(winner) || got[len(got)-1] != byte(winner) {
			t.Errorf("object has bytes of %d and %d, error %v; want those of %d", got[0], got[len(got)-1], err, winner)
		}
	}
}

// TestOpenCleansUp leaves what a crashed process leaves, beside a store that lives.
func TestOpenCleansUp(t *testing.T) {
	folder := t.TempDir()
	living := mustOpen(t, folder)
	mustPut(t, living, "x/a")
	crashed := filepath.Join(folder, "~put", "CRASHED")
	if err := os.Mkdir(crashed, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(crashed, "1"), []byte("half an obj"), 0o644); err != nil {
		t.Fatal(err)
	}

	mustPut(t, mustOpen(t, folder), "x/b")
	if _, err := os.Stat(crashed); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folder of the crashed process: %v, want it gone", err)
	}
	mustPut(t, living, "x/c") // its folder for temporary files is still there
	wantFiles(t, folder, "x/a", "x/b", "x/c")
}

// TestPutLeavesNothing checks that neither success nor failure leaves temporary files.
func TestPutLeavesNothing(t *testing.T) {
	folder := t.TempDir()
	s := mustOpen(t, folder)
	for _, size := range []int{10, 3 << 20} {
		name := fmt.Sprintf("x/%d", size)
		for _, want := range []error{nil, objectstore.ErrExists} {
			if err := s.Put(t.Context(), name, body(1, size)); !errors.Is(err, want) {
				t.Errorf("put of %s: %v, want %v", name, err, want)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "file/a", body(1, 10)); !errors.Is(err, objectstore.ErrDenied) {
		t.Errorf("put below a file: %v, want %v", err, objectstore.ErrDenied)
	}
	wantFiles(t, folder, "file", "x/10", "x/3145728")
}

// TestPutStopsWithItsContext ends the context while the body is written.
func TestPutStopsWithItsContext(t *testing.T) {
	folder := t.TempDir()
	s := mustOpen(t, folder)
	ctx := &countdown{Context: t.Context(), left: 3}
	err := s.Put(ctx, "a", body(1, 20<<20))
	if !errors.Is(err, context.Canceled) || errors.Is(err, objectstore.ErrUnknownOutcome) {
		t.Errorf("put: %v, want the context's error and no doubt", err)
	}
	wantFiles(t, folder)
}

// countdown is a context that ends when it has been asked a few times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	c.left--
	if c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestFolderRemoved removes folders that the store knows.
func TestFolderRemoved(t *testing.T) {
	folder := t.TempDir()
	s := mustOpen(t, folder)
	mustPut(t, s, "x/y/a")
	if err := os.RemoveAll(filepath.Join(folder, "x")); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "x/y/a")
	wantFiles(t, folder, "x/y/a")
}

// TestStrangers checks that files which are no objects are not listed, and folders not taken for objects.
func TestStrangers(t *testing.T) {
	folder := t.TempDir()
	s := mustOpen(t, folder)
	mustPut(t, s, "x/a")
	for _, name := range []string{"x/notes~", "x/with space"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(folder, "x", "link")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Name)
	}
	if !slices.Equal(got, []string{"x/a"}) {
		t.Errorf("listed %q, want x/a alone", got)
	}
	if err := s.Delete(t.Context(), "x"); err != nil {
		t.Errorf("delete of a name that is a folder: %v", err)
	}
	if _, err := s.Stat(t.Context(), "x/a"); err != nil {
		t.Errorf("object in it: %v", err)
	}
}

func TestOpenRefusesAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if _, err := dir.Open(path); err == nil {
			t.Errorf("opened %s, want an error as it is no folder", path)
		}
	}
}

func mustOpen(t testing.TB, folder string) *dir.Store {
	t.Helper()
	s, err := dir.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustPut(t *testing.T, s *dir.Store, name string) {
	t.Helper()
	if err := s.Put(t.Context(), name, body(1, 10)); err != nil {
		t.Fatal(err)
	}
}

func body(b byte, size int) objectstore.Body {
	return objectstore.Bytes(bytes.Repeat([]byte{b}, size))
}

// wantFiles checks which files are in the folder, temporary ones included.
func wantFiles(t *testing.T, folder string, want ...string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			name, _ := filepath.Rel(folder, path)
			got = append(got, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("folder has the files %q, error %v; want %q", got, err, want)
	}
}

// BenchmarkPut puts objects as a flush does: 8 MiB in many parts, synced.
func BenchmarkPut(b *testing.B) {
	s := mustOpen(b, b.TempDir())
	part := bytes.Repeat([]byte("varve "), 10_000)
	var parts [][]byte
	for size := 0; size < 8<<20; size += len(part) {
		parts = append(parts, part)
	}
	content := objectstore.Parts(parts...)
	b.SetBytes(content.Size)
	storetest.ReportCPU(b, content.Size, func() {
		n := 0
		for b.Loop() {
			name := fmt.Sprintf("x/%d", n)
			if err := s.Put(b.Context(), name, content); err != nil {
				b.Fatal(err)
			}
			if err := s.Delete(b.Context(), name); err != nil {
				b.Fatal(err)
			}
			n++
		}
	})
}

// TestGetAnyRange reads ranges that begin and end anywhere in sectors, buffers and the object.
func TestGetAnyRange(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	content := make([]byte, 3<<20+777)
	for i := range content {
		content[i] = byte(i ^ i>>8 ^ i>>16)
	}
	if err := s.Put(t.Context(), "a", objectstore.Bytes(content)); err != nil {
		t.Fatal(err)
	}
	size := len(content)
	for _, r := range [][2]int{
		{0, size}, {1, size}, {4095, 4095 + 64<<10}, {4096, 1<<20 + 4096}, {1<<20 - 1, 2<<20 + 1}, {size - 64<<10, size}, {size - 1<<20 - 3, size}, {size - 5, size},
	} {
		got := make([]byte, r[1]-r[0])
		if err := s.Get(t.Context(), "a", int64(r[0]), got); err != nil || !bytes.Equal(got, content[r[0]:r[1]]) {
			t.Errorf("bytes %d to %d: error %v, or wrong ones", r[0], r[1], err)
		}
	}
	for _, off := range []int{size - 64<<10 + 1, size, size + 9000} {
		if err := s.Get(t.Context(), "a", int64(off), make([]byte, 64<<10)); !errors.Is(err, objectstore.ErrDenied) {
			t.Errorf("64 KiB from %d of %d: %v, want %v", off, size, err, objectstore.ErrDenied)
		}
	}
}
