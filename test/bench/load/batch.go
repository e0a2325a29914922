package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
)

// A record batch v2 (KIP-98) as the generator writes it:
//
//	 0 base offset          8    21 attributes          2
//	 8 length               4    23 last offset delta   4
//	12 leader epoch         4    27 base timestamp      8
//	16 magic (2)            1    35 max timestamp       8
//	17 CRC32C of 21..       4    43 producer id         8
//	                             51 producer epoch      2
//	                             53 base sequence       4
//	                             57 record count        4
//	                             61 records
const (
	batchLengthAt        = 8
	batchLeaderEpochAt   = 12
	batchMagicAt         = 16
	batchCRCAt           = 17
	batchAttributesAt    = 21
	batchLastDeltaAt     = 23
	batchBaseTimestampAt = 27
	batchMaxTimestampAt  = 35
	batchProducerIDAt    = 43
	batchProducerEpochAt = 51
	batchBaseSequenceAt  = 53
	batchCountAt         = 57
	batchHeaderBytes     = 61
	batchPrefixBytes     = 12 // base offset and length, which length does not count
)

const (
	// recordBytesMin leaves room for the time stamp of the latency phase.
	recordBytesMin = 16
	recordBytesMax = 512 << 10
	// batchBytesMax is Kafka's default message.max.bytes without its overhead.
	batchBytesMax = 1 << 20
	// recordOverheadBytesMax bounds what surrounds a value in an uncompressed
	// record without key and headers: length, attributes, timestamp delta,
	// offset delta, key length, value length, header count.
	recordOverheadBytesMax = 16
	batchOverheadBytesMax  = batchHeaderBytes + recordOverheadBytesMax
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errBatch = errors.New("malformed record batch")

// batchTemplate is a batch of equal records from which shorter ones can be
// cut: a batch of n records is its header and the first ends[n-1] bytes.
type batchTemplate struct {
	bytes  []byte // a whole batch of len(ends) records
	ends   []int  // where record i ends in bytes
	values []int  // where the value of record i starts in bytes
	// recordBytes is the size of each value.
	recordBytes int
}

// newBatchTemplate builds the longest batch of records with values of
// recordBytes bytes that is no longer than bytesMax, and has at least one.
// The values are random, so that a broker that compresses gains nothing.
func newBatchTemplate(recordBytes, bytesMax int, timestampMillis int64) batchTemplate {
	t := batchTemplate{recordBytes: recordBytes, bytes: make([]byte, batchHeaderBytes, bytesMax)}
	random := rand.NewChaCha8([32]byte{'v', 'a', 'r', 'v', 'e'})
	value := make([]byte, recordBytes)
	for i := 0; ; i++ {
		_, _ = random.Read(value) // documented never to fail
		record := appendRecord(nil, i, value)
		if i > 0 && len(t.bytes)+len(record) > bytesMax {
			break
		}
		t.bytes = append(t.bytes, record...)
		t.ends = append(t.ends, len(t.bytes))
		t.values = append(t.values, len(t.bytes)-1-recordBytes)
	}
	b := t.bytes
	b[batchMagicAt] = 2
	binary.BigEndian.PutUint32(b[batchLeaderEpochAt:], ^uint32(0))
	binary.BigEndian.PutUint64(b[batchBaseTimestampAt:], uint64(timestampMillis))
	binary.BigEndian.PutUint64(b[batchMaxTimestampAt:], uint64(timestampMillis))
	return t
}

// appendRecord appends a record without key and headers, at the batch's base
// timestamp.
func appendRecord(dst []byte, offsetDelta int, value []byte) []byte {
	var body [3 * binary.MaxVarintLen64]byte
	n := 2 // attributes and timestamp delta are zero
	n += binary.PutVarint(body[n:], int64(offsetDelta))
	n += binary.PutVarint(body[n:], -1) // no key
	n += binary.PutVarint(body[n:], int64(len(value)))
	dst = binary.AppendVarint(dst, int64(n+len(value)+1))
	dst = append(dst, body[:n]...)
	dst = append(dst, value...)
	return append(dst, 0) // no headers
}

// recordsMax is the number of records in the longest batch.
func (t batchTemplate) recordsMax() int { return len(t.ends) }

// cut returns the batch of the first n records. It aliases the template, and
// the next cut rewrites its header; seal must follow.
func (t batchTemplate) cut(n int) []byte {
	b := t.bytes[:t.ends[n-1]]
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchPrefixBytes))
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(n-1))
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(n))
	return b
}

