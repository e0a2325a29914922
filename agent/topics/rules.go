package topics

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Rules are a topic's configurations as numbers. They never change; a topic whose configurations change gets others.
type Rules struct {
	MessageBytesMax int  // of a whole batch (max.message.bytes)
	Compact, Delete bool // cleanup.policy

	RetentionMs        int64   // -1: no limit
	RetentionBytes     int64   // of a partition; -1: no limit
	DeleteRetentionMs  int64   // of tombstones
	CompactionLagMsMin int64   // min.compaction.lag.ms
	CompactionLagMsMax int64   // max.compaction.lag.ms
	DirtyRatioMin      float64 // min.cleanable.dirty.ratio
	InSyncMin          int     // min.insync.replicas

	logAppendTime     bool
	beforeMs, afterMs int64 // how far a timestamp may lie from the present
	recompress        bool  // compression.type is a codec, not "producer"
	codec             batch.Codec
	level             int
	codecs            *codecs
}

// codecs are kept between batches, because their buffers and tables cost more than a small batch does.
type codecs struct {
	decompressors sync.Pool // of *batch.Decompressor
	compressors   sync.Pool // of *batch.Compressor
}

// PlainBytesMax bounds what one batch's records may be when they are decompressed, where somebody has to: in topics that are compacted, or have a compression.type. It is 32 times the
// max.message.bytes that topics have by default.
const PlainBytesMax = 32 << 20

func newCodecs() *codecs {
	return &codecs{
		decompressors: sync.Pool{New: func() any { return batch.NewDecompressor(PlainBytesMax) }},
		compressors:   sync.Pool{New: func() any { return new(batch.Compressor) }},
	}
}

// cachedRules are the rules of a topic with the configurations that they were made of. Holding the map keeps its address from being used
// for another, so that the same address means the same configurations.
type cachedRules struct {
	configs map[string]string
	rules   *Rules
}

// rulesCachedMax bounds the cache: beyond it everything is forgotten, and what is still used is made again.
const rulesCachedMax = 100_000

// RulesOf returns the topic's rules. It does not allocate unless the topic's configurations are new to it. t.Configs must be as the
// view gave it, and must not change in place.
func (t *Topics) RulesOf(topic *coordinator.Topic) *Rules {
	if len(topic.Configs) == 0 {
		return t.defaultRules
	}
	t.mu.RLock()
	cached, ok := t.rules[topic.ID]
	t.mu.RUnlock()
	if ok && reflect.ValueOf(cached.configs).Pointer() == reflect.ValueOf(topic.Configs).Pointer() {
		return cached.rules
	}
	rules := parseRules(topic.Configs, t.codecs)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rules) >= rulesCachedMax {
		clear(t.rules)
	}
	t.rules[topic.ID] = cachedRules{configs: topic.Configs, rules: rules}
	return rules
}

// parseRules makes rules of configurations.
func parseRules(configs map[string]string, codecs *codecs) *Rules {
	r := &Rules{
		MessageBytesMax:    int(number(configs, "max.message.bytes")),
		RetentionMs:        number(configs, "retention.ms"),
		RetentionBytes:     number(configs, "retention.bytes"),
		DeleteRetentionMs:  number(configs, "delete.retention.ms"),
		CompactionLagMsMin: number(configs, "min.compaction.lag.ms"),
		CompactionLagMsMax: number(configs, "max.compaction.lag.ms"),
		InSyncMin:          int(number(configs, "min.insync.replicas")),
		logAppendTime:      effective(configs, "message.timestamp.type") == "LogAppendTime",
		beforeMs:           number(configs, "message.timestamp.before.max.ms"),
		afterMs:            number(configs, "message.timestamp.after.max.ms"),
		codecs:             codecs,
	}
	r.DirtyRatioMin, _ = strconv.ParseFloat(effective(configs, "min.cleanable.dirty.ratio"), 64)
	for policy := range strings.SplitSeq(effective(configs, "cleanup.policy"), ",") {
		r.Compact = r.Compact || policy == "compact"
		r.Delete = r.Delete || policy == "delete"
	}
	if codec, err := batch.ParseCodec(effective(configs, "compression.type")); err == nil {
		r.recompress, r.codec = true, codec
		if _, ok := definitionIndex["compression."+codec.String()+".level"]; ok {
			r.level = int(number(configs, "compression."+codec.String()+".level"))
		}
	}
	return r
}

