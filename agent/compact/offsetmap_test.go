package compact_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/protocol"
)

func TestOffsetMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	m := compact.NewOffsetMap(24 * 1000)
	for round := range 30 {
		hint := int64(rng.IntN(2000))
		m.Reset(hint)
		want := make(map[string]protocol.Offset)
		full := 0
		for offset := range protocol.Offset(1500) {
			key := binary.AppendUvarint(nil, rng.Uint64N(uint64(100*(1+round))))
			if m.Put(key, offset) {
				want[string(key)] = offset
			} else if full++; full == 1 && int64(len(want)) < min(hint, 900) {
				t.Fatalf("the map is full with %d keys, want room for %d of %d", len(want), hint, 1000)
			}
		}
		if m.Len() != len(want) || len(want) > 900 {
			t.Fatalf("%d keys, want %d and at most 900", m.Len(), len(want))
		}
		for n := range uint64(100 * (1 + round)) {
			key := binary.AppendUvarint(nil, n)
			offset, ok := m.Get(key)
			if wanted, wantedOK := want[string(key)]; ok != wantedOK || ok && offset != wanted {
				t.Fatalf("round %d: key %d is at %d, %t; want %d, %t", round, n, offset, ok, wanted, wantedOK)
			}
		}
	}
}

// However little memory there is, one key fits, so that each cleaning gets on.
func TestOffsetMapSmallest(t *testing.T) {
	m := compact.NewOffsetMap(0)
	for range 2 {
		if !m.Put([]byte("a"), 0) || !m.Put([]byte("a"), 5) || m.Put([]byte("b"), 6) {
			t.Fatal("want room for one key")
		}
		if offset, ok := m.Get([]byte("a")); offset != 5 || !ok {
			t.Fatal(offset, ok)
		}
		if offset, ok := m.Get([]byte("b")); ok {
			t.Fatal(offset)
		}
		m.Reset(1 << 62)
	}
}

func TestOffsetMapDoesNotAllocate(t *testing.T) {
	m := compact.NewOffsetMap(1 << 20)
	m.Reset(20_000)
	key := make([]byte, 20)
	n := uint64(0)
	if allocations := testing.AllocsPerRun(10_000, func() {
		n++
		binary.BigEndian.PutUint64(key, n)
		if _, ok := m.Get(key); ok || !m.Put(key, 7) {
			t.Fatal("wrong")
		}
	}); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}
