package diskcache

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
)

// pieceBytes is the length of a piece.
const pieceBytes = blocksMax * slotBytes

// behind is a source whose objects have a content that follows from their names, and that counts what it is asked for.
type behind struct {
	mu     sync.Mutex
	gets   int
	damage bool // one bit of each part
	err    error
	delay  time.Duration // of answers
}

// content fills p with the bytes from off of an object.
func content(name string, off int64, p []byte) {
	clear(p)
	seed := uint64(len(name))
	for _, c := range name {
		seed = seed*31 + uint64(c)
	}
	for i := 0; i+16 <= len(p); i += sectorBytes { // enough to tell any sector from all others
		binary.LittleEndian.PutUint64(p[i:], seed)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(off)+uint64(i))
	}
}

func (b *behind) Get(_ context.Context, o cache.Object, off int64, parts [][]byte) error {
	time.Sleep(b.delay)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gets++
	if b.err != nil {
		return b.err
	}
	for _, part := range parts {
		content(o.Name, off, part)
		off += int64(len(part))
		if b.damage {
			part[len(part)/2] ^= 1
		}
	}
	return nil
}

// fixture is a source in front of behind. Its tests run in bubbles, so that no time passes while a slow machine works.
type fixture struct {
	*Source
	behind *behind
}

// open opens a source of so many slots in a folder.
func open(t *testing.T, folder string, slots int64) *fixture {
	t.Helper()
	b := &behind{}
	s, err := Open(Config{Folder: folder, BytesMax: slots * slotBytes, Log: slog.New(slog.DiscardHandler)}, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &fixture{s, b}
}

// with returns a source of so many slots in a file.
func with(f *memFile, slots int64) *fixture {
	b := &behind{}
	s := newSource(Config{BytesMax: slots * slotBytes, FreeBytesMin: 10 * slotBytes, Log: slog.New(slog.DiscardHandler)}, b, f)
	s.look()
	return &fixture{s, b}
}

// get reads bytes of an object, in parts of a block, and checks them.
func (f *fixture) get(t *testing.T, o cache.Object, off, n int64) {
	t.Helper()
	got := make([]byte, n)
	var parts [][]byte
	for rest := got; len(rest) > 0; {
		part := rest[:min(len(rest), slotBytes)]
		parts, rest = append(parts, part), rest[len(part):]
	}
	if err := f.Get(t.Context(), o, off, parts); err != nil {
		t.Errorf("get %d bytes from %d of %s: %v", n, off, o.Name, err)
		return
	}
	want := make([]byte, n)
	content(o.Name, off, want)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes from %d of %s are wrong", n, off, o.Name)
	}
}

// settle waits until nothing is being written.
func (f *fixture) settle() {
	var held [][]byte
	for range writesMax {
		held = append(held, <-f.writes)
	}
	for _, buffer := range held {
		f.writes <- buffer
	}
}

// gets holds that the source behind was asked so many times since the last call.
func (f *fixture) gets(t *testing.T, when string, want int) {
	t.Helper()
	f.settle()
	f.behind.mu.Lock()
	defer f.behind.mu.Unlock()
	if f.behind.gets != want {
		t.Errorf("%s: the bucket was asked %d times, want %d; %+v", when, f.behind.gets, want, f.Stats())
	}
	f.behind.gets = 0
}

func TestGet(t *testing.T) { synctest.Test(t, testGet) }