// producerID is what InitProducerId gave to one connection. The zero value is
// not valid: noProducer stands for a producer without idempotence.
type producerID struct {
	id    int64
	epoch int16
}

var noProducer = producerID{id: -1, epoch: -1}

// seal writes the producer and the sequence number of the first record into
// the batch and brings its CRC up to date.
func seal(batch []byte, producer producerID, sequence int32) {
	binary.BigEndian.PutUint64(batch[batchProducerIDAt:], uint64(producer.id))
	binary.BigEndian.PutUint16(batch[batchProducerEpochAt:], uint16(producer.epoch))
	binary.BigEndian.PutUint32(batch[batchBaseSequenceAt:], uint32(sequence))
	binary.BigEndian.PutUint32(batch[batchCRCAt:], crc32.Checksum(batch[batchAttributesAt:], castagnoli))
}

// batchHeader is what the consumers look at.
type batchHeader struct {
	baseOffset int64
	nextOffset int64 // the offset after the batch's last
	records    int
	control    bool // a transaction marker, which no consumer shows
	compressed bool
}

// nextBatch splits the first batch off the records of a fetch. A batch that is
// cut off at the end, as a broker may send, is dropped: whole is then nil.
func nextBatch(records []byte) (header batchHeader, whole, rest []byte, err error) {
	if len(records) < batchHeaderBytes {
		return batchHeader{}, nil, nil, nil
	}
	length := int(int32(binary.BigEndian.Uint32(records[batchLengthAt:])))
	if length < batchHeaderBytes-batchPrefixBytes {
		return batchHeader{}, nil, nil, fmt.Errorf("%w: length %d", errBatch, length)
	}
	if magic := records[batchMagicAt]; magic != 2 {
		return batchHeader{}, nil, nil, fmt.Errorf("%w: magic %d, want 2", errBatch, magic)
	}
	end := batchPrefixBytes + length
	if end > len(records) {
		return batchHeader{}, nil, nil, nil
	}
	attributes := binary.BigEndian.Uint16(records[batchAttributesAt:])
	base := int64(binary.BigEndian.Uint64(records))
	header = batchHeader{
		baseOffset: base,
		nextOffset: base + int64(int32(binary.BigEndian.Uint32(records[batchLastDeltaAt:]))) + 1,
		records:    int(int32(binary.BigEndian.Uint32(records[batchCountAt:]))),
		control:    attributes&0x20 != 0,
		compressed: attributes&0x07 != 0,
	}
	return header, records[:end], records[end:], nil
}

// eachValue calls f with the value of each record of an uncompressed batch.
// The slice is valid only during the call.
func eachValue(batch []byte, f func(value []byte)) error {
	rest := batch[batchHeaderBytes:]
	for len(rest) > 0 {
		length, n := binary.Varint(rest)
		if n <= 0 || length < 1 || length > int64(len(rest)-n) {
			return fmt.Errorf("%w: record length", errBatch)
		}
		record := rest[n : n+int(length)]
		rest = rest[n+int(length):]
		value, err := recordValue(record)
		if err != nil {
			return err
		}
		f(value)
	}
	return nil
}

// recordValue skips attributes, timestamp delta, offset delta and key.
func recordValue(record []byte) ([]byte, error) {
	r := record[1:]
	var keyBytes int64
	for range 3 {
		v, n := binary.Varint(r)
		if n <= 0 {
			return nil, fmt.Errorf("%w: record header", errBatch)
		}
		keyBytes, r = v, r[n:]
	}
	keyBytes = max(keyBytes, 0)
	if keyBytes > int64(len(r)) {
		return nil, fmt.Errorf("%w: key of %d bytes", errBatch, keyBytes)
	}
	r = r[keyBytes:]
	valueBytes, n := binary.Varint(r)
	if n <= 0 || valueBytes < 0 || valueBytes > int64(len(r)-n) {
		return nil, fmt.Errorf("%w: value", errBatch)
	}
	return r[n : n+int(valueBytes)], nil
}
