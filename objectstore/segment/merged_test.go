package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const mergedGoldenFile = "testdata/v1-merged.segment"

var mergedHeader = Header{
	Cluster:   testHeader.Cluster,
	ID:        ID{Level: Merged, Log: 3, Fence: 9, Commit: 41},
	CreatedMs: 1_700_000_100_456,
}

// The partitions of the merged segment. keyA0 and keyB7 are of its shard already.
var keyA2 = Key{Shard: 3, Topic: topicA, Partition: 2}

// gappy is a merge of three partitions, with all that level 1 has over level 0: sections that begin and end with gaps, and have some within.
var gappy = []input{
	{keyA0, "events", spec{offset: 100, records: 10, timestamp: now, epoch: 5}},
	{keyA0, "events", spec{offset: 110, records: 2, timestamp: now + 1, epoch: 5}},
	{keyA0, "events", spec{offset: 200, records: 5, timestamp: now + 2, epoch: 8}},
	{keyA2, "events", spec{offset: 7, timestamp: now + 3, epoch: 1}},
	{keyB7, "orders.v2", spec{offset: 1 << 40, records: 3, timestamp: now + 4, epoch: 5, producer: 900, attributes: 0x10 | 4}},
	{keyB7, "orders.v2", spec{offset: 1<<40 + 500, timestamp: now + 5, epoch: 6, producer: 900, sequence: -1, attributes: 0x30, records0: marker(1)}},
}

// covers is what the sections of gappy are widened to. keyA2 is left as its batch is.
var covers = map[Key][2]protocol.Offset{keyA0: {40, 300}, keyB7: {0, 1<<40 + 501}}

// buildMerged makes a segment of level 1 and returns the whole object.
func buildMerged(t testing.TB, b *Builder, inputs []input, covers map[Key][2]protocol.Offset) ([]byte, *Footer) {
	t.Helper()
	b.Level = Merged
	for _, in := range inputs {
		if err := b.Add(in.key, in.name, in.encode()); err != nil {
			t.Fatal(err)
		}
	}
	for key, c := range covers {
		if err := b.Cover(key, c[0], c[1]); err != nil {
			t.Fatal(err)
		}
	}
	parts, footer, err := b.Finish(mergedHeader)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join(parts, nil), footer
}

func TestMergedGolden(t *testing.T) {
	object, footer := buildMerged(t, new(Builder), gappy, covers)
	checkGolden(t, mergedGoldenFile, object, footer, mergedHeader)
}

func TestMergedSections(t *testing.T) {
	object, footer := buildMerged(t, new(Builder), gappy, covers)
	want := []Section{
		{
			Key: keyA0, TopicName: "events", FirstOffset: 40, NextOffset: 300, LastStable: 300,
			MaxTimestamp: now + 2, FirstEpoch: 5, LeaderEpoch: 8, Batches: 3,
		},
		{
			Key: keyA2, TopicName: "events", FirstOffset: 7, NextOffset: 8, LastStable: 8,
			MaxTimestamp: now + 3, FirstEpoch: 1, LeaderEpoch: 1, Batches: 1,
		},
		{
			Key: keyB7, TopicName: "orders.v2", FirstOffset: 0, NextOffset: 1<<40 + 501, LastStable: 1<<40 + 501,
			MaxTimestamp: now + 5, FirstEpoch: 5, LeaderEpoch: 6, Batches: 2,
		},
	}
	if len(footer.Sections) != len(want) {
		t.Fatalf("%d sections, want %d", len(footer.Sections), len(want))
	}
	for i, w := range want {
		got := footer.Sections[i]
		if err := got.Verify(object[got.Pos:][:got.Size]); err != nil {
			t.Error(err)
		}
		var batches []input
		for _, in := range gappy {
			if in.key == w.Key {
				batches = append(batches, in)
			}
		}
		n := 0
		for b, err := range got.All() {
			if err != nil {
				t.Fatal(err)
			}
			data := object[b.Pos:][:b.Size]
			if !bytes.Equal(data, batches[n].encode()) || b.Offset != batches[n].offset || got.VerifyBatch(b, data) != nil {
				t.Errorf("section %d: batch %d is %+v, want that of %+v", i, n, b, batches[n])
			}
			n++
		}
		if n != len(batches) {
			t.Errorf("section %d: %d batches, want %d", i, n, len(batches))
		}
		got.Pos, got.Size, got.CRC, got.index, got.object = 0, 0, 0, nil, nil
		if !reflect.DeepEqual(got, w) {
			t.Errorf("section %d\n%+v, want\n%+v", i, got, w)
		}
	}
}