func testGet(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "made", "for it"), 16)
	a := cache.Object{Name: "a", Size: 2*pieceBytes + 5000}
	f.get(t, a, 0, pieceBytes)
	f.gets(t, "nothing is there", 1)
	f.get(t, a, 0, pieceBytes)
	f.get(t, a, slotBytes, 2*slotBytes)
	f.get(t, a, 3*slotBytes, slotBytes)
	f.gets(t, "the piece, and parts of it, are there", 0)
	f.get(t, cache.Object{Name: "b", Size: a.Size}, 0, pieceBytes)
	f.gets(t, "another object", 1)
	f.get(t, a, 2*pieceBytes, 5000)
	f.gets(t, "its end", 1)
	f.get(t, a, 2*pieceBytes, 5000)
	f.gets(t, "its end again", 0)
	f.get(t, a, 2*pieceBytes, 4000)
	f.gets(t, "a shorter end, of who has the size wrong", 1)
	f.get(t, a, pieceBytes+2*slotBytes, slotBytes)
	f.get(t, a, pieceBytes, pieceBytes)
	f.gets(t, "a part, then all of a piece", 2)
	f.get(t, a, pieceBytes, pieceBytes)
	f.gets(t, "all of it is there", 0)

	want := Stats{
		Hits: 5, HitBytes: 2*pieceBytes + 3*slotBytes + 5000, Misses: 6,
		WrittenBytes: 3*pieceBytes + 5000 + 4000, Bytes: 14 * slotBytes, Blocks: 14,
	}
	if st := f.Stats(); st != want {
		t.Errorf("counters are %+v, want %+v", st, want)
	}
}

// TestNotBlocks: what is not cut as a cache cuts it is passed on.
func TestNotBlocks(t *testing.T) { synctest.Test(t, testNotBlocks) }

func testNotBlocks(t *testing.T) {
	f := open(t, t.TempDir(), 16)
	for range 2 {
		for _, parts := range [][][]byte{{make([]byte, slotBytes+1)}, {{1}, {2}, {3}, {4}, {5}}} {
			if err := f.Get(t.Context(), cache.Object{Name: "a", Size: pieceBytes}, 0, parts); err != nil {
				t.Error(err)
			}
		}
	}
	f.gets(t, "no blocks", 4)
}

// TestError: what the bucket says is what is said, and nothing is kept of it.
func TestError(t *testing.T) { synctest.Test(t, testError) }

func testError(t *testing.T) {
	f := open(t, t.TempDir(), 16)
	f.behind.err = objectstore.ErrNotFound
	if err := f.Get(t.Context(), cache.Object{Name: "a", Size: 9}, 0, [][]byte{make([]byte, 9)}); !errors.Is(err, objectstore.ErrNotFound) {
		t.Errorf("get: %v, want %v", err, objectstore.ErrNotFound)
	}
	f.settle()
	if st := f.Stats(); st.Blocks != 0 {
		t.Errorf("counters are %+v, want no blocks", st)
	}
}

// TestBound: the file grows to its limit and no further, and what was not read for longest goes.
func TestBound(t *testing.T) { synctest.Test(t, testBound) }

func testBound(t *testing.T) {
	folder := t.TempDir()
	f := open(t, folder, 10)
	o := cache.Object{Name: "a", Size: 100 * pieceBytes}
	for i := range int64(20) {
		f.get(t, o, i*slotBytes, slotBytes)
		f.settle()
		f.look()
		f.get(t, o, 0, slotBytes)
	}
	f.gets(t, "the first block was read again and again", 20)
	for i := range int64(9) {
		f.get(t, o, (11+i)*slotBytes, slotBytes)
	}
	f.gets(t, "the last ones", 0)
	f.get(t, o, 10*slotBytes, slotBytes)
	f.gets(t, "the one before them", 1)
	if st := f.Stats(); st.Bytes != 10*slotBytes || st.Blocks != 10 || st.Evictions != 11 {
		t.Errorf("counters are %+v, want 10 blocks and 11 evictions", st)
	}
	if info, err := os.Stat(filepath.Join(folder, fileName)); err != nil || info.Size() != 10*slotBytes {
		t.Errorf("the file is %+v, %v, want %d bytes", info, err, 10*slotBytes)
	}
}

