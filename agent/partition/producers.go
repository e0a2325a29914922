package partition

import (
	"cmp"
	"math"
	"slices"

	"github.com/varve-io/varve/protocol"
)

// BatchesKept is how many of a producer's last batches are remembered, so that a retry of one of them is answered
// as a duplicate. It is Kafka's ProducerStateEntry.NUM_BATCHES_TO_RETAIN, and the most that an idempotent producer may
// have in flight.
const BatchesKept = 5

// Batch is what sequencing needs to know of a record batch: the fields of its header.
type Batch struct {
	ProducerID    protocol.ProducerID
	ProducerEpoch protocol.ProducerEpoch
	BaseSequence  int32
	Records       int32 // number of offsets that it takes
	MaxTimestamp  int64 // Unix milliseconds
	Transactional bool
	Ticket        *Ticket // by which it may begin a transaction; nil for none. A batch that is restored needs none
	Refused       error   // a [*protocol.Error] by which it is refused unless it is a duplicate; nil if it may be appended. No marker has one

	// Marker: it ends its producer's transaction, has no sequence, and is told by CoordinatorEpoch and Strict; see [Producers.CheckMarker].
	Marker           bool
	CoordinatorEpoch int32 // leader epoch of the shard whose leader wrote the marker
	Strict           bool  // the marker has a raised producer epoch (KIP-890)
}

// LastSequence returns the sequence of the batch's last record; sequences wrap around to 0 after the largest int32.
func (b Batch) LastSequence() int32 { return addSequence(b.BaseSequence, b.Records-1) }

func addSequence(sequence, n int32) int32 {
	return int32((int64(sequence) + int64(n)) & math.MaxInt32)
}

// Appended is one batch of a producer that is in the log.
type Appended struct {
	BaseSequence, LastSequence int32
	BaseOffset, LastOffset     protocol.Offset
}

// NewAppended returns the batch of that many records.
func NewAppended(baseSequence int32, base protocol.Offset, records int32) Appended {
	return Appended{
		BaseSequence: baseSequence, LastSequence: addSequence(baseSequence, records-1), BaseOffset: base, LastOffset: base + protocol.Offset(records) - 1,
	}
}

// Producer is the state of one idempotent producer in one partition.
type Producer struct {
	ID    protocol.ProducerID
	Epoch protocol.ProducerEpoch
	// CoordinatorEpoch is that of its newest marker; NoCoordinatorEpoch if it has none.
	CoordinatorEpoch int32
	TxnFirst         protocol.Offset // where its open transaction begins; NoOffset without one
	UpdatedMs        int64           // when its newest batch or marker was appended, by the leader's clock
	TimestampMs      int64           // largest timestamp of its newest batch or marker
	Batches          []Appended      // of its epoch, the newest last; at most BatchesKept, none if only a marker came
}

// NoCoordinatorEpoch stands for the coordinator's epoch of a producer that no marker came of.
const NoCoordinatorEpoch int32 = -1

// LastSequence returns the sequence of its newest record; NoSequence if it has sent none under its epoch.
func (p *Producer) LastSequence() int32 {
	if len(p.Batches) == 0 {
		return protocol.NoSequence
	}
	return p.Batches[len(p.Batches)-1].LastSequence
}

// duplicate finds a kept batch with the same sequences.
func (p *Producer) duplicate(b Batch) (Appended, bool) {
	if b.ProducerEpoch != p.Epoch {
		return Appended{}, false
	}
	last := b.LastSequence()
	for _, a := range p.Batches {
		if a.BaseSequence == b.BaseSequence && a.LastSequence == last {
			return a, true
		}
	}
	return Appended{}, false
}

// Producers are the idempotent producers of one partition and their transactions, as Kafka's ProducerStateManager keeps them. It is not
// safe for concurrent use.
type Producers struct {
	byID map[protocol.ProducerID]*Producer

	// unstable are the transactions that are open or whose marker is not durable, in the order in which they began; ended counts the latter.
	unstable []transaction
	ended    int
	tickets  map[protocol.ProducerID]*Ticket // at most ticketsMax
}

