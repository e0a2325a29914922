package inspect

import (
	"fmt"

	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// showManifest prints a manifest, which is read as a whole.
func showManifest(p *Printer, s *source, o Options) error {
	if s.size > manifest.BytesMax {
		p.damaged(0, fmt.Errorf("%d bytes, want at most %d: %w", s.size, manifest.BytesMax, manifest.ErrCorrupt))
		return nil
	}
	b, err := s.bytes(0, s.size)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(b)
	if err != nil {
		p.damaged(0, err) // its one checksum is over all of it
		return nil
	}
	live := m.Live()
	facts := manifestFacts{
		Object: m.Name(), Cluster: protocol.TopicID(m.Cluster).String(), Shard: m.Shard, Epoch: m.Epoch, Generation: m.Generation, CreatedMs: m.CreatedMs, Size: s.size,
		Segments: len(m.Segments), Partitions: len(m.Partitions),
	}
	p.emit(&facts)
	if s.object && facts.Object != s.name {
		p.damaged(0, fmt.Errorf("the object is %s by its header", facts.Object))
	}
	for i := range m.Segments {
		g := &m.Segments[i]
		p.emit(&manifestSegment{Place: i, Object: g.Name(m.Shard), Size: g.Size, FooterPos: g.FooterPos, CreatedMs: g.CreatedMs, Live: live[i]})
	}
	for i := range m.Partitions {
		showPartition(p, &m.Partitions[i], o)
	}
	return nil
}

func showPartition(p *Printer, of *manifest.Partition, o Options) {
	row := manifestPartition{
		Topic: of.TopicName, TopicID: of.Topic, Partition: of.Partition, LogStart: of.LogStartOffset, End: of.End, LastStable: of.LastStable, Cleaned: of.Cleaned,
		Extents: len(of.Extents), Epochs: len(of.Epochs), Producers: len(of.Producers),
	}
	for _, e := range of.Extents {
		row.Bytes += e.Size
	}
	p.emit(&row)
	if !o.Batches {
		return
	}
	for _, e := range of.Epochs {
		p.emit(&epochLine{e.Epoch, e.Start})
	}
	for _, e := range of.Extents {
		p.emit(&extentLine{
			Segment: e.Segment, First: e.First, Next: e.Next, Pos: e.Pos, Size: e.Size, MaxTimestampMs: e.MaxTimestamp, LeaderEpoch: e.Epoch,
		})
	}
	for _, s := range of.Producers {
		row := producerLine{
			ID: s.ID, Epoch: s.Epoch, CoordinatorEpoch: s.CoordinatorEpoch, TxnFirst: s.TxnFirst, UpdatedMs: s.UpdatedMs, TimestampMs: s.TimestampMs,
		}
		for _, b := range s.Batches {
			row.Batches = append(row.Batches, producerBatch{b.BaseSequence, b.BaseOffset, b.Records})
		}
		p.emit(&row)
	}
}

type manifestFacts struct {
	Object     string               `json:"object"` // name
	Cluster    string               `json:"cluster"`
	Shard      uint32               `json:"shard"`
	Epoch      protocol.LeaderEpoch `json:"leader_epoch"`
	Generation uint64               `json:"generation"`
	CreatedMs  int64                `json:"created_ms"`
	Size       int64                `json:"size"`
	Segments   int                  `json:"segments"`
	Partitions int                  `json:"partitions"`
}

func (*manifestFacts) form() form { return form{kind: "manifest", facts: true} }

func (f *manifestFacts) cells() []cell {
	return []cell{
		{"manifest", f.Object},
		{"cluster", f.Cluster},
		{"shard", number(f.Shard)},
		{"leader epoch", number(f.Epoch)},
		{"generation", number(f.Generation)},
		{"created", moment(f.CreatedMs)},
		{"size", number(f.Size)},
		{"segments", number(f.Segments)},
		{"partitions", number(f.Partitions)},
	}
}

type manifestSegment struct {
	Place     int    `json:"place"` // by which extents name it
	Object    string `json:"object"`
	Size      int64  `json:"size"`
	FooterPos int64  `json:"footer_pos"`
	CreatedMs int64  `json:"created_ms"`
	Live      int64  `json:"live"` // bytes that may still be read
}

func (*manifestSegment) form() form { return form{kind: "manifest_segment"} }

func (s *manifestSegment) cells() []cell {
	return []cell{
		{"PLACE", number(s.Place)}, {"SEGMENT", s.Object}, {"SIZE", number(s.Size)}, {"FOOTER AT", number(s.FooterPos)}, {"LIVE", number(s.Live)}, {"CREATED", moment(s.CreatedMs)},
	}
}

type manifestPartition struct {
	Topic      string           `json:"topic"`
	TopicID    protocol.TopicID `json:"topic_id"`
	Partition  int32            `json:"partition"`
	LogStart   protocol.Offset  `json:"log_start"`
	End        protocol.Offset  `json:"end"` // of what is merged
	LastStable protocol.Offset  `json:"last_stable"`
	Cleaned    protocol.Offset  `json:"cleaned"` // by compaction
	Bytes      int64            `json:"bytes"`
	Extents    int              `json:"extents"`
	Epochs     int              `json:"epochs"`
	Producers  int              `json:"producers"`
}

func (*manifestPartition) form() form { return form{kind: "partition"} }

func (p *manifestPartition) cells() []cell {
	return []cell{
		{"TOPIC", p.Topic},
		{"PARTITION", number(p.Partition)},
		{"LOG START", number(p.LogStart)},
		{"MERGED TO", number(p.End)},
		{"STABLE", number(p.LastStable)},
		{"CLEANED TO", number(p.Cleaned)},
		{"BYTES", number(p.Bytes)},
		{"EXTENTS", number(p.Extents)},
		{"EPOCHS", number(p.Epochs)},
		{"PRODUCERS", number(p.Producers)},
		{"TOPIC ID", p.TopicID.String()},
	}
}

type epochLine struct {
	Epoch protocol.LeaderEpoch `json:"epoch"`
	Start protocol.Offset      `json:"start"`
}

func (*epochLine) form() form { return form{kind: "epoch", indent: "  "} }

func (e *epochLine) cells() []cell {
	return []cell{{"EPOCH", number(e.Epoch)}, {"FROM OFFSET", number(e.Start)}}
}

type extentLine struct {
	Segment        int32                `json:"segment"` // its place
	First          protocol.Offset      `json:"first"`
	Next           protocol.Offset      `json:"next"` // one past the last
	Pos            int64                `json:"pos"`
	Size           int64                `json:"size"`
	MaxTimestampMs int64                `json:"max_timestamp_ms"`
	LeaderEpoch    protocol.LeaderEpoch `json:"leader_epoch"` // of the last batch
}

func (*extentLine) form() form { return form{kind: "extent", indent: "  "} }

func (e *extentLine) cells() []cell {
	return []cell{
		{"OFFSETS", span(e.First, e.Next)},
		{"IN SEGMENT", number(e.Segment)},
		{"AT BYTE", number(e.Pos)},
		{"SIZE", number(e.Size)},
		{"NEWEST", moment(e.MaxTimestampMs)},
		{"EPOCH", number(e.LeaderEpoch)},
	}
}

type producerLine struct {
	ID               protocol.ProducerID    `json:"id"`
	Epoch            protocol.ProducerEpoch `json:"epoch"`
	CoordinatorEpoch int32                  `json:"coordinator_epoch"` // -1 for none
	TxnFirst         protocol.Offset        `json:"txn_first"`         // -1 without an open transaction
	UpdatedMs        int64                  `json:"updated_ms"`
	TimestampMs      int64                  `json:"timestamp_ms"`
	Batches          []producerBatch        `json:"batches,omitempty"`
}

type producerBatch struct {
	BaseSequence int32           `json:"base_sequence"`
	BaseOffset   protocol.Offset `json:"base_offset"`
	Records      int32           `json:"records"`
}

func (*producerLine) form() form { return form{kind: "producer", indent: "  "} }

func (l *producerLine) cells() []cell {
	open, last := "-", "-"
	if l.TxnFirst >= 0 {
		open = "from " + number(l.TxnFirst)
	}
	if n := len(l.Batches); n > 0 {
		b := l.Batches[n-1]
		last = fmt.Sprintf("%d records at %d, sequence %d", b.Records, b.BaseOffset, b.BaseSequence)
	}
	return []cell{
		{"PRODUCER", fmt.Sprintf("%d/%d", l.ID, l.Epoch)},
		{"COORDINATOR", number(l.CoordinatorEpoch)},
		{"OPEN TRANSACTION", open},
		{"UPDATED", moment(l.UpdatedMs)},
		{"BATCHES", number(len(l.Batches))},
		{"LAST", last},
	}
}
