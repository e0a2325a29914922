// Package flush brings what is durable in the WAL into the bucket: it gathers batches, cuts them into segments, uploads several
// at once, commits them in order, and then lets the WAL forget them.
//
//	durable batches -> queue -> cut -> upload ... -> commit -> index -> trim
//	                                \> upload .../
//
// A cut is made when enough bytes have gathered, when the oldest batch is old enough, on [Flusher.Flush], and when the WAL is
// full. While the bucket or etcd is away the queue grows until the WAL is full, which slows producers down; nothing is
// ever dropped. While merges are far behind, and the coordinator holds more commits than it should, the same happens but for a commit now and then.
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
	SegmentBytes int           // cut when this much has gathered; at most SegmentBytesMax
	AgeMax       time.Duration // cut when the oldest batch has waited this long
	UploadsMax   int           // segments in upload at once
}

// Defaults of [Config].
const (
	SegmentBytesDefault = 16 << 20
	AgeMaxDefault       = 5 * time.Second
	UploadsMaxDefault   = 4
)

// SegmentBytesMax bounds [Config.SegmentBytes]: with the footer of as many batches and partitions as one segment takes, an object is below
// [objectstore.ObjectBytesMax].
const SegmentBytesMax = 32 << 20

// recordsMax bounds the batches of one segment, below the limits of its format ([segment.SectionsMax]).
const recordsMax = segment.SectionsMax

// Deps is what a flusher works with.
type Deps struct {
	Writer *Writer
	// Committed is told of every commit, in order, before the WAL is trimmed: what it covers must be readable from the
	// bucket when it returns.
	Committed func(coordinator.CommitItem, *segment.Footer) error
	// Trim lets the WAL drop entries up to this one.
	Trim func(entry int64)
	// Crowded reports whether there are too many commits that are not merged yet; nil for never.
	Crowded func() bool
	Now     func() time.Time
	Log     *slog.Logger
}

// Flusher is the flush of one WAL log. It implements [ingest.Flusher].
type Flusher struct {
	cfg  Config
	deps Deps
	cut  chan struct{} // capacity 1: look whether something is to be cut

	mu        sync.Mutex
	queue     []Record
	since     time.Time     // when the oldest of the queue arrived
	bytes     int           // in the queue
	last      int64         // newest entry that ever was in the queue
	hurry     int64         // entries up to this one are cut, once they are all durable, without waiting for more
	asked     int64         // entries up to this one somebody waits for, in Flush
	committed int64         // newest entry that is committed
	advanced  chan struct{} // closed and replaced when committed grows
	open      []time.Time   // since of each cut that is not committed yet, oldest first
	stats     Stats
}

// Stats are a flusher's counters since it began, and gauges of now.
type Stats struct {
	Segments     uint64 // committed
	SegmentBytes uint64 // of them
	QueuedBytes  int    // of batches that are durable and not cut yet
	// Oldest is since when the oldest durable batch that is not committed has waited; zero if there is none.
	Oldest time.Time
}

// New returns a flusher; [Flusher.Run] makes it work.
func New(cfg Config, deps Deps) *Flusher {
	cfg.SegmentBytes = min(cfg.SegmentBytes, SegmentBytesMax)
	return &Flusher{cfg: cfg, deps: deps, cut: make(chan struct{}, 1), advanced: make(chan struct{})}
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
		Entry: int64(e.Ref.Entry), Name: p.Name, Batch: e.Ref.Payload, LastStable: e.LastStable,
		Key: segment.Key{Shard: uint32(p.Shard), Topic: p.ID.Topic, Partition: p.ID.Partition},
	})
	f.bytes += len(e.Ref.Payload)
	f.last = int64(e.Ref.Entry)
	due := first || f.full() || f.hurried()
	f.mu.Unlock()
	if due {
		f.wake()
	}
}

