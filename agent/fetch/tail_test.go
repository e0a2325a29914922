package fetch

import (
	"context"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
)

// disk keeps nothing.
type disk struct{}

func (disk) Append([][]byte) error  { return nil }
func (disk) Trim(wal.EntryID) error { return nil }
func (disk) Close() error           { return nil }
func (disk) Drop() error            { return nil }
func (disk) FrameBytesMax() int64   { return 1 << 20 }

// unflushed takes note of nothing.
type unflushed struct{}

func (unflushed) Durable(ingest.Entry) {}

// live returns a partition with one batch in memory.
func live(t *testing.T, n int32) *ingest.Partition {
	t.Helper()
	p, produce := growing(t, n)
	produce()
	return p
}

// growing returns a partition without records, and what adds a batch of one to it.
func growing(t *testing.T, n int32) (p *ingest.Partition, produce func()) {
	t.Helper()
	log, err := wal.New(wal.Config{Segment: wal.SegmentID{Log: 1, Number: 1}, Fence: 1, First: 1}, wal.Copy{Name: "own", Store: disk{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close(context.Background()) }) //nolint:usetesting // it runs when the test, and its context, have ended
	p = ingest.NewPartition(id(n), "t", 0, partition.New(1))
	in := ingest.New(log, unflushed{}, time.Now)
	return p, func() {
		t.Helper()
		data := raw(t, 0, 10, 1)
		h, err := batch.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		r := ingest.NewRequest(1, ingest.AcksAll)
		r.Batches[0] = ingest.Batch{Partition: p, Header: h, Bytes: data}
		in.Produce(t.Context(), r)
		<-r.Done()
		if err := r.Batches[0].Result.Err; err != nil {
			t.Fatal(err)
		}
	}
}

// TestTailBesideOldData holds that records which are in memory do not wait for old ones of other partitions, in the same fetch or in others, while the bucket does not answer; and that the old ones
// come once it does.
func TestTailBesideOldData(t *testing.T) {
	const olds = 12
	b := newBucket(t, 1<<20)
	batches := make(map[int32][][]byte)
	for n := range int32(olds) {
		batches[n] = [][]byte{raw(t, 0, 3000, 1)}
	}
	b.add(t, batches)
	wants := []Want{{Partition: live(t, 99), BytesMax: 1 << 20}}
	for n := range int32(olds) {
		wants = append(wants, Want{Partition: restored(n, 0, 1), BytesMax: 4000})
	}
	gate := fault.NewGate()
	b.store.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Gate: gate})
	stuck := make(chan *Result)
	go func() {
		old := wants[1]
		old.CurrentEpoch, old.LastEpoch = protocol.NoLeaderEpoch, protocol.NoLeaderEpoch
		stuck <- New(b.reader).Fetch(t.Context(), []Want{old}, unlimited)
	}()
	<-gate.Entered()
	for _, some := range [][]Want{wants[:1], wants} {
		r := b.fetch(t, unlimited, some...)
		if r.Parts[0].Bytes == 0 || r.Bytes != r.Parts[0].Bytes {
			t.Errorf("%d partitions without the bucket: %d bytes of the one in memory, %d in all", len(some), r.Parts[0].Bytes, r.Bytes)
		}
		for i := range r.Parts {
			if r.Parts[i].Err != nil {
				t.Errorf("partition %d of %d: %v", i, len(some), r.Parts[i].Err)
			}
		}
	}
	gate.Open()
	b.store.Clear()
	if r := <-stuck; r.Bytes == 0 {
		t.Errorf("old data alone, once the bucket answers: %v", r.Parts[0].Err)
	} else {
		r.Release()
	}
	for left := olds; left > 0; {
		r := b.fetch(t, unlimited, wants...)
		left = olds
		for i := range r.Parts[1:] {
			if r.Parts[1+i].Bytes > 0 {
				left--
			}
		}
		r.Release()
	}
}
