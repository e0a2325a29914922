package inspect

import (
	"errors"
	"fmt"

	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// tailBytes is what is read of a segment's end: mostly its footer.
const tailBytes = 64 << 10

// segmentReader prints one segment.
type segmentReader struct {
	p       *Printer
	s       *source
	o       Options
	records *batch.Decompressor
}

// showSegment prints a segment. Without more options it reads two ranges: the header, and the end.
func showSegment(p *Printer, s *source, o Options) error {
	r := &segmentReader{p: p, s: s, o: o, records: batch.NewDecompressor(decompressedBytesMax)}
	head, err := s.bytes(0, min(segment.HeaderSize, s.size))
	if err != nil {
		return err
	}
	header, headErr := segment.ParseHeader(head)
	footer, at, footErr := readFooter(s)
	if footErr != nil && !isDamage(footErr) {
		return footErr
	}
	switch {
	case footErr == nil:
		r.facts(&footer.Header, footer)
	case headErr == nil:
		r.facts(&header, nil)
	}
	switch {
	case headErr != nil:
		p.damaged(0, headErr)
	case footErr == nil && header != footer.Header:
		p.damaged(0, errors.New("the header is not the one that the footer repeats"))
	}
	if footErr != nil {
		p.damaged(at, footErr)
		return r.salvage()
	}
	if name := footer.Header.ID.Name(); s.object && name != s.name {
		p.damaged(0, fmt.Errorf("the object is %s by its header", name))
	}
	for i := range footer.Sections {
		if err := r.section(&footer.Sections[i]); err != nil {
			return err
		}
	}
	return nil
}

func isDamage(err error) bool {
	return errors.Is(err, segment.ErrCorrupt) || errors.Is(err, segment.ErrVersion)
}

// readFooter reads a segment's footer; at is where it, or its trailer, should begin. Its error is damage ([isDamage]), or that of a read.
func readFooter(s *source) (f *segment.Footer, at int64, err error) {
	from := max(0, s.size-tailBytes)
	tail, err := s.bytes(from, s.size-from)
	if err != nil {
		return nil, 0, err
	}
	pos, err := segment.ParseTrailer(tail, s.size)
	if err != nil {
		return nil, max(0, s.size-segment.TrailerSize), err
	}
	switch {
	case pos >= from:
		tail = tail[pos-from:]
	default:
		more, err := s.bytes(pos, from-pos)
		if err != nil {
			return nil, pos, err
		}
		tail = append(more, tail...)
	}
	f, err = segment.ParseFooter(tail)
	return f, pos, err
}

func (r *segmentReader) facts(h *segment.Header, f *segment.Footer) {
	row := segmentFacts{
		Object: h.ID.Name(), Level: h.ID.Level, Cluster: protocol.TopicID(h.Cluster).String(), Log: h.ID.Log, Fence: h.ID.Fence, Number: h.ID.Commit, Attempt: h.ID.Attempt,
		CreatedMs: h.CreatedMs, FirstEntry: h.FirstEntry, LastEntry: h.LastEntry, Size: r.s.size,
	}
	if f != nil {
		row.FooterPos, row.Sections = f.Pos, len(f.Sections)
		for i := range f.Sections {
			row.Batches += f.Sections[i].Batches
		}
	}
	r.p.emit(&row)
}

type segmentFacts struct {
	Object     string `json:"object"` // name
	Level      uint8  `json:"level"`
	Cluster    string `json:"cluster"`
	Log        uint64 `json:"log"`    // level 1: shard
	Fence      uint64 `json:"fence"`  // level 1: leader epoch
	Number     uint64 `json:"number"` // of the commit; level 1: of the leader's segments
	Attempt    uint32 `json:"attempt"`
	CreatedMs  int64  `json:"created_ms"`
	FirstEntry int64  `json:"first_entry"` // of the WAL; level 1: 0
	LastEntry  int64  `json:"last_entry"`
	Size       int64  `json:"size"`
	FooterPos  int64  `json:"footer_pos"` // 0 if the footer cannot be read
	Sections   int    `json:"sections"`
	Batches    int    `json:"batches"`
}

func (*segmentFacts) form() form { return form{kind: "segment", facts: true} }

func (f *segmentFacts) cells() []cell {
	cells := []cell{{"segment", f.Object}, {"level", number(int(f.Level))}, {"cluster", f.Cluster}}
	if f.Level == segment.Merged {
		cells = append(cells, cell{"shard", number(f.Log)}, cell{"leader epoch", number(f.Fence)}, cell{"number", number(f.Number)})
	} else {
		cells = append(cells, cell{"WAL log", fmt.Sprintf("%016x", f.Log)}, cell{"fence", number(f.Fence)}, cell{"commit", number(f.Number)},
			cell{"attempt", number(f.Attempt)}, cell{"WAL entries", fmt.Sprintf("%d-%d", f.FirstEntry, f.LastEntry)})
	}
	cells = append(cells, cell{"created", moment(f.CreatedMs)}, cell{"size", number(f.Size)})
	if f.FooterPos > 0 {
		cells = append(cells, cell{"footer at", number(f.FooterPos)}, cell{"sections", number(f.Sections)}, cell{"batches", number(f.Batches)})
	}
	return cells
}

// section prints a section and what is wanted of it.
func (r *segmentReader) section(s *segment.Section) error {
	r.p.emit(&section{
		Shard: s.Shard, Topic: s.TopicName, TopicID: s.Topic, Partition: s.Partition, Pos: s.Pos, Size: s.Size, First: s.FirstOffset, Next: s.NextOffset,
		LastStable: s.LastStable, MaxTimestampMs: s.MaxTimestamp, FirstEpoch: s.FirstEpoch, LeaderEpoch: s.LeaderEpoch, Batches: s.Batches, CRC: fmt.Sprintf("%08x", s.CRC),
	})
	if r.o.Batches {
		for b, err := range s.All() {
			if err != nil {
				r.p.damaged(s.Pos, err)
				break
			}
			r.p.emit(batchRow(b))
		}
	}
	wanted := r.o.Records.is(s.Topic, s.TopicName, s.Partition)
	if !wanted && !r.o.Verify {
		return nil
	}
	data, err := r.s.bytes(s.Pos, s.Size)
	if err != nil {
		return err
	}
	if err := s.Verify(data); err != nil {
		r.p.damaged(s.Pos, err)
	}
	for b, err := range s.All() {
		if err != nil {
			r.p.damaged(s.Pos, err)
			return nil
		}
		bytes := data[b.Pos-s.Pos:][:b.Size]
		if err = s.VerifyBatch(b, bytes); err == nil && wanted {
			err = showRecords(r.p, r.records, bytes)
		}
		if err != nil {
			r.p.damaged(b.Pos, err)
		}
	}
	return nil
}

type section struct {
	Shard          uint32               `json:"shard"`
	Topic          string               `json:"topic"`
	TopicID        protocol.TopicID     `json:"topic_id"`
	Partition      int32                `json:"partition"`
	Pos            int64                `json:"pos"`
	Size           int64                `json:"size"`
	First          protocol.Offset      `json:"first"`
	Next           protocol.Offset      `json:"next"` // one past the last
	LastStable     protocol.Offset      `json:"last_stable"`
	MaxTimestampMs int64                `json:"max_timestamp_ms"`
	FirstEpoch     protocol.LeaderEpoch `json:"first_epoch"`
	LeaderEpoch    protocol.LeaderEpoch `json:"leader_epoch"` // of the last batch
	Batches        int                  `json:"batches"`
	CRC            string               `json:"crc32c"`
}

func (*section) form() form { return form{kind: "section"} }

func (s *section) cells() []cell {
	return []cell{
		{"SHARD", number(s.Shard)},
		{"TOPIC", s.Topic},
		{"PARTITION", number(s.Partition)},
		{"OFFSETS", span(s.First, s.Next)},
		{"STABLE", number(s.LastStable)},
		{"BATCHES", number(s.Batches)},
		{"AT BYTE", number(s.Pos)},
		{"SIZE", number(s.Size)},
		{"NEWEST", moment(s.MaxTimestampMs)},
		{"EPOCHS", epochs(s.FirstEpoch, s.LeaderEpoch)},
		{"CRC32C", s.CRC},
		{"TOPIC ID", s.TopicID.String()},
	}
}

func epochs(first, last protocol.LeaderEpoch) string {
	if first == last {
		return number(last)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// salvage prints the batches of a segment whose footer cannot be read: what looks like batches from the header on, each checked against its own checksum.
func (r *segmentReader) salvage() error {
	if !r.o.Batches {
		return nil
	}
	for at := int64(segment.HeaderSize); at+batch.HeaderBytes <= r.s.size; {
		head, err := r.s.bytes(at, batch.HeaderBytes)
		if err != nil {
			return err
		}
		n, ok := batch.Size(head)
		if !ok || int64(n) > r.s.size-at {
			return nil
		}
		data, err := r.s.bytes(at, int64(n))
		if err != nil {
			return err
		}
		h, err := batch.Parse(data)
		if err != nil || batch.Verify(data, &h) != nil {
			return nil //nolint:nilerr // there the batches end, or are damaged: the footer would know
		}
		r.p.emit(rawBatch(&h, data, at))
		at += int64(n)
	}
	return nil
}

// batchLine is a batch of a section, or one that was found without its section.
type batchLine struct {
	Pos              int64                  `json:"pos"`
	Size             int64                  `json:"size"`
	Offset           protocol.Offset        `json:"offset"`
	Next             protocol.Offset        `json:"next"` // one past the last
	LeaderEpoch      protocol.LeaderEpoch   `json:"leader_epoch"`
	MaxTimestampMs   int64                  `json:"max_timestamp_ms"`
	Codec            string                 `json:"codec"`
	ProducerID       protocol.ProducerID    `json:"producer_id"` // -1 for none
	ProducerEpoch    protocol.ProducerEpoch `json:"producer_epoch"`
	BaseSequence     int32                  `json:"base_sequence"`
	Transactional    bool                   `json:"transactional"`
	Marker           string                 `json:"marker,omitempty"` // of a transaction's end: commit, abort, or unreadable
	CoordinatorEpoch int32                  `json:"coordinator_epoch"`
}

func batchRow(b segment.Batch) *batchLine {
	row := batchLine{
		Pos: b.Pos, Size: int64(b.Size), Offset: b.Offset, Next: b.Next(), LeaderEpoch: b.LeaderEpoch, MaxTimestampMs: b.MaxTimestamp, Codec: batch.Codec(b.Flags & 7).String(),
		ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence, Transactional: b.Flags&segment.FlagTransactional != 0,
		CoordinatorEpoch: b.CoordinatorEpoch,
	}
	if b.Flags&segment.FlagControl != 0 {
		row.Marker = outcome(b.Flags&segment.FlagCommit != 0)
	}
	return &row
}

// rawBatch describes a batch by its own bytes.
func rawBatch(h *batch.Header, data []byte, pos int64) *batchLine {
	row := batchLine{
		Pos: pos, Size: int64(h.Size()), Offset: h.BaseOffset, Next: h.NextOffset(), LeaderEpoch: h.LeaderEpoch, MaxTimestampMs: h.MaxTimestamp,
		Codec: h.Attributes.Codec().String(), ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, BaseSequence: h.BaseSequence,
		Transactional: h.Attributes.Transactional(),
	}
	if h.Attributes.Control() {
		row.Marker = "unreadable"
		if m, err := batch.ParseControl(h, data); err == nil {
			row.Marker, row.CoordinatorEpoch = outcome(m.Marker == batch.Commit), m.CoordinatorEpoch
		}
	}
	return &row
}

func (*batchLine) form() form { return form{kind: "batch", indent: "  "} }

func (b *batchLine) cells() []cell {
	producer, kind := "-", "-"
	if b.ProducerID >= 0 {
		producer = fmt.Sprintf("%d/%d", b.ProducerID, b.ProducerEpoch)
		if b.BaseSequence >= 0 {
			producer += " from " + number(b.BaseSequence)
		}
	}
	switch {
	case b.Marker != "":
		kind = b.Marker + " by coordinator " + number(b.CoordinatorEpoch)
	case b.Transactional:
		kind = "transactional"
	}
	return []cell{
		{"AT BYTE", number(b.Pos)},
		{"SIZE", number(b.Size)},
		{"OFFSETS", span(b.Offset, b.Next)},
		{"EPOCH", number(b.LeaderEpoch)},
		{"NEWEST", moment(b.MaxTimestampMs)},
		{"CODEC", b.Codec},
		{"PRODUCER", producer},
		{"KIND", kind},
	}
}
