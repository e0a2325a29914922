// Package fetch serves reads: records from memory or from segments, and lookups by time.
//
//	Fetch -> state of each partition -> from the WAL's memory, else from segments -> enough? answer : wait, again
//
// What a fetch finds in the WAL's memory it refers to; what it finds in the bucket comes through a cache of blocks, one GET per block however many wait for it,
// with what follows read ahead, over the ends of segments too. Both are held by the [Result] until it is released, so that the bytes go from there to the
// socket without a copy.
//
// A fetch that does not find enough waits on its partitions' watchers; nothing polls. None waits for the bucket for longer than its client would: what it has begun goes on, and the next fetch finds it.
//
// Readers of committed transactions get nothing from the last stable offset on, and with their records the list of aborted transactions (aborted.go).
//
// Of partitions that other agents lead, what is committed is served too ([Followed]), to consumers that were sent here because this agent is in their zone
// (KIP-392).
package fetch

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
	"github.com/varve-io/varve/wal"
)

// Want is one partition of a fetch, as the client asks for it.
type Want struct {
	Partition    *ingest.Partition
	Followed     *Followed // instead of Partition, if another agent leads it
	Err          error     // why there is neither; answered as it is
	Offset       protocol.Offset
	BytesMax     int
	CurrentEpoch protocol.LeaderEpoch // that the client knows; NoLeaderEpoch for none
	LastEpoch    protocol.LeaderEpoch // of the client's last record (KIP-595); NoLeaderEpoch for none
	Replica      int32                // node id of the agent where the client should read this offset instead; 0 for here
}

// id names the partition of a want without an error.
func (w *Want) id() partition.ID {
	if w.Followed != nil {
		return w.Followed.ID
	}
	return w.Partition.ID
}

// Limits are those of a whole fetch.
type Limits struct {
	BytesMin      int
	BytesMax      int
	Wait          time.Duration
	ReadCommitted bool
	Leave         <-chan struct{} // ends the wait early; nil for never
}

// Part is the answer for one partition.
type Part struct {
	Err       error        // a *protocol.Error, or nil
	State     ingest.State // of a partition that is led here, or as far as it is known here
	Replica   int32        // node id of the agent where the client should go on (KIP-392); 0 for here
	Records   [][]byte     // whole batches in order, in as many slices as it takes
	Bytes     int          // in Records
	Next      protocol.Offset
	Diverging *wire.EpochEnd // where the client's log parts from this one
	// Aborted are the aborted transactions that Records has batches of, for readers of committed transactions; nil if there are none.
	Aborted []wire.AbortedTransaction

	transacted bool            // batches of transactions may be in Records
	memory     bool            // Records are from the WAL's memory
	late       bool            // there are records in the bucket that did not come in time
	from       protocol.Offset // where they were read from: the want's offset, or where a gap ends that it is in
	// replaced is what [index.Index.Replaced] was before the records were read.
	replaced uint64
	held     []*cache.Span
}

// Result is the answer to a fetch. Its records must not be used after Release.
type Result struct {
	Parts []Part // as the wants
	Bytes int

	chunks []*wal.Chunk
}

// Release lets go of the memory that the records are in.
func (r *Result) Release() {
	for _, c := range r.chunks {
		c.Release()
	}
	for i := range r.Parts {
		for _, held := range r.Parts[i].held {
			held.Release()
		}
		r.Parts[i] = Part{}
	}
	r.chunks, r.Bytes = nil, 0
}

// coldMax is how many partitions of one fetch are read from the bucket at the same time.
const coldMax = 8

// Fetcher serves fetches. It may be used concurrently.
type Fetcher struct {
	reader *Reader
}

// New returns a fetcher that reads segments with reader.
func New(reader *Reader) *Fetcher { return &Fetcher{reader: reader} }

// Fetch reads what the client wants, and waits up to limits.Wait while it finds fewer than limits.BytesMin bytes and nothing that the client
// must know at once (an error, a divergence). The minimum of one message counts per request: the first batch that is found is
// returned whatever its size. If ctx ends it returns what there is. While it waits it holds no memory.
func (f *Fetcher) Fetch(ctx context.Context, wants []Want, limits Limits) *Result {
	r := f.gather(ctx, wants, limits)
	if limits.ReadCommitted {
		f.judgeTransactions(ctx, r, wants, limits)
	}
	return r
}

