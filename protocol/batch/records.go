package batch

import (
	"encoding/binary"
	"iter"

	"github.com/varve-io/varve/protocol"
)

// Record is one record of a batch. Its slices alias the batch, or the
// Decompressor's buffer.
type Record struct {
	// OffsetDelta is the record's offset less the batch's base offset.
	OffsetDelta int32
	// TimestampDelta is the record's timestamp less the batch's base
	// timestamp, in ms; see [Header.Timestamp].
	TimestampDelta int64
	// Key and Value are nil if they are null, which is not the same as empty.
	Key, Value []byte
	// HeaderCount is the number of headers; see [Record.Headers].
	HeaderCount int
	headers     []byte
}

// Offset returns the offset of a record of the batch.
func (h *Header) Offset(r *Record) protocol.Offset {
	return h.BaseOffset + protocol.Offset(r.OffsetDelta)
}

// Timestamp returns the timestamp of a record of the batch, in ms.
func (h *Header) Timestamp(r *Record) int64 {
	if h.Attributes.LogAppendTime() {
		return h.MaxTimestamp
	}
	return h.BaseTimestamp + r.TimestampDelta
}

// Headers returns the record's headers, keys and values; a nil value is null.
// Keys may repeat.
func (r *Record) Headers() iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		// Next has checked them.
		cursor := cursor{src: r.headers}
		for range r.HeaderCount {
			if !yield(cursor.bytes(), cursor.bytes()) {
				return
			}
		}
	}
}

// Records reads the records of one batch, in order:
//
//	records, err := decompressor.Records(&h, b)
//	var record batch.Record
//	for records.Next(&record) {
//		...
//	}
//	err = records.Err()
//
// Every length is checked, and nothing is allocated per record.
type Records struct {
	src        []byte
	baseOffset protocol.Offset
	deltaMax   int32 // the batch's last offset delta
	left       int32 // records to come
	lastDelta  int32 // offset delta of the last record, -1 before the first
	err        error
}

// Records returns a reader of the records of the whole batch b with header h,
// which is valid until the Decompressor's next call.
//
// Errors, here and of [Records.Err], are [*protocol.Error]: InvalidRecord for
// what cannot be read, MessageTooLarge beyond the Decompressor's limit.
func (d *Decompressor) Records(h *Header, b []byte) (Records, error) {
	if h.Records < 0 {
		return Records{}, protocol.InvalidRecord.Errorf("batch at offset %d has a record count of %d", h.BaseOffset, h.Records)
	}
	src, err := d.plain(h, b)
	if err != nil {
		return Records{}, err
	}
	return Records{src: src, baseOffset: h.BaseOffset, deltaMax: h.LastOffsetDelta, left: h.Records, lastDelta: -1}, nil
}

// Next reads the next record and reports whether there was one. After the
// last, it is an error if bytes remain.
func (r *Records) Next(record *Record) bool {
	if r.err != nil {
		return false
	}
	if r.left == 0 {
		if len(r.src) > 0 {
			r.fail("%d bytes follow the last record", len(r.src))
		}
		return false
	}
	outer := cursor{src: r.src}
	length := outer.varint()
	if outer.bad || length < 0 || length > int64(len(outer.src)) {
		r.fail("record after offset delta %d has length %d, and %d bytes are left", r.lastDelta, length, len(outer.src))
		return false
	}
	inner := cursor{src: outer.src[:length:length]}
	record.read(&inner)
	if inner.bad || len(inner.src) > 0 {
		r.fail("record after offset delta %d of %d bytes does not end where it should", r.lastDelta, length)
		return false
	}
	if record.OffsetDelta <= r.lastDelta || record.OffsetDelta > r.deltaMax {
		r.fail("record has offset delta %d after %d, in a batch that ends at %d", record.OffsetDelta, r.lastDelta, r.deltaMax)
		return false
	}
	r.src = outer.src[length:]
	r.lastDelta = record.OffsetDelta
	r.left--
	return true
}

// Err returns what ended the records early, or nil.
func (r *Records) Err() error { return r.err }

func (r *Records) fail(format string, args ...any) {
	r.err = protocol.InvalidRecord.Errorf("batch at offset %d: "+format, append([]any{r.baseOffset}, args...)...)
}

// read reads all of a record but its length.
func (r *Record) read(c *cursor) {
	c.skip(1) // attributes
	r.TimestampDelta = c.varint()
	r.OffsetDelta = c.varint32()
	r.Key = c.bytes()
	r.Value = c.bytes()
	r.HeaderCount = int(c.varint32())
	r.headers = c.src
	if r.HeaderCount < 0 || r.HeaderCount > len(c.src) {
		c.fail()
		return
	}
	for range r.HeaderCount {
		if key := c.bytes(); key == nil {
			c.fail() // a header's key is never null
			return
		}
		c.bytes()
	}
}

// cursor walks over the fields of a record. Once bad, it has no bytes and
// every read returns a zero value.
type cursor struct {
	src []byte
	bad bool
}

func (c *cursor) fail() { c.src, c.bad = nil, true }

func (c *cursor) skip(n int) {
	if n > len(c.src) {
		c.fail()
		return
	}
	c.src = c.src[n:]
}

// varint reads a zigzag varint of up to 64 bits.
func (c *cursor) varint() int64 {
	if len(c.src) > 0 && c.src[0] < 0x80 { // most are a single byte
		v := c.src[0]
		c.src = c.src[1:]
		return int64(v>>1) ^ -int64(v&1)
	}
	v, n := binary.Varint(c.src)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.src = c.src[n:]
	return v
}

// varint32 reads a zigzag varint of up to 32 bits.
func (c *cursor) varint32() int32 {
	v := c.varint()
	if v != int64(int32(v)) {
		c.fail()
		return 0
	}
	return int32(v)
}

// bytes reads a length and that many bytes. A length of -1 is null; it
// returns nil for that and, once bad, for everything.
func (c *cursor) bytes() []byte {
	n := c.varint32()
	if n == -1 {
		return nil
	}
	if n < 0 || int(n) > len(c.src) {
		c.fail()
		return nil
	}
	b := c.src[:n:n]
	c.src = c.src[n:]
	return b
}
