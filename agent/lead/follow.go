// Package lead is how an agent comes to lead shards: it follows the commits of all agents, reads which shards were given to it, and rebuilds their partitions from
// what is committed. [Assign] is the other side: how the controller gives shards that nobody leads.
//
// The order matters: the index must have seen the revision that gave a shard before its partitions are restored, or the last commit of the old leader could
// be missing, and its offsets would be given again.
package lead

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
)

// Follower takes the commits and topic deletions that the view sees, in order, to the index. It has a goroutine of its own because the view must not
// wait: a commit whose details are in its segment's footer costs a GET, and while the bucket is away all stand in line behind it. A commit that leaves the coordinator while it stands in line leaves the line too, so that there are never more in
// line than in the coordinator, which bounds them; and besides, what is small, of commits that are in the index and of topics.
type Follower struct {
	cfg      FollowerConfig
	readLast commitID // of held: whose footer was read again last; the goroutine's own

	mu    sync.Mutex
	more  sync.Cond                  // for the goroutine: something is queued, or it is over
	less  sync.Cond                  // for Wait: something was done
	queue list.List                  // of *task, in order
	lines map[commitID]*list.Element // of queue: commits that appeared
	own   coordinator.LogID          // of this agent; 0 before its first commit
	busy  bool
	held  []held // in order; a new one for each change
	waits bool   // to look at them again
	over  bool
	err   error
}

// task is something in a follower's line.
type task struct {
	do     func(context.Context) error
	commit commitID // that appeared; zero for others
}

// commitID names a commit.
type commitID struct {
	log    coordinator.LogID
	number uint64
}

// FollowerConfig is what a [Follower] works with.
type FollowerConfig struct {
	Index   *index.Index
	Tails   *index.Tails
	Footers *fetch.Footers
	Known   func(id [16]byte) bool // whether the topic exists
	// Leads reports whether this agent leads a shard: its own manifests replace what commits said, and may be installed before it knows.
	Leads func(coordinator.ShardID) bool
	// Merged returns the revision up to which a shard has merged commits, as far as the view has seen.
	Merged func(coordinator.ShardID) int64
	// CatchUp returns when the view has seen what the coordinator has at the time of the call.
	CatchUp func(context.Context) error
	// Answers asks the bucket something of no account, and reports whether it answers: then a footer that cannot be read is by itself.
	Answers func(context.Context) bool
	Dropped func(coordinator.Topic) // is told of a topic that was deleted, once it is out of the index
	Log     *slog.Logger
}

// NewFollower returns a follower that has seen nothing; [Follower.Run] makes it work.
func NewFollower(cfg FollowerConfig) *Follower {
	f := &Follower{cfg: cfg, lines: make(map[commitID]*list.Element)}
	f.more.L, f.less.L = &f.mu, &f.mu
	return f
}

func (f *Follower) push(do func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue.PushBack(&task{do: do})
	f.more.Signal()
}

// OnCommit takes a commit that appeared, or left: then every shard that has something in it has merged it. One that leaves before its turn has come is passed over, since the manifests have
// what was in it; but for this agent's own, which are in the index before they are here.
func (f *Follower) OnCommit(item coordinator.CommitItem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := commitID{item.Log, item.Number}
	switch at := f.lines[id]; {
	case !item.Deleted:
		f.lines[id] = f.queue.PushBack(&task{commit: id, do: func(ctx context.Context) error { return f.appear(ctx, item) }})
	case at != nil && item.Log != f.own:
		f.queue.Remove(at)
		delete(f.lines, id)
		f.less.Broadcast()
	default:
		f.queue.PushBack(&task{do: func(context.Context) error {
			f.remove(item)
			return f.drop(&item)
		}})
	}
	f.more.Signal()
}

// tail describes a commit to the tails.
func (f *Follower) tail(h *held) (*index.Commit, map[uint32]index.Part) {
	c := &h.item.Commit
	shards := make(map[uint32]index.Part, len(c.Shards))
	for _, s := range c.Shards {
		shards[uint32(s)] = index.Part{Unread: h.unread != nil}
	}
	for i := range c.Partitions {
		if p := &c.Partitions[i]; f.cfg.Known(p.Topic) {
			part := shards[uint32(p.Shard)]
			part.Partitions = append(part.Partitions, partition.ID{Topic: p.Topic, Partition: p.Partition})
			part.Bytes += p.Size
			shards[uint32(p.Shard)] = part
		}
	}
	return &index.Commit{
		Log: uint64(h.item.Log), Number: h.item.Number, Name: c.Object, Revision: h.item.Revision, CreatedMs: c.CreatedMs, KeyBytes: h.item.Bytes,
	}, shards
}

// remove takes a commit that has left the coordinator out of the index.
func (f *Follower) remove(item coordinator.CommitItem) {
	object, parts := f.cfg.Tails.Remove(uint64(item.Log), item.Number)
	for shard, partitions := range parts {
		if f.cfg.Leads(coordinator.ShardID(shard)) {
			continue
		}
		for _, id := range partitions {
			f.cfg.Index.Remove(id, object)
		}
	}
}

// OnTopic takes a change of a topic.
func (f *Follower) OnTopic(t coordinator.Topic, deleted bool) {
	if !deleted {
		return
	}
	f.push(func(context.Context) error {
		f.cfg.Index.DropTopic(t.ID, t.Partitions)
		f.cfg.Dropped(t)
		return nil
	})
}

// partitions has a commit have its partitions, if need be from its footer. If the bucket is away it waits.
func (f *Follower) partitions(ctx context.Context, c *coordinator.Commit) error {
	if !c.InFooter || len(c.Partitions) > 0 {
		return nil
	}
	tries, try := f.patience()
	return retry.Object(ctx, f.cfg.Log, "read the footer of a commit", f.cfg.Answers, tries, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, try)
		defer cancel()
		return f.read(ctx, c)
	})
}

// read has a commit have its partitions from its footer.
func (f *Follower) read(ctx context.Context, c *coordinator.Commit) error {
	footer, err := f.cfg.Footers.Get(ctx, &index.Object{Name: c.Object, Size: c.ObjectSize, FooterPos: c.FooterPos})
	if err != nil {
		return fmt.Errorf("index commit %d of WAL log %s: %w", c.Number, c.Log, err)
	}
	c.Partitions = flush.CommitPartitions(footer)
	return nil
}

// Committed takes a commit of this agent itself, at once.
func (f *Follower) Committed(item coordinator.CommitItem, footer *segment.Footer) error {
	f.mu.Lock()
	f.own = item.Log
	f.mu.Unlock()
	f.cfg.Footers.Put(footer)
	return f.index(&item, func(coordinator.ShardID) bool { return true })
}

// Run works off the queue until ctx ends or something fails.
func (f *Follower) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.over = true
		f.more.Signal()
		f.less.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		for f.queue.Len() == 0 && !f.over {
			f.more.Wait()
		}
		if f.over {
			return ctx.Err()
		}
		next := f.queue.Remove(f.queue.Front()).(*task)
		delete(f.lines, next.commit)
		f.busy = true
		f.mu.Unlock()
		err := next.do(ctx)
		f.mu.Lock()
		f.busy = false
		if err != nil {
			f.over, f.err = true, err
			f.less.Broadcast()
			return err
		}
		f.less.Broadcast()
	}
}

// Wait returns when everything that was queued is in the index, or ctx ends.
func (f *Follower) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.less.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for (f.queue.Len() > 0 || f.busy) && !f.over {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the index: %w", err)
		}
		f.less.Wait()
	}
	if f.over && f.err == nil {
		return context.Canceled
	}
	return f.err
}
