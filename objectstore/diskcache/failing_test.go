package diskcache

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
)

// TestWriteFails: what cannot be written is read from the bucket, and the disk rests; what is there can be read meanwhile.
func TestWriteFails(t *testing.T) { synctest.Test(t, testWriteFails) }

func testWriteFails(t *testing.T) {
	file := newMemFile()
	f := with(file, 16)
	o := cache.Object{Name: "a", Size: 10 * pieceBytes}
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "nothing is there", 1)
	file.writeErr = errors.New("no space left on device")
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "the disk is full", 1)
	file.writeErr = nil
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "the disk rests", 1)
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "what is there", 0)
	if st := f.Stats(); st.Failures != 1 || st.Skips != 1 || st.Blocks != blocksMax {
		t.Errorf("counters are %+v, want one failure and one request that was not kept", st)
	}
	time.Sleep(restTime)
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "after the rest", 1)
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "it was written", 0)
}

// TestReadFails: what cannot be read is read from the bucket, and the disk rests altogether.
func TestReadFails(t *testing.T) { synctest.Test(t, testReadFails) }

func testReadFails(t *testing.T) {
	file := newMemFile()
	f := with(file, 16)
	o := cache.Object{Name: "a", Size: 10 * pieceBytes}
	f.get(t, o, 0, pieceBytes)
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "nothing is there", 2)
	file.readErr = errors.New("input/output error")
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "the disk fails", 1)
	file.readErr = nil
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "the disk rests", 1)
	time.Sleep(restTime)
	f.get(t, o, pieceBytes, pieceBytes)
	f.gets(t, "after the rest", 0)
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "what failed was dropped", 1)
	if st := f.Stats(); st.Failures != 1 {
		t.Errorf("counters are %+v, want one failure", st)
	}
}

// TestDiskHangs: nobody waits for a disk that does not answer, but the first ones, for as long as a bucket may take.
func TestDiskHangs(t *testing.T) { synctest.Test(t, testDiskHangs) }

func testDiskHangs(t *testing.T) {
	file := newMemFile()
	f := with(file, 16)
	o := cache.Object{Name: "a", Size: 10 * pieceBytes}
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "nothing is there", 1)
	file.hold()
	start := time.Now()
	f.get(t, o, 0, pieceBytes)
	if waited := time.Since(start); waited != readTime {
		t.Errorf("waited %v for the disk, want %v", waited, readTime)
	}
	time.Sleep(2 * restTime)
	start = time.Now()
	for range 10 {
		f.get(t, o, 0, pieceBytes)
	}
	if waited := time.Since(start); waited != 0 {
		t.Errorf("waited %v for a disk that hangs", waited)
	}
	file.release()
	synctest.Wait()
	f.gets(t, "while it hangs", 11)
	f.get(t, o, 0, pieceBytes)
	f.gets(t, "it is back", 0)
	if st := f.Stats(); st.Failures != 1 || st.Hits != 1 {
		t.Errorf("counters are %+v, want one failure and one hit", st)
	}
}

// TestOverwritten: a reader whose block goes for another one while it reads has a miss, and no damage.
func TestOverwritten(t *testing.T) { synctest.Test(t, testOverwritten) }

func testOverwritten(t *testing.T) {
	file := newMemFile()
	f := with(file, 1)
	o := cache.Object{Name: "a", Size: pieceBytes}
	f.get(t, o, 0, slotBytes)
	f.gets(t, "nothing is there", 1)
	file.holdReads()
	var reader sync.WaitGroup
	reader.Go(func() { f.get(t, o, 0, slotBytes) })
	synctest.Wait()
	f.get(t, o, slotBytes, slotBytes)
	f.gets(t, "another block", 1)
	file.release()
	reader.Wait()
	f.gets(t, "the block that went", 1)
	if st := f.Stats(); st.Damages != 0 || st.Evictions != 2 {
		t.Errorf("counters are %+v, want no damage", st)
	}
}

// TestReaderLeaves: whose time is over does not wait for the disk, and the disk is not blamed.
func TestReaderLeaves(t *testing.T) { synctest.Test(t, testReaderLeaves) }

func testReaderLeaves(t *testing.T) {
	file := newMemFile()
	f := with(file, 16)
	o := cache.Object{Name: "a", Size: pieceBytes}
	f.get(t, o, 0, slotBytes)
	f.gets(t, "nothing is there", 1)
	file.hold()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f.read(ctx, []key{{name: "a", n: slotBytes}}, [][]byte{make([]byte, slotBytes)}) {
		t.Error("read what the disk has not given yet")
	}
	file.release()
	if st := f.Stats(); st.Failures != 0 {
		t.Errorf("counters are %+v, want no failure", st)
	}
}
