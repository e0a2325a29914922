package ingest

import (
	"testing"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
)

// transacted returns a batch of one record of a producer's transaction.
func transacted(t *testing.T, p *Partition, id protocol.ProducerID, sequence int32) Batch {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = id, 0, sequence, true
	b.Append(1, nil, nil)
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return Batch{Partition: p, Header: h, Bytes: raw}
}

func end(t *testing.T, p *Partition, id protocol.ProducerID, m batch.Marker) Batch {
	t.Helper()
	var b Batch
	if err := b.Mark(p, batch.EndMarker{Marker: m, ProducerID: id, CoordinatorEpoch: 4, Timestamp: 9}, false); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestTransaction follows a transaction on its way: verified, appended, ended, in memory, and to the WAL and the flush with the last stable offset as of each batch.
func TestTransaction(t *testing.T) {
	f := newFixture(t, wal.Config{})
	f.open()
	p := newPartition(0)
	first := transacted(t, p, 5, 0)
	refused := f.produce(AcksAll, first)
	await(t, refused)
	if code := protocol.CodeOf(refused.Batches[0].Result.Err); code != protocol.NotEnoughReplicas {
		t.Errorf("without a ticket: %v", refused.Batches[0].Result.Err)
	}
	var needed bool
	if first.Ticket, needed = p.Verify(&first.Header, false); !needed {
		t.Error("the first batch needs no ticket")
	}
	if plain := of(t, p, 6, 0, nil); func() bool { _, needed := p.Verify(&plain.Header, false); return needed }() {
		t.Error("a batch of no transaction needs a ticket")
	}
	await(t, f.produce(AcksAll, first))
	second := transacted(t, p, 5, 1)
	if _, needed = p.Verify(&second.Header, false); needed {
		t.Error("the second batch needs a ticket")
	}
	await(t, f.produce(AcksAll, of(t, p, -1, 0, nil), second))
	if st, _ := p.State(); st.LastStable != 0 || st.HighWatermark != 3 {
		t.Errorf("while it is open: %+v", st)
	}
	ended := f.produce(AcksAll, end(t, p, 5, batch.Abort), of(t, p, -1, 0, nil), end(t, p, 5, batch.Abort))
	await(t, ended)
	for i := range ended.Batches {
		if err := ended.Batches[i].Result.Err; err != nil {
			t.Errorf("batch %d: %v", i, err)
		}
	}
	if st, _ := p.State(); st.LastStable != 5 || st.End != 5 {
		t.Errorf("once it is over: %+v", st)
	}
	want := []Transacted{{5, 0, Transactional}, {5, 2, Transactional}, {5, 3, Abort}}
	for from := range protocol.Offset(5) {
		var got []Transacted
		next, ok := from, true
		for next < 5 && ok {
			got, next, ok = p.Transactions(got, next, 1)
		}
		for len(want) > 0 && want[0].Base < from {
			want = want[1:]
		}
		if !ok || len(got) != len(want) || len(got) > 0 && (got[0] != want[0] || got[len(got)-1] != want[len(want)-1]) {
			t.Errorf("transactions from %d on: %+v, want %+v", from, got, want)
		}
	}
	if _, _, ok := p.Transactions(nil, 5, 1); ok {
		t.Error("there are transactions past the end")
	}
	f.flushed.mu.Lock()
	defer f.flushed.mu.Unlock()
	entries := f.store.entries(t)
	for i, stable := range []protocol.Offset{0, 0, 0, 4, 5} {
		if want := (EntryHeader{Shard: 3, Topic: protocol.TopicID{1}, LastStable: stable}); entries[i] != want {
			t.Errorf("entry %d of the WAL: %+v, want %+v", i, entries[i], want)
		}
		e := f.flushed.entries[i]
		if e.LastStable != stable {
			t.Errorf("batch %d comes to the flush with last stable offset %d, want %d", i, e.LastStable, stable)
		}
	}
	h, err := batch.Parse(f.flushed.entries[3].Ref.Payload)
	if err != nil {
		t.Fatal(err)
	}
	m, err := batch.ParseControl(&h, f.flushed.entries[3].Ref.Payload)
	if err != nil || m != (batch.EndMarker{Marker: batch.Abort, ProducerID: 5, CoordinatorEpoch: 4, Timestamp: 9}) || h.BaseOffset != 3 || h.LeaderEpoch != 7 {
		t.Errorf("marker %+v at %d of leader epoch %d, %v", m, h.BaseOffset, h.LeaderEpoch, err)
	}
}

// TestMarkerIsDurableFirst holds that a marker, and a copy of it, are answered when it is durable, and that nothing of the transaction is readable as committed before.
func TestMarkerIsDurableFirst(t *testing.T) {
	f := newFixture(t, wal.Config{})
	p := newPartition(0)
	first := transacted(t, p, 5, 0)
	first.Ticket, _ = p.Verify(&first.Header, false)
	f.store.gate <- struct{}{}
	await(t, f.produce(AcksAll, first))
	marker, again := f.produce(AcksAll, end(t, p, 5, batch.Commit)), f.produce(AcksAll, end(t, p, 5, batch.Commit))
	if st, _ := p.State(); !pending(marker) || !pending(again) || st.LastStable != 0 || st.End != 2 {
		t.Errorf("before the marker is durable: %+v", st)
	}
	if list, next, ok := p.Transactions(nil, 0, 10); !ok || next != 1 || len(list) != 1 {
		t.Errorf("before the marker is durable: %+v up to %d", list, next)
	}
	f.open()
	await(t, marker)
	await(t, again)
	if st, _ := p.State(); st.LastStable != 2 {
		t.Errorf("once the marker is durable: %+v", st)
	}
}

// TestDrop holds that a ticket which was given up begins nothing.
func TestDrop(t *testing.T) {
	f := newFixture(t, wal.Config{})
	f.open()
	p := newPartition(0)
	b := transacted(t, p, 5, 0)
	b.Ticket, _ = p.Verify(&b.Header, true)
	p.Drop(&b.Header, b.Ticket)
	r := f.produce(AcksAll, b)
	await(t, r)
	if code := protocol.CodeOf(r.Batches[0].Result.Err); code != protocol.NotEnoughReplicas {
		t.Errorf("with a ticket that was dropped: %v", r.Batches[0].Result.Err)
	}
}
