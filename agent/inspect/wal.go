package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal/frame"
)

// walReader prints one WAL file.
type walReader struct {
	p       *Printer
	s       *source
	o       Options
	records *batch.Decompressor

	frames, entries int
	last            frame.EntryID
}

// showWAL prints a WAL file, all of which is read and checked. A file is one of several of its segment; whether its tail was torn or damaged, those after it may tell.
func showWAL(p *Printer, s *source, o Options) error {
	r := &walReader{p: p, s: s, o: o, records: batch.NewDecompressor(decompressedBytesMax)}
	block, err := s.bytes(0, min(frame.BlockBytes, s.size))
	if err != nil {
		return err
	}
	header, err := frame.ParseFileHeader(block)
	if err != nil {
		p.damaged(0, err)
		if errors.Is(err, frame.ErrVersion) {
			return nil
		}
		return r.walk(nil, frame.BlockBytes)
	}
	whole := make([]byte, frame.BlockBytes)
	frame.PutFileHeader(whole, &header)
	p.emit(&walFacts{
		Store: fmt.Sprintf("%x", header.Store), File: header.File, Free: header.Free(), Log: uint64(header.Segment.Log), Segment: header.Segment.Number,
		Fence: uint64(header.Fence), Ordinal: header.Ordinal, First: uint64(header.First), Size: s.size,
		OneCopy: !bytes.Equal(block, whole),
	})
	if header.Free() {
		return nil
	}
	return r.scan(header)
}

// scan prints the frames of a file, and how they end.
func (r *walReader) scan(header frame.FileHeader) error {
	files := []frame.Source{{Name: r.s.name, Header: header, Bytes: r.s.size, Reader: readerAt{r.s}}}
	at := int64(frame.BlockBytes)
	end, err := frame.Scan(files, 0, func(h *frame.Header, body []byte) error {
		r.frame(h, body, at)
		at += h.Bytes()
		return nil
	})
	corrupt, ok := errors.AsType[*frame.CorruptError](err)
	if err != nil && !ok {
		return err
	}
	if ok {
		r.p.damaged(corrupt.Offset, corrupt)
		if err := r.walk(&header, corrupt.Offset+frame.BlockBytes); err != nil {
			return err
		}
	}
	torn, err := r.torn(&header, end.Offset)
	if err != nil {
		return err
	}
	r.p.emit(&walEnd{Frames: r.frames, Entries: r.entries, Last: uint64(r.last), End: end.Offset, Torn: torn && !ok, Dropped: end.Dropped})
	return nil
}

// torn reports whether a frame of the file begins at a place.
func (r *walReader) torn(header *frame.FileHeader, at int64) (bool, error) {
	if at+frame.HeaderBytes > r.s.size {
		return false, nil
	}
	b, err := r.s.bytes(at, frame.HeaderBytes)
	if err != nil {
		return false, err
	}
	h, err := frame.ParseHeader(b)
	return err == nil && belongs(&h, header, at), nil
}

// belongs reports whether the frame at a place was written there in the present use of the file; in any use, if the file's header is not known.
func belongs(h *frame.Header, header *frame.FileHeader, at int64) bool {
	return int64(h.Place.Block)*frame.BlockBytes == at && (header == nil || h.Segment == header.Segment && h.Place.File == header.File)
}

// walk prints what whole frames there are from a place on, behind damage. Without the file's header they may be of an earlier use of the file.
func (r *walReader) walk(header *frame.FileHeader, from int64) error {
	for at := from; at+frame.HeaderBytes <= r.s.size; {
		b, err := r.s.bytes(at, frame.HeaderBytes)
		if err != nil {
			return err
		}
		h, err := frame.ParseHeader(b)
		if err != nil || !belongs(&h, header, at) || h.Bytes() > r.s.size-at {
			at += frame.BlockBytes
			continue
		}
		body, err := r.s.bytes(at+frame.HeaderBytes, int64(h.BodyBytes))
		if err != nil {
			return err
		}
		if err := frame.CheckBody(&h, body); err != nil {
			r.p.damaged(at, err)
		} else {
			r.frame(&h, body, at)
		}
		at += h.Bytes()
	}
	return nil
}

// frame prints a frame, and its entries.
func (r *walReader) frame(h *frame.Header, body []byte, at int64) {
	r.frames, r.entries, r.last = r.frames+1, r.entries+int(h.Count), h.Next()-1
	if r.o.Batches {
		r.p.emit(&frameLine{
			Pos: at, Size: h.Bytes(), First: uint64(h.First), Entries: h.Count, Log: uint64(h.Segment.Log), Segment: h.Segment.Number, Fence: uint64(h.Fence),
			File: h.Place.File, Synced: int64(h.Place.Synced) * frame.BlockBytes,
		})
	}
	if !r.o.Batches && !r.o.Verify && r.o.Records == nil {
		return
	}
	pos := at + frame.HeaderBytes
	_ = frame.Entries(h, body, func(id frame.EntryID, b []byte) error { // fails only with the visit
		pos += frame.EntryHeaderBytes
		if err := r.entry(id, b, pos); err != nil {
			r.p.damaged(pos, fmt.Errorf("entry %d: %w", id, err))
		}
		pos += int64(len(b))
		return nil
	})
}

