package segment

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Builder makes a segment of batches that come in any order of partitions, and in offset order within each. It copies no
// batch: it keeps the slices it is given until [Builder.Reset]. The zero Builder is empty and ready; one that is reset
// and used again allocates only the header and footer of each segment. It is not safe for concurrent use.
//
// What it keeps across resets is proportional to the most batches that a segment had, about 75 bytes each.
type Builder struct {
	sections []building
	byKey    map[Key]int32
	recent   int32 // section of the last Add: runs of one partition skip the map
	topics   []topic
	byTopic  map[protocol.TopicID]int32

	// All batches in the order of Add; those of one section are linked. Flat lists, so that the memory that stays
	// is that of the largest segment and not the sum over sections of each one's largest.
	batches []queued
	index   []byte // their encoded index entries

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
	head, tail  int32 // in Builder.batches
	indexBytes  int
	stableIsSet bool
}

// topic is an entry of the footer's topic table.
type topic struct {
	id     protocol.TopicID
	name   string
	number int // in the table; -1 while it has no place
}

// queued is a batch that waits for Finish.
type queued struct {
	data      []byte
	indexFrom uint32 // its entry in Builder.index
	indexTo   uint32
	next      int32 // next batch of its section; -1 for none
}

// Upper bounds of what a section, a topic and the rest take in the footer, in bytes.
const (
	footerFixedMax  = HeaderSize + 5 + 5 + TrailerSize
	sectionEntryMax = 5 + 5 + 5 + 10 + 10 + 10 + 10 + 10 + 5 + 5 + 5 + 10 + 4
	topicEntryMax   = 16 + 2 + protocol.TopicNameLengthMax
)

// Add appends a batch, complete and with its final base offset and leader epoch, to the section of key. The builder keeps the
// slice and its bytes until Reset; they must not change. The batch's own checksum must have been checked. The name is the topic's.
//
// It fails with [ErrGap] if the batch's base offset is not the next one of the section, or its leader epoch is
// below that of the batch before, and with [ErrFull] at a limit of the format. After an error the builder is as it was.
func (b *Builder) Add(key Key, topicName string, data []byte) error {
	added, err := describe(data)
	if err != nil {
		return fmt.Errorf("add to segment: topic %q partition %d: %w", topicName, key.Partition, err)
	}
	if b.dataBytes+int64(len(data)) > DataBytesMax || !b.fits(indexEntryMax) {
		return ErrFull
	}
	at, err := b.section(key, topicName, &added)
	if err != nil {
		return err
	}
	s := &b.sections[at]
	if s.Batches == BatchesMax {
		return ErrFull
	}
	if added.Offset != s.NextOffset || added.LeaderEpoch < s.LeaderEpoch {
		return fmt.Errorf("add to segment: topic %q partition %d: %w: offset %d of leader epoch %d, want %d of %d or later",
			topicName, key.Partition, ErrGap, added.Offset, added.LeaderEpoch, s.NextOffset, s.LeaderEpoch)
	}

	from := len(b.index)
	b.index = s.coding.append(b.index, &added)
	s.indexBytes += len(b.index) - from
	n := int32(len(b.batches))
	b.batches = append(b.batches, queued{data: data, indexFrom: uint32(from), indexTo: uint32(len(b.index)), next: -1})
	if s.Batches == 0 {
		s.head = n
	} else {
		b.batches[s.tail].next = n
	}
	s.tail = n
	b.dataBytes += int64(len(data))

	s.Batches++
	s.Size += int64(len(data))
	s.NextOffset = added.Next()
	s.LeaderEpoch = added.LeaderEpoch
	s.MaxTimestamp = max(s.MaxTimestamp, added.MaxTimestamp)
	s.CRC = crc32c.Extend(s.CRC, data, batch.Summed(data))
	return nil
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
	if len(b.sections) == SectionsMax || !b.fits(indexEntryMax+sectionEntryMax+topicEntryMax) {
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

// Bytes returns the size of the batches that were added.
func (b *Builder) Bytes() int64 { return b.dataBytes }

// Finish returns the segment as slices that stand one after the other: the header, every batch, the footer. They are good until
// Reset. The footer is what [ParseFooter] makes of the bytes that were written, and is independent of the builder.
// A segment without batches is an error. Finish may be called again, with another header, for another attempt; that
// voids the parts returned before.
func (b *Builder) Finish(h Header) (parts [][]byte, footer *Footer, err error) {
	if len(b.batches) == 0 {
		return nil, nil, fmt.Errorf("finish segment %s: no batches", h.ID.Name())
	}
	b.order = b.order[:0]
	for i := range b.sections {
		s := &b.sections[i]
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
		for n := b.sections[at].head; n >= 0; n = b.batches[n].next {
			b.parts = append(b.parts, b.batches[n].data)
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
		dst = s.appendEntry(dst, shard, b.topics[s.topic].number, s.indexBytes)
		shard = s.Shard
	}
	for _, at := range b.order {
		for n := b.sections[at].head; n >= 0; n = b.batches[n].next {
			dst = append(dst, b.index[b.batches[n].indexFrom:b.batches[n].indexTo]...)
		}
	}
	return appendTrailer(dst, dst[start:], HeaderSize+b.dataBytes)
}

// Reset empties the builder and lets go of the batches. What Finish returned as parts is void.
func (b *Builder) Reset() {
	clear(b.sections)
	clear(b.topics)
	clear(b.batches)
	clear(b.parts)
	clear(b.byKey)
	clear(b.byTopic)
	b.sections, b.topics, b.batches, b.parts = b.sections[:0], b.topics[:0], b.batches[:0], b.parts[:0]
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
