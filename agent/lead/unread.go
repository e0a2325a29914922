package lead

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
)

// unreadPause is the wait before a footer that is damaged or missing, or that the bucket does not give, is read again: somebody may have mended the bucket.
const unreadPause = time.Minute

// held is a commit of which some shards are not in the index: all of them if nobody can tell what it has of which partition, because the footer that says so cannot be read; and of those that
// come behind it the same shards, since what a partition has follows one another.
type held struct {
	item   coordinator.CommitItem
	unread error                 // why its partitions are not known; nil if they are
	shards []coordinator.ShardID // that are not in the index, ascending
}

func (h *held) id() commitID { return commitID{h.item.Log, h.item.Number} }

// Unread returns why the index lacks what a shard has in commits: the footer of one is damaged, or missing, or the bucket does not give it. It is nil if the index has all that was queued before. The shard must not be led until then.
func (f *Follower) Unread(id coordinator.ShardID) error {
	return f.blocked()[id]
}

// blocked returns the shards of which no later commit may be in the index, and why.
func (f *Follower) blocked() map[coordinator.ShardID]error {
	blocked := make(map[coordinator.ShardID]error)
	for _, h := range f.holds() {
		f.block(&h, blocked)
	}
	return blocked
}

// holds returns the commits that are held, in order; they must not be changed.
func (f *Follower) holds() []held {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// hold has these commits be the ones that are held, and looks at them again after a while. The goroutine of Run calls it.
func (f *Follower) hold(all []held) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = all
	if len(all) == 0 || f.waits {
		return
	}
	f.waits = true
	time.AfterFunc(unreadPause, func() {
		f.push(func(ctx context.Context) error {
			f.mu.Lock()
			f.waits = false
			f.mu.Unlock()
			return f.again(ctx)
		})
	})
}

// block adds the shards of a commit that is held to those of which no later commit may be in the index: but for those that have merged it, whose manifests have what is in it. One that is read
// blocks them as well, until it is looked at again: what is before it may have been merged meanwhile.
func (f *Follower) block(h *held, blocked map[coordinator.ShardID]error) {
	for _, s := range h.shards {
		if blocked[s] == nil && f.cfg.Merged(s) < h.item.Revision {
			blocked[s] = cmp.Or(h.unread, errHeld)
		}
	}
}

var errHeld = errors.New("a commit waits for what comes before it to be in the index")

// appear takes a commit that appeared.
func (f *Follower) appear(ctx context.Context, item coordinator.CommitItem) error {
	h := held{item: item, shards: item.Commit.Shards}
	err := f.partitions(ctx, &h.item.Commit)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, objectstore.ErrNotFound):
		if over, err := f.isOver(ctx, &item); over || err != nil {
			return err
		}
	}
	if h.unread = err; err != nil {
		f.tell(&h)
	}
	if err := f.take(&h, f.blocked()); err != nil {
		return err
	}
	f.cfg.Tails.Add(f.tail(&h)) // what is merged is in the index
	if len(h.shards) > 0 {
		f.hold(append(slices.Clip(f.holds()), h))
	}
	return nil
}

// patience is for how long a footer is tried to read while the bucket answers, and how long one try may take. Where one was given up that the bucket does not give, there may be many; none of them is waited for then.
func (f *Follower) patience() (tries, try time.Duration) {
	if slices.ContainsFunc(f.holds(), func(h held) bool { return retry.Transient(h.unread) }) {
		return 0, footerTimeShort
	}
	return retry.ObjectPatience, footerTime
}

// isOver reports whether every shard in a commit whose segment is not there has merged it. Then it has left, and its segment was deleted while this agent did not reach the bucket: what is in it the manifests have.
func (f *Follower) isOver(ctx context.Context, item *coordinator.CommitItem) (bool, error) {
	if err := f.cfg.CatchUp(ctx); err != nil {
		return false, err
	}
	return !slices.ContainsFunc(item.Commit.Shards, func(s coordinator.ShardID) bool { return f.cfg.Merged(s) < item.Revision }), nil
}

