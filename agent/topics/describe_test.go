package topics_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// describe asks for everything about one resource, or for some keys.
func (a *agent) describe(t *testing.T, kind kmsg.ConfigResourceType, name string, keys ...string) kmsg.DescribeConfigsResponseResource {
	t.Helper()
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Version, req.IncludeSynonyms, req.IncludeDocumentation = 4, true, true
	r := kmsg.NewDescribeConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.ConfigNames = kind, name, keys
	req.Resources = append(req.Resources, r)
	got := a.DescribeConfigs(t.Context(), req).Resources[0]
	if got.ResourceType != kind || got.ResourceName != name {
		t.Errorf("answer is about %v %q, want %v %q", got.ResourceType, got.ResourceName, kind, name)
	}
	return got
}

// configs lists configurations as lines of name, type, value, source and synonyms.
func configs(described []kmsg.DescribeConfigsResponseResourceConfig) string {
	var b strings.Builder
	text := func(v *string) string {
		if v == nil {
			return "null"
		}
		return *v
	}
	for _, c := range described {
		b.WriteString(c.Name + " " + c.ConfigType.String() + " " + text(c.Value) + " " + c.Source.String())
		for _, s := range c.ConfigSynonyms {
			b.WriteString(" " + s.Source.String() + ":" + s.Name + "=" + text(s.Value))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// kafkaDefaults is what Kafka 4.1 describes of a new topic, less what it does not have in common with Varve.
const kafkaDefaults = `cleanup.policy LIST delete DEFAULT_CONFIG DEFAULT_CONFIG:log.cleanup.policy=delete
compression.gzip.level INT -1 DEFAULT_CONFIG DEFAULT_CONFIG:compression.gzip.level=-1
compression.lz4.level INT 9 DEFAULT_CONFIG DEFAULT_CONFIG:compression.lz4.level=9
compression.type STRING producer DEFAULT_CONFIG DEFAULT_CONFIG:compression.type=producer
compression.zstd.level INT 3 DEFAULT_CONFIG DEFAULT_CONFIG:compression.zstd.level=3
delete.retention.ms LONG 86400000 DEFAULT_CONFIG DEFAULT_CONFIG:log.cleaner.delete.retention.ms=86400000
file.delete.delay.ms LONG 60000 DEFAULT_CONFIG DEFAULT_CONFIG:log.segment.delete.delay.ms=60000
flush.messages LONG 9223372036854775807 DEFAULT_CONFIG DEFAULT_CONFIG:log.flush.interval.messages=9223372036854775807
flush.ms LONG 9223372036854775807 DEFAULT_CONFIG
follower.replication.throttled.replicas LIST  DEFAULT_CONFIG
index.interval.bytes INT 4096 DEFAULT_CONFIG DEFAULT_CONFIG:log.index.interval.bytes=4096
leader.replication.throttled.replicas LIST  DEFAULT_CONFIG
local.retention.bytes LONG -2 DEFAULT_CONFIG DEFAULT_CONFIG:log.local.retention.bytes=-2
local.retention.ms LONG -2 DEFAULT_CONFIG DEFAULT_CONFIG:log.local.retention.ms=-2
max.compaction.lag.ms LONG 9223372036854775807 DEFAULT_CONFIG DEFAULT_CONFIG:log.cleaner.max.compaction.lag.ms=9223372036854775807
max.message.bytes INT 1048588 DEFAULT_CONFIG DEFAULT_CONFIG:message.max.bytes=1048588
message.timestamp.after.max.ms LONG 3600000 DEFAULT_CONFIG DEFAULT_CONFIG:log.message.timestamp.after.max.ms=3600000
message.timestamp.before.max.ms LONG 9223372036854775807 DEFAULT_CONFIG DEFAULT_CONFIG:log.message.timestamp.before.max.ms=9223372036854775807
message.timestamp.type STRING CreateTime DEFAULT_CONFIG DEFAULT_CONFIG:log.message.timestamp.type=CreateTime
min.cleanable.dirty.ratio DOUBLE 0.5 DEFAULT_CONFIG DEFAULT_CONFIG:log.cleaner.min.cleanable.ratio=0.5
min.compaction.lag.ms LONG 0 DEFAULT_CONFIG DEFAULT_CONFIG:log.cleaner.min.compaction.lag.ms=0
min.insync.replicas INT 1 DEFAULT_CONFIG DEFAULT_CONFIG:min.insync.replicas=1
preallocate BOOLEAN false DEFAULT_CONFIG DEFAULT_CONFIG:log.preallocate=false
remote.log.copy.disable BOOLEAN false DEFAULT_CONFIG
remote.log.delete.on.disable BOOLEAN false DEFAULT_CONFIG
remote.storage.enable BOOLEAN false DEFAULT_CONFIG
retention.bytes LONG -1 DEFAULT_CONFIG DEFAULT_CONFIG:log.retention.bytes=-1
retention.ms LONG 604800000 DEFAULT_CONFIG
segment.bytes INT 1073741824 DEFAULT_CONFIG DEFAULT_CONFIG:log.segment.bytes=1073741824
segment.index.bytes INT 10485760 DEFAULT_CONFIG DEFAULT_CONFIG:log.index.size.max.bytes=10485760
segment.jitter.ms LONG 0 DEFAULT_CONFIG
segment.ms LONG 604800000 DEFAULT_CONFIG
unclean.leader.election.enable BOOLEAN false DEFAULT_CONFIG DEFAULT_CONFIG:unclean.leader.election.enable=false
`

func TestDescribeTopicDefaults(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 1)
	got := a.describe(t, ofTopic, "t")
	expect(t, "answer", got.ErrorCode, got.ErrorMessage, protocol.None, "")
	if lines := configs(got.Configs); lines != kafkaDefaults {
		t.Errorf("got\n%s\nwant\n%s", lines, kafkaDefaults)
	}
	for _, c := range got.Configs {
		if c.ReadOnly || c.IsSensitive || !c.IsDefault {
			t.Errorf("%s: read-only %v, sensitive %v, default %v", c.Name, c.ReadOnly, c.IsSensitive, c.IsDefault)
		}
	}
}

func TestDescribeSaysWhatHasNoEffect(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 1)
	honoured := []string{
		"cleanup.policy", "compression.gzip.level", "compression.lz4.level", "compression.type", "compression.zstd.level", "delete.retention.ms",
		"max.compaction.lag.ms", "max.message.bytes", "message.timestamp.after.max.ms", "message.timestamp.before.max.ms", "message.timestamp.type",
		"min.cleanable.dirty.ratio", "min.compaction.lag.ms", "retention.bytes", "retention.ms",
	}
	for _, c := range a.describe(t, ofTopic, "t").Configs {
		if c.Documentation == nil || *c.Documentation == "" {
			t.Errorf("%s has no documentation", c.Name)
			continue
		}
		if none := strings.Contains(*c.Documentation, "No effect here"); none == slices.Contains(honoured, c.Name) {
			t.Errorf("%s says %q", c.Name, *c.Documentation)
		}
	}
}

func TestDescribeTopicOverrides(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 1, "segment.bytes=1048576", "retention.ms=604800000")
	got := a.describe(t, ofTopic, "t", "segment.bytes", "retention.ms", "nonsense", "flush.ms")
	want := `flush.ms LONG 9223372036854775807 DEFAULT_CONFIG
retention.ms LONG 604800000 DYNAMIC_TOPIC_CONFIG DYNAMIC_TOPIC_CONFIG:retention.ms=604800000
segment.bytes INT 1048576 DYNAMIC_TOPIC_CONFIG DYNAMIC_TOPIC_CONFIG:segment.bytes=1048576 DEFAULT_CONFIG:log.segment.bytes=1073741824
`
	if lines := configs(got.Configs); lines != want {
		t.Errorf("got\n%s\nwant\n%s", lines, want)
	}
	if got.Configs[1].IsDefault {
		t.Error("what is set to its default counts as default")
	}
}

