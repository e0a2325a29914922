package batch_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// withRecords returns a batch with the given bytes as its records.
func withRecords(attributes uint16, count int, records []byte) []byte {
	b := append(make([]byte, batch.HeaderBytes), records...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint16(b[21:], attributes)
	binary.BigEndian.PutUint32(b[23:], uint32(count-1))
	binary.BigEndian.PutUint32(b[57:], uint32(count))
	return reseal(b)
}

// readAll reads all records and returns how many there were.
func readAll(t testing.TB, d *batch.Decompressor, b []byte) (int, error) {
	t.Helper()
	h := parse(t, b)
	records, err := d.Records(&h, b)
	if err != nil {
		return 0, err
	}
	var r batch.Record
	n := 0
	for records.Next(&r) {
		n++
	}
	return n, records.Err()
}

func TestRecordsErrors(t *testing.T) {
	// length 7, attributes, timestamp and offset delta 0, key null, value "v", no headers
	const one = "\x0e\x00\x00\x00\x01\x02v\x00"
	d := batch.NewDecompressor(1 << 20)
	for name, c := range map[string]struct {
		count   int
		records string
		want    string
	}{
		"whole":                     {1, one, ""},
		"two":                       {2, one + "\x0e\x00\x00\x02\x01\x02v\x00", ""},
		"none":                      {0, "", ""},
		"missing":                   {1, "", "length"},
		"one of two missing":        {2, one, "length"},
		"bytes follow":              {1, one + "\x00", "1 bytes follow"},
		"offset delta repeats":      {2, one + one, "offset delta 0 after 0"},
		"offset delta beyond last":  {1, "\x0e\x00\x00\x02\x01\x02v\x00", "offset delta 1 after -1"},
		"offset delta negative":     {1, "\x0e\x00\x00\x01\x01\x02v\x00", "offset delta -1"},
		"length negative":           {1, "\x0d\x00\x00\x00\x01\x02v\x00", "length -7"},
		"length beyond the end":     {1, "\x10\x00\x00\x00\x01\x02v\x00", "length 8"},
		"length never ends":         {1, strings.Repeat("\xff", 11), "length"},
		"record shorter than said":  {1, "\x10\x00\x00\x00\x01\x02v\x00\x00", "does not end"},
		"value longer than record":  {1, "\x0e\x00\x00\x00\x01\x08v\x00", "does not end"},
		"value length -2":           {1, "\x0e\x00\x00\x00\x01\x03v\x00", "does not end"},
		"value length over 32 bits": {1, "\x14\x00\x00\x00\x01\xff\xff\xff\xff\xff\x01", "does not end"},
		"header count negative":     {1, "\x0e\x00\x00\x00\x01\x02v\x01", "does not end"},
		"header missing":            {1, "\x0e\x00\x00\x00\x01\x02v\x02", "does not end"},
		"header key null":           {1, "\x12\x00\x00\x00\x01\x02v\x02\x01\x01", "does not end"},
		"header":                    {1, "\x14\x00\x00\x00\x01\x02v\x02\x02k\x01", ""},
		"empty record":              {1, "\x00", "does not end"},
	} {
		n, err := readAll(t, d, withRecords(0, c.count, []byte(c.records)))
		if c.want == "" {
			if err != nil || n != c.count {
				t.Errorf("%s: %d records, %v", name, n, err)
			}
		} else if protocol.CodeOf(err) != protocol.InvalidRecord || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestBadCompression feeds bytes that are not what the codec says.
func TestBadCompression(t *testing.T) {
	d := batch.NewDecompressor(1 << 20)
	xerial := "\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"
	for name, c := range map[string]struct {
		codec   batch.Codec
		records string
	}{
		"gzip nonsense":             {batch.Gzip, "nonsense"},
		"gzip empty":                {batch.Gzip, ""},
		"snappy nonsense":           {batch.Snappy, "\xff\xff\xff\xff\xff\xff"},
		"snappy empty":              {batch.Snappy, ""},
		"snappy claims too much":    {batch.Snappy, "\x80\x80\x20\x00"},
		"xerial header cut":         {batch.Snappy, xerial[:12]},
		"xerial block size cut":     {batch.Snappy, xerial + "\x00\x00"},
		"xerial block cut":          {batch.Snappy, xerial + "\x00\x00\x00\x09\x01"},
		"xerial block size 2^32-1":  {batch.Snappy, xerial + "\xff\xff\xff\xff\x01"},
		"xerial block is no snappy": {batch.Snappy, xerial + "\x00\x00\x00\x02\xff\xff"},
		"lz4 nonsense":              {batch.LZ4, "nonsense"},
		"zstd nonsense":             {batch.Zstd, "nonsense"},
		"zstd cut":                  {batch.Zstd, "\x28\xb5\x2f\xfd"},
	} {
		_, err := readAll(t, d, withRecords(uint16(c.codec), 1, []byte(c.records)))
		if protocol.CodeOf(err) != protocol.InvalidRecord {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readAll(t, d, withRecords(6, 1, nil)); protocol.CodeOf(err) != protocol.UnsupportedCompressionType {
		t.Errorf("codec 6: %v", err)
	}
	// The Decompressor is still good.
	for _, codec := range codecs {
		if n, err := readAll(t, d, build(t, codec, 9)); n != 9 || err != nil {
			t.Errorf("%v afterwards: %d records, %v", codec, n, err)
		}
	}
}

// TestDecompressionLimit builds bombs: 8 MiB of zeros are a few KiB.
func TestDecompressionLimit(t *testing.T) {
	for _, codec := range codecs[1:] {
		b := batch.NewBuilder(codec)
		b.Append(0, nil, make([]byte, 8<<20))
		bomb, err := b.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := readAll(t, batch.NewDecompressor(b.Len()), bomb); n != 1 || err != nil {
			t.Errorf("%v at the limit: %d records, %v", codec, n, err)
		}
		if _, err := readAll(t, batch.NewDecompressor(b.Len()-1), bomb); protocol.CodeOf(err) != protocol.MessageTooLarge {
			t.Errorf("%v beyond the limit: %v", codec, err)
		}
	}
}

func TestXerialBlocks(t *testing.T) {
	plain := build(t, batch.None, 50)[batch.HeaderBytes:]
	framed := []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
	for rest := plain; len(rest) > 0; {
		n := min(len(rest), 100)
		block := s2.EncodeSnappy(nil, rest[:n])
		framed = binary.BigEndian.AppendUint32(framed, uint32(len(block)))
		framed = append(framed, block...)
		rest = rest[n:]
	}
	b := withRecords(uint16(batch.Snappy), 50, framed)
	if n, err := readAll(t, batch.NewDecompressor(len(plain)), b); n != 50 || err != nil {
		t.Errorf("%d records, %v", n, err)
	}
	if _, err := readAll(t, batch.NewDecompressor(len(plain)-1), b); protocol.CodeOf(err) != protocol.MessageTooLarge {
		t.Errorf("beyond the limit: %v", err)
	}
}

func TestValidate(t *testing.T) {
	d := batch.NewDecompressor(1 << 20)
	b := batch.NewBuilder(batch.LZ4)
	b.Append(100, []byte("k"), nil)
	b.Append(300, nil, []byte("v"))
	b.Append(200, []byte{}, []byte("v"))
	b.Append(200, nil, nil)
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := parse(t, raw)
	if maxTimestamp, _, err := d.Validate(&h, raw, false); maxTimestamp != 300 || err != nil {
		t.Errorf("max timestamp %d, %v", maxTimestamp, err)
	}
	_, recordErrors, err := d.Validate(&h, raw, true)
	if protocol.CodeOf(err) != protocol.InvalidRecord || len(recordErrors) != 2 || recordErrors[0].Index != 1 || recordErrors[1].Index != 3 {
		t.Errorf("compacted topic: %v, %v", recordErrors, err)
	}
	b.Reset()
	b.AppendAt(0, 1, nil, nil)
	b.AppendAt(2, 1, nil, nil)
	if raw, err = b.AppendTo(nil); err != nil {
		t.Fatal(err)
	}
	h = parse(t, raw)
	if _, _, err := d.Validate(&h, raw, false); protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Errorf("offset deltas with a gap: %v", err)
	}
	if n, err := readAll(t, d, raw); n != 2 || err != nil {
		t.Errorf("compaction leaves gaps: %d records, %v", n, err)
	}
	// A batch that only its header remains of.
	b.Reset()
	if raw, err = b.AppendTo(nil); err != nil {
		t.Fatal(err)
	}
	if n, err := readAll(t, d, raw); n != 0 || err != nil {
		t.Errorf("empty batch: %d records, %v", n, err)
	}
}

func TestValidateListsFewErrors(t *testing.T) {
	b := batch.NewBuilder(batch.None)
	for range 1000 {
		b.Append(1, nil, nil)
	}
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := parse(t, raw)
	_, recordErrors, err := batch.NewDecompressor(1<<20).Validate(&h, raw, true)
	if len(recordErrors) != 100 || !strings.Contains(fmt.Sprint(err), "1000 of 1000") {
		t.Errorf("%d errors listed, %v", len(recordErrors), err)
	}
}

// TestRecompress goes from every codec to every other, at levels that Kafka allows.
func TestRecompress(t *testing.T) {
	d := batch.NewDecompressor(1 << 20)
	var c batch.Compressor
	levels := map[batch.Codec][]int{batch.None: {0}, batch.Gzip: {-1, 0, 1, 9}, batch.Snappy: {0}, batch.LZ4: {0, 1, 9, 17}, batch.Zstd: {-131072, 0, 3, 22}}
	for _, from := range codecs {
		source := build(t, from, 200)
		h := parse(t, source)
		for _, to := range codecs {
			for _, level := range levels[to] {
				out, err := c.Recompress([]byte("before"), d, &h, source, to, level)
				if err != nil || !bytes.HasPrefix(out, []byte("before")) {
					t.Fatalf("%v to %v at %d: %v", from, to, level, err)
				}
				got, err := batch.Check(out[6:], roomy)
				if err != nil || got.Attributes.Codec() != to {
					t.Fatalf("%v to %v at %d: %+v, %v", from, to, level, got, err)
				}
				back, err := c.Recompress(nil, d, &got, out[6:], batch.None, 0)
				if err != nil || !bytes.Equal(back, build(t, batch.None, 200)) {
					t.Errorf("%v to %v at %d and back is another batch, %v", from, to, level, err)
				}
			}
		}
	}
	bad := withRecords(uint16(batch.Zstd), 1, []byte("nonsense"))
	h := parse(t, bad)
	if out, err := c.Recompress(nil, d, &h, bad, batch.Gzip, 0); protocol.CodeOf(err) != protocol.InvalidRecord || len(out) != 0 {
		t.Errorf("recompressed nonsense: %d bytes, %v", len(out), err)
	}
	h = parse(t, build(t, batch.None, 1))
	if _, err := c.Recompress(nil, d, &h, build(t, batch.None, 1), 5, 0); err == nil {
		t.Error("recompressed to codec 5")
	}
}

// TestControlBatch compares with the marker that Kafka's Java code wrote
// (MemoryRecords.withEndTransactionMarker).
func TestControlBatch(t *testing.T) {
	want := golden(t, "commit-marker")
	marker := batch.EndMarker{Marker: batch.Commit, ProducerID: 4000, ProducerEpoch: 3, CoordinatorEpoch: 12, Timestamp: 1700000000000}
	got, err := batch.AppendControlBatch(nil, 99, 5, marker)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("commit marker is\n%x, Kafka's is\n%x, %v", got, want, err)
	}
	marker.Marker = batch.Abort
	abort, err := batch.AppendControlBatch(nil, 99, 5, marker)
	if err != nil {
		t.Fatal(err)
	}
	h := parse(t, abort)
	if parsed, err := batch.ParseControl(&h, abort); parsed != marker || err != nil {
		t.Errorf("parsed %+v, want %+v, %v", parsed, marker, err)
	}
	if _, err := batch.Check(abort, roomy); protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Errorf("a client may write it: %v", err)
	}
	for name, records := range map[string]string{
		"no record":    "",
		"key of 2":     "\x1c\x00\x00\x00\x04\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00",
		"value of 4":   "\x1c\x00\x00\x00\x08\x00\x00\x00\x01\x08\x00\x00\x00\x00\x00",
		"type 2":       "\x20\x00\x00\x00\x08\x00\x00\x00\x02\x0c\x00\x00\x00\x00\x00\x00\x00",
		"null and nil": "\x0c\x00\x00\x00\x01\x01\x00",
	} {
		b := withRecords(0x30, 1, []byte(records))
		h := parse(t, b)
		if _, err := batch.ParseControl(&h, b); protocol.CodeOf(err) != protocol.InvalidRecord {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := build(t, batch.None, 1)
	h = parse(t, plain)
	if _, err := batch.ParseControl(&h, plain); protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Errorf("a plain batch: %v", err)
	}
}

func TestCodecNames(t *testing.T) {
	for _, codec := range codecs {
		if got, err := batch.ParseCodec(codec.String()); got != codec || err != nil {
			t.Errorf("%v: %v, %v", codec, got, err)
		}
	}
	if got, err := batch.ParseCodec("uncompressed"); got != batch.None || err != nil {
		t.Errorf("uncompressed: %v, %v", got, err)
	}
	for _, bad := range []string{"", "producer", "GZIP"} {
		if _, err := batch.ParseCodec(bad); err == nil {
			t.Errorf("ParseCodec(%q) succeeds", bad)
		}
	}
	if got := batch.Codec(6).String(); got != "codec 6" || batch.Codec(6).Valid() || batch.Codec(-1).Valid() {
		t.Errorf("codec 6 is %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, codec := range codecs {
		f.Add(build(f, codec, 5))
		f.Add(golden(f, codec.String()))
	}
	f.Add(golden(f, "commit-marker"))
	f.Add(append(build(f, batch.None, 1), build(f, batch.None, 2)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := batch.Check(b, roomy)
		if code := protocol.CodeOf(err); code == protocol.UnknownServerError {
			t.Errorf("untyped error %v", err)
		}
		if err == nil && (h.Size() != len(b) || h.Records <= 0 || h.NextOffset() != protocol.Offset(h.Records)) {
			t.Errorf("accepted %+v of %d bytes", h, len(b))
		}
		var seen int
		err = batch.Each(b, func(h batch.Header, one []byte) error {
			seen += len(one)
			if h.Attributes.Control() {
				if _, err := batch.ParseControl(&h, one); protocol.CodeOf(err) == protocol.UnknownServerError {
					t.Errorf("untyped error %v", err)
				}
			}
			return nil
		})
		if err == nil && seen != len(b) {
			t.Errorf("batches of %d bytes in %d", seen, len(b))
		}
	})
}

// FuzzRecords reads arbitrary bytes as the records of a batch whose header is
// right, and reads what is accepted again after another codec.
func FuzzRecords(f *testing.F) {
	for _, codec := range codecs {
		f.Add(uint8(codec), int32(5), build(f, codec, 5)[batch.HeaderBytes:])
		f.Add(uint8(codec), int32(40), golden(f, codec.String())[batch.HeaderBytes:])
	}
	f.Fuzz(func(t *testing.T, attributes uint8, count int32, records []byte) {
		d := batch.NewDecompressor(1 << 20)
		b := withRecords(uint16(attributes), int(count), records)
		h := parse(t, b)
		maxTimestamp, _, err := d.Validate(&h, b, true)
		if code := protocol.CodeOf(err); code == protocol.UnknownServerError {
			t.Errorf("untyped error %v", err)
		}
		n, err := readAll(t, d, b)
		if err != nil {
			return
		}
		if n != int(count) {
			t.Errorf("%d records of %d", n, count)
		}
		var c batch.Compressor
		again, err := c.Recompress(nil, d, &h, b, batch.Zstd, 0)
		if err != nil {
			t.Fatal(err)
		}
		h = parse(t, again)
		if m, err := readAll(t, d, again); m != n || err != nil {
			t.Errorf("%d records after another codec, %v", m, err)
		}
		if again, _, _ := d.Validate(&h, again, true); again != maxTimestamp {
			t.Errorf("max timestamp %d, then %d", maxTimestamp, again)
		}
	})
}