// TestDamagedFile: bytes that changed on disk are not given out, nor those that are not there any more.
func TestDamagedFile(t *testing.T) {
	for name, damage := range map[string]func(f *os.File) error{
		"a bit": func(f *os.File) error {
			b := make([]byte, 1)
			_, err := f.ReadAt(b, 2*slotBytes+1234)
			b[0] ^= 1
			_, werr := f.WriteAt(b, 2*slotBytes+1234)
			return errors.Join(err, werr)
		},
		"cut off": func(f *os.File) error { return f.Truncate(3*slotBytes + 512) },
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testDamagedFile(t, damage) }) })
	}
}

func testDamagedFile(t *testing.T, damage func(f *os.File) error) {
	folder := t.TempDir()
	f := open(t, folder, 16)
	o := cache.Object{Name: "a", Size: pieceBytes}
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "nothing is there", 1)
	file, err := os.OpenFile(filepath.Join(folder, fileName), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(damage(file), file.Close()); err != nil {
		t.Fatal(err)
	}
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "it is damaged", 1)
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "it was written anew", 0)
	if st := f.Stats(); st.Damages != 1 || st.Failures != 0 || st.Blocks != blocksMax {
		t.Errorf("counters are %+v, want one damage", st)
	}
}

// TestDirect: who found bytes damaged gets those of the bucket, and what is on disk goes, even if it was on its way there only.
func TestDirect(t *testing.T) { synctest.Test(t, testDirect) }

func testDirect(t *testing.T) {
	for _, late := range []bool{false, true} {
		file := newMemFile()
		f := with(file, 16)
		f.behind.damage = true
		o := cache.Object{Name: "a", Size: slotBytes}
		if late {
			file.hold()
		}
		if err := f.Get(t.Context(), o, 0, [][]byte{make([]byte, slotBytes)}); err != nil {
			t.Fatal(err)
		}
		if !late {
			f.settle()
		}
		f.behind.damage = false
		o.Direct = true
		f.get(t, o, 0, slotBytes)
		file.release()
		f.gets(t, "damaged, then direct", 2)
		o.Direct = false
		f.get(t, o, 0, slotBytes)
		f.gets(t, "what was read direct is not kept", 1)
		f.get(t, o, 0, slotBytes)
		f.gets(t, "what came after it is", 0)
		o.Home = true
		f.get(t, o, 0, slotBytes)
		f.gets(t, "for another agent", 0)
	}
}

// TestBusy: while the disk has enough to write, what comes is not kept, and nobody waits.
func TestBusy(t *testing.T) { synctest.Test(t, testBusy) }

func testBusy(t *testing.T) {
	file := newMemFile()
	f := with(file, 64)
	o := cache.Object{Name: "a", Size: 100 * pieceBytes}
	file.hold()
	for i := range int64(writesMax + 3) {
		f.get(t, o, i*pieceBytes, pieceBytes)
	}
	if st := f.Stats(); st.Skips != 3 || st.Blocks != writesMax*blocksMax {
		t.Errorf("counters are %+v, want 3 requests that were not kept", st)
	}
	file.release()
	f.gets(t, "all from the bucket", writesMax+3)
	for i := range int64(writesMax) {
		f.get(t, o, i*pieceBytes, pieceBytes)
	}
	f.gets(t, "the first ones were kept", 0)
}

// TestRoom: the file grows into what others leave, and makes room for them.
func TestRoom(t *testing.T) { synctest.Test(t, testRoom) }

func testRoom(t *testing.T) {
	file := newMemFile()
	file.free = 13*slotBytes + 99
	f := with(file, 64) // leaves 10 blocks to others
	o := cache.Object{Name: "a", Size: 100 * pieceBytes}
	want := func(when string, blocks int64) {
		t.Helper()
		if st := f.Stats(); st.Bytes != blocks*slotBytes || file.length() > blocks*slotBytes {
			t.Errorf("%s: counters are %+v, the file has %d bytes; want %d blocks", when, st, file.length(), blocks)
		}
	}
	read := func() {
		for i := range int64(4) {
			f.get(t, o, i*pieceBytes, pieceBytes)
			f.settle()
		}
	}
	read()
	want("room for three", 3)
	file.setFree(15 * slotBytes)
	f.look()
	read()
	want("room for five more", 8)
	file.setFree(8*slotBytes - 1)
	f.look()
	want("others need three", 5)
	read()
	want("and nothing grows until there is room", 5)
	file.setFree(0)
	f.look()
	want("others need it all", 0)
	read()
	want("and there is nothing", 0)
	if st := f.Stats(); st.Failures != 0 || st.Skips == 0 {
		t.Errorf("counters are %+v, want no failures", st)
	}
}

