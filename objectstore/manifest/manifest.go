// Package manifest reads and writes manifests: for each shard one immutable object that says where the log of each
// of its partitions begins. The shard's record in the coordinator names the newest; a change is a new manifest and, in one guarded
// write, its name there. DeleteRecords answers once that is done.
//
//	m := manifest.Manifest{Cluster: id, Shard: 7, Epoch: 3, Generation: 12, CreatedMs: now, Partitions: partitions}
//	object, err := m.Encode()
//	store.Put(ctx, m.Name(), objectstore.Bytes(object))
//	m, err := manifest.Parse(object)
//	start := m.LogStart(topic, 0)
//
// FORMAT.md has the bytes. The package is pure: no goroutine, clock, socket, file or logger.
package manifest

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Version of the format that this package writes, and the only one that it reads.
const Version = 1

// Limits of the format.
const (
	PartitionsMax = 1 << 20  // partitions of a manifest
	BytesMax      = 64 << 20 // bytes of a manifest
)

var (
	// ErrCorrupt says that bytes are not what a writer wrote.
	ErrCorrupt = errors.New("corrupt manifest")
	// ErrVersion says that a manifest has a format that this build does not know.
	ErrVersion = errors.New("unknown manifest version")
)

// Manifest is what a shard's leader has settled about the shard's partitions.
type Manifest struct {
	Cluster    [16]byte // UUID of the cluster
	Shard      uint32
	Epoch      protocol.LeaderEpoch // of the leader that wrote it
	Generation uint64               // grows with each manifest of the shard
	CreatedMs  int64                // Unix milliseconds by the writer's clock

	// Partitions are ascending by topic id and partition, each once. One that is not there starts at offset 0.
	Partitions []Partition
}

// Partition is what a manifest says of one partition.
type Partition struct {
	Topic          protocol.TopicID
	TopicName      string
	Partition      int32
	LogStartOffset protocol.Offset // first offset that may be read
}

// compare orders a partition against a place.
func (p *Partition) compare(topic protocol.TopicID, partition int32) int {
	return cmp.Or(slices.Compare(p.Topic[:], topic[:]), cmp.Compare(p.Partition, partition))
}

// find returns the place of a partition in the list, and whether it is there.
func (m *Manifest) find(topic protocol.TopicID, partition int32) (int, bool) {
	return slices.BinarySearchFunc(m.Partitions, topic, func(p Partition, topic protocol.TopicID) int {
		return p.compare(topic, partition)
	})
}

// LogStart returns the log start offset of a partition: 0 if the manifest does not name it.
func (m *Manifest) LogStart(topic protocol.TopicID, partition int32) protocol.Offset {
	at, ok := m.find(topic, partition)
	if !ok {
		return 0
	}
	return m.Partitions[at].LogStartOffset
}

// Set puts what p says into its place, over what was there.
func (m *Manifest) Set(p Partition) {
	at, ok := m.find(p.Topic, p.Partition)
	if !ok {
		m.Partitions = slices.Insert(m.Partitions, at, p)
		return
	}
	m.Partitions[at] = p
}

// Parts of the layout, in bytes.
const (
	magic        = "VMAN"
	headerSize   = 52
	checksumSize = 4
	entryMin     = 16 + 4 + 8 + 1 + 1
)

