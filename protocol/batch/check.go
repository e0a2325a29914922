package batch

import "github.com/varve-io/varve/protocol"

// Limits are what [Check] holds a producer's batch against.
type Limits struct {
	// BatchBytesMax is the topic's max.message.bytes, which bounds the
	// whole batch, header included.
	BatchBytesMax int
	// ProduceVersion is the version of the Produce request: zstd is allowed
	// from 7 on (KIP-110).
	ProduceVersion int16
	// TimestampMin and TimestampMax, in ms, bound the timestamps that the
	// header shows: message.timestamp.before.max.ms and
	// message.timestamp.after.max.ms around the present time. 0 is no bound.
	TimestampMin, TimestampMax int64
}

// zstdProduceVersion is the first Produce version that may carry zstd.
const zstdProduceVersion = 7

// Check holds the records field of one partition of a Produce request against
// everything that can be told without looking into the records: it must be
// exactly one whole batch as producers send it. It does not allocate unless it
// fails.
//
// Errors are [*protocol.Error] with the code that Kafka answers for the
// partition (ProduceRequest.validateRecords, UnifiedLog.analyzeAndValidateRecords,
// LogValidator.validateBatch):
//
//	InvalidRecord               no batch, or more than one; an older format; a base
//	                            offset other than 0; an offset range that does not fit
//	                            the record count; a control batch; a delete horizon; a producer id
//	                            without a sequence; a transaction without a producer id
//	CorruptMessage              an impossible length, or a wrong CRC
//	MessageTooLarge             larger than BatchBytesMax
//	UnsupportedCompressionType  zstd before Produce 7
//	InvalidTimestamp            out of bounds, or the log append time flag, which is the
//	                            broker's to set
//
// Where Kafka drops a fragment that follows the batch, Check refuses it, and
// where it fails on an unknown codec with UNKNOWN_SERVER_ERROR, on which
// producers try for ever, Check says UnsupportedCompressionType. Kafka takes a delete
// horizon from a producer, whose tombstones it then removes when the producer likes;
// only compaction sets one. Bits of the attributes that have no meaning stay as they are.
func Check(b []byte, limits Limits) (Header, error) {
	if len(b) == 0 {
		return Header{}, protocol.InvalidRecord.Errorf("no batch for the partition, want one")
	}
	h, err := Parse(b)
	if err != nil {
		return h, err
	}
	if h.Size() != len(b) {
		return h, protocol.InvalidRecord.Errorf("%d bytes follow the batch of %d, want exactly one batch for the partition",
			len(b)-h.Size(), h.Size())
	}
	if h.BaseOffset != 0 {
		return h, protocol.InvalidRecord.Errorf("base offset of the batch is %d, want 0", h.BaseOffset)
	}
	if len(b) > limits.BatchBytesMax {
		return h, protocol.MessageTooLarge.Errorf("batch has %d bytes, want at most %d (max.message.bytes)", len(b), limits.BatchBytesMax)
	}
	// Before any field that it covers: producers try again on a wrong CRC.
	if err := Verify(b, &h); err != nil {
		return h, err
	}
	if err := checkCodec(h.Attributes.Codec(), limits.ProduceVersion); err != nil {
		return h, err
	}
	if err := checkFields(&h); err != nil {
		return h, err
	}
	return h, checkTimestamps(&h, limits)
}

func checkCodec(codec Codec, produceVersion int16) error {
	if !codec.Valid() {
		return protocol.UnsupportedCompressionType.Errorf("unknown compression codec %d", codec)
	}
	if codec == Zstd && produceVersion < zstdProduceVersion {
		return protocol.UnsupportedCompressionType.Errorf("zstd in Produce version %d, want at least %d",
			produceVersion, zstdProduceVersion)
	}
	return nil
}

// checkFields checks what a producer must have put into the header.
func checkFields(h *Header) error {
	switch {
	case h.Records <= 0:
		return protocol.InvalidRecord.Errorf("batch has a record count of %d", h.Records)
	case int64(h.LastOffsetDelta) != int64(h.Records)-1:
		return protocol.InvalidRecord.Errorf("batch has %d records and a last offset delta of %d", h.Records, h.LastOffsetDelta)
	case h.Attributes.Control():
		return protocol.InvalidRecord.Errorf("control batches are not a producer's to write")
	case h.Attributes.DeleteHorizon():
		return protocol.InvalidRecord.Errorf("a delete horizon is not a producer's to set")
	case h.Idempotent() && h.BaseSequence < 0:
		return protocol.InvalidRecord.Errorf("batch of producer id %d has base sequence %d", h.ProducerID, h.BaseSequence)
	case h.Attributes.Transactional() && !h.Idempotent():
		return protocol.InvalidRecord.Errorf("transactional batch has no producer id")
	}
	return nil
}

// checkTimestamps takes the header's word for the records' timestamps.
func checkTimestamps(h *Header, limits Limits) error {
	if h.Attributes.LogAppendTime() {
		return protocol.InvalidTimestamp.Errorf("log append time is not a producer's to set")
	}
	if limits.TimestampMin != 0 && h.BaseTimestamp != protocol.NoTimestamp && h.BaseTimestamp < limits.TimestampMin {
		return protocol.InvalidTimestamp.Errorf("timestamp %d is too old, want at least %d", h.BaseTimestamp, limits.TimestampMin)
	}
	if limits.TimestampMax != 0 && max(h.BaseTimestamp, h.MaxTimestamp) > limits.TimestampMax {
		return protocol.InvalidTimestamp.Errorf("timestamp %d is too far in the future, want at most %d",
			max(h.BaseTimestamp, h.MaxTimestamp), limits.TimestampMax)
	}
	return nil
}
