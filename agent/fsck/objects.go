package fsck

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// reference is an object that must be there, or that was found not to be in order.
type reference struct {
	name    string
	missing bool
	problem string // empty for none
}

func (r reference) ok() bool { return !r.missing && r.problem == "" }

// tell reports a reference that is not in order; from says what refers to the object.
func (c *checker) tell(r reference, from string) {
	switch {
	case r.missing:
		c.report.problem(Missing, r.name, "%s refers to it", from)
	case r.problem != "":
		c.report.problem(Damaged, r.name, "%s refers to it: %s", from, r.problem)
	}
}

// segmentAt reads the footer of a segment that something refers to; it is nil unless the reference is ok.
func (c *checker) segmentAt(ctx context.Context, name string, size, footerPos int64, has *object) (*segment.Footer, reference, error) {
	ref := reference{name: name}
	switch {
	case has == nil:
		ref.missing = true
		return nil, ref, nil
	case has.size != size:
		ref.problem = fmt.Sprintf("%d bytes, want %d", has.size, size)
		return nil, ref, nil
	case footerPos < 0 || footerPos >= size || size-footerPos > segment.FooterBytesMax:
		ref.problem = fmt.Sprintf("a footer at byte %d of %d", footerPos, size)
		return nil, ref, nil
	}
	b, err := c.get(ctx, name, footerPos, size-footerPos)
	if err != nil || b == nil {
		ref.missing = b == nil
		return nil, ref, err
	}
	f, err := segment.ParseFooter(b)
	switch {
	case err != nil:
		ref.problem = err.Error()
	case f.Pos != footerPos || f.ObjectSize != size:
		ref.problem = fmt.Sprintf("its footer is at byte %d of %d by its trailer, want %d of %d", f.Pos, f.ObjectSize, footerPos, size)
	case f.Header.ID.Name() != name:
		ref.problem = "it is " + f.Header.ID.Name()
	case f.Header.Cluster != c.state.id:
		ref.problem = "it is of cluster " + protocol.TopicID(f.Header.Cluster).String()
	}
	if ref.problem != "" {
		return nil, ref, nil
	}
	if ref.problem, err = c.deep(ctx, name, f); err != nil || ref.problem != "" {
		return nil, ref, err
	}
	return f, ref, nil
}

// deep checks the sections of a segment, if that is wished. It returns what is wrong.
func (c *checker) deep(ctx context.Context, name string, f *segment.Footer) (problem string, err error) {
	if !c.o.Deep {
		return "", nil
	}
	for i := range f.Sections {
		s := &f.Sections[i]
		data, err := c.get(ctx, name, s.Pos, s.Size)
		if err != nil {
			return "", err
		}
		if data == nil {
			return "deleted while it was read", nil
		}
		if err := s.Verify(data); err != nil {
			return err.Error(), nil
		}
		for b, err := range s.All() {
			if err == nil {
				err = s.VerifyBatch(b, data[b.Pos-s.Pos:][:b.Size])
			}
			if err != nil {
				return err.Error(), nil
			}
		}
	}
	return "", nil
}

// triesMax is how often a shard is looked at that has another manifest each time.
const triesMax = 3

// shards checks the newest manifests and their segments.
func (c *checker) shards(ctx context.Context) error {
	for _, id := range slices.Sorted(maps.Keys(c.state.shards)) {
		record := c.state.shards[id]
		for try := 1; ; try++ {
			m, refs, err := c.shard(ctx, id, record)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(refs, func(r reference) bool { return !r.ok() }) {
				c.manifests[id] = m
				break
			}
			now, still, err := c.still(ctx, coordinator.KeyShard(id), record.revision)
			if err != nil {
				return err
			}
			if still {
				for _, r := range refs {
					c.tell(r, coordinator.KeyShard(id))
				}
				c.manifests[id], c.unknown[id] = m, m == nil
				break
			}
			if try == triesMax || now.ModRevision == 0 {
				return fmt.Errorf("check shard %d: %w", id, errMoves)
			}
			if record.Shard, err = coordinator.Decode[coordinator.Shard](now); err != nil {
				return err
			}
			record.revision = now.ModRevision
			c.state.shards[id] = record
		}
		c.mark(id)
	}
	return nil
}

