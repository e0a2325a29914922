// Package backup is the form in which the coordinator's state is copied to the bucket: pages of keys and values, all as of one revision.
//
//	for name, page := range backup.Pages(id, createdMs, items) {
//		store.Put(ctx, name, page)
//	}
//	page, err := backup.Parse(b)
//
// FORMAT.md has the bytes. The package is pure.
package backup

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/fields"
)

// Version of the format that this package writes, and the only one that it reads.
const Version = 2

// Limits of the format.
const (
	PageBytesMax  = 32 << 20
	KeyBytesMax   = 4 << 10
	ValueBytesMax = 512 << 10

	pageBytes  = 8 << 20 // at which a writer ends a page
	magic      = "VCPY"
	headerSize = 60
	itemMin    = 4 // four varints
)

// NamePrefix is what the names of all copies start with.
const NamePrefix = "copies/"

var (
	// ErrCorrupt says that bytes are not what a writer wrote.
	ErrCorrupt = errors.New("corrupt copy")
	// ErrVersion says that a page has a format that this build does not know.
	ErrVersion = errors.New("unknown version of a copy")
	// ErrLimit says that a key or value is larger than a page takes.
	ErrLimit = errors.New("key or value too large for a copy")
)

// ID says which copy it is.
type ID struct {
	Cluster  [16]byte
	Number   uint64 // of the cluster's copies, from 1
	Revision int64  // of the coordinator at which it gave the number, and as of which all of it was read
	Nonce    uint64 // with which the number was given
}

// Prefix returns what the names of the copy's pages, and of no other objects, start with.
func (id ID) Prefix() string {
	return fmt.Sprintf("%s%016x-%016x-%016x-%x/", NamePrefix, id.Number, uint64(id.Revision), id.Nonce, id.Cluster)
}

// Name returns the name of a page of the copy.
func (id ID) Name(page uint32) string { return fmt.Sprintf("%s%08x", id.Prefix(), page) }

// ParseName undoes [ID.Name].
func ParseName(name string) (id ID, page uint32, err error) {
	parts := strings.FieldsFunc(strings.TrimPrefix(name, NamePrefix), func(r rune) bool { return r == '/' || r == '-' })
	if len(parts) != 5 {
		return ID{}, 0, fmt.Errorf("parse name of a copy %q: want %sNUMBER-REVISION-NONCE-CLUSTER/PAGE", name, NamePrefix)
	}
	var numbers [4]uint64
	for i, at := range []int{0, 1, 2, 4} {
		if numbers[i], err = strconv.ParseUint(parts[at], 16, []int{64, 63, 64, 32}[i]); err != nil {
			return ID{}, 0, fmt.Errorf("parse name of a copy %q: %w", name, err)
		}
	}
	cluster, err := hex.DecodeString(parts[3])
	if err != nil || len(cluster) != len(id.Cluster) {
		return ID{}, 0, fmt.Errorf("parse name of a copy %q: want a cluster of 32 digits", name)
	}
	id = ID{Cluster: [16]byte(cluster), Number: numbers[0], Revision: int64(numbers[1]), Nonce: numbers[2]}
	if page = uint32(numbers[3]); id.Name(page) != name {
		return ID{}, 0, fmt.Errorf("parse name of a copy %q: want %s", name, id.Name(page))
	}
	return id, page, nil
}

// Item is a key with its value.
type Item struct {
	Key      string
	Value    []byte
	Revision int64 // that wrote it last
}

// Page is a part of a copy.
type Page struct {
	ID        ID
	CreatedMs int64 // Unix milliseconds by the writer's clock
	Number    uint32
	Last      bool   // no page follows
	Items     []Item // ascending by key
}

// Pages yields the encoded pages of a copy, in the order in which they are to be put, with their names; there is at least one. Items must be ascending by key. It stops at an error,
// which wraps [ErrLimit].
func Pages(id ID, createdMs int64, items []Item) iter.Seq2[Encoded, error] {
	return func(yield func(Encoded, error) bool) {
		p := Page{ID: id, CreatedMs: createdMs}
		for begin := 0; ; p.Number++ {
			end, bytes := begin, 0
			for end < len(items) && bytes < pageBytes {
				it := &items[end]
				if len(it.Key) > KeyBytesMax || len(it.Value) > ValueBytesMax {
					yield(Encoded{}, fmt.Errorf("copy %s: %w: %d and %d bytes", it.Key, ErrLimit, len(it.Key), len(it.Value)))
					return
				}
				bytes += len(it.Key) + len(it.Value)
				end++
			}
			p.Items, p.Last = items[begin:end], end == len(items)
			if !yield(Encoded{Name: id.Name(p.Number), Bytes: p.encode()}, nil) || p.Last {
				return
			}
			begin = end
		}
	}
}

