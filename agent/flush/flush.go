// Package flush brings what is durable in the WAL into the bucket: it gathers batches, cuts them into segments, uploads several
// at once, commits them in order, and then lets the WAL forget them.
//
//	durable batches -> queue -> cut -> upload ... -> commit -> index -> trim
//	                                \> upload .../
//
// A cut is made when enough bytes have gathered, when the oldest batch is old enough, on [Flusher.Flush], and when the WAL is
// short of memory. While the bucket or etcd is away the queue grows until the WAL is full, which slows producers down; nothing is
// ever dropped.
//
// [Writer] is the part that uploads and commits; recovery uses it for the log of an agent that is gone.
package flush

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
)

// Config says when to flush.
type Config struct {
	SegmentBytes int           // cut when this much has gathered
	AgeMax       time.Duration // cut when the oldest batch has waited this long
	UploadsMax   int           // segments in upload at once
}

// Defaults of [Config].
const (
	SegmentBytesDefault = 16 << 20
	AgeMaxDefault       = 5 * time.Second
	UploadsMaxDefault   = 4
)

// Deps is what a flusher works with.
type Deps struct {
	Writer *Writer
	// Committed is told of every commit, in order, before the WAL is trimmed: what it covers must be readable from the
	// bucket when it returns.
	Committed func(coordinator.Commit, *segment.Footer) error
	// Trim lets the WAL drop entries up to this one.
	Trim func(entry int64)
	Now  func() time.Time
	Log  *slog.Logger
}

// Flusher is the flush of one WAL log. It implements [ingest.Flusher].
type Flusher struct {
	cfg  Config
	deps Deps
	cut  chan struct{} // capacity 1: look whether something is to be cut

	mu      sync.Mutex
	queue   []Record
	since   time.Time     // when the oldest of the queue arrived
	bytes   int           // in the queue
	forced  bool          // cut whatever there is
	open    int           // cuts that are not committed yet
	settled chan struct{} // closed and replaced when queue and open are empty; nil until somebody waits
}

// New returns a flusher; [Flusher.Run] makes it work.
func New(cfg Config, deps Deps) *Flusher {
	return &Flusher{cfg: cfg, deps: deps, cut: make(chan struct{}, 1)}
}

var _ ingest.Flusher = (*Flusher)(nil)

// Durable implements [ingest.Flusher].
func (f *Flusher) Durable(e ingest.Entry) {
	p := e.Partition
	f.mu.Lock()
	first := len(f.queue) == 0
	if first {
		f.since = f.deps.Now()
	}
	f.queue = append(f.queue, Record{
		Entry: int64(e.Ref.Entry), Name: p.Name, Batch: e.Ref.Payload,
		Key: segment.Key{Shard: uint32(p.Shard), Topic: p.ID.Topic, Partition: p.ID.Partition},
	})
	f.bytes += len(e.Ref.Payload)
	full := f.bytes >= f.cfg.SegmentBytes
	f.mu.Unlock()
	if first || full {
		f.wake()
	}
}

// Hurry cuts what there is without waiting for more: the WAL is short of memory.
func (f *Flusher) Hurry() {
	f.mu.Lock()
	f.forced = len(f.queue) > 0
	f.mu.Unlock()
	f.wake()
}

// Flush cuts what there is and waits until everything that was durable before the call is committed, or ctx ends.
func (f *Flusher) Flush(ctx context.Context) error {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 && f.open == 0 {
			f.mu.Unlock()
			return nil
		}
		f.forced = true
		if f.settled == nil {
			f.settled = make(chan struct{})
		}
		settled := f.settled
		f.mu.Unlock()
		f.wake()
		select {
		case <-settled:
		case <-ctx.Done():
			return fmt.Errorf("flush: %w", ctx.Err())
		}
	}
}

func (f *Flusher) wake() {
	select {
	case f.cut <- struct{}{}:
	default:
	}
}

// Unflushed returns the bytes of batches that are durable and not cut yet, and since when the oldest waits (zero time for none).
func (f *Flusher) Unflushed() (bytes int, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return 0, time.Time{}
	}
	return f.bytes, f.since
}

// job is a cut on its way.
type job struct {
	records []Record
	staged  Staged
	err     error
	done    chan struct{}
}

// Run flushes until ctx ends or the log is lost, and returns why: ctx's error, one that wraps [coordinator.ErrFenced], or a broken
// invariant. Cuts under way are given up then; they are in the WAL still.
func (f *Flusher) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	jobs := make(chan *job, f.cfg.UploadsMax)
	var workers sync.WaitGroup
	defer workers.Wait()
	workers.Go(func() {
		for j := range jobs {
			if err := f.commit(ctx, j); err != nil {
				cancel(err)
				for range jobs { // lets the cutter go on to see that it is over
				}
				return
			}
		}
	})
	f.cutAll(ctx, jobs, &workers)
	close(jobs)
	return context.Cause(ctx)
}

// cutAll cuts and starts uploads until ctx ends.
func (f *Flusher) cutAll(ctx context.Context, jobs chan<- *job, workers *sync.WaitGroup) {
	slots := make(chan *segment.Builder, f.cfg.UploadsMax)
	for range f.cfg.UploadsMax {
		slots <- new(segment.Builder)
	}
	number := f.deps.Writer.NextCommit()
	for {
		records, wait := f.next()
		if records == nil {
			select {
			case <-f.cut:
			case <-wait:
			case <-ctx.Done():
				return
			}
			continue
		}
		j := &job{records: records, done: make(chan struct{})}
		var builder *segment.Builder
		select {
		case builder = <-slots:
		case <-ctx.Done():
			return
		}
		n := number
		number++
		workers.Go(func() {
			j.staged, j.err = f.deps.Writer.Upload(ctx, builder, n, j.records)
			slots <- builder
			close(j.done)
		})
		jobs <- j
	}
}

// next takes a cut from the queue, if one is due. Otherwise wait tells when the oldest batch will be old enough (nil: never).
func (f *Flusher) next() (records []Record, wait <-chan time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		f.forced = false
		return nil, nil
	}
	age := f.deps.Now().Sub(f.since)
	if !f.forced && f.bytes < f.cfg.SegmentBytes && age < f.cfg.AgeMax {
		return nil, time.After(f.cfg.AgeMax - age)
	}
	n, bytes := 0, 0
	for n < len(f.queue) && (n == 0 || bytes+len(f.queue[n].Batch) <= f.cfg.SegmentBytes) {
		bytes += len(f.queue[n].Batch)
		n++
	}
	records = f.queue[:n:n]
	f.queue = f.queue[n:]
	f.bytes -= bytes
	f.open++
	if len(f.queue) == 0 {
		f.queue, f.forced = nil, false
	} else {
		f.since = f.deps.Now()
	}
	return records, nil
}

// commit waits for a job's upload and makes it part of the log.
func (f *Flusher) commit(ctx context.Context, j *job) error {
	<-j.done
	if j.err != nil {
		return j.err
	}
	c, err := f.deps.Writer.Commit(ctx, j.staged)
	if err != nil {
		return err
	}
	if err := f.deps.Committed(c, j.staged.Footer); err != nil {
		return err
	}
	f.deps.Trim(j.staged.Last)
	f.mu.Lock()
	f.open--
	if f.open == 0 && len(f.queue) == 0 && f.settled != nil {
		close(f.settled)
		f.settled = nil
	}
	f.mu.Unlock()
	return nil
}
