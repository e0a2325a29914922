package coordinator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/fields"
)

// CommitBytesMax is the most that a commit takes in etcd. One that would be larger names its shards only.
const CommitBytesMax = 64 << 10

// ErrBadCommit says that a commit's value is damaged, or of a version that this build does not know.
var ErrBadCommit = errors.New("bad commit record")

// Commit makes a flushed segment part of the log. It is the value under [KeyCommit], written in the transaction
// that also moves the WAL log's flushed position, and never changed.
//
// It takes about 20 bytes per partition of a topic with many, 36 for a topic with one, and 107 besides (a test holds
// it to them), so that one of up to some 1,800 to 3,300 partitions is whole; a larger one has no Partitions and says so by InFooter.
type Commit struct {
	Object     string // name of the segment
	ObjectSize int64  // bytes
	FooterPos  int64  // where the segment's footer begins
	FooterSize int64  // bytes, trailer included
	Log        LogID  // WAL log that was flushed
	Fence      uint64 // of the log, which the transaction compared
	Number     uint64 // of the log's commits, from 1 and without gaps
	FirstEntry int64  // first WAL entry in it
	LastEntry  int64  // last one: the log's flushed position from here on
	CreatedMs  int64  // Unix milliseconds by the writer's clock

	// Partitions are in any order, best that of the segment, which is the shortest to write down. Each
	// partition stands there once.
	Partitions []CommitPartition
	// InFooter says that Partitions is empty because there were too many: the segment's footer has them.
	InFooter bool
	// Shards are those of the partitions, ascending. Encode takes them from Partitions, unless InFooter is set;
	// a decoded commit always has them.
	Shards []ShardID
}

// CommitPartition is one partition's part of a commit.
type CommitPartition struct {
	Topic        protocol.TopicID
	Partition    int32
	Shard        ShardID
	FirstOffset  protocol.Offset
	NextOffset   protocol.Offset // one past the last
	Pos          int64           // of its section in the object
	Size         int64           // of its section, bytes
	MaxTimestamp int64           // Unix milliseconds
	LeaderEpoch  protocol.LeaderEpoch
	LastStable   protocol.Offset // last stable offset as of NextOffset; not above it
}

// The record's bytes: version, fields as varints, and the CRC32C of all that precedes it. Partitions come after a table of
// their topics' ids; positions are relative to the end of the section before, timestamps to the commit's.
const (
	commitVersion      = 1
	commitFlagInFooter = 1
	commitObjectMax    = 512 // bytes of an object's name

	commitPartitionMin = 10 // ten varints
)

// Encode returns the commit as it is stored: whole, or, where that would be over [CommitBytesMax], with its shards alone.
func (c *Commit) Encode() []byte {
	if !c.InFooter {
		if b := c.encode(false, nil); len(b) <= CommitBytesMax {
			return b
		}
		return c.encode(true, shardsOf(c.Partitions))
	}
	return c.encode(true, c.Shards)
}