// Encoded is a page as it is stored.
type Encoded struct {
	Name  string
	Bytes []byte
}

func (p *Page) encode() []byte {
	size := headerSize + 16
	for i := range p.Items {
		size += len(p.Items[i].Key) + len(p.Items[i].Value) + 16
	}
	b := append(make([]byte, 0, size), magic...)
	last := byte(0)
	if p.Last {
		last = 1
	}
	b = append(b, Version, last, 0, 0)
	b = append(b, p.ID.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, p.ID.Number)
	b = binary.BigEndian.AppendUint64(b, uint64(p.ID.Revision))
	b = binary.BigEndian.AppendUint64(b, p.ID.Nonce)
	b = binary.BigEndian.AppendUint64(b, uint64(p.CreatedMs))
	b = binary.BigEndian.AppendUint32(b, p.Number)
	b = binary.AppendUvarint(b, uint64(len(p.Items)))
	before := ""
	for i := range p.Items {
		it := &p.Items[i]
		n := common(before, it.Key)
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(it.Key)-n))
		b = append(b, it.Key[n:]...)
		b = binary.AppendUvarint(b, uint64(it.Revision))
		b = binary.AppendUvarint(b, uint64(len(it.Value)))
		b = append(b, it.Value...)
		before = it.Key
	}
	return binary.BigEndian.AppendUint32(b, crc32c.Checksum(b))
}

// common returns how many bytes a and b begin with in common.
func common(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// Parse reads a page. Values are parts of b. Its error wraps [ErrCorrupt] or [ErrVersion].
func Parse(b []byte) (*Page, error) {
	if len(b) < headerSize+4 || len(b) > PageBytesMax || string(b[:4]) != magic {
		return nil, fmt.Errorf("parse copy: %w: %d bytes that begin with %q", ErrCorrupt, len(b), b[:min(4, len(b))])
	}
	if b[4] != Version {
		return nil, fmt.Errorf("parse copy: %w: %d, want %d", ErrVersion, b[4], Version)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if got := crc32c.Checksum(body); got != sum {
		return nil, fmt.Errorf("parse copy: %w: CRC32C %08x, want %08x", ErrCorrupt, got, sum)
	}
	p := &Page{
		ID: ID{
			Cluster: [16]byte(b[8:24]), Number: binary.BigEndian.Uint64(b[24:]), Revision: int64(binary.BigEndian.Uint64(b[32:])),
			Nonce: binary.BigEndian.Uint64(b[40:]),
		},
		CreatedMs: int64(binary.BigEndian.Uint64(b[48:])), Number: binary.BigEndian.Uint32(b[56:]), Last: b[5] == 1,
	}
	d := fields.NewReader(body[headerSize:])
	p.Items = make([]Item, d.UvarintMax(uint64(d.Left()/itemMin)))
	before := ""
	for i := range p.Items {
		it := &p.Items[i]
		n := d.UvarintMax(uint64(len(before)))
		it.Key = before[:n] + string(d.Take(int(d.UvarintMax(KeyBytesMax))))
		it.Revision = int64(d.UvarintMax(uint64(max(p.ID.Revision, 0))))
		it.Value = d.Take(int(d.UvarintMax(ValueBytesMax)))
		if d.Bad() || it.Key <= before || len(it.Key) > KeyBytesMax || common(before, it.Key) != int(n) {
			return nil, fmt.Errorf("parse copy %d, page %d: %w: key %d", p.ID.Number, p.Number, ErrCorrupt, i)
		}
		before = it.Key
	}
	if d.Bad() || d.Left() > 0 || b[5] > 1 || b[6] != 0 || b[7] != 0 || p.ID.Revision < 0 {
		return nil, fmt.Errorf("parse copy %d, page %d: %w: bad fields", p.ID.Number, p.Number, ErrCorrupt)
	}
	return p, nil
}
