// Package batch reads, checks, restamps, builds and filters Kafka's record batches,
// version 2 (KIP-98), the only message format that Varve stores.
//
// A batch is a header of 61 bytes and its records, big-endian throughout:
//
//	 0  base offset             int64   offset of the first record
//	 8  batch length            int32   bytes that follow this field
//	12  partition leader epoch  int32
//	16  magic                   int8    2
//	17  CRC                     uint32  CRC32C of everything from 21 to the end
//	21  attributes              int16   bits 0-2 codec, 3 log append time, 4 transactional,
//	                                    5 control, 6 delete horizon
//	23  last offset delta       int32   last offset - base offset
//	27  base timestamp          int64   ms since the Unix epoch, of the first record
//	35  max timestamp           int64
//	43  producer id             int64   -1 without idempotence
//	51  producer epoch          int16
//	53  base sequence           int32
//	57  record count            int32
//	61  records                 compressed as one piece, unless codec is 0
//
// and a record, in zigzag varints but for the attributes:
//
//	length, attributes (1 byte, unused), timestamp delta, offset delta,
//	key length (-1: null), key, value length (-1: null), value,
//	header count, and each header's key length, key, value length, value
//
// Base offset and leader epoch lie outside of the CRC so that a broker can
// assign them without touching the rest: [Restamp].
//
// A broker's path through the package, for one partition of a Produce request:
//
//	h, err := batch.Check(records, limits)   // does not allocate
//	...                                      // assign the offset
//	batch.Restamp(records, offset, epoch)    // in place
//
// Functions do not keep the slices that they are given.
package batch

import (
	"encoding/binary"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Positions in the header, and its size.
const (
	baseOffsetAt      = 0
	lengthAt          = 8
	leaderEpochAt     = 12
	magicAt           = 16
	crcAt             = 17
	attributesAt      = 21
	lastOffsetDeltaAt = 23
	baseTimestampAt   = 27
	maxTimestampAt    = 35
	producerIDAt      = 43
	producerEpochAt   = 51
	baseSequenceAt    = 53
	recordCountAt     = 57

	// HeaderBytes is the size of a batch's header, and of the smallest batch.
	HeaderBytes = 61

	// prefixBytes is what the batch length does not count.
	prefixBytes = 12

	magic = 2
)

// Attributes is the bit field of a batch.
type Attributes int16

const (
	codecMask         Attributes = 0x07
	logAppendTimeFlag Attributes = 0x08
	transactionalFlag Attributes = 0x10
	controlFlag       Attributes = 0x20
	deleteHorizonFlag Attributes = 0x40
)

// Codec returns how the records are compressed.
func (a Attributes) Codec() Codec { return Codec(a & codecMask) }

// LogAppendTime reports whether all records carry the batch's max timestamp,
// the time of the append, rather than the time that their producer gave them.
func (a Attributes) LogAppendTime() bool { return a&logAppendTimeFlag != 0 }

// Transactional reports whether the batch belongs to a transaction.
func (a Attributes) Transactional() bool { return a&transactionalFlag != 0 }

// Control reports whether the batch holds a transaction marker.
func (a Attributes) Control() bool { return a&controlFlag != 0 }

// DeleteHorizon reports whether the base timestamp is the time at which the
// batch's tombstones may go (KIP-534), rather than a timestamp.
func (a Attributes) DeleteHorizon() bool { return a&deleteHorizonFlag != 0 }

// Header is the header of a batch.
type Header struct {
	BaseOffset protocol.Offset
	// Length counts the bytes after its own field; see [Header.Size].
	Length          int32
	LeaderEpoch     protocol.LeaderEpoch
	CRC             uint32
	Attributes      Attributes
	LastOffsetDelta int32
	// BaseTimestamp and MaxTimestamp are in ms since the Unix epoch.
	BaseTimestamp int64
	MaxTimestamp  int64
	ProducerID    protocol.ProducerID
	ProducerEpoch protocol.ProducerEpoch
	BaseSequence  int32
	// Records is the number of records; in a compacted log it may be
	// smaller than the offset range, even 0.
	Records int32
}

// Size returns the size of the whole batch in bytes.
func (h *Header) Size() int { return prefixBytes + int(h.Length) }

// LastOffset returns the offset of the last record.
func (h *Header) LastOffset() protocol.Offset {
	return h.BaseOffset + protocol.Offset(h.LastOffsetDelta)
}

// NextOffset returns the offset that follows the batch.
func (h *Header) NextOffset() protocol.Offset { return h.LastOffset() + 1 }

// Idempotent reports whether the batch has a producer id, and so a sequence.
// Any negative id is none, as in Kafka.
func (h *Header) Idempotent() bool { return h.ProducerID > protocol.NoProducerID }

// LastSequence returns the sequence of the last record. Sequences go on from
// 0 after the largest int32 (DefaultRecordBatch.incrementSequence).
func (h *Header) LastSequence() int32 {
	if h.BaseSequence < 0 {
		return protocol.NoSequence
	}
	return int32((int64(h.BaseSequence) + int64(h.LastOffsetDelta)) & (1<<31 - 1))
}

// Size returns the size of the batch that starts b, of which the first 12
// bytes must be there; ok is false if they are not or the length is too small
// for a batch. The batch itself may be longer than b.
func Size(b []byte) (size int, ok bool) {
	if len(b) < prefixBytes {
		return 0, false
	}
	size = prefixBytes + int(int32(binary.BigEndian.Uint32(b[lengthAt:])))
	return size, size >= HeaderBytes
}

// Parse reads the header of the batch that starts b, which must hold the whole
// batch and may hold more. It checks the length and the magic, not the CRC.
//
// Errors are [*protocol.Error]: CorruptMessage for a batch that is cut or has
// an impossible length, InvalidRecord for an older message format.
func Parse(b []byte) (Header, error) {
	if len(b) < HeaderBytes {
		// A short set of the old format deserves the clearer answer.
		if len(b) > magicAt && b[magicAt] != magic {
			return Header{}, wrongMagic(b)
		}
		return Header{}, protocol.CorruptMessage.Errorf("batch of %d bytes is shorter than its header of %d", len(b), HeaderBytes)
	}
	if b[magicAt] != magic {
		return Header{}, wrongMagic(b)
	}
	size, ok := Size(b)
	if !ok {
		return Header{}, protocol.CorruptMessage.Errorf("batch claims a size of %d bytes, less than its header of %d", size, HeaderBytes)
	}
	if size > len(b) {
		return Header{}, protocol.CorruptMessage.Errorf("batch claims a size of %d bytes, of which %d are there", size, len(b))
	}
	return parse(b), nil
}

// parse reads a header that is there.
func parse(b []byte) Header {
	_ = b[HeaderBytes-1]
	return Header{
		BaseOffset:      protocol.Offset(binary.BigEndian.Uint64(b[baseOffsetAt:])),
		Length:          int32(binary.BigEndian.Uint32(b[lengthAt:])),
		LeaderEpoch:     protocol.LeaderEpoch(binary.BigEndian.Uint32(b[leaderEpochAt:])),
		CRC:             binary.BigEndian.Uint32(b[crcAt:]),
		Attributes:      Attributes(binary.BigEndian.Uint16(b[attributesAt:])),
		LastOffsetDelta: int32(binary.BigEndian.Uint32(b[lastOffsetDeltaAt:])),
		BaseTimestamp:   int64(binary.BigEndian.Uint64(b[baseTimestampAt:])),
		MaxTimestamp:    int64(binary.BigEndian.Uint64(b[maxTimestampAt:])),
		ProducerID:      protocol.ProducerID(binary.BigEndian.Uint64(b[producerIDAt:])),
		ProducerEpoch:   protocol.ProducerEpoch(binary.BigEndian.Uint16(b[producerEpochAt:])),
		BaseSequence:    int32(binary.BigEndian.Uint32(b[baseSequenceAt:])),
		Records:         int32(binary.BigEndian.Uint32(b[recordCountAt:])),
	}
}

// append writes the header; it is the inverse of parse.
func (h *Header) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.BaseOffset))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Length))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.LeaderEpoch))
	dst = append(dst, magic)
	dst = binary.BigEndian.AppendUint32(dst, h.CRC)
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.Attributes))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.LastOffsetDelta))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.BaseTimestamp))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.MaxTimestamp))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.ProducerID))
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.ProducerEpoch))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.BaseSequence))
	return binary.BigEndian.AppendUint32(dst, uint32(h.Records))
}

