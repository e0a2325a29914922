package batch

import "fmt"

// Codec is how the records of a batch are compressed.
type Codec int8

// The codecs of Kafka, by their number in the attributes.
const (
	None   Codec = 0
	Gzip   Codec = 1
	Snappy Codec = 2
	LZ4    Codec = 3
	Zstd   Codec = 4
)

var codecNames = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// Valid reports whether the codec is one of the above.
func (c Codec) Valid() bool { return None <= c && c <= Zstd }

// String returns the codec's name as clients configure it.
func (c Codec) String() string {
	if !c.Valid() {
		return fmt.Sprintf("codec %d", int8(c))
	}
	return codecNames[c]
}

// ParseCodec reads a codec's name. Kafka's compression.type has "uncompressed"
// for None, which is accepted too; "producer" is not a codec.
func ParseCodec(name string) (Codec, error) {
	if name == "uncompressed" {
		return None, nil
	}
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return None, fmt.Errorf("parse compression codec: %q, want one of %q", name, codecNames)
}
