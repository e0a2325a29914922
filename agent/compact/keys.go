package compact

import (
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Keys is the first pass of a cleaning: it fills the map with the keys of the dirty batches, except for those of aborted transactions (Cleaner.buildOffsetMap).
type Keys struct {
	offsets      *OffsetMap
	decompressor *batch.Decompressor
	from, bound  protocol.Offset
	aborts       aborts
	full         bool
	end          protocol.Offset // if full
	record       batch.Record
}

// NewKeys returns a first pass over [from, bound). It empties the map, and fills it. aborted are the aborted transactions that begin below bound.
func NewKeys(offsets *OffsetMap, d *batch.Decompressor, from, bound protocol.Offset, aborted []Aborted) *Keys {
	offsets.Reset(int64(bound - from)) // there are no more records than that
	return &Keys{offsets: offsets, decompressor: d, from: from, bound: bound, aborts: newAborts(aborted)}
}

// Add takes in the whole batch b with header h. Batches come in order, beginning with the first that ends beyond from; those from the bound on are left out. full says that no more are taken.
// Errors are as of [batch.Decompressor.Records]: the partition cannot be cleaned as long as it has this batch.
func (k *Keys) Add(h *batch.Header, b []byte) (full bool, err error) {
	if k.full || h.BaseOffset >= k.bound || h.NextOffset() <= k.from {
		return k.full, nil
	}
	if h.Attributes.Control() || k.aborts.has(h) {
		return false, nil
	}
	records, err := k.decompressor.Records(h, b)
	if err != nil {
		return false, err
	}
	for records.Next(&k.record) {
		offset := h.Offset(&k.record)
		if k.record.Key == nil || offset < k.from || offset >= k.bound { // either may be within a batch, where a cleaning ended
			continue
		}
		if !k.offsets.Put(k.record.Key, offset) {
			k.full, k.end = true, offset
			return true, nil
		}
	}
	return false, records.Err()
}

// End returns the offset up to which the map knows all keys, when it is full or all batches below the bound were added. It is where the cleaning ends, and more than from
// unless there is nothing to clean. It may be within a batch: the first key that has no room ends it.
func (k *Keys) End() protocol.Offset {
	if k.full {
		return k.end
	}
	return max(k.bound, k.from)
}
