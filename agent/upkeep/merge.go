package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// Footers gives the footers of segments.
type Footers interface {
	Get(ctx context.Context, o *index.Object) (*segment.Footer, error)
	Put(footer *segment.Footer)
}

// MergerDeps is what a [Merger] works with.
type MergerDeps struct {
	Manifests *Manifests
	Index     *index.Index
	Tails     *index.Tails
	Footers   Footers
	Store     objectstore.Store
	Cluster   [16]byte
	// Partition returns a partition that is led here, whose newest batches may be in memory; nil if it is not.
	Partition func(partition.ID) *ingest.Partition
	// Leads reports whether a shard is led: whoever is about to lead one still restores it from what is not merged.
	Leads func(coordinator.ShardID) bool
	// Answers asks the bucket something of no account, and reports whether it answers: then a merge that has failed is the fault of what it needs.
	Answers func(context.Context) bool
	// Topic returns the name of a topic; ok is false if it does not exist (any more).
	Topic func(id [16]byte) (name string, ok bool)
	// Compacted reports whether a topic is compacted. Its partitions get segments of their own, which are gone once they have been cleaned, whatever others keep.
	Compacted func(id [16]byte) bool
	// ProducersMax is how many producers a partition remembers.
	ProducersMax int
	Now          func() time.Time
	Log          *slog.Logger
}

// Merger merges segments of the shards that this agent leads, one shard at a time, so that it holds the batches of one merge.
type Merger struct {
	cfg     MergeConfig
	deps    MergerDeps
	builder segment.Builder
	failed  map[coordinator.ShardID]failing   // whose last merge failed
	rewrote coordinator.ShardID               // whose sparse segments were written anew last
	looked  map[coordinator.ShardID]string    // manifests in which nothing is sparse
	spoiled map[coordinator.ShardID]time.Time // when sparse segments could not be written anew

	merges, bytes atomic.Uint64
	clogged       atomic.Pointer[map[coordinator.ShardID]error] // why; nil before the first step
}

// MergeStats are a merger's counters since it began.
type MergeStats struct {
	Merges uint64 // that were installed
	Bytes  uint64 // of the segments that they made
}

// Stats returns the merger's counters.
func (m *Merger) Stats() MergeStats {
	return MergeStats{Merges: m.merges.Load(), Bytes: m.bytes.Load()}
}

// NewMerger returns a merger; [Merger.Run] makes it work.
func NewMerger(cfg MergeConfig, deps MergerDeps) *Merger {
	return &Merger{cfg: cfg, deps: deps, failed: make(map[coordinator.ShardID]failing), looked: make(map[coordinator.ShardID]string), spoiled: make(map[coordinator.ShardID]time.Time)}
}

const (
	// mergePause is how often the merger looks whether a shard is due.
	mergePause = time.Second
	// mergeRest is how long a shard is left alone whose merge has failed.
	mergeRest = 30 * time.Second
	// sparseRest is how long a shard's sparse segments are left alone that could not be written anew: nothing waits for that.
	sparseRest = 5 * time.Minute
	// mergeRequestMax bounds one request.
	mergeRequestMax = 2 * time.Minute
	// readsAtOnce is how many requests of a merge are under way.
	readsAtOnce = 8
)

