package topics

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// fixed is a configuration of brokers, or of groups, that clients can only read.
type fixed struct {
	name  string
	kind  kmsg.ConfigType
	value string // Kafka's default; null if empty
	doc   string
}

// brokerDefinitions are the configurations of a broker that tools read, beside the defaults of topics, with Kafka 4.1's defaults
// (AbstractKafkaConfig). What differs here comes from Config and Deps.Broker.
var brokerDefinitions = []fixed{
	{"advertised.listeners", text, "", "Where clients are sent."},
	{"auto.create.topics.enable", boolean, "true", "Whether Metadata creates topics that do not exist."},
	{"broker.id", integer, "-1", "Id of this agent."},
	{"broker.rack", text, "", "Zone of this agent."},
	{"connections.max.idle.ms", long, "600000", "Time without a request after which a connection is closed, in ms."},
	{"default.replication.factor", integer, "1", "Replication factor of topics that ask for the default. It is shown in metadata; the write-ahead log decides about copies."},
	{"delete.topic.enable", boolean, "true", "Whether topics can be deleted."},
	{"fetch.max.bytes", integer, "57671680", "Largest answer to a fetch, in bytes."},
	{"group.initial.rebalance.delay.ms", integer, "3000", "How long a new group waits for more members, in ms."},
	{"group.max.session.timeout.ms", integer, "1800000", "Longest session timeout that a member may ask for, in ms."},
	{"group.max.size", integer, "2147483647", "Members that a group may have."},
	{"group.min.session.timeout.ms", integer, "6000", "Shortest session timeout that a member may ask for, in ms."},
	{"listeners", text, "", "Where this agent listens."},
	{"log.dirs", text, "", "Name under which the bucket is shown."},
	{"log.retention.hours", integer, "168", "Default age at which data is deleted, in hours. No effect here yet: stored for a later release."},
	{"log.retention.minutes", integer, "", "Default age at which data is deleted, in minutes. No effect here yet: stored for a later release."},
	{"log.roll.hours", integer, "168", "Default of segment.ms, in hours. No effect here yet: stored for a later release."},
	{"max.connections", integer, "2147483647", "Connections that this agent takes."},
	{"max.connections.per.ip", integer, "2147483647", "Connections that this agent takes from one address."},
	{"node.id", integer, "", "Id of this agent."},
	{"num.partitions", integer, "1", "Partitions of topics that ask for the default."},
	{"offset.metadata.max.bytes", integer, "4096", "Largest metadata of a committed offset, in bytes."},
	{"offsets.retention.minutes", integer, "10080", "How long offsets of a group without members are kept, in minutes."},
	{"process.roles", list, "", "What this agent does; every agent does everything."},
	{"producer.id.expiration.ms", integer, "86400000", "Time after which an idle idempotent producer is forgotten, in ms."},
	{"socket.request.max.bytes", integer, "104857600", "Largest request, in bytes."},
	{"transaction.max.timeout.ms", integer, "900000", "Longest transaction timeout that a producer may ask for, in ms. No effect here: transactions are not supported."},
	{"transactional.id.expiration.ms", integer, "604800000", "Time after which an idle transactional id is forgotten, in ms. No effect here: transactions are not supported."},
}

// logDirs is the one log directory that DescribeLogDirs shows.
const logDirs = "/varve"

// brokerNull are the defaults of topics that Kafka leaves unset, because another unit of the same configuration has the default.
var brokerNull = []string{"log.flush.interval.ms", "log.retention.ms", "log.roll.jitter.ms", "log.roll.ms"}

// groupDefinitions are Kafka 4.1's GroupConfig.
var groupDefinitions = []fixed{
	{"consumer.heartbeat.interval.ms", integer, "5000", "Time between heartbeats of consumers (KIP-848), in ms."},
	{"consumer.session.timeout.ms", integer, "45000", "Session timeout of consumers (KIP-848), in ms."},
	{"share.auto.offset.reset", text, "latest", "Where a share group begins."},
	{"share.heartbeat.interval.ms", integer, "5000", "Time between heartbeats of share consumers, in ms."},
	{"share.isolation.level", text, "read_uncommitted", "Which records of transactions a share group sees."},
	{"share.record.lock.duration.ms", integer, "30000", "How long a share consumer holds a record, in ms."},
	{"share.session.timeout.ms", integer, "45000", "Session timeout of share consumers, in ms."},
	{"streams.heartbeat.interval.ms", integer, "5000", "Time between heartbeats of a streams group, in ms."},
	{"streams.num.standby.replicas", integer, "0", "Standby replicas of each task of a streams group."},
	{"streams.session.timeout.ms", integer, "45000", "Session timeout of a streams group, in ms."},
}

// groupSettings describes what every group has.
func groupSettings() []setting {
	settings := make([]setting, len(groupDefinitions))
	for i, f := range groupDefinitions {
		settings[i] = setting{name: f.name, kind: f.kind, readOnly: true, doc: f.doc + " No effect here: groups of this kind are not supported."}
		settings[i].synonym(f.name, f.value, kmsg.ConfigSourceDefaultConfig)
	}
	return settings
}

// brokerSettings describes this agent as a broker. The defaults of topics are Kafka's, whatever Deps.Broker says, because they are what
// holds.
func (t *Topics) brokerSettings() []setting {
	here := maps.Clone(t.deps.Broker)
	if here == nil {
		here = make(map[string]string)
	}
	node := strconv.Itoa(int(t.deps.Node))
	here["broker.id"], here["node.id"] = node, node
	here["process.roles"] = "broker,controller"
	here["num.partitions"] = strconv.Itoa(int(t.cfg.Partitions))
	here["default.replication.factor"] = strconv.Itoa(int(t.cfg.Replication))
	if _, ok := here["log.dirs"]; !ok {
		here["log.dirs"] = logDirs
	}

	settings := make([]setting, 0, len(brokerDefinitions)+len(definitions)+len(here))
	for i := range definitions {
		d := &definitions[i]
		if d.broker == "" {
			continue
		}
		f := fixed{d.broker, d.kind, d.value, "Default of the topics' " + d.name + ". " + d.documentation()}
		if slices.Contains(brokerNull, d.broker) {
			f.value = ""
		}
		settings = append(settings, f.setting(nil))
		delete(here, d.broker)
	}
	for i := range brokerDefinitions {
		f := &brokerDefinitions[i]
		settings = append(settings, f.setting(here))
		delete(here, f.name)
	}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		f := fixed{name, text, "", "Setting of this agent."}
		settings = append(settings, f.setting(here))
	}
	slices.SortFunc(settings, func(a, b setting) int { return strings.Compare(a.name, b.name) })
	return settings
}

// setting describes a configuration that has the value in here, if there is one, instead of its default.
func (f *fixed) setting(here map[string]string) setting {
	s := setting{name: f.name, kind: f.kind, source: kmsg.ConfigSourceDefaultConfig, readOnly: true, doc: f.doc}
	if value, ok := here[f.name]; ok && value != f.value {
		s.synonym(f.name, value, kmsg.ConfigSourceStaticBrokerConfig)
	}
	if f.value != "" {
		s.synonym(f.name, f.value, kmsg.ConfigSourceDefaultConfig)
	}
	return s
}
