package upkeep

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
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
	// Topic returns the name of a topic; ok is false if it does not exist (any more).
	Topic func(id [16]byte) (name string, ok bool)
	// Compacted reports whether a topic is compacted. Its partitions get segments of their own, which are gone once they have been cleaned, whatever others keep.
	Compacted func(id [16]byte) bool
	// ProducerIdle is how long a producer may have been idle to be remembered; ProducersMax is how many a partition remembers.
	ProducerIdle time.Duration
	ProducersMax int
	Now          func() time.Time
	Log          *slog.Logger
}

// Merger merges segments of the shards that this agent leads, one shard at a time, so that it holds the batches of one merge.
type Merger struct {
	cfg     MergeConfig
	deps    MergerDeps
	builder segment.Builder
	failed  map[coordinator.ShardID]time.Time // when the last merge failed
	rewrote coordinator.ShardID               // whose sparse segments were written anew last
	looked  map[coordinator.ShardID]string    // manifests in which nothing is sparse

	merges, bytes atomic.Uint64
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
	return &Merger{cfg: cfg, deps: deps, failed: make(map[coordinator.ShardID]time.Time), looked: make(map[coordinator.ShardID]string)}
}

const (
	// mergePause is how often the merger looks whether a shard is due.
	mergePause = time.Second
	// mergeRest is how long a shard is left alone whose merge has failed.
	mergeRest = 30 * time.Second
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

// Step merges each shard that is due, once, and writes sparse segments of one shard anew. Errors are those of Run; what else goes wrong is told to the log, and ends the step: the bucket or
// the coordinator may be away.
func (m *Merger) Step(ctx context.Context) error {
	for due := m.due(); len(due) > 0; {
		group, n := m.group(due)
		due = due[n:]
		if goOn, err := m.merged(ctx, group); err != nil || !goOn {
			return err
		}
	}
	if w := m.sparse(); w != nil {
		_, err := m.merged(ctx, []*work{w})
		return err
	}
	return nil
}

// merged merges, and says whether to go on.
func (m *Merger) merged(ctx context.Context, group []*work) (goOn bool, err error) {
	failed, err := m.merge(ctx, group)
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, errInvariant):
		return false, err
	case err != nil:
		m.deps.Log.Warn("segments could not be merged; trying again", "shards", failed, "in", mergeRest, "err", err)
		for _, id := range failed {
			m.failed[id] = m.deps.Now()
		}
		return false, nil
	}
	return true, nil
}

// errInvariant is what must not be.
var errInvariant = errors.New("broken invariant")

// due returns the shards that should merge, the one with the oldest commit first.
func (m *Merger) due() []coordinator.ShardID {
	surplus := m.deps.Tails.Surplus(m.cfg.CommitsMax, m.cfg.KeyBytesMax)
	now := m.deps.Now()
	oldest := make(map[coordinator.ShardID]int64)
	for id, record := range m.deps.Manifests.records() {
		if !m.deps.Leads(id) || m.rests(id, now) {
			continue
		}
		if parts := m.deps.Tails.Of(uint32(id), record.Merged); m.cfg.due(parts, surplus, now) {
			oldest[id] = parts[0].Revision
		}
	}
	return slices.SortedFunc(maps.Keys(oldest), func(a, b coordinator.ShardID) int {
		return cmp.Or(cmp.Compare(oldest[a], oldest[b]), cmp.Compare(a, b))
	})
}

// rests reports whether a shard is left alone since its last merge has failed.
func (m *Merger) rests(id coordinator.ShardID, now time.Time) bool {
	since := now.Sub(m.failed[id])
	return since >= 0 && since < mergeRest
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
		delete(m.failed, w.id)
		w.merged = nil // what it has read may go
		w.release()
	}
	return nil, nil
}