// entry prints an entry.
func (r *walReader) entry(id frame.EntryID, b []byte, at int64) error {
	header, data, err := ingest.ParseEntry(b)
	if err != nil {
		return err
	}
	h, err := batch.Parse(data)
	if err != nil {
		return err
	}
	if r.o.Batches {
		r.p.emit(&entryLine{
			Entry: uint64(id), Shard: uint32(header.Shard), TopicID: header.Topic, Partition: header.Partition, LastStable: header.LastStable,
			batchLine: *rawBatch(&h, data, at+ingest.EntryHeaderBytes),
		})
	}
	if h.Size() != len(data) {
		return fmt.Errorf("batch of %d bytes in %d", h.Size(), len(data))
	}
	wanted := r.o.Records.is(header.Topic, "", header.Partition)
	if !wanted && !r.o.Verify {
		return nil
	}
	if err := batch.Verify(data, &h); err != nil || !wanted {
		return err
	}
	return showRecords(r.p, r.records, data)
}

// readerAt reads a source as far as it goes.
type readerAt struct{ s *source }

// ReadAt implements io.ReaderAt.
func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), r.s.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	if err := r.s.read(p[:n], off); err != nil {
		return 0, err
	}
	if int(n) < len(p) {
		return int(n), io.EOF
	}
	return int(n), nil
}

type walFacts struct {
	Store   string `json:"store"`   // identity of the store whose file it is
	File    uint64 `json:"file"`    // number of this use of the file
	Free    bool   `json:"free"`    // it belongs to no segment
	Log     uint64 `json:"log"`     // 0 if free, and so on
	Segment uint32 `json:"segment"` // of the log
	Fence   uint64 `json:"fence"`
	Ordinal uint32 `json:"ordinal"` // of the segment's files in this store, from 0
	First   uint64 `json:"first"`   // number of the first entry that it may hold
	Size    int64  `json:"size"`
	OneCopy bool   `json:"one_copy"` // of the header's two copies one is torn, damaged or older, as a crash may leave it
}

func (*walFacts) form() form { return form{kind: "wal_file", facts: true} }

func (f *walFacts) cells() []cell {
	cells := []cell{{"WAL file of store", f.Store}, {"size", number(f.Size)}, {"use", number(f.File)}}
	if f.OneCopy {
		cells = append(cells, cell{"header", "one of two copies: the other is torn, damaged or older"})
	}
	if f.Free {
		return append(cells, cell{"free", "it belongs to no segment"})
	}
	return append(cells, cell{"WAL log", fmt.Sprintf("%016x", f.Log)}, cell{"segment", number(f.Segment)}, cell{"fence", number(f.Fence)}, cell{"ordinal", number(f.Ordinal)},
		cell{"first entry", number(f.First)})
}

type walEnd struct {
	Frames  int    `json:"frames"`
	Entries int    `json:"entries"`
	Last    uint64 `json:"last"`    // number of the last entry; 0 for none
	End     int64  `json:"end"`     // byte after the last frame without a gap before it
	Torn    bool   `json:"torn"`    // a frame begins there that is not whole, and nothing behind it says that it was durable
	Dropped int    `json:"dropped"` // whole frames behind it, which nobody was told of
}

func (*walEnd) form() form { return form{kind: "wal_end", facts: true} }

func (e *walEnd) cells() []cell {
	cells := []cell{{"frames", number(e.Frames)}, {"entries", number(e.Entries)}}
	if e.Entries > 0 {
		cells = append(cells, cell{"last entry", number(e.Last)})
	}
	cells = append(cells, cell{"end", "byte " + number(e.End)})
	if e.Torn || e.Dropped > 0 {
		cells = append(cells, cell{"torn tail", "not whole, and " + number(e.Dropped) + " whole frames behind it; nobody was told that they are durable"})
	}
	return cells
}

type frameLine struct {
	Pos     int64  `json:"pos"`
	Size    int64  `json:"size"`
	First   uint64 `json:"first"`   // entry
	Entries uint32 `json:"entries"` // 0 for a proof
	Log     uint64 `json:"log"`
	Segment uint32 `json:"segment"`
	Fence   uint64 `json:"fence"`
	File    uint64 `json:"file"`   // number of the file's use
	Synced  int64  `json:"synced"` // byte up to which all was durable when it was written
}

func (*frameLine) form() form { return form{kind: "frame"} }

func (f *frameLine) cells() []cell {
	return []cell{
		{"AT BYTE", number(f.Pos)},
		{"SIZE", number(f.Size)},
		{"ENTRIES", span(f.First, f.First+uint64(f.Entries))},
		{"SEGMENT", fmt.Sprintf("%016x/%d", f.Log, f.Segment)},
		{"FENCE", number(f.Fence)},
		{"USE", number(f.File)},
		{"SYNCED TO", number(f.Synced)},
	}
}

type entryLine struct {
	Entry      uint64           `json:"entry"`
	Shard      uint32           `json:"shard"`
	TopicID    protocol.TopicID `json:"topic_id"`
	Partition  int32            `json:"partition"`
	LastStable protocol.Offset  `json:"last_stable"`
	batchLine
}

func (*entryLine) form() form { return form{kind: "entry", indent: "  "} }

func (e *entryLine) cells() []cell {
	return append([]cell{
		{"ENTRY", number(e.Entry)}, {"SHARD", number(e.Shard)}, {"TOPIC ID", e.TopicID.String()}, {"PARTITION", number(e.Partition)}, {"STABLE", number(e.LastStable)},
	}, e.batchLine.cells()...)
}
