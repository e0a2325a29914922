package inspect_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/inspect"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal/frame"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What other rooms keep as golden files.
const (
	goldenSegment  = "../../objectstore/segment/testdata/v1.segment"
	goldenMerged   = "../../objectstore/segment/testdata/v1-merged.segment"
	goldenManifest = "../../objectstore/manifest/testdata/v2.manifest"
	goldenCommit   = "../../coordinator/testdata/commit.v1"
	goldenWAL      = "../../wal/frame/testdata/file.hex"
	goldenFrame    = "../../wal/frame/testdata/frame.hex"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// block reads the dump of a block.
func block(t *testing.T, name string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(string(read(t, name))) {
		line = line[len("00000000"):]
		digits.WriteString(line[:strings.IndexByte(line, '|')])
	}
	b, err := hex.DecodeString(strings.ReplaceAll(digits.String(), " ", ""))
	if err != nil || len(b) != frame.BlockBytes {
		t.Fatalf("%s: %d bytes, %v", name, len(b), err)
	}
	return b
}

var topic = protocol.TopicID{1, 2, 3}

// records returns a batch.
func records(t *testing.T, offset protocol.Offset, values ...string) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.LZ4)
	b.BaseOffset, b.LeaderEpoch, b.ProducerID, b.ProducerEpoch, b.BaseSequence = offset, 4, 77, 1, int32(offset)
	for i, v := range values {
		b.Append(1_700_000_000_000+int64(i), []byte("key"), []byte(v), batch.HeaderField{Key: "trace", Value: []byte{0xff}})
	}
	data, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var walSegment = frame.SegmentID{Log: 0x1f, Number: 2}

// wal returns a WAL file of four blocks, and three frames.
func wal(t *testing.T) []byte {
	t.Helper()
	const file = 3<<32 | 7
	b := make([]byte, 5*frame.BlockBytes)
	frame.PutFileHeader(b, &frame.FileHeader{Store: [16]byte{0xab}, File: file, Segment: walSegment, Fence: 1, Ordinal: 0, First: 41})
	entries := [][][]byte{
		{records(t, 10, "first", "\x80binary"), records(t, 12, strings.Repeat("long ", 100))},
		{records(t, 13, "next")},
		{marker(t, 14)},
	}
	first, synced := frame.EntryID(41), uint32(1)
	for i, of := range entries {
		at := b[(i+1)*frame.BlockBytes:][:frame.BlockBytes]
		h := frame.Header{Segment: walSegment, Fence: 1, First: first}
		n := frame.HeaderBytes
		for p, data := range of {
			head := make([]byte, ingest.EntryHeaderBytes)
			ingest.EntryHeader{Shard: 5, Topic: topic, Partition: int32(p), LastStable: 10}.Put(head)
			n += h.Put(at[n:], head, data, crc32c.Tail{})
		}
		frame.Finish(at, &h)
		frame.Stamp(at, frame.Place{File: file, Block: uint32(i + 1), Synced: synced})
		first, synced = h.Next(), synced+1
	}
	return b
}

func marker(t *testing.T, offset protocol.Offset) []byte {
	t.Helper()
	b, err := batch.AppendControlBatch(nil, offset, 4, batch.EndMarker{Marker: batch.Abort, ProducerID: 77, ProducerEpoch: 1, CoordinatorEpoch: 2, Timestamp: 1_700_000_001_000})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// built returns a segment whose batches have records.
func built(t *testing.T) []byte {
	t.Helper()
	var b segment.Builder
	key := segment.Key{Shard: 5, Topic: topic}
	for _, data := range [][]byte{
		records(t, 10, "first", "\x80binary", "", strings.Repeat("long ", 100), "tab\tnew\nline"), records(t, 15, "damaged"), records(t, 16, "after it"), marker(t, 17),
	} {
		if err := b.Add(key, "orders", data); err != nil {
			t.Fatal(err)
		}
	}
	key.Partition = 1
	if err := b.Add(key, "orders", records(t, 0, "of another partition")); err != nil {
		t.Fatal(err)
	}
	parts, _, err := b.Finish(segment.Header{ID: segment.ID{Log: 2, Fence: 1, Commit: 3}, CreatedMs: 1_700_000_002_000, FirstEntry: 41, LastEntry: 45})
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join(parts, nil)
}

// flip damages a byte; from the end if at is negative.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x10
	return b
}

