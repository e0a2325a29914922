package ingest

import (
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
)

func (r *Request) finish() {
	if r.pending.Add(-1) == 0 {
		close(r.done)
	}
}

// wait is a batch's place in the WAL: it hears when its entry is durable. It implements wal.Waiter. It is part of its [Batch], so that an append
// allocates nothing.
type wait struct {
	request  *Request
	batch    *Batch
	ingest   *Ingest
	next     protocol.Offset // after the batch
	ref      wal.Ref
	stable   protocol.Offset // last stable offset as of the batch's end
	answered bool            // the request has heard; only the WAL's goroutine looks
}

var _ wal.Waiter = (*wait)(nil)

// Stored implements wal.Waiter: the agent's own store has the entry.
func (w *wait) Stored() {
	if w.request.Acks == AcksLeader {
		w.answer()
	}
}

// Durable implements wal.Waiter: the ack quorum has the entry.
func (w *wait) Durable() {
	p := w.batch.Partition
	p.mu.Lock()
	ref, stable := w.ref, w.stable // written under the lock by append, which may still hold it
	p.log.Durable(w.next)
	for _, o := range p.watchers {
		o.wake()
	}
	repeats := p.takeRepeats()
	p.mu.Unlock()
	w.ingest.flusher.Durable(Entry{Partition: p, Ref: ref, LastStable: stable})
	w.answer()
	for _, r := range repeats {
		r.wait.answer()
	}
}

// Failed implements wal.Waiter: the log has failed; whether the entry survives is for recovery to find out.
func (w *wait) Failed(err error) {
	failure := protocol.KafkaStorageError.Errorf("write-ahead log failed: %v", err)
	p := w.batch.Partition
	p.mu.Lock()
	repeats := p.repeats
	p.repeats = nil
	p.mu.Unlock()
	w.fail(failure)
	for _, r := range repeats {
		r.wait.fail(failure)
	}
}

func (w *wait) answer() {
	if !w.answered {
		w.answered = true
		w.request.finish()
	}
}

func (w *wait) fail(err error) {
	if !w.answered {
		w.batch.fail(err)
		w.answer()
	}
}

// takeRepeats removes and returns the duplicates that the high watermark has passed.
func (p *Partition) takeRepeats() []repeat {
	if len(p.repeats) == 0 {
		return nil
	}
	var durable, rest []repeat
	for _, r := range p.repeats {
		if r.next <= p.log.HighWatermark() {
			durable = append(durable, r)
		} else {
			rest = append(rest, r)
		}
	}
	p.repeats = rest
	return durable
}
