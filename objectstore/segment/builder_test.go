package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/varve-io/varve/protocol"
)

func TestAddRefuses(t *testing.T) {
	good := spec{offset: 10, records: 5, epoch: 3}
	change := func(s spec, at int, value ...byte) []byte {
		raw := s.encode()
		copy(raw[at:], value)
		return raw
	}
	tests := []struct {
		name string
		key  Key
		as   string
		data []byte
		kind error // nil for any
	}{
		{"gap", keyA0, "events", spec{offset: 16, epoch: 3}.encode(), ErrGap},
		{"overlap", keyA0, "events", spec{offset: 14, epoch: 3}.encode(), ErrGap},
		{"older leader epoch", keyA0, "events", spec{offset: 15, epoch: 2}.encode(), ErrGap},
		{"other name of the topic", keyA1, "events2", good.encode(), nil},
		{"bad name", keyB7, "no/name", good.encode(), nil},
		{"negative partition", Key{Topic: topicB, Partition: -1}, "orders", good.encode(), nil},
		{"short", keyB7, "orders", good.encode()[:60], nil},
		{"truncated", keyB7, "orders", good.encode()[:70], nil},
		{"magic 1", keyB7, "orders", change(good, posMagic, 1), nil},
		{"negative offset", keyB7, "orders", change(good, 0, 0xff), nil},
		{"negative leader epoch", keyB7, "orders", change(good, posLeaderEpoch, 0xff), nil},
		{"negative last offset delta", keyB7, "orders", change(good, posLastOffsetDelta, 0xff), nil},
		{"offsets overflow", keyB7, "orders", spec{offset: math.MaxInt64, epoch: 3}.encode(), nil},
		{"marker without key", keyB7, "orders", spec{epoch: 3, attributes: 0x30}.encode(), nil},
		{"marker of another kind", keyB7, "orders", spec{epoch: 3, attributes: 0x30, records0: marker(2)}.encode(), nil},
		{"marker with a sequence", keyB7, "orders", spec{epoch: 3, attributes: 0x30, producer: 5, sequence: 3, records0: marker(1)}.encode(), nil},
	}
	var b Builder
	if err := b.Add(keyA0, "events", good.encode()); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := b.Add(test.key, test.as, test.data)
			if err == nil || test.kind != nil && !errors.Is(err, test.kind) {
				t.Errorf("error %v, want one of kind %v", err, test.kind)
			}
		})
	}
	if err := b.SetLastStable(keyB7, 1); err == nil {
		t.Error("last stable offset of a section that is not there was taken")
	}
	if err := b.SetLastStable(keyA0, -1); err == nil {
		t.Error("negative last stable offset was taken")
	}
	if _, footer, err := b.Finish(testHeader); err != nil || len(footer.Sections) != 1 || footer.Sections[0].NextOffset != 15 {
		t.Errorf("after refusals the builder has %+v, %v, want the one good batch", footer, err)
	}
	if err := b.SetLastStable(keyA0, 16); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Finish(testHeader); err == nil {
		t.Error("last stable offset past the end was taken")
	}
	b.Reset()
	if _, footer, err := b.Finish(testHeader); err != nil || len(footer.Sections) != 0 || footer.Header != testHeader {
		t.Errorf("a segment without batches is finished as %+v, %v", footer, err)
	}
	b.Level = Merged
	if _, _, err := b.Finish(mergedHeader); err == nil {
		t.Error("a merged segment without batches was finished")
	}
}

