// Package coordinator is the contract between Varve and etcd: which keys there are, what they hold, who may write
// each, and how a write is made so that its outcome becomes certain.
//
// # What is there
//
// KEYS.md lists every key. Keys under meta/ are what every agent follows by one watch ([View]): the cluster, agents, topics,
// shards, commits. The rest is read by its owner alone: WAL logs, write guards, groups, offsets, counters.
//
// # How it is written
//
// A key has one writer at a time. What makes that true is a guard: a key that every transaction of the writer
// compares with the revision that the writer knows and writes anew ([Guard]). Taking over means writing the guard;
// from then on nothing that the previous writer sent, or has still in flight, can apply. The guard of a WAL log is its own
// record; the guard of a shard is its write counter under writes/.
//
// A transaction that timed out may still apply. [Apply] sends the same one again until the guard shows whether it did;
// only then does it return, and only then may the next be sent.
package coordinator

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/varve-io/varve/protocol"
)

// Prefixes and keys. KEYS.md explains each; a test holds the two together.
const (
	KeyCluster      = "meta/cluster"
	KeyController   = "meta/controller"
	PrefixMeta      = "meta/"
	PrefixAgents    = "meta/agents/"
	PrefixTopics    = "meta/topics/"
	PrefixShards    = "meta/shards/"
	PrefixMoves     = "meta/moves/"
	PrefixCommits   = "meta/commits/"
	PrefixLogs      = "logs/"
	PrefixUnflushed = "unflushed/"
	PrefixLoads     = "loads/"
	PrefixUsage     = "usage/"
	PrefixStores    = "stores/"
	PrefixWrites    = "writes/"
	PrefixGroups    = "groups/"
	PrefixOffsets   = "offsets/"
	PrefixPending   = "pending/"
	PrefixTxns      = "txns/"
	KeyNextNode     = "next/node"
	KeyNextLog      = "next/log"
	KeyNextPID      = "next/producer"
	KeyLastCopy     = "copies/last"
	KeyPastLog      = "logs/past"
	KeyRestore      = "restore"
)

// ErrFenced: another writer has taken over the guard; whatever this writer believed to own, it does not.
var ErrFenced = errors.New("fenced by another writer")

// LogID numbers a WAL log, which is one incarnation of an agent. It starts at 1 and is never given twice.
type LogID uint64

// String formats the id as it stands in keys and in names of objects.
func (id LogID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ShardID numbers a shard from 0.
type ShardID uint32

// OffsetsPerKey is how many partitions of one topic share one key of a group's offsets.
const OffsetsPerKey = 64

// KeyAgent is the registration of a live agent, under its lease.
func KeyAgent(node int32) string { return PrefixAgents + strconv.Itoa(int(node)) }

// KeyTopic is the record of a topic. Topic names need no escaping: Kafka restricts them to [a-zA-Z0-9._-].
func KeyTopic(name string) string { return PrefixTopics + name }

// KeyShard is the record of a shard.
func KeyShard(s ShardID) string { return fmt.Sprintf("%s%04d", PrefixShards, s) }

// ParseKeyShard undoes [KeyShard].
func ParseKeyShard(key string) (ShardID, error) { return parseShard(key, PrefixShards) }

// KeyMove is the controller's wish about a shard.
func KeyMove(s ShardID) string { return fmt.Sprintf("%s%04d", PrefixMoves, s) }

// parseShard reads the shard's number from a key under prefix.
func parseShard(key, prefix string) (ShardID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(key, prefix), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("parse key %q: want %sSHARD", key, prefix)
	}
	return ShardID(n), nil
}

// KeyWrite is the guard of everything that a shard's leader writes.
func KeyWrite(s ShardID) string { return fmt.Sprintf("%s%04d", PrefixWrites, s) }

// KeyLog is the record of a WAL log.
func KeyLog(id LogID) string { return PrefixLogs + id.String() }

// KeyCommit is the record of one commit; commits of a log are numbered from 1.
func KeyCommit(id LogID, number uint64) string {
	return fmt.Sprintf("%s%s/%016x", PrefixCommits, id, number)
}

// ParseKeyCommit undoes [KeyCommit].
func ParseKeyCommit(key string) (LogID, uint64, error) {
	rest, ok := strings.CutPrefix(key, PrefixCommits)
	log, number, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return 0, 0, fmt.Errorf("parse commit key %q: want %sLOG/NUMBER", key, PrefixCommits)
	}
	l, err := strconv.ParseUint(log, 16, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("parse commit key %q: %w", key, err)
	}
	n, err := strconv.ParseUint(number, 16, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("parse commit key %q: %w", key, err)
	}
	return LogID(l), n, nil
}

