package ingest

import (
	"sort"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Kind is what a batch is to its producer's transaction.
type Kind uint8

// The kinds of batches.
const (
	Plain         Kind = iota // of no transaction
	Transactional             // records of one
	Commit                    // the marker that ends one: its records count
	Abort                     // the marker that ends one: they do not
)

// Transacted is a batch of a transaction.
type Transacted struct {
	Producer protocol.ProducerID
	Base     protocol.Offset
	Kind     Kind // not Plain
}

// Verify returns a ticket for a batch that would begin a transaction in the partition; see [partition.Producers.Verify]. needed is false for others, which are
// appended without one. raised is for producers whose epoch each transaction raises (Produce from version 12 on).
func (p *Partition) Verify(h *batch.Header, raised bool) (t *partition.Ticket, needed bool) {
	if !h.Attributes.Transactional() {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Producers().Verify(h.ProducerID, h.ProducerEpoch, h.BaseSequence, raised)
}

// Drop forgets a ticket of the batch's producer; see [partition.Producers.Drop].
func (p *Partition) Drop(h *batch.Header, t *partition.Ticket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Producers().Drop(h.ProducerID, t)
}

// Transactions appends to dst the batches of transactions that are durable and in memory, from the one that holds offset from on, but no more than most. It returns
// the offset up to which that is all of them: the high watermark, if there are no more. ok is false if the batch at from is not in memory (any more).
func (p *Partition) Transactions(dst []Transacted, from protocol.Offset, most int) (_ []Transacted, next protocol.Offset, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := p.tail[p.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].next > from })
	if i == len(live) || live[i].base > from {
		return dst, from, false
	}
	next, high := from, p.log.HighWatermark()
	for n := 0; i < len(live) && live[i].next <= high; i++ {
		b := &live[i]
		if b.kind != Plain {
			if n++; n > most {
				break
			}
			dst = append(dst, Transacted{Producer: b.producer, Base: b.base, Kind: b.kind})
		}
		next = b.next
	}
	return dst, next, true
}