func TestDescribeBroker(t *testing.T) {
	a := alone(t)
	want := `advertised.listeners STRING PLAINTEXT://k:9092 STATIC_BROKER_CONFIG STATIC_BROKER_CONFIG:advertised.listeners=PLAINTEXT://k:9092
auto.create.topics.enable BOOLEAN true DEFAULT_CONFIG DEFAULT_CONFIG:auto.create.topics.enable=true
broker.id INT 3 STATIC_BROKER_CONFIG STATIC_BROKER_CONFIG:broker.id=3 DEFAULT_CONFIG:broker.id=-1
broker.rack STRING null DEFAULT_CONFIG
default.replication.factor INT 1 DEFAULT_CONFIG DEFAULT_CONFIG:default.replication.factor=1
group.max.size INT 5000 STATIC_BROKER_CONFIG STATIC_BROKER_CONFIG:group.max.size=5000 DEFAULT_CONFIG:group.max.size=2147483647
log.dirs STRING /varve STATIC_BROKER_CONFIG STATIC_BROKER_CONFIG:log.dirs=/varve
log.retention.hours INT 168 DEFAULT_CONFIG DEFAULT_CONFIG:log.retention.hours=168
log.retention.minutes INT null DEFAULT_CONFIG
log.retention.ms LONG null DEFAULT_CONFIG
message.max.bytes INT 1048588 DEFAULT_CONFIG DEFAULT_CONFIG:message.max.bytes=1048588
min.insync.replicas INT 1 DEFAULT_CONFIG DEFAULT_CONFIG:min.insync.replicas=1
node.id INT 3 STATIC_BROKER_CONFIG STATIC_BROKER_CONFIG:node.id=3
num.partitions INT 1 DEFAULT_CONFIG DEFAULT_CONFIG:num.partitions=1
offsets.retention.minutes INT 10080 DEFAULT_CONFIG DEFAULT_CONFIG:offsets.retention.minutes=10080
transaction.max.timeout.ms INT 900000 DEFAULT_CONFIG DEFAULT_CONFIG:transaction.max.timeout.ms=900000
`
	var keys []string
	for line := range strings.Lines(want) {
		key, _, _ := strings.Cut(line, " ")
		keys = append(keys, key)
	}
	if lines := configs(a.describe(t, ofBroker, "3", keys...).Configs); lines != want {
		t.Errorf("got\n%s\nwant\n%s", lines, want)
	}
	seen := map[string]bool{}
	for _, c := range a.describe(t, ofBroker, "3").Configs {
		if !c.ReadOnly || c.IsSensitive || c.Documentation == nil || *c.Documentation == "" || seen[c.Name] {
			t.Errorf("%s: read-only %v, sensitive %v, documented %v, seen before %v", c.Name, c.ReadOnly, c.IsSensitive, c.Documentation != nil, seen[c.Name])
		}
		seen[c.Name] = true
	}
}

