package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
)

// follower takes the commits and topic deletions that the view sees, in order, to the index. It has a goroutine of its own because the view must not
// wait: a commit whose details are in its segment's footer costs a GET.
type follower struct {
	index   *index.Index
	footers *fetch.Footers
	known   func(id [16]byte) bool // whether the topic exists
	dropped func(coordinator.Topic)
	log     *slog.Logger

	mu    sync.Mutex
	more  sync.Cond // for the goroutine: something is queued, or it is over
	less  sync.Cond // for wait: something was done
	queue []func(context.Context) error
	busy  bool
	over  bool
	err   error
}

func newFollower(x *index.Index, footers *fetch.Footers, log *slog.Logger) *follower {
	f := &follower{index: x, footers: footers, log: log}
	f.more.L, f.less.L = &f.mu, &f.mu
	return f
}

func (f *follower) push(do func(context.Context) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, do)
	f.more.Signal()
}

// onCommit takes a commit that appeared. One that left was merged, and its extents stay good until the merged ones replace them.
func (f *follower) onCommit(item coordinator.CommitItem) {
	if item.Deleted {
		return
	}
	f.push(func(ctx context.Context) error { return f.add(ctx, item.Commit) })
}

// onTopic takes a change of a topic.
func (f *follower) onTopic(t coordinator.Topic, deleted bool) {
	if !deleted {
		return
	}
	f.push(func(context.Context) error {
		f.index.DropTopic(t.ID, t.Partitions)
		f.dropped(t)
		return nil
	})
}

// add brings a commit into the index; of topics that were deleted meanwhile nothing.
func (f *follower) add(ctx context.Context, c coordinator.Commit) error {
	if c.InFooter && len(c.Partitions) == 0 {
		var footer *segment.Footer
		err := patiently(ctx, f.log, "read the footer of a commit", func() (err error) {
			footer, err = f.footers.Get(ctx, &index.Object{Name: c.Object, Size: c.ObjectSize, FooterPos: c.FooterPos})
			return err
		})
		if err != nil {
			return fmt.Errorf("index commit %d of WAL log %s: %w", c.Number, c.Log, err)
		}
		c.Partitions = flush.CommitPartitions(footer)
	}
	err := flush.Extents(c, func(id partition.ID, e index.Extent) error {
		if !f.known(id.Topic) {
			return nil
		}
		return f.index.Add(id, e)
	})
	if err != nil {
		return fmt.Errorf("commit %d of WAL log %s: %w", c.Number, c.Log, err)
	}
	return nil
}

// committed takes a commit of this agent itself, at once.
func (f *follower) committed(c coordinator.Commit, footer *segment.Footer) error {
	f.footers.Put(footer)
	return f.add(context.Background(), c)
}

// run works off the queue until ctx ends or something fails.
func (f *follower) run(ctx context.Context) error {
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
		for len(f.queue) == 0 && !f.over {
			f.more.Wait()
		}
		if f.over {
			return ctx.Err()
		}
		do := f.queue[0]
		f.queue = f.queue[1:]
		f.busy = true
		f.mu.Unlock()
		err := do(ctx)
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

// wait returns when everything that was queued is in the index, or ctx ends.
func (f *follower) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.less.Broadcast()
	})
	defer stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for (len(f.queue) > 0 || f.busy) && !f.over {
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