// mark notes that the manifest of a shard, and its segments, are referred to.
func (c *checker) mark(id coordinator.ShardID) {
	if o := c.objects[c.state.shards[id].Manifest]; o != nil {
		o.kind = shardManifest
	}
	m := c.manifests[id]
	if m == nil {
		return
	}
	for i := range m.Segments {
		if o := c.objects[m.Segments[i].Name(m.Shard)]; o != nil {
			o.kind = mergedSegment
		}
	}
}

// still reports whether a key is as it was; else now is what it is.
func (c *checker) still(ctx context.Context, key string, revision int64) (now coordinator.Item, still bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if now, _, err = c.kv.Get(ctx, key); err != nil {
		return now, false, fmt.Errorf("read %s again: %w", key, err)
	}
	return now, now.ModRevision == revision, nil
}

// shard reads a shard's newest manifest, and checks all that it refers to. It is nil if it cannot be read.
func (c *checker) shard(ctx context.Context, id coordinator.ShardID, record shardRecord) (*manifest.Manifest, []reference, error) {
	if record.Manifest == "" {
		return nil, nil, nil
	}
	m, ref, err := c.manifest(ctx, record.Manifest)
	if err != nil || !ref.ok() {
		return nil, []reference{ref}, err
	}
	if m.Shard != uint32(id) || int32(m.Epoch) > record.Epoch || m.Cluster != c.state.id {
		ref.problem = fmt.Sprintf("it is of shard %d, epoch %d, cluster %s, want shard %d, epoch %d at most", m.Shard, m.Epoch, protocol.TopicID(m.Cluster), id, record.Epoch)
		return nil, []reference{ref}, nil
	}
	refs := make([]reference, len(m.Segments))
	extents := extentsOf(m)
	has := make([]*object, len(m.Segments))
	for i := range m.Segments {
		if has[i], err = c.find(ctx, m.Segments[i].Name(m.Shard)); err != nil {
			return nil, nil, err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readersMax)
	for i := range m.Segments {
		g.Go(func() error {
			s := &m.Segments[i]
			f, ref, err := c.segmentAt(ctx, s.Name(m.Shard), s.Size, s.FooterPos, has[i])
			if f != nil {
				ref.problem = contradiction(f, m, extents[i])
			}
			refs[i] = ref
			return err
		})
	}
	return m, refs, g.Wait()
}

// manifest reads a manifest.
func (c *checker) manifest(ctx context.Context, name string) (*manifest.Manifest, reference, error) {
	ref := reference{name: name}
	has, err := c.find(ctx, name)
	if err != nil || has == nil {
		ref.missing = true
		return nil, ref, err
	}
	if has.size > manifest.BytesMax {
		ref.problem = fmt.Sprintf("%d bytes, want %d at most", has.size, manifest.BytesMax)
		return nil, ref, nil
	}
	b, err := c.get(ctx, name, 0, has.size)
	if err != nil || b == nil {
		ref.missing = true
		return nil, ref, err
	}
	m, err := manifest.Parse(b)
	switch {
	case err != nil:
		ref.problem = err.Error()
	case m.Name() != name:
		ref.problem = "it is " + m.Name()
	}
	return m, ref, nil
}

// located is an extent and whose it is.
type located struct {
	partition *manifest.Partition
	extent    *manifest.Extent
}

// extentsOf returns the extents in each segment of a manifest.
func extentsOf(m *manifest.Manifest) [][]located {
	all := make([][]located, len(m.Segments))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for j := range p.Extents {
			e := &p.Extents[j]
			all[e.Segment] = append(all[e.Segment], located{p, e})
		}
	}
	return all
}