func TestDescribeOtherResources(t *testing.T) {
	a := alone(t)
	tests := []struct {
		kind kmsg.ConfigResourceType
		name string
		want int // configurations
		code protocol.ErrorCode
		text string
	}{
		{ofTopic, "absent", 0, protocol.UnknownTopicOrPartition, ""},
		{ofTopic, "a/b", 0, protocol.InvalidTopicException, "Topic name is invalid"},
		{ofBroker, "", 0, protocol.None, ""},
		{ofBroker, "4", 0, protocol.InvalidRequest, "Unexpected broker id, expected 3 or empty string, but received 4"},
		{ofBroker, "x", 0, protocol.InvalidRequest, "Broker id must be an integer, but it is: x"},
		{kmsg.ConfigResourceTypeBrokerLogger, "3", 0, protocol.None, ""},
		{kmsg.ConfigResourceTypeBrokerLogger, "4", 0, protocol.InvalidRequest, "Unexpected broker id"},
		{kmsg.ConfigResourceTypeBrokerLogger, "", 0, protocol.InvalidRequest, "Broker id must not be empty"},
		{kmsg.ConfigResourceTypeClientMetrics, "m", 0, protocol.None, ""},
		{kmsg.ConfigResourceTypeClientMetrics, "", 0, protocol.InvalidRequest, "Client metrics subscription name must not be empty"},
		{kmsg.ConfigResourceTypeGroupConfig, "g", 10, protocol.None, ""},
		{kmsg.ConfigResourceTypeGroupConfig, "", 0, protocol.InvalidRequest, "Group name must not be empty"},
		{5, "x", 0, protocol.InvalidRequest, "Unsupported resource type: 5"},
	}
	for _, tt := range tests {
		got := a.describe(t, tt.kind, tt.name)
		expect(t, tt.kind.String()+" "+tt.name, got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
		if len(got.Configs) != tt.want {
			t.Errorf("%v %q has %d configurations, want %d", tt.kind, tt.name, len(got.Configs), tt.want)
		}
	}
	want := "consumer.session.timeout.ms INT 45000 DEFAULT_CONFIG DEFAULT_CONFIG:consumer.session.timeout.ms=45000\n"
	if lines := configs(a.describe(t, kmsg.ConfigResourceTypeGroupConfig, "g", "consumer.session.timeout.ms").Configs); lines != want {
		t.Errorf("got %q, want %q", lines, want)
	}
}

func TestDescribeWithoutExtras(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 1)
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Version = 1
	for range 20 { // more than are read afresh
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName, r.ConfigNames = ofTopic, "t", []string{}
		req.Resources = append(req.Resources, r)
	}
	req.Resources[19].ResourceName = "absent"
	resp := a.DescribeConfigs(t.Context(), req)
	for i := range 19 {
		got := resp.Resources[i]
		if got.ErrorCode != 0 || len(got.Configs) != 33 || got.Configs[0].ConfigSynonyms != nil || got.Configs[0].Documentation != nil {
			t.Fatalf("got %+v", got)
		}
	}
	expect(t, "absent", resp.Resources[19].ErrorCode, resp.Resources[19].ErrorMessage, protocol.UnknownTopicOrPartition, "")
}

