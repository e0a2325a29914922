package segment

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/fields"
)

// Footer is the index of a segment. It is never changed and may be read concurrently.
type Footer struct {
	Header     Header
	Pos        int64     // where the footer begins in the object
	ObjectSize int64     // of the whole segment; the footer ends there
	Sections   []Section // ascending by Key; at least one, in one that is committed or merged

	memory int64
}

// Bytes of memory that a decoded section takes, and a place in its index; TestMemoryBytes holds them to about that.
const (
	sectionMemory = 168
	markMemory    = 160
)

// MemoryBytes returns how much memory the footer takes: its encoded bytes, in which the batch indexes are, and what was decoded of the rest. Of many small sections that is several times what is encoded.
func (f *Footer) MemoryBytes() int64 { return f.memory }

// Find returns the section of key, or nil.
func (f *Footer) Find(key Key) *Section {
	at, ok := slices.BinarySearchFunc(f.Sections, key, func(s Section, k Key) int { return s.Compare(k) })
	if !ok {
		return nil
	}
	return &f.Sections[at]
}

// appendTrailer closes a segment whose footer (without trailer) starts at pos in the object.
func appendTrailer(dst, footer []byte, level uint8, pos int64) []byte {
	sum := checksum(footer)
	size := uint64(len(footer))
	start := len(dst)
	dst = binary.BigEndian.AppendUint64(dst, uint64(pos))
	dst = binary.BigEndian.AppendUint64(dst, size)
	dst = binary.BigEndian.AppendUint32(dst, sum)
	dst = append(dst, Version, level, 0, 0)
	dst = append(dst, magic...)
	return binary.BigEndian.AppendUint32(dst, checksum(dst[start:]))
}

// trailer is what the last bytes of a segment say.
type trailer struct {
	pos   int64 // of the footer
	size  int64 // of the footer, without the trailer
	sum   uint32
	level uint8
}

func parseTrailer(b []byte) (trailer, error) {
	if len(b) < TrailerSize {
		return trailer{}, fmt.Errorf("parse segment trailer: %w: %d bytes, want %d", ErrCorrupt, len(b), TrailerSize)
	}
	b = b[len(b)-TrailerSize:]
	if string(b[24:28]) != magic {
		return trailer{}, fmt.Errorf("parse segment trailer: %w: magic %q, want %q", ErrCorrupt, b[24:28], magic)
	}
	if b[20] != Version || b[21] > Merged {
		return trailer{}, fmt.Errorf("parse segment trailer: %w: version %d level %d, want %d and %d at most", ErrVersion, b[20], b[21], Version, Merged)
	}
	if got, want := checksum(b[:28]), binary.BigEndian.Uint32(b[28:]); got != want {
		return trailer{}, fmt.Errorf("parse segment trailer: %w: CRC32C %08x, want %08x", ErrCorrupt, got, want)
	}
	t := trailer{
		pos:   int64(binary.BigEndian.Uint64(b)),
		size:  int64(binary.BigEndian.Uint64(b[8:])),
		sum:   binary.BigEndian.Uint32(b[16:]),
		level: b[21],
	}
	if t.pos < HeaderSize || t.pos > HeaderSize+DataBytesMax || t.size < HeaderSize || t.size > FooterBytesMax-TrailerSize {
		return trailer{}, fmt.Errorf("parse segment trailer: %w: footer of %d bytes at byte %d", ErrCorrupt, t.size, t.pos)
	}
	return t, nil
}

// ParseTrailer reads the last bytes of an object of a known size, [TrailerSize] or more of them, and returns where
// its footer begins: [ParseFooter] wants the bytes from there to the object's end.
func ParseTrailer(tail []byte, objectSize int64) (footerPos int64, err error) {
	t, err := parseTrailer(tail)
	if err != nil {
		return 0, err
	}
	if end := t.pos + t.size + TrailerSize; end != objectSize {
		return 0, fmt.Errorf("parse segment trailer: %w: object of %d bytes, want %d", ErrCorrupt, objectSize, end)
	}
	return t.pos, nil
}

// ParseFooter reads a footer, trailer included: b is the object's bytes from the footer's position to its end, and belongs
// to the Footer from then on. Sections are decoded; their batch indexes are walked only where they are so long that lookups need
// places to begin at ([Section]).
func ParseFooter(b []byte) (*Footer, error) {
	t, err := parseTrailer(b)
	if err != nil {
		return nil, err
	}
	if t.size+TrailerSize != int64(len(b)) {
		return nil, fmt.Errorf("parse segment footer: %w: %d bytes, want %d", ErrCorrupt, len(b), t.size+TrailerSize)
	}
	body := b[:t.size]
	if got := checksum(body); got != t.sum {
		return nil, fmt.Errorf("parse segment footer: %w: CRC32C %08x, want %08x", ErrCorrupt, got, t.sum)
	}
	header, err := ParseHeader(body)
	if err != nil {
		return nil, err
	}
	if header.ID.Level != t.level {
		return nil, fmt.Errorf("parse segment footer: %s: %w: level %d in the trailer", header.ID.Name(), ErrCorrupt, t.level)
	}
	f := &Footer{Header: header, Pos: t.pos, ObjectSize: t.pos + int64(len(b)), memory: int64(len(b))}
	d := fields.NewReader(body[HeaderSize:])
	topics := readTopics(&d)
	if !f.readSections(&d, topics) {
		return nil, fmt.Errorf("parse segment footer: %s: %w: bad directory or batch index", header.ID.Name(), ErrCorrupt)
	}
	return f, nil
}

