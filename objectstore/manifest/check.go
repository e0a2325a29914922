package manifest

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// check tells what is wrong with the manifest, if anything. A writer writes nothing, and a reader believes nothing, that it refuses.
func (m *Manifest) check() error {
	if m.Epoch < 0 || len(m.Segments) > SegmentsMax || len(m.Partitions) > PartitionsMax {
		return fmt.Errorf("epoch %d, %d segments, %d partitions, want %d and %d at most", m.Epoch, len(m.Segments), len(m.Partitions), SegmentsMax, PartitionsMax)
	}
	for i := range m.Segments {
		if err := m.checkSegment(i); err != nil {
			return err
		}
	}
	ends := dataStarts(len(m.Segments))
	var epochs, extents, producers int
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if err := m.checkPartition(i, ends); err != nil {
			return fmt.Errorf("topic %q partition %d: %w", p.TopicName, p.Partition, err)
		}
		epochs, extents, producers = epochs+len(p.Epochs), extents+len(p.Extents), producers+len(p.Producers)
	}
	if epochs > EpochsMax || extents > ExtentsMax || producers > ProducersMax {
		return fmt.Errorf("%d epochs, %d extents, %d producers, want %d, %d and %d at most", epochs, extents, producers, EpochsMax, ExtentsMax, ProducersMax)
	}
	for i, end := range ends {
		if end == segment.HeaderSize {
			return fmt.Errorf("segment %s has no extent", m.Segments[i].Name(m.Shard))
		}
	}
	return nil
}

// dataStarts returns where the data of n segments begins. On a walk over all extents it becomes where the last one of each segment ends.
func dataStarts(n int) []int64 {
	starts := make([]int64, n)
	for i := range starts {
		starts[i] = segment.HeaderSize
	}
	return starts
}

func (m *Manifest) checkSegment(i int) error {
	s := &m.Segments[i]
	if s.Epoch < 0 || s.FooterPos <= segment.HeaderSize || s.FooterPos >= s.Size {
		return fmt.Errorf("segment %s: epoch %d, footer at byte %d of %d", s.Name(m.Shard), s.Epoch, s.FooterPos, s.Size)
	}
	if i > 0 {
		if prev := &m.Segments[i-1]; cmp.Or(cmp.Compare(prev.Epoch, s.Epoch), cmp.Compare(prev.Number, s.Number)) >= 0 {
			return fmt.Errorf("segment %s: out of order or twice", s.Name(m.Shard))
		}
	}
	return nil
}

// checkPartition checks the partition at i, and moves ends past its extents.
func (m *Manifest) checkPartition(i int, ends []int64) error {
	p := &m.Partitions[i]
	if p.Partition < 0 || p.LogStartOffset < 0 || p.LastStable < 0 || p.LastStable > p.End || p.Cleaned < 0 || p.Cleaned > p.End {
		return fmt.Errorf("log start offset %d, last stable offset %d, cleaned up to %d, end %d", p.LogStartOffset, p.LastStable, p.Cleaned, p.End)
	}
	if p.End == 0 && len(p.Producers) > 0 {
		return fmt.Errorf("%d producers without records", len(p.Producers))
	}
	if err := protocol.ValidateTopicName(p.TopicName); err != nil {
		return err
	}
	if i > 0 {
		prev := &m.Partitions[i-1]
		if prev.compare(p.Topic, p.Partition) >= 0 {
			return errors.New("out of order or twice")
		}
		if prev.Topic == p.Topic && prev.TopicName != p.TopicName {
			return fmt.Errorf("topic %s is %q too", p.Topic, prev.TopicName)
		}
	}
	if err := p.checkEpochs(); err != nil {
		return err
	}
	if err := p.checkExtents(m.Segments, ends); err != nil {
		return err
	}
	return p.checkProducers()
}

func (p *Partition) checkEpochs() error {
	last := EpochStart{Epoch: protocol.NoLeaderEpoch, Start: -1}
	for _, e := range p.Epochs {
		if e.Epoch <= last.Epoch || e.Start <= last.Start || e.Start >= p.End {
			return fmt.Errorf("epoch %d from %d after epoch %d from %d, end %d", e.Epoch, e.Start, last.Epoch, last.Start, p.End)
		}
		last = e
	}
	return nil
}

func (p *Partition) checkExtents(segments []Segment, ends []int64) error {
	var last Extent
	for _, e := range p.Extents {
		if e.First < last.Next || e.Next <= e.First || e.Next > p.End || e.Epoch < last.Epoch {
			return fmt.Errorf("extent [%d, %d) of epoch %d after [%d, %d) of epoch %d, end %d", e.First, e.Next, e.Epoch, last.First, last.Next, last.Epoch, p.End)
		}
		if e.Segment < 0 || int(e.Segment) >= len(segments) {
			return fmt.Errorf("extent [%d, %d) in segment %d of %d", e.First, e.Next, e.Segment, len(segments))
		}
		// Sections stand in the order of partitions, so that their extents cannot be the same bytes.
		begin, end := ends[e.Segment], segments[e.Segment].FooterPos
		if e.Pos < begin || e.Size <= 0 || e.Size > end-e.Pos {
			return fmt.Errorf("extent [%d, %d) of %d bytes at byte %d of segment %d, want within %d to %d", e.First, e.Next, e.Size, e.Pos, e.Segment, begin, end)
		}
		ends[e.Segment] = e.Pos + e.Size
		last = e
	}
	return nil
}

func (p *Partition) checkProducers() error {
	last := protocol.NoProducerID
	for i := range p.Producers {
		s := &p.Producers[i]
		if s.ID <= last || s.TxnFirst < protocol.NoOffset || s.TxnFirst >= p.End || len(s.Batches) > BatchesMax {
			return fmt.Errorf("producer %d after %d: transaction from %d, %d batches, end %d", s.ID, last, s.TxnFirst, len(s.Batches), p.End)
		}
		last = s.ID
		var next protocol.Offset
		for _, b := range s.Batches {
			if b.BaseSequence < 0 || b.Records <= 0 || b.BaseOffset < next || b.BaseOffset > p.End-protocol.Offset(b.Records) {
				return fmt.Errorf("producer %d: batch of %d records at sequence %d, offset %d, want from %d to %d", s.ID, b.Records, b.BaseSequence, b.BaseOffset, next, p.End)
			}
			next = b.next()
		}
	}
	return nil
}
