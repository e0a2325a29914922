// Package manifest reads and writes manifests: for each shard one immutable object that says, for each of its partitions, where the
// log begins, which stretches of which merged segments hold it, and what a new leader has to know of its epochs and producers. The
// shard's record in the coordinator names the newest; a change is a new manifest and, in one guarded write, its name there.
//
// # Model
//
//	segments    0: 64 MiB, 1: 64 MiB, 2: 5 MiB             of level 1, each of this shard alone, from old to new
//	partition   log start 120, end 900, last stable 890
//	  extents   [0, 400) in 0, [400, 800) in 1, [800, 900) in 2
//	  epochs    1 from 0, 4 from 512
//	  producers as they were when the log ended at 900
//
// Everything that was committed below a partition's end is in its extents, or below its log start offset, or was compacted away; what
// comes after it is in commits that the shard has not merged. Restoring a partition takes its entry here and the footers of those.
//
//	m := manifest.Manifest{Cluster: id, Shard: 7, Epoch: 3, Generation: 12, CreatedMs: now, Segments: segments, Partitions: partitions}
//	object, err := m.Encode()
//	store.Put(ctx, m.Name(), objectstore.Bytes(object))
//	m, err := manifest.Parse(object)
//	start := m.LogStart(topic, 0)
//
// FORMAT.md has the bytes. The package is pure: no goroutine, clock, socket, file or logger. A [Manifest] that nobody changes may be read
// concurrently.
package manifest

import (
	"cmp"
	"errors"
	"slices"

	"github.com/varve-io/varve/protocol"
)

// Version of the format that this package writes, and the only one that it reads.
const Version = 2

// Limits of the format. A reader checks them before it allocates.
const (
	SegmentsMax   = 1 << 20  // segments of a manifest
	PartitionsMax = 1 << 20  // partitions of a manifest
	EpochsMax     = 1 << 22  // epochs of all partitions together
	ExtentsMax    = 1 << 22  // extents of all partitions together
	ProducersMax  = 1 << 20  // producers of all partitions together
	BatchesMax    = 5        // batches of a producer
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

	// Segments are ascending by epoch and number, each once; each has some extent.
	Segments []Segment
	// Partitions are ascending by topic id and partition, each once. One that is not there has no records merged, and starts at offset 0.
	Partitions []Partition
}

// Segment is a merged segment, which holds records of this shard alone.
type Segment struct {
	Epoch     protocol.LeaderEpoch // of the leader that wrote it
	Number    uint64               // which that leader took once
	Size      int64                // bytes of the object
	FooterPos int64                // where its footer begins, and its data ends
	CreatedMs int64                // Unix milliseconds by the writer's clock
}

// Partition is what a manifest says of one partition.
type Partition struct {
	Topic          protocol.TopicID
	TopicName      string // the same in all partitions of the topic
	Partition      int32
	LogStartOffset protocol.Offset // first offset that may be read; past End if records were deleted that are not merged yet

	// End is where the merged part of the log ends: everything committed below it is in Extents, or below LogStartOffset, or was compacted
	// away. 0 if nothing was merged; then there is nothing in what follows.
	End        protocol.Offset
	LastStable protocol.Offset // last stable offset as of End
	Cleaned    protocol.Offset // where the last compaction ended, at most End: below it each key has one record, and there may be gaps; 0 if it never was compacted
	Epochs     []EpochStart    // ascending in both fields, below End
	Extents    []Extent        // ascending by offset, not overlapping, up to End; gaps are allowed, below Cleaned
	Producers  []Producer      // as of End, but for those that a writer had forgotten as idle; ascending by id
}

// EpochStart is where a leader epoch begins.
type EpochStart struct {
	Epoch protocol.LeaderEpoch
	Start protocol.Offset // of its first batch
}

// Extent is a stretch of a partition's log, as one section of a merged segment.
type Extent struct {
	Segment      int32 // place in Manifest.Segments
	First, Next  protocol.Offset
	Pos, Size    int64                // bytes of the segment; those of different extents do not overlap, and follow the partitions' order
	MaxTimestamp int64                // largest timestamp of its records, Unix milliseconds
	Epoch        protocol.LeaderEpoch // of its last batch; not below that of the extent before
}

// Producer is the state of one idempotent producer in one partition.
type Producer struct {
	ID               protocol.ProducerID
	Epoch            protocol.ProducerEpoch
	CoordinatorEpoch int32           // of its newest transaction marker; -1 if it has none
	TxnFirst         protocol.Offset // where its open transaction begins, below the partition's end; NoOffset without one
	UpdatedMs        int64           // when its newest batch or marker was appended, Unix milliseconds by the leader's clock
	TimestampMs      int64           // largest timestamp of that batch or marker
	Batches          []ProducerBatch // the newest of its epoch, at most BatchesMax, in order of offsets; none if only a marker came
}

// ProducerBatch is a batch that a producer might send again. Its last offset and sequence follow from the first ones.
type ProducerBatch struct {
	BaseSequence int32
	BaseOffset   protocol.Offset
	Records      int32 // offsets, and sequences, that it takes
}

// next returns the offset after the batch.
func (b *ProducerBatch) next() protocol.Offset { return b.BaseOffset + protocol.Offset(b.Records) }

// compare orders a partition against a place.
func (p *Partition) compare(topic protocol.TopicID, partition int32) int {
	return cmp.Or(slices.Compare(p.Topic[:], topic[:]), cmp.Compare(p.Partition, partition))
}

// search returns the place of a partition in the list, and whether it is there.
func (m *Manifest) search(topic protocol.TopicID, partition int32) (int, bool) {
	return slices.BinarySearchFunc(m.Partitions, topic, func(p Partition, topic protocol.TopicID) int {
		return p.compare(topic, partition)
	})
}

// Find returns what the manifest says of a partition, if it says anything: a place in m.Partitions, which the next Set voids.
func (m *Manifest) Find(topic protocol.TopicID, partition int32) (p *Partition, ok bool) {
	at, ok := m.search(topic, partition)
	if !ok {
		return nil, false
	}
	return &m.Partitions[at], true
}

// FindSegment returns the place of a segment in m.Segments, and whether it is there.
func (m *Manifest) FindSegment(epoch protocol.LeaderEpoch, number uint64) (at int, ok bool) {
	return slices.BinarySearchFunc(m.Segments, number, func(s Segment, number uint64) int {
		return cmp.Or(cmp.Compare(s.Epoch, epoch), cmp.Compare(s.Number, number))
	})
}

// LogStart returns the log start offset of a partition: 0 if the manifest does not name it.
func (m *Manifest) LogStart(topic protocol.TopicID, partition int32) protocol.Offset {
	p, ok := m.Find(topic, partition)
	if !ok {
		return 0
	}
	return p.LogStartOffset
}

// Set puts p into its place, over all that was there. It changes m.Partitions, but nothing that a partition refers to.
func (m *Manifest) Set(p Partition) {
	at, ok := m.search(p.Topic, p.Partition)
	if !ok {
		m.Partitions = slices.Insert(m.Partitions, at, p)
		return
	}
	m.Partitions[at] = p
}

// Live returns for each segment, in the order of m.Segments, how many of its bytes may still be read: those of the extents that are not
// wholly below their partition's log start offset. A segment that has none left needs not be kept.
func (m *Manifest) Live() []int64 {
	live := make([]int64, len(m.Segments))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for _, e := range p.Extents {
			if e.Next > p.LogStartOffset {
				live[e.Segment] += e.Size
			}
		}
	}
	return live
}
