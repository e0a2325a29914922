package compact

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/varve-io/varve/protocol"
)

// OffsetMap holds the newest offset of each key, in bounded memory however long the keys are (Kafka's SkimpyOffsetMap). It knows a key by
// 128 bits of its SHA-256: who chooses keys cannot make two of them meet, which would remove somebody's record, and by chance two of 10^12 meet
// with a probability of 10^-15. A hash of 64 bits would not do, nor one that is not cryptographic (hash/maphash), nor MD5, which Kafka takes; with the instructions that CPUs
// have for it, SHA-256 takes about as long as MD5.
//
// It is an open hash table with linear probing in which entries are ordered by their hash (Robin Hood hashing), so that a key that is not there is noticed
// after a few neighbours although nine slots of ten are taken.
type OffsetMap struct {
	slotsMax int
	slots    []slot // of the capacity that was needed so far
	room     int    // how many more keys it takes
	keys     int
}

// slot is one entry: a key's hash, and its offset plus one; 0 is an empty slot.
type slot struct {
	high, low uint64
	next      uint64
}

// slotBytes is the size of a slot.
const slotBytes = 24

// The part of the slots that may be taken is loadNumerator/loadDenominator: log.cleaner.io.buffer.load.factor.
const loadNumerator, loadDenominator = 9, 10

// NewOffsetMap returns a map that never takes more than bytesMax bytes (but room for one key), as an agent has it for
// all its partitions. It takes them when [OffsetMap.Reset] asks for as many.
func NewOffsetMap(bytesMax int) *OffsetMap {
	m := &OffsetMap{slotsMax: max(bytesMax/slotBytes, 2)}
	m.Reset(0)
	return m
}

// Reset empties the map, and makes room for that many keys, or as many as are within its bound.
func (m *OffsetMap) Reset(keys int64) {
	n := m.slotsMax
	if keys = max(keys, 0); keys < int64(n) { // else it is too much, and might overflow
		n = min(n, int(keys*loadDenominator/loadNumerator)+2)
	}
	if n > cap(m.slots) {
		m.slots = nil // first, so that both need not be there at once
		m.slots = make([]slot, n)
	} else {
		m.slots = m.slots[:n]
		clear(m.slots)
	}
	m.keys, m.room = 0, max(n*loadNumerator/loadDenominator, 1)
}

// Len returns the number of keys in the map.
func (m *OffsetMap) Len() int { return m.keys }

// Put sets the offset of a key. It is false if the key is new and the map is full.
func (m *OffsetMap) Put(key []byte, offset protocol.Offset) bool {
	entry := hash(key)
	entry.next = uint64(offset) + 1
	at := m.home(entry)
	for distance := 0; ; distance++ {
		s := &m.slots[at]
		if s.high == entry.high && s.low == entry.low && s.next != 0 {
			s.next = entry.next
			return true
		}
		if s.next == 0 || m.distance(*s, at) < distance {
			break // it is not there, and this is its place
		}
		at = m.after(at)
	}
	if m.room == 0 {
		return false
	}
	m.room--
	m.keys++
	for entry.next != 0 {
		m.slots[at], entry = entry, m.slots[at]
		at = m.after(at)
	}
	return true
}

// Get returns the offset of a key; ok is false if the map does not have it.
func (m *OffsetMap) Get(key []byte) (offset protocol.Offset, ok bool) {
	entry := hash(key)
	at := m.home(entry)
	for distance := 0; ; distance++ {
		s := &m.slots[at]
		if s.next == 0 {
			return protocol.NoOffset, false
		}
		if s.high == entry.high && s.low == entry.low {
			return protocol.Offset(s.next - 1), true
		}
		if m.distance(*s, at) < distance {
			return protocol.NoOffset, false
		}
		at = m.after(at)
	}
}

func hash(key []byte) slot {
	sum := sha256.Sum256(key)
	return slot{high: binary.BigEndian.Uint64(sum[:]), low: binary.BigEndian.Uint64(sum[8:])}
}

// home is the slot that a hash would have in an empty map. It grows with the hash.
func (m *OffsetMap) home(s slot) int {
	at, _ := bits.Mul64(s.high, uint64(len(m.slots)))
	return int(at)
}

// distance is how far from home an entry is.
func (m *OffsetMap) distance(s slot, at int) int {
	d := at - m.home(s)
	if d < 0 {
		d += len(m.slots)
	}
	return d
}

func (m *OffsetMap) after(at int) int {
	if at++; at == len(m.slots) {
		return 0
	}
	return at
}
