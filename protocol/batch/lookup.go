package batch

import "github.com/varve-io/varve/protocol"

// FirstAtOrAfter finds the first record of the batch b with an offset of from
// or more and a timestamp of target or more, as ListOffsets by time needs it.
// found is false if the batch has none. Errors are as of [Decompressor.Records].
func (d *Decompressor) FirstAtOrAfter(h *Header, b []byte, target int64, from protocol.Offset) (
	offset protocol.Offset, timestamp int64, found bool, err error,
) {
	return d.find(h, b, func(r *Record) bool { return h.Timestamp(r) >= target && h.Offset(r) >= from })
}

// FirstOfMaxTimestamp finds the first record of the batch b that has the
// batch's max timestamp, as ListOffsets for the max timestamp needs it
// (RecordBatch.offsetOfMaxTimestamp). found is false if the header's max
// timestamp is no record's. Errors are as of [Decompressor.Records].
func (d *Decompressor) FirstOfMaxTimestamp(h *Header, b []byte) (offset protocol.Offset, timestamp int64, found bool, err error) {
	return d.find(h, b, func(r *Record) bool { return h.Timestamp(r) == h.MaxTimestamp })
}

func (d *Decompressor) find(h *Header, b []byte, match func(*Record) bool) (protocol.Offset, int64, bool, error) {
	records, err := d.Records(h, b)
	if err != nil {
		return protocol.NoOffset, protocol.NoTimestamp, false, err
	}
	var record Record
	for records.Next(&record) {
		if match(&record) {
			return h.Offset(&record), h.Timestamp(&record), true, nil
		}
	}
	return protocol.NoOffset, protocol.NoTimestamp, false, records.Err()
}
