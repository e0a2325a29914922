// Package inspect prints what Varve has written, wherever it lies: files of the WAL, segments, manifests, copies of the coordinator's state, and its keys.
//
//	p := NewPrinter(os.Stdout, machine)
//	err := File(p, name, file, size, options)          // a local file, told by its first bytes
//	err := Object(ctx, p, store, name, options)        // an object of a bucket, of which no more is read than is printed
//	err := Keys(ctx, p, kv, "meta/topics/")            // a key, or all that begin like this
//	err = p.Close()                                    // ErrDamaged if something was
//
// It is what an operator has when something is wrong: what can be read is printed, and what cannot is told with its place. It changes nothing.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/varve-io/varve/agent/display"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Options say how much is printed.
type Options struct {
	// Batches also prints what is inside: the batches of a segment's sections, the frames and entries of a WAL file, the epochs, extents and producers of a manifest's partitions.
	Batches bool
	// Records prints the records of one partition; nil for none.
	Records *Partition
	// Verify reads everything and checks every checksum. WAL files and manifests are checked as a whole anyway, but for the batches in a WAL file.
	Verify bool
}

// Partition names one: its topic's name, or id, where names are not written.
type Partition struct {
	Topic     string
	Partition int32
}

// ParsePartition reads TOPIC/PARTITION.
func ParsePartition(s string) (*Partition, error) {
	topic, number, ok := strings.Cut(s, "/")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || topic == "" || err != nil || n < 0 {
		return nil, fmt.Errorf("partition %q, want TOPIC/NUMBER", s)
	}
	return &Partition{Topic: topic, Partition: int32(n)}, nil
}

// is reports whether that is the partition. It is false for none.
func (p *Partition) is(id protocol.TopicID, name string, partition int32) bool {
	return p != nil && p.Partition == partition && (p.Topic == name || p.Topic == id.String())
}

// ErrUnknown says that something is none of what can be printed.
var ErrUnknown = errors.New("neither WAL file, nor segment, nor manifest, nor copy of etcd")

// source is the bytes of a file or of an object.
type source struct {
	name   string
	object bool // the name is that of an object, which says what is in it
	size   int64
	read   func(p []byte, off int64) error // all of p
}

// File prints a local file.
func File(p *Printer, name string, file io.ReaderAt, size int64, o Options) error {
	read := func(b []byte, off int64) error {
		if n, err := file.ReadAt(b, off); n < len(b) {
			return err
		}
		return nil
	}
	return show(p, &source{name: name, size: size, read: read}, o)
}

// callTimeout bounds each request to the bucket.
const callTimeout = time.Minute

// Object prints an object of a bucket.
func Object(ctx context.Context, p *Printer, store objectstore.Store, name string, o Options) error {
	info, err := stat(ctx, store, name)
	if err != nil {
		return err
	}
	read := func(b []byte, off int64) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return store.Get(ctx, name, off, b)
	}
	return show(p, &source{name: name, object: true, size: info.Size, read: read}, o)
}

func stat(ctx context.Context, store objectstore.Store, name string) (objectstore.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return store.Stat(ctx, name)
}

// bytes reads a part of a source.
func (s *source) bytes(off, n int64) ([]byte, error) {
	b := make([]byte, n)
	if err := s.read(b, off); err != nil {
		return nil, fmt.Errorf("read %d bytes of %s from byte %d: %w", n, s.name, off, err)
	}
	return b, nil
}

// Magics of the formats: see the FORMAT.md of each.
const (
	magicBytes     = 4
	walMagic       = "VRVW"
	walMagicAgain  = 2048 // where the second copy of a WAL file's header is
	segmentMagic   = "VSEG"
	segmentTrailer = 8 // bytes from the end where a segment's trailer has the magic
	manifestMagic  = "VMAN"
	copyMagic      = "VCPY"
)

// show prints a source, whatever it is.
func show(p *Printer, s *source, o Options) error {
	named := func(prefix string) bool { return s.object && strings.HasPrefix(s.name, prefix) }
	switch {
	case named(segment.NamePrefix), named(segment.MergedNamePrefix):
		return showSegment(p, s, o)
	case named(manifest.NamePrefix):
		return showManifest(p, s, o)
	case named(backup.NamePrefix):
		return showCopy(p, s)
	}
	magics := make([]string, 3)
	for i, at := range []int64{0, walMagicAgain, s.size - segmentTrailer} {
		if at < 0 || at+magicBytes > s.size {
			continue
		}
		b, err := s.bytes(at, magicBytes)
		if err != nil {
			return err
		}
		magics[i] = string(b)
	}
	switch {
	case magics[0] == segmentMagic, magics[2] == segmentMagic:
		return showSegment(p, s, o)
	case magics[0] == manifestMagic:
		return showManifest(p, s, o)
	case magics[0] == copyMagic:
		return showCopy(p, s)
	case magics[0] == walMagic, magics[1] == walMagic:
		return showWAL(p, s, o)
	}
	return fmt.Errorf("%s begins with %q: %w", s.name, magics[0], ErrUnknown)
}

// decompressedBytesMax bounds what the records of one batch may become in memory.
const decompressedBytesMax = 1 << 30

// record is one record of a partition.
type record struct {
	Offset      protocol.Offset `json:"offset"`
	TimestampMs int64           `json:"timestamp_ms"`
	Key         content         `json:"key"`
	Value       content         `json:"value"`
	Headers     []header        `json:"headers,omitempty"`
	Marker      string          `json:"marker,omitempty"` // of a transaction's end: commit or abort
}

type header struct {
	Key   content `json:"key"`
	Value content `json:"value"`
}

func (*record) form() form { return form{kind: "record", indent: "  "} }

func (r *record) cells() []cell {
	if r.Marker != "" {
		return []cell{{"OFFSET", number(r.Offset)}, {"TIME", moment(r.TimestampMs)}, {"KEY", "(" + r.Marker + ")"}, {"HEADERS", "-"}, {"VALUE", "-"}}
	}
	headers := make([]string, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = h.Key.String() + "=" + h.Value.String()
	}
	return []cell{
		{"OFFSET", number(r.Offset)}, {"TIME", moment(r.TimestampMs)}, {"KEY", r.Key.String()}, {"HEADERS", display.OrDash(strings.Join(headers, " "))}, {"VALUE", r.Value.String()},
	}
}

// showRecords prints the records of a batch.
func showRecords(p *Printer, d *batch.Decompressor, data []byte) error {
	h, err := batch.Parse(data)
	if err != nil {
		return err
	}
	if h.Attributes.Control() {
		m, err := batch.ParseControl(&h, data)
		if err != nil {
			return err
		}
		p.emit(&record{Offset: h.BaseOffset, TimestampMs: m.Timestamp, Marker: outcome(m.Marker == batch.Commit)})
		return nil
	}
	records, err := d.Records(&h, data)
	if err != nil {
		return err
	}
	var r batch.Record
	for records.Next(&r) {
		row := record{Offset: h.Offset(&r), TimestampMs: h.Timestamp(&r), Key: r.Key, Value: r.Value}
		for key, value := range r.Headers() {
			row.Headers = append(row.Headers, header{key, value})
		}
		p.emit(&row)
	}
	return records.Err()
}

func outcome(commit bool) string {
	if commit {
		return "commit"
	}
	return "abort"
}
