// Package segment reads and writes segments: the immutable objects that hold the record batches of many partitions, so that a
// fetch of one partition is a byte range of one object. A segment of level 0 is what a flush of a WAL log writes: the batches of all shards that
// are in the log, a short section for each partition. One of level 1 is what a shard's leader merges of those: of one shard, with long sections.
//
// # Model
//
// A segment is
//
//	+--------+-----------+-----------+-----+-----------+-----------------+---------+
//	| header | section 0 | section 1 | ... | section n | index           | trailer |
//	+--------+-----------+-----------+-----+-----------+-----------------+---------+
//	  80 B     verbatim record batches                   \______ footer ________/ 32 B
//
// A section holds the batches of one partition (Kafka's RecordBatch v2, verbatim, in offset order); in level 0 their offsets have no gaps, in
// level 1 they may, since compaction removes batches and never offsets. Sections stand back to back, sorted by shard, topic id and partition. The footer repeats the header and indexes sections
// and batches; the trailer, its last 32 bytes, finds and checks it. FORMAT.md has the bytes, and what each checksum covers.
//
// # Writing
//
//	var b segment.Builder
//	for each entry of the flush {
//		err := b.Add(key, topicName, batch) // keeps batch, copies nothing
//	}
//	parts, footer, err := b.Finish(header)
//	store.Put(ctx, footer.Header.ID.Name(), objectstore.Body{Parts: parts, Size: footer.ObjectSize})
//	b.Reset() // parts are void now, footer stays good
//
// A merge does the same with a Builder of [Merged]; what it knows to have no batches any more, it gives to [Builder.Cover]. At [ErrFull] it
// finishes the segment and goes on with the batch in another one: a partition's list may name several.
//
// # Reading
//
//	footer, err := segment.ParseFooter(tail)               // the object from the footer's position to its end
//	section := footer.Find(key)                            // nil if the partition is not in it
//	pos, n, batches, err := section.Range(nil, offset, max) // the byte range that serves a fetch
//	err = section.VerifyBatch(batches[0], data)            // what came from the bucket is what was written
//
// The package is pure: no goroutine, clock, socket, file or logger. A [Footer] may be read concurrently.
package segment

import (
	"errors"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

// Version of the format that this package writes, and the only one that it reads.
const Version = 1

// Sizes and limits of the format. How many batches there may be follows from the footer's: at 5 to 10 bytes for each, some 7 to 13
// million. A builder answers [ErrFull] rather than pass one; a reader takes what passes one as
// damage, before it allocates.
const (
	HeaderSize  = 80 // bytes of the header
	TrailerSize = 32 // bytes of the trailer

	DataBytesMax   = 1 << 30  // bytes of all sections together
	FooterBytesMax = 64 << 20 // bytes of the footer, its trailer included
	SectionsMax    = 1 << 16  // sections of a segment
)

var (
	// ErrCorrupt says that bytes are not what a writer wrote. The error around it has the place, as far as it is known.
	ErrCorrupt = errors.New("corrupt segment")
	// ErrVersion says that a segment has a format that this build does not know.
	ErrVersion = errors.New("unknown segment version")
	// ErrNoBatch says that the section has no batch at that offset.
	ErrNoBatch = errors.New("no such batch in section")
	// ErrFull says that the segment cannot take the batch. Finish it, and begin another one with that batch.
	ErrFull = errors.New("segment full")
	// ErrGap says that a batch does not continue its section, or overlaps it: a broken invariant of the caller.
	ErrGap = errors.New("batch does not continue its section")
)

// Key says whose batches a section holds. Sections are sorted by it.
type Key struct {
	Shard     uint32
	Topic     protocol.TopicID
	Partition int32
}

// Flags describe a batch without its bytes.
type Flags uint8

// Bits of [Flags]. The low three are the codec, as in a batch's attributes: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
const (
	FlagTransactional Flags = 0x08
	FlagControl       Flags = 0x10 // a transaction marker
	FlagCommit        Flags = 0x20 // with FlagControl: the marker commits; without it the marker aborts

	flagProducer Flags = 0x40 // format only: producer fields follow
	flagEpoch    Flags = 0x80 // format only: the leader epoch grows with this batch
)

// Batch is what the index of a section knows of one batch.
type Batch struct {
	Pos             int64 // of its first byte in the object
	Offset          protocol.Offset
	MaxTimestamp    int64                  // largest timestamp of its records, Unix milliseconds; -1 if they have none
	ProducerID      protocol.ProducerID    // NoProducerID without idempotence
	Size            int32                  // bytes, header included
	LastOffsetDelta int32                  // offset of the last record, minus Offset
	LeaderEpoch     protocol.LeaderEpoch   // of the leader that took it
	BaseSequence    int32                  // of the first record; NoSequence without idempotence and in markers
	ProducerEpoch   protocol.ProducerEpoch // NoProducerEpoch without idempotence
	Flags           Flags
	// CoordinatorEpoch is that of the coordinator that wrote the marker; 0 in other batches.
	CoordinatorEpoch int32
}

// Next returns the offset after the batch.
func (b *Batch) Next() protocol.Offset {
	return b.Offset + protocol.Offset(b.LastOffsetDelta) + 1
}

func checksum(b []byte) uint32 { return crc32c.Checksum(b) }