// install makes a merge part of the shard's next manifest.
func (w *work) install(ctx context.Context) error {
	m, c := w.m, change{edit: w.edit}
	if n := len(w.plan.parts); n > 0 {
		c.merged = w.plan.parts[n-1].Revision
	}
	if err := w.output.install(ctx, c); err != nil {
		return err
	}
	m.merges.Add(1)
	for i := range w.made {
		m.bytes.Add(uint64(w.made[i].Size))
	}
	m.deps.Log.Debug("merged segments", "shard", w.id, "commits", len(w.plan.parts), "joined", len(w.joined), "into", len(w.made))
	return nil
}

// work is one merge under way.
type work struct {
	output
	m      *Merger
	plan   plan
	joined []manifest.Segment       // of old, that are merged anew; claimed
	merged map[partition.ID]*merged // what changes
	chunks []*wal.Chunk             // of the WAL's memory, that batches are in
}

// release lets go of the WAL's memory, and of the segments that were claimed.
func (w *work) release() {
	for _, c := range w.chunks {
		c.Release()
	}
	w.shard.unclaim(w.joined)
	w.chunks, w.joined = nil, nil
}

// merged is what is new of a partition.
type merged struct {
	name    string
	log     *partition.Log  // rebuilt up to the new end
	stable  protocol.Offset // as of there
	sources []source        // in order of offsets
	// compacted says whether its topic is compacted, as of when the merge began: that may change meanwhile.
	compacted bool
}

// source is an extent that is merged.
type source struct {
	index.Extent
	section *segment.Section
	batches [][]byte // from memory; nil if data has them
	data    []byte
}

// gather finds the extents that are merged, and rebuilds the partitions' states.
func (w *work) gather(ctx context.Context) error {
	commits := make(map[string]bool, len(w.plan.parts))
	touched := make(map[partition.ID]bool)
	for _, part := range w.plan.parts {
		commits[part.Name] = true
		for _, id := range part.Partitions {
			touched[id] = true
		}
	}
	joined, places := make(map[string]bool), make(map[int32]bool)
	for _, at := range w.plan.join {
		joined[w.old.Segments[at].Name(w.old.Shard)], places[int32(at)] = true, true
	}
	for i := range w.old.Partitions {
		p := &w.old.Partitions[i]
		if slices.ContainsFunc(p.Extents, func(e manifest.Extent) bool { return places[e.Segment] }) {
			touched[partition.ID{Topic: p.Topic, Partition: p.Partition}] = true
		}
	}
	if err := w.footers(ctx); err != nil {
		return err
	}
	for _, id := range sorted(touched) {
		name, ok := w.m.deps.Topic(id.Topic)
		if !ok {
			continue // deleted meanwhile
		}
		was, _ := w.old.Find(id.Topic, id.Partition)
		if was == nil {
			was = &manifest.Partition{Topic: id.Topic, Partition: id.Partition, TopicName: name}
		}
		if err := w.complete(id); err != nil {
			return err
		}
		p := &merged{name: name, log: partition.New(w.epoch), stable: was.LastStable, compacted: w.m.deps.Compacted(id.Topic)}
		p.log.RestoreSnapshot(SnapshotOf(was))
		for _, e := range w.m.deps.Index.Extents(id) {
			if !commits[e.Object.Name] && !joined[e.Object.Name] {
				continue
			}
			if err := w.source(ctx, id, p, e, commits[e.Object.Name]); err != nil {
				return err
			}
		}
		w.merged[id] = p
	}
	return nil
}

// footers has the footers of the commits at hand, which are asked for one by one afterwards.
func (w *work) footers(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	asked := make(map[string]bool)
	for _, part := range w.plan.parts {
		for _, id := range part.Partitions {
			if asked[part.Name] {
				break
			}
			e, ok := w.m.deps.Index.In(id, part.Name)
			if !ok {
				continue
			}
			asked[part.Name] = true
			g.Go(func() error {
				_, err := w.m.deps.Footers.Get(ctx, e.Object)
				return err
			})
		}
	}
	return g.Wait()
}

