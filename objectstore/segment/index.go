package segment

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/fields"
)

// Bounds of one batch's entry in the index, in bytes. In level 1 the gap before the batch comes on top.
const (
	gapMin, gapMax = 1, 9 // a difference of offsets, of 63 bits

	indexEntryMin = 4                               // flags, size, last offset delta, timestamp
	indexEntryMax = 1 + 5 + 5 + 10 + 5 + 10 + 3 + 5 // with an epoch and a producer; each varint at its longest
)

// coding is what the deltas of the next index entry are taken against. Writer and reader start it the same and move it
// on with each entry.
type coding struct {
	maxTimestamp  int64
	epoch         protocol.LeaderEpoch
	producer      protocol.ProducerID
	producerEpoch protocol.ProducerEpoch
	sequence      int32 // that the producer's next batch should have
}

// append encodes b without the gap before it. Its leader epoch must not be below the last one.
func (c *coding) append(dst []byte, b *Batch) []byte {
	flags := b.Flags
	if b.LeaderEpoch != c.epoch {
		flags |= flagEpoch
	}
	if b.ProducerID >= 0 {
		flags |= flagProducer
	}
	dst = append(dst, byte(flags))
	dst = binary.AppendUvarint(dst, uint64(b.Size))
	dst = binary.AppendUvarint(dst, uint64(b.LastOffsetDelta))
	dst = binary.AppendVarint(dst, b.MaxTimestamp-c.maxTimestamp)
	if flags&flagEpoch != 0 {
		dst = binary.AppendUvarint(dst, uint64(b.LeaderEpoch-c.epoch))
	}
	if flags&flagProducer != 0 {
		dst = binary.AppendVarint(dst, int64(b.ProducerID-c.producer))
		dst = binary.AppendVarint(dst, int64(b.ProducerEpoch)-int64(c.producerEpoch))
		if flags&FlagControl == 0 {
			dst = binary.AppendVarint(dst, int64(b.BaseSequence)-int64(c.sequence))
		} else {
			dst = binary.AppendVarint(dst, int64(b.CoordinatorEpoch))
		}
	}
	c.advance(b)
	return dst
}

// read decodes one entry, from behind its gap, into b, but for its place (Pos and Offset). It reports whether the entry can be a writer's.
func (c *coding) read(d *fields.Reader, b *Batch) bool {
	flags := Flags(d.Byte())
	b.Flags = flags &^ (flagProducer | flagEpoch)
	b.Size = int32(d.UvarintMax(math.MaxInt32))
	b.LastOffsetDelta = int32(d.UvarintMax(math.MaxInt32))
	b.MaxTimestamp = c.maxTimestamp + d.Varint()
	b.LeaderEpoch = c.epoch
	if flags&flagEpoch != 0 {
		b.LeaderEpoch += protocol.LeaderEpoch(d.UvarintMax(uint64(math.MaxInt32 - c.epoch)))
	}
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.CoordinatorEpoch = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoSequence, 0
	ok := true
	if flags&flagProducer != 0 {
		producer := c.producer + protocol.ProducerID(d.Varint())
		epoch := int64(c.producerEpoch) + d.Varint()
		sequence, coordinator := int64(protocol.NoSequence), int64(0)
		if flags&FlagControl == 0 {
			sequence = int64(c.sequence) + d.Varint()
		} else {
			coordinator = d.Varint()
		}
		ok = producer >= 0 && epoch == int64(int16(epoch)) && sequence >= -1 && sequence <= math.MaxInt32 && coordinator == int64(int32(coordinator))
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = producer, protocol.ProducerEpoch(epoch), int32(sequence)
		b.CoordinatorEpoch = int32(coordinator)
	}
	c.advance(b)
	return ok && !d.Bad() && b.Size >= batch.HeaderBytes
}

func (c *coding) advance(b *Batch) {
	c.maxTimestamp, c.epoch = b.MaxTimestamp, b.LeaderEpoch
	if b.ProducerID < 0 {
		return
	}
	c.producer, c.producerEpoch = b.ProducerID, b.ProducerEpoch
	if b.BaseSequence >= 0 {
		// Sequences go on at 0 after the largest int32 (Kafka's DefaultRecordBatch.incrementSequence).
		c.sequence = int32((int64(b.BaseSequence) + int64(b.LastOffsetDelta) + 1) & math.MaxInt32)
	}
}

// describe reads from a whole batch its header and what the index keeps of it; Pos stays 0. It trusts the batch to have been checked when
// it came in, but takes nothing that a reader would refuse.
func describe(data []byte) (Batch, error) {
	h, err := batch.Parse(data)
	if err != nil {
		return Batch{}, err
	}
	b := Batch{
		Offset:          h.BaseOffset,
		MaxTimestamp:    h.MaxTimestamp,
		ProducerID:      protocol.NoProducerID,
		Size:            int32(len(data)),
		LastOffsetDelta: h.LastOffsetDelta,
		LeaderEpoch:     h.LeaderEpoch,
		BaseSequence:    protocol.NoSequence,
		ProducerEpoch:   protocol.NoProducerEpoch,
		Flags:           Flags(h.Attributes.Codec()),
	}
	if h.Idempotent() {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = h.ProducerID, h.ProducerEpoch, h.BaseSequence
	}
	if h.Size() != len(data) || b.Offset < 0 || b.LastOffsetDelta < 0 || b.Next() < b.Offset || b.LeaderEpoch < 0 || b.BaseSequence < protocol.NoSequence {
		return Batch{}, fmt.Errorf("batch of %d bytes in %d: offset %d, last offset delta %d, leader epoch %d, base sequence %d",
			h.Size(), len(data), b.Offset, b.LastOffsetDelta, b.LeaderEpoch, b.BaseSequence)
	}
	if h.Attributes.Transactional() {
		b.Flags |= FlagTransactional
	}
	if !h.Attributes.Control() {
		return b, nil
	}
	b.Flags |= FlagControl
	end, err := batch.ParseControl(&h, data)
	if err != nil {
		return Batch{}, err
	}
	if b.ProducerID >= 0 { // a marker of nobody tells of nobody's coordinator
		b.CoordinatorEpoch = end.CoordinatorEpoch
	}
	if end.Marker == batch.Commit {
		b.Flags |= FlagCommit
	}
	if b.BaseSequence != protocol.NoSequence {
		return Batch{}, fmt.Errorf("control batch at offset %d has base sequence %d, want none", b.Offset, b.BaseSequence)
	}
	return b, nil
}
