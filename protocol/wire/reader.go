package wire

import (
	"math"

	"github.com/varve-io/varve/protocol/fields"
)

// reader walks over the encoded fields of Kafka's protocol.
type reader struct{ fields.Reader }

func newReader(b []byte) reader { return reader{fields.NewReader(b)} }

// uvarint reads an unsigned varint of at most 32 bits (KIP-482).
func (r *reader) uvarint() uint32 { return uint32(r.UvarintMax(math.MaxUint32)) }

// nullableString reads a string with an int16 length; null, any negative
// length as in Kafka, is empty.
func (r *reader) nullableString() []byte {
	n := int16(r.Uint16())
	if n < 0 {
		return nil
	}
	return r.Take(int(n))
}

// tags skips a section of tagged fields and returns how many there were.
func (r *reader) tags() int {
	count := int(r.uvarint())
	for n := count; n > 0 && !r.Bad(); n-- {
		r.uvarint()
		r.Take(int(r.uvarint()))
	}
	return count
}
