package wire

import (
	"encoding/binary"

	"github.com/varve-io/varve/protocol"
)

// FetchResponse encodes a response to Fetch, of any served version, around
// record batches that stay where they are. Fields that a version does not have
// are left out. Whoever fills it may reuse it and its slices.
type FetchResponse struct {
	CorrelationID  int32
	Version        int16
	ThrottleMillis int32
	// ErrorCode and SessionID are of the fetch session (KIP-227).
	ErrorCode protocol.ErrorCode
	SessionID int32
	Topics    []FetchTopic
	// NodeEndpoints are where the CurrentLeaders of the partitions are
	// (KIP-951, version 16).
	NodeEndpoints []NodeEndpoint
}

// FetchTopic is one topic of a FetchResponse.
type FetchTopic struct {
	// Name identifies the topic up to version 12, ID from 13 on.
	Name       string
	ID         protocol.TopicID
	Partitions []FetchPartition
}

// FetchPartition is one partition of a FetchResponse. [NewFetchPartition]
// gives the fields the values that mean "unknown".
type FetchPartition struct {
	Partition        int32
	ErrorCode        protocol.ErrorCode
	HighWatermark    protocol.Offset
	LastStableOffset protocol.Offset
	LogStartOffset   protocol.Offset // version 5
	// Aborted are the aborted transactions within Records, for read_committed;
	// nil, which is encoded as null, for read_uncommitted.
	Aborted []AbortedTransaction
	// PreferredReadReplica is the node id to fetch from instead (KIP-392,
	// version 11), -1 for none.
	PreferredReadReplica int32
	// Diverging tells where the log of a client parts from this one
	// (KIP-595, version 12); nil for nowhere.
	Diverging *EpochEnd
	// CurrentLeader hints at a new leader (KIP-951, version 12); nil for none.
	CurrentLeader *LeaderEpoch
	// Records are whole batches, or several in one slice, in offset order.
	// The encoder refers to them; see [FetchResponse.AppendTo].
	Records [][]byte
}

// AbortedTransaction is a transaction that a read_committed client skips.
type AbortedTransaction struct {
	ProducerID  protocol.ProducerID
	FirstOffset protocol.Offset
}

// EpochEnd is a leader epoch and the offset where it ends.
type EpochEnd struct {
	Epoch     protocol.LeaderEpoch
	EndOffset protocol.Offset
}

// LeaderEpoch is the leader of a partition, by node id, and its epoch.
type LeaderEpoch struct {
	LeaderID int32
	Epoch    protocol.LeaderEpoch
}

// NodeEndpoint is the address of a node. An empty Rack is encoded as null.
type NodeEndpoint struct {
	NodeID int32
	Host   string
	Port   int32
	Rack   string
}

// NewFetchPartition returns the answer of error code for a partition of which
// nothing else is known.
func NewFetchPartition(partition int32, code protocol.ErrorCode) FetchPartition {
	return FetchPartition{
		Partition: partition, ErrorCode: code,
		HighWatermark: protocol.NoOffset, LastStableOffset: protocol.NoOffset, LogStartOffset: protocol.NoOffset,
		PreferredReadReplica: -1,
	}
}

// recordsCopyBytes is the size below which a slice of records is copied beside
// the fields around it: an entry of writev costs more than such a copy.
const recordsCopyBytes = 512

// AppendTo appends the framed response to bufs, as buffers to be written in
// order (writev), and returns bufs and scratch, extended. Fields, and slices of
// records below 512 bytes, are appended to scratch, which the buffers alias;
// larger slices of records become buffers as they are. So neither scratch nor
// records may change before all is written; then the caller may pass both
// again, cut to length 0. With them grown once, AppendTo does not allocate.
//
// The caller keeps the response below 2 GiB.
func (r *FetchResponse) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	first := len(bufs)
	e := fetchEncoder{bufs: bufs, scratch: scratch, start: len(scratch), flexible: r.Version >= 12}
	e.int32(0) // size, once it is known
	e.int32(r.CorrelationID)
	e.tags(0) // of the header
	e.int32(r.ThrottleMillis)
	if r.Version >= 7 {
		e.int16(int16(r.ErrorCode))
		e.int32(r.SessionID)
	}
	e.array(len(r.Topics))
	for i := range r.Topics {
		t := &r.Topics[i]
		if r.Version >= 13 {
			e.scratch = append(e.scratch, t.ID[:]...)
		} else {
			e.string(t.Name)
		}
		e.array(len(t.Partitions))
		for j := range t.Partitions {
			e.partition(r.Version, &t.Partitions[j])
		}
		e.tags(0)
	}
	e.nodeEndpoints(r.Version, r.NodeEndpoints)
	e.cut()
	var size int
	for _, b := range e.bufs[first:] {
		size += len(b)
	}
	// The first buffer, not scratch: that may have moved since.
	binary.BigEndian.PutUint32(e.bufs[first], uint32(size-4))
	return e.bufs, e.scratch
}

