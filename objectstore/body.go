package objectstore

import (
	"errors"
	"io"
)

// Body is the content of an object to be put: slices that stand one after the other, so that what was gathered
// from many places need not be copied into one. The zero Body is an empty object.
type Body struct {
	Parts [][]byte // not to be changed until Put returned
	Size  int64    // sum of the lengths of Parts
}

// Bytes returns a Body of one slice.
func Bytes(b []byte) Body {
	return Body{Parts: [][]byte{b}, Size: int64(len(b))}
}

// Parts returns a Body of the given slices, one after the other.
func Parts(parts ...[]byte) Body {
	body := Body{Parts: parts}
	for _, part := range parts {
		body.Size += int64(len(part))
	}
	return body
}

// Range returns n bytes of the body from off, which must lie within it. They stay where they are.
func (b Body) Range(off, n int64) Body {
	part := Body{Size: n}
	for _, slice := range b.Parts {
		if n == 0 {
			break
		}
		skip := min(off, int64(len(slice)))
		off -= skip
		take := min(n, int64(len(slice))-skip)
		n -= take
		if take > 0 {
			part.Parts = append(part.Parts, slice[skip:skip+take])
		}
	}
	return part
}

// Reader returns a new reader over the body, which also seeks and writes itself to an io.Writer without copying.
func (b Body) Reader() *BodyReader {
	return &BodyReader{body: b}
}

// BodyReader reads a [Body] as one stream. It is not safe for concurrent use.
type BodyReader struct {
	body Body
	part int   // index of the part that holds pos
	off  int   // offset in that part
	pos  int64 // position in the whole
}

var (
	_ io.ReadSeeker = (*BodyReader)(nil)
	_ io.WriterTo   = (*BodyReader)(nil)
)

// Read implements io.Reader.
func (r *BodyReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && r.part < len(r.body.Parts) {
		part := r.body.Parts[r.part]
		c := copy(p[n:], part[r.off:])
		n += c
		r.advance(c)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// advance moves the reader n bytes on, which all lie in the current part.
func (r *BodyReader) advance(n int) {
	r.off += n
	r.pos += int64(n)
	for r.part < len(r.body.Parts) && r.off == len(r.body.Parts[r.part]) {
		r.part++
		r.off = 0
	}
}

// WriteTo implements io.WriterTo.
func (r *BodyReader) WriteTo(w io.Writer) (int64, error) {
	start := r.pos
	for r.part < len(r.body.Parts) {
		n, err := w.Write(r.body.Parts[r.part][r.off:])
		r.advance(n)
		if err != nil {
			return r.pos - start, err
		}
	}
	return r.pos - start, nil
}

// Seek implements io.Seeker. It refuses to leave the body.
func (r *BodyReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.body.Size
	}
	if offset < 0 || offset > r.body.Size {
		return 0, errors.New("seek body: outside of the object")
	}
	r.part, r.off, r.pos = 0, 0, 0
	for r.part < len(r.body.Parts) && r.pos < offset {
		left := offset - r.pos
		r.advance(int(min(left, int64(len(r.body.Parts[r.part])))))
	}
	r.advance(0)
	return r.pos, nil
}