// Encode returns the manifest's bytes. It refuses what Parse would: partitions that are out of order or stand there twice, bad
// topic names, negative numbers, more than the limits.
func (m *Manifest) Encode() ([]byte, error) {
	if len(m.Partitions) > PartitionsMax || m.Epoch < 0 {
		return nil, fmt.Errorf("encode manifest %s: epoch %d, %d partitions, want %d at most", m.Name(), m.Epoch, len(m.Partitions), PartitionsMax)
	}
	size := headerSize + checksumSize
	for i := range m.Partitions {
		if err := m.check(i); err != nil {
			return nil, fmt.Errorf("encode manifest %s: %w", m.Name(), err)
		}
		size += entryMin - 1 + len(m.Partitions[i].TopicName)
	}
	if size > BytesMax {
		return nil, fmt.Errorf("encode manifest %s: %d bytes, want %d at most", m.Name(), size, BytesMax)
	}
	b := make([]byte, 0, size)
	b = append(b, magic...)
	b = append(b, Version, 0, 0, 0)
	b = append(b, m.Cluster[:]...)
	b = binary.BigEndian.AppendUint32(b, m.Shard)
	b = binary.BigEndian.AppendUint32(b, uint32(m.Epoch))
	b = binary.BigEndian.AppendUint64(b, m.Generation)
	b = binary.BigEndian.AppendUint64(b, uint64(m.CreatedMs))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Partitions)))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		b = append(b, p.Topic[:]...)
		b = binary.BigEndian.AppendUint32(b, uint32(p.Partition))
		b = binary.BigEndian.AppendUint64(b, uint64(p.LogStartOffset))
		b = append(b, byte(len(p.TopicName)))
		b = append(b, p.TopicName...)
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b)), nil
}

// check tells what is wrong with the partition at i, if anything.
func (m *Manifest) check(i int) error {
	p := &m.Partitions[i]
	if p.Partition < 0 || p.LogStartOffset < 0 {
		return fmt.Errorf("topic %q partition %d: log start offset %d", p.TopicName, p.Partition, p.LogStartOffset)
	}
	if i > 0 && m.Partitions[i-1].compare(p.Topic, p.Partition) >= 0 {
		return fmt.Errorf("topic %q partition %d: out of order or twice", p.TopicName, p.Partition)
	}
	if err := protocol.ValidateTopicName(p.TopicName); err != nil {
		return fmt.Errorf("topic %s: %w", p.Topic, err)
	}
	return nil
}

// Parse reads a whole manifest. It keeps nothing of b. Errors wrap [ErrCorrupt] or [ErrVersion].
func Parse(b []byte) (*Manifest, error) {
	if len(b) < headerSize+checksumSize || len(b) > BytesMax {
		return nil, fmt.Errorf("parse manifest: %w: %d bytes, want %d to %d", ErrCorrupt, len(b), headerSize+checksumSize, BytesMax)
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
	n := binary.BigEndian.Uint32(b[48:])
	entries := body[headerSize:]
	if n > PartitionsMax || uint64(n)*entryMin > uint64(len(entries)) || m.Epoch < 0 {
		return nil, fmt.Errorf("parse manifest: %w: epoch %d, %d partitions in %d bytes", ErrCorrupt, m.Epoch, n, len(entries))
	}
	m.Partitions = make([]Partition, n)
	for i := range m.Partitions {
		var ok bool
		if entries, ok = m.Partitions[i].read(entries); !ok {
			return nil, fmt.Errorf("parse manifest: %s: %w: entry %d of %d is cut", m.Name(), ErrCorrupt, i, n)
		}
		if err := m.check(i); err != nil {
			return nil, fmt.Errorf("parse manifest: %s: %w: %w", m.Name(), ErrCorrupt, err)
		}
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("parse manifest: %s: %w: %d bytes after the last entry", m.Name(), ErrCorrupt, len(entries))
	}
	return m, nil
}

// read decodes one entry and returns the bytes after it.
func (p *Partition) read(b []byte) (rest []byte, ok bool) {
	const fixed = entryMin - 1
	if len(b) < fixed || len(b) < fixed+int(b[fixed-1]) {
		return nil, false
	}
	copy(p.Topic[:], b)
	p.Partition = int32(binary.BigEndian.Uint32(b[16:]))
	p.LogStartOffset = protocol.Offset(binary.BigEndian.Uint64(b[20:]))
	end := fixed + int(b[fixed-1])
	p.TopicName = string(b[fixed:end])
	return b[end:], true
}
