package protocol

import (
	"fmt"
	"slices"
)

// Key numbers an API of the Kafka protocol.
type Key int16

// The APIs that Varve serves.
const (
	KeyProduce                 Key = 0
	KeyFetch                   Key = 1
	KeyListOffsets             Key = 2
	KeyMetadata                Key = 3
	KeyOffsetCommit            Key = 8
	KeyOffsetFetch             Key = 9
	KeyFindCoordinator         Key = 10
	KeyJoinGroup               Key = 11
	KeyHeartbeat               Key = 12
	KeyLeaveGroup              Key = 13
	KeySyncGroup               Key = 14
	KeyDescribeGroups          Key = 15
	KeyListGroups              Key = 16
	KeyAPIVersions             Key = 18
	KeyCreateTopics            Key = 19
	KeyDeleteTopics            Key = 20
	KeyDeleteRecords           Key = 21
	KeyInitProducerID          Key = 22
	KeyOffsetForLeaderEpoch    Key = 23
	KeyAddPartitionsToTxn      Key = 24
	KeyAddOffsetsToTxn         Key = 25
	KeyEndTxn                  Key = 26
	KeyWriteTxnMarkers         Key = 27
	KeyTxnOffsetCommit         Key = 28
	KeyDescribeConfigs         Key = 32
	KeyAlterConfigs            Key = 33
	KeyDescribeLogDirs         Key = 35
	KeyCreatePartitions        Key = 37
	KeyDeleteGroups            Key = 42
	KeyIncrementalAlterConfigs Key = 44
	KeyOffsetDelete            Key = 47
	KeyDescribeCluster         Key = 60
	KeyDescribeProducers       Key = 61
	KeyDescribeTransactions    Key = 65
	KeyListTransactions        Key = 66
)

// API is one row of the table of versions.
type API struct {
	Key  Key
	Name string
	// Min and Max are the versions that ApiVersions advertises, inclusive.
	Min, Max int16
	// ServedMin is the lowest version that is really served. It differs
	// from Min only for Produce.
	ServedMin int16
	// FirstFlexible is the first version with compact encodings and tagged
	// fields (KIP-482); NeverFlexible if there is none.
	FirstFlexible int16
}

// NeverFlexible is the FirstFlexible of an API without flexible versions.
const NeverFlexible int16 = 1<<15 - 1

