package topics

import (
	"math"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// effect is what a configuration does here.
type effect string

const (
	honoured effect = ""                                                   // as in Kafka
	later    effect = " No effect here yet: stored for a later release."   // will be honoured, or mapped to what plays its part
	never    effect = " No effect here: stored and shown for tools' sake." // what it tunes does not exist
)

// definition is a configuration that a topic can have.
type definition struct {
	name   string
	kind   kmsg.ConfigType
	value  string // Kafka's default, canonical
	broker string // the broker configuration that has the default; empty for none
	effect effect
	doc    string
	check  func(value string) (wrong string) // of a canonical value; nil for anything
}

// documentation is what DescribeConfigs shows.
func (d *definition) documentation() string { return d.doc + string(d.effect) }

// definitions are the configurations of Kafka 4.1's LogConfig, ordered by name. Whatever is not here is refused.
var definitions = []definition{
	{
		"cleanup.policy", list, "delete", "log.cleanup.policy", honoured,
		"What happens to old records: delete, compact, or both. With compact every record must have a key; without delete, DeleteRecords is refused.",
		each(oneOf("compact", "delete")),
	},
	{"compression.gzip.level", integer, "-1", "compression.gzip.level", honoured, "Level for compression.type=gzip, 1 to 9, or -1 for the codec's default.", gzipLevel},
	{"compression.lz4.level", integer, "9", "compression.lz4.level", honoured, "Level for compression.type=lz4, 1 to 17.", between(1, 17)},
	{
		"compression.type", text, "producer", "compression.type", honoured,
		"Codec in which batches are stored. With producer they stay as they come; otherwise those in another codec are compressed anew.",
		oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
	},
	{"compression.zstd.level", integer, "3", "compression.zstd.level", honoured, "Level for compression.type=zstd.", between(-131072, 22)},
	{"delete.retention.ms", long, "86400000", "log.cleaner.delete.retention.ms", honoured, "How long compaction keeps tombstones, in ms.", atLeast(0)},
	{"file.delete.delay.ms", long, "60000", "log.segment.delete.delay.ms", never, "Grace time before deleted data leaves the bucket, in ms. It is the same for all topics.", atLeast(0)},
	{"flush.messages", long, maxLong, "log.flush.interval.messages", never, "Records between syncs to disk. Every write is durable before it is acknowledged.", atLeast(1)},
	{"flush.ms", long, maxLong, "log.flush.interval.ms", never, "Time between syncs to disk, in ms. Every write is durable before it is acknowledged.", atLeast(0)},
	{"follower.replication.throttled.replicas", list, "", "", never, "Replicas whose replication is throttled on the follower.", throttledReplicas},
	{"index.interval.bytes", integer, "4096", "log.index.interval.bytes", never, "Bytes between entries of the offset index. Every batch is indexed.", atLeast(0)},
	{"leader.replication.throttled.replicas", list, "", "", never, "Replicas whose replication is throttled on the leader.", throttledReplicas},
	{"local.retention.bytes", long, "-2", "log.local.retention.bytes", never, "Bytes of a partition that tiered storage keeps locally. All data is in the bucket.", atLeast(-2)},
	{"local.retention.ms", long, "-2", "log.local.retention.ms", never, "Time that tiered storage keeps data locally, in ms. All data is in the bucket.", atLeast(-2)},
	{"max.compaction.lag.ms", long, maxLong, "log.cleaner.max.compaction.lag.ms", honoured, "Longest time that a record stays out of compaction, in ms.", atLeast(1)},
	{"max.message.bytes", integer, "1048588", "message.max.bytes", honoured, "Largest batch that is taken, in bytes as stored.", atLeast(0)},
	{
		"message.timestamp.after.max.ms", long, "3600000", "log.message.timestamp.after.max.ms", honoured,
		"How far in the future a timestamp may lie, in ms, with message.timestamp.type=CreateTime.", atLeast(0),
	},
	{
		"message.timestamp.before.max.ms", long, maxLong, "log.message.timestamp.before.max.ms", honoured,
		"How far in the past a timestamp may lie, in ms, with message.timestamp.type=CreateTime.", atLeast(0),
	},
	{
		"message.timestamp.type", text, "CreateTime", "log.message.timestamp.type", honoured,
		"Whose time a record carries: its producer's (CreateTime) or that of its append (LogAppendTime).", oneOf("CreateTime", "LogAppendTime"),
	},
	{"min.cleanable.dirty.ratio", double, "0.5", "log.cleaner.min.cleanable.ratio", honoured, "Part of a partition that must be new before it is compacted.", ratio},
	{"min.compaction.lag.ms", long, "0", "log.cleaner.min.compaction.lag.ms", honoured, "Shortest time that a record stays out of compaction, in ms.", atLeast(0)},
	{"min.insync.replicas", integer, "1", "min.insync.replicas", later, "Copies of the write-ahead log that acks=all waits for at least.", atLeast(1)},
	{"preallocate", boolean, "false", "log.preallocate", never, "Whether files of segments are allocated in advance.", nil},
	{"remote.log.copy.disable", boolean, "false", "", never, "Whether tiered storage stops copying. All data is in the bucket.", nil},
	{"remote.log.delete.on.disable", boolean, "false", "", never, "Whether disabling tiered storage deletes its data. All data is in the bucket.", nil},
	{"remote.storage.enable", boolean, "false", "", never, "Whether tiered storage is used. All data is in the bucket.", nil},
	{"retention.bytes", long, "-1", "log.retention.bytes", honoured, "Size of a partition beyond which its oldest data is deleted, in bytes; -1 for no limit.", nil},
	{"retention.ms", long, "604800000", "log.retention.ms", honoured, "Age at which data is deleted, in ms; -1 for never.", atLeast(-1)},
	{"segment.bytes", integer, "1073741824", "log.segment.bytes", never, "Size of a segment. Segments hold many partitions.", atLeast(1 << 20)},
	{"segment.index.bytes", integer, "10485760", "log.index.size.max.bytes", never, "Size of the file of an offset index.", atLeast(4)},
	{"segment.jitter.ms", long, "0", "log.roll.jitter.ms", never, "Random part of segment.ms.", atLeast(0)},
	{"segment.ms", long, "604800000", "log.roll.ms", never, "Age at which the active segment is closed, in ms. What was merged is open to retention and compaction.", atLeast(1)},
	{"unclean.leader.election.enable", boolean, "false", "unclean.leader.election.enable", never, "Whether a replica that is behind may lead. No leader is ever behind.", nil},
}

// Types as Kafka's ConfigDef names them.
const (
	boolean = kmsg.ConfigTypeBoolean
	text    = kmsg.ConfigTypeString
	integer = kmsg.ConfigTypeInt
	long    = kmsg.ConfigTypeLong
	double  = kmsg.ConfigTypeDouble
	list    = kmsg.ConfigTypeList
)

// maxLong is Java's Long.MAX_VALUE.
const maxLong = "9223372036854775807"

// definitionIndex finds a definition by name.
var definitionIndex = func() map[string]int {
	index := make(map[string]int, len(definitions))
	for i := range definitions {
		index[definitions[i].name] = i
	}
	return index
}()

// parse checks a value and returns it in canonical form. Errors are InvalidConfig with Kafka's wording (ConfigDef.parseType, ConfigException).
func (d *definition) parse(value string) (string, error) {
	canonical, wrong := canonical(d.kind, value)
	if wrong == "" && d.check != nil {
		wrong = d.check(canonical)
	}
	if wrong != "" {
		return "", protocol.InvalidConfig.Errorf("Invalid value %s for configuration %s: %s", value, d.name, wrong)
	}
	return canonical, nil
}

// canonical reads a value as its type demands and formats it anew, or says what is wrong with it.
func canonical(kind kmsg.ConfigType, value string) (canonical, wrong string) {
	value = strings.TrimSpace(value)
	switch kind {
	case boolean:
		if lower := strings.ToLower(value); lower == "true" || lower == "false" {
			return lower, ""
		}
		return "", "Expected value to be either true or false"
	case integer:
		return canonicalInt(kind, value, 32)
	case long:
		return canonicalInt(kind, value, 64)
	case double:
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return "", notANumber + kind.String()
		}
		s := strconv.FormatFloat(f, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		return s, ""
	case list:
		return strings.Join(splitList(value), ","), ""
	default:
		return value, ""
	}
}

const notANumber = "Not a number of type "

func canonicalInt(kind kmsg.ConfigType, value string, bits int) (canonical, wrong string) {
	n, err := strconv.ParseInt(value, 10, bits)
	if err != nil {
		return "", notANumber + kind.String()
	}
	return strconv.FormatInt(n, 10), ""
}

// splitList gives the items of a list, of which an empty one has none.
func splitList(value string) []string {
	value = strings.TrimSpace(value)
	if value == "" {
		return nil
	}
	items := strings.Split(value, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	return items
}
