package segment

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// load is the batches of a segment of 16 MiB, dealt in turn to partitions.
func load(batchBytes, partitions int) (keys []Key, batches [][]byte) {
	const total = 16 << 20
	next := make([]int64, partitions)
	for i := range total / batchBytes {
		p := i % partitions
		s := spec{offset: protocol.Offset(next[p]), timestamp: int64(now + i), producer: 1000, sequence: int32(next[p])}
		s.records0 = make([]byte, batchBytes-batch.HeaderBytes)
		next[p]++
		keys = append(keys, Key{Shard: uint32(p % 128), Topic: topicA, Partition: int32(p)})
		batches = append(batches, s.encode())
	}
	return keys, batches
}

func BenchmarkBuild(b *testing.B) {
	for _, batchBytes := range []int{16 << 10, 256} {
		b.Run(fmt.Sprintf("batch=%d", batchBytes), func(b *testing.B) {
			keys, batches := load(batchBytes, 100)
			b.SetBytes(16 << 20)
			b.ReportAllocs()
			var builder Builder
			for b.Loop() {
				for i, data := range batches {
					if err := builder.Add(keys[i], "events", data); err != nil {
						b.Fatal(err)
					}
				}
				if _, _, err := builder.Finish(testHeader); err != nil {
					b.Fatal(err)
				}
				builder.Reset()
			}
		})
	}
}

// finished returns the footer's bytes of a 16 MiB segment of 1,000 sections, or of one.
func finished(b *testing.B, batchBytes, partitions int) []byte {
	keys, batches := load(batchBytes, partitions)
	var builder Builder
	for i, data := range batches {
		if err := builder.Add(keys[i], "events", data); err != nil {
			b.Fatal(err)
		}
	}
	parts, _, err := builder.Finish(testHeader)
	if err != nil {
		b.Fatal(err)
	}
	return parts[len(parts)-1]
}

func BenchmarkParseFooter(b *testing.B) {
	foot := finished(b, 1<<10, 1000)
	b.SetBytes(int64(len(foot)))
	b.ReportAllocs()
	for b.Loop() {
		f, err := ParseFooter(foot)
		if err != nil {
			b.Fatal(err)
		}
		if f.Find(f.Sections[500].Key) == nil {
			b.Fatal("section not found")
		}
	}
}

// BenchmarkRange is the dearest lookup: the last batch before a mark, where no index is longer than that from its last mark on.
func BenchmarkRange(b *testing.B) {
	f, err := ParseFooter(finished(b, 256, 1))
	if err != nil {
		b.Fatal(err)
	}
	s := &f.Sections[0]
	b.ReportAllocs()
	var batches []Batch
	for b.Loop() {
		if _, _, batches, err = s.Range(batches[:0], stride-1, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/stride, "ns/batch")
}

// BenchmarkParseLongIndex reads the footer of 65,536 batches in one section, whose index it walks for the marks.
func BenchmarkParseLongIndex(b *testing.B) {
	foot := finished(b, 256, 1)
	b.SetBytes(int64(len(foot)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseFooter(foot); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifyBatch(b *testing.B) {
	_, batches := load(16<<10, 1)
	var builder Builder
	if err := builder.Add(keyA0, "events", batches[0]); err != nil {
		b.Fatal(err)
	}
	_, f, err := builder.Finish(testHeader)
	if err != nil {
		b.Fatal(err)
	}
	s := &f.Sections[0]
	first, err := batchAt(s, protocol.Offset(binary.BigEndian.Uint64(batches[0])))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(first.Size))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.VerifyBatch(first, batches[0]); err != nil {
			b.Fatal(err)
		}
	}
}
