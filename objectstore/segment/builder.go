package segment

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Builder makes a segment of batches that come in any order of partitions, and in offset order within each. It copies no
// batch: it keeps the slices it is given until [Builder.Reset]. The zero Builder is empty and ready for level 0; one that is reset
// and used again allocates only the header and footer of each segment. It is not safe for concurrent use.
//
// What it keeps across resets is proportional to the most batches that a segment had: the bytes of their index entries, and 64 bytes
// for each run of batches. A run is batches of a section that are added one after the other and stand so in memory too, as those of one read
// of a merge do; so a segment of millions of tiny batches is cheap, and Finish returns it in few parts.
type Builder struct {
	// Level is that of the segment. It may be set while the builder is empty, and stays as it is over Reset.
	Level uint8

	sections []building
	byKey    map[Key]int32
	recent   int32 // section of the last Add: runs of one partition skip the map
	topics   []topic
	byTopic  map[protocol.TopicID]int32

	// All runs of batches in the order of Add; those of one section are linked. Flat lists, so that the memory that stays
	// is that of the largest segment and not the sum over sections of each one's largest.
	runs  []run
	index []byte // the encoded index entries of their batches

	dataBytes    int64
	catalogBytes int // upper bound of the footer without batch indexes

	order []int32
	parts [][]byte
}

// building is a section that grows.
type building struct {
	Section
	topic       int32 // in Builder.topics
	coding      coding
	head, tail  int32           // in Builder.runs
	begin, end  protocol.Offset // of its batches: the first offset, and the one after the last
	indexBytes  int             // without the gap before the first batch
	stableIsSet bool
}

// topic is an entry of the footer's topic table.
type topic struct {
	id     protocol.TopicID
	name   string
	number int // in the table; -1 while it has no place
}

// run is batches that wait for Finish, one after the other in their section and in memory.
type run struct {
	data      []byte
	indexFrom uint32 // their entries in Builder.index
	indexTo   uint32
	next      int32 // next run of the section; -1 for none
}

// extend takes in a batch that stands right behind the run in memory. It reports whether it does.
func (r *run) extend(data []byte) bool {
	n := len(r.data)
	if cap(r.data)-n < len(data) || &r.data[:n+1][n] != &data[0] {
		return false
	}
	r.data = r.data[:n+len(data)]
	return true
}

// Upper bounds of what a section, a topic and the rest take in the footer, in bytes.
const (
	footerFixedMax  = HeaderSize + 5 + 5 + TrailerSize
	sectionEntryMax = 5 + 5 + 5 + 10 + 10 + 10 + 10 + 10 + 5 + 5 + 5 + 10 + 4 + gapMax // the gap before its first batch
	batchEntryMax   = gapMax + indexEntryMax
	topicEntryMax   = 16 + 2 + protocol.TopicNameLengthMax

	// AddedBytesMax is what a batch adds to the footer at most: its entry in the index, its section's and its topic's.
	AddedBytesMax = batchEntryMax + sectionEntryMax + topicEntryMax
)

// Add appends a batch, complete and with its final base offset and leader epoch, to the section of key. The builder keeps the
// slice and its bytes until Reset; they must not change. The batch's own checksum must have been checked. The name is the topic's.
//
// It fails with [ErrGap] if the batch's base offset is not the one after the section's batch before (in level 1: is below it), or its leader
// epoch is below that batch's, and with [ErrFull] at a limit of the format. After an error the builder is as it was.
func (b *Builder) Add(key Key, topicName string, data []byte) error {
	added, err := describe(data)
	if err != nil {
		return fmt.Errorf("add to segment: topic %q partition %d: %w", topicName, key.Partition, err)
	}
	if b.dataBytes+int64(len(data)) > DataBytesMax || !b.fits(batchEntryMax) {
		return ErrFull
	}
	at, err := b.section(key, topicName, &added)
	if err != nil {
		return err
	}
	s := &b.sections[at]
	if added.Offset < s.end || added.Offset > s.end && b.Level == Flushed || added.LeaderEpoch < s.LeaderEpoch {
		return fmt.Errorf("add to segment: topic %q partition %d: %w: offset %d of leader epoch %d, want %d of %d or later",
			topicName, key.Partition, ErrGap, added.Offset, added.LeaderEpoch, s.end, s.LeaderEpoch)
	}
	b.enqueue(s, &added, data)

	s.Batches++
	s.Size += int64(len(data))
	s.end = added.Next()
	s.NextOffset = max(s.NextOffset, s.end)
	s.LeaderEpoch = added.LeaderEpoch
	s.MaxTimestamp = max(s.MaxTimestamp, added.MaxTimestamp)
	s.CRC = crc32c.Extend(s.CRC, data, batch.Summed(data))
	return nil
}

