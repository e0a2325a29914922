package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

var update = flag.Bool("update", false, "write golden files anew")

const goldenFile = "testdata/v1.segment"

// Positions in a RecordBatch v2.
const (
	posLeaderEpoch     = 12
	posMagic           = 16
	posCRC             = 17
	posAttributes      = 21 // the CRC covers the bytes from here
	posLastOffsetDelta = 23
)

// spec describes a batch of a test; zero means a plain one.
type spec struct {
	offset     protocol.Offset
	records    int32 // 0 means 1
	timestamp  int64 // largest
	epoch      protocol.LeaderEpoch
	attributes int16
	producer   protocol.ProducerID // 0 means none
	pepoch     int16
	sequence   int32
	records0   []byte // the encoded records; nil for some filler
}

// encode builds the batch's bytes by franz-go's encoder, which knows nothing of this package.
func (s spec) encode() []byte {
	records := max(s.records, 1)
	b := kmsg.RecordBatch{
		FirstOffset: int64(s.offset), PartitionLeaderEpoch: int32(s.epoch), Magic: 2, Attributes: s.attributes,
		LastOffsetDelta: records - 1, FirstTimestamp: s.timestamp, MaxTimestamp: s.timestamp,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: records,
		Records: s.records0,
	}
	if s.producer != 0 {
		b.ProducerID, b.ProducerEpoch, b.FirstSequence = int64(s.producer), s.pepoch, s.sequence
	}
	if b.Records == nil {
		b.Records = bytes.Repeat([]byte{byte(s.offset)}, 20)
	}
	b.Length = int32(batch.HeaderBytes - posLeaderEpoch + len(b.Records))
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[posCRC:], crc32.Checksum(raw[posAttributes:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

// marker encodes the record of a transaction marker of coordinator epoch 1000: kind 0 aborts, 1 commits.
func marker(kind byte) []byte {
	return []byte{32, 0, 0, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 3, 0xe8, 0}
}

var (
	topicA = protocol.TopicID{0xaa, 1}
	topicB = protocol.TopicID{0xbb, 2}
	keyA0  = Key{Shard: 3, Topic: topicA, Partition: 0}
	keyA1  = Key{Shard: 4, Topic: topicA, Partition: 1}
	keyB7  = Key{Shard: 3, Topic: topicB, Partition: 7}
)

var testHeader = Header{
	Cluster:   [16]byte{0xc1, 0x05, 15: 0x7e},
	ID:        ID{Log: 0x1234, Fence: 2, Commit: 77, Attempt: 1},
	CreatedMs: 1_700_000_000_123, FirstEntry: 5000, LastEntry: 5099,
}

// input is one call of Add.
type input struct {
	key  Key
	name string
	spec
}

const now = 1_700_000_000_000

// mixed is a flush of three partitions in WAL order, with all that a batch can be.
var mixed = []input{
	{keyA1, "events", spec{offset: 1000, records: 10, timestamp: now, epoch: 5}},
	{keyB7, "orders.v2", spec{offset: 0, records: 3, timestamp: now + 1, epoch: 5, producer: 900, sequence: 0, attributes: 0x10 | 4}},
	{keyA0, "events", spec{offset: 1 << 40, records: 500, timestamp: now + 2, epoch: 5, attributes: 2}},
	{keyB7, "orders.v2", spec{offset: 3, records: 2, timestamp: now - 50, epoch: 5, producer: 901, pepoch: 4, sequence: math.MaxInt32}},
	{keyA1, "events", spec{offset: 1010, timestamp: now - 1000, epoch: 7}},
	{keyB7, "orders.v2", spec{offset: 5, records: 1, timestamp: now + 9, epoch: 5, producer: 900, sequence: -1, attributes: 0x30, records0: marker(1)}},
	{keyA1, "events", spec{offset: 1011, timestamp: -1, epoch: 7}},
	{keyB7, "orders.v2", spec{offset: 6, records: 2, timestamp: now + 10, epoch: 5, producer: 901, pepoch: 4, sequence: 1, attributes: 0x10}},
	{keyB7, "orders.v2", spec{offset: 8, records: 1, timestamp: now + 11, epoch: 6, producer: 901, pepoch: 4, sequence: -1, attributes: 0x30, records0: marker(0)}},
	{keyB7, "orders.v2", spec{offset: 9, records: 4, timestamp: now + 12, epoch: 6, producer: 902, sequence: 12345, attributes: 0x10 | 1}},
}

// build makes a segment of inputs and returns the whole object.
func build(t testing.TB, b *Builder, inputs []input) ([]byte, *Footer) {
	t.Helper()
	for _, in := range inputs {
		if err := b.Add(in.key, in.name, in.encode()); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := b.byKey[keyB7]; ok {
		if err := b.SetLastStable(keyB7, 9); err != nil {
			t.Fatal(err)
		}
	}
	parts, footer, err := b.Finish(testHeader)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join(parts, nil), footer
}

func TestGolden(t *testing.T) {
	object, footer := build(t, new(Builder), mixed)
	checkGolden(t, goldenFile, object, footer, testHeader)
}

// checkGolden compares what a builder made with a golden file, both ways.
func checkGolden(t *testing.T, file string, object []byte, footer *Footer, header Header) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, object, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(object, want) {
		t.Errorf("the builder's bytes differ from %s: a change of the format needs a new version", file)
	}

	// And the other way: the golden file, known by its size alone, is read as it was written.
	pos, err := ParseTrailer(want[len(want)-TrailerSize:], int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseFooter(want[pos:])
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read, footer) {
		t.Errorf("read footer\n%+v, want\n%+v", read, footer)
	}
	if got, err := ParseHeader(want); err != nil || got != header || read.Header != header {
		t.Errorf("header %+v (%v), in footer %+v, want %+v", got, err, read.Header, header)
	}
	if read.ObjectSize != int64(len(want)) || read.Pos != pos {
		t.Errorf("footer at %d of %d, want %d of %d", read.Pos, read.ObjectSize, pos, len(want))
	}
}

func TestSections(t *testing.T) {
	var b Builder
	object, footer := build(t, &b, mixed)
	want := []Section{
		{
			Key: keyA0, TopicName: "events", FirstOffset: 1 << 40, NextOffset: 1<<40 + 500, LastStable: 1<<40 + 500,
			MaxTimestamp: now + 2, FirstEpoch: 5, LeaderEpoch: 5, Batches: 1,
		},
		{
			Key: keyB7, TopicName: "orders.v2", FirstOffset: 0, NextOffset: 13, LastStable: 9,
			MaxTimestamp: now + 12, FirstEpoch: 5, LeaderEpoch: 6, Batches: 6,
		},
		{
			Key: keyA1, TopicName: "events", FirstOffset: 1000, NextOffset: 1012, LastStable: 1012,
			MaxTimestamp: now, FirstEpoch: 5, LeaderEpoch: 7, Batches: 3,
		},
	}
	if len(footer.Sections) != len(want) {
		t.Fatalf("%d sections, want %d", len(footer.Sections), len(want))
	}
	pos := int64(HeaderSize)
	for i, w := range want {
		got := footer.Sections[i]
		data := object[got.Pos : got.Pos+got.Size]
		if got.Pos != pos {
			t.Errorf("section %d at byte %d, want %d", i, got.Pos, pos)
		}
		pos += got.Size
		if err := got.Verify(data); err != nil {
			t.Error(err)
		}
		var verbatim []byte
		for _, in := range mixed {
			if in.key == w.Key {
				verbatim = append(verbatim, in.encode()...)
			}
		}
		if !bytes.Equal(data, verbatim) {
			t.Errorf("section %d is not its batches verbatim", i)
		}
		if footer.Find(w.Key).Pos != got.Pos {
			t.Errorf("Find(%v) found another section", w.Key)
		}
		got.Pos, got.Size, got.CRC, got.index, got.object = 0, 0, 0, nil, nil
		if !reflect.DeepEqual(got, w) {
			t.Errorf("section %d\n%+v, want\n%+v", i, got, w)
		}
	}
	for _, absent := range []Key{{}, {Shard: 3, Topic: topicA, Partition: 1}, {Shard: 9, Topic: topicB, Partition: 7}} {
		if footer.Find(absent) != nil {
			t.Errorf("found %v, which is not there", absent)
		}
	}
}

func TestBatches(t *testing.T) {
	var b Builder
	object, footer := build(t, &b, mixed)
	const none = protocol.NoProducerID
	want := []Batch{
		{Offset: 0, LastOffsetDelta: 2, MaxTimestamp: now + 1, LeaderEpoch: 5, ProducerID: 900, Flags: FlagTransactional | 4},
		{Offset: 3, LastOffsetDelta: 1, MaxTimestamp: now - 50, LeaderEpoch: 5, ProducerID: 901, ProducerEpoch: 4, BaseSequence: math.MaxInt32},
		{Offset: 5, MaxTimestamp: now + 9, LeaderEpoch: 5, ProducerID: 900, BaseSequence: -1, Flags: FlagTransactional | FlagControl | FlagCommit, CoordinatorEpoch: 1000},
		{Offset: 6, LastOffsetDelta: 1, MaxTimestamp: now + 10, LeaderEpoch: 5, ProducerID: 901, ProducerEpoch: 4, BaseSequence: 1, Flags: FlagTransactional},
		{Offset: 8, MaxTimestamp: now + 11, LeaderEpoch: 6, ProducerID: 901, ProducerEpoch: 4, BaseSequence: -1, Flags: FlagTransactional | FlagControl, CoordinatorEpoch: 1000},
		{Offset: 9, LastOffsetDelta: 3, MaxTimestamp: now + 12, LeaderEpoch: 6, ProducerID: 902, BaseSequence: 12345, Flags: FlagTransactional | 1},
	}
	i := 0
	section := footer.Find(keyB7)
	pos := section.Pos
	for got, err := range section.All() {
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		w.Pos, w.Size = pos, got.Size
		pos += int64(got.Size)
		if got != w {
			t.Errorf("batch %d\n%+v, want\n%+v", i, got, w)
		}
		if err := section.VerifyBatch(got, object[got.Pos:got.Pos+int64(got.Size)]); err != nil {
			t.Error(err)
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d batches, want %d", i, len(want))
	}
	for got, err := range footer.Find(keyA1).All() {
		if err != nil || got.ProducerID != none || got.ProducerEpoch != protocol.NoProducerEpoch || got.BaseSequence != protocol.NoSequence {
			t.Errorf("batch without idempotence: %+v, %v", got, err)
		}
	}
}

// plain returns n batches of one partition, of two records each, timestamps 10 apart with every fifth one late by 100.
func plain(n int) []input {
	inputs := make([]input, n)
	for i := range inputs {
		ts := int64(now + 10*i)
		if i%5 == 4 {
			ts -= 100
		}
		inputs[i] = input{keyA0, "events", spec{offset: protocol.Offset(100 + 2*i), records: 2, timestamp: ts, epoch: 1}}
	}
	return inputs
}

// batchAt returns the batch that holds an offset.
func batchAt(s *Section, offset protocol.Offset) (Batch, error) {
	_, _, batches, err := s.Range(nil, offset, 0)
	if err != nil {
		return Batch{}, err
	}
	return batches[0], nil
}

func TestRangeOfEveryOffset(t *testing.T) {
	var b Builder
	_, footer := build(t, &b, plain(50))
	section := footer.Find(keyA0)
	for offset := protocol.Offset(100); offset < 200; offset++ {
		got, err := batchAt(section, offset)
		if err != nil {
			t.Fatal(err)
		}
		if want := offset &^ 1; got.Offset != want {
			t.Errorf("offset %d is in the batch at %d, want %d", offset, got.Offset, want)
		}
	}
	for _, offset := range []protocol.Offset{-1, 0, 99, 200, math.MaxInt64} {
		if got, err := batchAt(section, offset); !errors.Is(err, ErrNoBatch) {
			t.Errorf("offset %d: %+v, %v, want ErrNoBatch", offset, got, err)
		}
	}
}

func TestRange(t *testing.T) {
	var b Builder
	_, footer := build(t, &b, plain(50))
	section := footer.Find(keyA0)
	const size = batch.HeaderBytes + 20
	for _, test := range []struct {
		name     string
		offset   protocol.Offset
		max      int64
		first, n int // batches
	}{
		{"one at least", 100, 0, 0, 1},
		{"exactly one", 100, size, 0, 1},
		{"a byte short of two", 100, 2*size - 1, 0, 1},
		{"exactly two", 100, 2 * size, 0, 2},
		{"in mid-batch", 101, 2 * size, 0, 2},
		{"from the middle", 150, 10 * size, 25, 10},
		{"up to the end", 190, 10 * size, 45, 5},
		{"all", 100, math.MaxInt64, 0, 50},
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
	dst := make([]Batch, 1, 8)
	if _, _, batches, err := section.Range(dst, 200, 1); !errors.Is(err, ErrNoBatch) || len(batches) != 1 {
		t.Errorf("past the end: %d batches, %v, want dst as it was and ErrNoBatch", len(batches), err)
	}
}

func TestVerifyBatchFindsEveryFlippedBit(t *testing.T) {
	var b Builder
	object, footer := build(t, &b, plain(3))
	section := footer.Find(keyA0)
	target, err := batchAt(section, 102)
	if err != nil {
		t.Fatal(err)
	}
	data := object[target.Pos:][:target.Size]
	for bit := range len(data) * 8 {
		data[bit/8] ^= 1 << (bit % 8)
		err := section.VerifyBatch(target, data)
		data[bit/8] ^= 1 << (bit % 8)
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d: %v, want ErrCorrupt", bit, err)
		}
		for _, place := range []string{testHeader.ID.Name(), `"events" partition 0`, "at byte 161"} {
			if !strings.Contains(err.Error(), place) {
				t.Fatalf("error does not say %s: %v", place, err)
			}
		}
	}
	if err := section.VerifyBatch(target, data[:len(data)-1]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("short batch: %v, want ErrCorrupt", err)
	}
	if err := section.VerifyBatch(target, object[section.Pos:][:target.Size]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another, whole batch: %v, want ErrCorrupt", err)
	}
	all := object[section.Pos : section.Pos+section.Size]
	all[100] ^= 1
	if err := section.Verify(all); !errors.Is(err, ErrCorrupt) {
		t.Errorf("section with a flipped bit: %v, want ErrCorrupt", err)
	}
}

func TestParseTrailerRefuses(t *testing.T) {
	var b Builder
	object, footer := build(t, &b, mixed)
	size := int64(len(object))
	for _, other := range []int64{size - 1, size + 1, 0, math.MaxInt64} {
		if _, err := ParseTrailer(object, other); !errors.Is(err, ErrCorrupt) {
			t.Errorf("object of %d bytes, not %d: %v, want ErrCorrupt", other, size, err)
		}
	}
	if _, err := ParseTrailer(object[len(object)-TrailerSize+1:], size); !errors.Is(err, ErrCorrupt) {
		t.Errorf("short trailer: %v, want ErrCorrupt", err)
	}
	object[len(object)-12]++ // the version
	if _, err := ParseTrailer(object, size); !errors.Is(err, ErrVersion) {
		t.Errorf("next version: %v, want ErrVersion", err)
	}
	if _, err := ParseFooter(object[footer.Pos:]); !errors.Is(err, ErrVersion) {
		t.Errorf("next version: %v, want ErrVersion", err)
	}
	object[4]++
	if _, err := ParseHeader(object); !errors.Is(err, ErrVersion) {
		t.Errorf("next version: %v, want ErrVersion", err)
	}
}

// TestIndexBytes holds the size of the index to what DESIGN expects, so that a footer does not grow with small batches.
func TestIndexBytes(t *testing.T) {
	for _, test := range []struct {
		name  string
		level uint8
		spec  spec
		max   int
	}{
		{"plain", Flushed, spec{records: 1}, 6},
		{"idempotent", Flushed, spec{records: 1, producer: 123456, pepoch: 3}, 9},
		{"plain, merged", Merged, spec{records: 1}, 7},
		{"idempotent, merged", Merged, spec{records: 1, producer: 123456, pepoch: 3}, 10},
	} {
		b := Builder{Level: test.level}
		const n = 1000
		for i := range n {
			s := test.spec
			s.offset, s.sequence, s.timestamp = protocol.Offset(i), int32(i), int64(now+i)
			if err := b.Add(keyA0, "events", s.encode()); err != nil {
				t.Fatal(err)
			}
		}
		per := float64(len(b.index)) / n
		t.Logf("%s: %.2f bytes per batch", test.name, per)
		if per > float64(test.max) {
			t.Errorf("%s: %.2f bytes per batch, want at most %d", test.name, per, test.max)
		}
	}
}

func TestName(t *testing.T) {
	id := ID{Log: 0x1a2b, Fence: 3, Commit: 0xdeadbeef, Attempt: 2}
	const want = "segments/2b/0000000000001a2b/00000000deadbeef-0000000000000003-00000002"
	if got := id.Name(); got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	for _, id := range []ID{{}, id, {Flushed, math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint32}} {
		if got, err := ParseName(id.Name()); err != nil || got != id {
			t.Errorf("parsed %+v, %v, want %+v", got, err, id)
		}
		if !objectstore.ValidName(id.Name()) {
			t.Errorf("%s is not a valid object name", id.Name())
		}
		if !strings.HasPrefix(id.Name(), LogPrefix(id.Log)) {
			t.Errorf("%s does not start with %s", id.Name(), LogPrefix(id.Log))
		}
	}
	for _, bad := range []string{
		"", "segments/", want + "0", want[1:], strings.ToUpper(want), "manifests" + want[8:],
		strings.Replace(want, "/2b/", "/2c/", 1), strings.Replace(want, "dead", "DEAD", 1), strings.Replace(want, "/2b/", "/2b//", 1),
		strings.ReplaceAll(want, "-", "/"), strings.Replace(want, "3-", "g-", 1), want[:len(want)-1] + "-",
	} {
		if id, err := ParseName(bad); err == nil {
			t.Errorf("%q was parsed as %+v", bad, id)
		}
	}
}