// apis are the ranges that an Apache Kafka 4.1 broker advertises (KIP-896
// removed what is older than Kafka 2.1), sorted by key. One release throughout,
// because tools guess the broker's release from the whole set; every lower
// version that Kafka 4.1 still serves is kept for clients with old pins
// (KafkaJS, sarama at V1_0_0).
//
// Not advertised though kmsg has them, as they came after 4.1: ListOffsets 11,
// OffsetCommit and OffsetFetch 10 (topic ids), DescribeLogDirs 5, ApiVersions 5.
var apis = []API{
	// 0 to 2 carry message formats older than batches and are refused, but
	// are advertised as Kafka does: older versions of librdkafka give up
	// compression where the advertised minimum is higher.
	{KeyProduce, "Produce", 0, 13, 3, 9},
	{KeyFetch, "Fetch", 4, 18, 4, 12}, // topic ids from 13
	{KeyListOffsets, "ListOffsets", 1, 10, 1, 6},
	{KeyMetadata, "Metadata", 0, 13, 0, 9},
	{KeyOffsetCommit, "OffsetCommit", 2, 9, 2, 8},
	{KeyOffsetFetch, "OffsetFetch", 1, 9, 1, 6},
	// 6 is 5 with one more key type, for share groups; asking for that one
	// is answered with INVALID_REQUEST, like any unknown key type.
	{KeyFindCoordinator, "FindCoordinator", 0, 6, 0, 3},
	{KeyJoinGroup, "JoinGroup", 0, 9, 0, 6},
	{KeyHeartbeat, "Heartbeat", 0, 4, 0, 4},
	{KeyLeaveGroup, "LeaveGroup", 0, 5, 0, 4},
	{KeySyncGroup, "SyncGroup", 0, 5, 0, 4},
	{KeyDescribeGroups, "DescribeGroups", 0, 6, 0, 5},
	{KeyListGroups, "ListGroups", 0, 5, 0, 3},
	{KeyAPIVersions, "ApiVersions", 0, 4, 0, 3},
	{KeyCreateTopics, "CreateTopics", 2, 7, 2, 5},
	{KeyDeleteTopics, "DeleteTopics", 1, 6, 1, 4},
	{KeyDeleteRecords, "DeleteRecords", 0, 2, 0, 2},
	{KeyInitProducerID, "InitProducerId", 0, 5, 0, 2}, // 6, two-phase commit, is unstable in Kafka
	{KeyOffsetForLeaderEpoch, "OffsetForLeaderEpoch", 2, 4, 2, 4},
	{KeyAddPartitionsToTxn, "AddPartitionsToTxn", 0, 5, 0, 3},
	{KeyAddOffsetsToTxn, "AddOffsetsToTxn", 0, 4, 0, 3},
	{KeyEndTxn, "EndTxn", 0, 5, 0, 3},
	{KeyWriteTxnMarkers, "WriteTxnMarkers", 1, 1, 1, 1},
	{KeyTxnOffsetCommit, "TxnOffsetCommit", 0, 5, 0, 3},
	{KeyDescribeConfigs, "DescribeConfigs", 1, 4, 1, 4},
	{KeyAlterConfigs, "AlterConfigs", 0, 2, 0, 2},
	{KeyDescribeLogDirs, "DescribeLogDirs", 1, 4, 1, 2},
	{KeyCreatePartitions, "CreatePartitions", 0, 3, 0, 2},
	{KeyDeleteGroups, "DeleteGroups", 0, 2, 0, 2},
	{KeyIncrementalAlterConfigs, "IncrementalAlterConfigs", 0, 1, 0, 1},
	{KeyOffsetDelete, "OffsetDelete", 0, 0, 0, NeverFlexible},
	{KeyDescribeCluster, "DescribeCluster", 0, 2, 0, 0},
	{KeyDescribeProducers, "DescribeProducers", 0, 0, 0, 0},
	{KeyDescribeTransactions, "DescribeTransactions", 0, 0, 0, 0},
	{KeyListTransactions, "ListTransactions", 0, 2, 0, 0},
}

// beyond are versions above those that are advertised, in which only agents ask each other.
var beyond = map[Key]int16{
	KeyWriteTxnMarkers: 2, // with the version of the transaction (KIP-1228)
}

// APIs returns the table, sorted by key. The slice is the caller's.
func APIs() []API { return slices.Clone(apis) }

// Lookup returns the row of one API; ok is false if it is not served.
func Lookup(key Key) (api API, ok bool) {
	i, ok := slices.BinarySearchFunc(apis, key, func(a API, k Key) int { return int(a.Key) - int(k) })
	if !ok {
		return API{}, false
	}
	return apis[i], true
}

// Versions returns the advertised range of one API.
func Versions(key Key) (minVersion, maxVersion int16, ok bool) {
	api, ok := Lookup(key)
	return api.Min, api.Max, ok
}

// Serves reports whether requests of this version are really served, which
// differs from the advertised range for Produce.
func (a API) Serves(version int16) bool {
	return a.ServedMin <= version && version <= max(a.Max, beyond[a.Key])
}

// Flexible reports whether this version uses compact encodings and tagged fields.
func (a API) Flexible(version int16) bool { return version >= a.FirstFlexible }

// String returns the API's name as Kafka writes it, such as ListOffsets.
func (k Key) String() string {
	if api, ok := Lookup(k); ok {
		return api.Name
	}
	return fmt.Sprintf("API %d", int16(k))
}