// complete makes sure that the index has what the commits have of a partition.
func (w *work) complete(id partition.ID) error {
	here := make(map[string]bool)
	for _, e := range w.m.deps.Index.Tail(id) {
		here[e.Object.Name] = true
	}
	for _, part := range w.plan.parts {
		if !here[part.Name] && slices.Contains(part.Partitions, id) {
			if _, ok := w.m.deps.Topic(id.Topic); ok {
				return fmt.Errorf("the index has nothing of %s/%d in %s", id.Topic, id.Partition, part.Name)
			}
		}
	}
	return nil
}

// source takes in an extent that is merged; new says that it is of a commit.
func (w *work) source(ctx context.Context, id partition.ID, p *merged, e index.Extent, isNew bool) error {
	footer, err := w.m.deps.Footers.Get(ctx, e.Object)
	if err != nil {
		return err
	}
	s := footer.Find(segment.Key{Shard: e.Shard, Topic: id.Topic, Partition: id.Partition})
	if s == nil {
		return fmt.Errorf("segment %s: %w: no section for %s/%d", e.Object.Name, segment.ErrCorrupt, id.Topic, id.Partition)
	}
	if isNew {
		if end := p.log.End(); e.First != end {
			return fmt.Errorf("%w: merge of %s/%d: offsets [%d,%d) of %s do not continue %d", errInvariant, id.Topic, id.Partition, e.First, e.Next, e.Object.Name, end)
		}
		if err := Apply(p.log, s, e.Object.CreatedMs); err != nil {
			return err
		}
		p.stable = e.LastStable
	}
	from := source{Extent: e, section: s}
	if live := w.m.deps.Partition(id); isNew && live != nil {
		var next protocol.Offset
		from.batches, w.chunks, next, _, _ = live.Read(e.First, e.Next, int(e.Size), nil, w.chunks, false)
		if next != e.Next || len(from.batches) != s.Batches {
			from.batches = nil // not all of it
		}
	}
	p.sources = append(p.sources, from)
	return nil
}

// runGapMax is how many bytes that nobody wants are read rather than ask twice. Of a request no more of them are read than of what is wanted, and this.
const runGapMax = 256 << 10