func TestFile(t *testing.T) {
	flushed, merged, manifest, whole, readable := read(t, goldenSegment), read(t, goldenMerged), read(t, goldenManifest), wal(t), built(t)
	one := inspect.Options{Records: &inspect.Partition{Topic: "orders", Partition: 0}}
	hole := append(block(t, goldenWAL), make([]byte, 16*frame.BlockBytes)...)
	all := inspect.Options{Batches: true, Verify: true, Records: &inspect.Partition{Topic: "events", Partition: 0}}
	tests := []struct {
		name    string
		content []byte
		options inspect.Options
		machine bool
	}{
		{"segment", flushed, inspect.Options{}, false},
		{"segment-all", flushed, all, false},
		{"segment-json", flushed, all, true},
		{"records", readable, one, false},
		{"records-json", readable, one, true},
		{"records-damaged", flip(readable, bytes.Index(readable, []byte("damaged"))), one, false},
		{"segment-header", flip(flushed, 20), inspect.Options{}, false},
		{"segment-magic", flip(flushed, 0), inspect.Options{}, false},
		{"segment-section", flip(flushed, 200), inspect.Options{Verify: true}, false},
		{"segment-section-json", flip(flushed, 200), inspect.Options{Verify: true}, true},
		{"segment-footer", flip(flushed, -60), inspect.Options{Batches: true}, false},
		{"segment-trailer", flip(flushed, -30), inspect.Options{}, false},
		{"segment-cut", flushed[:len(flushed)-1], inspect.Options{Batches: true}, false},
		{"segment-version", flip(flushed, -12), inspect.Options{}, false},
		{"merged", merged, inspect.Options{Batches: true, Verify: true}, false},
		{"manifest", manifest, inspect.Options{}, false},
		{"manifest-all", manifest, inspect.Options{Batches: true}, false},
		{"manifest-json", manifest, inspect.Options{Batches: true}, true},
		{"manifest-damaged", flip(manifest, 100), inspect.Options{}, false},
		{"wal", whole, inspect.Options{}, false},
		{"wal-all", whole, inspect.Options{Batches: true, Verify: true, Records: &inspect.Partition{Topic: topic.String(), Partition: 0}}, false},
		{"wal-json", whole, inspect.Options{Batches: true, Records: &inspect.Partition{Topic: topic.String(), Partition: 1}}, true},
		{"wal-header-once", flip(whole, 10), inspect.Options{}, false},
		{"wal-header", flip(flip(whole, 10), 2058), inspect.Options{Batches: true}, false},
		{"wal-middle", flip(whole, 2*frame.BlockBytes+100), inspect.Options{Batches: true}, false},
		{"wal-torn", flip(whole, 3*frame.BlockBytes+100), inspect.Options{Batches: true}, false},
		{"wal-foreign-entries", append(hole, block(t, goldenFrame)...), inspect.Options{Batches: true}, false},
		{"nothing", []byte("PAR1"), inspect.Options{}, false},
		{"empty", nil, inspect.Options{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			p := inspect.NewPrinter(&out, test.machine)
			err := inspect.File(p, test.name, bytes.NewReader(test.content), int64(len(test.content)), test.options)
			compare(t, test.name, &out, errors.Join(err, p.Close()), test.machine)
		})
	}
}

