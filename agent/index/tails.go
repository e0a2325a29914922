package index

import (
	"slices"
	"sync"

	"github.com/varve-io/varve/agent/partition"
)

// Commit is a commit that is in the coordinator.
type Commit struct {
	Log       uint64 // its WAL log
	Number    uint64 // among the log's commits
	Name      string // of its segment
	Revision  int64  // of the coordinator, that wrote it
	CreatedMs int64  // by the writer's clock, Unix milliseconds
	KeyBytes  int    // that it takes in the coordinator
}

// Part is what a shard has in a commit.
type Part struct {
	*Commit
	Partitions []partition.ID // of the shard; those of topics that were deleted are missing
	Bytes      int64          // of their batches
	// Unread says that nobody knows yet what the shard has in it: Partitions and Bytes are missing.
	Unread bool
}

// Tails are the commits that are in the coordinator, by the shards that have something in them, in the order in which they were written. They may be used concurrently.
type Tails struct {
	mu      sync.RWMutex
	commits []*Commit
	of      map[*Commit][]uint32 // their shards
	bytes   int
	shards  map[uint32][]Part
}

// NewTails returns the tails of no commits.
func NewTails() *Tails {
	return &Tails{of: make(map[*Commit][]uint32), shards: make(map[uint32][]Part)}
}

// Add adds a commit, which is the newest: all of its shards, and their partitions that are still there.
func (t *Tails) Add(c *Commit, shards map[uint32]Part) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commits = append(t.commits, c)
	t.bytes += c.KeyBytes
	for shard, part := range shards {
		part.Commit = c
		t.shards[shard] = append(t.shards[shard], part)
		t.of[c] = append(t.of[c], shard)
	}
}

// Remove takes out a commit that has left the coordinator, and returns the name of its segment and, by shards, the partitions that it had something of; nil if it is not there.
func (t *Tails) Remove(log, number uint64) (name string, partitions map[uint32][]partition.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.IndexFunc(t.commits, func(c *Commit) bool { return c.Log == log && c.Number == number })
	if at < 0 {
		return "", nil
	}
	c := t.commits[at]
	t.commits = slices.Delete(t.commits, at, at+1)
	t.bytes -= c.KeyBytes
	partitions = make(map[uint32][]partition.ID)
	for _, shard := range t.of[c] {
		parts := t.shards[shard]
		at := slices.IndexFunc(parts, func(p Part) bool { return p.Commit == c })
		partitions[shard] = parts[at].Partitions
		if parts = slices.Delete(parts, at, at+1); len(parts) > 0 {
			t.shards[shard] = parts
		} else {
			delete(t.shards, shard)
		}
	}
	delete(t.of, c)
	return c.Name, partitions
}

// Fill takes in what is in a commit that was added unread, unless it has left.
func (t *Tails) Fill(of *Commit, shards map[uint32]Part) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.IndexFunc(t.commits, func(c *Commit) bool { return c.Log == of.Log && c.Number == of.Number })
	if at < 0 {
		return
	}
	c := t.commits[at]
	for _, shard := range t.of[c] {
		parts := t.shards[shard]
		part := shards[shard]
		part.Commit = c
		parts[slices.IndexFunc(parts, func(p Part) bool { return p.Commit == c })] = part
	}
}

// Of returns what a shard has in commits after a revision, in order, up to the first that is unread.
func (t *Tails) Of(shard uint32, after int64) []Part {
	t.mu.RLock()
	defer t.mu.RUnlock()
	parts := t.shards[shard]
	for len(parts) > 0 && parts[0].Revision <= after {
		parts = parts[1:]
	}
	if at := slices.IndexFunc(parts, func(p Part) bool { return p.Unread }); at >= 0 {
		parts = parts[:at]
	}
	return slices.Clone(parts)
}

// Oldest returns what a shard has in the first commit after a revision, be it unread; ok is false if there is none.
func (t *Tails) Oldest(shard uint32, after int64) (part Part, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, part := range t.shards[shard] {
		if part.Revision > after {
			return part, true
		}
	}
	return Part{}, false
}

// Surplus returns the revision up to which commits are more than the newest n, or beyond the newest that together take bytes; 0 if none are.
func (t *Tails) Surplus(n, bytes int) int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	left, kept := t.bytes, len(t.commits)
	var revision int64
	for _, c := range t.commits {
		if kept <= n && left <= bytes {
			break
		}
		kept--
		left -= c.KeyBytes
		revision = c.Revision
	}
	return revision
}

// Merged returns the commits that all shards in them have merged, each up to the revision that merged tells of it.
func (t *Tails) Merged(merged func(shard uint32) int64) []*Commit {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*Commit
	for _, c := range t.commits {
		if !slices.ContainsFunc(t.of[c], func(shard uint32) bool { return merged(shard) < c.Revision }) {
			all = append(all, c)
		}
	}
	return all
}

// Len returns how many commits there are, and what they take in the coordinator.
func (t *Tails) Len() (commits, bytes int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.commits), t.bytes
}
