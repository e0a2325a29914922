package sim

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/test/check"
)

// checker watches every transaction that applies, and in the end reads everything back.
type checker struct {
	w        *world
	findings []string

	logs   map[coordinator.LogID]coordinator.Log // as last written
	ends   [partitions]protocol.Offset           // of what is committed
	merged [partitions]protocol.Offset           // of what is merged
	starts [partitions]int64                     // where partitions begin, as their manifests say
	// commits are those that are in etcd.
	commits map[string]coordinator.Commit
	shards  map[string]coordinator.Shard     // as last written
	epochs  [partitions]protocol.LeaderEpoch // of the newest commit

	// Of a topic with a retention: the batches that were committed, and up to where somebody asked for the deletion of records.
	retains   bool
	batches   [partitions][]committedBatch
	asked     [partitions]int64
	rewritten int // segments that were written without anything new in them

	// Of clusters that lose etcd: what was written of groups' offsets, by keys, and the number below which logs are from before the newest restore.
	restores bool
	offsets  map[string][]written
	old      coordinator.LogID

	// Of both those and compacted topics: what was committed. Of the latter: how far it was cleaned.
	committed [partitions]map[int64]check.Record
	cleaned   [partitions]protocol.Offset
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, logs: make(map[coordinator.LogID]coordinator.Log), shards: make(map[string]coordinator.Shard), commits: make(map[string]coordinator.Commit),
		offsets: make(map[string][]written),
	}
}

// report notes that an invariant of that number is broken.
func (c *checker) report(format string, args ...any) {
	f := fmt.Sprintf(format, args...)
	c.w.note("FINDING %s", f)
	c.findings = append(c.findings, f)
}

func (c *checker) failed() bool { return len(c.findings) > 0 }

// applied looks at a transaction that just applied.
func (c *checker) applied(ops []coordinator.Op) {
	if c.w.load.txns != nil {
		c.w.load.txns.applied(ops)
	}
	for _, op := range ops {
		if op.Delete {
			if strings.HasPrefix(op.Key, coordinator.PrefixCommits) {
				c.left(op)
			}
			continue
		}
		switch {
		case strings.HasPrefix(op.Key, coordinator.PrefixCommits):
			c.commit(op)
		case strings.HasPrefix(op.Key, coordinator.PrefixOffsets):
			c.offset(op)
		case strings.HasPrefix(op.Key, coordinator.PrefixShards):
			c.shard(op)
		}
	}
	for _, op := range ops { // after the commit, which must fit what was there
		if strings.HasPrefix(op.Key, coordinator.PrefixLogs) && !op.Delete {
			l, err := coordinator.Decode[coordinator.Log](coordinator.Item{Key: op.Key, Value: op.Value})
			if err != nil {
				panic(err)
			}
			if c.logs[l.ID].Closed {
				c.report("4: WAL log %s is written after it was closed", l.ID)
			}
			if old := c.logs[l.ID].Fence; l.Fence < old {
				c.report("4: the fence of WAL log %s falls from %d to %d", l.ID, old, l.Fence)
			}
			c.logs[l.ID] = l
		}
	}
}

// shard checks that a shard changes its owner under a higher epoch only. That everything of it was flushed before shows in later commits, which must be of the owner's log.
func (c *checker) shard(op coordinator.Op) {
	s, err := coordinator.Decode[coordinator.Shard](coordinator.Item{Key: op.Key, Value: op.Value})
	if err != nil {
		panic(err)
	}
	id := strings.TrimPrefix(op.Key, coordinator.PrefixShards)
	old := c.shards[id]
	if s.Owner != old.Owner && s.Epoch <= old.Epoch || s.Epoch < old.Epoch {
		c.report("4: shard %s goes from log %s in epoch %d to log %s in epoch %d", id, old.Owner, old.Epoch, s.Owner, s.Epoch)
	}
	c.shards[id] = s
	if s.Manifest != old.Manifest {
		if c.retains && s.Merged == old.Merged {
			c.countRewritten(old.Manifest, s.Manifest)
		}
		c.manifest(id, s.Manifest)
	}
}

