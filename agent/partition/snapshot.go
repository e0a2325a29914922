package partition

import (
	"cmp"
	"slices"

	"github.com/varve-io/varve/protocol"
)

// Snapshot is the state of a partition whose log ends at End and is durable: what a manifest keeps of it.
type Snapshot struct {
	End       protocol.Offset
	Epochs    []EpochStart
	Producers []Producer // ascending by id
}

// Snapshot returns the state of a log that is being rebuilt.
func (l *Log) Snapshot() Snapshot {
	return Snapshot{End: l.end, Epochs: l.Epochs(), Producers: l.producers.All()}
}

// RestoreSnapshot begins the rebuilding of a log with a snapshot, whose slices it takes over. What is committed beyond comes by [Log.Restore] and [Log.RestoreEnd].
func (l *Log) RestoreSnapshot(s Snapshot) {
	l.epochs, l.end, l.high = s.Epochs, s.End, s.End
	for i := range s.Producers {
		l.producers.restore(&s.Producers[i])
	}
	slices.SortFunc(l.producers.unstable, func(a, b transaction) int { return cmp.Compare(a.first, b.first) })
}

// restore takes in a producer of a snapshot. The transactions are in order once all are there.
func (s *Producers) restore(p *Producer) {
	if s.byID == nil {
		s.byID = make(map[protocol.ProducerID]*Producer)
	}
	p.Batches = append(make([]Appended, 0, BatchesKept), p.Batches...)
	s.byID[p.ID] = p
	if p.TxnFirst != protocol.NoOffset {
		s.unstable = append(s.unstable, transaction{first: p.TxnFirst, end: protocol.NoOffset})
	}
}
