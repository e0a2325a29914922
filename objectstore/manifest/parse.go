package manifest

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/fields"
)

// Parse reads a whole manifest. It keeps nothing of b. Errors wrap [ErrCorrupt] or [ErrVersion].
func Parse(b []byte) (*Manifest, error) {
	if len(b) < sizeMin || len(b) > BytesMax {
		return nil, fmt.Errorf("parse manifest: %w: %d bytes, want %d to %d", ErrCorrupt, len(b), sizeMin, BytesMax)
	}
	if string(b[:4]) != magic {
		return nil, fmt.Errorf("parse manifest: %w: magic %q, want %q", ErrCorrupt, b[:4], magic)
	}
	if b[4] != Version {
		return nil, fmt.Errorf("parse manifest: %w: %d, want %d", ErrVersion, b[4], Version)
	}
	body, sum := b[:len(b)-checksumSize], binary.BigEndian.Uint32(b[len(b)-checksumSize:])
	if got := crc32c.Checksum(body); got != sum {
		return nil, fmt.Errorf("parse manifest: %w: CRC32C %08x, want %08x", ErrCorrupt, got, sum)
	}
	m := &Manifest{
		Shard:      binary.BigEndian.Uint32(b[24:]),
		Epoch:      protocol.LeaderEpoch(binary.BigEndian.Uint32(b[28:])),
		Generation: binary.BigEndian.Uint64(b[32:]),
		CreatedMs:  int64(binary.BigEndian.Uint64(b[40:])),
	}
	copy(m.Cluster[:], b[8:])
	d := decoder{Reader: fields.NewReader(body[headerSize:]), m: m, epochs: EpochsMax, extents: ExtentsMax, producers: ProducersMax}
	d.readSegments()
	d.readPartitions()
	if d.Bad() || d.Left() > 0 {
		return nil, fmt.Errorf("parse manifest: %s: %w: bad entries, or %d bytes after them", m.Name(), ErrCorrupt, d.Left())
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("parse manifest: %s: %w: %w", m.Name(), ErrCorrupt, err)
	}
	return m, nil
}

// decoder reads what follows the header into m. What it reads overflows nothing and is within the limits; check has the rest.
type decoder struct {
	fields.Reader
	m *Manifest

	ends                       []int64         // where the last extent of each segment ended
	epochs, extents, producers int             // how many more the limits allow
	batches                    []ProducerBatch // room for the next ones: most producers have few, and an allocation each would cost more than they do
}

// count reads how many entries follow, of at least entryMin bytes each: no more than most, and than fit into what is left.
func (d *decoder) count(most, entryMin int) int {
	return int(d.UvarintMax(uint64(min(most, d.Left()/entryMin))))
}

// offset reads an offset as its distance from one before it.
func (d *decoder) offset(from protocol.Offset) protocol.Offset {
	return from + protocol.Offset(d.UvarintMax(uint64(math.MaxInt64-from)))
}

// offsetBefore reads an offset as its distance from one after it.
func (d *decoder) offsetBefore(end protocol.Offset) protocol.Offset {
	return end - protocol.Offset(d.UvarintMax(uint64(end)))
}

// epoch reads a leader epoch as its distance from an older one.
func (d *decoder) epoch(from protocol.LeaderEpoch) protocol.LeaderEpoch {
	return from + protocol.LeaderEpoch(d.UvarintMax(uint64(math.MaxInt32-from)))
}

// within reads a number as its distance from another one, and fails unless it is in the range.
func (d *decoder) within(from, least, most int64) int64 {
	v := d.Varint()
	// The difference cannot overflow: from is not negative, and least is not below the smallest int32.
	if v < least-from || v > most-from {
		d.Fail()
		return 0
	}
	return from + v
}

func (d *decoder) readSegments() {
	n := d.count(SegmentsMax, segmentMin)
	if n == 0 {
		return
	}
	d.m.Segments = make([]Segment, n)
	d.ends = dataStarts(n)
	last := Segment{CreatedMs: d.m.CreatedMs}
	for i := range d.m.Segments {
		s := &d.m.Segments[i]
		s.Epoch = d.epoch(last.Epoch)
		if s.Epoch != last.Epoch {
			last.Number = 0
		}
		s.Number = last.Number + d.UvarintMax(math.MaxUint64-last.Number)
		s.FooterPos = int64(d.UvarintMax(math.MaxInt64))
		s.Size = s.FooterPos + int64(d.UvarintMax(uint64(math.MaxInt64-s.FooterPos)))
		s.CreatedMs = last.CreatedMs + d.Varint()
		last = *s
	}
}

