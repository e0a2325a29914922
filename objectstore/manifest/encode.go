package manifest

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Parts of the layout, in bytes. The least that an entry takes bounds how many can be in what is left to read.
const (
	magic        = "VMAN"
	headerSize   = 48
	checksumSize = 4
	sizeMin      = headerSize + 2 + checksumSize // two counts of nothing

	segmentMin   = 5
	partitionMin = 3
	epochMin     = 2
	extentMin    = 7
	producerMin  = 5
)

// Flags of a producer's entry. The low three bits are the number of its batches.
const (
	producerBatches     = 0x07
	producerTransaction = 0x08 // it has an open transaction
	producerMarker      = 0x10 // a marker came, from a coordinator of some epoch
)

// noCoordinatorEpoch is that of a producer without a marker.
const noCoordinatorEpoch = -1

// nextSequence returns the sequence that follows a batch. After the largest int32 comes 0 (Kafka's DefaultRecordBatch.incrementSequence).
func (b *ProducerBatch) nextSequence() int64 {
	return (int64(b.BaseSequence) + int64(b.Records)) & math.MaxInt32
}

// Encode returns the manifest's bytes. It refuses what Parse would: what breaks the order, or a range, that the fields' comments give, and what passes
// the limits.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode manifest %s: %w", m.Name(), err)
	}
	b := append([]byte(magic), Version, 0, 0, 0)
	b = append(b, m.Cluster[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Shard)
	b = binary.BigEndian.AppendUint32(b, uint32(m.Epoch))
	b = binary.BigEndian.AppendUint64(b, m.Generation)
	b = binary.BigEndian.AppendUint64(b, uint64(m.CreatedMs))

	b = m.appendSegments(b)
	b = binary.AppendUvarint(b, uint64(len(m.Partitions)))
	ends := dataStarts(len(m.Segments))
	for i := range m.Partitions {
		b = m.appendPartition(b, i, ends)
		if len(b) > BytesMax-checksumSize {
			return nil, fmt.Errorf("encode manifest %s: more than %d bytes with %d of %d partitions", m.Name(), BytesMax, i+1, len(m.Partitions))
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b)), nil
}

func (m *Manifest) appendSegments(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(m.Segments)))
	last := Segment{CreatedMs: m.CreatedMs}
	for _, s := range m.Segments {
		if s.Epoch != last.Epoch {
			last.Number = 0
		}
		b = binary.AppendUvarint(b, uint64(s.Epoch-last.Epoch))
		b = binary.AppendUvarint(b, s.Number-last.Number)
		b = binary.AppendUvarint(b, uint64(s.FooterPos))
		b = binary.AppendUvarint(b, uint64(s.Size-s.FooterPos))
		b = binary.AppendVarint(b, s.CreatedMs-last.CreatedMs)
		last = s
	}
	return b
}

// appendPartition encodes the partition at i. ends has where the last extent of each segment ended.
func (m *Manifest) appendPartition(b []byte, i int, ends []int64) []byte {
	p := &m.Partitions[i]
	if i > 0 && m.Partitions[i-1].Topic == p.Topic {
		b = binary.AppendUvarint(b, uint64(p.Partition-m.Partitions[i-1].Partition))
	} else {
		b = append(b, 0)
		b = append(b, p.Topic[:]...)
		b = append(b, byte(len(p.TopicName)))
		b = append(b, p.TopicName...)
		b = binary.AppendUvarint(b, uint64(p.Partition))
	}
	b = binary.AppendUvarint(b, uint64(p.LogStartOffset))
	b = binary.AppendUvarint(b, uint64(p.End))
	if p.End == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(p.End-p.LastStable))
	b = binary.AppendUvarint(b, uint64(p.Cleaned))
	b = p.appendEpochs(b)
	b = p.appendExtents(b, m.CreatedMs, ends)
	return p.appendProducers(b, m.CreatedMs)
}

func (p *Partition) appendEpochs(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(p.Epochs)))
	var last EpochStart
	for _, e := range p.Epochs {
		b = binary.AppendUvarint(b, uint64(e.Epoch-last.Epoch))
		b = binary.AppendUvarint(b, uint64(e.Start-last.Start))
		last = e
	}
	return b
}

func (p *Partition) appendExtents(b []byte, createdMs int64, ends []int64) []byte {
	b = binary.AppendUvarint(b, uint64(len(p.Extents)))
	last := Extent{MaxTimestamp: createdMs}
	for _, e := range p.Extents {
		b = binary.AppendVarint(b, int64(e.Segment-last.Segment))
		b = binary.AppendUvarint(b, uint64(e.First-last.Next))
		b = binary.AppendUvarint(b, uint64(e.Next-e.First))
		b = binary.AppendUvarint(b, uint64(e.Pos-ends[e.Segment]))
		b = binary.AppendUvarint(b, uint64(e.Size))
		b = binary.AppendVarint(b, e.MaxTimestamp-last.MaxTimestamp)
		b = binary.AppendUvarint(b, uint64(e.Epoch-last.Epoch))
		ends[e.Segment] = e.Pos + e.Size
		last = e
	}
	return b
}

func (p *Partition) appendProducers(b []byte, createdMs int64) []byte {
	b = binary.AppendUvarint(b, uint64(len(p.Producers)))
	last := &Producer{UpdatedMs: createdMs}
	for i := range p.Producers {
		s := &p.Producers[i]
		flags := byte(len(s.Batches))
		if s.TxnFirst != protocol.NoOffset {
			flags |= producerTransaction
		}
		if s.CoordinatorEpoch != noCoordinatorEpoch {
			flags |= producerMarker
		}
		b = binary.AppendUvarint(b, uint64(s.ID-last.ID))
		b = append(b, flags)
		b = binary.AppendVarint(b, int64(s.Epoch))
		if flags&producerMarker != 0 {
			b = binary.AppendVarint(b, int64(s.CoordinatorEpoch))
		}
		if flags&producerTransaction != 0 {
			b = binary.AppendUvarint(b, uint64(p.End-1-s.TxnFirst))
		}
		b = binary.AppendVarint(b, s.UpdatedMs-last.UpdatedMs)
		b = binary.AppendVarint(b, s.TimestampMs-s.UpdatedMs)
		b = s.appendBatches(b, p.End)
		last = s
	}
	return b
}

// appendBatches encodes the batches, whose number is known already. The first is found from the end, to which it is nearer than to offset 0.
func (s *Producer) appendBatches(b []byte, end protocol.Offset) []byte {
	for i := range s.Batches {
		batch := &s.Batches[i]
		var sequence int64
		if i == 0 {
			b = binary.AppendUvarint(b, uint64(end-batch.BaseOffset))
		} else {
			last := &s.Batches[i-1]
			b = binary.AppendUvarint(b, uint64(batch.BaseOffset-last.next()))
			sequence = last.nextSequence()
		}
		b = binary.AppendUvarint(b, uint64(batch.Records))
		b = binary.AppendVarint(b, int64(batch.BaseSequence)-sequence)
	}
	return b
}