// gather finds the records.
func (f *Fetcher) gather(ctx context.Context, wants []Want, limits Limits) *Result {
	limits.BytesMin = min(limits.BytesMin, limits.BytesMax)
	r, began := &Result{Parts: make([]Part, len(wants))}, time.Now()
	if f.look(ctx, r, wants, limits, began) || limits.Wait <= 0 {
		r.pauseBack(ctx, wants, limits)
		return r
	}
	w := ingest.NewWatcher()
	for i := range wants {
		if p := wants[i].Partition; p != nil {
			p.Watch(w)
			defer p.Unwatch(w)
		}
	}
	timer := time.NewTimer(limits.Wait)
	defer timer.Stop()
	for waiting := true; ; {
		r.Release()
		if f.look(ctx, r, wants, limits, began) || !waiting {
			return r
		}
		r.Release()
		select {
		case <-w.C:
			continue
		case <-timer.C:
		case <-limits.Leave:
		case <-ctx.Done():
		}
		waiting = false
	}
}

// look fills r and reports whether the answer can go. While old records are to come it looks again and again, for others that have come to memory meanwhile; what was begun goes on.
func (f *Fetcher) look(ctx context.Context, r *Result, wants []Want, limits Limits, began time.Time) (ready bool) {
	for late := time.Now(); ; {
		ready = f.pass(ctx, r, wants, limits)
		if ready || !r.late() {
			return ready
		}
		if r.Bytes > 0 && time.Since(began) >= limits.Wait {
			return true
		}
		if time.Since(late) >= coldTime {
			for i := range r.Parts {
				r.failLate(&r.Parts[i])
			}
			return true
		}
		select {
		case <-limits.Leave:
			return true
		default:
		}
		r.Release()
	}
}

// late reports whether old records did not come in time.
func (r *Result) late() bool {
	return slices.ContainsFunc(r.Parts, func(p Part) bool { return p.late })
}

// failLate tells the client why nothing came of a partition whose records did not come in time, if nothing came of any.
func (r *Result) failLate(part *Part) {
	if part.late && r.Bytes == 0 {
		part.Err = protocol.KafkaStorageError.Errorf("old records have not come within %v", coldTime)
	}
}

// cold is a want that memory could not serve.
type cold struct {
	part, bytesMax int
	oneMax         int // a first batch that is larger than bytesMax is read all the same, up to this size
	from, limit    protocol.Offset
}

// pass fills r once and reports whether the answer can go.
func (f *Fetcher) pass(ctx context.Context, r *Result, wants []Want, limits Limits) (ready bool) {
	var colds []cold
	followed := false
	left, coldLeft := limits.BytesMax, f.reader.bytesMax()
	for i := range wants {
		w, part := &wants[i], &r.Parts[i]
		part.memory, part.late, part.from = false, false, w.Offset
		limit, again := f.judge(w, part, limits)
		if !again {
			ready = true
			continue
		}
		if limits.ReadCommitted {
			part.replaced = f.reader.index.Replaced(w.id())
		}
		followed = followed || w.Followed != nil
		if w.Offset >= limit || left <= 0 && (r.Bytes > 0 || len(colds) > 0) {
			continue
		}
		// Only the first batch of a request may be larger than what is left.
		budget, oneMin := min(w.BytesMax, left), r.Bytes == 0 && len(colds) == 0
		from := w.Offset
		served := f.readMemory(r, w, part, from, limit, budget, oneMin)
		if !served {
			if next, ok := f.reader.index.Beyond(w.id(), from); ok {
				if from = next; from >= limit {
					continue
				}
				served = f.readMemory(r, w, part, from, limit, budget, oneMin)
			}
		}
		if served {
			left -= part.Bytes
			continue
		}
		c := cold{part: i, bytesMax: min(budget, coldLeft), from: from, limit: limit}
		switch {
		case oneMin:
			c.oneMax = math.MaxInt
		case len(colds) == 0: // one at least has no need of a share
			c.oneMax = budget
		case coldLeft <= 0:
			continue
		}
		colds = append(colds, c)
		left -= c.bytesMax
		coldLeft -= c.bytesMax
	}
	if len(colds) > 0 {
		f.readCold(ctx, r, wants, colds, limits)
		ready = ready || ctx.Err() != nil
	}
	for i := range r.Parts {
		ready = ready || r.Parts[i].Err != nil
	}
	if r.Bytes == 0 && r.late() {
		return ready
	}
	return ready || len(wants) == 0 || r.Bytes >= limits.BytesMin || followed // beyond what there is of these nothing comes here
}

// readMemory reads from the WAL's memory, from an offset on; ok is false if it is not there.
func (f *Fetcher) readMemory(r *Result, w *Want, part *Part, from, limit protocol.Offset, bytesMax int, oneMin bool) (ok bool) {
	if w.Partition == nil {
		return false
	}
	bufs, chunks, next, size, ok := w.Partition.Read(from, limit, bytesMax, part.Records, r.chunks, oneMin)
	r.chunks = chunks
	if ok {
		part.Records, part.Next, part.Bytes, part.transacted = bufs, next, size, size > 0
		part.memory, part.from = true, from
		r.Bytes += size
	}
	return ok
}

