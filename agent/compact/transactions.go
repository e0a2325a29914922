package compact

import (
	"cmp"
	"slices"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Aborted is a transaction that was aborted, and of which there are batches in the log.
type Aborted struct {
	Producer protocol.ProducerID
	First    protocol.Offset // base offset of its first batch
	Marker   protocol.Offset // where its marker is; the batches are below
}

// Transactions finds the aborted transactions of a log, as the index of aborted transactions has them in Kafka. It is told all batches of transactions from the log
// start on, in order, up to the bound of a cleaning and on until [Transactions.Complete]. What it needs to know of them is in footers.
type Transactions struct {
	bound   protocol.Offset
	open    map[protocol.ProducerID]protocol.Offset // base offset of the first batch of which no marker came yet
	aborted []Aborted
}

// NewTransactions returns what finds the aborted transactions that begin below bound, which is not beyond the last stable offset.
func NewTransactions(bound protocol.Offset) *Transactions {
	return &Transactions{bound: bound, open: make(map[protocol.ProducerID]protocol.Offset)}
}

// Data takes in a batch of a producer's transaction.
func (t *Transactions) Data(producer protocol.ProducerID, base protocol.Offset) {
	if _, open := t.open[producer]; !open && base < t.bound {
		t.open[producer] = base
	}
}

// Marker takes in the end of a producer's transaction.
func (t *Transactions) Marker(producer protocol.ProducerID, outcome batch.Marker, at protocol.Offset) {
	first, open := t.open[producer]
	if !open {
		return
	}
	delete(t.open, producer)
	if outcome == batch.Abort {
		t.aborted = append(t.aborted, Aborted{Producer: producer, First: first, Marker: at})
	}
}

// Complete reports whether all is known when everything below next was told. It becomes true at the latest where the log ends, unless the bound was too high.
func (t *Transactions) Complete(next protocol.Offset) bool {
	return next >= t.bound && len(t.open) == 0
}

// Aborted returns the aborted transactions, in the order in which they begin, once all is known.
func (t *Transactions) Aborted() []Aborted {
	slices.SortFunc(t.aborted, func(a, b Aborted) int { return cmp.Compare(a.First, b.First) })
	return t.aborted
}

// aborts tells the batches of aborted transactions, which come in order.
type aborts struct {
	pending []Aborted                               // that begin later, the next one first
	begun   map[protocol.ProducerID]protocol.Offset // where the marker of a producer's newest aborted transaction is
}

func newAborts(aborted []Aborted) aborts {
	return aborts{pending: aborted, begun: make(map[protocol.ProducerID]protocol.Offset)}
}

// has reports whether a batch is of an aborted transaction.
func (a *aborts) has(h *batch.Header) bool {
	for len(a.pending) > 0 && a.pending[0].First <= h.BaseOffset {
		a.begun[a.pending[0].Producer] = a.pending[0].Marker
		a.pending = a.pending[1:]
	}
	if !h.Attributes.Transactional() || h.Attributes.Control() {
		return false
	}
	marker, ok := a.begun[h.ProducerID]
	return ok && h.BaseOffset < marker
}