// load reads the sections that are merged, those that stand together in an object at once.
func load(ctx context.Context, store objectstore.Store, group []*work) error {
	byObject := make(map[string][]*source)
	for _, w := range group {
		for _, p := range w.merged {
			for i := range p.sources {
				if s := &p.sources[i]; s.batches == nil {
					byObject[s.Object.Name] = append(byObject[s.Object.Name], s)
				}
			}
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	for _, name := range slices.Sorted(maps.Keys(byObject)) {
		all := byObject[name]
		slices.SortFunc(all, func(a, b *source) int { return cmp.Compare(a.Pos, b.Pos) })
		for len(all) > 0 {
			n, wanted, gaps := 1, all[0].Size, int64(0)
			for n < len(all) {
				gap := all[n].Pos - (all[n-1].Pos + all[n-1].Size)
				if gap > runGapMax || gaps+gap > wanted+runGapMax {
					break
				}
				gaps += gap
				wanted += all[n].Size
				n++
			}
			together := all[:n]
			g.Go(func() error { return loadRun(ctx, store, name, together) })
			all = all[n:]
		}
	}
	return g.Wait()
}

// loadRun reads sections that stand together.
func loadRun(ctx context.Context, store objectstore.Store, name string, all []*source) error {
	first, last := all[0], all[len(all)-1]
	data := make([]byte, last.Pos+last.Size-first.Pos)
	ctx, cancel := context.WithTimeout(ctx, mergeRequestMax)
	defer cancel()
	if err := store.Get(ctx, name, first.Pos, data); err != nil {
		return fmt.Errorf("read segment %s: %w", name, err)
	}
	wanted := int64(0)
	for _, s := range all {
		wanted += s.Size
	}
	for _, s := range all {
		at := s.Pos - first.Pos
		s.data = data[at : at+s.Size : at+s.Size]
		if err := s.section.Verify(s.data); err != nil {
			return err
		}
		if wanted < int64(len(data)) {
			s.data = bytes.Clone(s.data) // what lies between goes
		}
	}
	return nil
}

// write makes the new segments and puts them: of partitions that are compacted others than of those that are not.
func (w *work) write(ctx context.Context) error {
	b := w.begin()
	defer b.Reset()
	for _, compacted := range []bool{false, true} {
		for _, pid := range sorted(w.merged) {
			if w.merged[pid].compacted != compacted {
				continue
			}
			if err := w.add(ctx, pid); err != nil {
				return err
			}
		}
		if b.Bytes() == 0 {
			continue
		}
		if err := w.put(ctx); err != nil {
			return err
		}
	}
	return w.check()
}

// check makes sure that all that is merged is in the new segments: what is not there would be lost once the old ones are deleted.
func (w *work) check() error {
	for id, p := range w.merged {
		start := w.old.LogStart(id.Topic, id.Partition)
		sources := p.sources
		for len(sources) > 0 && sources[0].Next <= start {
			sources = sources[1:]
		}
		if len(sources) == 0 {
			continue
		}
		end, placed := sources[0].First, w.placed(id, 0)
		if len(placed) > 0 {
			end = max(end, min(placed[0].First, start))
		}
		for _, e := range placed {
			if e.First > end {
				break
			}
			end = e.Next
		}
		if last := sources[len(sources)-1].Next; end != last {
			return fmt.Errorf("%w: merge of %s/%d: the new segments have it up to %d, the old ones up to %d", errInvariant, id.Topic, id.Partition, end, last)
		}
	}
	return nil
}

// add adds a partition to the segments that are made.
func (w *work) add(ctx context.Context, pid partition.ID) error {
	p := w.merged[pid]
	key := segment.Key{Shard: uint32(w.id), Topic: pid.Topic, Partition: pid.Partition}
	start := w.old.LogStart(pid.Topic, pid.Partition)
	for i := range p.sources {
		for data, err := range p.sources[i].all(start) {
			if err != nil {
				return err
			}
			err := w.builder.Add(key, p.name, data)
			if errors.Is(err, segment.ErrFull) && w.builder.Bytes() > 0 {
				if err = w.put(ctx); err == nil {
					err = w.builder.Add(key, p.name, data)
				}
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sorted returns partitions in the order of sections.
func sorted[T any](all map[partition.ID]T) []partition.ID {
	return slices.SortedFunc(maps.Keys(all), func(a, b partition.ID) int {
		return cmp.Or(slices.Compare(a.Topic[:], b.Topic[:]), cmp.Compare(a.Partition, b.Partition))
	})
}

// all yields the batches that end after an offset.
func (s *source) all(start protocol.Offset) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		at := 0
		for b, err := range s.section.All() {
			var data []byte
			switch {
			case err != nil:
			case s.batches != nil:
				data = s.batches[at]
			default:
				from := b.Pos - s.Pos
				data = s.data[from : from+int64(b.Size)]
			}
			at++
			if err == nil && b.Next() <= start {
				continue
			}
			if !yield(data, err) {
				return
			}
		}
	}
}

// edit makes the merge part of the shard's next manifest, in which log start offsets may have moved since the merge began.
func (w *work) edit(next *manifest.Manifest) {
	joined := make([]bool, len(next.Segments)) // others may have left since
	for i, g := range next.Segments {
		joined[i] = slices.Contains(w.joined, g)
	}
	base := int32(len(next.Segments))
	next.Segments = append(slices.Clone(next.Segments), w.made...) // those that are not referred to any more are pruned
	expired := w.m.deps.Now().Add(-w.m.deps.ProducerIdle).UnixMilli()
	for id, p := range w.merged {
		at := place(next, id, p.name)
		at.Extents = slices.DeleteFunc(slices.Clone(at.Extents), func(e manifest.Extent) bool { return joined[e.Segment] })
		at.Extents = append(at.Extents, w.placed(id, base)...)
		slices.SortFunc(at.Extents, func(a, b manifest.Extent) int { return cmp.Compare(a.First, b.First) }) // others may come behind
		p.log.Producers().Expire(expired, w.m.deps.ProducersMax)
		take(at, p.log.Snapshot(), p.stable)
	}
}