// enqueue puts the next batch of s into the section's last run, or into one of its own, and its entry into the index.
func (b *Builder) enqueue(s *building, added *Batch, data []byte) {
	from := len(b.index)
	if b.Level == Merged && s.Batches > 0 {
		b.index = binary.AppendUvarint(b.index, uint64(added.Offset-s.end))
	}
	b.index = s.coding.append(b.index, added)
	s.indexBytes += len(b.index) - from
	b.dataBytes += int64(len(data))

	n := int32(len(b.runs))
	if s.Batches > 0 && s.tail == n-1 && b.runs[s.tail].extend(data) {
		b.runs[s.tail].indexTo = uint32(len(b.index))
		return
	}
	b.runs = append(b.runs, run{data: data, indexFrom: uint32(from), indexTo: uint32(len(b.index)), next: -1})
	if s.Batches == 0 {
		s.head = n
	} else {
		b.runs[s.tail].next = n
	}
	s.tail = n
}

// fits reports whether the footer surely stays within its limit with that many more bytes.
func (b *Builder) fits(more int) bool {
	return footerFixedMax+b.catalogBytes+len(b.index)+more <= FooterBytesMax
}

func (b *Builder) find(key Key) (at int32, ok bool) {
	if int(b.recent) < len(b.sections) && b.sections[b.recent].Key == key {
		return b.recent, true
	}
	at, ok = b.byKey[key]
	return at, ok
}

// section finds the section of key, or opens it for its first batch.
func (b *Builder) section(key Key, topicName string, first *Batch) (int32, error) {
	if at, ok := b.find(key); ok {
		b.recent = at
		return at, nil
	}
	if key.Partition < 0 {
		return 0, fmt.Errorf("add to segment: topic %q: partition %d", topicName, key.Partition)
	}
	if len(b.sections) == SectionsMax || !b.fits(AddedBytesMax) {
		return 0, ErrFull
	}
	t, err := b.topic(key.Topic, topicName)
	if err != nil {
		return 0, err
	}
	at := int32(len(b.sections))
	b.sections = append(b.sections, building{
		Section: Section{
			Key: key, TopicName: topicName,
			FirstOffset: first.Offset, NextOffset: first.Offset,
			MaxTimestamp: first.MaxTimestamp, FirstEpoch: first.LeaderEpoch, LeaderEpoch: first.LeaderEpoch,
		},
		topic:  t,
		coding: coding{epoch: first.LeaderEpoch},
		begin:  first.Offset, end: first.Offset,
	})
	if b.byKey == nil {
		b.byKey = make(map[Key]int32)
	}
	b.byKey[key] = at
	b.recent = at
	b.catalogBytes += sectionEntryMax
	return at, nil
}

// topic finds the topic, or takes it in.
func (b *Builder) topic(id protocol.TopicID, name string) (int32, error) {
	if at, ok := b.byTopic[id]; ok {
		if b.topics[at].name != name {
			return 0, fmt.Errorf("add to segment: topic %s is named %q and %q", id, b.topics[at].name, name)
		}
		return at, nil
	}
	if err := protocol.ValidateTopicName(name); err != nil {
		return 0, fmt.Errorf("add to segment: topic %s: %w", id, err)
	}
	at := int32(len(b.topics))
	b.topics = append(b.topics, topic{id: id, name: name})
	if b.byTopic == nil {
		b.byTopic = make(map[protocol.TopicID]int32)
	}
	b.byTopic[id] = at
	b.catalogBytes += topicEntryMax
	return at, nil
}

// SetLastStable records the last stable offset of a section as of its end. Without it a section has no open
// transaction at its end: its last stable offset is its next offset. It may be set again, as the section grows.
func (b *Builder) SetLastStable(key Key, offset protocol.Offset) error {
	at, ok := b.find(key)
	if !ok {
		return fmt.Errorf("set last stable offset: no section for shard %d topic %s partition %d", key.Shard, key.Topic, key.Partition)
	}
	if offset < 0 {
		return fmt.Errorf("set last stable offset: topic %s partition %d: %d", key.Topic, key.Partition, offset)
	}
	b.sections[at].LastStable, b.sections[at].stableIsSet = offset, true
	return nil
}

// Cover widens a section of level 1 to the offsets from first to next, without next itself: what of them is not in its batches is known to have none.
// The section must have a batch. It does not shrink: what the section covers already, it goes on to cover. Batches may be added to it as before.
func (b *Builder) Cover(key Key, first, next protocol.Offset) error {
	at, ok := b.find(key)
	if !ok || b.Level != Merged || first < 0 || first > next {
		return fmt.Errorf("cover offsets [%d,%d) in a segment of level %d: shard %d topic %s partition %d, which has a section: %t",
			first, next, b.Level, key.Shard, key.Topic, key.Partition, ok)
	}
	s := &b.sections[at]
	s.FirstOffset, s.NextOffset = min(s.FirstOffset, first), max(s.NextOffset, next)
	return nil
}

// Bytes returns the size of the batches that were added.
func (b *Builder) Bytes() int64 { return b.dataBytes }

// ObjectBytes returns what the object takes at most, footer included. It grows with Add by the batch's size and [AddedBytesMax] at most.
func (b *Builder) ObjectBytes() int64 {
	return HeaderSize + b.dataBytes + int64(footerFixedMax+b.catalogBytes+len(b.index))
}

