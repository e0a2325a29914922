package frame

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// image is a segment's files as a store would have written them.
type image struct {
	files [][]byte
	next  EntryID
	place Place
}

const imageBlocks = 16

var imageSegment = SegmentID{Log: 7, Number: 1}

func newImage() *image {
	im := &image{next: 1}
	im.roll()
	return im
}

func (im *image) roll() {
	im.files = append(im.files, make([]byte, imageBlocks*BlockBytes))
	im.place = Place{File: uint64(100 + len(im.files)), Block: 1}
	header := im.header(len(im.files) - 1)
	header.First = im.next
	PutFileHeader(im.files[len(im.files)-1], &header)
}

func (im *image) header(i int) FileHeader {
	h, err := ParseFileHeader(im.files[i])
	if err != nil {
		h = FileHeader{File: uint64(101 + i), Segment: imageSegment, Fence: 1, Ordinal: uint32(i)}
	}
	return h
}

// entry is what entry id of an image holds.
func entry(id EntryID) string { return fmt.Sprint("entry ", id, strings.Repeat(".", int(id*977%5000))) }

// round appends frames in one write: of so many entries each.
func (im *image) round(counts ...int) {
	place := im.place
	for _, n := range counts {
		var entries []string
		for range n {
			entries = append(entries, entry(im.next+EntryID(len(entries))))
		}
		h := Header{Segment: imageSegment, Fence: 1, First: im.next, Place: place}
		b := build(h, entries...)
		copy(im.files[len(im.files)-1][int(place.Block)*BlockBytes:], b)
		place.Block += uint32(len(b) / BlockBytes)
		im.next += EntryID(n)
	}
	place.Synced = place.Block
	im.place = place
}

func (im *image) sources() []Source {
	var sources []Source
	for i, f := range im.files {
		sources = append(sources, Source{
			Name: fmt.Sprint("file", i), Header: im.header(i), Bytes: int64(len(f)), Reader: bytes.NewReader(f),
		})
	}
	return sources
}

// scanImage scans and checks what is visited; it gives the last entry.
func scanImage(t *testing.T, sources []Source, before EntryID) (EntryID, End, error) {
	t.Helper()
	next := EntryID(1)
	end, err := Scan(sources, before, func(h *Header, body []byte) error {
		return Entries(h, body, func(id EntryID, b []byte) error {
			if id != next || string(b) != entry(id) {
				t.Fatalf("entry %d holds %.30q, want entry %d %.30q", id, b, next, entry(next))
			}
			next++
			return nil
		})
	})
	if end.Next != next {
		t.Fatalf("end %+v after entry %d", end, next-1)
	}
	return next - 1, end, err
}

// spoil inverts a byte in the given block.
func (im *image) spoil(file, block int) { im.files[file][block*BlockBytes+80] ^= 0xff }