func (d *decoder) readPartitions() {
	n := d.count(PartitionsMax, partitionMin)
	if n == 0 {
		return
	}
	d.m.Partitions = make([]Partition, n)
	last := &Partition{}
	for i := range d.m.Partitions {
		p := &d.m.Partitions[i]
		switch step := int32(d.UvarintMax(uint64(math.MaxInt32 - last.Partition))); {
		case step == 0:
			copy(p.Topic[:], d.Take(len(p.Topic)))
			p.TopicName = string(d.Take(int(d.Byte())))
			p.Partition = int32(d.UvarintMax(math.MaxInt32))
		case i > 0:
			p.Topic, p.TopicName, p.Partition = last.Topic, last.TopicName, last.Partition+step
		default:
			d.Fail()
		}
		p.LogStartOffset = d.offset(0)
		p.End = d.offset(0)
		if p.End > 0 {
			p.LastStable = d.offsetBefore(p.End)
			p.Cleaned = protocol.Offset(d.UvarintMax(uint64(p.End)))
			d.readEpochs(p)
			d.readExtents(p)
			d.readProducers(p)
		}
		if d.Bad() {
			return
		}
		last = p
	}
}

func (d *decoder) readEpochs(p *Partition) {
	n := d.count(d.epochs, epochMin)
	if n == 0 {
		return
	}
	d.epochs -= n
	p.Epochs = make([]EpochStart, n)
	var last EpochStart
	for i := range p.Epochs {
		last = EpochStart{Epoch: d.epoch(last.Epoch), Start: d.offset(last.Start)}
		p.Epochs[i] = last
	}
}

func (d *decoder) readExtents(p *Partition) {
	n := d.count(d.extents, extentMin)
	if n == 0 {
		return
	}
	d.extents -= n
	p.Extents = make([]Extent, n)
	last := &Extent{MaxTimestamp: d.m.CreatedMs}
	for i := range p.Extents {
		e := &p.Extents[i]
		e.Segment = int32(d.within(int64(last.Segment), 0, int64(len(d.ends)-1)))
		if d.Bad() {
			return
		}
		e.First = d.offset(last.Next)
		e.Next = d.offset(e.First)
		end := &d.ends[e.Segment]
		e.Pos = *end + int64(d.UvarintMax(uint64(math.MaxInt64-*end)))
		e.Size = int64(d.UvarintMax(uint64(math.MaxInt64 - e.Pos)))
		e.MaxTimestamp = last.MaxTimestamp + d.Varint()
		e.Epoch = d.epoch(last.Epoch)
		*end = e.Pos + e.Size
		last = e
	}
}

func (d *decoder) readProducers(p *Partition) {
	n := d.count(d.producers, producerMin)
	if n == 0 {
		return
	}
	d.producers -= n
	p.Producers = make([]Producer, n)
	last := &Producer{UpdatedMs: d.m.CreatedMs}
	for i := range p.Producers {
		s := &p.Producers[i]
		s.ID = last.ID + protocol.ProducerID(d.UvarintMax(uint64(math.MaxInt64-last.ID)))
		flags := d.Byte()
		batches := int(flags & producerBatches)
		if flags&^(producerBatches|producerTransaction|producerMarker) != 0 || batches > BatchesMax {
			d.Fail()
			return
		}
		s.Epoch = protocol.ProducerEpoch(d.within(0, math.MinInt16, math.MaxInt16))
		s.CoordinatorEpoch, s.TxnFirst = noCoordinatorEpoch, protocol.NoOffset
		if flags&producerMarker != 0 {
			s.CoordinatorEpoch = int32(d.within(0, math.MinInt32, math.MaxInt32))
		}
		if flags&producerTransaction != 0 {
			s.TxnFirst = d.offsetBefore(p.End - 1)
		}
		s.UpdatedMs = last.UpdatedMs + d.Varint()
		s.TimestampMs = s.UpdatedMs + d.Varint()
		d.readBatches(s, batches, p.End)
		last = s
	}
}

// batchesRoom is for how many batches of producers the decoder allocates at a time.
const batchesRoom = 1024

func (d *decoder) readBatches(s *Producer, n int, end protocol.Offset) {
	if n == 0 {
		return
	}
	if len(d.batches) < n {
		d.batches = make([]ProducerBatch, batchesRoom)
	}
	s.Batches, d.batches = d.batches[:n:n], d.batches[n:]
	for i := range s.Batches {
		b := &s.Batches[i]
		var sequence int64
		if i == 0 {
			b.BaseOffset = d.offsetBefore(end)
		} else {
			last := &s.Batches[i-1]
			b.BaseOffset = last.next() + protocol.Offset(d.UvarintMax(uint64(end-last.next())))
			sequence = last.nextSequence()
		}
		b.Records = int32(d.UvarintMax(uint64(min(math.MaxInt32, end-b.BaseOffset))))
		b.BaseSequence = int32(d.within(sequence, 0, math.MaxInt32))
	}
}