func TestMergedRange(t *testing.T) {
	_, footer := buildMerged(t, new(Builder), gappy, covers)
	section := footer.Find(keyA0) // covers [40,300); batches at 100, 110 and 200, up to 205
	const size = batch.HeaderBytes + 20
	for _, test := range []struct {
		name     string
		offset   protocol.Offset
		max      int64
		first, n int // batches
	}{
		{"leading gap", 40, 0, 0, 1},
		{"leading gap, all", 99, 3 * size, 0, 3},
		{"first batch", 100, 2 * size, 0, 2},
		{"in mid-batch", 111, 2*size - 1, 1, 1},
		{"inner gap", 112, 2 * size, 2, 1},
		{"end of the inner gap", 199, 0, 2, 1},
		{"last batch", 204, 0, 2, 1},
		{"trailing gap", 205, size, 3, 0},
		{"end of the trailing gap", 299, 0, 3, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			pos, n, batches, err := section.Range(nil, test.offset, test.max)
			if err != nil {
				t.Fatal(err)
			}
			if pos != section.Pos+int64(test.first*size) || n != int64(test.n*size) || len(batches) != test.n {
				t.Errorf("range %d+%d of %d batches, want %d+%d of %d",
					pos, n, len(batches), section.Pos+int64(test.first*size), test.n*size, test.n)
			}
		})
	}
	for _, offset := range []protocol.Offset{-1, 39, 300, math.MaxInt64} {
		if _, _, _, err := section.Range(nil, offset, 0); !errors.Is(err, ErrNoBatch) {
			t.Errorf("offset %d: %v, want ErrNoBatch", offset, err)
		}
	}
}

func TestCover(t *testing.T) {
	type offsets [2]protocol.Offset
	for _, test := range []struct {
		name        string
		between     []offsets // covered after the batch at 100, before that at 110
		after       []offsets // covered after both
		first, next protocol.Offset
	}{
		{"nothing", nil, nil, 100, 111},
		{"what is there", nil, []offsets{{100, 101}, {105, 108}}, 100, 111},
		{"before the batch that is in it", []offsets{{50, 500}}, nil, 50, 500},
		{"piece by piece", []offsets{{90, 101}}, []offsets{{101, 120}, {120, 130}}, 90, 130},
		{"all offsets", nil, []offsets{{0, math.MaxInt64}}, 0, math.MaxInt64},
		{"no offset, but from a place on", nil, []offsets{{95, 95}}, 95, 111},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := Builder{Level: Merged}
			for i, covers := range [][]offsets{test.between, test.after} {
				if err := b.Add(keyA0, "events", spec{offset: protocol.Offset(100 + 10*i)}.encode()); err != nil {
					t.Fatal(err)
				}
				for _, c := range covers {
					if err := b.Cover(keyA0, c[0], c[1]); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, footer, err := b.Finish(mergedHeader)
			if err != nil {
				t.Fatal(err)
			}
			walk(t, footer)
			s := &footer.Sections[0]
			if s.FirstOffset != test.first || s.NextOffset != test.next || s.LastStable != test.next {
				t.Errorf("section covers [%d,%d), stable to %d, want [%d,%d)", s.FirstOffset, s.NextOffset, s.LastStable, test.first, test.next)
			}
			_, _, batches, err := s.Range(nil, s.FirstOffset, math.MaxInt64)
			if err != nil || len(batches) != 2 || batches[0].Offset != 100 || batches[1].Offset != 110 {
				t.Errorf("batches %+v, %v", batches, err)
			}
		})
	}
}

func TestMergedRefuses(t *testing.T) {
	b := Builder{Level: Merged}
	if err := b.Add(keyA0, "events", spec{offset: 100, records: 5, epoch: 3}.encode()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		spec spec
	}{
		{"before", spec{offset: 90, epoch: 3}},
		{"overlap", spec{offset: 104, epoch: 3}},
		{"older leader epoch after a gap", spec{offset: 200, epoch: 2}},
	} {
		if err := b.Add(keyA0, "events", test.spec.encode()); !errors.Is(err, ErrGap) {
			t.Errorf("%s: %v, want ErrGap", test.name, err)
		}
	}
	for _, test := range []struct {
		name        string
		key         Key
		first, next protocol.Offset
	}{
		{"no section", keyA2, 0, 1},
		{"negative", keyA0, -1, 200},
		{"backwards", keyA0, 50, 49},
	} {
		if err := b.Cover(test.key, test.first, test.next); err == nil {
			t.Errorf("Cover took what is %s", test.name)
		}
	}
	for _, test := range []struct {
		name   string
		change func(*Header)
	}{
		{"level 0", func(h *Header) { h.ID.Level = Flushed }},
		{"level 2", func(h *Header) { h.ID.Level = 2 }},
		{"another shard", func(h *Header) { h.ID.Log++ }},
		{"no shard", func(h *Header) { h.ID.Log += 1 << 32 }},
		{"no epoch", func(h *Header) { h.ID.Fence = math.MaxUint32 }},
		{"an attempt", func(h *Header) { h.ID.Attempt = 1 }},
		{"a WAL entry", func(h *Header) { h.LastEntry = 1 }},
	} {
		h := mergedHeader
		test.change(&h)
		if _, _, err := b.Finish(h); err == nil {
			t.Errorf("header with %s was taken", test.name)
		}
	}
	if _, footer, err := b.Finish(mergedHeader); err != nil || footer.Sections[0].FirstOffset != 100 || footer.Sections[0].NextOffset != 105 {
		t.Errorf("after refusals the builder has %+v, %v", footer, err)
	}
	b.Reset()
	b.Level = Flushed
	if err := b.Add(keyA0, "events", spec{offset: 100}.encode()); err != nil {
		t.Fatal(err)
	}
	if err := b.Cover(keyA0, 0, 200); err == nil {
		t.Error("level 0 was widened")
	}
	if err := b.Add(keyA0, "events", spec{offset: 102}.encode()); !errors.Is(err, ErrGap) {
		t.Errorf("gap in level 0: %v, want ErrGap", err)
	}
}