// compare compares what was printed, and the error, with a golden file.
func compare(t *testing.T, name string, out *bytes.Buffer, err error, machine bool) {
	t.Helper()
	if machine {
		for line := range bytes.Lines(out.Bytes()) {
			if !json.Valid(line) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
	if err != nil {
		out.WriteString("-- " + err.Error() + "\n")
	}
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, path); !bytes.Equal(out.Bytes(), want) {
		t.Errorf("printed\n%s\nwant\n%s", out, want)
	}
}

// TestEveryFlippedByte damages each byte of each format: all is found by verifying.
func TestEveryFlippedByte(t *testing.T) {
	for _, name := range []string{goldenSegment, goldenMerged, goldenManifest} {
		content := read(t, name)
		for at := range content {
			p := inspect.NewPrinter(new(bytes.Buffer), false)
			damaged := flip(content, at)
			err := inspect.File(p, name, bytes.NewReader(damaged), int64(len(damaged)), inspect.Options{Batches: true, Verify: true})
			if err = errors.Join(err, p.Close()); !errors.Is(err, inspect.ErrDamaged) && !errors.Is(err, inspect.ErrUnknown) {
				t.Fatalf("%s with byte %d damaged: %v", name, at, err)
			}
		}
	}
}

// TestObject reads a large segment's header and end alone.
func TestObject(t *testing.T) {
	store := fault.New(mem.New())
	object := read(t, goldenSegment)
	var out bytes.Buffer
	p := inspect.NewPrinter(&out, false)
	if err := inspect.File(p, "", bytes.NewReader(object), int64(len(object)), inspect.Options{}); err != nil || p.Close() != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`segments/\S+`).FindString(out.String())
	for _, n := range []string{name, "segments/00/another"} {
		if err := store.Put(t.Context(), n, objectstore.Bytes(object)); err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	p = inspect.NewPrinter(&got, false)
	if err := inspect.Object(t.Context(), p, store, name, inspect.Options{}); err != nil || p.Close() != nil || got.String() != out.String() {
		t.Errorf("printed\n%s\n(%v), want\n%s", &got, err, &out)
	}
	if n := store.Calls(fault.Get); n != 2 {
		t.Errorf("%d ranges were read, want 2", n)
	}
	p = inspect.NewPrinter(&got, false)
	if err := inspect.Object(t.Context(), p, store, "segments/00/another", inspect.Options{}); err != nil || !errors.Is(p.Close(), inspect.ErrDamaged) || !strings.Contains(got.String(), "is "+name) {
		t.Errorf("an object under another's name: %v", err)
	}
	p = inspect.NewPrinter(&got, false)
	if err := inspect.Object(t.Context(), p, store, "segments/00/none", inspect.Options{}); !errors.Is(err, objectstore.ErrNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
}

func TestKeys(t *testing.T) {
	kv := kvmem.New(kvmem.Config{})
	for _, op := range []coordinator.Op{
		{Key: coordinator.KeyCluster, Value: coordinator.Encode(coordinator.Cluster{ID: "id", Shards: 4, CreatedMs: 1, Secret: []byte("whisper")})},
		{Key: coordinator.KeyTopic("orders"), Value: coordinator.Encode(coordinator.Topic{
			ID: topic, Name: "orders", Partitions: 3, Replication: 1, Configs: map[string]string{"retention.ms": "1", "cleanup.policy": "compact,delete"},
		})},
		{Key: coordinator.KeyTopic("orders.old"), Value: []byte(`{"cut`)},
		{Key: coordinator.KeyShard(3), Value: coordinator.Encode(coordinator.Shard{Owner: 2, Node: 1, Epoch: 7})},
		{Key: coordinator.KeyCommit(0x1a2b, 0x123), Value: read(t, goldenCommit)},
		{Key: coordinator.KeyCommit(0x1a2b, 0x124), Value: flip(read(t, goldenCommit), 40)},
		{Key: coordinator.KeyShard(3), Value: coordinator.Encode(coordinator.Shard{Owner: 3, Node: 2, Epoch: 8})},
	} {
		if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name, key string
		machine   bool
	}{
		{"keys", "", false},
		{"keys-json", "", true},
		{"key", coordinator.KeyTopic("orders"), false}, // and not what begins like it
		{"key-prefix", coordinator.PrefixTopics, false},
		{"key-none", "meta/topic/", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			p := inspect.NewPrinter(&out, test.machine)
			err := inspect.Keys(t.Context(), p, kv, test.key)
			if strings.Contains(out.String(), "d2hpc3Blcg") || strings.Contains(out.String(), "whisper") {
				t.Error("the secret was printed")
			}
			compare(t, test.name, &out, errors.Join(err, p.Close()), test.machine)
		})
	}
}

func TestParsePartition(t *testing.T) {
	for s, want := range map[string]*inspect.Partition{
		"orders/3": {Topic: "orders", Partition: 3}, "orders": nil, "/3": nil, "orders/": nil, "orders/-1": nil, "orders/x": nil, "a/b/3": nil,
	} {
		got, err := inspect.ParsePartition(s)
		if (err == nil) != (want != nil) || want != nil && *got != *want {
			t.Errorf("%q is %v, %v, want %v", s, got, err, want)
		}
	}
}