// Check decides about a batch of an idempotent producer before it is appended: nil if it is next in sequence, or the
// kept batch that it repeats. The rules and codes are those of Kafka's ProducerAppendInfo: an older epoch is
// INVALID_PRODUCER_EPOCH; a new epoch starts at sequence 0; a producer that is not known (expired, or never
// seen) may start anywhere; everything else that is not next is OUT_OF_ORDER_SEQUENCE_NUMBER. A producer whose epoch was raised by a marker starts at 0. Then it is
// the transaction's turn, see checkTransaction.
func (s *Producers) Check(b Batch) (dup *Appended, err error) {
	p := s.byID[b.ProducerID]
	if p == nil {
		return nil, s.checkTransaction(nil, b)
	}
	if a, ok := p.duplicate(b); ok {
		return &a, nil
	}
	switch {
	case b.ProducerEpoch < p.Epoch:
		return nil, protocol.InvalidProducerEpoch.Errorf("epoch %d of producer %d is older than %d", b.ProducerEpoch, b.ProducerID, p.Epoch)
	case b.ProducerEpoch > p.Epoch:
		if b.BaseSequence != 0 {
			return nil, protocol.OutOfOrderSequenceNumber.Errorf("producer %d starts epoch %d at sequence %d, want 0",
				b.ProducerID, b.ProducerEpoch, b.BaseSequence)
		}
	case b.BaseSequence != addSequence(p.LastSequence(), 1):
		return nil, protocol.OutOfOrderSequenceNumber.Errorf("producer %d epoch %d: sequence %d, want %d",
			b.ProducerID, b.ProducerEpoch, b.BaseSequence, addSequence(p.LastSequence(), 1))
	}
	return nil, s.checkTransaction(p, b)
}

// Append records a batch or marker that took its place in the log at base. nowMs is the leader's clock.
func (s *Producers) Append(nowMs int64, b Batch, base protocol.Offset) {
	if s.byID == nil {
		s.byID = make(map[protocol.ProducerID]*Producer)
	}
	p := s.byID[b.ProducerID]
	if p == nil {
		p = &Producer{
			ID: b.ProducerID, Epoch: b.ProducerEpoch, CoordinatorEpoch: NoCoordinatorEpoch, TxnFirst: protocol.NoOffset,
			Batches: make([]Appended, 0, BatchesKept),
		}
		s.byID[b.ProducerID] = p
	}
	if p.Epoch != b.ProducerEpoch {
		p.Epoch = b.ProducerEpoch
		p.Batches = p.Batches[:0]
	}
	p.UpdatedMs, p.TimestampMs = nowMs, b.MaxTimestamp
	if b.Marker {
		s.end(p, b, base+1)
		return
	}
	if b.Transactional && p.TxnFirst == protocol.NoOffset {
		s.begin(p, base)
	}
	if len(p.Batches) == BatchesKept {
		copy(p.Batches, p.Batches[1:])
		p.Batches = p.Batches[:BatchesKept-1]
	}
	p.Batches = append(p.Batches, Appended{
		BaseSequence: b.BaseSequence, LastSequence: b.LastSequence(),
		BaseOffset: base, LastOffset: base + protocol.Offset(b.Records) - 1,
	})
}

// Expire forgets producers that have appended nothing since beforeMs (producer.id.expiration.ms), and, if more than most are left,
// the ones idle for longest; none whose transaction is open. It also forgets tickets that nobody has asked for since the call before.
func (s *Producers) Expire(beforeMs int64, most int) {
	s.expireTickets()
	for id, p := range s.byID {
		if p.UpdatedMs < beforeMs && p.TxnFirst == protocol.NoOffset {
			delete(s.byID, id)
		}
	}
	surplus := len(s.byID) - most
	if surplus <= 0 {
		return
	}
	for _, p := range s.byAge() {
		if surplus > 0 && p.TxnFirst == protocol.NoOffset {
			delete(s.byID, p.ID)
			surplus--
		}
	}
}

func (s *Producers) byAge() []*Producer {
	all := make([]*Producer, 0, len(s.byID))
	for _, p := range s.byID {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Producer) int {
		return cmp.Or(cmp.Compare(a.UpdatedMs, b.UpdatedMs), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// Len returns the number of producers.
func (s *Producers) Len() int { return len(s.byID) }

// All returns copies of all producers, ordered by id, for DescribeProducers.
func (s *Producers) All() []Producer {
	all := make([]Producer, 0, len(s.byID))
	for _, p := range s.byID {
		c := *p
		c.Batches = slices.Clone(p.Batches)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Producer) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