// take brings what a commit has of h.shards into the index, but for those that are blocked, or are by itself: these stay in h.shards.
func (f *Follower) take(h *held, blocked map[coordinator.ShardID]error) error {
	if h.unread != nil {
		f.block(h, blocked)
	}
	left := slices.DeleteFunc(slices.Clone(h.shards), func(s coordinator.ShardID) bool { return blocked[s] == nil })
	if h.unread == nil && len(left) < len(h.shards) {
		err := f.index(&h.item, func(s coordinator.ShardID) bool {
			_, wanted := slices.BinarySearch(h.shards, s)
			return wanted && blocked[s] == nil
		})
		if err != nil {
			return err
		}
	}
	h.shards = left
	return nil
}

// index brings what a commit has of the shards that are wanted into the index; of topics that were deleted meanwhile nothing.
func (f *Follower) index(item *coordinator.CommitItem, wanted func(coordinator.ShardID) bool) error {
	err := flush.Extents(item.Commit, item.Revision, func(id partition.ID, e index.Extent) error {
		s := coordinator.ShardID(e.Shard)
		if !wanted(s) || !f.cfg.Known(id.Topic) {
			return nil
		}
		return f.cfg.Index.Add(id, e, f.cfg.Merged(s))
	})
	if err != nil {
		return fmt.Errorf("commit %d of WAL log %s: %w", item.Number, item.Log, err)
	}
	return nil
}

// again looks at the commits that are held: footers may have been mended, or shards have merged what cannot be read here.
func (f *Follower) again(ctx context.Context) error {
	all := slices.Clone(f.holds())
	if err := f.reread(ctx, all); err != nil {
		return err
	}
	if err := f.retake(all); err != nil {
		return err
	}
	for _, h := range f.holds() {
		f.tell(&h)
	}
	return nil
}

// reread reads footers again, for five seconds, since commits that can be read wait meanwhile; the next time it begins behind the one at which it ended. While the bucket is away no more is read.
func (f *Follower) reread(ctx context.Context, all []held) error {
	round, cancel := context.WithTimeout(ctx, footerTime)
	defer cancel()
	first := slices.IndexFunc(all, func(h held) bool { return h.id() == f.readLast }) + 1
	for i := range all {
		h := &all[(first+i)%len(all)]
		if h.unread == nil {
			continue
		}
		f.readLast = h.id()
		try, done := context.WithTimeout(round, footerTimeShort) // the read goes on without it, and is joined the next time
		err := f.read(try, &h.item.Commit)
		done()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			h.unread = nil
			f.cfg.Tails.Fill(f.tail(h))
			continue
		case round.Err() != nil: // nor is it known what is wrong with it now
			return nil
		}
		h.unread = err
		if retry.Transient(err) && !f.cfg.Answers(round) {
			return ctx.Err()
		}
	}
	return nil
}

// retake brings of commits, which are those that are held, into the index what can be now, and holds the others.
func (f *Follower) retake(all []held) error {
	var still []held
	blocked := make(map[coordinator.ShardID]error)
	for _, h := range all {
		if err := f.take(&h, blocked); err != nil {
			return err
		}
		if len(h.shards) > 0 {
			still = append(still, h)
		}
	}
	f.hold(still)
	return nil
}

// tell says that a commit cannot be read.
func (f *Follower) tell(h *held) {
	if h.unread != nil {
		f.cfg.Log.Error("shards have no leader, or no other one: the footer of a commit cannot be read; it is tried again", "shards", h.shards, "in", unreadPause, "err", h.unread)
	}
}

// drop forgets a commit that has left. If it was held, what it held up comes into the index.
func (f *Follower) drop(item *coordinator.CommitItem) error {
	all := f.holds()
	at := slices.IndexFunc(all, func(h held) bool { return h.id() == commitID{item.Log, item.Number} })
	if at < 0 {
		return nil
	}
	return f.retake(slices.Delete(slices.Clone(all), at, at+1))
}