// manifest checks that what a manifest refers to is there, and that it takes nothing back.
func (c *checker) manifest(shard, name string) {
	m := c.readManifest(name)
	if m == nil {
		c.report("8: the record of shard %s refers to %s, which is not there", shard, name)
		return
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if p.End < c.merged[p.Partition] || p.End > c.ends[p.Partition] {
			c.report("3: %s ends partition %d at %d, merged was %d, committed %d", name, p.Partition, p.End, c.merged[p.Partition], c.ends[p.Partition])
		}
		c.merged[p.Partition] = p.End
		c.started(p.Partition, int64(p.LogStartOffset))
		if p.Cleaned < c.cleaned[p.Partition] || p.Cleaned > 0 && !c.w.compacted {
			c.report("2: %s says that partition %d was cleaned up to %d, it was up to %d", name, p.Partition, p.Cleaned, c.cleaned[p.Partition])
		}
		c.cleaned[p.Partition] = p.Cleaned
		next := max(p.LogStartOffset, p.Cleaned)
		for _, e := range p.Extents {
			object := m.Segments[e.Segment].Name(m.Shard)
			_, footer := c.object(object)
			if footer == nil {
				c.report("8: %s refers to %s, which is not there", name, object)
				return
			}
			s := footer.Find(segment.Key{Shard: m.Shard, Topic: p.Topic, Partition: p.Partition})
			if s == nil || s.FirstOffset != e.First || s.NextOffset != e.Next || s.Pos != e.Pos || s.Size != e.Size {
				c.report("8: %s and %s differ about partition %d", name, object, p.Partition)
			}
			if e.First > next {
				c.report("3: %s has nothing of partition %d from %d to %d", name, p.Partition, next, e.First)
			}
			next = max(next, e.Next)
		}
		if next < p.End {
			c.report("3: %s has nothing of partition %d from %d to %d", name, p.Partition, next, p.End)
		}
	}
}

// left checks that a commit that leaves is merged.
func (c *checker) left(op coordinator.Op) {
	commit := c.commits[op.Key]
	delete(c.commits, op.Key)
	for i := range commit.Partitions {
		if p := &commit.Partitions[i]; p.NextOffset > c.merged[p.Partition] {
			c.report("2: %s leaves with offsets up to %d of partition %d, merged are those up to %d", op.Key, p.NextOffset, p.Partition, c.merged[p.Partition])
		}
	}
}

// readManifest reads a manifest past all faults; nil if it cannot be read.
func (c *checker) readManifest(name string) *manifest.Manifest {
	info, err := c.w.bucket.Stat(c.w.ctx, name)
	if err != nil {
		return nil
	}
	b := make([]byte, info.Size)
	if err := c.w.bucket.Get(c.w.ctx, name, 0, b); err != nil {
		return nil
	}
	m, err := manifest.Parse(b)
	if err != nil || m.Name() != name {
		return nil
	}
	return m
}