// contradiction says what a segment's footer has otherwise than the manifest's extents.
func contradiction(f *segment.Footer, m *manifest.Manifest, extents []located) string {
	for _, l := range extents {
		e, p := l.extent, l.partition
		s := f.Find(segment.Key{Shard: m.Shard, Topic: p.Topic, Partition: p.Partition})
		switch {
		case s == nil:
			return fmt.Sprintf("it has nothing of %s/%d", p.TopicName, p.Partition)
		case s.FirstOffset != e.First || s.NextOffset != e.Next || s.Pos != e.Pos || s.Size != e.Size || s.MaxTimestamp != e.MaxTimestamp || s.LeaderEpoch != e.Epoch:
			return fmt.Sprintf("it has offsets [%d,%d) of %s/%d in %d bytes at %d, newest %d, epoch %d; the manifest says [%d,%d) in %d at %d, newest %d, epoch %d",
				s.FirstOffset, s.NextOffset, p.TopicName, p.Partition, s.Size, s.Pos, s.MaxTimestamp, s.LeaderEpoch, e.First, e.Next, e.Size, e.Pos, e.MaxTimestamp, e.Epoch)
		}
	}
	return ""
}

// commits checks the segments of commits. Of commits whose partitions are in the footer alone, it takes them from there.
func (c *checker) commits(ctx context.Context) error {
	all := c.state.commits
	refs, has := make([]reference, len(all)), make([]*object, len(all))
	for i := range all {
		var err error
		if has[i], err = c.find(ctx, all[i].Object); err != nil {
			return err
		}
		if has[i] != nil {
			has[i].kind = commitSegment
		}
	}
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(readersMax)
	for i := range all {
		g.Go(func() error {
			commit := &all[i]
			f, ref, err := c.segmentAt(reading, commit.Object, commit.ObjectSize, commit.FooterPos, has[i])
			if f != nil {
				ref.problem = commit.contradiction(f)
			}
			if f != nil && commit.InFooter {
				commit.Partitions = partitionsOf(f)
			}
			refs[i] = ref
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, r := range refs {
		if r.ok() {
			continue
		}
		if all[i].InFooter { // nobody knows what is in it
			for _, id := range all[i].Shards {
				c.unknown[id] = true
			}
		}
		switch _, still, err := c.still(ctx, all[i].key, all[i].revision); {
		case err != nil:
			return err
		case still:
			c.tell(r, all[i].key)
		}
	}
	slices.SortStableFunc(all, func(a, b commitRecord) int { return cmp.Compare(a.revision, b.revision) })
	return nil
}

func partitionsOf(f *segment.Footer) []coordinator.CommitPartition {
	all := make([]coordinator.CommitPartition, len(f.Sections))
	for i := range f.Sections {
		all[i] = partitionOf(&f.Sections[i])
	}
	return all
}

// partitionOf is what a commit says of a section.
func partitionOf(s *segment.Section) coordinator.CommitPartition {
	return coordinator.CommitPartition{
		Topic: s.Topic, Partition: s.Partition, Shard: coordinator.ShardID(s.Shard), FirstOffset: s.FirstOffset, NextOffset: s.NextOffset, Pos: s.Pos, Size: s.Size,
		MaxTimestamp: s.MaxTimestamp, LeaderEpoch: s.LeaderEpoch, LastStable: s.LastStable,
	}
}

// contradiction says what the segment's footer has otherwise than the commit.
func (c *commitRecord) contradiction(f *segment.Footer) string {
	h := &f.Header
	if h.ID.Level != segment.Flushed || h.ID.Log != uint64(c.Log) || h.ID.Fence != c.Fence || h.ID.Commit != c.Number || h.FirstEntry != c.FirstEntry || h.LastEntry != c.LastEntry {
		return fmt.Sprintf("it is of log %016x, fence %d, commit %d, entries %d to %d; the commit says log %s, fence %d, commit %d, entries %d to %d",
			h.ID.Log, h.ID.Fence, h.ID.Commit, h.FirstEntry, h.LastEntry, c.Log, c.Fence, c.Number, c.FirstEntry, c.LastEntry)
	}
	if c.InFooter {
		return ""
	}
	if len(c.Partitions) != len(f.Sections) {
		return fmt.Sprintf("it has %d sections, the commit says %d", len(f.Sections), len(c.Partitions))
	}
	for _, want := range c.Partitions {
		s := f.Find(segment.Key{Shard: uint32(want.Shard), Topic: want.Topic, Partition: want.Partition})
		if s == nil || partitionOf(s) != want {
			return fmt.Sprintf("it does not have offsets [%d,%d) of %s/%d as the commit says", want.FirstOffset, want.NextOffset, want.Topic, want.Partition)
		}
	}
	return ""
}
