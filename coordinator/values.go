package coordinator

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/varve-io/varve/protocol"
)

// Cluster is fixed when the cluster is created, but for what changes when the coordinator's state is rebuilt.
type Cluster struct {
	ID         string `json:"id"`         // a random UUID, base64url as Kafka prints one
	Shards     uint32 `json:"shards"`     // number of shards, 1 to 4,096
	Generation uint32 `json:"generation"` // grows when the coordinator's state is rebuilt from the bucket
	CreatedMs  int64  `json:"created_ms"` // Unix milliseconds
	Secret     []byte `json:"secret"`     // by which its agents know each other
	// Restored is the number below which WAL logs are from before the coordinator's state was last rebuilt; 0 if it never was. While one of them is open no shard gets a leader: the
	// state may be older than they are, so that any of them may have a shard's newest records.
	Restored LogID `json:"restored,omitempty"`
	// Since are the numbers that WAL logs may have which were opened after a copy was made from which the state was rebuilt: a range for each time that it was, but for those when what agents' disks had was given up. They ascend.
	Since []LogRange `json:"since,omitempty"`
}

// LogRange are the numbers of WAL logs from From to below To.
type LogRange struct {
	From LogID `json:"from"`
	To   LogID `json:"to"`
}

// SinceCopy reports whether a WAL log that has no record was opened after a copy was made from which the coordinator's state was rebuilt, the last time or before. It was never closed: what stores have of it may be nowhere else.
func (c *Cluster) SinceCopy(id LogID) bool {
	return slices.ContainsFunc(c.Since, func(r LogRange) bool { return id >= r.From && id < r.To })
}

// LastCopy is the copy of all this in the bucket that was begun last; the zero value if none was. An etcd that is set back gives the number of a copy again, but with another nonce.
type LastCopy struct {
	Number uint64 `json:"number"` // grows by one, from 1
	Nonce  uint64 `json:"nonce"`  // random; 0 if it was a restore that raised the number
}

// Agent is a live agent's registration.
type Agent struct {
	Node  int32      `json:"node"`  // Kafka's broker id, from 1
	Log   LogID      `json:"log"`   // its incarnation
	Host  string     `json:"host"`  // advertised to clients
	Port  int32      `json:"port"`  // advertised to clients
	Store string     `json:"store"` // its disk
	Peer  string     `json:"peer"`  // host:port at which other agents reach it; empty if they do not
	Zone  string     `json:"zone"`  // empty if none is set
	State AgentState `json:"state"`

	Copies int `json:"copies"` // how many stores each entry of its log should be on
	// Bucketless: the bucket has not answered it for some seconds.
	Bucketless bool `json:"bucketless,omitempty"`
	// Full: its disk has no room for its log, and so it has none yet.
	Full bool `json:"full,omitempty"`
}

// Takers returns the agents that shards may be given to: those that serve and reach the bucket, since who begins to lead a shard reads there, or, if none of those that serve does, all of them.
func Takers(agents []Agent) []Agent {
	var takers, bucketless []Agent
	for _, a := range agents {
		switch {
		case a.State != AgentServing:
		case a.Bucketless:
			bucketless = append(bucketless, a)
		default:
			takers = append(takers, a)
		}
	}
	if len(takers) == 0 {
		return bucketless
	}
	return takers
}

// Unflushed is what an agent says at intervals, for those who watch over the cluster: how much of its log is not in the bucket yet, and what it
// misses there.
type Unflushed struct {
	Log      LogID `json:"log"`
	Bytes    int64 `json:"bytes"`
	OldestMs int64 `json:"oldest_ms"` // how long the oldest batch of it has waited; 0 if none does
	// Damaged are shards that it should lead and cannot, because what the bucket has of them is damaged or missing, or cannot be read.
	Damaged []ShardID `json:"damaged,omitempty"`
}

// Load is what an agent says at intervals of what goes through the shards that it leads, in bytes per second, averaged over a minute or so.
type Load struct {
	Log      LogID             `json:"log"`
	Produced int64             `json:"produced"` // by clients
	Consumed int64             `json:"consumed"` // by clients
	Shards   map[ShardID]int64 `json:"shards"`   // of each, both together; one that is not there has not been measured yet
}

// Usage is what an agent says at intervals of what it has asked of the bucket since it began, and for which topics. Requests count whatever came of them.
type Usage struct {
	Log      LogID `json:"log"`
	SinceMs  int64 `json:"since_ms"` // Unix milliseconds by the agent's clock
	Puts     int64 `json:"puts"`
	Gets     int64 `json:"gets"`
	Stats    int64 `json:"stats"`
	Lists    int64 `json:"lists"` // pages
	Deletes  int64 `json:"deletes"`
	PutBytes int64 `json:"put_bytes"`
	GetBytes int64 `json:"get_bytes"`
	// Topics are those with the most bytes, by name, as far as this agent led their partitions; Others is the sum of the rest.
	Topics map[string]TopicUsage `json:"topics"`
	Others TopicUsage            `json:"others"`
}

// TopicUsage is how many bytes of record batches clients wrote to a topic, and read of it.
type TopicUsage struct {
	Produced int64 `json:"produced"`
	Consumed int64 `json:"consumed"`
}