func wrongMagic(b []byte) error {
	return protocol.InvalidRecord.Errorf("batch has magic %d, want %d", int8(b[magicAt]), magic)
}

func checksum(b []byte) uint32 { return crc32c.Checksum(b[attributesAt:]) }

// Verify compares the checksum of the whole batch b, no byte more, with its
// header's. The error is an [*protocol.Error] with code CorruptMessage.
func Verify(b []byte, h *Header) error {
	if got := checksum(b); got != h.CRC {
		return protocol.CorruptMessage.Errorf("batch at offset %d: checksum is %08x, its header says %08x", h.BaseOffset, got, h.CRC)
	}
	return nil
}

// Summed is what the checksum in the batch b, no byte more, says of b. It is true of a batch that [Verify] accepted and of one that was made here.
func Summed(b []byte) crc32c.Tail {
	return crc32c.Tail{Bytes: len(b) - attributesAt, Sum: binary.BigEndian.Uint32(b[crcAt:])}
}

// Restamp writes the base offset and the leader epoch into the batch b, in
// place. Neither is covered by the CRC.
func Restamp(b []byte, baseOffset protocol.Offset, leaderEpoch protocol.LeaderEpoch) {
	binary.BigEndian.PutUint64(b[baseOffsetAt:], uint64(baseOffset))
	binary.BigEndian.PutUint32(b[leaderEpochAt:], uint32(leaderEpoch))
}

// SetLogAppendTime gives all records of the batch b, no byte more, the
// timestamp of its append in ms, in place, and computes the CRC again.
func SetLogAppendTime(b []byte, timestamp int64) {
	attributes := Attributes(binary.BigEndian.Uint16(b[attributesAt:])) | logAppendTimeFlag
	binary.BigEndian.PutUint16(b[attributesAt:], uint16(attributes))
	SetMaxTimestamp(b, timestamp)
}

// SetMaxTimestamp writes the max timestamp of the batch b, no byte more, in
// place, and computes the CRC again.
func SetMaxTimestamp(b []byte, timestamp int64) {
	binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(timestamp))
	binary.BigEndian.PutUint32(b[crcAt:], checksum(b))
}

// Each calls visit for each batch of a concatenation, with its header and its
// bytes, which alias b. It stops at the first error: that of [Parse] for what
// is not a whole batch, or visit's.
func Each(b []byte, visit func(h Header, batch []byte) error) error {
	for len(b) > 0 {
		h, err := Parse(b)
		if err != nil {
			return err
		}
		if err := visit(h, b[:h.Size():h.Size()]); err != nil {
			return err
		}
		b = b[h.Size():]
	}
	return nil
}
