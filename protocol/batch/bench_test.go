package batch_test

import (
	"testing"

	"github.com/varve-io/varve/protocol/batch"
)

// large returns a batch of n records of 1 KiB that compress to about a third.
func large(t testing.TB, codec batch.Codec, n int) []byte {
	t.Helper()
	b := batch.NewBuilder(codec)
	value := make([]byte, 1024)
	seed := uint32(1)
	for i := range n {
		for j := range value {
			if seed = seed*1664525 + 1013904223; j%3 == 0 {
				value[j] = byte(seed >> 24)
			}
		}
		b.Append(int64(i), nil, value)
	}
	out, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var limits = batch.Limits{BatchBytesMax: 8 << 20, ProduceVersion: 9}

func TestCheckAndRecordsDoNotAllocate(t *testing.T) {
	b := large(t, batch.None, 100)
	d := batch.NewDecompressor(1 << 20)
	var r batch.Record
	if allocations := testing.AllocsPerRun(100, func() {
		h, err := batch.Check(b, limits)
		if err != nil {
			t.Fatal(err)
		}
		records, err := d.Records(&h, b)
		if err != nil {
			t.Fatal(err)
		}
		for records.Next(&r) {
			if len(r.Value) != 1024 {
				t.Fatal("wrong record")
			}
		}
		batch.Restamp(b, 0, 1)
	}); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

func BenchmarkCheck(b *testing.B) {
	raw := large(b, batch.None, 1000)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := batch.Check(raw, limits); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	for _, codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			raw := large(b, codec, 1000)
			d := batch.NewDecompressor(8 << 20)
			b.SetBytes(1000 * 1024)
			b.ReportAllocs()
			for b.Loop() {
				h, err := batch.Parse(raw)
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := d.Validate(&h, raw, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRecompress(b *testing.B) {
	raw := large(b, batch.None, 1000)
	h, err := batch.Parse(raw)
	if err != nil {
		b.Fatal(err)
	}
	for _, codec := range codecs {
		b.Run(codec.String(), func(b *testing.B) {
			var c batch.Compressor
			var dst []byte
			d := batch.NewDecompressor(8 << 20)
			b.SetBytes(1000 * 1024)
			b.ReportAllocs()
			for b.Loop() {
				if dst, err = c.Recompress(dst[:0], d, &h, raw, codec, batch.DefaultLevel); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