// TestNoAnswerAboutRoom: a file system that does not say how much is free is not grown into, and not written to for a while.
func TestNoAnswerAboutRoom(t *testing.T) { synctest.Test(t, testNoAnswerAboutRoom) }

func testNoAnswerAboutRoom(t *testing.T) {
	file := newMemFile()
	file.freeErr = errors.New("no such device")
	f := with(file, 64)
	f.get(t, cache.Object{Name: "a", Size: pieceBytes}, 0, pieceBytes)
	f.settle()
	if st := f.Stats(); st.Failures != 1 || st.Bytes != 0 {
		t.Errorf("counters are %+v, want one failure and nothing kept", st)
	}
}

// TestClose: the file is there from Open to Close, and what a killed process left is gone at either.
func TestClose(t *testing.T) { synctest.Test(t, testClose) }

func testClose(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, fileName)
	o := cache.Object{Name: "a", Size: pieceBytes}
	if err := os.WriteFile(path, make([]byte, 7*slotBytes), fileMode); err != nil {
		t.Fatal(err)
	}
	f := open(t, folder, 16)
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "it starts empty", 1)
	if info, err := os.Stat(path); err != nil || info.Size() != pieceBytes {
		t.Errorf("the file is %v, %v, want %d bytes", info, err, pieceBytes)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "it is closed", 1)
	if st := f.Stats(); st.Failures != 0 {
		t.Errorf("counters are %+v, want no failures", st)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file after Close: %v, want none", err)
	}
	if err := os.WriteFile(path, nil, fileMode); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(folder); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file after Remove: %v, want none", err)
	}
}

func TestOpenFails(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if _, err := Open(Config{Folder: t.TempDir(), BytesMax: slotBytes - 1, Log: log}, &behind{}); err == nil {
		t.Error("a disk cache without a block was opened")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, fileMode); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Folder: file, BytesMax: slotBytes, Log: log}, &behind{}); err == nil {
		t.Error("a disk cache in a file was opened")
	}
}

// TestManyReaders reads random pieces of several objects through a small file that grows and shrinks, with damage and failures, and checks every byte, until it is closed under the readers.
func TestManyReaders(t *testing.T) { synctest.Test(t, testManyReaders) }

func testManyReaders(t *testing.T) {
	const readers, rounds = 6, 40
	file := newMemFile()
	f := with(file, 20)
	f.behind.delay = time.Millisecond // in which what was read before is written
	var gets atomic.Int64
	var all sync.WaitGroup
	for reader := range readers {
		random := rand.New(rand.NewPCG(uint64(reader), 1))
		all.Go(func() {
			for range rounds {
				o := cache.Object{Name: fmt.Sprint("o", random.IntN(4)), Size: 2*pieceBytes - 3000}
				first := random.Int64N(8)
				last := first + random.Int64N(blocksMax-first%blocksMax)
				o.Direct = random.IntN(8) == 0
				switch random.IntN(10) {
				case 0:
					file.setFree(random.Int64N(40) * slotBytes)
					f.look()
				case 1:
					file.flip(random.Int64N(20*slotBytes), random)
				}
				if gets.Add(1) == readers*rounds*9/10 {
					_ = f.Close()
				}
				f.get(t, o, first*slotBytes, min((last+1)*slotBytes, o.Size)-first*slotBytes)
			}
		})
	}
	all.Wait()
	f.settle()
	f.index.check(t)
	if st := f.Stats(); st.Hits == 0 || st.Failures != 0 {
		t.Errorf("counters are %+v, want hits and no failures", st)
	}
}