func TestScan(t *testing.T) {
	// Entries 1 and 2 take one block each as frames of one, so that blocks count as frames.
	small := func() *image {
		im := newImage()
		im.round(1)    // block 1: entry 1
		im.round(1)    // block 2: entry 2
		im.round(0)    // block 3: a proof
		im.round(1, 1) // block 4: entry 3, block 5: entry 4
		return im
	}
	for _, test := range []struct {
		name    string
		image   func() *image
		before  EntryID
		last    EntryID
		dropped int
		corrupt string // a part of the report
	}{
		{"whole", small, 0, 4, 0, ""},
		{"empty", newImage, 0, 0, 0, ""},
		{"torn at the end", func() *image { im := small(); im.spoil(0, 5); return im }, 0, 3, 0, ""},
		{"torn with a hole", func() *image { im := small(); im.spoil(0, 4); return im }, 0, 2, 1, ""},
		{
			"damaged in the middle", func() *image { im := small(); im.spoil(0, 2); return im }, 0, 1, 0,
			"entries 2 to 2 unreadable at file0 byte 8192",
		},
		{
			"damaged at the start", func() *image { im := small(); im.spoil(0, 1); return im }, 0, 0, 0,
			"entries 1 to 1 unreadable at file0 byte 4096",
		},
		{"damaged, the loss accepted", func() *image { im := small(); im.spoil(0, 2); return im }, 2, 1, 0, ""},
		{
			"torn before what is known", func() *image { im := small(); im.spoil(0, 4); return im }, 4, 2, 1,
			"entries 3 to 3 unreadable",
		},
		{
			"a proof damaged", func() *image { im := small(); im.files[0][3*BlockBytes] ^= 1; return im }, 0, 2, 0,
			"unreadable at file0 byte 12288",
		},
		{
			"last acknowledged entry damaged, closed", func() *image { im := small(); im.round(0); im.spoil(0, 5); return im }, 0, 3, 0,
			"entries 4 to 4",
		},
		{"two files", func() *image { im := small(); im.roll(); im.round(1); return im }, 0, 5, 0, ""},
		{"the second file empty", func() *image { im := small(); im.roll(); return im }, 0, 4, 0, ""},
		{
			"end of the first file damaged", func() *image { im := small(); im.roll(); im.round(1); im.spoil(0, 5); return im }, 0, 3, 0,
			"entries 4 to 4 unreadable at file0 byte 20480",
		},
		{"stale frames of an earlier use", func() *image {
			im := newImage()
			h := Header{Segment: imageSegment, Fence: 1, First: 1, Place: Place{File: 55, Block: 1, Synced: 1}}
			copy(im.files[0][BlockBytes:], build(h, "stale"))
			return im
		}, 0, 0, 0, ""},
		{"a frame copied elsewhere", func() *image {
			im := newImage()
			im.round(1)
			copy(im.files[0][3*BlockBytes:], im.files[0][BlockBytes:2*BlockBytes])
			return im
		}, 0, 1, 0, ""},
		{"another log's frame", func() *image {
			im := newImage()
			h := Header{Segment: SegmentID{Log: 8, Number: 1}, Fence: 1, First: 1, Place: Place{File: 101, Block: 1, Synced: 1}}
			copy(im.files[0][BlockBytes:], build(h, "other"))
			return im
		}, 0, 0, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			last, end, err := scanImage(t, test.image().sources(), test.before)
			if last != test.last || end.Dropped != test.dropped {
				t.Errorf("last %d, dropped %d; want %d, %d", last, end.Dropped, test.last, test.dropped)
			}
			var corrupt *CorruptError
			switch {
			case test.corrupt == "" && err != nil:
				t.Error(err)
			case test.corrupt != "" && !errors.As(err, &corrupt):
				t.Errorf("error %v, want a CorruptError", err)
			case test.corrupt != "" && !strings.Contains(err.Error(), test.corrupt):
				t.Errorf("error %q, want %q in it", err, test.corrupt)
			}
		})
	}
}

func TestScanFileMissing(t *testing.T) {
	im := newImage()
	for range 3 {
		im.round(1)
		im.roll()
	}
	im.round(1)
	sources := im.sources()
	last, _, err := scanImage(t, append(sources[:1], sources[2:]...), 0)
	var corrupt *CorruptError
	if last != 1 || !errors.As(err, &corrupt) || corrupt.First != 2 || corrupt.Last != 2 {
		t.Errorf("last %d, error %v", last, err)
	}
}

func TestScanReadError(t *testing.T) {
	im := newImage()
	im.round(1)
	sources := im.sources()
	boom := errors.New("boom")
	sources[0].Reader = failingReader{boom}
	if _, err := Scan(sources, 0, func(*Header, []byte) error { return nil }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

// FuzzScan changes bytes of a good image: whatever comes out is a prefix of what was written, and if what was changed
// lies before something that had been durable, it is reported.
func FuzzScan(f *testing.F) {
	f.Add(uint32(5000), uint16(1), byte(1))
	f.Add(uint32(1), uint16(1), byte(255))
	f.Add(uint32(9000), uint16(30000), byte(0))
	f.Fuzz(func(t *testing.T, at uint32, n uint16, with byte) {
		im := newImage()
		im.round(1)
		im.round(2, 0, 1)
		im.roll()
		im.round(1, 2)
		im.round(1)
		sources := im.sources() // headers as a store read them at its start
		all := im.next - 1
		for k := range uint32(n) {
			p := (at + k) % uint32(2*imageBlocks*BlockBytes)
			im.files[p/(imageBlocks*BlockBytes)][p%(imageBlocks*BlockBytes)] ^= with
		}
		last, _, err := scanImage(t, sources, 0)
		// The second file was begun when entry 4 was durable.
		if last < 4 && err == nil {
			t.Fatalf("entries up to %d of %d, and no report", last, all)
		}
		if (n == 0 || with == 0) && (err != nil || last != all) {
			t.Fatalf("unchanged: last %d, %v", last, err)
		}
	})
}
