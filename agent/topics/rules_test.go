package topics_test

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// bare returns Topics that know nothing but the table of configurations.
func bare() *topics.Topics { return topics.New(topics.Defaults(), topics.Deps{}) }

// rulesOf returns the rules of a topic with configurations.
func rulesOf(configs map[string]string) *topics.Rules {
	return bare().RulesOf(&coordinator.Topic{ID: protocol.TopicID{1}, Configs: configs})
}

// build makes a batch as a producer sends it: records at nowMs with these keys, all with the same value. A key of "null" is null.
func build(t testing.TB, codec batch.Codec, value []byte, keys ...string) (batch.Header, []byte) {
	t.Helper()
	b := batch.NewBuilder(codec)
	for i, key := range keys {
		k := []byte(key)
		if key == "null" {
			k = nil
		}
		b.Append(nowMs+int64(i), k, value)
	}
	bytes, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Parse(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return h, bytes
}

func TestRulesOfDefaults(t *testing.T) {
	got := rulesOf(nil)
	if got.MessageBytesMax != 1048588 || got.Compact || !got.Delete || got.RetentionMs != 604800000 || got.RetentionBytes != -1 ||
		got.DeleteRetentionMs != 86400000 || got.CompactionLagMsMin != 0 || got.CompactionLagMsMax != math.MaxInt64 ||
		got.DirtyRatioMin != 0.5 || got.InSyncMin != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestRulesOfConfigs(t *testing.T) {
	got := rulesOf(map[string]string{
		"max.message.bytes": "5", "cleanup.policy": "compact", "retention.ms": "-1", "retention.bytes": "6", "delete.retention.ms": "7",
		"min.compaction.lag.ms": "8", "max.compaction.lag.ms": "9", "min.cleanable.dirty.ratio": "0.25", "min.insync.replicas": "2",
	})
	if got.MessageBytesMax != 5 || !got.Compact || got.Delete || got.RetentionMs != -1 || got.RetentionBytes != 6 || got.DeleteRetentionMs != 7 ||
		got.CompactionLagMsMin != 8 || got.CompactionLagMsMax != 9 || got.DirtyRatioMin != 0.25 || got.InSyncMin != 2 {
		t.Errorf("got %+v", got)
	}
	if got := rulesOf(map[string]string{"max.message.bytes": "many", "of.another.release": "x"}); got.MessageBytesMax != 1048588 {
		t.Errorf("a value that cannot be read gives %d, want the default", got.MessageBytesMax)
	}
}

func TestRulesOfAreCached(t *testing.T) {
	all := bare()
	topic := coordinator.Topic{ID: protocol.TopicID{1}, Configs: map[string]string{"max.message.bytes": "5"}}
	first := all.RulesOf(&topic)
	if all.RulesOf(&topic) != first {
		t.Error("the same configurations gave other rules")
	}
	other := coordinator.Topic{ID: protocol.TopicID{2}, Configs: map[string]string{"max.message.bytes": "7"}}
	if got := all.RulesOf(&other).MessageBytesMax; got != 7 {
		t.Errorf("another topic has %d, want 7", got)
	}
	topic.Configs = maps.Clone(topic.Configs)
	topic.Configs["max.message.bytes"] = "6"
	if got := all.RulesOf(&topic).MessageBytesMax; got != 6 {
		t.Errorf("changed configurations gave %d, want 6", got)
	}
	topic.Configs = nil
	if got := all.RulesOf(&topic).MessageBytesMax; got != 1048588 {
		t.Errorf("configurations that were dropped gave %d, want the default", got)
	}
}

func TestLimits(t *testing.T) {
	for name, tt := range map[string]struct {
		configs  map[string]string
		min, max int64
	}{
		"defaults":        {nil, 0, nowMs + 3600000},
		"both":            {map[string]string{"message.timestamp.before.max.ms": "1000", "message.timestamp.after.max.ms": "50"}, nowMs - 1000, nowMs + 50},
		"none":            {map[string]string{"message.timestamp.after.max.ms": "9223372036854775807"}, 0, 0},
		"log append time": {map[string]string{"message.timestamp.type": "LogAppendTime", "message.timestamp.before.max.ms": "1000"}, 0, 0},
	} {
		want := batch.Limits{BatchBytesMax: 1048588, ProduceVersion: 7, TimestampMin: tt.min, TimestampMax: tt.max}
		if got := rulesOf(tt.configs).Limits(7, nowMs); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

// TestLimitsOnBatches holds batches against the limits as Produce does.
func TestLimitsOnBatches(t *testing.T) {
	_, b := build(t, batch.None, []byte("v"), "k", "k")
	for name, tt := range map[string]struct {
		configs map[string]string
		now     int64
		code    protocol.ErrorCode
	}{
		"now":                       {nil, nowMs, protocol.None},
		"an hour early":             {nil, nowMs + 1 - 3600_000, protocol.None},
		"more than an hour early":   {nil, nowMs - 3600_000, protocol.InvalidTimestamp},
		"years late":                {nil, nowMs * 2, protocol.None},
		"later than allowed":        {map[string]string{"message.timestamp.before.max.ms": "10"}, nowMs + 11, protocol.InvalidTimestamp},
		"late, and it is not asked": {map[string]string{"message.timestamp.before.max.ms": "10", "message.timestamp.type": "LogAppendTime"}, nowMs + 11, protocol.None},
		"too large":                 {map[string]string{"max.message.bytes": "70"}, nowMs, protocol.MessageTooLarge},
	} {
		if _, err := batch.Check(b, rulesOf(tt.configs).Limits(9, tt.now)); protocol.CodeOf(err) != tt.code {
			t.Errorf("%s: %v, want %v", name, err, tt.code)
		}
	}
}

func TestApplyLeavesBatchesAlone(t *testing.T) {
	for name, configs := range map[string]map[string]string{
		"defaults":       nil,
		"the same codec": {"compression.type": "lz4"},
		"compacted":      {"cleanup.policy": "compact"},
		"size":           {"max.message.bytes": "1000"},
	} {
		h, b := build(t, batch.LZ4, []byte("v"), "k", "")
		before := bytes.Clone(b)
		gotH, got, err := rulesOf(configs).Apply(nowMs, h, b)
		if err != nil || gotH != h || &got[0] != &b[0] || !bytes.Equal(got, before) {
			t.Errorf("%s: changed the batch, or %v", name, err)
		}
	}
}

func TestApplyLogAppendTime(t *testing.T) {
	h, b := build(t, batch.Gzip, []byte("v"), "k", "k")
	gotH, got, err := rulesOf(map[string]string{"message.timestamp.type": "LogAppendTime"}).Apply(nowMs+500, h, b)
	if err != nil || &got[0] != &b[0] {
		t.Fatalf("not in place, or %v", err)
	}
	if !gotH.Attributes.LogAppendTime() || gotH.MaxTimestamp != nowMs+500 || gotH.BaseTimestamp != nowMs {
		t.Errorf("got header %+v", gotH)
	}
	if err := batch.Verify(got, &gotH); err != nil {
		t.Error(err)
	}
}

func TestApplyNeedsKeysWhereCompacted(t *testing.T) {
	for _, codec := range []batch.Codec{batch.None, batch.Zstd} {
		h, b := build(t, codec, []byte("v"), "k", "null", "", "null")
		_, _, err := rulesOf(map[string]string{"cleanup.policy": "delete,compact"}).Apply(nowMs, h, b)
		refused, ok := errors.AsType[*topics.RecordsError](err)
		if protocol.CodeOf(err) != protocol.InvalidRecord || !ok {
			t.Fatalf("%v: %v, want InvalidRecord with its records", codec, err)
		}
		var at []int32
		for _, r := range refused.Records {
			at = append(at, r.Index)
		}
		if !slices.Equal(at, []int32{1, 3}) {
			t.Errorf("%v: refused records %v, want 1 and 3", codec, at)
		}
		if _, _, err := rulesOf(nil).Apply(nowMs, h, b); err != nil {
			t.Errorf("%v: refused without compaction: %v", codec, err)
		}
	}
}

func TestApplyConverts(t *testing.T) {
	value := bytes.Repeat([]byte("varve "), 100)
	for _, from := range []batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd} {
		for name, to := range map[string]batch.Codec{
			"uncompressed": batch.None, "gzip": batch.Gzip, "snappy": batch.Snappy, "lz4": batch.LZ4, "zstd": batch.Zstd,
		} {
			h, b := build(t, from, value, "a", "null", "c")
			before := bytes.Clone(b)
			gotH, got, err := rulesOf(map[string]string{"compression.type": name}).Apply(nowMs, h, b)
			if err != nil {
				t.Fatalf("%v to %s: %v", from, name, err)
			}
			if !bytes.Equal(b, before) {
				t.Errorf("%v to %s changed the request's bytes", from, name)
			}
			if gotH.Attributes.Codec() != to || gotH.Size() != len(got) || batch.Verify(got, &gotH) != nil {
				t.Errorf("%v to %s: header %+v of %d bytes", from, name, gotH, len(got))
			}
			if keys := read(t, gotH, got, value); !slices.Equal(keys, []string{"a", "null", "c"}) {
				t.Errorf("%v to %s: then it has %v", from, name, keys)
			}
		}
	}
}

// read returns the keys of a batch, whose records all have the same value.
func read(t *testing.T, h batch.Header, b, value []byte) (keys []string) {
	t.Helper()
	records, err := batch.NewDecompressor(1<<20).Records(&h, b)
	if err != nil {
		t.Fatal(err)
	}
	var r batch.Record
	for records.Next(&r) {
		key := string(r.Key)
		if r.Key == nil {
			key = "null"
		}
		keys = append(keys, key)
		if !bytes.Equal(r.Value, value) {
			t.Errorf("record %s has another value", key)
		}
	}
	if err := records.Err(); err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestApplyConvertsByLevel(t *testing.T) {
	value := make([]byte, 1<<16)
	for i := range value {
		value[i] = byte(i * i >> 7 % 31)
	}
	h, b := build(t, batch.None, value, "k")
	sizes := map[string]int{}
	for _, level := range []string{"1", "9"} {
		_, got, err := rulesOf(map[string]string{"compression.type": "gzip", "compression.gzip.level": level}).Apply(nowMs, h, b)
		if err != nil {
			t.Fatal(err)
		}
		sizes[level] = len(got)
	}
	if sizes["9"] >= sizes["1"] {
		t.Errorf("gzip level 9 gives %d bytes, level 1 %d", sizes["9"], sizes["1"])
	}
}

func TestApplyRefusesWhatItCannotConvert(t *testing.T) {
	h, b := build(t, batch.Gzip, bytes.Repeat([]byte("varve "), 100), "k")
	_, _, err := rulesOf(map[string]string{"compression.type": "uncompressed", "max.message.bytes": "500"}).Apply(nowMs, h, b)
	if protocol.CodeOf(err) != protocol.MessageTooLarge {
		t.Errorf("a batch that grows too large: %v", err)
	}
	clear(b[batch.HeaderBytes:])
	_, _, err = rulesOf(map[string]string{"compression.type": "zstd"}).Apply(nowMs, h, b)
	if protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Errorf("a batch that cannot be decompressed: %v", err)
	}
}

// BenchmarkUntouched is what Produce pays per batch whose topic has configurations, and nothing in them to be done.
func BenchmarkUntouched(b *testing.B) {
	all := bare()
	topic := &coordinator.Topic{ID: protocol.TopicID{1}, Configs: map[string]string{"retention.ms": "1", "compression.type": "lz4"}}
	h, bytes := build(b, batch.LZ4, []byte("v"), "k")
	b.ReportAllocs()
	for b.Loop() {
		rules := all.RulesOf(topic)
		_ = rules.Limits(9, nowMs)
		if _, _, err := rules.Apply(nowMs, h, bytes); err != nil {
			b.Fatal(err)
		}
	}
}

func TestUntouchedDoesNotAllocate(t *testing.T) {
	all := bare()
	h, bytes := build(t, batch.LZ4, []byte("v"), "k")
	for _, configs := range []map[string]string{nil, {"retention.ms": "1", "compression.type": "lz4"}} {
		topic := &coordinator.Topic{ID: protocol.TopicID{1}, Configs: configs}
		allocs := testing.AllocsPerRun(100, func() {
			rules := all.RulesOf(topic)
			_ = rules.Limits(9, nowMs)
			if _, _, err := rules.Apply(nowMs, h, bytes); err != nil {
				t.Error(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v: %v allocations", configs, allocs)
		}
	}
}
