package compact

import (
	"math"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Newest is the newest batch of a producer that is remembered (LastRecord).
type Newest struct {
	Offset protocol.Offset // its last; NoOffset if the producer has none under its epoch
	Epoch  protocol.ProducerEpoch
}

// Cleaning says what a second pass works with.
type Cleaning struct {
	// End is how far the map is complete: [Keys.End]. Bound is that of the range that is cleaned.
	End, Bound protocol.Offset
	// Aborted are the aborted transactions that begin below End, in the order in which they do; more do no harm.
	Aborted []Aborted
	// Newest are the producers whose state is remembered.
	Newest map[protocol.ProducerID]Newest
	// NowMs is the time, in ms since the Unix epoch, and DeleteRetentionMs the topic's delete.retention.ms.
	NowMs, DeleteRetentionMs int64
}

// Cleaner is the second pass of a cleaning: it says what is left of each batch (Cleaner.cleanInto, CleanedTransactionMetadata).
type Cleaner struct {
	cleaning Cleaning
	offsets  *OffsetMap
	filter   *batch.Filter
	aborts   aborts
	present  map[protocol.ProducerID]struct{}        // producers with batches since their last marker
	keep     func(*batch.Header, *batch.Record) bool // stays
	stats    Stats
}

// Stats counts what a cleaner was given and what it left of it.
type Stats struct {
	Bytes, BytesKept     int64
	Records, RecordsKept int64 // markers are records too
}

// NewCleaner returns a second pass. The map is that of the first.
func NewCleaner(offsets *OffsetMap, filter *batch.Filter, cleaning Cleaning) *Cleaner {
	c := &Cleaner{
		cleaning: cleaning, offsets: offsets, filter: filter, aborts: newAborts(cleaning.Aborted), present: make(map[protocol.ProducerID]struct{}),
	}
	c.keep = c.stays
	return c
}

// Stats returns the counts so far.
func (c *Cleaner) Stats() Stats { return c.stats }

// Clean returns what is left of the whole batch b with header h: b itself, nothing, or a batch that is valid until the next call. Batches come in order, each once, from the log
// start on; there is no need for those from the end of the cleaning on, of which all is left.
//
// The caller has verified the checksum of the batch, or of what it lies in. Errors are as of [batch.Decompressor.Records]: the partition cannot be
// cleaned as long as it has this batch.
func (c *Cleaner) Clean(h *batch.Header, b []byte) ([]byte, error) {
	out, kept, err := c.clean(h, b)
	if err != nil {
		return nil, err
	}
	c.stats.Bytes += int64(len(b))
	c.stats.BytesKept += int64(len(out))
	c.stats.Records += int64(h.Records)
	c.stats.RecordsKept += int64(kept)
	return out, nil
}

func (c *Cleaner) clean(h *batch.Header, b []byte) (out []byte, kept int32, err error) {
	switch {
	case h.BaseOffset >= c.cleaning.End:
		return b, h.Records, nil
	case h.Attributes.Control():
		return c.marker(h, b)
	}
	if h.Attributes.Transactional() {
		c.present[h.ProducerID] = struct{}{}
	}
	cut := batch.Cut{Keep: c.keep, KeepEmpty: c.isNewest(h) || c.isLast(h), DeleteHorizon: c.horizon(h)}
	if c.aborts.has(h) {
		if !cut.KeepEmpty {
			return nil, 0, nil
		}
		cut.Keep = none
	}
	return c.filter.Apply(h, b, cut)
}

// marker judges a marker. It stays while its transaction has batches, and delete.retention.ms from the cleaning on that first found none.
func (c *Cleaner) marker(h *batch.Header, b []byte) (out []byte, kept int32, err error) {
	if _, ok := c.present[h.ProducerID]; ok {
		delete(c.present, h.ProducerID)
		return b, h.Records, nil
	}
	if c.expired(h) && !c.isNewest(h) && !c.isLast(h) {
		return nil, 0, nil
	}
	return c.filter.Apply(h, b, batch.Cut{Keep: all, DeleteHorizon: c.horizon(h)})
}

func all(*batch.Header, *batch.Record) bool  { return true }
func none(*batch.Header, *batch.Record) bool { return false }

// stays judges a record.
func (c *Cleaner) stays(h *batch.Header, r *batch.Record) bool {
	offset := h.Offset(r)
	switch {
	case offset >= c.cleaning.End:
		return true
	case r.Key == nil:
		return false
	case r.Value == nil && c.expired(h):
		return false
	}
	newest, ok := c.offsets.Get(r.Key)
	return !ok || offset >= newest
}

// expired reports whether what the batch has of tombstones and markers may go.
func (c *Cleaner) expired(h *batch.Header) bool {
	return h.Attributes.DeleteHorizon() && h.BaseTimestamp <= c.cleaning.NowMs
}

// horizon is the delete horizon for a batch that has none yet. A batch that is not cleaned to its end gets none: older values of its later keys are
// still there. Nor does one if the retention has no end.
func (c *Cleaner) horizon(h *batch.Header) int64 {
	if h.NextOffset() > c.cleaning.End || c.cleaning.DeleteRetentionMs > math.MaxInt64-c.cleaning.NowMs {
		return protocol.NoTimestamp
	}
	return c.cleaning.NowMs + c.cleaning.DeleteRetentionMs
}

// isNewest reports whether a batch holds the newest state of its producer.
func (c *Cleaner) isNewest(h *batch.Header) bool {
	newest, ok := c.cleaning.Newest[h.ProducerID]
	switch {
	case !ok || !h.Idempotent():
		return false
	case newest.Offset != protocol.NoOffset:
		return h.LastOffset() == newest.Offset
	}
	return h.Attributes.Control() && h.ProducerEpoch == newest.Epoch
}

// isLast reports whether a batch is the last before the bound.
func (c *Cleaner) isLast(h *batch.Header) bool { return h.NextOffset() == c.cleaning.Bound }