// Run merges until ctx ends, or what is committed contradicts itself.
func (m *Merger) Run(ctx context.Context) error {
	tick := time.NewTicker(mergePause)
	defer tick.Stop()
	for {
		if err := m.Step(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Step merges each shard that is due, once, and writes sparse segments of one shard anew. Errors are those of Run; what else goes wrong is told to the log. It ends the step if the bucket is away, and for shards that had failed before,
// whose reads may hang: what is due by then comes first again.
func (m *Merger) Step(ctx context.Context) error {
	defer m.judge()
	for due := m.due(); len(due) > 0; {
		group, n := m.group(due)
		due = due[n:]
		failed, err := m.merge(ctx, group)
		if err == nil {
			continue
		}
		rest, fatal := m.note(ctx, failed, mergeRest, err)
		if fatal != nil {
			return fatal
		}
		if len(rest) > 0 && !m.fail(ctx, rest, err) {
			return nil
		}
	}
	if len(m.due()) > 0 {
		return nil // what is due comes first
	}
	if w := m.sparse(); w != nil {
		failed, err := m.merge(ctx, []*work{w})
		rest, fatal := m.note(ctx, failed, sparseRest, err)
		for _, id := range rest {
			m.spoiled[id] = m.deps.Now()
		}
		return fatal
	}
	return nil
}

// note says what went wrong, and returns the shards, of those that an error is about, that are to rest, and what is an error of [Merger.Run].
func (m *Merger) note(ctx context.Context, failed []coordinator.ShardID, pause time.Duration, err error) (rest []coordinator.ShardID, fatal error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil, errors.Is(err, errInvariant):
		return nil, err
	case errors.Is(err, errChanged):
		m.deps.Log.Debug("a merge is planned anew", "shards", failed, "err", err)
		return nil, nil
	}
	m.deps.Log.Warn("segments could not be merged; trying again", "shards", failed, "in", pause, "err", err)
	return failed, nil
}

// fail has shards rest whose merge has failed, and counts that if it is not because the bucket is away. It reports whether others may be merged now: the bucket answers, and none of these had failed before.
func (m *Merger) fail(ctx context.Context, shards []coordinator.ShardID, err error) (others bool) {
	count := 0
	if others = m.deps.Answers(ctx); others {
		count = 1
	}
	for _, id := range shards {
		last, ok := m.failed[id]
		others = others && !ok
		m.failed[id] = failing{at: m.deps.Now(), times: last.times + count, err: err}
	}
	return others
}

// errInvariant is what must not be.
var errInvariant = errors.New("broken invariant")

// due returns the shards that should merge, the one with the oldest commit first; those that have failed come last, the one that was tried least recently first of them: however many fail, others are merged. It forgets
// failures of shards that are not led any more.
func (m *Merger) due() []coordinator.ShardID {
	maps.DeleteFunc(m.failed, func(id coordinator.ShardID, _ failing) bool { return !m.deps.Leads(id) })
	surplus := m.deps.Tails.Surplus(m.cfg.CommitsMax, m.cfg.KeyBytesMax)
	now := m.deps.Now()
	oldest := make(map[coordinator.ShardID]int64)
	for id, record := range m.deps.Manifests.records() {
		if !m.deps.Leads(id) || rests(m.failed[id].at, now, mergeRest) {
			continue
		}
		if parts := m.deps.Tails.Of(uint32(id), record.Merged); m.cfg.due(parts, surplus, now) {
			oldest[id] = parts[0].Revision
		}
	}
	return slices.SortedFunc(maps.Keys(oldest), func(a, b coordinator.ShardID) int {
		return cmp.Or(m.failed[a].at.Compare(m.failed[b].at), cmp.Compare(oldest[a], oldest[b]), cmp.Compare(a, b)) // the zero time for what has not failed
	})
}

// rests reports whether something is left alone now that has failed, the zero time for nothing.
func rests(failed, now time.Time, rest time.Duration) bool {
	since := now.Sub(failed)
	return since >= 0 && since < rest
}

// group begins the merges of the first shards that are due, as many as together have what is merged at once: what an object has of them is read at once. One that has failed is alone, so that
// what cannot be merged of it does not stop others. n is how many of due these are.
func (m *Merger) group(due []coordinator.ShardID) (group []*work, n int) {
	var size int64
	for _, id := range due {
		_, alone := m.failed[id]
		if alone && len(group) > 0 {
			break
		}
		w := m.begin(id)
		if w != nil && len(group) > 0 && size+w.plan.bytes > m.cfg.DataBytes {
			w.release()
			break
		}
		n++
		if w != nil {
			group = append(group, w)
			size += w.plan.bytes
		}
		if alone {
			break
		}
	}
	return group, n
}

// begin plans the merge of a shard; nil if there is nothing to merge.
func (m *Merger) begin(id coordinator.ShardID) *work {
	sh := m.deps.Manifests.led(id)
	if sh == nil {
		return nil
	}
	old := sh.newest()
	parts := m.deps.Tails.Of(uint32(id), sh.newestRecord().Merged)
	p := m.cfg.plan(parts, joinable(old, sh.claimed()))
	if len(p.parts) == 0 {
		return nil
	}
	if w := m.work(id, sh, old, p); w != nil {
		return w
	}
	return m.work(id, sh, old, m.cfg.plan(parts, nil)) // a cleaning was faster
}

// work begins a merge; nil if a segment that is merged anew is somebody else's.
func (m *Merger) work(id coordinator.ShardID, sh *shard, old *manifest.Manifest, p plan) *work {
	joined := make([]manifest.Segment, len(p.join))
	for i, at := range p.join {
		joined[i] = old.Segments[at]
	}
	if !sh.claim(joined) {
		return nil
	}
	w := &work{
		m: m, plan: p, joined: joined, merged: make(map[partition.ID]*merged),
		output: output{
			manifests: m.deps.Manifests, store: m.deps.Store, footers: m.deps.Footers, cluster: m.deps.Cluster, builder: &m.builder,
			id: id, shard: sh, old: old, epoch: protocol.LeaderEpoch(sh.newestRecord().Epoch),
		},
	}
	for _, part := range p.parts {
		w.created = max(w.created, part.CreatedMs)
	}
	for i := range joined {
		w.created = max(w.created, joined[i].CreatedMs)
	}
	return w
}

// merge brings merges to their end. failed are the shards that an error is about.
func (m *Merger) merge(ctx context.Context, group []*work) (failed []coordinator.ShardID, err error) {
	defer func() {
		for _, w := range group {
			if len(w.joined) > 0 {
				err = w.shard.changed(err, w.joined...)
			}
			w.release()
		}
	}()
	for _, w := range group {
		if err := w.gather(ctx); err != nil {
			return []coordinator.ShardID{w.id}, fmt.Errorf("merge shard %d: %w", w.id, err)
		}
		failed = append(failed, w.id)
	}
	if err := load(ctx, m.deps.Store, group); err != nil {
		return failed, fmt.Errorf("merge shards: %w", err)
	}
	for _, w := range group {
		err := w.write(ctx)
		if err != nil {
			w.discard(nil)
		} else {
			err = w.install(ctx)
		}
		if err != nil && !errors.Is(err, coordinator.ErrFenced) && protocol.CodeOf(err) != protocol.NotLeaderOrFollower {
			return []coordinator.ShardID{w.id}, fmt.Errorf("merge shard %d: %w", w.id, err)
		}
		if len(w.plan.parts) > 0 {
			delete(m.failed, w.id)
		}
		w.merged = nil // what it has read may go
		w.release()
	}
	return nil, nil
}
