package wire

import (
	"github.com/varve-io/varve/protocol"
)

// This file keeps a small frame from becoming a large piece of memory.
//
// kmsg allocates an array as soon as it has read its length, and bounds the
// length by the bytes that remain, one byte an element. But an element of 3
// bytes on the wire may be a struct of 100, and one that is not there costs as
// much: a frame of 100 MiB that claims 100 million topics would allocate
// gigabytes before the decoder finds that they are missing. So each body is
// walked first, without allocating, by a description of its layout: every
// element that an array claims must be there, and the bytes that are not
// payload (records, group metadata and assignments, which are not copied) are
// limited. What remains is bounded: about 30 bytes of memory for each byte.

const (
	// FrameBytesMax is the largest request frame, its size excluded:
	// Kafka's default of socket.request.max.bytes.
	FrameBytesMax = 100 << 20

	// StructureBytesMax is the most that a request body may hold besides
	// opaque payload. A fetch or a commit of 100,000 partitions needs half.
	StructureBytesMax = 8 << 20

	// tagBytes is charged for a tagged field, on top of its bytes: kmsg
	// keeps unknown ones in a map of their struct.
	tagBytes = 64
)

// checkStructure walks the body of a request. Errors are [*protocol.Error]
// with code InvalidRequest.
func checkStructure(api protocol.API, version int16, body []byte) error {
	w := walker{reader: newReader(body), version: version, flexible: api.Flexible(version)}
	w.fields(layouts[api.Key])
	if w.Bad() {
		return protocol.InvalidRequest.Errorf("%s version %d: body of %d bytes ends early", api.Name, version, len(body))
	}
	if structure := len(body) - w.Left() - w.payload + w.tagged*tagBytes; structure > StructureBytesMax {
		return protocol.InvalidRequest.Errorf("%s version %d: %d bytes of structure, want at most %d",
			api.Name, version, structure, StructureBytesMax)
	}
	return nil
}

// walker reads a body by its layout.
type walker struct {
	reader
	version  int16
	flexible bool
	payload  int // bytes of kind payload seen
	tagged   int // tagged fields seen
}

// fields reads the fields of one struct, and in a flexible version its tags.
func (w *walker) fields(fields []field) {
	for i := range fields {
		if f := &fields[i]; f.since <= w.version && w.version <= f.until {
			w.field(f)
		}
	}
	if w.flexible {
		w.tagged += w.tags()
	}
}

func (w *walker) field(f *field) {
	switch f.kind {
	case fixed:
		w.Take(f.size)
	case text:
		w.Take(w.length(2))
	case payload:
		n := w.length(4)
		w.Take(n)
		w.payload += n
	case list:
		for n := w.length(4); n > 0 && !w.Bad(); n-- {
			w.field(&f.elem[0])
		}
	case structs:
		for n := w.length(4); n > 0 && !w.Bad(); n-- {
			w.fields(f.elem)
		}
	}
}

// length reads the length of a string, of bytes or of an array; null is 0.
// In versions that are not flexible it takes size bytes.
func (w *walker) length(size int) int {
	var n int
	switch {
	case w.flexible:
		n = int(w.uvarint()) - 1
	case size == 2:
		n = int(int16(w.Uint16()))
	default:
		n = int(int32(w.Uint32()))
	}
	return max(n, 0)
}

// kind is how a field is encoded.
type kind uint8

const (
	fixed   kind = iota // size bytes
	text                // a string, null or not
	payload             // bytes that stay where they are, null or not
	list                // an array of elem[0]
	structs             // an array of structs with the fields elem
)

// field is one field of a layout, present in versions since to until.
type field struct {
	kind         kind
	size         int
	since, until int16
	elem         []field
}

func (f field) from(version int16) field { f.since = version; return f }
func (f field) upTo(version int16) field { f.until = version; return f }

const everyVersion = 1<<15 - 1

func fixedField(size int) field { return field{kind: fixed, size: size, until: everyVersion} }
func listOf(elem field) field   { return field{kind: list, until: everyVersion, elem: []field{elem}} }

func structsOf(fields ...field) field { return field{kind: structs, until: everyVersion, elem: fields} }