// commit checks that a commit continues its log and its partitions, and that its object is there.
func (c *checker) commit(op coordinator.Op) {
	commit, err := coordinator.DecodeCommit(op.Value)
	if err != nil {
		c.report("8: %s: %v", op.Key, err)
		return
	}
	c.commits[op.Key] = commit
	log := c.logs[commit.Log]
	switch {
	case commit.Fence != log.Fence:
		c.report("4: %s is of fence %d, the log's is %d", op.Key, commit.Fence, log.Fence)
	case commit.Number != log.Commits+1:
		c.report("4: %s follows commit %d", op.Key, log.Commits)
	case commit.FirstEntry <= log.Flushed:
		c.report("4: %s begins with entry %d, flushed was %d", op.Key, commit.FirstEntry, log.Flushed)
	}
	object, footer := c.object(commit.Object)
	if footer == nil || footer.ObjectSize != commit.ObjectSize || footer.Pos != commit.FooterPos {
		c.report("8: %s refers to %s, which is not there or is another", op.Key, commit.Object)
		return
	}
	for i := range commit.Partitions {
		p := &commit.Partitions[i]
		c.w.aside("%s has offsets %d to %d of partition %d, of leader epoch %d", op.Key, p.FirstOffset, p.NextOffset, p.Partition, p.LeaderEpoch)
		if p.FirstOffset != c.ends[p.Partition] {
			c.report("3: %s begins at offset %d of partition %d, which ends at %d", op.Key, p.FirstOffset, p.Partition, c.ends[p.Partition])
		}
		s := footer.Find(segment.Key{Shard: uint32(p.Shard), Topic: p.Topic, Partition: p.Partition})
		if s == nil || s.FirstOffset != p.FirstOffset || s.NextOffset != p.NextOffset || s.Pos != p.Pos || s.Size != p.Size {
			c.report("8: %s and %s differ about partition %d", op.Key, commit.Object, p.Partition)
		}
		if owner := c.shards[fmt.Sprintf("%04d", p.Shard)].Owner; owner != commit.Log && commit.Log >= c.old {
			c.report("4: %s is of partition %d, whose shard belongs to log %s", op.Key, p.Partition, owner)
		}
		if p.LeaderEpoch < c.epochs[p.Partition] {
			c.report("4: %s is of leader epoch %d, epoch %d has committed", op.Key, p.LeaderEpoch, c.epochs[p.Partition])
		}
		c.ends[p.Partition], c.epochs[p.Partition] = p.NextOffset, p.LeaderEpoch
		if c.retains {
			c.count(p.Partition, object[p.Pos:p.Pos+p.Size])
		}
		if c.retains || c.restores || c.w.compacted {
			c.remember(p.Partition, object[p.Pos:p.Pos+p.Size])
		}
	}
}

// offset checks that a consumer's offset does not go back behind one that was acknowledged.
func (c *checker) offset(op coordinator.Op) {
	n, err := c.w.offsetIn(coordinator.Item{Key: op.Key, Value: op.Value})
	if err != nil {
		panic(err)
	}
	if c.restores {
		c.offsets[op.Key] = append(c.offsets[op.Key], written{c.w.revision(), n})
	}
	for _, g := range c.w.load.committers {
		if g.key == op.Key && n < g.acked {
			c.report("7: %s becomes %d, %d was committed", op.Key, n, g.acked)
		}
	}
}

// object reads an object past all faults; the footer is nil if it cannot be read.
func (c *checker) object(name string) ([]byte, *segment.Footer) {
	info, err := c.w.bucket.Stat(c.w.ctx, name)
	if err != nil {
		return nil, nil
	}
	b := make([]byte, info.Size)
	if err := c.w.bucket.Get(c.w.ctx, name, 0, b); err != nil {
		return nil, nil
	}
	pos, err := segment.ParseTrailer(b[len(b)-segment.TrailerSize:], info.Size)
	if err != nil {
		return nil, nil
	}
	footer, err := segment.ParseFooter(b[pos:])
	if err != nil {
		return nil, nil
	}
	return b, footer
}

// ended looks at why an agent has ended.
func (c *checker) ended(why error) {
	for _, broken := range []string{"index ", "want commit", "belongs to the store", "leave a gap", "overlap", "does not continue"} {
		if why != nil && strings.Contains(why.Error(), broken) {
			c.report("an agent found a broken invariant: %v", why)
		}
	}
}

// part is a section of a segment.
type part struct {
	section *segment.Section
	data    []byte
}