func TestAddStopsAtSectionLimit(t *testing.T) {
	var b Builder
	raw := spec{}.encode()
	for p := range int32(SectionsMax) {
		if err := b.Add(Key{Topic: topicA, Partition: p}, "events", raw); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Add(Key{Topic: topicA, Partition: SectionsMax}, "events", raw); !errors.Is(err, ErrFull) {
		t.Fatalf("section past the limit: %v, want ErrFull", err)
	}
	_, footer, err := b.Finish(testHeader)
	if err != nil {
		t.Fatal(err)
	}
	if s := footer.Find(Key{Topic: topicA, Partition: SectionsMax - 1}); s == nil || s != &footer.Sections[SectionsMax-1] {
		t.Errorf("last section is %+v", s)
	}
}

func TestAddStopsAtDataLimit(t *testing.T) {
	var b Builder
	s := spec{records0: make([]byte, 32<<20)}
	raw := s.encode()
	for next := uint64(0); ; next++ {
		binary.BigEndian.PutUint64(raw, next) // the builder keeps no copy, but nobody reads the object here
		err := b.Add(keyA0, "events", raw)
		full := (next+1)*uint64(len(raw)) > DataBytesMax
		if full != errors.Is(err, ErrFull) || !full && err != nil {
			t.Fatalf("after %d bytes: %v, want ErrFull %t", b.Bytes(), err, full)
		}
		if full {
			return
		}
	}
}

func TestAddStopsAtFooterLimit(t *testing.T) {
	var b Builder
	if err := b.Add(keyA0, "events", spec{}.encode()); err != nil {
		t.Fatal(err)
	}
	left := func() int64 { return FooterBytesMax - (b.ObjectBytes() - HeaderSize - b.Bytes()) }
	b.index = append(b.index, make([]byte, left()-batchEntryMax-AddedBytesMax)...) // as if of many batches
	if err := b.Add(keyA1, "events", spec{}.encode()); err != nil {
		t.Fatalf("section with %d bytes left: %v", left(), err)
	}
	if err := b.Add(Key{Topic: topicB}, "orders", spec{}.encode()); !errors.Is(err, ErrFull) {
		t.Errorf("section with %d bytes left: %v, want ErrFull", left(), err)
	}
	b.index = append(b.index, make([]byte, left()-batchEntryMax)...)
	if err := b.Add(keyA0, "events", spec{offset: 1}.encode()); err != nil {
		t.Fatalf("batch with %d bytes left: %v", left(), err)
	}
	if err := b.Add(keyA0, "events", spec{offset: 2}.encode()); !errors.Is(err, ErrFull) {
		t.Errorf("batch with %d bytes left: %v, want ErrFull", left(), err)
	}
}

// TestRuns holds that batches which stand one after the other in memory are one part of the object, and others are not.
func TestRuns(t *testing.T) {
	var read []byte // of a section
	for i := range 4 {
		read = append(read, spec{offset: protocol.Offset(i)}.encode()...)
	}
	size := len(read) / 4
	at := func(i int) []byte { return read[i*size : (i+1)*size] }
	for _, test := range []struct {
		name    string
		batches [][]byte
		runs    int
	}{
		{"one read", [][]byte{at(0), at(1), at(2), at(3)}, 1},
		{"a copy among them", [][]byte{at(0), at(1), slices.Clone(at(2)), at(3)}, 3},
		{"no capacity behind", [][]byte{at(0)[:size:size], at(1), at(2), at(3)}, 2},
		{"too little capacity behind", [][]byte{at(0)[: size : size+1], at(1), at(2), at(3)}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b Builder
			for _, data := range test.batches {
				if err := b.Add(keyA0, "events", data); err != nil {
					t.Fatal(err)
				}
			}
			parts, footer, err := b.Finish(testHeader)
			if err != nil {
				t.Fatal(err)
			}
			if len(parts) != 1+test.runs+1 {
				t.Errorf("%d parts, want header, footer and %d runs", len(parts), test.runs)
			}
			object := bytes.Join(parts, nil)
			if s := footer.Sections[0]; !bytes.Equal(object[s.Pos:s.Pos+s.Size], read) || s.Verify(read) != nil {
				t.Error("the section is not its batches")
			}
		})
	}
	var b Builder // two partitions in turn, from one read: no run may take in what is another section's
	for i := range 4 {
		raw := at(i)
		binary.BigEndian.PutUint64(raw, uint64(i/2))
		if err := b.Add(Key{Topic: topicA, Partition: int32(i % 2)}, "events", raw); err != nil {
			t.Fatal(err)
		}
	}
	if parts, _, err := b.Finish(testHeader); err != nil || len(parts) != 6 {
		t.Errorf("%d parts (%v), want 6", len(parts), err)
	}
}

// TestSameBytesInAnyOrder holds that the bytes depend on the batches and not on how partitions were interleaved, and
// that a builder that was reset is as good as a new one.
func TestSameBytesInAnyOrder(t *testing.T) {
	var fresh, used Builder
	want, _ := build(t, &fresh, mixed)
	build(t, &used, plain(100))
	used.Reset()
	grouped := slices.Clone(mixed)
	slices.SortStableFunc(grouped, func(x, y input) int { return -x.key.Compare(y.key) })
	if got, _ := build(t, &used, grouped); !bytes.Equal(got, want) {
		t.Error("another order of partitions made other bytes")
	}
}

// TestMemoryBytes holds what a footer says that it takes against what the runtime says was allocated for it: its bytes, and what they are decoded into. Places for lookups, of long indexes, count too.
func TestMemoryBytes(t *testing.T) {
	many := func(sections, batches int) *Builder {
		var b Builder
		for p := range int32(sections) {
			for o := range protocol.Offset(batches) {
				if err := b.Add(Key{Topic: topicA, Partition: p}, "events", spec{offset: o}.encode()); err != nil {
					t.Fatal(err)
				}
			}
		}
		return &b
	}
	for _, c := range []struct {
		name              string
		sections, batches int
		timesMin          int64 // of what is encoded
	}{
		{"many small sections", 4096, 1, 5},
		{"a long one", 1, 20 * stride, 1},
	} {
		parts, _, err := many(c.sections, c.batches).Finish(testHeader)
		if err != nil {
			t.Fatal(err)
		}
		encoded := parts[len(parts)-1]
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		footer, err := ParseFooter(slices.Clone(encoded))
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Fatal(err)
		}
		taken, got := int64(after.TotalAlloc-before.TotalAlloc), footer.MemoryBytes()
		if got > taken || got < taken*4/5 || got < c.timesMin*int64(len(encoded)) {
			t.Errorf("%s: %d bytes, of which %d are encoded; %d were allocated", c.name, got, len(encoded), taken)
		}
	}
}

func TestFooterOutlivesReset(t *testing.T) {
	var b Builder
	_, footer := build(t, &b, mixed)
	b.Reset()
	build(t, &b, plain(100))
	last, err := batchAt(footer.Find(keyB7), 9)
	if err != nil || last.BaseSequence != 12345 {
		t.Errorf("after Reset: %+v, %v", last, err)
	}
}
