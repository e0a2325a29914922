package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestBatchIsWhatKafkaReads decodes a sealed batch with kmsg, which knows the
// format independently.
func TestBatchIsWhatKafkaReads(t *testing.T) {
	for _, test := range []struct{ recordBytes, batchBytes, cut int }{
		{1024, 64 << 10, 0},
		{1024, 64 << 10, 1},
		{100, 64 << 10, 0}, // offset deltas of one and two bytes
		{100, 1 << 20, 0},  // and of three
		{16, 4 << 10, 7},
	} {
		template := newBatchTemplate(test.recordBytes, test.batchBytes, 1234)
		n := template.recordsMax()
		if test.cut > 0 {
			n = test.cut
		}
		batch := template.cut(n)
		if len(batch) > test.batchBytes {
			t.Errorf("%+v: batch of %d bytes", test, len(batch))
		}
		seal(batch, producerID{id: 77, epoch: 3}, 41)

		var got kmsg.RecordBatch
		if err := got.ReadFrom(batch); err != nil {
			t.Fatalf("%+v: %v", test, err)
		}
		if int(got.NumRecords) != n || int(got.LastOffsetDelta) != n-1 || got.Magic != 2 || got.PartitionLeaderEpoch != -1 ||
			got.FirstTimestamp != 1234 || got.MaxTimestamp != 1234 || got.ProducerID != 77 || got.ProducerEpoch != 3 || got.FirstSequence != 41 {
			t.Errorf("%+v: header %+v", test, got)
		}
		if want := crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)); uint32(got.CRC) != want {
			t.Errorf("%+v: CRC %x, want %x", test, uint32(got.CRC), want)
		}
		records := got.Records
		for i := range n {
			length, prefix := binary.Varint(records)
			var record kmsg.Record
			if err := record.ReadFrom(records[:prefix+int(length)]); err != nil {
				t.Fatalf("%+v: record %d: %v", test, i, err)
			}
			records = records[prefix+int(length):]
			if int(record.OffsetDelta) != i || record.Key != nil || len(record.Value) != test.recordBytes || len(record.Headers) != 0 {
				t.Fatalf("%+v: record %d: %+v", test, i, record)
			}
			if at := template.values[i]; !bytes.Equal(record.Value, template.bytes[at:at+test.recordBytes]) {
				t.Fatalf("%+v: value %d is not at %d", test, i, at)
			}
		}
		if len(records) != 0 {
			t.Errorf("%+v: %d bytes after the last record", test, len(records))
		}
	}
}

func TestNextBatch(t *testing.T) {
	template := newBatchTemplate(100, 4<<10, 0)
	var fetched []byte
	for i, n := range []int{3, 1, 5} {
		batch := template.cut(n)
		binary.BigEndian.PutUint64(batch, uint64(100+10*i))
		seal(batch, noProducer, -1)
		fetched = append(fetched, batch...)
	}
	lastBatch := template.cut(5)
	for _, missing := range []int{0, 1, len(lastBatch) - batchHeaderBytes + 1} { // a partial batch at the end is dropped
		var headers []batchHeader
		values := 0
		for rest := fetched[:len(fetched)-missing]; ; {
			header, batch, after, err := nextBatch(rest)
			if err != nil {
				t.Fatal(err)
			}
			if batch == nil {
				break
			}
			headers = append(headers, header)
			if err := eachValue(batch, func(value []byte) { values += len(value) }); err != nil {
				t.Fatal(err)
			}
			rest = after
		}
		want := []batchHeader{
			{baseOffset: 100, nextOffset: 103, records: 3},
			{baseOffset: 110, nextOffset: 111, records: 1},
			{baseOffset: 120, nextOffset: 125, records: 5},
		}
		wantValues := 900
		if missing > 0 {
			want, wantValues = want[:2], 400
		}
		if len(headers) != len(want) || values != wantValues {
			t.Fatalf("%d bytes missing: %+v and %d bytes of values, want %+v and %d", missing, headers, values, want, wantValues)
		}
		for i := range want {
			if headers[i] != want[i] {
				t.Errorf("%d bytes missing: batch %d: %+v, want %+v", missing, i, headers[i], want[i])
			}
		}
	}
}

func TestEachValueSkipsKeysAndHeaders(t *testing.T) {
	record := kmsg.NewRecord()
	record.Key, record.Value = []byte("a key"), []byte("a value")
	record.Headers = []kmsg.Header{{Key: "h", Value: []byte("v")}}
	body := record.AppendTo(nil)[1:] // behind the one byte of the zero length
	batch := append(make([]byte, batchHeaderBytes), binary.AppendVarint(nil, int64(len(body)))...)
	batch = append(batch, body...)
	var got []string
	if err := eachValue(batch, func(value []byte) { got = append(got, string(value)) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0] != "a value" {
		t.Errorf("values %q", got)
	}
}

func TestMalformedBatchesAreErrors(t *testing.T) {
	whole := newBatchTemplate(100, 1<<10, 0).cut(2)
	for name, damage := range map[string]func(b []byte){
		"length": func(b []byte) { binary.BigEndian.PutUint32(b[batchLengthAt:], 3) },
		"magic":  func(b []byte) { b[batchMagicAt] = 1 },
	} {
		b := bytes.Clone(whole)
		damage(b)
		if _, _, _, err := nextBatch(b); !errors.Is(err, errBatch) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	for i := batchHeaderBytes; i < len(whole); i++ { // records that are cut off anywhere
		err := eachValue(whole[:i], func([]byte) {})
		atBoundary := i == batchHeaderBytes || i == batchHeaderBytes+(len(whole)-batchHeaderBytes)/2
		if (err == nil) != atBoundary {
			t.Fatalf("records cut after %d bytes: error %v", i, err)
		}
	}
}

func FuzzBatches(f *testing.F) {
	f.Add(bytes.Clone(newBatchTemplate(100, 1<<10, 0).cut(2)))
	f.Fuzz(func(_ *testing.T, records []byte) {
		for {
			_, batch, rest, err := nextBatch(records)
			if err != nil || batch == nil {
				return
			}
			_ = eachValue(batch, func([]byte) {}) // must not panic
			records = rest
		}
	})
}
