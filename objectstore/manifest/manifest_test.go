package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

var update = flag.Bool("update", false, "write golden files anew")

const (
	goldenFile = "testdata/v2.manifest"

	now = 1_700_000_000_123
	gib = 1 << 30
)

var (
	topicA = protocol.TopicID{0xaa, 1}
	topicB = protocol.TopicID{0xbb, 2}
)

// example has every kind of entry, and numbers at their limits.
func example() *Manifest {
	return &Manifest{
		Cluster: [16]byte{0xc1, 15: 0x7e}, Shard: 0x107, Epoch: 9, Generation: 42, CreatedMs: now,
		Segments: []Segment{
			{Epoch: 3, Number: 7, Size: 64 << 20, FooterPos: 63 << 20, CreatedMs: now - 1_000_000},
			{Epoch: 3, Number: 8, Size: 5000, FooterPos: 4000, CreatedMs: now - 1000},
			{Epoch: 9, Number: 2, Size: math.MaxInt64, FooterPos: math.MaxInt64 - 1, CreatedMs: now},
		},
		Partitions: []Partition{
			{Topic: topicA, TopicName: "events", Partition: 4, LogStartOffset: 1 << 40}, // nothing of it is merged
			{
				Topic: topicA, TopicName: "events", Partition: 6, LogStartOffset: 150, End: 900, LastStable: 890, Cleaned: 401,
				Epochs: []EpochStart{{1, 0}, {4, 512}, {9, 899}},
				Extents: []Extent{
					{Segment: 0, First: 10, Next: 100, Pos: 80, Size: 1000, MaxTimestamp: now - 5000, Epoch: 1}, // below the log start
					{Segment: 2, First: 100, Next: 400, Pos: 80, Size: 8 * gib, MaxTimestamp: -1, Epoch: 1},
					{Segment: 1, First: 401, Next: 900, Pos: 90, Size: 2000, MaxTimestamp: now, Epoch: 9},
				},
				Producers: []Producer{
					{ID: 0, Epoch: 0, CoordinatorEpoch: noCoordinatorEpoch, TxnFirst: protocol.NoOffset, UpdatedMs: now - 7, TimestampMs: now - 9, Batches: []ProducerBatch{
						{0, 10, 1}, {1, 11, 4}, {5, 20, 7}, {12, 27, 1}, {13, 899, 1},
					}},
					{ID: 1000, Epoch: 3, CoordinatorEpoch: 8, TxnFirst: 890, UpdatedMs: now, TimestampMs: -1, Batches: []ProducerBatch{
						{math.MaxInt32 - 1, 885, 5}, {3, 890, 10},
					}},
					{ID: 1001, Epoch: math.MaxInt16, CoordinatorEpoch: 0, TxnFirst: protocol.NoOffset, UpdatedMs: now - 50, TimestampMs: now},
				},
			},
			{
				Topic: topicB, TopicName: "orders.v2", Partition: 1, LogStartOffset: math.MaxInt64, End: math.MaxInt64, LastStable: 0, // all deleted
				Epochs:  []EpochStart{{0, 0}, {math.MaxInt32, math.MaxInt64 - 1}},
				Extents: []Extent{{Segment: 0, First: 0, Next: math.MaxInt64, Pos: 1080, Size: 1, MaxTimestamp: math.MinInt64, Epoch: math.MaxInt32}},
				Producers: []Producer{{
					ID: math.MaxInt64, Epoch: math.MinInt16, CoordinatorEpoch: math.MinInt32, TxnFirst: 0, UpdatedMs: math.MinInt64, TimestampMs: math.MaxInt64,
					Batches: []ProducerBatch{{math.MaxInt32, math.MaxInt64 - math.MaxInt32, math.MaxInt32}},
				}},
			},
			{Topic: topicB, TopicName: "orders.v2", Partition: math.MaxInt32, End: 1, LastStable: 1, Cleaned: 1}, // compacted away
		},
	}
}

func TestGolden(t *testing.T) {
	m := example()
	got, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(goldenFile, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x: a change of the format needs a new version", got, want)
	}
	parsed, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parsed, m) {
		t.Errorf("parsed\n%+v, want\n%+v", parsed, m)
	}
}

