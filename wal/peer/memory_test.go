package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/varve-io/varve/wal/frame"
)

// TestMemory: rounds of all connections share a limit, and one that finds no room waits for a while.
func TestMemory(t *testing.T) {
	m := newMemory(testFrameBytesMax)
	var blocks []*block
	for range memoryBytesMax / roundBytesMax {
		b, err := m.take(t.Context(), roundBytesMax, 0)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	r := receiver{in: bufio.NewReader(bytes.NewReader(appendOf(10))), frameBytesMax: testFrameBytesMax, memory: m, wait: time.Millisecond}
	if _, _, err := r.next(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("append without memory: %v", err)
	}
	r.release()

	waiting := make(chan *block)
	go func() {
		b, err := m.take(t.Context(), 1, time.Minute)
		if err != nil {
			t.Error(err)
		}
		waiting <- b
	}()
	m.give(blocks[0])
	small := <-waiting
	if b, err := m.take(t.Context(), roundBytesMax, 0); err == nil {
		t.Errorf("%d bytes beside %d", len(b.b), len(small.b))
	}
	m.give(small)
	for _, b := range blocks[1:] {
		m.give(b)
	}
	if !m.room.TryAcquire(memoryBytesMax) {
		t.Error("memory is gone")
	}
}

// TestMemoryOfConnections: one that waits for a request has no memory, and after its end neither.
func TestMemoryOfConnections(t *testing.T) {
	local, s, end := serveDisk(t)
	c, err := s.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	create := request{op: opCreate, segment: frame.SegmentID{Log: 7, Number: 1}, fence: 5, entry: 1}
	if err := errors.Join(c.ask(create), c.done(), c.send([][]byte{appendOf(10)})); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.answer(opAppended); err != nil {
		t.Fatal(err)
	}
	room := local.memory.room
	if !room.TryAcquire(memoryBytesMax) {
		t.Fatal("a connection without a request has memory")
	}
	room.Release(memoryBytesMax)
	if err := c.send([][]byte{appendOf(1000)[:500]}); err != nil {
		t.Fatal(err)
	}
	for room.TryAcquire(memoryBytesMax) { // until the append's beginning has arrived
		room.Release(memoryBytesMax)
		runtime.Gosched()
	}
	s.Close()
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if !room.TryAcquire(memoryBytesMax) {
		t.Error("a connection that ended has memory")
	}
}

// TestMemoryForLongFrames: a store whose frames are longer than all memory has room for one.
func TestMemoryForLongFrames(t *testing.T) {
	m := newMemory(memoryBytesMax)
	b, err := m.take(t.Context(), roundBytesMax+memoryBytesMax, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.give(b)
}
