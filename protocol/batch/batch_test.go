package batch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

var codecs = []batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}

var roomy = batch.Limits{BatchBytesMax: 1 << 20, ProduceVersion: 9}

// build returns a batch of n small records, 10 ms apart.
func build(t testing.TB, codec batch.Codec, n int) []byte {
	t.Helper()
	b := batch.NewBuilder(codec)
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = 4000, 3, 17
	for i := range n {
		b.Append(int64(1000+10*i), fmt.Appendf(nil, "key-%d", i), fmt.Appendf(nil, "value-%d", i))
	}
	out, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// reseal corrects the CRC of a batch that a test has changed.
func reseal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func parse(t testing.TB, b []byte) batch.Header {
	t.Helper()
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "kafka-"+name+".batch"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKafkaBatches reads batches that the Java client of Apache Kafka 4.3.1
// wrote (MemoryRecords.builder), one per codec: 40 records, every fifth
// without key, every seventh without value, every third with two headers, the
// twentieth 5 s after the first and all others 10 ms apart.
func TestKafkaBatches(t *testing.T) {
	d := batch.NewDecompressor(1 << 20)
	for _, codec := range codecs {
		t.Run(codec.String(), func(t *testing.T) {
			b := golden(t, codec.String())
			h, err := batch.Check(b, roomy)
			if err != nil {
				t.Fatal(err)
			}
			if h.Attributes.Codec() != codec || !h.Attributes.Transactional() || h.ProducerID != 4000 ||
				h.ProducerEpoch != 3 || h.BaseSequence != 17 || h.LastSequence() != 56 || h.LastOffset() != 39 ||
				h.NextOffset() != 40 || h.MaxTimestamp != 1700000005000 || h.Size() != len(b) {
				t.Errorf("header %+v", h)
			}
			records, err := d.Records(&h, b)
			if err != nil {
				t.Fatal(err)
			}
			var r batch.Record
			i := 0
			for ; records.Next(&r); i++ {
				checkKafkaRecord(t, &h, &r, i)
			}
			if records.Err() != nil || i != 40 {
				t.Errorf("%d records, %v", i, records.Err())
			}
			checkLookups(t, d, &h, b)
		})
	}
}

func checkKafkaRecord(t *testing.T, h *batch.Header, r *batch.Record, i int) {
	t.Helper()
	var key, value []byte
	if i%5 != 0 {
		key = fmt.Appendf(nil, "key-%d", i)
	}
	if i%7 != 0 {
		value = fmt.Appendf(nil, "value-%d%s", i, strings.Repeat("-", i))
	}
	timestamp := 1700000000000 + int64(10*i)
	if i == 20 {
		timestamp = 1700000005000
	}
	if (r.Key == nil) != (key == nil) || !bytes.Equal(r.Key, key) || (r.Value == nil) != (value == nil) || !bytes.Equal(r.Value, value) ||
		h.Timestamp(r) != timestamp || h.Offset(r) != protocol.Offset(i) {
		t.Errorf("record %d: %q=%q at %d, offset %d", i, r.Key, r.Value, h.Timestamp(r), h.Offset(r))
	}
	var headers []string
	for k, v := range r.Headers() {
		headers = append(headers, fmt.Sprintf("%s=%s %v", k, v, v == nil))
	}
	var want []string
	if i%3 == 0 {
		want = []string{fmt.Sprintf("h%d=hv%d false", i, i), "null= true"}
	}
	if fmt.Sprint(headers) != fmt.Sprint(want) {
		t.Errorf("record %d has headers %q, want %q", i, headers, want)
	}
}

func checkLookups(t *testing.T, d *batch.Decompressor, h *batch.Header, b []byte) {
	t.Helper()
	for _, c := range []struct {
		target int64
		from   protocol.Offset
		offset protocol.Offset
		found  bool
	}{
		{0, 0, 0, true},
		{1700000000000, 0, 0, true},
		{1700000000001, 0, 1, true},
		{1700000000195, 0, 20, true},
		{1700000000200, 21, 21, true},
		{1700000000500, 0, 20, true},
		{1700000000500, 21, -1, false},
		{1700000005001, 0, -1, false},
	} {
		offset, _, found, err := d.FirstAtOrAfter(h, b, c.target, c.from)
		if offset != c.offset || found != c.found || err != nil {
			t.Errorf("first at or after %d from %d: %d, %v, %v; want %d, %v", c.target, c.from, offset, found, err, c.offset, c.found)
		}
	}
	if offset, timestamp, found, err := d.FirstOfMaxTimestamp(h, b); offset != 20 || timestamp != 1700000005000 || !found || err != nil {
		t.Errorf("max timestamp: %d, %d, %v, %v", offset, timestamp, found, err)
	}
}

// TestBuilderAgainstFranz compares built batches with franz-go's encoding of
// the same, and lets its decompressor read them.
func TestBuilderAgainstFranz(t *testing.T) {
	for _, codec := range codecs {
		built := build(t, codec, 100)
		var plain []byte
		for i := range 100 {
			r := kmsg.Record{
				TimestampDelta64: int64(10 * i), OffsetDelta: int32(i),
				Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, "value-%d", i),
			}
			r.Length = int32(len(r.AppendTo(nil)) - 1) // a Length of 0 has one byte
			plain = r.AppendTo(plain)
		}
		var got kmsg.RecordBatch
		if err := got.ReadFrom(built); err != nil {
			t.Fatal(err)
		}
		records, err := kgo.DefaultDecompressor().Decompress(got.Records, kgo.CompressionCodecType(codec))
		if err != nil || !bytes.Equal(records, plain) {
			t.Errorf("%v: franz-go reads %d bytes, want %d: %v", codec, len(records), len(plain), err)
		}
		want := kmsg.RecordBatch{
			PartitionLeaderEpoch: -1, Magic: 2, Attributes: int16(codec), LastOffsetDelta: 99, FirstTimestamp: 1000,
			MaxTimestamp: 1990, ProducerID: 4000, ProducerEpoch: 3, FirstSequence: 17, NumRecords: 100, Records: got.Records,
		}
		want.Length = int32(49 + len(got.Records))
		if !bytes.Equal(reseal(want.AppendTo(nil)), built) {
			t.Errorf("%v: header %+v, want %+v", codec, got, want)
		}
	}
}

func TestCheckErrors(t *testing.T) {
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint16(b[at:], v); return reseal(b) }
	}
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return reseal(b) }
	}
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return reseal(b) }
	}
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   protocol.ErrorCode
	}{
		"whole":                    {func(b []byte) []byte { return b }, protocol.None},
		"empty":                    {func([]byte) []byte { return nil }, protocol.InvalidRecord},
		"header cut":               {func(b []byte) []byte { return b[:60] }, protocol.CorruptMessage},
		"records cut":              {func(b []byte) []byte { return b[:len(b)-1] }, protocol.CorruptMessage},
		"two batches":              {func(b []byte) []byte { return append(b, b...) }, protocol.InvalidRecord},
		"fragment follows":         {func(b []byte) []byte { return append(b, 0) }, protocol.InvalidRecord},
		"length negative":          {put32(8, 1<<31), protocol.CorruptMessage},
		"length of less":           {put32(8, 48), protocol.CorruptMessage},
		"length of no records":     {put32(8, 49), protocol.InvalidRecord},
		"length of more":           {put32(8, 1<<30), protocol.CorruptMessage},
		"magic 1":                  {func(b []byte) []byte { b[16] = 1; return b }, protocol.InvalidRecord},
		"short with magic 0":       {func([]byte) []byte { return make([]byte, 34) }, protocol.InvalidRecord},
		"magic 3":                  {func(b []byte) []byte { b[16] = 3; return b }, protocol.InvalidRecord},
		"record bit flipped":       {func(b []byte) []byte { b[70] ^= 1; return b }, protocol.CorruptMessage},
		"crc bit flipped":          {func(b []byte) []byte { b[20] ^= 1; return b }, protocol.CorruptMessage},
		"codec bit flipped":        {func(b []byte) []byte { b[22] ^= 4 + 2; return b }, protocol.CorruptMessage},
		"leader epoch ignored":     {func(b []byte) []byte { b[15] ^= 1; return b }, protocol.None},
		"base offset":              {put64(0, 5), protocol.InvalidRecord},
		"codec 5":                  {put16(21, 5), protocol.UnsupportedCompressionType},
		"codec 7":                  {put16(21, 7), protocol.UnsupportedCompressionType},
		"log append time":          {put16(21, 0x08), protocol.InvalidTimestamp},
		"transactional":            {put16(21, 0x10), protocol.None},
		"control":                  {put16(21, 0x30), protocol.InvalidRecord},
		"delete horizon":           {put16(21, 0x40), protocol.InvalidRecord},
		"unused attributes":        {put16(21, 0x80), protocol.None},
		"no records":               {put32(57, 0), protocol.InvalidRecord},
		"negative records":         {put32(57, 1<<31), protocol.InvalidRecord},
		"more records than deltas": {put32(57, 11), protocol.InvalidRecord},
		"last offset delta":        {put32(23, 8), protocol.InvalidRecord},
		"last offset delta < 0":    {put32(23, 1<<32-1), protocol.InvalidRecord},
		"no sequence":              {put32(53, 1<<32-1), protocol.InvalidRecord},
		"no producer, no sequence": {func(b []byte) []byte { return put32(53, 1<<32-1)(put64(43, 1<<64-1)(b)) }, protocol.None},
		"transaction, no producer": {func(b []byte) []byte { return put16(21, 0x10)(put64(43, 1<<64-1)(b)) }, protocol.InvalidRecord},
	} {
		_, err := batch.Check(c.change(build(t, batch.None, 10)), roomy)
		var pe *protocol.Error
		if protocol.CodeOf(err) != c.want || err != nil && !errors.As(err, &pe) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestCheckLimits(t *testing.T) {
	plain, zstd := build(t, batch.None, 10), build(t, batch.Zstd, 10)
	for name, c := range map[string]struct {
		b      []byte
		limits batch.Limits
		want   protocol.ErrorCode
	}{
		"largest":           {plain, batch.Limits{BatchBytesMax: len(plain), ProduceVersion: 3}, protocol.None},
		"too large":         {plain, batch.Limits{BatchBytesMax: len(plain) - 1, ProduceVersion: 3}, protocol.MessageTooLarge},
		"zstd in 7":         {zstd, batch.Limits{BatchBytesMax: 1000, ProduceVersion: 7}, protocol.None},
		"zstd in 6":         {zstd, batch.Limits{BatchBytesMax: 1000, ProduceVersion: 6}, protocol.UnsupportedCompressionType},
		"within bounds":     {plain, batch.Limits{BatchBytesMax: 1000, TimestampMin: 1000, TimestampMax: 1090}, protocol.None},
		"too old":           {plain, batch.Limits{BatchBytesMax: 1000, TimestampMin: 1001}, protocol.InvalidTimestamp},
		"in the far future": {plain, batch.Limits{BatchBytesMax: 1000, TimestampMax: 1089}, protocol.InvalidTimestamp},
	} {
		if _, err := batch.Check(c.b, c.limits); protocol.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestRestamp(t *testing.T) {
	b := build(t, batch.LZ4, 10)
	batch.Restamp(b, 1<<40, 7)
	h := parse(t, b)
	if h.BaseOffset != 1<<40 || h.LeaderEpoch != 7 || h.NextOffset() != 1<<40+10 {
		t.Errorf("header %+v", h)
	}
	if err := batch.Verify(b, &h); err != nil {
		t.Error(err)
	}
}

func TestSetLogAppendTime(t *testing.T) {
	b := build(t, batch.Gzip, 10)
	batch.SetLogAppendTime(b, 5555)
	h := parse(t, b)
	if err := batch.Verify(b, &h); err != nil || !h.Attributes.LogAppendTime() || h.MaxTimestamp != 5555 || h.BaseTimestamp != 1000 {
		t.Errorf("header %+v, %v", h, err)
	}
	d := batch.NewDecompressor(1 << 20)
	if offset, timestamp, found, err := d.FirstAtOrAfter(&h, b, 5555, 0); offset != 0 || timestamp != 5555 || !found || err != nil {
		t.Errorf("first at 5555: %d, %d, %v, %v", offset, timestamp, found, err)
	}
	if _, _, found, _ := d.FirstAtOrAfter(&h, b, 5556, 0); found {
		t.Error("found a record after the append time")
	}
}

func TestLastSequenceWraps(t *testing.T) {
	h := batch.Header{ProducerID: 1, BaseSequence: 1<<31 - 1, LastOffsetDelta: 2}
	if got := h.LastSequence(); got != 1 {
		t.Errorf("last sequence %d, want 1", got)
	}
	h.BaseSequence = -1
	if got := h.LastSequence(); got != protocol.NoSequence {
		t.Errorf("last sequence %d without sequences", got)
	}
}

func TestEach(t *testing.T) {
	first, second := build(t, batch.None, 3), build(t, batch.Zstd, 5)
	all := append(append([]byte(nil), first...), second...)
	var sizes []int
	visit := func(h batch.Header, b []byte) error {
		sizes = append(sizes, len(b), int(h.Records), cap(b))
		return nil
	}
	if err := batch.Each(all, visit); err != nil || fmt.Sprint(sizes) != fmt.Sprint([]int{len(first), 3, len(first), len(second), 5, len(second)}) {
		t.Errorf("%v, %v", sizes, err)
	}
	if err := batch.Each(all[:len(all)-1], visit); protocol.CodeOf(err) != protocol.CorruptMessage {
		t.Errorf("cut: %v", err)
	}
	stop := errors.New("stop")
	if err := batch.Each(all, func(batch.Header, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("visit's error: %v", err)
	}
}
