package wire

import "github.com/varve-io/varve/protocol"

var (
	int8f  = fixedField(1)
	int16f = fixedField(2)
	int32f = fixedField(4)
	int64f = fixedField(8)
	boolf  = fixedField(1)
	uuidf  = fixedField(16)
	textf  = field{kind: text, until: everyVersion}
	bytesf = field{kind: payload, until: everyVersion}
)

// layouts describes the bodies of all served requests. Kafka's own message
// definitions are the source; a test compares each version with kmsg.
var layouts = map[protocol.Key][]field{
	protocol.KeyProduce: {
		textf, int16f, int32f, // transactional id, acks, timeout
		structsOf(textf.upTo(12), uuidf.from(13), // topic
			structsOf(int32f, bytesf)), // partition, records
	},
	protocol.KeyFetch: {
		int32f.upTo(14),               // replica
		int32f, int32f, int32f, int8f, // max wait, min and max bytes, isolation
		int32f.from(7), int32f.from(7), // session, its epoch
		structsOf(textf.upTo(12), uuidf.from(13), // topic
			structsOf(int32f, int32f.from(9), // partition, current leader epoch
				int64f, int32f.from(12), // offset, last fetched epoch
				int64f.from(5), int32f)), // log start offset, max bytes
		structsOf(textf.upTo(12), uuidf.from(13), listOf(int32f)).from(7), // forgotten
		textf.from(11), // rack
	},
	protocol.KeyListOffsets: {
		int32f, int8f.from(2), // replica, isolation
		structsOf(textf, structsOf(int32f, int32f.from(4), int64f)), // partition, leader epoch, timestamp
		int32f.from(10), // timeout
	},
	protocol.KeyMetadata: {
		structsOf(uuidf.from(10), textf),      // topic
		boolf.from(4),                         // auto-creation
		boolf.from(8).upTo(10), boolf.from(8), // authorized operations of cluster, topics
	},
	protocol.KeyOffsetCommit: {
		textf, int32f, textf, textf.from(7), // group, generation, member, instance
		int64f.upTo(4), // retention
		structsOf(textf,
			structsOf(int32f, int64f, int32f.from(6), textf)), // partition, offset, leader epoch, metadata
	},
	protocol.KeyOffsetFetch: {
		textf.upTo(7), structsOf(textf, listOf(int32f)).upTo(7), // group, topics
		structsOf(textf, textf.from(9), int32f.from(9), // group, member, its epoch
			structsOf(textf, listOf(int32f))).from(8),
		boolf.from(7), // require stable
	},
	protocol.KeyFindCoordinator: {
		textf.upTo(3), int8f.from(1), listOf(textf).from(4), // key, key type, keys
	},
	protocol.KeyJoinGroup: {
		textf, int32f, int32f.from(1), // group, session and rebalance timeouts
		textf, textf.from(5), textf, // member, instance, protocol type
		structsOf(textf, bytesf), textf.from(8), // protocols, reason
	},
	protocol.KeyHeartbeat: {textf, int32f, textf, textf.from(3)},
	protocol.KeyLeaveGroup: {
		textf, textf.upTo(2), // group, member
		structsOf(textf, textf, textf.from(5)).from(3), // member, instance, reason
	},
	protocol.KeySyncGroup: {
		textf, int32f, textf, textf.from(3), // group, generation, member, instance
		textf.from(5), textf.from(5), // protocol type and name
		structsOf(textf, bytesf), // assignments
	},
	protocol.KeyDescribeGroups: {listOf(textf), boolf.from(3)},
	protocol.KeyListGroups:     {listOf(textf).from(4), listOf(textf).from(5)},
	protocol.KeyAPIVersions:    {textf.from(3), textf.from(3)},
	protocol.KeyCreateTopics: {
		structsOf(textf, int32f, int16f, // topic, partitions, replication factor
			structsOf(int32f, listOf(int32f)), // assignment
			structsOf(textf, textf)),          // configs
		int32f, boolf, // timeout, validate only
	},
	protocol.KeyDeleteTopics: {
		listOf(textf).upTo(5), structsOf(textf, uuidf).from(6), int32f,
	},
	protocol.KeyDeleteRecords:  {structsOf(textf, structsOf(int32f, int64f)), int32f},
	protocol.KeyInitProducerID: {textf, int32f, int64f.from(3), int16f.from(3)},
	protocol.KeyOffsetForLeaderEpoch: {
		int32f.from(3), // replica
		structsOf(textf, structsOf(int32f, int32f, int32f)), // partition, current leader epoch, leader epoch
	},
	protocol.KeyAddPartitionsToTxn: {
		textf.upTo(3), int64f.upTo(3), int16f.upTo(3), structsOf(textf, listOf(int32f)).upTo(3), // transactional id, producer id and epoch, topics
		structsOf(textf, int64f, int16f, boolf, structsOf(textf, listOf(int32f))).from(4), // the same, verify only
	},
	protocol.KeyAddOffsetsToTxn: {textf, int64f, int16f, textf},
	protocol.KeyEndTxn:          {textf, int64f, int16f, boolf},
	protocol.KeyWriteTxnMarkers: {
		structsOf(int64f, int16f, boolf, // producer id and epoch, commit
			structsOf(textf, listOf(int32f)), int32f, int8f.from(2)), // topics, coordinator's epoch, transaction version
	},
	protocol.KeyTxnOffsetCommit: {
		textf, textf, int64f, int16f, // transactional id, group, producer id and epoch
		int32f.from(3), textf.from(3), textf.from(3), // generation, member, instance
		structsOf(textf,
			structsOf(int32f, int64f, int32f.from(2), textf)), // partition, offset, leader epoch, metadata
	},
	protocol.KeyDescribeConfigs: {
		structsOf(int8f, textf, listOf(textf)), boolf, boolf.from(3), // resource; synonyms, documentation
	},
	protocol.KeyAlterConfigs:    {structsOf(int8f, textf, structsOf(textf, textf)), boolf},
	protocol.KeyDescribeLogDirs: {structsOf(textf, listOf(int32f))},
	protocol.KeyCreatePartitions: {
		structsOf(textf, int32f, structsOf(listOf(int32f))), int32f, boolf,
	},
	protocol.KeyDeleteGroups:            {listOf(textf)},
	protocol.KeyIncrementalAlterConfigs: {structsOf(int8f, textf, structsOf(textf, int8f, textf)), boolf},
	protocol.KeyOffsetDelete:            {textf, structsOf(textf, structsOf(int32f))},
	protocol.KeyDescribeCluster:         {boolf, int8f.from(1), boolf.from(2)},
	protocol.KeyDescribeProducers:       {structsOf(textf, listOf(int32f))},
	protocol.KeyDescribeTransactions:    {listOf(textf)},
	protocol.KeyListTransactions:        {listOf(textf), listOf(int64f), int64f.from(1), textf.from(2)},
}
