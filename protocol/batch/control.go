package batch

import (
	"encoding/binary"

	"github.com/varve-io/varve/protocol"
)

// Marker is the outcome of a transaction, as a control record's key has it.
type Marker int16

// The outcomes (org.apache.kafka.common.record.ControlRecordType).
const (
	Abort  Marker = 0
	Commit Marker = 1
)

// EndMarker is the marker that ends a producer's transaction in one partition.
type EndMarker struct {
	Marker           Marker
	ProducerID       protocol.ProducerID
	ProducerEpoch    protocol.ProducerEpoch
	CoordinatorEpoch int32
	// Timestamp is that of the marker, in ms.
	Timestamp int64
}

// A control record has a key of version and type (int16 each) and a value of
// version and coordinator epoch (int16, int32). The value is not optional:
// sarama drops its subscription without it.
const (
	controlKeyBytes   = 4
	controlValueBytes = 6
)

// AppendControlBatch appends a batch with the one control record of m to dst.
func AppendControlBatch(dst []byte, baseOffset protocol.Offset, leaderEpoch protocol.LeaderEpoch, m EndMarker) ([]byte, error) {
	key := binary.BigEndian.AppendUint16(make([]byte, 2, controlKeyBytes), uint16(m.Marker))
	value := binary.BigEndian.AppendUint32(make([]byte, 2, controlValueBytes), uint32(m.CoordinatorEpoch))
	b := NewBuilder(None)
	b.BaseOffset, b.LeaderEpoch = baseOffset, leaderEpoch
	b.ProducerID, b.ProducerEpoch = m.ProducerID, m.ProducerEpoch
	b.Transactional = true
	b.attributes = controlFlag
	b.Append(m.Timestamp, key, value)
	return b.AppendTo(dst)
}

// ParseControl reads the marker of the whole control batch b with header h.
// Errors are [*protocol.Error] with code InvalidRecord.
func ParseControl(h *Header, b []byte) (EndMarker, error) {
	m := EndMarker{ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, Timestamp: h.MaxTimestamp}
	if !h.Attributes.Control() || h.Attributes.Codec() != None {
		return m, protocol.InvalidRecord.Errorf("batch at offset %d with attributes %#x is not a control batch", h.BaseOffset, int16(h.Attributes))
	}
	records, err := new(Decompressor).Records(h, b)
	if err != nil {
		return m, err
	}
	var record Record
	if !records.Next(&record) {
		return m, protocol.InvalidRecord.Errorf("control batch at offset %d has no record: %v", h.BaseOffset, records.Err())
	}
	if len(record.Key) < controlKeyBytes || len(record.Value) < controlValueBytes {
		return m, protocol.InvalidRecord.Errorf("control record at offset %d has a key of %d bytes and a value of %d, want %d and %d",
			h.BaseOffset, len(record.Key), len(record.Value), controlKeyBytes, controlValueBytes)
	}
	m.Marker = Marker(binary.BigEndian.Uint16(record.Key[2:]))
	m.CoordinatorEpoch = int32(binary.BigEndian.Uint32(record.Value[2:]))
	if m.Marker != Abort && m.Marker != Commit {
		return m, protocol.InvalidRecord.Errorf("control record at offset %d has type %d", h.BaseOffset, m.Marker)
	}
	return m, nil
}
