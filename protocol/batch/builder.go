package batch

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/varve-io/varve/protocol"
)

// HeaderField is one header of a record.
type HeaderField struct {
	Key string
	// Value is null if it is nil.
	Value []byte
}

// Builder makes a batch record by record. The exported fields may be set
// before [Builder.AppendTo]; [NewBuilder] gives them the values of a plain
// producer. It is for one goroutine at a time.
type Builder struct {
	Codec Codec
	// Level is the codec's compression level as in Kafka's topic configs;
	// DefaultLevel is the codec's own default.
	Level         int
	BaseOffset    protocol.Offset
	LeaderEpoch   protocol.LeaderEpoch
	Transactional bool
	ProducerID    protocol.ProducerID
	ProducerEpoch protocol.ProducerEpoch
	BaseSequence  int32

	attributes    Attributes // besides codec and Transactional
	records       []byte     // encoded, not compressed
	scratch       []byte     // one record
	count         int32
	lastDelta     int32
	baseTimestamp int64
	maxTimestamp  int64
	compressor    Compressor
}

// NewBuilder returns a Builder of batches as a producer without idempotence
// sends them.
func NewBuilder(codec Codec) *Builder {
	b := &Builder{
		Codec:         codec,
		LeaderEpoch:   protocol.NoLeaderEpoch,
		ProducerID:    protocol.NoProducerID,
		ProducerEpoch: protocol.NoProducerEpoch,
		BaseSequence:  protocol.NoSequence,
	}
	b.Reset()
	return b
}

// Reset forgets the records; the fields and the buffers stay.
func (b *Builder) Reset() {
	b.records = b.records[:0]
	b.count, b.lastDelta = 0, -1
	b.baseTimestamp, b.maxTimestamp = protocol.NoTimestamp, protocol.NoTimestamp
}

// Len returns the size of the records so far, before compression.
func (b *Builder) Len() int { return len(b.records) }

// Append adds a record with the next offset. A nil key or value is null.
// The timestamp is in ms.
func (b *Builder) Append(timestamp int64, key, value []byte, headers ...HeaderField) {
	b.AppendAt(b.lastDelta+1, timestamp, key, value, headers...)
}

// AppendAt adds a record with an offset delta of its own, which must be larger
// than that of the record before: compaction leaves gaps.
func (b *Builder) AppendAt(offsetDelta int32, timestamp int64, key, value []byte, headers ...HeaderField) {
	if b.count == 0 {
		b.baseTimestamp = timestamp
	}
	r := append(b.scratch[:0], 0) // attributes
	r = binary.AppendVarint(r, timestamp-b.baseTimestamp)
	r = binary.AppendVarint(r, int64(offsetDelta))
	r = appendBytes(r, key)
	r = appendBytes(r, value)
	r = binary.AppendVarint(r, int64(len(headers)))
	for _, h := range headers {
		r = binary.AppendVarint(r, int64(len(h.Key)))
		r = append(r, h.Key...)
		r = appendBytes(r, h.Value)
	}
	b.scratch = r
	b.records = binary.AppendVarint(b.records, int64(len(r)))
	b.records = append(b.records, r...)
	b.count++
	b.lastDelta = offsetDelta
	b.maxTimestamp = max(b.maxTimestamp, timestamp)
}

// appendBytes appends a length and the bytes; nil is null.
func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(b)))
	return append(dst, b...)
}

// AppendTo appends the batch to dst. The records stay until Reset.
func (b *Builder) AppendTo(dst []byte) ([]byte, error) {
	h := Header{
		BaseOffset: b.BaseOffset, LeaderEpoch: b.LeaderEpoch,
		Attributes: b.attributes, LastOffsetDelta: b.lastDelta,
		BaseTimestamp: b.baseTimestamp, MaxTimestamp: b.maxTimestamp,
		ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence,
		Records: b.count,
	}
	if b.Transactional {
		h.Attributes |= transactionalFlag
	}
	return b.compressor.appendBatch(dst, h, b.Codec, b.Level, b.records)
}

// appendBatch appends a batch of the header's fields, but for its length,
// codec and CRC, and of encoded records.
func (c *Compressor) appendBatch(dst []byte, h Header, codec Codec, level int, records []byte) ([]byte, error) {
	start := len(dst)
	h.Attributes = h.Attributes&^codecMask | Attributes(codec)
	dst = h.append(dst)
	dst, err := c.append(dst, codec, level, records)
	if err != nil {
		return dst[:start], err
	}
	b := dst[start:]
	if len(b)-prefixBytes > math.MaxInt32 {
		return dst[:start], fmt.Errorf("build batch: %d bytes, want at most %d", len(b), math.MaxInt32)
	}
	binary.BigEndian.PutUint32(b[lengthAt:], uint32(len(b)-prefixBytes))
	binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
	return dst, nil
}

// Recompress appends to dst the whole batch b, with header h, in another codec,
// for topics whose compression.type is not "producer". All else stays the same.
// The level is as in [Builder]. Errors are as of [Decompressor.Records].
func (c *Compressor) Recompress(dst []byte, d *Decompressor, h *Header, b []byte, codec Codec, level int) ([]byte, error) {
	records, err := d.plain(h, b)
	if err != nil {
		return dst, err
	}
	return c.appendBatch(dst, *h, codec, level, records)
}
