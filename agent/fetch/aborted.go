package fetch

import (
	"context"
	"errors"
	"slices"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// A reader of committed transactions gets the batches of aborted ones too, and a list of them: for each its producer and an offset from which on the producer's batches
// are to be skipped, until its abort marker. The list is made anew for each answer, from the batches of the answer and from the markers that follow: in memory, and in
// footers. They are there, since nothing beyond the last stable offset is answered. No index of aborted transactions is kept, as Kafka's TransactionIndex is: who reads
// where the log ends finds the markers in memory or in a footer that it needs next anyway.
//
// Compaction takes aborted batches away and then their markers. So batches and markers must be of one state of the log: what memory gave is judged by memory alone, and what
// was read from the bucket by an index that has not changed meanwhile. Otherwise the answer is without them, and the client asks again.

// outcomes gathers the aborted transactions of a range.
type outcomes struct {
	end     protocol.Offset                         // of the range
	memory  bool                                    // all must be from memory
	open    map[protocol.ProducerID]protocol.Offset // where the transaction of a producer begins within the range, of which no marker was met yet
	aborted []wire.AbortedTransaction               // in the order of their markers
}

// add takes in a batch of a transaction. They must come in order, all of the range, and of those beyond at least the markers.
func (o *outcomes) add(t ingest.Transacted) {
	first, open := o.open[t.Producer]
	switch {
	case t.Kind != ingest.Transactional && open:
		delete(o.open, t.Producer)
		if t.Kind == ingest.Abort {
			o.aborted = append(o.aborted, wire.AbortedTransaction{ProducerID: t.Producer, FirstOffset: first})
		}
	case t.Kind == ingest.Transactional && !open && t.Base < o.end:
		if o.open == nil {
			o.open = make(map[protocol.ProducerID]protocol.Offset)
		}
		o.open[t.Producer] = t.Base
	}
}

// complete reports whether all is known once everything below offset at was taken in.
func (o *outcomes) complete(at protocol.Offset) bool { return at >= o.end && len(o.open) == 0 }

// judgeTransactions fills in the aborted transactions of each part that has records. A part for which that fails, or for which it takes too long, has none of either.
func (f *Fetcher) judgeTransactions(ctx context.Context, r *Result, wants []Want, limits Limits) {
	if !slices.ContainsFunc(r.Parts, func(p Part) bool { return p.transacted }) {
		return
	}
	patient, cancel, _ := r.patience(ctx, limits, coldTime)
	defer cancel()
	var late []*Part
	for i := range r.Parts {
		part := &r.Parts[i]
		if !part.transacted {
			continue
		}
		aborted, err := f.aborted(patient, &wants[i], part)
		if err == nil {
			part.Aborted = aborted
			continue
		}
		r.Bytes -= part.Bytes
		part.Records, part.Bytes, part.Next = nil, 0, wants[i].Offset
		switch {
		case errors.Is(err, errChanged):
		case tooLate(ctx, err):
			part.late = true
			late = append(late, part)
		default:
			part.Err = asStorageError(err)
		}
	}
	for _, part := range late {
		r.failLate(part)
	}
}

// errChanged says that what was read cannot be judged any more by what is there.
var errChanged = errors.New("the log was compacted meanwhile")

// aborted returns the aborted transactions of what was read.
func (f *Fetcher) aborted(ctx context.Context, w *Want, part *Part) ([]wire.AbortedTransaction, error) {
	o := outcomes{end: part.Next, memory: part.memory}
	for at := part.from; !o.complete(at); {
		next, err := f.addTransactions(ctx, w, at, &o)
		if !part.memory && f.reader.index.Replaced(w.id()) != part.replaced {
			return nil, errChanged
		}
		if err == nil && next == at {
			err = protocol.KafkaStorageError.Errorf("%d transactions that began below the last stable offset have no end, where the log ends at %d", len(o.open), at)
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	return o.aborted, nil
}

// transactionsMax is how many batches of transactions are taken from a partition's memory at once, while its lock is held.
const transactionsMax = 1000

// addTransactions takes in batches of transactions from the batch on that holds offset at, as many as are in one place, and returns the offset up to which these are all.
// It is at where the log ends.
func (f *Fetcher) addTransactions(ctx context.Context, w *Want, at protocol.Offset, o *outcomes) (next protocol.Offset, err error) {
	if w.Partition != nil && (o.memory || at >= o.end) {
		if list, next, ok := w.Partition.Transactions(nil, at, transactionsMax); ok {
			for _, t := range list {
				o.add(t)
			}
			return next, nil
		}
	}
	if o.memory {
		return at, errChanged
	}
	e, ok := f.reader.index.Find(w.id(), at)
	if !ok {
		if next, ok := f.reader.index.Beyond(w.id(), at); ok {
			return next, nil
		}
		return at, nil
	}
	s, err := f.reader.section(ctx, w.id(), &e)
	if err != nil {
		return at, err
	}
	for b, err := range s.From(at) {
		switch {
		case err != nil:
			return at, err
		case b.Flags&segment.FlagTransactional != 0:
			o.add(ingest.Transacted{Producer: b.ProducerID, Base: b.Offset, Kind: kindOf(b.Flags)})
		}
		if o.complete(b.Next()) {
			return b.Next(), nil
		}
	}
	return e.Next, nil
}

// kindOf returns what a batch of a transaction is to it.
func kindOf(flags segment.Flags) ingest.Kind {
	switch {
	case flags&segment.FlagControl == 0:
		return ingest.Transactional
	case flags&segment.FlagCommit != 0:
		return ingest.Commit
	default:
		return ingest.Abort
	}
}