// fetchEncoder appends fields to scratch, of which the part from start on has
// not become a buffer yet. A buffer stays valid when scratch grows: it keeps
// the old array, which nothing writes to again.
type fetchEncoder struct {
	bufs     [][]byte
	scratch  []byte
	start    int
	flexible bool
}

func (e *fetchEncoder) partition(version int16, p *FetchPartition) {
	e.int32(p.Partition)
	e.int16(int16(p.ErrorCode))
	e.int64(int64(p.HighWatermark))
	e.int64(int64(p.LastStableOffset))
	if version >= 5 {
		e.int64(int64(p.LogStartOffset))
	}
	if p.Aborted == nil {
		e.array(-1)
	} else {
		e.array(len(p.Aborted))
	}
	for _, a := range p.Aborted {
		e.int64(int64(a.ProducerID))
		e.int64(int64(a.FirstOffset))
		e.tags(0)
	}
	if version >= 11 {
		e.int32(p.PreferredReadReplica)
	}
	e.records(p.Records)
	e.partitionTags(p)
}

// records never encodes null, which some clients do not expect.
func (e *fetchEncoder) records(records [][]byte) {
	var size int
	for _, b := range records {
		size += len(b)
	}
	e.array(size) // the length of bytes is encoded like that of an array
	for _, b := range records {
		if len(b) < recordsCopyBytes {
			e.scratch = append(e.scratch, b...)
			continue
		}
		e.cut()
		e.bufs = append(e.bufs, b)
	}
}

// cut makes a buffer of what scratch has gathered.
func (e *fetchEncoder) cut() {
	if end := len(e.scratch); end > e.start {
		e.bufs = append(e.bufs, e.scratch[e.start:end:end])
		e.start = end
	}
}

// Sizes of tagged structs, their own empty tag sections included.
const (
	epochEndBytes    = 4 + 8 + 1
	leaderEpochBytes = 4 + 4 + 1
)

func (e *fetchEncoder) partitionTags(p *FetchPartition) {
	count := 0
	if p.Diverging != nil {
		count++
	}
	if p.CurrentLeader != nil {
		count++
	}
	e.tags(count)
	if !e.flexible {
		return
	}
	if p.Diverging != nil {
		e.scratch = append(e.scratch, 0, epochEndBytes)
		e.int32(int32(p.Diverging.Epoch))
		e.int64(int64(p.Diverging.EndOffset))
		e.tags(0)
	}
	if p.CurrentLeader != nil {
		e.scratch = append(e.scratch, 1, leaderEpochBytes)
		e.int32(p.CurrentLeader.LeaderID)
		e.int32(int32(p.CurrentLeader.Epoch))
		e.tags(0)
	}
}

// nodeEndpoints ends the response with its tags, of which this is the only one.
func (e *fetchEncoder) nodeEndpoints(version int16, nodes []NodeEndpoint) {
	if version < 16 || len(nodes) == 0 {
		e.tags(0)
		return
	}
	size := uvarintBytes(len(nodes) + 1)
	for _, n := range nodes {
		size += 4 + stringBytes(n.Host) + 4 + stringBytes(n.Rack) + 1
	}
	e.tags(1)
	e.scratch = append(e.scratch, 0)
	e.uvarint(size)
	e.array(len(nodes))
	for _, n := range nodes {
		e.int32(n.NodeID)
		e.string(n.Host)
		e.int32(n.Port)
		if n.Rack == "" {
			e.uvarint(0)
		} else {
			e.string(n.Rack)
		}
		e.tags(0)
	}
}

// stringBytes is the size of a compact string. An empty one and null are both
// one byte.
func stringBytes(s string) int { return uvarintBytes(len(s)+1) + len(s) }

func uvarintBytes(v int) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func (e *fetchEncoder) int16(v int16) {
	e.scratch = binary.BigEndian.AppendUint16(e.scratch, uint16(v))
}

func (e *fetchEncoder) int32(v int32) {
	e.scratch = binary.BigEndian.AppendUint32(e.scratch, uint32(v))
}

func (e *fetchEncoder) int64(v int64) {
	e.scratch = binary.BigEndian.AppendUint64(e.scratch, uint64(v))
}
func (e *fetchEncoder) uvarint(v int) { e.scratch = binary.AppendUvarint(e.scratch, uint64(v)) }

// tags begins a section of count tagged fields, in a flexible version.
func (e *fetchEncoder) tags(count int) {
	if e.flexible {
		e.uvarint(count)
	}
}

// array writes the length of an array or of bytes; -1 is null.
func (e *fetchEncoder) array(n int) {
	if e.flexible {
		e.uvarint(n + 1)
	} else {
		e.int32(int32(n))
	}
}

func (e *fetchEncoder) string(s string) {
	if e.flexible {
		e.uvarint(len(s) + 1)
	} else {
		e.int16(int16(len(s)))
	}
	e.scratch = append(e.scratch, s...)
}
