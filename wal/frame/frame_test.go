package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
)

var update = flag.Bool("update", false, "write the golden files anew")

// build makes a stamped frame.
func build(h Header, entries ...string) []byte {
	body := int64(0)
	for _, e := range entries {
		body += EntryHeaderBytes + int64(len(e))
	}
	b := bytes.Repeat([]byte{0xee}, int(Padded(HeaderBytes+body))) // what memory held before
	at := HeaderBytes
	for _, e := range entries {
		at += h.Put(b[at:], []byte(e[:len(e)/2]), []byte(e[len(e)/2:]), crc32c.Tail{})
	}
	Finish(b, &h)
	Stamp(b, h.Place)
	return b
}

var golden = Header{
	Segment: SegmentID{Log: 0x1122334455667788, Number: 3}, Fence: 0x99aa, First: 41,
	Place: Place{File: 0x0000000200000005, Block: 17, Synced: 16},
}

func TestGolden(t *testing.T) {
	fileHeader := make([]byte, BlockBytes)
	PutFileHeader(fileHeader, &FileHeader{
		Store: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, File: 0x0000000200000005,
		Segment: golden.Segment, Fence: golden.Fence, Ordinal: 4, First: 40,
	})
	for name, got := range map[string][]byte{
		"frame": build(golden, "first entry", "", "the third"), "proof": build(golden), "file": fileHeader,
	} {
		path := filepath.Join("testdata", name+".hex")
		dump := hex.Dump(got)
		if *update {
			if err := os.WriteFile(path, []byte(dump), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if dump != string(want) {
			t.Errorf("%s differs from %s:\n%s", name, path, dump)
		}
	}
}

func TestFrameRoundTrip(t *testing.T) {
	entries := []string{"first entry", "", strings.Repeat("long", 3000)}
	b := build(golden, entries...)
	if len(b)%BlockBytes != 0 {
		t.Fatalf("%d bytes", len(b))
	}
	h, err := ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.Segment != golden.Segment || h.Fence != golden.Fence || h.First != 41 || h.Count != 3 || h.Next() != 44 ||
		h.Place != golden.Place || h.Bytes() != int64(len(b)) {
		t.Fatalf("got %+v", h)
	}
	body := b[HeaderBytes:][:h.BodyBytes]
	if err := CheckBody(&h, body); err != nil {
		t.Fatal(err)
	}
	if err := Entries(&h, body, func(id EntryID, b []byte) error {
		if string(b) != entries[id-41] {
			t.Errorf("entry %d: %.20q", id, b)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if rest := b[HeaderBytes+h.BodyBytes:]; len(bytes.Trim(rest, "\x00")) != 0 {
		t.Error("padding is not zero")
	}
}

// TestUnplaced: a header without its place is the same wherever the frame was stamped, and says the rest.
func TestUnplaced(t *testing.T) {
	b := build(golden, "first entry", "second")
	sent := AppendUnplaced([]byte("before"), b)
	Stamp(b, Place{File: 1, Block: 2, Synced: 3})
	if again := AppendUnplaced([]byte("before"), b); len(sent) != 6+UnplacedBytes || !bytes.Equal(sent, again) {
		t.Fatalf("%x, stamped elsewhere %x", sent, again)
	}
	want, err := Unstamped(b)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ParseUnplaced(sent[6:]); err != nil || h != want || h.Place != (Place{}) {
		t.Errorf("got %+v, %v; want %+v", h, err, want)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"short":      func(b []byte) []byte { return b[:UnplacedBytes-1] },
		"magic":      func(b []byte) []byte { b[0]++; return b },
		"version":    func(b []byte) []byte { b[4]++; return b },
		"count":      func(b []byte) []byte { b[18]++; return b },
		"no entry 0": func(b []byte) []byte { clear(b[40:]); return b },
	} {
		if h, err := ParseUnplaced(damage(bytes.Clone(sent[6:]))); !errors.Is(err, ErrNoFrame) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

// TestEveryByteCounts inverts each byte of a frame in turn: none may go unnoticed, except in the padding.
func TestEveryByteCounts(t *testing.T) {
	b := build(golden, "first entry", "second")
	for i := range HeaderBytes + 2*EntryHeaderBytes + len("first entry"+"second") {
		b[i] ^= 0x41
		h, err := ParseHeader(b)
		if err == nil {
			err = CheckBody(&h, b[HeaderBytes:][:h.BodyBytes])
		}
		if !errors.Is(err, ErrNoFrame) && !errors.Is(err, ErrBody) {
			t.Errorf("byte %d: %v", i, err)
		}
		b[i] ^= 0x41
	}
}

func TestFileHeader(t *testing.T) {
	used := FileHeader{Store: [16]byte{1}, File: 9, Segment: SegmentID{Log: 2, Number: 1}, Fence: 3, Ordinal: 4, First: 5}
	free := FileHeader{Store: [16]byte{1}, File: 8}
	block := func(h FileHeader) []byte {
		b := make([]byte, BlockBytes)
		PutFileHeader(b, &h)
		return b
	}
	damaged := func(b []byte, at ...int) []byte {
		for _, i := range at {
			b[i] ^= 1
		}
		return b
	}
	later := used
	later.File = 10
	freed := FileHeader{Store: [16]byte{1}, File: 9}
	for _, test := range []struct {
		name  string
		block []byte
		want  FileHeader
		err   error
	}{
		{"whole", block(used), used, nil},
		{"free", block(free), free, nil},
		{"first copy torn", damaged(block(used), 30), used, nil},
		{"second copy torn", damaged(block(used), fileHeaderSecond+30), used, nil},
		{"both damaged", damaged(block(used), 30, fileHeaderSecond+30), FileHeader{}, ErrFileHeader},
		{"taken into use, second half lost", append(block(used)[:2048], block(free)[2048:]...), used, nil},
		{"taken into use, first half lost", append(block(free)[:2048], block(used)[2048:]...), used, nil},
		{"freed, second half lost", append(block(freed)[:2048], block(used)[2048:]...), freed, nil},
		{"freed, first half lost", append(block(used)[:2048], block(freed)[2048:]...), freed, nil},
		{"another use, first half lost", append(block(used)[:2048], block(later)[2048:]...), later, nil},
		{"zeros", make([]byte, BlockBytes), FileHeader{}, ErrFileHeader},
		{"short", block(used)[:100], FileHeader{}, ErrFileHeader},
	} {
		got, err := ParseFileHeader(test.block)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", test.name, got, err, test.want, test.err)
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(build(golden, "first entry", "", "the third"))
	f.Add(build(golden))
	f.Add(build(golden, strings.Repeat("x", 5000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil || h.Bytes() > int64(len(b)) {
			return
		}
		body := b[HeaderBytes:][:h.BodyBytes]
		if CheckBody(&h, body) != nil {
			return
		}
		// What is accepted is written the same again.
		again := bytes.Clone(b[:h.Bytes()])
		clear(b[HeaderBytes+h.BodyBytes : h.Bytes()])
		at, made := HeaderBytes, Header{Segment: h.Segment, Fence: h.Fence, First: h.First}
		if err := Entries(&h, body, func(_ EntryID, e []byte) error {
			at += made.Put(again[at:], e, nil, crc32c.Tail{})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		Finish(again, &made)
		Stamp(again, h.Place)
		if !bytes.Equal(again[:HeaderBytes+h.BodyBytes], b[:HeaderBytes+h.BodyBytes]) {
			t.Fatalf("written again differs: %+v", h)
		}
	})
}
