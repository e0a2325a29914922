package fetch

import (
	"testing"
	"testing/synctest"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// transacted returns a batch of one record of producer 7's transaction.
func transacted(t *testing.T, base protocol.Offset) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch, b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = base, 1, 7, 0, int32(base), true
	b.Append(1, nil, nil)
	data, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// damageSecond lets nobody read the second segment.
func (b *bucket) damageSecond() {
	b.store.Add(fault.Rule{
		Op: fault.Get, Prefix: segment.ID{Log: 1, Fence: 1, Commit: 2}.Name(), Times: fault.Always, Effect: fault.WrongBytes,
	})
}

// TestAbortedUnknown holds that records of transactions are not answered while it is not known which of them were aborted: the segment with the marker cannot be read, or there
// is none, against the word of the last stable offset.
func TestAbortedUnknown(t *testing.T) {
	for name, ended := range map[string]bool{"in a segment that cannot be read": true, "nowhere": false} {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {transacted(t, 0)}})
		second := raw(t, 1, 0, 1)
		if ended {
			var err error
			if second, err = batch.AppendControlBatch(nil, 1, 1, batch.EndMarker{Marker: batch.Abort, ProducerID: 7}); err != nil {
				t.Fatal(err)
			}
			b.damageSecond()
		}
		b.add(t, map[int32][][]byte{0: {second}})
		limits := Limits{BytesMax: 100, ReadCommitted: true}
		want := Want{Partition: restored(0, 0, 2), BytesMax: 1}
		r := b.fetch(t, limits, want)
		if part := &r.Parts[0]; protocol.CodeOf(part.Err) != protocol.KafkaStorageError || part.Records != nil || part.Bytes != 0 || r.Bytes != 0 || part.Next != 0 {
			t.Errorf("the marker is %s: %d bytes up to %d, %v", name, part.Bytes, part.Next, part.Err)
		}
		if !ended {
			continue
		}
		b.store.Clear()
		r = b.fetch(t, limits, want)
		if part := &r.Parts[0]; part.Err != nil || part.Bytes == 0 || len(part.Aborted) != 1 || part.Aborted[0].ProducerID != 7 || part.Aborted[0].FirstOffset != 0 {
			t.Errorf("once it can be read: %d bytes with %+v aborted, %v", part.Bytes, part.Aborted, part.Err)
		}
		limits.ReadCommitted = false
		r = b.fetch(t, limits, want)
		if part := &r.Parts[0]; part.Err != nil || part.Bytes == 0 || part.Aborted != nil {
			t.Errorf("a reader of uncommitted ones: %d bytes with %+v aborted, %v", part.Bytes, part.Aborted, part.Err)
		}
	}
}

// TestPlainIsCheap holds that batches of no transaction cost readers of committed ones no look at what follows: the next segment's footer is not read.
func TestPlainIsCheap(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 10, 1)}})
	b.add(t, map[int32][][]byte{0: {transacted(t, 1)}})
	b.damageSecond()
	r := b.fetch(t, Limits{BytesMax: 90, ReadCommitted: true}, Want{Partition: restored(0, 0, 1), BytesMax: 90})
	if part := &r.Parts[0]; part.Err != nil || part.Bytes == 0 || part.Aborted != nil {
		t.Errorf("%d bytes with %+v aborted, %v", part.Bytes, part.Aborted, part.Err)
	}
}

// TestNotLed holds that a partition that another agent leads, or that is not there, does not keep a reader from others beside it.
func TestNotLed(t *testing.T) {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 0, 10, 1)}})
	for _, committed := range []bool{false, true} {
		r := b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, ReadCommitted: committed},
			Want{Err: protocol.NotLeaderOrFollower.Err(), BytesMax: 1 << 20}, Want{Partition: restored(0, 0, 1), BytesMax: 1 << 20})
		if protocol.CodeOf(r.Parts[0].Err) != protocol.NotLeaderOrFollower || r.Parts[1].Err != nil || r.Parts[1].Bytes == 0 {
			t.Errorf("committed %v: %v, and %d bytes with %v", committed, r.Parts[0].Err, r.Parts[1].Bytes, r.Parts[1].Err)
		}
		r.Release()
	}
}

// TestCompactedMeanwhile holds that what was read before a compaction is not judged by what it has left: the aborted batch and its marker are gone, and the batch would pass for committed.
func TestCompactedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(t, 1<<20)
		b.add(t, map[int32][][]byte{0: {transacted(t, 0)}})
		marker, err := batch.AppendControlBatch(nil, 1, 1, batch.EndMarker{Marker: batch.Abort, ProducerID: 7})
		if err != nil {
			t.Fatal(err)
		}
		b.add(t, map[int32][][]byte{0: {marker}})
		second := segment.ID{Log: 1, Fence: 1, Commit: 2}.Name()
		gate := fault.NewGate()
		b.store.Add(fault.Rule{Op: fault.Get, Prefix: second, Times: fault.Always, Gate: gate})
		want := Want{Partition: restored(0, 0, 2), BytesMax: 1}
		read := make(chan *Result)
		go func() { read <- b.fetch(t, Limits{BytesMax: 100, ReadCommitted: true}, want) }()
		synctest.Wait()
		if err := b.index.Replace(id(0), index.Merged{End: 2, LastStable: 2, Cleaned: 2}); err != nil {
			t.Fatal(err)
		}
		gate.Open()
		part := &(<-read).Parts[0]
		if part.Err != nil || part.Records != nil || part.Bytes != 0 || part.Next != 0 {
			t.Errorf("%d bytes up to %d, %+v aborted, %v: want nothing, so that the client asks again", part.Bytes, part.Next, part.Aborted, part.Err)
		}
	})
}
