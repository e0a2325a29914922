package batch

import "github.com/varve-io/varve/protocol"

// RecordError says what is wrong with one record, for the record errors of a
// Produce response (KIP-467).
type RecordError struct {
	// Index is the record's place in its batch, from 0.
	Index   int32
	Message string
}

// recordErrorsMax bounds the errors that are listed for one batch.
const recordErrorsMax = 100

// Validate reads all records of a producer's batch, as Kafka's LogValidator
// does: they must be readable, have the offset deltas 0, 1, 2, ..., and a key
// if keyRequired, as in a compacted topic. It returns the largest timestamp
// among them, in ms, which is what the header should say.
//
// Errors are [*protocol.Error], as of [Decompressor.Records]. With
// InvalidRecord for records without a key, recordErrors names the first of them.
func (d *Decompressor) Validate(h *Header, b []byte, keyRequired bool) (maxTimestamp int64, recordErrors []RecordError, err error) {
	records, err := d.Records(h, b)
	if err != nil {
		return protocol.NoTimestamp, nil, err
	}
	var record Record
	maxTimestamp = protocol.NoTimestamp
	index, keyless := int32(0), 0
	for ; records.Next(&record); index++ {
		if record.OffsetDelta != index {
			return maxTimestamp, nil, protocol.InvalidRecord.Errorf("record %d has offset delta %d", index, record.OffsetDelta)
		}
		maxTimestamp = max(maxTimestamp, h.Timestamp(&record))
		if keyRequired && record.Key == nil {
			keyless++
			if len(recordErrors) < recordErrorsMax {
				recordErrors = append(recordErrors, RecordError{index, "Compacted topic cannot accept message without key"})
			}
		}
	}
	if err := records.Err(); err != nil {
		return maxTimestamp, nil, err
	}
	if keyless > 0 {
		return maxTimestamp, recordErrors, protocol.InvalidRecord.Errorf("%d of %d records have no key, which a compacted topic needs", keyless, index)
	}
	return maxTimestamp, nil, nil
}