// final reads the whole log back through manifests and commits, and compares it with what clients were told and saw.
func (c *checker) final() {
	var parts [partitions][]part
	add := func(by, name string, wanted func(*segment.Section) bool) {
		object, footer := c.object(name)
		if footer == nil {
			c.report("8: %s refers to %s, which is not there", by, name)
			return
		}
		for i := range footer.Sections {
			s := &footer.Sections[i]
			if !wanted(s) {
				continue
			}
			data := object[s.Pos : s.Pos+s.Size]
			if err := s.Verify(data); err != nil {
				c.report("8: %s: %v", name, err)
			}
			parts[s.Partition] = append(parts[s.Partition], part{section: s, data: data})
		}
	}
	for id, s := range c.shards {
		if s.Manifest == "" {
			continue
		}
		m := c.readManifest(s.Manifest)
		if m == nil {
			c.report("8: the record of shard %s refers to %s, which is not there", id, s.Manifest)
			return
		}
		for i := range m.Segments {
			add(s.Manifest, m.Segments[i].Name(m.Shard), func(*segment.Section) bool { return true })
		}
	}
	items, _, err := c.w.kv.List(c.w.ctx, coordinator.PrefixCommits, 0)
	if err != nil {
		panic(err)
	}
	for _, it := range items {
		commit, err := coordinator.DecodeCommit(it.Value)
		if err != nil {
			c.report("8: %s: %v", it.Key, err)
			return
		}
		add(it.Key, commit.Object, func(s *segment.Section) bool { return s.NextOffset > c.merged[s.Partition] })
	}
	for n := range parts {
		slices.SortFunc(parts[n], func(a, b part) int { return cmp.Compare(a.section.FirstOffset, b.section.FirstOffset) })
		var records []check.Record
		var batches [][]byte
		for _, p := range parts[n] {
			for b, err := range p.section.All() {
				if err != nil {
					c.report("8: %v", err)
					return
				}
				at := b.Pos - p.section.Pos
				batches = append(batches, p.data[at:at+int64(b.Size)])
				some, err := parse(p.data[at : at+int64(b.Size)])
				if err != nil {
					c.report("8: partition %d: %v", n, err)
				}
				records = append(records, some...)
			}
		}
		c.compare(n, records)
		if c.w.load.txns != nil {
			c.w.load.txns.final(int32(n), batches)
		}
	}
	for _, g := range c.w.load.committers {
		c.groupOffset(g)
	}
}

// compare has test/check compare a partition with its history.
func (c *checker) compare(number int, final []check.Record) {
	log := &c.w.load.logs[number]
	start := c.starts[number]
	final = slices.DeleteFunc(final, func(r check.Record) bool { return r.Offset < start })
	if c.retains {
		final, start = append(c.deleted(number, start), final...), 0
	}
	if c.w.compacted {
		final = c.whole(number, final)
	}
	h := check.History{Final: final, Seen: log.seen, Start: start}
	for _, s := range log.sends {
		records, err := parse(s.bytes)
		if err != nil {
			panic(err)
		}
		for i, r := range records {
			if s.outcome == check.Acked && s.base+int64(i) < start {
				continue // deleted
			}
			h.Sends = append(h.Sends, check.Send{ID: r.ID, Content: r.Content, Floor: s.floor, Outcome: s.outcome, Offset: s.base + int64(i)})
		}
	}
	for _, r := range final {
		if r.ID.Writer == markerWriter {
			h.Sends = append(h.Sends, check.Send{ID: r.ID, Content: r.Content, Floor: -1})
		}
	}
	invariant := map[check.Kind]string{
		check.Lost: "1", check.WrongOffset: "1", check.Changed: "2", check.Unstable: "2", check.Gap: "3", check.Disorder: "3",
		check.Reused: "3", check.Stale: "3", check.Duplicate: "5", check.Reordered: "5", check.Foreign: "2", check.Undone: "1",
	}
	for _, f := range check.Log(h) {
		c.report("%s: partition %d: %v", invariant[f.Kind], number, f)
	}
}

// groupOffset checks what is left of a group's commits.
func (c *checker) groupOffset(g *committer) {
	item, _, err := c.w.kv.Get(c.w.ctx, g.key)
	if err != nil {
		panic(err)
	}
	n := int64(0)
	if item.ModRevision != 0 {
		if n, err = c.w.offsetIn(item); err != nil {
			panic(err)
		}
	}
	if n < g.acked || n > g.last {
		c.report("7: %s is %d, %d was committed, %d was the last tried", g.key, n, g.acked, g.last)
	}
}

// content is the hash of a record's value.
func content(value []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(value)
	return h.Sum64()
}
