package lead

import (
	"cmp"
	"context"
	"fmt"
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

// Restorer rebuilds the state of partitions from what is committed.
type Restorer struct {
	Index   *index.Index
	Footers *fetch.Footers
	Now     func() time.Time
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
// all commits of the logs that came before.
func (r *Restorer) Run(ctx context.Context, shards map[coordinator.ShardID]Settled) (map[partition.ID]*partition.Log, error) {
	logs, starts := make(map[partition.ID]*partition.Log), make(map[partition.ID]protocol.Offset)
	for _, s := range shards {
		for i := range s.Manifest.Partitions {
			p := &s.Manifest.Partitions[i]
			l := partition.New(s.Epoch)
			l.RestoreSnapshot(upkeep.SnapshotOf(p))
			id := partition.ID{Topic: p.Topic, Partition: p.Partition}
			logs[id], starts[id] = l, p.LogStartOffset
		}
	}
	objects := make(map[*index.Object]struct{})
	for _, id := range r.Index.Partitions() {
		for _, e := range r.Index.Tail(id) {
			s, ok := shards[coordinator.ShardID(e.Shard)]
			if !ok {
				break
			}
			if logs[id] == nil {
				logs[id], starts[id] = partition.New(s.Epoch), e.First
			}
			objects[e.Object] = struct{}{}
		}
	}
	if err := r.tails(ctx, objects, logs); err != nil {
		return nil, err
	}
	expired := r.Now().Add(-r.ProducerIdle).UnixMilli()
	for id, l := range logs {
		if end := l.End(); starts[id] > end {
			return nil, fmt.Errorf("restore %s/%d: it starts at %d, and only what is below %d is committed: something is missing", id.Topic, id.Partition, starts[id], end)
		}
		l.RestoreStart(starts[id]) // it may be beyond what is merged, and producers are in what is before it too
		l.Producers().Expire(expired, r.ProducersMax)
	}
	return logs, nil
}

// tails reads the footers of commits' segments, several at once, and applies them in the order of offsets.
func (r *Restorer) tails(ctx context.Context, objects map[*index.Object]struct{}, logs map[partition.ID]*partition.Log) error {
	ordered := make([]*index.Object, 0, len(objects))
	for o := range objects {
		ordered = append(ordered, o)
	}
	slices.SortFunc(ordered, func(a, b *index.Object) int { return cmp.Compare(a.Revision, b.Revision) })
	type ahead struct{ footer chan *segment.Footer }
	queue := make([]ahead, len(ordered))
	for i := range queue {
		queue[i].footer = make(chan *segment.Footer, 1)
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
				footer, err := r.Footers.Get(ctx, o)
				if err != nil {
					return err
				}
				queue[i].footer <- footer
				return nil
			})
		}
		return nil
	})
	g.Go(func() error {
		for i := range queue {
			select {
			case footer := <-queue[i].footer:
				<-slots
				if err := apply(footer, logs); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("restore partitions: %w", err)
	}
	return nil
}

// apply takes in what a commit's segment has beyond what is merged.
func apply(footer *segment.Footer, logs map[partition.ID]*partition.Log) error {
	for i := range footer.Sections {
		s := &footer.Sections[i]
		l := logs[partition.ID{Topic: s.Topic, Partition: s.Partition}]
		if l == nil || s.NextOffset <= l.End() {
			continue
		}
		if err := upkeep.Apply(l, s, footer.Header.CreatedMs); err != nil {
			return err
		}
	}
	return nil
}
