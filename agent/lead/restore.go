package lead

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// footersAhead is how many footers are read at once while partitions are restored.
const footersAhead = 8

// footerTime bounds one wait for a footer. Whoever waits asks again; the read that it waited for goes on, and is joined.
const footerTime = 5 * time.Second

// footerTimeShort is the same for a follower that has given up a footer which the bucket does not give, and may meet many of them.
const footerTimeShort = time.Second

// Restorer rebuilds the state of partitions from what is committed.
type Restorer struct {
	Index   *index.Index
	Footers *fetch.Footers
	// Retry repeats the read of a footer while the bucket is away; what it returns is what is wrong with that footer, or that ctx ended. It is called concurrently.
	Retry func(ctx context.Context, read func(context.Context) error) error
	Now   func() time.Time
	// Known reports whether a topic exists. Of one that was deleted the manifest may have something, and the index nothing any more.
	Known func(id [16]byte) bool
	// ProducerIdle is how long a producer may have been idle to be remembered (producer.id.expiration.ms); ProducersMax is how many a partition remembers.
	ProducerIdle time.Duration
	ProducersMax int
}

// Settled is what a shard's leaders before have settled.
type Settled struct {
	Epoch    protocol.LeaderEpoch // of the leader that begins
	Manifest *manifest.Manifest   // the newest, which the index has too
}

// Run rebuilds every partition of some shards that has records: what is merged from the manifests, and what is not from the footers of commits' segments, whose number the merges bound. The index must hold
// all commits of the logs that came before. Of a shard that needs a footer which cannot be read, or lacks something, nothing is in logs, and failed says why; the others are whole. The error is that of ctx.
func (r *Restorer) Run(ctx context.Context, shards map[coordinator.ShardID]Settled) (logs map[partition.ID]*partition.Log, failed map[coordinator.ShardID]error, err error) {
	w := &restoring{
		Restorer: r, of: make(map[partition.ID]coordinator.ShardID), logs: make(map[partition.ID]*partition.Log),
		needs: make(map[*index.Object]map[coordinator.ShardID]bool), failed: make(map[coordinator.ShardID]error),
	}
	starts := make(map[partition.ID]protocol.Offset)
	for id, s := range shards {
		for i := range s.Manifest.Partitions {
			p := &s.Manifest.Partitions[i]
			l := partition.New(s.Epoch)
			l.RestoreSnapshot(upkeep.SnapshotOf(p))
			pid := partition.ID{Topic: p.Topic, Partition: p.Partition}
			w.logs[pid], w.of[pid], starts[pid] = l, id, p.LogStartOffset
		}
	}
	for _, id := range r.Index.Partitions() {
		for _, e := range r.Index.Tail(id) {
			shard := coordinator.ShardID(e.Shard)
			s, ok := shards[shard]
			if !ok {
				break
			}
			if w.logs[id] == nil {
				w.logs[id], w.of[id], starts[id] = partition.New(s.Epoch), shard, e.First
			}
			if w.needs[e.Object] == nil {
				w.needs[e.Object] = make(map[coordinator.ShardID]bool)
			}
			w.needs[e.Object][shard] = true
		}
	}
	if err := w.tails(ctx); err != nil {
		return nil, nil, fmt.Errorf("restore partitions: %w", err)
	}
	for id, l := range w.logs {
		s, end := w.of[id], l.End()
		if starts[id] <= end {
			continue
		}
		if !r.Known(id.Topic) { // asked after the index was: it forgets no topic that exists
			delete(w.logs, id)
			continue
		}
		if w.failed[s] == nil {
			w.failed[s] = fmt.Errorf("restore %s/%d: it starts at %d, and only what is below %d is committed: something is missing", id.Topic, id.Partition, starts[id], end)
		}
	}
	maps.DeleteFunc(w.logs, func(id partition.ID, _ *partition.Log) bool { return w.failed[w.of[id]] != nil })
	expired := r.Now().Add(-r.ProducerIdle).UnixMilli()
	for id, l := range w.logs {
		l.RestoreStart(starts[id]) // it may be beyond what is merged, and producers are in what is before it too
		l.Producers().Expire(expired, r.ProducersMax)
	}
	return w.logs, w.failed, nil
}

// restoring is a [Restorer] at work.
type restoring struct {
	*Restorer
	of     map[partition.ID]coordinator.ShardID
	logs   map[partition.ID]*partition.Log
	needs  map[*index.Object]map[coordinator.ShardID]bool // which shards have something in an object beyond what is merged
	failed map[coordinator.ShardID]error
}

// tails reads the footers of commits' segments, several at once, and applies them in the order of offsets.
func (w *restoring) tails(ctx context.Context) error {
	ordered := slices.SortedFunc(maps.Keys(w.needs), func(a, b *index.Object) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Name, b.Name))
	})
	type ahead struct {
		footer *segment.Footer
		err    error // what is wrong with it
	}
	queue := make([]chan ahead, len(ordered))
	for i := range queue {
		queue[i] = make(chan ahead, 1)
	}
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, footersAhead)
	g.Go(func() error {
		for i, o := range ordered {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			g.Go(func() error {
				footer, err := w.footer(ctx, o)
				queue[i] <- ahead{footer, err}
				return ctx.Err()
			})
		}
		return nil
	})
	g.Go(func() error {
		for i, o := range ordered {
			select {
			case a := <-queue[i]:
				<-slots
				w.take(o, a.footer, a.err)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return g.Wait()
}

// footer reads the footer of a segment.
func (w *restoring) footer(ctx context.Context, o *index.Object) (footer *segment.Footer, err error) {
	err = w.Retry(ctx, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, footerTime)
		defer cancel()
		footer, err = w.Footers.Get(ctx, o)
		return err
	})
	return footer, err
}

// take applies a footer, or notes which shards cannot be restored without it.
func (w *restoring) take(o *index.Object, footer *segment.Footer, err error) {
	if err != nil {
		for s := range w.needs[o] {
			w.failed[s] = cmp.Or(w.failed[s], err)
		}
		return
	}
	for i := range footer.Sections {
		s := &footer.Sections[i]
		id := partition.ID{Topic: s.Topic, Partition: s.Partition}
		l, shard := w.logs[id], w.of[id]
		if l == nil || w.failed[shard] != nil || s.NextOffset <= l.End() {
			continue // not wanted, or merged
		}
		if err := upkeep.Apply(l, s, footer.Header.CreatedMs); err != nil {
			w.failed[shard] = fmt.Errorf("footer of %s: %w", o.Name, err)
		}
	}
}