// TestFooterRefusesHeader holds that footers with right checksums and headers that no writer writes do not parse.
func TestFooterRefusesHeader(t *testing.T) {
	object, footer := buildMerged(t, new(Builder), gappy, covers)
	body := object[footer.Pos+HeaderSize : len(object)-TrailerSize]
	parse := func(h Header, level uint8) error {
		foot := append(h.append(nil), body...)
		_, err := ParseFooter(appendTrailer(foot, foot, level, footer.Pos))
		return err
	}
	if err := parse(mergedHeader, Merged); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		change func(*Header)
		level  uint8
		kind   error
	}{
		{"another shard", func(h *Header) { h.ID.Log++ }, Merged, ErrCorrupt},
		{"no shard", func(h *Header) { h.ID.Log += 1 << 32 }, Merged, ErrCorrupt},
		{"an attempt", func(h *Header) { h.ID.Attempt++ }, Merged, ErrCorrupt},
		{"a WAL entry", func(h *Header) { h.FirstEntry = 1 }, Merged, ErrCorrupt},
		{"another level than the trailer", func(*Header) {}, Flushed, ErrCorrupt},
		{"level 2", func(h *Header) { h.ID.Level = 2 }, Merged, ErrVersion},
		{"level 2 in the trailer", func(*Header) {}, 2, ErrVersion},
	} {
		h := mergedHeader
		test.change(&h)
		if err := parse(h, test.level); !errors.Is(err, test.kind) {
			t.Errorf("%s: %v, want %v", test.name, err, test.kind)
		}
	}
}

// TestEveryFlippedBit holds that no byte of a segment of either level is without a checksum.
func TestEveryFlippedBit(t *testing.T) {
	for _, test := range []struct {
		name   string
		object []byte
	}{
		{"level 0", first(build(t, new(Builder), mixed))},
		{"level 1", first(buildMerged(t, new(Builder), gappy, covers))},
	} {
		t.Run(test.name, func(t *testing.T) {
			object := test.object
			pos, err := ParseTrailer(object, int64(len(object)))
			if err != nil {
				t.Fatal(err)
			}
			footer, err := ParseFooter(object[pos:])
			if err != nil {
				t.Fatal(err)
			}
			check := func() error {
				if _, err := ParseHeader(object); err != nil {
					return err
				}
				for i := range footer.Sections {
					s := &footer.Sections[i]
					if err := s.Verify(object[s.Pos:][:s.Size]); err != nil {
						return err
					}
				}
				_, err := ParseFooter(object[pos:])
				return err
			}
			if err := check(); err != nil {
				t.Fatal(err)
			}
			for bit := range len(object) * 8 {
				object[bit/8] ^= 1 << (bit % 8)
				err := check()
				object[bit/8] ^= 1 << (bit % 8)
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
					t.Fatalf("bit %d of byte %d: %v, want an error", bit%8, bit/8, err)
				}
			}
		})
	}
}

func first[A, B any](a A, _ B) A { return a }

// tiny returns n batches of one record, one after the other in memory as one read brings them: after every seventh, offsets are missing.
func tiny(n int) (data [][]byte, offsets []protocol.Offset) {
	one := spec{records0: make([]byte, 10)}.encode()
	all := bytes.Repeat(one, n)
	data, offsets = make([][]byte, n), make([]protocol.Offset, n)
	for i := range n {
		offsets[i] = protocol.Offset(1000 + i + i/7*3)
		data[i] = all[i*len(one):][:len(one)]
		binary.BigEndian.PutUint64(data[i], uint64(offsets[i]))
	}
	return data, offsets
}

