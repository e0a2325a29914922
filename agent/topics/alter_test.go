package topics_test

import (
	"maps"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

const (
	set      = kmsg.IncrementalAlterConfigOpSet
	drop     = kmsg.IncrementalAlterConfigOpDelete
	plus     = kmsg.IncrementalAlterConfigOpAppend
	minus    = kmsg.IncrementalAlterConfigOpSubtract
	ofTopic  = kmsg.ConfigResourceTypeTopic
	ofBroker = kmsg.ConfigResourceTypeBroker
)

// op is one change of a configuration; a value of "null" is null.
func op(name string, kind kmsg.IncrementalAlterConfigOp, value string) kmsg.IncrementalAlterConfigsRequestResourceConfig {
	c := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	c.Name, c.Op = name, kind
	if value != "null" {
		c.Value = &value
	}
	return c
}

func incremental(kind kmsg.ConfigResourceType, name string, ops ...kmsg.IncrementalAlterConfigsRequestResourceConfig) *kmsg.IncrementalAlterConfigsRequest {
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Version = 1
	r := kmsg.NewIncrementalAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName, r.Configs = kind, name, ops
	req.Resources = append(req.Resources, r)
	return req
}

func legacy(kind kmsg.ConfigResourceType, name string, configs ...string) *kmsg.AlterConfigsRequest {
	req := kmsg.NewPtrAlterConfigsRequest()
	req.Version = 2
	r := kmsg.NewAlterConfigsRequestResource()
	r.ResourceType, r.ResourceName = kind, name
	for _, c := range configs {
		key, value, _ := strings.Cut(c, "=")
		config := kmsg.NewAlterConfigsRequestResourceConfig()
		config.Name = key
		if value != "null" {
			config.Value = &value
		}
		r.Configs = append(r.Configs, config)
	}
	req.Resources = append(req.Resources, r)
	return req
}

func TestIncrementalAlterConfigs(t *testing.T) {
	type ops = []kmsg.IncrementalAlterConfigsRequestResourceConfig
	before := map[string]string{"retention.ms": "1000", "cleanup.policy": "compact"}
	tests := []struct {
		name string
		ops  ops
		want map[string]string // nil: as before
		code protocol.ErrorCode
		text string
	}{
		{"nothing", nil, nil, protocol.None, ""},
		{
			"set",
			ops{op("retention.ms", set, "2000"), op("segment.bytes", set, " 1048576")},
			map[string]string{"retention.ms": "2000", "cleanup.policy": "compact", "segment.bytes": "1048576"},
			protocol.None, "",
		},
		{"delete", ops{op("retention.ms", drop, "null")}, map[string]string{"cleanup.policy": "compact"}, protocol.None, ""},
		{"delete all", ops{op("retention.ms", drop, "null"), op("cleanup.policy", drop, "null")}, map[string]string{}, protocol.None, ""},
		{"delete what is not set", ops{op("segment.ms", drop, "null"), op("nonsense", drop, "null")}, nil, protocol.None, ""},
		{"append", ops{op("cleanup.policy", plus, "delete,compact")}, map[string]string{"retention.ms": "1000", "cleanup.policy": "compact,delete"}, protocol.None, ""},
		{
			"append to a default",
			ops{op("leader.replication.throttled.replicas", plus, "0:1")},
			map[string]string{"retention.ms": "1000", "cleanup.policy": "compact", "leader.replication.throttled.replicas": "0:1"},
			protocol.None, "",
		},
		{"subtract", ops{op("cleanup.policy", minus, "compact")}, map[string]string{"retention.ms": "1000", "cleanup.policy": ""}, protocol.None, ""},
		{"subtract what is not there", ops{op("cleanup.policy", minus, "delete")}, nil, protocol.None, ""},
		{"append to a number", ops{op("retention.ms", plus, "1")}, nil, protocol.InvalidConfig, "Can't APPEND to key retention.ms because its type is not LIST."},
		{"subtract from nonsense", ops{op("nonsense", minus, "1")}, nil, protocol.InvalidConfig, "Can't SUBTRACT to key nonsense because its type is not LIST."},
		{"unknown", ops{op("segment.ms", set, "1"), op("nonsense", set, "1")}, nil, protocol.InvalidConfig, "Unknown topic config name: nonsense"},
		{"bad value", ops{op("segment.ms", set, "0")}, nil, protocol.InvalidConfig, "Invalid value 0 for configuration segment.ms: Value must be at least 1"},
		{
			"at odds with each other",
			ops{op("min.compaction.lag.ms", set, "5"), op("max.compaction.lag.ms", set, "4")},
			nil,
			protocol.InvalidConfig, "conflict topic config setting min.compaction.lag.ms (5) > max.compaction.lag.ms (4)",
		},
		{"null", ops{op("segment.ms", set, "null"), op("retention.ms", plus, "null")}, nil, protocol.InvalidRequest, "Null value not supported for : segment.ms, retention.ms"},
		{"twice", ops{op("segment.ms", set, "1"), op("segment.ms", drop, "null")}, nil, protocol.InvalidRequest, "Error due to duplicate config keys"},
		{"unknown operation", ops{op("segment.ms", 4, "1")}, nil, protocol.InvalidRequest, "Unknown operations type 4"},
		{
			"too large",
			ops{op("leader.replication.throttled.replicas", set, strings.Repeat("1:1,", 20_000)+"1:1")},
			nil,
			protocol.InvalidConfig, "The configuration has ",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := alone(t)
			id := a.make(t, "t", 2, "retention.ms=1000", "cleanup.policy=compact").ID
			for _, validateOnly := range []bool{true, false} {
				req := incremental(ofTopic, "t", tt.ops...)
				req.ValidateOnly = validateOnly
				got := a.IncrementalAlterConfigs(t.Context(), req).Resources[0]
				expect(t, "answer", got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
				want := before
				if !validateOnly && tt.want != nil {
					want = tt.want
				}
				if now := a.must(t, "t"); !maps.Equal(now.Configs, want) || now.ID != id || now.Partitions != 2 {
					t.Errorf("validate only %v: then it is %+v, want %v", validateOnly, now, want)
				}
			}
		})
	}
}

func TestAlterConfigsReplacesAll(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 1, "retention.ms=1000", "cleanup.policy=compact")
	for _, tt := range []struct {
		req  *kmsg.AlterConfigsRequest
		code protocol.ErrorCode
		text string
		want map[string]string
	}{
		{legacy(ofTopic, "t", "segment.ms=5", "retention.ms=null"), protocol.InvalidRequest, "Null value not supported for : retention.ms", map[string]string{"retention.ms": "1000", "cleanup.policy": "compact"}},
		{legacy(ofTopic, "t", "segment.ms=5", "preallocate=TRUE"), protocol.None, "", map[string]string{"segment.ms": "5", "preallocate": "true"}},
		{legacy(ofTopic, "t", "segment.ms=x"), protocol.InvalidConfig, "Invalid value x for configuration segment.ms: Not a number of type LONG", map[string]string{"segment.ms": "5", "preallocate": "true"}},
		{legacy(ofTopic, "t"), protocol.None, "", map[string]string{}},
	} {
		got := a.AlterConfigs(t.Context(), tt.req).Resources[0]
		expect(t, "answer", got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
		if now := a.must(t, "t").Configs; !maps.Equal(now, tt.want) {
			t.Errorf("then it has %v, want %v", now, tt.want)
		}
	}
}

func TestAlterOtherResources(t *testing.T) {
	a := alone(t)
	tests := []struct {
		kind kmsg.ConfigResourceType
		name string
		code protocol.ErrorCode
		text string
	}{
		{ofTopic, "absent", protocol.UnknownTopicOrPartition, ""},
		{ofTopic, "", protocol.InvalidRequest, "Default topic resources are not allowed."},
		{ofTopic, "a/b", protocol.InvalidTopicException, "Topic name is invalid"},
		{ofBroker, "", protocol.InvalidRequest, "Cannot update these configs dynamically: retention.ms"},
		{ofBroker, "3", protocol.InvalidRequest, "Cannot update these configs dynamically: retention.ms"},
		{ofBroker, "4", protocol.InvalidRequest, "Unexpected broker id, expected 3"},
		{ofBroker, "x", protocol.InvalidRequest, "Broker id must be an integer, but it is: x"},
		{kmsg.ConfigResourceTypeBrokerLogger, "3", protocol.InvalidRequest, "Levels of loggers cannot be changed."},
		{kmsg.ConfigResourceTypeClientMetrics, "m", protocol.InvalidRequest, "Subscriptions to client metrics are not supported."},
		{kmsg.ConfigResourceTypeGroupConfig, "g", protocol.InvalidRequest, "Configurations of groups cannot be changed."},
		{3, "x", protocol.InvalidRequest, "Unknown resource type 3"},
	}
	for _, tt := range tests {
		for _, validateOnly := range []bool{true, false} {
			req := legacy(tt.kind, tt.name, "retention.ms=1")
			req.ValidateOnly = validateOnly
			got := a.AlterConfigs(t.Context(), req).Resources[0]
			expect(t, "replace", got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
		}
		got := a.IncrementalAlterConfigs(t.Context(), incremental(tt.kind, tt.name, op("retention.ms", set, "1"))).Resources[0]
		expect(t, "set", got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
		if got.ResourceType != tt.kind || got.ResourceName != tt.name {
			t.Errorf("answer is about %v %q, want %v %q", got.ResourceType, got.ResourceName, tt.kind, tt.name)
		}
	}
	for _, kind := range []kmsg.ConfigResourceType{ofBroker, kmsg.ConfigResourceTypeGroupConfig} {
		got := a.IncrementalAlterConfigs(t.Context(), incremental(kind, "3", op("leader.replication.throttled.rate", drop, "null"))).Resources[0]
		expect(t, "drop what was never set", got.ErrorCode, got.ErrorMessage, protocol.None, "")
	}
	twice := incremental(ofTopic, "t", op("retention.ms", set, "1"))
	twice.Resources = append(twice.Resources, twice.Resources[0])
	for _, got := range a.IncrementalAlterConfigs(t.Context(), twice).Resources {
		expect(t, "one resource twice", got.ErrorCode, got.ErrorMessage, protocol.InvalidRequest, "Each resource must appear at most once.")
	}
}

func TestConfigValues(t *testing.T) {
	tests := []struct {
		name, value string
		want        string // canonical
		text        string // of the error after the value's name, or none
	}{
		{"cleanup.policy", "delete , compact", "delete,compact", ""},
		{"cleanup.policy", "", "", ""},
		{"cleanup.policy", "keep", "", "String must be one of: compact, delete"},
		{"compression.type", "uncompressed", "uncompressed", ""},
		{"compression.type", "none", "", "String must be one of: uncompressed, zstd, lz4, snappy, gzip, producer"},
		{"compression.gzip.level", "-1", "-1", ""},
		{"compression.gzip.level", "9", "9", ""},
		{"compression.gzip.level", "0", "", "Value must be between 1 and 9 or equal to -1"},
		{"compression.lz4.level", "18", "", "Value must be no more than 17"},
		{"compression.zstd.level", "-131072", "-131072", ""},
		{"compression.zstd.level", "23", "", "Value must be no more than 22"},
		{"message.timestamp.type", "logappendtime", "", "String must be one of: CreateTime, LogAppendTime"},
		{"max.message.bytes", "2147483647", "2147483647", ""},
		{"max.message.bytes", "2147483648", "", "Not a number of type INT"},
		{"max.message.bytes", "-1", "", "Value must be at least 0"},
		{"retention.bytes", "-9", "-9", ""},
		{"retention.ms", "+07", "7", ""},
		{"retention.ms", "1e3", "", "Not a number of type LONG"},
		{"min.cleanable.dirty.ratio", "1", "1.0", ""},
		{"min.cleanable.dirty.ratio", "1.1", "", "Value must be no more than 1"},
		{"min.cleanable.dirty.ratio", "-0.1", "", "Value must be at least 0"},
		{"min.cleanable.dirty.ratio", "NaN", "", "Not a number of type DOUBLE"},
		{"min.insync.replicas", "0", "", "Value must be at least 1"},
		{"segment.bytes", "1048575", "", "Value must be at least 1048576"},
		{"remote.storage.enable", "True", "true", ""},
		{"remote.storage.enable", "yes", "", "Expected value to be either true or false"},
		{"follower.replication.throttled.replicas", "*", "*", ""},
		{"follower.replication.throttled.replicas", "0:1, 2:3", "0:1,2:3", ""},
		{"follower.replication.throttled.replicas", "*,0:1", "", "must be the literal '*' or a list of replicas"},
	}
	a := alone(t)
	a.make(t, "t", 1)
	for _, tt := range tests {
		got := a.IncrementalAlterConfigs(t.Context(), incremental(ofTopic, "t", op(tt.name, set, tt.value))).Resources[0]
		if tt.text != "" {
			expect(t, tt.name, got.ErrorCode, got.ErrorMessage, protocol.InvalidConfig, "Invalid value "+tt.value+" for configuration "+tt.name+": "+tt.text)
			continue
		}
		expect(t, tt.name+"="+tt.value, got.ErrorCode, got.ErrorMessage, protocol.None, "")
		if stored := a.must(t, "t").Configs[tt.name]; stored != tt.want {
			t.Errorf("%s=%s is stored as %q, want %q", tt.name, tt.value, stored, tt.want)
		}
	}
}
