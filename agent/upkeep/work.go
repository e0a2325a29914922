package upkeep

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
)

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

// footers has the footers of the commits and of what is joined at hand, which are asked for one by one afterwards.
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
	for i := range w.joined {
		of := objectOf(w.old, &w.joined[i])
		g.Go(func() error {
			_, err := w.m.deps.Footers.Get(ctx, of)
			return err
		})
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
	for _, g := range w.joined {
		if at, ok := next.FindSegment(g.Epoch, g.Number); ok {
			joined[at] = true
		}
	}
	base := int32(len(next.Segments))
	next.Segments = append(slices.Clone(next.Segments), w.made...) // those that are not referred to any more are pruned
	for id, p := range w.merged {
		at := place(next, id, p.name)
		at.Extents = slices.DeleteFunc(slices.Clone(at.Extents), func(e manifest.Extent) bool { return joined[e.Segment] })
		at.Extents = append(at.Extents, w.placed(id, base)...)
		slices.SortFunc(at.Extents, func(a, b manifest.Extent) int { return cmp.Compare(a.First, b.First) }) // others may come behind
		p.log.Producers().Expire(math.MinInt64, w.m.deps.ProducersMax)
		take(at, p.log.Snapshot(), p.stable)
	}
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