// TestDescribeReadsTheCoordinator has one agent describe what another one has just set, and go on while the coordinator is away.
func TestDescribeReadsTheCoordinator(t *testing.T) {
	kv := mem.New(mem.Config{})
	a, b := start(t, kv, topics.Defaults()), start(t, kv, topics.Defaults())
	a.make(t, "t", 1)
	for _, value := range []string{"1", "2", "3", "4", "5"} {
		a.IncrementalAlterConfigs(t.Context(), incremental(ofTopic, "t", op("retention.ms", set, value)))
		got := b.describe(t, ofTopic, "t", "retention.ms")
		if len(got.Configs) != 1 || *got.Configs[0].Value != value {
			t.Fatalf("described %+v, want retention.ms=%s", got, value)
		}
	}
	_, revision, _ := a.view.Topic("t")
	if err := b.view.Wait(t.Context(), revision); err != nil {
		t.Fatal(err)
	}
	kv.Inject(mem.Fault{Call: mem.CallGet, Kind: mem.Unavailable, Times: 2})
	if got := b.describe(t, ofTopic, "t", "retention.ms"); len(got.Configs) != 1 || *got.Configs[0].Value != "5" {
		t.Errorf("described %+v while the coordinator was away, want what the view has", got)
	}
	got := b.describe(t, ofTopic, "absent")
	expect(t, "a topic that neither has", got.ErrorCode, got.ErrorMessage, protocol.RequestTimedOut, "read topic absent")
}