// Finish returns the segment as slices that stand one after the other: the header, the batches, the footer. They are good until
// Reset. The footer is what [ParseFooter] makes of the bytes that were written, and is independent of the builder.
// A segment without batches is an error, as is a header of another level than the builder's, and in level 1 a section of another shard than the header's.
// Finish may be called again, with another header, for another attempt; that
// voids the parts returned before.
func (b *Builder) Finish(h Header) (parts [][]byte, footer *Footer, err error) {
	if len(b.runs) == 0 && b.Level != Flushed {
		return nil, nil, fmt.Errorf("finish segment %s: no batches", h.ID.Name())
	}
	if h.ID.Level != b.Level || !h.valid() {
		return nil, nil, fmt.Errorf("finish segment of level %d: header %+v", b.Level, h)
	}
	b.order = b.order[:0]
	for i := range b.sections {
		s := &b.sections[i]
		if !h.ID.holds(s.Shard) {
			return nil, nil, fmt.Errorf("finish segment %s: topic %q partition %d is of shard %d", h.ID.Name(), s.TopicName, s.Partition, s.Shard)
		}
		if !s.stableIsSet {
			s.LastStable = s.NextOffset
		}
		if s.LastStable > s.NextOffset {
			return nil, nil, fmt.Errorf("finish segment %s: topic %q partition %d: last stable offset %d is past the end %d",
				h.ID.Name(), s.TopicName, s.Partition, s.LastStable, s.NextOffset)
		}
		b.order = append(b.order, int32(i))
	}
	slices.SortFunc(b.order, func(x, y int32) int { return b.sections[x].Compare(b.sections[y].Key) })

	header := h.append(make([]byte, 0, HeaderSize))
	foot := b.appendFooter(make([]byte, 0, footerFixedMax+b.catalogBytes+len(b.index)), header)
	footer, err = ParseFooter(foot)
	if err != nil {
		return nil, nil, fmt.Errorf("finish segment: read back: %w", err)
	}

	b.parts = append(b.parts[:0], header)
	for _, at := range b.order {
		for n := b.sections[at].head; n >= 0; n = b.runs[n].next {
			b.parts = append(b.parts, b.runs[n].data)
		}
	}
	b.parts = append(b.parts, foot)
	return b.parts, footer, nil
}

// appendFooter encodes the footer of the sections in b.order.
func (b *Builder) appendFooter(dst, header []byte) []byte {
	start := len(dst)
	dst = append(dst, header...)

	dst = binary.AppendUvarint(dst, uint64(len(b.topics)))
	for i := range b.topics {
		b.topics[i].number = -1
	}
	number := 0
	for _, at := range b.order { // topics in the order of sections: the bytes depend on the content alone
		t := &b.topics[b.sections[at].topic]
		if t.number >= 0 {
			continue
		}
		t.number = number
		number++
		dst = append(dst, t.id[:]...)
		dst = binary.AppendUvarint(dst, uint64(len(t.name)))
		dst = append(dst, t.name...)
	}

	dst = binary.AppendUvarint(dst, uint64(len(b.sections)))
	var shard uint32
	for _, at := range b.order {
		s := &b.sections[at]
		indexBytes := s.indexBytes
		if b.Level == Merged {
			indexBytes += uvarintSize(s.leading())
		}
		dst = s.appendEntry(dst, shard, b.topics[s.topic].number, indexBytes)
		shard = s.Shard
	}
	for _, at := range b.order {
		s := &b.sections[at]
		if b.Level == Merged {
			dst = binary.AppendUvarint(dst, s.leading())
		}
		for n := s.head; n >= 0; n = b.runs[n].next {
			dst = append(dst, b.index[b.runs[n].indexFrom:b.runs[n].indexTo]...)
		}
	}
	return appendTrailer(dst, dst[start:], b.Level, HeaderSize+b.dataBytes)
}

// leading returns the gap before the first batch, which opens the index of level 1. It is not known before Finish, as Cover may widen it.
func (s *building) leading() uint64 { return uint64(s.begin - s.FirstOffset) }

// uvarintSize returns how many bytes v takes.
func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// Reset empties the builder and lets go of the batches. What Finish returned as parts is void.
func (b *Builder) Reset() {
	clear(b.sections)
	clear(b.topics)
	clear(b.runs)
	clear(b.parts)
	clear(b.byKey)
	clear(b.byTopic)
	b.sections, b.topics, b.runs, b.parts = b.sections[:0], b.topics[:0], b.runs[:0], b.parts[:0]
	b.index = b.index[:0]
	b.recent, b.dataBytes, b.catalogBytes = 0, 0, 0
}

// Compare orders keys as sections are: by shard, topic id, partition.
func (k Key) Compare(other Key) int {
	return cmp.Or(
		cmp.Compare(k.Shard, other.Shard),
		slices.Compare(k.Topic[:], other.Topic[:]),
		cmp.Compare(k.Partition, other.Partition),
	)
}
