package compact_test

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// benchLog returns batches of 100 records of 16 bytes of key and 100 of value, of which each key has two, one in either half.
func benchLog(b *testing.B, codec batch.Codec, records int) (log []entry, bytes int64) {
	b.Helper()
	builder := batch.NewBuilder(codec)
	value := make([]byte, 100)
	for at := 0; at < records; at += 100 {
		builder.Reset()
		builder.BaseOffset, builder.LeaderEpoch = protocol.Offset(at), 1
		for i := at; i < at+100; i++ {
			n := uint64(i*7919%(records/2)) * 0x9e3779b97f4a7c15
			for j := 0; j < 50; j += 8 { // half of it does not compress
				binary.LittleEndian.PutUint64(value[j:], n*uint64(j+1)^uint64(i)<<13)
			}
			builder.Append(t0+int64(i), fmt.Appendf(nil, "%016x", n), value)
		}
		raw, err := builder.AppendTo(nil)
		if err != nil {
			b.Fatal(err)
		}
		h, err := batch.Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		log, bytes = append(log, entry{h: h, b: raw}), bytes+int64(len(raw))
	}
	return log, bytes
}

// BenchmarkCleaning cleans a log once, half of which goes; bytes are those of the log, which both passes read.
func BenchmarkCleaning(b *testing.B) {
	const records = 200_000
	for codec := batch.None; codec <= batch.Zstd; codec++ {
		b.Run(codec.String(), func(b *testing.B) {
			log, bytes := benchLog(b, codec, records)
			offsets, d := compact.NewOffsetMap(128<<20), batch.NewDecompressor(plainBytesMax)
			filter := batch.NewFilter(d)
			b.SetBytes(bytes)
			b.ReportAllocs()
			for b.Loop() {
				keys := compact.NewKeys(offsets, d, 0, records, nil)
				for i := range log {
					if _, err := keys.Add(&log[i].h, log[i].b); err != nil {
						b.Fatal(err)
					}
				}
				c := compact.NewCleaner(offsets, filter, compact.Cleaning{End: keys.End(), Bound: records, NowMs: t0})
				for i := range log {
					if _, err := c.Clean(&log[i].h, log[i].b); err != nil {
						b.Fatal(err)
					}
				}
				if s := c.Stats(); s.RecordsKept != records/2 {
					b.Fatalf("%+v", s)
				}
			}
			b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkOffsetMap fills a map to its end, and looks for as many keys that are not there, at the most that it holds.
func BenchmarkOffsetMap(b *testing.B) {
	const bytesMax = 32 << 20
	m := compact.NewOffsetMap(bytesMax)
	key := make([]byte, 16)
	fill := func() {
		m.Reset(1 << 40)
		for n := uint64(0); ; n++ {
			if binary.BigEndian.PutUint64(key, n); !m.Put(key, protocol.Offset(n)) {
				return
			}
		}
	}
	b.Run("Put", func(b *testing.B) {
		for b.Loop() {
			fill()
		}
		b.ReportMetric(float64(m.Len())*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		b.ReportMetric(bytesMax/float64(m.Len()), "bytes/key")
	})
	fill()
	for _, there := range []bool{true, false} {
		b.Run(fmt.Sprintf("Get/there=%t", there), func(b *testing.B) {
			n := uint64(0)
			for b.Loop() {
				n++
				binary.BigEndian.PutUint64(key, n*7919%uint64(m.Len()))
				if !there {
					key[8] = 1
				}
				if _, ok := m.Get(key); ok != there {
					b.Fatal(n)
				}
			}
		})
		key[8] = 0
	}
}
