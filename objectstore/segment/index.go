package segment

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/varve-io/varve/protocol"
)

// Bounds of one batch's entry in the index, in bytes.
const (
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

// append encodes b, whose leader epoch must not be below the last one.
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
		}
	}
	c.advance(b)
	return dst
}

// read decodes one entry into b, but for its place (Pos and Offset). It reports whether the entry can be a writer's.
func (c *coding) read(d *decoder, b *Batch) bool {
	flags := Flags(d.byte())
	b.Flags = flags &^ (flagProducer | flagEpoch)
	b.Size = int32(d.uvarintMax(math.MaxInt32))
	b.LastOffsetDelta = int32(d.uvarintMax(math.MaxInt32))
	b.MaxTimestamp = c.maxTimestamp + d.varint()
	b.LeaderEpoch = c.epoch
	if flags&flagEpoch != 0 {
		b.LeaderEpoch += protocol.LeaderEpoch(d.uvarintMax(uint64(math.MaxInt32 - c.epoch)))
	}
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoSequence
	ok := true
	if flags&flagProducer != 0 {
		producer := c.producer + protocol.ProducerID(d.varint())
		epoch := int64(c.producerEpoch) + d.varint()
		sequence := int64(protocol.NoSequence)
		if flags&FlagControl == 0 {
			sequence = int64(c.sequence) + d.varint()
		}
		ok = producer >= 0 && epoch == int64(int16(epoch)) && sequence >= -1 && sequence <= math.MaxInt32
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = producer, protocol.ProducerEpoch(epoch), int32(sequence)
	}
	c.advance(b)
	return ok && !d.bad && b.Size >= batchHeaderSize
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

// Fields of a RecordBatch v2, by their position.
const (
	posLength          = 8
	posLeaderEpoch     = 12
	posMagic           = 16
	posCRC             = 17
	posAttributes      = 21
	posLastOffsetDelta = 23
	posMaxTimestamp    = 35
	posProducerID      = 43
	posProducerEpoch   = 51
	posBaseSequence    = 53

	lengthFrom = 12 // the length field counts the bytes from here
	crcFrom    = 21 // Kafka's CRC covers the bytes from here
	magicV2    = 2
)

// describe reads from a batch's header what the index keeps of it; Pos stays 0. It trusts the batch to have been checked
// when it came in, but takes nothing that a reader would refuse.
func describe(p []byte) (Batch, error) {
	if len(p) < batchHeaderSize || len(p) > math.MaxInt32 {
		return Batch{}, fmt.Errorf("record batch of %d bytes, want %d at least", len(p), batchHeaderSize)
	}
	if n := int64(int32(binary.BigEndian.Uint32(p[posLength:]))) + lengthFrom; n != int64(len(p)) {
		return Batch{}, fmt.Errorf("record batch says %d bytes, has %d", n, len(p))
	}
	if p[posMagic] != magicV2 {
		return Batch{}, fmt.Errorf("record batch of magic %d, want %d", p[posMagic], magicV2)
	}
	attributes := Flags(p[posAttributes+1]) // the low byte has all that the index keeps
	b := Batch{
		Offset:          protocol.Offset(binary.BigEndian.Uint64(p)),
		MaxTimestamp:    int64(binary.BigEndian.Uint64(p[posMaxTimestamp:])),
		ProducerID:      protocol.ProducerID(binary.BigEndian.Uint64(p[posProducerID:])),
		Size:            int32(len(p)),
		LastOffsetDelta: int32(binary.BigEndian.Uint32(p[posLastOffsetDelta:])),
		LeaderEpoch:     protocol.LeaderEpoch(binary.BigEndian.Uint32(p[posLeaderEpoch:])),
		BaseSequence:    int32(binary.BigEndian.Uint32(p[posBaseSequence:])),
		ProducerEpoch:   protocol.ProducerEpoch(binary.BigEndian.Uint16(p[posProducerEpoch:])),
		Flags:           attributes & FlagCodec,
	}
	if b.Offset < 0 || b.LastOffsetDelta < 0 || b.Next() < b.Offset || b.LeaderEpoch < 0 {
		return Batch{}, fmt.Errorf("record batch at offset %d with last offset delta %d and leader epoch %d",
			b.Offset, b.LastOffsetDelta, b.LeaderEpoch)
	}
	if b.ProducerID < 0 {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = protocol.NoProducerID, protocol.NoProducerEpoch, protocol.NoSequence
	}
	if b.BaseSequence < protocol.NoSequence {
		return Batch{}, fmt.Errorf("record batch at offset %d with base sequence %d", b.Offset, b.BaseSequence)
	}
	if attributes&0x10 != 0 {
		b.Flags |= FlagTransactional
	}
	if attributes&0x20 == 0 {
		return b, nil
	}
	b.Flags |= FlagControl
	commit, err := markerCommits(p)
	if err != nil {
		return Batch{}, fmt.Errorf("control batch at offset %d: %w", b.Offset, err)
	}
	if commit {
		b.Flags |= FlagCommit
	}
	if b.BaseSequence != protocol.NoSequence {
		return Batch{}, fmt.Errorf("control batch at offset %d with base sequence %d, want none", b.Offset, b.BaseSequence)
	}
	return b, nil
}

// markerCommits reads the kind of a transaction marker from its one record (Kafka's ControlRecordType: the key is
// int16 version, int16 type; 0 aborts, 1 commits).
func markerCommits(p []byte) (bool, error) {
	d := decoder{b: p[batchHeaderSize:]}
	d.varint() // length
	d.byte()   // attributes
	d.varint() // timestamp delta
	d.varint() // offset delta
	key := d.take(int(d.varint()))
	if len(key) < 4 {
		return false, fmt.Errorf("key of %d bytes, want 4", len(key))
	}
	switch kind := binary.BigEndian.Uint16(key[2:]); kind {
	case 0:
		return false, nil
	case 1:
		return true, nil
	default:
		return false, fmt.Errorf("type %d, want 0 (abort) or 1 (commit)", kind)
	}
}