// TestLongSections holds that lookups find what a walk finds, at and between marks, in indexes of every length around the stride, and
// in one of more batches than a flush ever writes.
func TestLongSections(t *testing.T) {
	for _, n := range []int{1, stride - 1, stride, stride + 1, 2 * stride, 2*stride + 1, 300_000} {
		data, offsets := tiny(n)
		b := Builder{Level: Merged}
		for _, d := range data {
			if err := b.Add(keyA0, "events", d); err != nil {
				t.Fatal(err)
			}
		}
		end := offsets[n-1] + 1
		if err := b.Cover(keyA0, 10, end+10); err != nil {
			t.Fatal(err)
		}
		bound := b.ObjectBytes()
		parts, footer, err := b.Finish(mergedHeader)
		if err != nil {
			t.Fatal(err)
		}
		s := &footer.Sections[0]
		if len(parts) != 3 || s.Batches != n || len(s.marks) != (n-1)/stride || footer.ObjectSize > bound {
			t.Fatalf("%d batches: %d parts, %d batches, %d marks, %d bytes, want at most %d", n, len(parts), s.Batches, len(s.marks), footer.ObjectSize, bound)
		}
		for i := range n {
			near := i%stride < 3 || i%stride > stride-3 || i >= n-3
			if !near && i%997 != 0 {
				continue
			}
			from := protocol.Offset(10) // the gap before the batch belongs to it
			if i > 0 {
				from = offsets[i-1] + 1
			}
			for offset := max(from, offsets[i]-5); offset <= offsets[i]; offset++ {
				if got, err := batchAt(s, offset); err != nil || got.Offset != offsets[i] || got.Pos != s.Pos+int64(i*len(data[0])) {
					t.Fatalf("%d batches: offset %d is in %+v (%v), want batch %d at %d", n, offset, got, err, i, offsets[i])
				}
				next := i
				for b, err := range s.From(offset) {
					if err != nil || b.Offset != offsets[next] {
						t.Fatalf("%d batches: from offset %d on: %+v (%v), want batch %d at %d", n, offset, b, err, next, offsets[next])
					}
					if next++; next > i+2 && i > 0 {
						break // the rest is the same for all
					}
				}
				if next < min(n, i+3) {
					t.Fatalf("%d batches: from offset %d on there are %d", n, offset, next-i)
				}
			}
		}
		for b, err := range s.From(end) {
			t.Errorf("%d batches: after the last: %+v, %v", n, b, err)
		}
		if _, bytes, batches, err := s.Range(nil, end, math.MaxInt64); err != nil || bytes != 0 || len(batches) != 0 {
			t.Errorf("%d batches: after the last: %d bytes, %d batches, %v", n, bytes, len(batches), err)
		}
	}
}

// TestBrokenLongIndex holds that an index which its checksum covers, but which contradicts the directory, is refused when it is marked.
func TestBrokenLongIndex(t *testing.T) {
	data, _ := tiny(stride + 1)
	b := Builder{Level: Merged}
	for _, d := range data {
		if err := b.Add(keyA0, "events", d); err != nil {
			t.Fatal(err)
		}
	}
	b.index[len(b.index)-3]++ // the size of the last batch
	if _, _, err := b.Finish(mergedHeader); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

func TestMergedName(t *testing.T) {
	id := ID{Level: Merged, Log: 0x1a2b, Fence: 3, Commit: 0xdeadbeef}
	const want = "merged/2b/00001a2b/00000003-00000000deadbeef"
	if got := id.Name(); got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	for _, id := range []ID{{Level: Merged}, id, {Level: Merged, Log: math.MaxUint32, Fence: math.MaxInt32, Commit: math.MaxUint64}} {
		if got, err := ParseName(id.Name()); err != nil || got != id {
			t.Errorf("parsed %+v, %v, want %+v", got, err, id)
		}
		if !objectstore.ValidName(id.Name()) {
			t.Errorf("%s is not a valid object name", id.Name())
		}
		if !strings.HasPrefix(id.Name(), MergedPrefix(uint32(id.Log))) {
			t.Errorf("%s does not start with %s", id.Name(), MergedPrefix(uint32(id.Log)))
		}
	}
	for _, bad := range []string{
		"merged/", want + "0", want[1:], strings.ToUpper(want), strings.Replace(want, "merged", "segments", 1),
		"merged/" + testHeader.ID.Name()[len(NamePrefix):], "merged/" + want, strings.Replace(want, "/2b/", "/2c/", 1),
		strings.Replace(want, "00000003", "80000000", 1), strings.Replace(want, "-", "/", 1), strings.Replace(want, "3-", "g-", 1),
		strings.Replace(want, "00001a2b", "100001a2b", 1),
	} {
		if id, err := ParseName(bad); err == nil {
			t.Errorf("%q was parsed as %+v", bad, id)
		}
	}
}
