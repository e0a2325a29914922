package backup

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file anew")

func id() ID { return ID{Cluster: [16]byte{1, 2, 3}, Number: 7, Revision: 1000, Nonce: 0xa1b2} }

func items() []Item {
	return []Item{
		{Key: "groups/a%2Fb", Value: []byte(`{"x":1}`), Revision: 12},
		{Key: "meta/cluster", Value: []byte(`{}`), Revision: 2},
		{Key: "meta/commits/0000000000000001/0000000000000001", Value: []byte{0, 1, 2}, Revision: 999},
		{Key: "meta/commits/0000000000000001/0000000000000002", Value: nil, Revision: 1000},
	}
}

// encoded returns all pages of a copy.
func encoded(t testing.TB, all []Item) []Encoded {
	t.Helper()
	var pages []Encoded
	for p, err := range Pages(id(), 1_700_000_000_000, all) {
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, p)
	}
	return pages
}

func TestRoundTrip(t *testing.T) {
	value := bytes.Repeat([]byte("v"), ValueBytesMax)
	var many []Item
	for i := range 40 {
		many = append(many, Item{Key: fmt.Sprintf("offsets/%03d", i), Value: value, Revision: int64(i)})
	}
	for name, all := range map[string][]Item{"none": nil, "few": items(), "several pages": many} {
		t.Run(name, func(t *testing.T) {
			var got []Item
			pages := encoded(t, all)
			for i, e := range pages {
				p, err := Parse(e.Bytes)
				if err != nil {
					t.Fatal(err)
				}
				if p.ID != id() || p.Number != uint32(i) || p.Last != (i == len(pages)-1) || p.CreatedMs != 1_700_000_000_000 {
					t.Errorf("page %d of %d is %+v, page %d, last %t", i, len(pages), p.ID, p.Number, p.Last)
				}
				if named, page, err := ParseName(e.Name); err != nil || named != id() || page != p.Number {
					t.Errorf("name %s: %+v, page %d, %v", e.Name, named, page, err)
				}
				got = append(got, p.Items...)
			}
			if len(got) != len(all) || name == "several pages" && len(pages) < 2 {
				t.Fatalf("%d keys in %d pages, want %d", len(got), len(pages), len(all))
			}
			for i := range all {
				if got[i].Key != all[i].Key || !bytes.Equal(got[i].Value, all[i].Value) || got[i].Revision != all[i].Revision {
					t.Errorf("key %d is %s at %d, want %s at %d", i, got[i].Key, got[i].Revision, all[i].Key, all[i].Revision)
				}
			}
		})
	}
}

func TestGolden(t *testing.T) {
	const file = "testdata/copy.v2"
	got := encoded(t, items())[0].Bytes
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("a copy is encoded as\n%x\nwant\n%x", got, want)
	}
}

// TestDamage: no bit may change, and no byte be missing.
func TestDamage(t *testing.T) {
	b := encoded(t, items())[0].Bytes
	for i := range len(b) * 8 {
		bad := bytes.Clone(b)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Parse(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("bit %d of byte %d changed: %v", i%8, i/8, err)
		}
	}
	for n := range b {
		if _, err := Parse(b[:n]); err == nil {
			t.Errorf("cut to %d bytes: no error", n)
		}
	}
}

func TestLimits(t *testing.T) {
	for name, it := range map[string]Item{
		"key":   {Key: string(bytes.Repeat([]byte("k"), KeyBytesMax+1))},
		"value": {Key: "k", Value: make([]byte, ValueBytesMax+1)},
	} {
		for _, err := range Pages(id(), 0, []Item{it}) {
			if !errors.Is(err, ErrLimit) {
				t.Errorf("%s: %v, want ErrLimit", name, err)
			}
		}
	}
}

func TestParseName(t *testing.T) {
	for _, name := range []string{
		"", "copies/", id().Prefix(), "copies/7-3e8-a1b2-01020300000000000000000000000000/0", "copies/0000000000000007-00000000000003e8-01020300000000000000000000000000/00000000", id().Name(0) + "0", "x" + id().Name(0),
	} {
		if _, _, err := ParseName(name); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}

// FuzzParse: whatever is taken is the same when it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add(encoded(f, items())[0].Bytes)
	f.Add(encoded(f, nil)[0].Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(p.encode())
		if err != nil || !reflect.DeepEqual(p, again) {
			t.Errorf("read again as %+v, %v, want %+v", again, err, p)
		}
	})
}