// Hurry cuts entries up to that one, as soon as all of them are durable, without waiting for more: the WAL is short of memory.
func (f *Flusher) Hurry(entry int64) {
	f.mu.Lock()
	f.hurry = max(f.hurry, entry)
	f.mu.Unlock()
	f.wake()
}

// Flush cuts what there is and waits until everything that was durable before the call is committed, or ctx ends.
func (f *Flusher) Flush(ctx context.Context) error {
	f.mu.Lock()
	last := f.last
	f.asked = max(f.asked, last)
	f.mu.Unlock()
	f.Hurry(last)
	for {
		f.mu.Lock()
		done, advanced := f.committed >= last, f.advanced
		f.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-advanced:
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

// Stats returns the flusher's counters.
func (f *Flusher) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.stats
	st.QueuedBytes = f.bytes
	switch {
	case len(f.open) > 0:
		st.Oldest = f.open[0]
	case len(f.queue) > 0:
		st.Oldest = f.since
	}
	return st
}

// full reports whether a segment's worth has gathered.
func (f *Flusher) full() bool { return f.bytes >= f.cfg.SegmentBytes || len(f.queue) >= recordsMax }

// hurried reports whether the queue, which is not empty, has entries that must not wait for more.
func (f *Flusher) hurried() bool { return f.queue[0].Entry <= f.hurry && f.hurry <= f.last }

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
		j, wait := f.next()
		if j == nil {
			select {
			case <-f.cut:
			case <-wait:
			case <-ctx.Done():
				return
			}
			continue
		}
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
func (f *Flusher) next() (j *job, wait <-chan time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return nil, nil
	}
	age := f.deps.Now().Sub(f.since)
	if !f.hurried() && !f.full() && age < f.cfg.AgeMax {
		return nil, time.After(f.cfg.AgeMax - age)
	}
	n, bytes := 0, 0
	for n < min(len(f.queue), recordsMax) && (n == 0 || bytes+len(f.queue[n].Batch) <= f.cfg.SegmentBytes) {
		bytes += len(f.queue[n].Batch)
		n++
	}
	j = &job{records: f.queue[:n:n], done: make(chan struct{})}
	f.open = append(f.open, f.since)
	f.queue = f.queue[n:]
	f.bytes -= bytes
	if len(f.queue) == 0 {
		f.queue = nil
	} else {
		f.since = f.deps.Now()
	}
	return j, nil
}

const (
	// crowdedMax is how long a commit waits for merges while there are too many: then it is made all the same, so that what cannot be merged slows down what can, and does not stop it.
	crowdedMax = 30 * time.Second
	// crowdedPause is how often it looks whether it may.
	crowdedPause = 100 * time.Millisecond
)

// makeWay waits while there are too many commits, unless somebody waits for the commit that begins with that entry: a drain, or a shard's new leader, who will merge.
func (f *Flusher) makeWay(ctx context.Context, first int64) error {
	began := time.Now()
	for told := false; f.deps.Crowded != nil && f.deps.Crowded(); told = true {
		f.mu.Lock()
		asked := f.asked >= first
		f.mu.Unlock()
		if asked || time.Since(began) >= crowdedMax {
			return nil
		}
		if !told {
			f.deps.Log.Warn("too many flushes are not merged yet: this one waits for merges", "atMost", crowdedMax)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(crowdedPause):
		}
	}
	return nil
}

// commit waits for a job's upload and makes it part of the log.
func (f *Flusher) commit(ctx context.Context, j *job) error {
	<-j.done
	if j.err != nil {
		return j.err
	}
	if err := f.makeWay(ctx, j.staged.First); err != nil {
		return err
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
	defer f.mu.Unlock()
	f.committed = j.staged.Last
	f.stats.Segments++
	f.stats.SegmentBytes += uint64(j.staged.Footer.ObjectSize)
	f.open = f.open[1:]
	close(f.advanced)
	f.advanced = make(chan struct{})
	return nil
}
