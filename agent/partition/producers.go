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

// Producer is the state of one idempotent producer in one partition.
type Producer struct {
	ID          protocol.ProducerID
	Epoch       protocol.ProducerEpoch
	UpdatedMs   int64      // when its newest batch was appended, by the leader's clock
	TimestampMs int64      // largest timestamp of its newest batch
	Batches     []Appended // the newest last; at most BatchesKept, at least one
}

// last returns the newest batch.
func (p *Producer) last() Appended { return p.Batches[len(p.Batches)-1] }

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

// Producers are the idempotent producers of one partition, as Kafka's ProducerStateManager keeps them. It is not
// safe for concurrent use.
type Producers struct {
	byID map[protocol.ProducerID]*Producer
}

// Check decides about a batch of an idempotent producer before it is appended: nil if it is next in sequence, or the
// kept batch that it repeats. The rules and codes are those of Kafka's ProducerAppendInfo: an older epoch is
// INVALID_PRODUCER_EPOCH; a new epoch starts at sequence 0; a producer that is not known (expired, or never
// seen) may start anywhere; everything else that is not next is OUT_OF_ORDER_SEQUENCE_NUMBER.
func (s *Producers) Check(b Batch) (dup *Appended, err error) {
	p := s.byID[b.ProducerID]
	if p == nil {
		return nil, nil
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
	case b.BaseSequence != addSequence(p.last().LastSequence, 1):
		return nil, protocol.OutOfOrderSequenceNumber.Errorf("producer %d epoch %d: sequence %d, want %d",
			b.ProducerID, b.ProducerEpoch, b.BaseSequence, addSequence(p.last().LastSequence, 1))
	}
	return nil, nil
}

// Append records a batch that took its place in the log at base. nowMs is the leader's clock.
func (s *Producers) Append(nowMs int64, b Batch, base protocol.Offset) {
	if s.byID == nil {
		s.byID = make(map[protocol.ProducerID]*Producer)
	}
	p := s.byID[b.ProducerID]
	if p == nil {
		p = &Producer{ID: b.ProducerID, Epoch: b.ProducerEpoch, Batches: make([]Appended, 0, BatchesKept)}
		s.byID[b.ProducerID] = p
	}
	if p.Epoch != b.ProducerEpoch {
		p.Epoch = b.ProducerEpoch
		p.Batches = p.Batches[:0]
	}
	if len(p.Batches) == BatchesKept {
		copy(p.Batches, p.Batches[1:])
		p.Batches = p.Batches[:BatchesKept-1]
	}
	p.UpdatedMs, p.TimestampMs = nowMs, b.MaxTimestamp
	p.Batches = append(p.Batches, Appended{
		BaseSequence: b.BaseSequence, LastSequence: b.LastSequence(),
		BaseOffset: base, LastOffset: base + protocol.Offset(b.Records) - 1,
	})
}

// Expire forgets producers that have appended nothing since beforeMs (producer.id.expiration.ms), and, if more than most are left,
// the ones idle for longest.
func (s *Producers) Expire(beforeMs int64, most int) {
	for id, p := range s.byID {
		if p.UpdatedMs < beforeMs {
			delete(s.byID, id)
		}
	}
	if len(s.byID) <= most {
		return
	}
	all := s.byAge()
	for _, p := range all[:len(all)-most] {
		delete(s.byID, p.ID)
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
