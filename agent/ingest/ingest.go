// Package ingest is the way of a record batch from a producer's request to its acknowledgement.
//
//	check -> sequence -> append to the WAL -> durable -> high watermark, answer, waiting fetches, flush
//
// [Ingest.Produce] takes the batches of one request. Each is checked without a lock, then judged by its
// partition's state and copied into the WAL's memory under the partition's lock, so that the WAL has a partition's batches in the order of their
// offsets. Nothing waits here but for room: when the WAL holds as many unflushed bytes as it may, Produce blocks, and with it
// the producer's connection.
//
// Everything after that happens on the WAL's goroutine when it says that an entry is durable: the high watermark moves, the
// request's [Request] hears of it, fetches wake, and the batch goes to the flush.
//
// A batch that is a duplicate of one in the log is answered like the first, but not before that one is durable.
//
// The markers that end transactions go the same way ([Batch.Mark]). A batch that may begin one brings the ticket of its verification ([Partition.Verify]).
package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
)

// Batch is one partition's part of a Produce request. The caller fills the first fields; Result is valid once the request is done.
type Batch struct {
	Partition *Partition
	Header    batch.Header      // as checked
	Bytes     []byte            // the batch; its base offset and leader epoch are overwritten
	Ticket    *partition.Ticket // of its verification; nil if none was needed
	Refused   error             // a *protocol.Error to answer unless it is in the log already; nil if it may be appended

	Result Result
	marker marker // if it is one
	wait   wait
}

// marker is what a control batch says beside its header.
type marker struct {
	commit           bool
	strict           bool
	coordinatorEpoch int32
}

// Mark makes of b a marker that ends a transaction in a partition. It goes through [Ingest.Produce], with AcksAll, and is judged as [partition.Producers.CheckMarker]
// tells; one that is in the log already is answered once all before it is durable. strict is for transactions by which the producer's epoch is raised.
func (b *Batch) Mark(p *Partition, m batch.EndMarker, strict bool) error {
	raw, err := batch.AppendControlBatch(nil, 0, protocol.NoLeaderEpoch, m)
	if err != nil {
		return fmt.Errorf("mark the end of a transaction of producer %d: %w", m.ProducerID, err)
	}
	h, err := batch.Parse(raw)
	if err != nil {
		return fmt.Errorf("mark the end of a transaction of producer %d: %w", m.ProducerID, err)
	}
	b.Partition, b.Header, b.Bytes, b.Ticket = p, h, raw, nil
	b.marker = marker{commit: m.Marker == batch.Commit, strict: strict, coordinatorEpoch: m.CoordinatorEpoch}
	return nil
}

// kind returns what the batch is to its producer's transaction.
func (b *Batch) kind() Kind {
	switch a := b.Header.Attributes; {
	case !a.Transactional():
		return Plain
	case !a.Control():
		return Transactional
	case b.marker.commit:
		return Commit
	default:
		return Abort
	}
}

// Result is the answer to one partition's part.
type Result struct {
	Err      error           // a *protocol.Error to answer, or nil
	Base     protocol.Offset // of the batch's first record; -1 with an error
	LogStart protocol.Offset // of the partition; -1 with an error
	Repeated bool            // it was in the log already: nothing was appended
	// LogAppendMs is the batch's timestamp if the topic's batches take that of their append, else -1. The caller sets it.
	LogAppendMs int64
}

// BatchBytesMax is the largest batch, whatever a topic allows: a segment with this batch alone must fit into one object.
const BatchBytesMax = objectstore.ObjectBytesMax - 64<<10

// Flusher takes batches that are durable and must now be flushed, in the order of the WAL, on the WAL's goroutine. It must not block.
type Flusher interface {
	Durable(e Entry)
}

// Entry is a durable batch in the WAL's memory, which stays there until the WAL is trimmed past it.
type Entry struct {
	Partition  *Partition
	Ref        wal.Ref
	LastStable protocol.Offset // as in its [EntryHeader]
}

// Ingest appends batches to one WAL log. Its methods may be called concurrently.
type Ingest struct {
	log     *wal.Log
	flusher Flusher
	now     func() time.Time
}

// New returns an ingest into log, whose durable batches go to flusher. now is the leader's clock.
func New(log *wal.Log, flusher Flusher, now func() time.Time) *Ingest {
	return &Ingest{log: log, flusher: flusher, now: now}
}

// Acks says what a producer's acknowledgement waits for.
type Acks int16

// The three levels of acknowledgement.
const (
	AcksNone   Acks = 0  // nothing; there is no response
	AcksLeader Acks = 1  // the leader's own store has it durably
	AcksAll    Acks = -1 // the ack quorum has it durably
)

// Request is the progress of one Produce request.
type Request struct {
	Batches []Batch
	Acks    Acks
	// Refused: a batch was refused by the time that Produce returned; for a producer that gets no answers.
	Refused bool

	pending atomic.Int32 // batches without a result
	done    chan struct{}
}

// NewRequest returns a request for n batches, to be filled in.
func NewRequest(n int, acks Acks) *Request {
	return &Request{Batches: make([]Batch, n), Acks: acks, done: make(chan struct{})}
}