// KeyUnflushed is what an agent says of its own WAL log, under the lease of its registration.
func KeyUnflushed(node int32) string { return PrefixUnflushed + strconv.Itoa(int(node)) }

// KeyLoad is what an agent says of the load of its shards, under the lease of its registration.
func KeyLoad(node int32) string { return PrefixLoads + strconv.Itoa(int(node)) }

// KeyUsage is what an agent says of its requests to the bucket, under the lease of its registration.
func KeyUsage(node int32) string { return PrefixUsage + strconv.Itoa(int(node)) }

// KeyStore binds a disk to the node id of the agent that has it, so that an agent keeps its id as long as its disk.
func KeyStore(store string) string { return PrefixStores + store }

// KeyGroup is the record of a consumer group. Groups are named freely, so names are escaped.
func KeyGroup(group string) string { return PrefixGroups + url.PathEscape(group) }

// ParseKeyGroup undoes [KeyGroup].
func ParseKeyGroup(key string) (string, error) {
	group, err := url.PathUnescape(strings.TrimPrefix(key, PrefixGroups))
	if err != nil {
		return "", fmt.Errorf("parse group key %q: %w", key, err)
	}
	return group, nil
}

// PrefixGroupOffsets is what all offsets of a group stand under.
func PrefixGroupOffsets(group string) string { return PrefixOffsets + url.PathEscape(group) + "/" }

// KeyOffsets holds a group's offsets for one block of a topic's partitions; block is partition / [OffsetsPerKey].
func KeyOffsets(group, topic string, block int32) string {
	return fmt.Sprintf("%s%s/%d", PrefixGroupOffsets(group), topic, block)
}

// ParseKeyOffsets undoes [KeyOffsets].
func ParseKeyOffsets(key string) (group, topic string, block int32, err error) {
	parts := strings.Split(strings.TrimPrefix(key, PrefixOffsets), "/")
	if len(parts) != 3 {
		return "", "", 0, fmt.Errorf("parse offsets key %q: want %sGROUP/TOPIC/BLOCK", key, PrefixOffsets)
	}
	group, err = url.PathUnescape(parts[0])
	if err != nil {
		return "", "", 0, fmt.Errorf("parse offsets key %q: %w", key, err)
	}
	n, err := strconv.ParseInt(parts[2], 10, 32)
	if err != nil {
		return "", "", 0, fmt.Errorf("parse offsets key %q: %w", key, err)
	}
	return group, parts[1], int32(n), nil
}

// PrefixShardTxns is what the records of a shard's transactional ids stand under.
func PrefixShardTxns(s ShardID) string { return fmt.Sprintf("%s%04d/", PrefixTxns, s) }

// KeyTxn is the record of a transactional id, which is named freely and so escaped.
func KeyTxn(s ShardID, id string) string { return PrefixShardTxns(s) + url.PathEscape(id) }

// ParseKeyTxn undoes [KeyTxn], but for the shard.
func ParseKeyTxn(key string) (id string, err error) {
	_, escaped, ok := strings.Cut(strings.TrimPrefix(key, PrefixTxns), "/")
	if id, err = url.PathUnescape(escaped); !ok || err != nil {
		return "", fmt.Errorf("parse transaction key %q: want %sSHARD/ID", key, PrefixTxns)
	}
	return id, nil
}

// PrefixShardPending is what offsets in open transactions stand under that were sent to the groups of a shard.
func PrefixShardPending(s ShardID) string { return fmt.Sprintf("%s%04d/", PrefixPending, s) }

// PrefixGroupPending is what offsets in open transactions stand under that were sent to a group.
func PrefixGroupPending(s ShardID, group string) string {
	return PrefixShardPending(s) + url.PathEscape(group) + "/"
}

// KeyPending holds the offsets that a producer has sent to a group in its open transaction.
func KeyPending(s ShardID, group string, producer protocol.ProducerID) string {
	return PrefixGroupPending(s, group) + strconv.FormatInt(int64(producer), 10)
}

// ParseKeyPending undoes [KeyPending], but for the shard.
func ParseKeyPending(key string) (group string, producer protocol.ProducerID, err error) {
	parts := strings.Split(strings.TrimPrefix(key, PrefixPending), "/")
	if len(parts) != 3 {
		return "", 0, fmt.Errorf("parse pending key %q: want %sSHARD/GROUP/PRODUCER", key, PrefixPending)
	}
	if group, err = url.PathUnescape(parts[1]); err != nil {
		return "", 0, fmt.Errorf("parse pending key %q: %w", key, err)
	}
	n, err := strconv.ParseInt(parts[2], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("parse pending key %q: %w", key, err)
	}
	return group, protocol.ProducerID(n), nil
}
