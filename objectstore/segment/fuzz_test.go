package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"testing"

	"github.com/varve-io/varve/protocol"
)

// walk asks everything of a footer that parsed: nothing may panic, and what the index says must be consistent.
func walk(t *testing.T, f *Footer) {
	t.Helper()
	pos := int64(HeaderSize)
	for i := range f.Sections {
		s := &f.Sections[i]
		if s.Pos != pos || s.Size <= 0 || s.NextOffset <= s.FirstOffset || s.LastStable > s.NextOffset || f.Find(s.Key) != s {
			t.Fatalf("section %d is inconsistent: %+v", i, s)
		}
		pos += s.Size
		merged := f.Header.ID.Level == Merged
		at, next := s.Pos, s.FirstOffset
		for b, err := range s.All() {
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error of another kind: %v", err)
				}
				break
			}
			if b.Pos != at || b.Offset < next || b.Offset > next && !merged || b.Next() > s.NextOffset || b.Pos+int64(b.Size) > s.Pos+s.Size {
				t.Fatalf("batch %+v of section %+v: want offset %d at byte %d", b, s, next, at)
			}
			at, next = b.Pos+int64(b.Size), b.Next()
		}
		for _, offset := range []protocol.Offset{s.FirstOffset, s.NextOffset - 1, s.NextOffset} {
			pos, n, batches, err := s.Range(nil, offset, 1<<20)
			switch {
			case err != nil:
			case len(batches) == 0 && n == 0 && merged:
			case n <= 0 || pos < s.Pos || pos+n > s.Pos+s.Size:
				t.Fatalf("range %d+%d is not in %+v", pos, n, s)
			case offset >= batches[0].Next() || offset < batches[0].Offset && !merged:
				t.Fatalf("offset %d found in %+v", offset, batches[0])
			}
		}
		_ = s.Verify(nil)
	}
	if pos != f.Pos {
		t.Fatalf("sections end at %d, footer begins at %d", pos, f.Pos)
	}
}

// golden returns the footer bytes of the golden segment of a level, and their position.
func golden(f *testing.F, file string) ([]byte, int64) {
	object, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	pos, err := ParseTrailer(object, int64(len(object)))
	if err != nil {
		f.Fatal(err)
	}
	return object[pos:], pos
}

// FuzzFooter damages a real footer of either level: bytes of it are replaced from some position on, and it is cut or grown. Nothing but
// the very bytes that were written may parse.
func FuzzFooter(f *testing.F) {
	flushed, _ := golden(f, goldenFile)
	merged, _ := golden(f, mergedGoldenFile)
	for _, foot := range [][]byte{flushed, merged} {
		level := foot[5]
		f.Add(level, 0, []byte{}, len(foot))
		f.Add(level, 5, []byte{1 - level}, len(foot))
		f.Add(level, 10, []byte{0xff}, len(foot))
		f.Add(level, len(foot)-TrailerSize, []byte{0, 0, 0, 0, 0, 0, 0, 90}, len(foot))
		f.Add(level, 0, []byte{}, len(foot)-1)
		f.Add(level, 0, []byte{}, TrailerSize)
	}
	f.Fuzz(func(t *testing.T, level uint8, at int, patch []byte, size int) {
		foot := flushed
		if level == Merged {
			foot = merged
		}
		damaged := make([]byte, max(0, min(size, 2*len(foot))))
		copy(damaged, foot)
		if at >= 0 && at < len(damaged) {
			copy(damaged[at:], patch)
		}
		parsed, err := ParseFooter(damaged)
		if err == nil && !bytes.Equal(damaged, foot) {
			t.Fatalf("a damaged footer was accepted: %x", damaged)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("error of another kind: %v", err)
		}
		if err == nil {
			walk(t, parsed)
		}
	})
}

// FuzzFooterBody gives arbitrary bytes right checksums, as a hostile or broken writer would: they may parse, but nothing
// may panic, allocate beyond its input, or contradict itself.
func FuzzFooterBody(f *testing.F) {
	for _, file := range []string{goldenFile, mergedGoldenFile} {
		foot, pos := golden(f, file)
		f.Add(foot[5], foot[HeaderSize:len(foot)-TrailerSize], pos)
		f.Add(foot[5], []byte{0, 1}, int64(math.MaxInt64))
	}
	f.Fuzz(func(t *testing.T, level uint8, body []byte, pos int64) {
		header := testHeader
		if level == Merged {
			header = mergedHeader
		}
		footer := append(header.append(nil), body...)
		parsed, err := ParseFooter(appendTrailer(footer, footer, header.ID.Level, pos))
		if err != nil {
			return
		}
		walk(t, parsed)
	})
}

// FuzzAdd gives builders of both levels arbitrary batches: whatever they take, a reader finds again.
func FuzzAdd(f *testing.F) {
	for _, in := range mixed {
		f.Add(in.encode())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		addTwice(t, new(Builder), testHeader, data, 0)
		addTwice(t, &Builder{Level: Merged}, mergedHeader, data, 5)
	})
}

// addTwice puts a batch, and itself once more after a gap, through a builder and a reader.
func addTwice(t *testing.T, b *Builder, header Header, data []byte, gap protocol.Offset) {
	if b.Add(keyA0, "events", data) != nil {
		return
	}
	if end := b.sections[0].NextOffset; end < math.MaxInt64-math.MaxInt32-1-3*gap {
		next := append([]byte(nil), data...)
		binary.BigEndian.PutUint64(next, uint64(end+gap))
		if err := b.Add(keyA0, "events", next); err != nil {
			t.Fatal(err)
		}
		if gap > 0 {
			if err := b.Cover(keyA0, max(0, b.sections[0].FirstOffset-gap), b.sections[0].NextOffset+gap); err != nil {
				t.Fatal(err)
			}
		}
	}
	parts, footer, err := b.Finish(header)
	if err != nil {
		t.Fatal(err)
	}
	walk(t, footer)
	object := bytes.Join(parts, nil)
	n := 0
	for got, err := range footer.Sections[0].All() {
		if err != nil {
			t.Fatal(err)
		}
		want, err := describe(object[got.Pos : got.Pos+int64(got.Size)])
		want.Pos = got.Pos
		if err != nil || got != want {
			t.Fatalf("read %+v, want %+v (%v)", got, want, err)
		}
		n++
	}
	if n != b.sections[0].Batches {
		t.Fatalf("%d batches, want %d", n, b.sections[0].Batches)
	}
}