// topicRef is one entry of the topic table.
type topicRef struct {
	id   protocol.TopicID
	name string
}

func readTopics(d *fields.Reader) []topicRef {
	const entryMin = 16 + 1 + 1
	n := d.UvarintMax(min(SectionsMax, uint64(d.Left()/entryMin)))
	topics := make([]topicRef, n)
	for i := range topics {
		copy(topics[i].id[:], d.Take(len(topics[i].id)))
		topics[i].name = string(d.Take(int(d.UvarintMax(protocol.TopicNameLengthMax))))
		if protocol.ValidateTopicName(topics[i].name) != nil {
			d.Fail()
		}
		if d.Bad() {
			return nil
		}
	}
	return topics
}

// readSections reads the directory and hands out the batch indexes behind it. It reports whether what it has read is in order.
func (f *Footer) readSections(d *fields.Reader, topics []topicRef) bool {
	n := d.UvarintMax(min(SectionsMax, uint64(d.Left()/sectionEntryMin)))
	if n == 0 && f.Header.ID.Level != Flushed {
		return false
	}
	f.Sections = make([]Section, n)
	f.memory += int64(n) * sectionMemory
	for i := range topics {
		f.memory += int64(len(topics[i].name))
	}
	indexBytes := make([]int, n)
	var shard uint32
	pos := int64(HeaderSize)
	for i := range f.Sections {
		s := &f.Sections[i]
		s.object = &f.Header.ID
		indexBytes[i] = s.readEntry(d, shard, topics)
		if d.Bad() || s.Size > f.Pos-pos || i > 0 && f.Sections[i-1].Compare(s.Key) >= 0 || !s.object.holds(s.Shard) {
			return false
		}
		s.Pos = pos
		pos += s.Size
		shard = s.Shard
	}
	for i := range f.Sections {
		f.Sections[i].index = d.Take(indexBytes[i])
	}
	if d.Bad() || d.Left() > 0 || pos != f.Pos {
		return false
	}
	for i := range f.Sections {
		if !f.Sections[i].mark() {
			return false
		}
		f.memory += int64(cap(f.Sections[i].marks)) * markMemory
	}
	return true
}

// holds reports whether a segment of that ID may have sections of a shard.
func (id ID) holds(shard uint32) bool { return id.Level == Flushed || id.Log == uint64(shard) }

// sectionEntryMin is the least that a section takes in the directory: twelve varints and a checksum.
const sectionEntryMin = 12 + 4

// appendEntry encodes the section's entry in the directory. The position is not in it: sections stand back to back.
func (s *Section) appendEntry(dst []byte, shard uint32, topic, indexBytes int) []byte {
	dst = binary.AppendUvarint(dst, uint64(s.Shard-shard))
	dst = binary.AppendUvarint(dst, uint64(topic))
	dst = binary.AppendUvarint(dst, uint64(s.Partition))
	dst = binary.AppendUvarint(dst, uint64(s.Size))
	dst = binary.AppendUvarint(dst, uint64(s.FirstOffset))
	dst = binary.AppendUvarint(dst, uint64(s.NextOffset-s.FirstOffset))
	dst = binary.AppendUvarint(dst, uint64(s.NextOffset-s.LastStable))
	dst = binary.AppendVarint(dst, s.MaxTimestamp)
	dst = binary.AppendUvarint(dst, uint64(s.LeaderEpoch))
	dst = binary.AppendUvarint(dst, uint64(s.LeaderEpoch-s.FirstEpoch))
	dst = binary.AppendUvarint(dst, uint64(s.Batches))
	dst = binary.AppendUvarint(dst, uint64(indexBytes))
	return binary.BigEndian.AppendUint32(dst, s.CRC)
}

// readEntry undoes appendEntry and returns the size of the section's batch index.
func (s *Section) readEntry(d *fields.Reader, shard uint32, topics []topicRef) (indexBytes int) {
	s.Shard = shard + uint32(d.UvarintMax(uint64(math.MaxUint32-shard)))
	topic := d.Uvarint()
	s.Partition = int32(d.UvarintMax(math.MaxInt32))
	s.Size = int64(d.UvarintMax(DataBytesMax))
	s.FirstOffset = protocol.Offset(d.UvarintMax(math.MaxInt64))
	s.NextOffset = s.FirstOffset + protocol.Offset(d.UvarintMax(uint64(math.MaxInt64-s.FirstOffset)))
	s.LastStable = s.NextOffset - protocol.Offset(d.UvarintMax(uint64(s.NextOffset)))
	s.MaxTimestamp = d.Varint()
	s.LeaderEpoch = protocol.LeaderEpoch(d.UvarintMax(math.MaxInt32))
	s.FirstEpoch = s.LeaderEpoch - protocol.LeaderEpoch(d.UvarintMax(uint64(s.LeaderEpoch)))
	s.Batches = int(d.UvarintMax(FooterBytesMax / indexEntryMin))
	indexBytes = int(d.UvarintMax(FooterBytesMax))
	s.CRC = d.Uint32()
	entryMin, entryMax := indexEntryMin, indexEntryMax
	if s.gaps() {
		entryMin, entryMax = entryMin+gapMin, entryMax+gapMax
	}
	if topic >= uint64(len(topics)) || s.Batches == 0 || s.NextOffset-s.FirstOffset < protocol.Offset(s.Batches) ||
		s.Size < int64(s.Batches)*batch.HeaderBytes ||
		indexBytes < s.Batches*entryMin || indexBytes > s.Batches*entryMax {
		d.Fail()
		return 0
	}
	s.Topic, s.TopicName = topics[topic].id, topics[topic].name
	return indexBytes
}
