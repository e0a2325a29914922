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
	"github.com/varve-io/varve/coordinator"
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
	// ProducerIdle is how long a producer may have been idle to be remembered (producer.id.expiration.ms).
	ProducerIdle time.Duration
}

// Run rebuilds every partition of some shards that has records: offsets and epochs from the index, idempotent producers from the footers of segments that are
// young enough, open transactions from those that reach beyond the partition's last stable offset, however old. The index must hold all commits of the logs that came before. epochs are the shards with their leader epochs, start gives a partition's log
// start offset.
func (r *Restorer) Run(ctx context.Context, epochs map[coordinator.ShardID]protocol.LeaderEpoch,
	start func(partition.ID) protocol.Offset,
) (map[partition.ID]*partition.Log, error) {
	logs := make(map[partition.ID]*restored)
	objects := make(map[*index.Object]struct{})
	oldest := r.Now().Add(-r.ProducerIdle).UnixMilli()
	for _, id := range r.Index.Partitions() {
		extents := r.Index.Extents(id)
		if len(extents) == 0 { // deleted meanwhile
			continue
		}
		epoch, ok := epochs[coordinator.ShardID(extents[0].Shard)]
		if !ok {
			continue
		}
		l := &restored{Log: partition.New(epoch), stable: extents[len(extents)-1].LastStable}
		l.RestoreStart(max(start(id), extents[0].First))
		for i := range extents {
			e := &extents[i]
			l.RestoreEnd(e.Epoch, e.First, e.Next)
			if l.needs(e.Object.CreatedMs >= oldest, e.Next) {
				objects[e.Object] = struct{}{}
			}
		}
		logs[id] = l
	}
	if err := r.producers(ctx, objects, oldest, logs); err != nil {
		return nil, err
	}
	done := make(map[partition.ID]*partition.Log, len(logs))
	for id, l := range logs {
		done[id] = l.Log
	}
	return done, nil
}

// restored is a partition's log on its way.
type restored struct {
	*partition.Log
	// stable is the last stable offset as of the end of what is committed: no transaction that began below is open.
	stable protocol.Offset
}

// needs reports whether batches up to next, in a segment that is young enough for producers or not, are to be looked at. The rest of such a segment is not: without
// those between, a partition's older batches would tell of sequences that are long over.
func (l *restored) needs(young bool, next protocol.Offset) bool { return young || next > l.stable }

// producers reads the footers of the objects, several at once, and applies them in the order of offsets.
func (r *Restorer) producers(ctx context.Context, objects map[*index.Object]struct{}, oldest int64, logs map[partition.ID]*restored) error {
	ordered := make([]*index.Object, 0, len(objects))
	for o := range objects {
		ordered = append(ordered, o)
	}
	slices.SortFunc(ordered, func(a, b *index.Object) int { return cmp.Compare(a.Order, b.Order) })
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
				if err := apply(footer, oldest, logs); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("restore producers: %w", err)
	}
	return nil
}

func apply(footer *segment.Footer, oldest int64, logs map[partition.ID]*restored) error {
	for i := range footer.Sections {
		s := &footer.Sections[i]
		l := logs[partition.ID{Topic: s.Topic, Partition: s.Partition}]
		if l == nil || !l.needs(footer.Header.CreatedMs >= oldest, s.NextOffset) {
			continue
		}
		for b, err := range s.All() {
			if err != nil {
				return err
			}
			if b.ProducerID < 0 {
				continue
			}
			l.Restore(footer.Header.CreatedMs, b.LeaderEpoch, b.Offset, partition.Batch{
				ProducerID: b.ProducerID, ProducerEpoch: b.ProducerEpoch, BaseSequence: b.BaseSequence,
				Records: b.LastOffsetDelta + 1, MaxTimestamp: b.MaxTimestamp,
				// Of a transaction that has ended the marker may be in a segment that is not read: clocks differ.
				Transactional: b.Flags&segment.FlagTransactional != 0 && b.Offset >= l.stable,
				Marker:        b.Flags&segment.FlagControl != 0, CoordinatorEpoch: b.CoordinatorEpoch,
			})
		}
	}
	return nil
}
