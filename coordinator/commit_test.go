package coordinator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"math"
	"os"
	"reflect"
	"testing"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

var updateCommit = flag.Bool("update-commit", false, "write the golden commit anew")

const goldenCommit = "testdata/commit.v1"

// testCommit returns a commit of that many partitions of each of that many topics, as a busy cluster has them.
func testCommit(topics, partitions int) Commit {
	const nowMs = 1_700_000_000_000
	c := Commit{
		Object:     "segments/2b/0000000000001a2b/0000000000000123-0000000000000001-00000000",
		ObjectSize: 16<<20 + 12345, FooterPos: 16<<20 + 80, FooterSize: 12265,
		Log: 0x1a2b, Fence: 1, Number: 0x123, FirstEntry: 1_234_567, LastEntry: 1_240_000, CreatedMs: nowMs,
	}
	pos := int64(80)
	for s := range topics * partitions {
		topic, partition := s%topics, s/topics
		size := int64(16 << 20 / (topics * partitions))
		c.Partitions = append(c.Partitions, CommitPartition{
			Topic: protocol.TopicID{0xab, byte(topic), byte(topic >> 8)}, Partition: int32(partition), Shard: ShardID(s * 128 / (topics * partitions)),
			FirstOffset: protocol.Offset(1_000_000_000 + 7*s), NextOffset: protocol.Offset(1_000_001_000 + 7*s),
			LastStable: protocol.Offset(1_000_001_000 + 6*s),
			Pos:        pos, Size: size, MaxTimestamp: nowMs - 100 - int64(s), LeaderEpoch: 12,
		})
		pos += size
	}
	c.Shards = shardsOf(c.Partitions)
	return c
}

func TestCommitGolden(t *testing.T) {
	c := testCommit(3, 4)
	c.Partitions[5].LastStable = 0
	c.Partitions[6].Pos = 99 // not in order of positions
	c.Partitions[7].MaxTimestamp = -1
	got := c.Encode()
	if *updateCommit {
		if err := os.WriteFile(goldenCommit, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenCommit)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, want\n%x: a change of the format needs a new version", got, want)
	}
	decoded, err := DecodeCommit(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(decoded, c) {
		t.Errorf("decoded\n%+v, want\n%+v", decoded, c)
	}
}

// TestCommitBytes holds the sizes that the documentation of Commit names.
func TestCommitBytes(t *testing.T) {
	empty := testCommit(0, 0)
	fixed := len(empty.Encode())
	for _, test := range []struct {
		topics, partitions int
		max                float64
	}{
		{1, 1000, 20}, {10, 100, 20}, {1000, 1, 36},
	} {
		c := testCommit(test.topics, test.partitions)
		n := len(c.Encode())
		per := float64(n-fixed) / float64(len(c.Partitions))
		t.Logf("%d topics of %d partitions: %d bytes, %d besides %.1f per partition", test.topics, test.partitions, n, fixed, per)
		if per > test.max {
			t.Errorf("%d topics of %d partitions: %.1f bytes per partition, want at most %.0f", test.topics, test.partitions, per, test.max)
		}
	}
	if fixed > 107 {
		t.Errorf("%d bytes without partitions, want 107 at most", fixed)
	}
}

func TestCommitOverLimit(t *testing.T) {
	for _, test := range []struct {
		partitions int
		whole      bool
	}{
		{2000, true}, {4000, false}, {100_000, false},
	} {
		c := testCommit(1, test.partitions)
		b := c.Encode()
		if len(b) > CommitBytesMax {
			t.Errorf("%d partitions take %d bytes, want at most %d", test.partitions, len(b), CommitBytesMax)
		}
		got, err := DecodeCommit(b)
		if err != nil {
			t.Fatal(err)
		}
		want := c
		if !test.whole {
			want.Partitions, want.InFooter = nil, true
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d partitions: decoded whole %t with %d shards, want %t with %d",
				test.partitions, !got.InFooter, len(got.Shards), test.whole, len(want.Shards))
		}
		if again := got.Encode(); !bytes.Equal(again, b) {
			t.Errorf("%d partitions: a decoded commit encodes to other bytes", test.partitions)
		}
	}
}

func TestDecodeCommitFindsEveryFlippedBit(t *testing.T) {
	c := testCommit(2, 3)
	b := c.Encode()
	for bit := range len(b) * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := DecodeCommit(b); !errors.Is(err, ErrBadCommit) {
			t.Errorf("bit %d: %v, want ErrBadCommit", bit, err)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	for n := range b {
		if _, err := DecodeCommit(b[:n]); !errors.Is(err, ErrBadCommit) {
			t.Errorf("first %d bytes: %v, want ErrBadCommit", n, err)
		}
	}
}

// FuzzDecodeCommit gives arbitrary bodies the right version and checksum: what decodes must be a commit that stays the same.
func FuzzDecodeCommit(f *testing.F) {
	c := testCommit(3, 4)
	whole := c.Encode()
	f.Add(whole[1 : len(whole)-4])
	c = testCommit(1, 5000)
	short := c.Encode()
	f.Add(short[1 : len(short)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte{commitVersion}, body...)
		c, err := DecodeCommit(binary.BigEndian.AppendUint32(b, crc32c.Checksum(b)))
		if err != nil {
			if !errors.Is(err, ErrBadCommit) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		for _, p := range c.Partitions {
			if p.FirstOffset < 0 || p.NextOffset < p.FirstOffset || p.LastStable > p.NextOffset || p.LastStable < 0 ||
				p.Pos < 0 || p.Size < 0 || p.Pos > math.MaxInt64-p.Size {
				t.Fatalf("inconsistent partition %+v", p)
			}
		}
		again, err := DecodeCommit(c.Encode())
		if err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if !c.InFooter && again.InFooter {
			return // over the limit: the reader takes more than the writer makes
		}
		if !reflect.DeepEqual(again, c) {
			t.Fatalf("decoded\n%+v, then\n%+v", c, again)
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	c := testCommit(10, 100)
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Encode()
		}
	})
	b.Run("decode", func(b *testing.B) {
		raw := c.Encode()
		b.SetBytes(int64(len(raw)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := DecodeCommit(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}
