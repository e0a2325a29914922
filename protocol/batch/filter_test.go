package batch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// told is a record with all that a reader is told of it.
type told struct {
	offset     protocol.Offset
	timestamp  int64
	key, value string
	tombstone  bool
	headers    string
}

func tell(t testing.TB, b []byte) []told {
	t.Helper()
	h := parse(t, b)
	if err := batch.Verify(b, &h); err != nil {
		t.Fatal(err)
	}
	records, err := batch.NewDecompressor(1<<20).Records(&h, b)
	if err != nil {
		t.Fatal(err)
	}
	var all []told
	var r batch.Record
	for records.Next(&r) {
		one := told{offset: h.Offset(&r), timestamp: h.Timestamp(&r), key: string(r.Key), value: string(r.Value), tombstone: r.Value == nil}
		for key, value := range r.Headers() {
			one.headers += fmt.Sprintf("%s=%q,%t ", key, value, value == nil)
		}
		all = append(all, one)
	}
	if err := records.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// mixed returns a batch with all that may be in one: gaps, headers, tombstones, and timestamps out of order.
func mixed(t testing.TB, codec batch.Codec) []byte {
	t.Helper()
	b := batch.NewBuilder(codec)
	b.BaseOffset, b.LeaderEpoch = 1000, 7
	b.Transactional = true
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = 4000, 3, 17
	b.AppendAt(0, 5_000, []byte("a"), []byte("1"))
	b.AppendAt(1, 9_000, []byte("b"), nil, batch.HeaderField{Key: "h", Value: []byte("x")}, batch.HeaderField{Key: "h"})
	b.AppendAt(3, 4_000, []byte{}, []byte{})
	b.AppendAt(4, 7_000, []byte("c"), bytes.Repeat([]byte("long"), 100))
	b.AppendAt(9, 6_000, []byte("a"), []byte("2"), batch.HeaderField{Key: "", Value: []byte{}})
	out, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// keepOffsets keeps the records with these offset deltas.
func keepOffsets(deltas ...int32) func(*batch.Header, *batch.Record) bool {
	return func(_ *batch.Header, r *batch.Record) bool { return slices.Contains(deltas, r.OffsetDelta) }
}

func TestFilter(t *testing.T) {
	const horizon = 1_700_000_000_000
	for _, codec := range codecs {
		for _, test := range []struct {
			name         string
			deltas       []int32
			keepEmpty    bool
			horizon      int64
			maxTimestamp int64 // 0 if the batch is gone
			verbatim     bool
			horizonSet   bool
		}{
			{"all", []int32{0, 1, 3, 4, 9}, false, protocol.NoTimestamp, 9_000, true, false},
			{"all, and a tombstone expires", []int32{0, 1, 3, 4, 9}, true, horizon, 9_000, false, true},
			{"first and last", []int32{0, 9}, false, horizon, 6_000, false, false},
			{"middle", []int32{3}, false, horizon, 4_000, false, false},
			{"tombstone", []int32{1}, false, horizon, 9_000, false, true},
			{"tombstone without horizon", []int32{1, 4}, true, protocol.NoTimestamp, 9_000, false, false},
			{"none", nil, false, horizon, 0, false, false},
			{"none, kept", nil, true, horizon, protocol.NoTimestamp, false, false},
		} {
			t.Run(codec.String()+"/"+test.name, func(t *testing.T) {
				b := mixed(t, codec)
				was := bytes.Clone(b)
				h := parse(t, b)
				f := batch.NewFilter(batch.NewDecompressor(1 << 20))
				out, kept, err := f.Apply(&h, b, batch.Cut{Keep: keepOffsets(test.deltas...), KeepEmpty: test.keepEmpty, DeleteHorizon: test.horizon})
				if err != nil || int(kept) != len(test.deltas) {
					t.Fatal(kept, err)
				}
				if !bytes.Equal(b, was) {
					t.Fatal("the batch itself has changed")
				}
				if test.maxTimestamp == 0 {
					if out != nil {
						t.Fatalf("%d bytes are left", len(out))
					}
					return
				}
				if same := &out[0] == &b[0] && len(out) == len(b); same != test.verbatim {
					t.Fatalf("verbatim is %t", same)
				}
				checkFiltered(t, b, out, test.deltas)
				got := parse(t, out)
				if got.MaxTimestamp != test.maxTimestamp || got.Attributes.DeleteHorizon() != test.horizonSet {
					t.Errorf("max timestamp %d, attributes %#x", got.MaxTimestamp, got.Attributes)
				}
				if test.horizonSet && got.BaseTimestamp != horizon {
					t.Errorf("delete horizon %d", got.BaseTimestamp)
				}
			})
		}
	}
}

// checkFiltered compares a batch with what a filter left of it.
func checkFiltered(t *testing.T, b, out []byte, deltas []int32) {
	t.Helper()
	was, got := parse(t, b), parse(t, out)
	var want []told
	for _, one := range tell(t, b) {
		for _, d := range deltas {
			if one.offset == was.BaseOffset+protocol.Offset(d) {
				want = append(want, one)
			}
		}
	}
	if left := tell(t, out); fmt.Sprint(left) != fmt.Sprint(want) {
		t.Errorf("records %v, want %v", left, want)
	}
	if int(got.Records) != len(deltas) || got.BaseOffset != was.BaseOffset || got.LastOffset() != was.LastOffset() || got.LeaderEpoch != was.LeaderEpoch ||
		got.ProducerID != was.ProducerID || got.ProducerEpoch != was.ProducerEpoch || got.BaseSequence != was.BaseSequence ||
		got.LastSequence() != was.LastSequence() || got.Attributes.Transactional() != was.Attributes.Transactional() {
		t.Errorf("header %+v of %+v", got, was)
	}
	if len(deltas) > 0 && got.Attributes.Codec() != was.Attributes.Codec() {
		t.Errorf("codec %v of %v", got.Attributes.Codec(), was.Attributes.Codec())
	}
	if len(deltas) == 0 && (len(out) != batch.HeaderBytes || got.Attributes.Codec() != batch.None || got.BaseTimestamp != protocol.NoTimestamp) {
		t.Errorf("empty batch has %d bytes, %+v", len(out), got)
	}
}

// A batch keeps its first delete horizon, and what a second filter leaves of it has the timestamps of its producer.
func TestFilterTwice(t *testing.T) {
	b := mixed(t, batch.LZ4)
	f := batch.NewFilter(batch.NewDecompressor(1 << 20))
	h := parse(t, b)
	first, _, err := f.Apply(&h, b, batch.Cut{Keep: keepOffsets(1, 4, 9), DeleteHorizon: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	first = bytes.Clone(first)
	h = parse(t, first)
	second, _, err := f.Apply(&h, first, batch.Cut{Keep: keepOffsets(1, 4), DeleteHorizon: 17})
	if err != nil {
		t.Fatal(err)
	}
	checkFiltered(t, b, second, []int32{1, 4})
	second = bytes.Clone(second)
	h = parse(t, second)
	if !h.Attributes.DeleteHorizon() || h.BaseTimestamp != math.MaxInt64 || h.MaxTimestamp != 9_000 {
		t.Errorf("header %+v", h)
	}
	empty, _, err := f.Apply(&h, second, batch.Cut{Keep: keepOffsets(), KeepEmpty: true, DeleteHorizon: 17})
	if err != nil {
		t.Fatal(err)
	}
	empty = bytes.Clone(empty)
	if h = parse(t, empty); h.Attributes.DeleteHorizon() || h.Records != 0 || h.LastSequence() != 26 {
		t.Errorf("header %+v", h)
	}
	for _, keepEmpty := range []bool{true, false} {
		out, _, err := f.Apply(&h, empty, batch.Cut{Keep: keepOffsets(), KeepEmpty: keepEmpty, DeleteHorizon: 17})
		if err != nil || (len(out) > 0) != keepEmpty || keepEmpty && &out[0] != &empty[0] {
			t.Errorf("of an empty batch %d bytes are left: %v", len(out), err)
		}
	}
}

func TestFilterLogAppendTime(t *testing.T) {
	b := mixed(t, batch.Zstd)
	batch.SetLogAppendTime(b, 12_345)
	h := parse(t, b)
	out, _, err := batch.NewFilter(batch.NewDecompressor(1<<20)).Apply(&h, b, batch.Cut{Keep: keepOffsets(1, 4), DeleteHorizon: 99_999})
	if err != nil {
		t.Fatal(err)
	}
	checkFiltered(t, b, out, []int32{1, 4})
	if got := parse(t, out); got.MaxTimestamp != 12_345 || !got.Attributes.LogAppendTime() || !got.Attributes.DeleteHorizon() || got.BaseTimestamp != 99_999 {
		t.Errorf("header %+v", got)
	}
}

func TestFilterMarker(t *testing.T) {
	m := batch.EndMarker{Marker: batch.Commit, ProducerID: 5, ProducerEpoch: 2, CoordinatorEpoch: 9, Timestamp: 1_000}
	b, err := batch.AppendControlBatch(nil, 77, 3, m)
	if err != nil {
		t.Fatal(err)
	}
	h := parse(t, b)
	out, kept, err := batch.NewFilter(batch.NewDecompressor(1<<20)).Apply(&h, b, batch.Cut{Keep: keepOffsets(0), DeleteHorizon: 5_000})
	if err != nil || kept != 1 {
		t.Fatal(kept, err)
	}
	h = parse(t, out)
	if got, err := batch.ParseControl(&h, out); err != nil || got != m {
		t.Errorf("marker %+v, %v", got, err)
	}
	if !h.Attributes.DeleteHorizon() || h.BaseTimestamp != 5_000 || batch.Verify(out, &h) != nil {
		t.Errorf("header %+v", h)
	}
}

func TestFilterErrors(t *testing.T) {
	good := mixed(t, batch.None)
	for name, damage := range map[string]func(b []byte) []byte{
		"a record too many": func(b []byte) []byte { binary.BigEndian.PutUint32(b[57:], 6); return b },
		"a record too few":  func(b []byte) []byte { binary.BigEndian.PutUint32(b[57:], 4); return b },
		"no record":         func(b []byte) []byte { binary.BigEndian.PutUint32(b[57:], 0); return b },
		"unknown codec":     func(b []byte) []byte { b[22] |= 7; return b },
		"cut record":        func(b []byte) []byte { b[61] += 2; return b },
	} {
		b := damage(bytes.Clone(good))
		h := parse(t, b)
		out, _, err := batch.NewFilter(batch.NewDecompressor(1<<20)).Apply(&h, b, batch.Cut{Keep: keepOffsets(0, 1, 3, 4, 9), KeepEmpty: true, DeleteHorizon: -1})
		var coded *protocol.Error
		if !errors.As(err, &coded) || out != nil {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
}

func TestFilterDoesNotAllocate(t *testing.T) {
	f := batch.NewFilter(batch.NewDecompressor(1 << 20))
	b := mixed(t, batch.None)
	h := parse(t, b)
	cut := batch.Cut{Keep: func(_ *batch.Header, r *batch.Record) bool { return r.OffsetDelta != 3 }, DeleteHorizon: 1}
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := f.Apply(&h, b, cut); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever is left of a batch can be read, and says of the records left what the batch said.
func FuzzFilter(f *testing.F) {
	for _, codec := range codecs {
		f.Add(mixed(f, codec), uint64(0b10101), true, int64(1_000_000))
		f.Add(build(f, codec, 40), uint64(0xf0f0f0f0f0), false, int64(-1))
	}
	f.Fuzz(func(t *testing.T, b []byte, mask uint64, keepEmpty bool, horizon int64) {
		h, err := batch.Parse(b)
		if err != nil {
			return
		}
		b = reseal(b[:h.Size()])
		var n int
		var deltas []int32
		keep := func(_ *batch.Header, r *batch.Record) bool {
			kept := mask>>(n%64)&1 == 1
			if n++; kept {
				deltas = append(deltas, r.OffsetDelta)
			}
			return kept
		}
		out, kept, err := batch.NewFilter(batch.NewDecompressor(1<<20)).Apply(&h, b, batch.Cut{Keep: keep, KeepEmpty: keepEmpty, DeleteHorizon: horizon})
		if err != nil || out == nil {
			return
		}
		if int(kept) != len(deltas) {
			t.Fatalf("%d records are kept of %d", kept, len(deltas))
		}
		if int(h.Records) == len(deltas) && len(out) == len(b) && &out[0] == &b[0] {
			return
		}
		checkFiltered(t, b, out, deltas)
	})
}
