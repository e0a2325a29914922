package batch

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/varve-io/varve/protocol"
)

// Filter leaves records out of batches, as log compaction does (MemoryRecords.filterTo). It keeps its buffers and codecs
// between calls. It is for one goroutine at a time and starts none.
type Filter struct {
	decompressor *Decompressor
	compressor   Compressor
	record       Record
	kept         []byte // encoded records of a batch that was not compressed
	rebased      []byte // the same, with other timestamp deltas
	out          []byte
}

// NewFilter returns a Filter that decompresses with d, which it uses in each call.
func NewFilter(d *Decompressor) *Filter { return &Filter{decompressor: d} }

// Cut says what [Filter.Apply] leaves out of a batch.
type Cut struct {
	// Keep reports whether a record stays. It is called once for each, in order, and must not hold on to its slices.
	Keep func(h *Header, r *Record) bool
	// KeepEmpty lets a batch that loses all records stay as a header, which holds its offsets and its producer's sequence.
	KeepEmpty bool
	// DeleteHorizon, in ms since the Unix epoch, is given to a batch that has none yet if a tombstone or a marker is left
	// in it (KIP-534). NoTimestamp gives none.
	DeleteHorizon int64
}

// Apply returns what is left of the whole batch b with header h: b itself if nothing changes; nothing if no record is
// left, unless the cut says otherwise; or a batch in a buffer that is valid until the next call. kept is how many records are left.
//
// Offsets, the leader epoch, the producer's fields, the codec and each kept record's bytes stay as they are; offset
// deltas get gaps. The max timestamp becomes that of the records left. A delete horizon takes the place of the base timestamp, and the
// records' timestamp deltas are written anew; the batch may grow by that, by at most ten bytes for each record. A batch without records is written
// as Kafka does, without compression, base timestamp and delete horizon; and, where Kafka leaves the max timestamp, without that too: there is no record that has it.
//
// The CRC is not verified. Errors are as of [Decompressor.Records].
func (f *Filter) Apply(h *Header, b []byte, cut Cut) (out []byte, kept int32, err error) {
	left, err := f.keep(h, b, cut.Keep)
	if err != nil {
		return nil, 0, err
	}
	setHorizon := left.expires && cut.DeleteHorizon >= 0 && !h.Attributes.DeleteHorizon()
	changed := *h
	codec := h.Attributes.Codec()
	records := left.records
	switch {
	case left.count == 0 && !cut.KeepEmpty:
		return nil, 0, nil
	case left.count == h.Records && !setHorizon:
		return b, left.count, nil
	case left.count == 0:
		changed.BaseTimestamp, changed.MaxTimestamp = protocol.NoTimestamp, protocol.NoTimestamp
		changed.Attributes &^= deleteHorizonFlag
		codec = None
	default:
		changed.MaxTimestamp = left.maxTimestamp
	}
	changed.Records = left.count
	if setHorizon {
		if !h.Attributes.LogAppendTime() { // else no timestamp comes from a delta
			f.rebased = rebase(slices.Grow(f.rebased[:0], len(records)+len(records)/8), records, h.BaseTimestamp-cut.DeleteHorizon)
			records = f.rebased
		}
		changed.BaseTimestamp = cut.DeleteHorizon
		changed.Attributes |= deleteHorizonFlag
	}
	f.out, err = f.compressor.appendBatch(f.out[:0], changed, codec, DefaultLevel, records)
	return f.out, left.count, err
}

// remainder is what a filter leaves of a batch's records.
type remainder struct {
	records      []byte // encoded, not compressed
	count        int32
	maxTimestamp int64
	expires      bool // a tombstone or marker is left
}

func (f *Filter) keep(h *Header, b []byte, keep func(*Header, *Record) bool) (remainder, error) {
	left := remainder{maxTimestamp: protocol.NoTimestamp}
	records, err := f.decompressor.Records(h, b)
	if err != nil {
		return left, err
	}
	plain := records.src
	kept := plain[:0] // over what has been read of what the decompressor owns
	if h.Attributes.Codec() == None {
		kept = f.kept[:0] // it is the caller's
	}
	run := 0 // where the records begin that are kept, but not copied yet
	for at := 0; records.Next(&f.record); {
		next := len(plain) - len(records.src)
		if keep(h, &f.record) {
			left.count++
			left.maxTimestamp = max(left.maxTimestamp, h.Timestamp(&f.record))
			left.expires = left.expires || f.record.Value == nil || h.Attributes.Control()
		} else {
			kept = append(kept, plain[run:at]...)
			run = next
		}
		at = next
	}
	left.records = plain
	if left.count < h.Records {
		left.records = append(kept, plain[run:]...)
		if h.Attributes.Codec() == None {
			f.kept = left.records
		}
	}
	return left, records.Err()
}

// rebase appends records, which have been read before, with timestamp deltas that are larger by shift.
func rebase(dst, records []byte, shift int64) []byte {
	for len(records) > 0 {
		outer := cursor{src: records}
		length := outer.varint()
		record := outer.src[:length]
		records = outer.src[length:]
		inner := cursor{src: record[1:]}
		delta := inner.varint() + shift
		dst = binary.AppendVarint(dst, int64(1+varintBytes(delta)+len(inner.src)))
		dst = append(dst, record[0])
		dst = binary.AppendVarint(dst, delta)
		dst = append(dst, inner.src...)
	}
	return dst
}

// varintBytes is the size of a zigzag varint.
func varintBytes(v int64) int {
	return (bits.Len64(uint64(v<<1)^uint64(v>>63)|1) + 6) / 7
}
