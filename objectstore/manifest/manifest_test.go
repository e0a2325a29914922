package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/crc32c"
)

var update = flag.Bool("update", false, "write golden files anew")

const goldenFile = "testdata/v1.manifest"

var (
	topicA = protocol.TopicID{0xaa, 1}
	topicB = protocol.TopicID{0xbb, 2}
)

func example() *Manifest {
	m := &Manifest{
		Cluster: [16]byte{0xc1, 15: 0x7e}, Shard: 0x107, Epoch: 9, Generation: 42, CreatedMs: 1_700_000_000_123,
	}
	m.Set(Partition{topicB, "orders.v2", 3, 17})
	m.Set(Partition{topicA, "events", 4, 1 << 40})
	m.Set(Partition{topicB, "orders.v2", 1, 5})
	m.Set(Partition{topicA, "events", 4, 1<<40 + 1}) // over the first
	return m
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

func TestLogStart(t *testing.T) {
	m := example()
	for _, test := range []struct {
		topic     protocol.TopicID
		partition int32
		want      protocol.Offset
	}{
		{topicA, 4, 1<<40 + 1}, {topicB, 1, 5}, {topicB, 3, 17}, {topicA, 3, 0}, {topicB, 4, 0}, {protocol.TopicID{0xff}, 1, 0},
	} {
		if got := m.LogStart(test.topic, test.partition); got != test.want {
			t.Errorf("log start of %s-%d is %d, want %d", test.topic, test.partition, got, test.want)
		}
	}
	if len(m.Partitions) != 3 {
		t.Errorf("%d partitions, want 3", len(m.Partitions))
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, damage := range map[string]func(*Manifest){
		"out of order":       func(m *Manifest) { m.Partitions[0], m.Partitions[1] = m.Partitions[1], m.Partitions[0] },
		"twice":              func(m *Manifest) { m.Partitions[1] = m.Partitions[0] },
		"bad name":           func(m *Manifest) { m.Partitions[0].TopicName = "no/name" },
		"empty name":         func(m *Manifest) { m.Partitions[0].TopicName = "" },
		"negative partition": func(m *Manifest) { m.Partitions[0].Partition = -1 },
		"negative offset":    func(m *Manifest) { m.Partitions[0].LogStartOffset = -1 },
		"negative epoch":     func(m *Manifest) { m.Epoch = -1 },
		"too many":           func(m *Manifest) { m.Partitions = make([]Partition, PartitionsMax+1) },
	} {
		m := example()
		damage(m)
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
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

// FuzzParse gives arbitrary bodies the right opening and checksum: what parses must encode to the same bytes.
func FuzzParse(f *testing.F) {
	golden, err := os.ReadFile(goldenFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden[8 : len(golden)-checksumSize])
	f.Add(bytes.Repeat([]byte{0xff}, headerSize))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte(magic+"\x01\x00\x00\x00"), body...)
		b = binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
		m, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("parsed %+v, which encodes to %x (%v), want %x", m, again, err, b)
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