// AgentState says what may be asked of an agent.
type AgentState string

// The states of an agent, in order.
const (
	AgentStarting AgentState = "starting" // its store takes copies; its own log is not open yet
	AgentServing  AgentState = "serving"  // leads shards and answers clients
	AgentDraining AgentState = "draining" // gives away what it has, and is given nothing
)

// Topic is a topic's record. Partitions only grow.
type Topic struct {
	ID          protocol.TopicID  `json:"id"`
	Name        string            `json:"name"`
	Partitions  int32             `json:"partitions"`
	Replication int16             `json:"replication"` // as it was asked for, and so described; the WAL decides the copies
	Configs     map[string]string `json:"configs,omitempty"`
	CreatedMs   int64             `json:"created_ms"`
}

// ShardOf returns the shard that leads a partition: the topic's partitions lie on consecutive shards, so that even a
// small topic is spread.
func (t *Topic) ShardOf(partition int32, shards uint32) ShardID {
	h := fnv.New32a()
	_, _ = h.Write(t.ID[:])
	return ShardID((uint64(h.Sum32()) + uint64(partition)) % uint64(shards))
}

// ShardOfName returns the shard that coordinates a consumer group or transactional id.
func ShardOfName(name string, shards uint32) ShardID {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return ShardID(h.Sum32() % shards)
}

// Shard is the record of a shard. It changes with leadership and with each manifest, under the shard's guard.
type Shard struct {
	Owner    LogID  `json:"owner"`              // incarnation that leads it; 0 for none yet
	Node     int32  `json:"node"`               // of the owner
	Epoch    int32  `json:"epoch"`              // leader epoch: one more with each change of owner, from 1
	Manifest string `json:"manifest,omitempty"` // name of the newest manifest; empty for none
	// Merged is a revision: what commits that were written at it or before have of the shard is in the manifest. Commits that every shard in them has merged leave etcd.
	Merged int64 `json:"merged,omitempty"`
}

// Given returns the record with another owner, which begins a new epoch.
func (s Shard) Given(owner LogID, node int32) Shard {
	s.Owner, s.Node = owner, node
	s.Epoch++
	return s
}

// Move is the controller's wish that a shard's owner hand it over.
type Move struct {
	To LogID `json:"to"` // incarnation that should lead it
}

// Controller is the record of the agent that plans who leads which shard.
type Controller struct {
	Log  LogID `json:"log"`
	Node int32 `json:"node"`
}

// Write is the value of a shard's guard. Its three fields together never repeat.
type Write struct {
	Owner  LogID  `json:"owner"`
	Epoch  int32  `json:"epoch"`
	Number uint64 `json:"number"` // of the owner's writes in this epoch, from 0
}

// WALSegment is a stretch of a WAL log with one ensemble.
type WALSegment struct {
	Number uint32   `json:"number"` // grows; a number may be left out
	First  int64    `json:"first"`  // first entry
	Last   int64    `json:"last"`   // last entry once sealed; -1 while open
	Stores []string `json:"stores"` // the ensemble
	Quorum int      `json:"quorum"` // how many of them must hold an entry before it is acknowledged
}

// Log is the record of a WAL log, and the guard of its commits.
type Log struct {
	ID       LogID        `json:"id"`
	Node     int32        `json:"node"`              // of the agent whose incarnation it is
	Fence    uint64       `json:"fence"`             // 1 for its own writer; one more with each claim
	Claimer  LogID        `json:"claimer,omitempty"` // incarnation that recovers it; 0 for none
	Closed   bool         `json:"closed"`            // every entry that counts is committed; final
	Segments []WALSegment `json:"segments"`          // by number: the open one, and those before it with entries that are not flushed
	Flushed  int64        `json:"flushed"`           // last entry whose batches are committed; 0 for none
	Commits  uint64       `json:"commits"`           // number of the newest commit; 0 for none
}

// GroupOffset is one committed consumer offset.
type GroupOffset struct {
	Offset      int64  `json:"o"`
	LeaderEpoch int32  `json:"e"` // -1 if the consumer gave none
	Metadata    string `json:"m,omitempty"`
	CommitMs    int64  `json:"t"` // Unix milliseconds
}

// GroupOffsets is a block of a group's offsets, by partition.
type GroupOffsets map[int32]GroupOffset

// PendingOffsets are what a producer has sent to a group in its open transaction.
type PendingOffsets struct {
	TransactionalID string                  `json:"id"`
	Epoch           protocol.ProducerEpoch  `json:"epoch"`
	Offsets         map[string]GroupOffsets `json:"offsets"` // by topic
}

// Encode returns v as it is stored. Records of this package always encode.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // a type that JSON cannot hold is a defect of this package
	}
	return b
}

// Decode reads what [Encode] stored under key.
func Decode[T any](item Item) (T, error) {
	var v T
	if err := json.Unmarshal(item.Value, &v); err != nil {
		return v, fmt.Errorf("decode %s at revision %d: %w", item.Key, item.ModRevision, err)
	}
	return v, nil
}
