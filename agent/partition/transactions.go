package partition

import (
	"sort"

	"github.com/varve-io/varve/protocol"
)

// transaction is one that keeps the last stable offset from passing it.
type transaction struct {
	first protocol.Offset
	end   protocol.Offset // after its marker; NoOffset while it is open
}

// begin opens a producer's transaction at first, the end of the log.
func (s *Producers) begin(p *Producer, first protocol.Offset) {
	p.TxnFirst = first
	s.unstable = append(s.unstable, transaction{first: first, end: protocol.NoOffset})
	delete(s.tickets, p.ID)
}

// end takes in a marker that ends at next.
func (s *Producers) end(p *Producer, b Batch, next protocol.Offset) {
	p.CoordinatorEpoch = b.CoordinatorEpoch
	if p.TxnFirst == protocol.NoOffset {
		return
	}
	at := sort.Search(len(s.unstable), func(i int) bool { return s.unstable[i].first >= p.TxnFirst })
	s.unstable[at].end = next
	s.ended++
	p.TxnFirst = protocol.NoOffset
}

// settle forgets the transactions whose markers are durable: those below the high watermark.
func (s *Producers) settle(high protocol.Offset) {
	if s.ended == 0 {
		return
	}
	left := s.unstable[:0]
	for _, t := range s.unstable {
		if t.end != protocol.NoOffset && t.end <= high {
			s.ended--
			continue
		}
		left = append(left, t)
	}
	s.unstable = left
}

// firstOpen returns where the first open transaction begins; none if there is none.
func (s *Producers) firstOpen(none protocol.Offset) protocol.Offset {
	for i := range s.unstable {
		if s.unstable[i].end == protocol.NoOffset {
			return s.unstable[i].first
		}
	}
	return none
}

// Ticket lets a producer begin a transaction in a partition (KIP-890, Kafka's VerificationStateEntry). Who wants to append takes one, asks the transaction's
// coordinator whether the partition is in the transaction, and appends with the ticket if it is. A marker of the producer that comes in between voids the ticket, so that
// no batch is appended behind the end of its own transaction, where it would belong to the next one, or hang for ever.
type Ticket struct {
	epoch  protocol.ProducerEpoch
	lowest int32 // sequence with which a producer that is not known must begin, or below
	old    bool  // nobody has asked for it since the last Expire
}

// ticketsMax bounds the tickets of a partition. They are forgotten all when there are as many, and those who have one must ask again.
const ticketsMax = 10_000

// Verify returns a ticket if a transactional batch of that producer would begin a transaction here; needed is false if its transaction is open already. All
// who ask for one producer and epoch share a ticket. sequence is that of the batch: of several in flight the first one must begin, also when it is refused at first, and
// its producer is not known here. raised is for a producer whose epoch is raised by each transaction: it begins each epoch at sequence 0.
func (s *Producers) Verify(id protocol.ProducerID, epoch protocol.ProducerEpoch, sequence int32, raised bool) (t *Ticket, needed bool) {
	if p := s.byID[id]; p != nil && p.TxnFirst != protocol.NoOffset && p.Epoch == epoch {
		return nil, false
	}
	if raised {
		sequence = 0
	}
	t = s.tickets[id]
	switch {
	case t != nil && t.epoch == epoch:
		t.lowest, t.old = min(t.lowest, sequence), false
		return t, true
	case t != nil && t.epoch > epoch:
		return &Ticket{epoch: epoch}, true // it is void: a newer producer of that id is about to begin
	}
	if s.tickets == nil || len(s.tickets) >= ticketsMax {
		s.tickets = make(map[protocol.ProducerID]*Ticket)
	}
	t = &Ticket{epoch: epoch, lowest: sequence}
	s.tickets[id] = t
	return t, true
}

// Drop forgets a ticket of that producer, of which the coordinator has said for good that it may not begin. It is not for answers after which the producer
// tries again: the ticket keeps its batches in order.
func (s *Producers) Drop(id protocol.ProducerID, t *Ticket) {
	if s.tickets[id] == t {
		delete(s.tickets, id)
	}
}

func (s *Producers) expireTickets() {
	for id, t := range s.tickets {
		if t.old {
			delete(s.tickets, id)
		}
		t.old = true
	}
}

// checkTransaction decides about a batch that is next in sequence; p is its producer, nil if it is not known. While a transaction is open, all batches of the producer belong
// to it: INVALID_TXN_STATE for others (ProducerAppendInfo.appendDataBatch). A batch that begins one needs a valid ticket. Without it NOT_ENOUGH_REPLICAS makes the producer
// try again, and so ask anew; where Kafka answers INVALID_TXN_STATE, producers give up.
func (s *Producers) checkTransaction(p *Producer, b Batch) error {
	switch {
	case p != nil && p.TxnFirst != protocol.NoOffset:
		if !b.Transactional || b.ProducerEpoch != p.Epoch {
			return protocol.InvalidTxnState.Errorf("producer %d has a transaction of epoch %d open here, to which its batch does not belong", p.ID, p.Epoch)
		}
	case !b.Transactional:
	case b.Ticket == nil || s.tickets[b.ProducerID] != b.Ticket || b.Ticket.epoch != b.ProducerEpoch:
		return protocol.NotEnoughReplicas.Errorf("the transaction of producer %d, epoch %d, is not known to be open: it is to be verified", b.ProducerID, b.ProducerEpoch)
	case p == nil && b.BaseSequence > b.Ticket.lowest:
		return protocol.OutOfOrderSequenceNumber.Errorf("producer %d epoch %d begins at sequence %d, want %d", b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Ticket.lowest)
	}
	return nil
}

// CheckMarker decides about a marker before it is appended. It voids the producer's tickets ([Producers.void]), unless the marker is refused. Refused are (ProducerAppendInfo.appendEndTxnMarker)
//
//	TRANSACTION_COORDINATOR_FENCED  a marker of an earlier coordinator than that of the producer's newest one
//	INVALID_PRODUCER_EPOCH          one with an older epoch than the producer's; a strict one that is not above the open transaction's:
//	                                it ends an earlier transaction, whose end is here already
//
// again is true if a marker like it came last, and no transaction has begun since: there is nothing to append. All others are appended, transaction or not, since they
// raise the epochs that fence older producers and coordinators.
func (s *Producers) CheckMarker(b Batch) (again bool, err error) {
	p := s.byID[b.ProducerID]
	if p != nil {
		open := p.TxnFirst != protocol.NoOffset
		switch {
		case b.CoordinatorEpoch < p.CoordinatorEpoch:
			return false, protocol.TransactionCoordinatorFenced.Errorf("marker of coordinator epoch %d for producer %d, which has one of %d",
				b.CoordinatorEpoch, b.ProducerID, p.CoordinatorEpoch)
		case b.ProducerEpoch < p.Epoch || b.Strict && open && b.ProducerEpoch == p.Epoch:
			return false, protocol.InvalidProducerEpoch.Errorf("marker of epoch %d for producer %d, which is at %d", b.ProducerEpoch, b.ProducerID, p.Epoch)
		}
		again = !open && b.ProducerEpoch == p.Epoch && b.CoordinatorEpoch == p.CoordinatorEpoch
	}
	s.void(b)
	return again, nil
}

// void voids the tickets for transactions that a marker ends, or that are older. A strict marker is of a transaction before its epoch, whose tickets are the next one's: its producer may ask
// for them while the marker is on its way.
func (s *Producers) void(marker Batch) {
	if t := s.tickets[marker.ProducerID]; t != nil && (!marker.Strict || t.epoch < marker.ProducerEpoch) {
		delete(s.tickets, marker.ProducerID)
	}
}
