package manifest

import (
	"fmt"
	"testing"

	"github.com/varve-io/varve/protocol"
)

// large returns a manifest as merges leave them: each segment has a section of each partition, 100 records a second in each partition, a minute in each segment.
func large(tb testing.TB, partitions, segments, producers int) *Manifest {
	tb.Helper()
	const sectionBytes, records = 160 << 10, 6000
	m := &Manifest{Cluster: [16]byte{1}, Shard: 7, Epoch: 3, Generation: 12, CreatedMs: now}
	data := int64(80 + partitions*sectionBytes)
	age := func(i int) int64 { return int64(segments-i) * 60_000 }
	for i := range segments {
		m.Segments = append(m.Segments, Segment{Epoch: 3, Number: uint64(1000 + 2*i), Size: data + 100_000, FooterPos: data, CreatedMs: now - age(i) + 777})
	}
	for i := range partitions {
		p := Partition{
			Topic: topicA, TopicName: "events", Partition: int32(i), End: 1 << 30, LastStable: 1 << 30,
			Epochs: []EpochStart{{1, 0}, {3, 1 << 29}},
		}
		first := p.End - protocol.Offset(segments*records)
		for s := range segments {
			p.Extents = append(p.Extents, Extent{
				Segment: int32(s), First: first, Next: first + records, Pos: int64(80 + i*sectionBytes), Size: sectionBytes,
				MaxTimestamp: now - age(s) + int64(i), Epoch: 3,
			})
			first += records
		}
		for n := range producers {
			s := Producer{ID: protocol.ProducerID(1_000_000 + 10*n), CoordinatorEpoch: noCoordinatorEpoch, TxnFirst: protocol.NoOffset, UpdatedMs: now - int64(n%1000)*60, TimestampMs: now - int64(n%1000)*60 - 3}
			for b := range BatchesMax {
				s.Batches = append(s.Batches, ProducerBatch{BaseSequence: int32(100_000 + 10*b), BaseOffset: p.End - protocol.Offset(producers*10*(BatchesMax-b)-10*n), Records: 10})
			}
			p.Producers = append(p.Producers, s)
		}
		m.Partitions = append(m.Partitions, p)
	}
	return m
}

func encodedSize(tb testing.TB, m *Manifest) int {
	tb.Helper()
	b, err := m.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	return len(b)
}

// TestSize holds entries to the sizes that FORMAT.md gives.
func TestSize(t *testing.T) {
	bare := &Manifest{}
	bare.Set(Partition{Topic: topicA, TopicName: "events", Partition: 4, LogStartOffset: 1 << 40})
	one := encodedSize(t, bare)
	bare.Set(Partition{Topic: topicA, TopicName: "events", Partition: 5, LogStartOffset: 1 << 40})
	base := encodedSize(t, large(t, 400, 1, 0))
	for name, test := range map[string]struct{ got, want int }{
		"the first partition of a topic, without records": {one - encodedSize(t, &Manifest{}), 26 + len("events")},
		"another partition without records":               {encodedSize(t, bare) - one, 8},
		"a partition of one segment":                      {(encodedSize(t, large(t, 800, 1, 0)) - base) / 400, 36},
		"an extent":                                       {(encodedSize(t, large(t, 400, 51, 0)) - base) / 400 / 50, 12},
		"an idempotent producer of five batches":          {(encodedSize(t, large(t, 1, 1, 10_000)) - encodedSize(t, large(t, 1, 1, 0))) / 10_000, 32},
	} {
		if test.got > test.want {
			t.Errorf("%s takes %d bytes, want %d at most", name, test.got, test.want)
		}
	}
}

func benchmarks(b *testing.B, run func(b *testing.B, m *Manifest)) {
	for _, size := range []struct{ partitions, segments, producers int }{{400, 50, 0}, {400, 50, 20}, {10, 50, 10_000}} {
		b.Run(fmt.Sprintf("partitions=%d/extents=%d/producers=%d", size.partitions, size.segments, size.producers), func(b *testing.B) {
			m := large(b, size.partitions, size.segments, size.producers)
			b.SetBytes(int64(encodedSize(b, m)))
			b.ReportAllocs()
			run(b, m)
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	benchmarks(b, func(b *testing.B, m *Manifest) {
		for b.Loop() {
			if _, err := m.Encode(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	benchmarks(b, func(b *testing.B, m *Manifest) {
		object, err := m.Encode()
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := Parse(object); err != nil {
				b.Fatal(err)
			}
		}
	})
}