// TestSet holds that partitions come into order, that the last word counts, and that what was there before is gone.
func TestSet(t *testing.T) {
	m := &Manifest{}
	m.Set(Partition{Topic: topicB, TopicName: "orders.v2", Partition: 3, LogStartOffset: 17})
	m.Set(Partition{Topic: topicA, TopicName: "events", Partition: 4, LogStartOffset: 1 << 40, End: 7})
	m.Set(Partition{Topic: topicB, TopicName: "orders.v2", Partition: 1, LogStartOffset: 5})
	m.Set(Partition{Topic: topicA, TopicName: "events", Partition: 4, LogStartOffset: 1<<40 + 1}) // over the first
	if len(m.Partitions) != 3 {
		t.Errorf("%d partitions, want 3", len(m.Partitions))
	}
	for _, test := range []struct {
		topic     protocol.TopicID
		partition int32
		want      protocol.Offset
		found     bool
	}{
		{topicA, 4, 1<<40 + 1, true}, {topicB, 1, 5, true}, {topicB, 3, 17, true}, {topicA, 3, 0, false}, {topicB, 4, 0, false}, {protocol.TopicID{0xff}, 1, 0, false},
	} {
		if got := m.LogStart(test.topic, test.partition); got != test.want {
			t.Errorf("log start of %s-%d is %d, want %d", test.topic, test.partition, got, test.want)
		}
		p, ok := m.Find(test.topic, test.partition)
		if ok != test.found || (p != nil) != test.found || ok && (p.Topic != test.topic || p.Partition != test.partition || p.End != 0) {
			t.Errorf("%s-%d: found %v, %+v", test.topic, test.partition, ok, p)
		}
	}
}

// TestFindSegment looks for segments between, before and behind those that are there.
func TestFindSegment(t *testing.T) {
	m := &Manifest{Segments: []Segment{{Epoch: 1, Number: 7}, {Epoch: 3, Number: 2}, {Epoch: 3, Number: 4}}}
	for i, g := range m.Segments {
		if at, ok := m.FindSegment(g.Epoch, g.Number); at != i || !ok {
			t.Errorf("%+v is found at %d (%t), want %d", g, at, ok, i)
		}
	}
	for _, g := range []Segment{{Epoch: 0, Number: 7}, {Epoch: 1, Number: 2}, {Epoch: 2, Number: 4}, {Epoch: 3, Number: 3}, {Epoch: 3, Number: 5}, {Epoch: 4, Number: 1}} {
		if at, ok := m.FindSegment(g.Epoch, g.Number); ok {
			t.Errorf("%+v, which is not there, is found at %d", g, at)
		}
	}
}

func TestLive(t *testing.T) {
	m := example()
	if got, want := m.Live(), []int64{0, 2000, 8 * gib}; !slices.Equal(got, want) {
		t.Errorf("live bytes %d, want %d", got, want)
	}
	for i, want := range []int64{1000, 1001} { // the log start is the last offset of an extent
		m.Partitions[i+1].LogStartOffset = m.Partitions[i+1].Extents[0].Next - 1
		if got := m.Live()[0]; got != want {
			t.Errorf("live bytes %d of segment 0, want %d", got, want)
		}
	}
}

