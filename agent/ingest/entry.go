package ingest

import (
	"encoding/binary"
	"fmt"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// EntryHeaderBytes is the length of the header that stands before the record batch in each WAL entry:
//
//	offset  size  field
//	0       1     format version, 2
//	1       3     zero
//	4       4     shard, big endian
//	8       16    topic id
//	24      4     partition, big endian
//	28      8     last stable offset as of the batch's end, big endian
//
// The record batch follows, with its base offset and leader epoch in place. The entry's length and checksum are the WAL's. Version 1 had no
// last stable offset.
const EntryHeaderBytes = 36

// EntryMemoryBytes is about what a batch costs outside of the WAL's memory until it is flushed: its place in its partition and in the queue of the
// flush, whose slices have room to grow.
const EntryMemoryBytes = 240

const entryVersion = 2

// EntryHeader says where a batch in the WAL belongs.
type EntryHeader struct {
	Shard     coordinator.ShardID
	Topic     protocol.TopicID
	Partition int32
	// LastStable is the partition's last stable offset if the log ended with this batch ([partition.Log.StableAtEnd]): what recovery, which knows nothing of
	// the batches before, writes into the segment.
	LastStable protocol.Offset
}

// Put writes the header into b, which must hold [EntryHeaderBytes].
func (h EntryHeader) Put(b []byte) {
	_ = b[EntryHeaderBytes-1]
	b[0], b[1], b[2], b[3] = entryVersion, 0, 0, 0
	binary.BigEndian.PutUint32(b[4:], uint32(h.Shard))
	copy(b[8:24], h.Topic[:])
	binary.BigEndian.PutUint32(b[24:], uint32(h.Partition))
	binary.BigEndian.PutUint64(b[28:], uint64(h.LastStable))
}

// ParseEntry splits an entry read back from the WAL into its header and its record batch, which aliases entry.
func ParseEntry(entry []byte) (EntryHeader, []byte, error) {
	if len(entry) < EntryHeaderBytes {
		return EntryHeader{}, nil, fmt.Errorf("parse WAL entry: %d bytes, want at least %d", len(entry), EntryHeaderBytes)
	}
	if entry[0] != entryVersion {
		return EntryHeader{}, nil, fmt.Errorf("parse WAL entry: format version %d, want %d", entry[0], entryVersion)
	}
	return EntryHeader{
		Shard:      coordinator.ShardID(binary.BigEndian.Uint32(entry[4:])),
		Topic:      protocol.TopicID(entry[8:24]),
		Partition:  int32(binary.BigEndian.Uint32(entry[24:])),
		LastStable: protocol.Offset(binary.BigEndian.Uint64(entry[28:])),
	}, entry[EntryHeaderBytes:], nil
}