func (c *Commit) encode(inFooter bool, shards []ShardID) []byte {
	b := make([]byte, 0, 160+32*len(c.Partitions))
	var flags byte
	if inFooter {
		flags = commitFlagInFooter
	}
	b = append(b, commitVersion, flags)
	b = binary.AppendUvarint(b, uint64(len(c.Object)))
	b = append(b, c.Object...)
	for _, v := range []uint64{
		uint64(c.ObjectSize), uint64(c.FooterPos), uint64(c.FooterSize),
		uint64(c.Log), c.Fence, c.Number, uint64(c.FirstEntry), uint64(c.LastEntry), uint64(c.CreatedMs),
	} {
		b = binary.AppendUvarint(b, v)
	}
	if inFooter {
		b = appendShards(b, shards)
	} else {
		b = c.appendPartitions(b)
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

func appendShards(b []byte, shards []ShardID) []byte {
	b = binary.AppendUvarint(b, uint64(len(shards)))
	var last ShardID
	for _, s := range shards {
		b = binary.AppendUvarint(b, uint64(s-last))
		last = s
	}
	return b
}

func (c *Commit) appendPartitions(b []byte) []byte {
	numbers := make(map[protocol.TopicID]int)
	var topics []byte
	for i := range c.Partitions {
		id := c.Partitions[i].Topic
		if _, ok := numbers[id]; !ok {
			numbers[id] = len(numbers)
			topics = append(topics, id[:]...)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(numbers)))
	b = append(b, topics...)

	b = binary.AppendUvarint(b, uint64(len(c.Partitions)))
	var shard ShardID
	var pos int64
	for i := range c.Partitions {
		p := &c.Partitions[i]
		b = binary.AppendUvarint(b, uint64(numbers[p.Topic]))
		b = binary.AppendUvarint(b, uint64(p.Partition))
		b = binary.AppendVarint(b, int64(p.Shard)-int64(shard))
		b = binary.AppendUvarint(b, uint64(p.FirstOffset))
		b = binary.AppendUvarint(b, uint64(p.NextOffset-p.FirstOffset))
		b = binary.AppendUvarint(b, uint64(p.NextOffset-p.LastStable))
		b = binary.AppendVarint(b, p.Pos-pos)
		b = binary.AppendUvarint(b, uint64(p.Size))
		b = binary.AppendVarint(b, p.MaxTimestamp-c.CreatedMs)
		b = binary.AppendUvarint(b, uint64(p.LeaderEpoch))
		shard, pos = p.Shard, p.Pos+p.Size
	}
	return b
}

// DecodeCommit undoes [Commit.Encode]. Its error wraps [ErrBadCommit].
func DecodeCommit(b []byte) (Commit, error) {
	if len(b) < 6 || len(b) > ValueBytesMax {
		return Commit{}, fmt.Errorf("decode commit: %w: %d bytes", ErrBadCommit, len(b))
	}
	if b[0] != commitVersion {
		return Commit{}, fmt.Errorf("decode commit: %w: version %d, want %d", ErrBadCommit, b[0], commitVersion)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32c.Checksum(body); got != sum {
		return Commit{}, fmt.Errorf("decode commit: %w: CRC32C %08x, want %08x", ErrBadCommit, got, sum)
	}
	c := Commit{InFooter: b[1]&commitFlagInFooter != 0}
	d := fields.NewReader(body[2:])
	c.Object = string(d.Take(int(d.UvarintMax(commitObjectMax))))
	for _, field := range []*int64{&c.ObjectSize, &c.FooterPos, &c.FooterSize} {
		*field = int64(d.UvarintMax(math.MaxInt64))
	}
	c.Log, c.Fence, c.Number = LogID(d.Uvarint()), d.Uvarint(), d.Uvarint()
	for _, field := range []*int64{&c.FirstEntry, &c.LastEntry, &c.CreatedMs} {
		*field = int64(d.UvarintMax(math.MaxInt64))
	}
	if c.InFooter {
		c.Shards = readShards(&d)
	} else {
		c.Partitions = readPartitions(&d, c.CreatedMs)
		c.Shards = shardsOf(c.Partitions)
	}
	if d.Bad() || d.Left() > 0 || b[1]&^commitFlagInFooter != 0 {
		return Commit{}, fmt.Errorf("decode commit %d of log %s: %w: bad fields", c.Number, c.Log, ErrBadCommit)
	}
	return c, nil
}

// shardsOf returns the shards of partitions, ascending, each once.
func shardsOf(partitions []CommitPartition) []ShardID {
	var shards []ShardID
	for i := range partitions {
		if s := partitions[i].Shard; len(shards) == 0 || shards[len(shards)-1] != s {
			shards = append(shards, s)
		}
	}
	slices.Sort(shards)
	return slices.Compact(shards)
}

func readShards(d *fields.Reader) []ShardID {
	shards := make([]ShardID, d.UvarintMax(uint64(d.Left())))
	var last ShardID
	for i := range shards {
		delta := ShardID(d.UvarintMax(uint64(math.MaxUint32 - last)))
		if i > 0 && delta == 0 {
			d.Fail()
		}
		last += delta
		shards[i] = last
	}
	return shards
}

func readPartitions(d *fields.Reader, createdMs int64) []CommitPartition {
	topics := make([]protocol.TopicID, d.UvarintMax(uint64(d.Left()/len(protocol.TopicID{}))))
	for i := range topics {
		copy(topics[i][:], d.Take(len(topics[i])))
	}
	partitions := make([]CommitPartition, d.UvarintMax(uint64(d.Left()/commitPartitionMin)))
	var shard, pos int64
	for i := range partitions {
		p := &partitions[i]
		topic := d.Uvarint()
		p.Partition = int32(d.UvarintMax(math.MaxInt32))
		shard += d.Varint()
		p.FirstOffset = protocol.Offset(d.UvarintMax(math.MaxInt64))
		p.NextOffset = p.FirstOffset + protocol.Offset(d.UvarintMax(uint64(math.MaxInt64-p.FirstOffset)))
		p.LastStable = p.NextOffset - protocol.Offset(d.UvarintMax(uint64(p.NextOffset)))
		p.Pos = pos + d.Varint()
		p.Size = int64(d.UvarintMax(math.MaxInt64))
		p.MaxTimestamp = createdMs + d.Varint()
		p.LeaderEpoch = protocol.LeaderEpoch(d.UvarintMax(math.MaxInt32))
		if d.Bad() || topic >= uint64(len(topics)) || shard < 0 || shard > math.MaxUint32 || p.Pos < 0 || p.Size > math.MaxInt64-p.Pos {
			d.Fail()
			return nil
		}
		p.Topic, p.Shard = topics[topic], ShardID(shard)
		pos = p.Pos + p.Size
	}
	return partitions
}