// judge fills in the partition's state and decides what the client may read: records below limit if again is true, or
// nothing but what part says already.
func (f *Fetcher) judge(w *Want, part *Part, limits Limits) (limit protocol.Offset, again bool) {
	switch {
	case w.Err != nil:
		part.Err = w.Err
		return 0, false
	case w.Followed != nil:
		return f.judgeFollowed(w, part, limits)
	}
	st, err := w.Partition.State()
	part.State, part.Next = st, w.Offset
	if err == nil {
		err = checkEpoch(w.CurrentEpoch, st.Epoch)
	}
	if err == nil && (w.Offset < st.Start || w.Offset > st.End) {
		err = protocol.OffsetOutOfRange.Err()
	}
	if err != nil {
		part.Err = err
		return 0, false
	}
	if w.LastEpoch != protocol.NoLeaderEpoch {
		epoch, end, ok := w.Partition.EpochEnd(w.LastEpoch)
		if !ok { // Partition.readRecords: the epoch is not known at all
			part.Err = protocol.OffsetOutOfRange.Err()
			return 0, false
		}
		if epoch < w.LastEpoch || end < w.Offset {
			part.Diverging = &wire.EpochEnd{Epoch: epoch, EndOffset: end}
			return 0, false
		}
	}
	if w.Replica != 0 {
		part.Replica = w.Replica
		return 0, false
	}
	if limits.ReadCommitted {
		return st.LastStable, true
	}
	return st.HighWatermark, true
}

// checkEpoch compares the leader epoch that a client knows with the partition's.
func checkEpoch(client, current protocol.LeaderEpoch) error {
	switch {
	case client == protocol.NoLeaderEpoch || client == current:
		return nil
	case client < current:
		return protocol.FencedLeaderEpoch.Err()
	default:
		return protocol.UnknownLeaderEpoch.Err()
	}
}

const (
	// coldPatience is how long an answer that has enough records from memory waits for the bucket.
	coldPatience = 50 * time.Millisecond
	// coldRound is how long one that has not waits until it looks whether memory has more by now.
	coldRound = 200 * time.Millisecond
	// coldTime is how long one waits for which nothing comes: less than clients wait for it.
	coldTime = 10 * time.Second
)

// patience bounds how long r waits for the bucket: coldPatience, or most unless it has enough records from memory. What is begun until then goes on, and is there the next time.
func (r *Result) patience(ctx context.Context, limits Limits, most time.Duration) (patient context.Context, cancel context.CancelFunc, hurried bool) {
	bytes := 0
	for i := range r.Parts {
		if r.Parts[i].memory {
			bytes += r.Parts[i].Bytes
		}
	}
	if hurried = bytes > 0 && bytes >= min(limits.BytesMin, limits.BytesMax); hurried {
		most = coldPatience
	}
	patient, cancel = context.WithTimeout(ctx, most)
	return patient, cancel, hurried
}

// tooLate reports whether err says that patience is over, while the client still waits.
func tooLate(ctx context.Context, err error) bool {
	return ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, segment.ErrCorrupt)
}

// readCold reads from the bucket. The first read may wait for memory of the cache; the others, several at once, hold none while they
// would wait, and then bring less: whoever holds blocks and waits for more could wait for ever.
//
// If there is enough to answer already, none of them waits for long, the first neither: a consumer that is behind with one partition is not to be late with others.
func (f *Fetcher) readCold(ctx context.Context, r *Result, wants []Want, colds []cold, limits Limits) {
	patient, cancel, hurried := r.patience(ctx, limits, coldRound)
	defer cancel()
	read := func(i int) {
		c := &colds[i]
		w, part := &wants[c.part], &r.Parts[c.part]
		err := f.reader.read(patient, w.id(), readRange{c.from, c.limit, c.bytesMax, c.oneMax, i == 0}, part)
		if part.late = tooLate(ctx, err); !part.late {
			part.Err = asStorageError(err)
		}
	}
	var g errgroup.Group
	g.SetLimit(coldMax)
	for i := range colds {
		if i == 0 && !hurried {
			read(i)
			continue
		}
		g.Go(func() error {
			read(i)
			return nil
		})
	}
	_ = g.Wait() // errors are in the parts
	for _, c := range colds {
		r.Bytes += r.Parts[c.part].Bytes
	}
}

// asStorageError makes an error of the bucket one that a client tries again on, without dressing up the kinds that have a code.
func asStorageError(err error) error {
	var known *protocol.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return protocol.KafkaStorageError.Errorf("%v", err)
}
