package agent

import (
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
)

// damagedPause is the wait before a shard that could not be restored is tried again: somebody may have mended the bucket.
const damagedPause = time.Minute

// damage are the shards that were given to this agent and that it cannot lead, because what the bucket has of them is damaged, or missing, or the bucket does not give it though it answers. It may be used concurrently.
type damage struct {
	mu     sync.Mutex
	shards map[coordinator.ShardID]damaged
}

type damaged struct {
	given lead.Given
	again time.Time // when it is tried again
}

// add notes a shard that could not be restored.
func (d *damage) add(now time.Time, given lead.Given) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shards == nil {
		d.shards = make(map[coordinator.ShardID]damaged)
	}
	d.shards[given.ID] = damaged{given: given, again: now.Add(damagedPause)}
}

// remove forgets a shard, which was restored, or goes to another agent, and returns what was given; ok is false if it was not there.
func (d *damage) remove(id coordinator.ShardID) (given lead.Given, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, ok := d.shards[id]
	delete(d.shards, id)
	return was.given, ok
}

// has reports whether a shard could not be restored as of that epoch, or a later one.
func (d *damage) has(id coordinator.ShardID, epoch int32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, ok := d.shards[id]
	return ok && was.given.Shard.Epoch >= epoch
}

// waits reports whether it is too early to try a shard again.
func (d *damage) waits(now time.Time, id coordinator.ShardID, epoch int32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	was, ok := d.shards[id]
	return ok && was.given.Shard.Epoch >= epoch && now.Before(was.again)
}

// next is when a shard is to be tried again; ok is false if there is none.
func (d *damage) next() (at time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, was := range d.shards {
		if at.IsZero() || was.again.Before(at) {
			at = was.again
		}
	}
	return at, len(d.shards) > 0
}

// list returns the shards, ascending.
func (d *damage) list() []coordinator.ShardID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []coordinator.ShardID
	for id := range d.shards {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