// Done is closed when every batch has its result.
func (r *Request) Done() <-chan struct{} { return r.done }

// Produce appends the request's batches whose Result has no error yet. It blocks while the WAL has no room, until ctx ends; it does not wait for durability, of
// which [Request.Done] tells. The batches' bytes are not used after it has returned.
func (in *Ingest) Produce(ctx context.Context, r *Request) {
	if len(r.Batches) == 0 {
		close(r.done)
		return
	}
	r.pending.Store(int32(len(r.Batches)))
	total := 0
	for i := range r.Batches {
		if b := &r.Batches[i]; b.Result.Err == nil && b.Refused == nil {
			total += len(b.Bytes) + EntryHeaderBytes
		}
	}
	var admission wal.Admission
	var refused error
	if total > 0 {
		admission, refused = in.log.Admit(ctx, total)
		defer admission.Done()
	}
	nowMs := in.now().UnixMilli()
	for i := range r.Batches {
		b := &r.Batches[i]
		b.wait = wait{request: r, batch: b, ingest: in}
		switch {
		case b.Result.Err != nil:
			r.refuse(b, b.Result.Err)
		case refused != nil && b.Refused == nil:
			r.refuse(b, refusal(refused))
		default:
			in.append(nowMs, b)
		}
	}
}

// append sequences one batch and hands it to the WAL.
func (in *Ingest) append(nowMs int64, b *Batch) {
	p := b.Partition
	p.mu.Lock()
	placed, err := in.place(nowMs, b)
	if err != nil || placed.Duplicate {
		p.mu.Unlock()
		if err != nil {
			b.wait.request.refuse(b, err)
		} else {
			in.repeat(b, placed)
		}
		return
	}
	b.Result.Base, b.Result.LogStart = placed.Base, p.log.Start()
	b.wait.next = placed.Last + 1
	batch.Restamp(b.Bytes, placed.Base, p.log.Epoch())
	var head [EntryHeaderBytes]byte
	stable := p.log.StableAtEnd()
	EntryHeader{Shard: p.Shard, Topic: p.ID.Topic, Partition: p.ID.Partition, LastStable: stable}.Put(head[:])
	ref, err := in.log.Append(head[:], b.Bytes, batch.Summed(b.Bytes), &b.wait)
	if err != nil {
		// The log has failed for good, and with it this leadership; recovery rebuilds the state.
		p.mu.Unlock()
		b.wait.request.refuse(b, refusal(err))
		return
	}
	b.wait.ref, b.wait.stable = ref, stable
	p.produced.Add(int64(len(b.Bytes)))
	p.push(tailBatch{
		base: placed.Base, next: placed.Last + 1, maxTs: b.Header.MaxTimestamp, kind: b.kind(), producer: b.Header.ProducerID, ref: ref,
	})
	p.mu.Unlock()
}

// place asks the partition's state for the batch's offsets.
func (in *Ingest) place(nowMs int64, b *Batch) (partition.Placement, error) {
	if b.Partition.gone != nil {
		return partition.Placement{}, b.Partition.gone
	}
	if most := min(in.log.EntryBytesMax()-EntryHeaderBytes, BatchBytesMax); len(b.Bytes) > most {
		// Before it has offsets: a batch that the log refuses must not leave a gap.
		return partition.Placement{}, protocol.MessageTooLarge.Errorf("batch of %d bytes, the write-ahead log takes at most %d", len(b.Bytes), most)
	}
	h := &b.Header
	return b.Partition.log.Append(nowMs, partition.Batch{
		ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, BaseSequence: h.BaseSequence,
		Records: h.Records, MaxTimestamp: h.MaxTimestamp, Transactional: h.Attributes.Transactional(), Ticket: b.Ticket, Refused: b.Refused,
		Marker: h.Attributes.Control(), CoordinatorEpoch: b.marker.coordinatorEpoch, Strict: b.marker.strict,
	})
}

// repeat answers a duplicate once the batch that it repeats is durable.
func (in *Ingest) repeat(b *Batch, placed partition.Placement) {
	p := b.Partition
	p.mu.Lock()
	b.Result.Base, b.Result.LogStart, b.Result.Repeated = placed.Base, p.log.Start(), true
	durable := placed.Last < p.log.HighWatermark()
	if !durable {
		p.repeats = append(p.repeats, repeat{next: placed.Last + 1, wait: &b.wait})
	}
	p.mu.Unlock()
	if durable {
		b.wait.request.finish()
	}
}

// refusal is the answer for a batch that the WAL does not take. A WAL that stays full for longer than the producer waits is a time-out to it.
func refusal(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return protocol.RequestTimedOut.Errorf("append: %v", err)
	}
	return protocol.KafkaStorageError.Errorf("append: %v", err)
}

// refuse answers a batch that did not get into the WAL. Only the goroutine of Produce calls it.
func (r *Request) refuse(b *Batch, err error) {
	r.Refused = true
	b.fail(err)
	r.finish()
}

func (b *Batch) fail(err error) {
	b.Result = Result{Err: err, Base: protocol.NoOffset, LogStart: protocol.NoOffset, LogAppendMs: protocol.NoTimestamp}
}
