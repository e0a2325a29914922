package fetch

import (
	"context"
	"sync"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Found is a record that a lookup by time found.
type Found struct {
	Offset    protocol.Offset
	Timestamp int64 // Unix milliseconds
}

// Lookup finds records by time, exactly: first in the index, then in a segment's footer, then within one batch. A lookup in cold data
// costs at most two GETs; two more where the log begins within a section, whose largest timestamp may be of a record before. It may be used concurrently.
type Lookup struct {
	index         *index.Index
	reader        *Reader
	decompressors sync.Pool
}

// NewLookup returns a lookup in what idx knows. batchBytesMax bounds a batch when it is decompressed.
func NewLookup(idx *index.Index, reader *Reader, batchBytesMax int) *Lookup {
	return &Lookup{
		index: idx, reader: reader,
		decompressors: sync.Pool{New: func() any { return batch.NewDecompressor(batchBytesMax) }},
	}
}

// FirstAtOrAfter returns the first record, at or past the log start offset and below limit, whose timestamp is at least ts.
func (l *Lookup) FirstAtOrAfter(ctx context.Context, p *ingest.Partition, ts int64, limit protocol.Offset) (Found, bool, error) {
	st, err := p.State()
	if err != nil {
		return Found{}, false, err
	}
	at := func(d *batch.Decompressor, h *batch.Header, b []byte) (protocol.Offset, int64, bool, error) {
		return d.FirstAtOrAfter(h, b, ts, st.Start)
	}
	for from := st.Start; from < limit; {
		committed := l.index.End(p.ID)
		for from < limit {
			e, ok := l.index.FindTime(p.ID, from, ts)
			if !ok {
				break
			}
			found, ok, err := l.inExtent(ctx, p, &e, from, ts, at)
			if ok || err != nil {
				return found, ok && found.Offset < limit, err
			}
			from = e.Next // its largest timestamp is of a record before the log start offset
		}
		from = max(from, committed)
		found, ok, err := l.inMemory(p, from, limit, ts, at)
		if err != nil || l.index.End(p.ID) == committed {
			return found, ok, err
		}
		// What was committed meanwhile may have left memory before it was looked at.
	}
	return Found{}, false, nil
}

// inMemory looks through the batches in the WAL's memory, from offset from on.
func (l *Lookup) inMemory(p *ingest.Partition, from, limit protocol.Offset, ts int64, at finder) (Found, bool, error) {
	for from < limit {
		b, next, ok := p.FindTime(ts, from, limit)
		if !ok {
			break
		}
		found, ok, err := l.within(b, at)
		if ok || err != nil {
			return found, ok, err
		}
		from = next
	}
	return Found{}, false, nil
}

// Latest returns the first record with the largest timestamp of all below limit (KIP-734).
func (l *Lookup) Latest(ctx context.Context, p *ingest.Partition, limit protocol.Offset) (Found, bool, error) {
	st, err := p.State()
	if err != nil {
		return Found{}, false, err
	}
	from := st.Start
	e, ok := l.index.Find(p.ID, from)
	if !ok || e.First >= from {
		return l.first(ctx, p, l.largest(p, from, limit), limit)
	}
	// The log begins within a segment, whose largest timestamp may be of a record before.
	largest := l.largest(p, e.Next, limit)
	if e.MaxTimestamp > largest {
		if largest, err = l.largestWithin(ctx, p, &e, from, largest); err != nil {
			return Found{}, false, err
		}
	}
	return l.first(ctx, p, largest, limit)
}

// first is FirstAtOrAfter of a timestamp that was found; -1 for none.
func (l *Lookup) first(ctx context.Context, p *ingest.Partition, ts int64, limit protocol.Offset) (Found, bool, error) {
	if ts < 0 {
		return Found{}, false, nil
	}
	return l.FirstAtOrAfter(ctx, p, ts, limit)
}

// largest returns the largest timestamp of what begins at from, in memory and in segments that begin there or later; -1 for none.
func (l *Lookup) largest(p *ingest.Partition, from, limit protocol.Offset) int64 {
	largest := max(-1, p.MaxTimestamp(from, limit))
	if e, ok := l.index.LargestTimestamp(p.ID, from); ok {
		largest = max(largest, e.MaxTimestamp)
	}
	return largest
}

// largestWithin returns the largest timestamp of an extent's records from offset from on, if it is larger than another, which is returned otherwise.
func (l *Lookup) largestWithin(ctx context.Context, p *ingest.Partition, e *index.Extent, from protocol.Offset, largest int64) (int64, error) {
	s, err := l.reader.section(ctx, p.ID, e)
	if err != nil {
		return -1, asStorageError(err)
	}
	var cut segment.Batch // the one that from is in
	for b, err := range s.From(from) {
		switch {
		case err != nil:
			return -1, asStorageError(err)
		case b.Offset < from:
			cut = b
		default:
			largest = max(largest, b.MaxTimestamp)
		}
	}
	if cut.Size == 0 || cut.MaxTimestamp <= largest {
		return largest, nil
	}
	data, err := l.reader.batchAt(ctx, e, s, cut)
	if err != nil {
		return -1, asStorageError(err)
	}
	within, err := l.largestOf(data, from)
	return max(largest, within), err
}

// largestOf returns the largest timestamp of a batch's records from offset from on; -1 for none.
func (l *Lookup) largestOf(b []byte, from protocol.Offset) (int64, error) {
	h, err := batch.Parse(b)
	if err != nil {
		return -1, err
	}
	d := l.decompressors.Get().(*batch.Decompressor)
	defer l.decompressors.Put(d)
	records, err := d.Records(&h, b)
	if err != nil {
		return -1, err
	}
	largest := int64(-1)
	for r := (batch.Record{}); records.Next(&r); {
		if h.Offset(&r) >= from {
			largest = max(largest, h.Timestamp(&r))
		}
	}
	return largest, records.Err()
}

// finder looks for a record within a batch.
type finder func(*batch.Decompressor, *batch.Header, []byte) (protocol.Offset, int64, bool, error)

// inExtent looks through the batches of an extent that may have the record.
func (l *Lookup) inExtent(ctx context.Context, p *ingest.Partition, e *index.Extent, from protocol.Offset, ts int64, at finder) (Found, bool, error) {
	s, err := l.reader.section(ctx, p.ID, e)
	if err != nil {
		return Found{}, false, asStorageError(err)
	}
	for b, err := range s.From(from) {
		if err != nil {
			return Found{}, false, asStorageError(err)
		}
		if b.MaxTimestamp < ts {
			continue
		}
		data, err := l.reader.batchAt(ctx, e, s, b)
		if err != nil {
			return Found{}, false, asStorageError(err)
		}
		if found, ok, err := l.within(data, at); ok || err != nil {
			return found, ok, err
		}
	}
	return Found{}, false, nil
}

// within looks into one batch.
func (l *Lookup) within(b []byte, at finder) (Found, bool, error) {
	h, err := batch.Parse(b)
	if err != nil {
		return Found{}, false, err
	}
	d := l.decompressors.Get().(*batch.Decompressor)
	defer l.decompressors.Put(d)
	offset, timestamp, ok, err := at(d, &h, b)
	return Found{Offset: offset, Timestamp: timestamp}, ok, err
}