func TestParseFindsEveryFlippedBit(t *testing.T) {
	b, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(b) * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := Parse(b); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("bit %d: %v, want ErrCorrupt or ErrVersion", bit, err)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	for n := range b {
		if _, err := Parse(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("first %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
}

// TestParsedProducersAreApart holds that a merge may go on with what it parsed: a batch that is appended to one producer is not in another.
func TestParsedProducersAreApart(t *testing.T) {
	b, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Partitions {
		for j := range m.Partitions[i].Producers {
			s := &m.Partitions[i].Producers[j]
			s.Batches = append(s.Batches, ProducerBatch{BaseSequence: -7})
			s.Batches = s.Batches[:len(s.Batches)-1]
		}
	}
	if want := example().Partitions[1].Producers[1]; !reflect.DeepEqual(m.Partitions[1].Producers[1], want) {
		t.Errorf("producer became %+v, want %+v", m.Partitions[1].Producers[1], want)
	}
}

// sealed gives a body the right opening and checksum.
func sealed(body []byte) []byte {
	b := append([]byte(magic), Version, 0, 0, 0)
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

// TestParseAllocatesLittle holds that counts which the bytes cannot hold are refused before there is room for what they promise.
func TestParseAllocatesLittle(t *testing.T) {
	header := make([]byte, headerSize-8)
	topic := append(make([]byte, 16), "\x01t\x00"...)
	huge := binary.AppendUvarint(nil, 1<<20)
	for name, body := range map[string][]byte{
		"segments":   huge,
		"partitions": slices.Concat([]byte{0}, huge),
		"epochs":     slices.Concat([]byte{0, 1, 0}, topic, []byte{0, 9, 0, 0}, huge),
		"extents":    slices.Concat([]byte{0, 1, 0}, topic, []byte{0, 9, 0, 0, 0}, huge),
		"producers":  slices.Concat([]byte{0, 1, 0}, topic, []byte{0, 9, 0, 0, 0, 0}, huge),
	} {
		b := sealed(slices.Concat(header, body, make([]byte, 100)))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse(b)
		runtime.ReadMemStats(&after)
		if allocated := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, ErrCorrupt) || allocated > 1<<16 {
			t.Errorf("%s: %v, with %d bytes allocated", name, err, allocated)
		}
	}
}

// FuzzParse gives arbitrary bodies the right opening and checksum: what parses must encode, and parse again to the same. (Not always to the same
// bytes: varints have longer forms, which no writer uses.)
func FuzzParse(f *testing.F) {
	golden, err := os.ReadFile(goldenFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden[8 : len(golden)-checksumSize])
	f.Add(bytes.Repeat([]byte{0xff}, headerSize))
	f.Add(make([]byte, headerSize))
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := Parse(sealed(body))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		encoded, err := m.Encode()
		if err != nil {
			t.Fatalf("parsed %+v, which does not encode: %v", m, err)
		}
		again, err := Parse(encoded)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("parsed %+v, which encodes to %x: %+v (%v)", m, encoded, again, err)
		}
		if live := m.Live(); len(live) != len(m.Segments) {
			t.Fatalf("live bytes of %d segments, want %d", len(live), len(m.Segments))
		}
	})
}

func TestName(t *testing.T) {
	const want = "manifests/07/00000107/00000009-000000000000002a"
	if got := example().Name(); got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	for _, m := range []*Manifest{{}, example(), {Shard: math.MaxUint32, Epoch: math.MaxInt32, Generation: math.MaxUint64}} {
		shard, epoch, generation, err := ParseName(m.Name())
		if err != nil || shard != m.Shard || epoch != m.Epoch || generation != m.Generation {
			t.Errorf("%s parsed as %d, %d, %d, %v", m.Name(), shard, epoch, generation, err)
		}
		if !objectstore.ValidName(m.Name()) || !strings.HasPrefix(m.Name(), ShardPrefix(m.Shard)) {
			t.Errorf("%s is not a valid name under %s", m.Name(), ShardPrefix(m.Shard))
		}
	}
	for _, bad := range []string{
		"", NamePrefix, want + "0", want[1:], strings.ToUpper(want), "segments" + want[9:], strings.Replace(want, "/07/", "/08/", 1),
		strings.Replace(want, "/00000009", "/80000009", 1), strings.Replace(want, "2a", "2A", 1), strings.Replace(want, "2a", "2g", 1),
		strings.ReplaceAll(want, "-", "/"), strings.Replace(want, "/07/", "/07//", 1),
	} {
		if shard, epoch, generation, err := ParseName(bad); err == nil {
			t.Errorf("%q was parsed as %d, %d, %d", bad, shard, epoch, generation)
		}
	}
}

func TestSegmentName(t *testing.T) {
	s := Segment{Epoch: 9, Number: 0x2a}
	if got, want := s.Name(0x107), "merged/07/00000107/00000009-000000000000002a"; got != want || !objectstore.ValidName(got) {
		t.Errorf("name %s, want %s", got, want)
	}
}