// Limits are what [batch.Check] holds a batch of a Produce request of that version against.
func (r *Rules) Limits(version int16, nowMs int64) batch.Limits {
	limits := batch.Limits{BatchBytesMax: r.MessageBytesMax, ProduceVersion: version}
	if r.logAppendTime {
		return limits // the producer's timestamps do not count
	}
	if r.beforeMs < nowMs {
		limits.TimestampMin = nowMs - r.beforeMs
	}
	if r.afterMs < math.MaxInt64-nowMs {
		limits.TimestampMax = nowMs + r.afterMs
	}
	return limits
}

// RecordsError says which records of a batch are refused, for the record errors of a Produce response (KIP-467). Err is the batch's error.
type RecordsError struct {
	Err     error
	Records []batch.RecordError
}

// Error implements error.
func (e *RecordsError) Error() string { return e.Err.Error() }

// Unwrap gives the batch's error, which has the code.
func (e *RecordsError) Unwrap() error { return e.Err }

// Apply makes of a batch that [batch.Check] has passed what the topic stores (LogValidator): records of a compacted topic must
// have keys, compression.type may ask for another codec, and message.timestamp.type=LogAppendTime for nowMs as timestamp. Mostly there is
// nothing to do: then it returns its arguments, and neither looks into the records nor allocates.
//
// It changes b in place or returns bytes of its own. Errors are [*protocol.Error] or wrap one: InvalidRecord for records that lack a
// key (a [*RecordsError]) or cannot be read, MessageTooLarge for a batch that grew beyond max.message.bytes.
func (r *Rules) Apply(nowMs int64, h batch.Header, b []byte) (batch.Header, []byte, error) {
	if r.Compact {
		if err := r.checkKeys(&h, b); err != nil {
			return h, b, err
		}
	}
	if r.recompress && h.Attributes.Codec() != r.codec {
		var err error
		if h, b, err = r.convert(h, b); err != nil {
			return h, b, err
		}
	}
	if r.logAppendTime {
		batch.SetLogAppendTime(b, nowMs)
		var err error
		if h, err = batch.Parse(b); err != nil {
			return h, b, err
		}
	}
	return h, b, nil
}

// checkKeys reads all records of a batch, each of which must have a key.
func (r *Rules) checkKeys(h *batch.Header, b []byte) error {
	d := r.codecs.decompressors.Get().(*batch.Decompressor)
	defer r.codecs.decompressors.Put(d)
	_, records, err := d.Validate(h, b, true)
	if err != nil && len(records) > 0 {
		return &RecordsError{Err: err, Records: records}
	}
	return err
}

// convert compresses a batch anew.
func (r *Rules) convert(h batch.Header, b []byte) (batch.Header, []byte, error) {
	d := r.codecs.decompressors.Get().(*batch.Decompressor)
	defer r.codecs.decompressors.Put(d)
	c := r.codecs.compressors.Get().(*batch.Compressor)
	defer r.codecs.compressors.Put(c)
	converted, err := c.Recompress(make([]byte, 0, len(b)), d, &h, b, r.codec, r.level)
	if err != nil {
		return h, b, err
	}
	if len(converted) > r.MessageBytesMax {
		return h, b, protocol.MessageTooLarge.Errorf("batch has %d bytes with compression.type=%v, want at most %d (max.message.bytes)",
			len(converted), r.codec, r.MessageBytesMax)
	}
	h, err = batch.Parse(converted)
	return h, converted, err
}
