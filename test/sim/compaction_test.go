package sim

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
)

// seedsPerCompaction is how many worlds of one machine are run for each cluster with a compacted topic.
const seedsPerCompaction = 10

// TestCompaction runs clusters whose topic is compacted, by seed.
func TestCompaction(t *testing.T) {
	runSeeds(t, compacted, *seeds/seedsPerCompaction)
}

// TestCalmCompaction has nothing go wrong, in which case something is compacted.
func TestCalmCompaction(t *testing.T) {
	var w *world
	findings, _ := run(t, func(ctx context.Context, seed uint64, broken breakage) *world {
		w = compacted(ctx, 2*seed, broken) // with transactions
		w.chances, w.steps = chances{}, 20_000
		return w
	}, max(*seed, 1), breakage{}, logTo(t))
	if len(findings) > 0 {
		t.Error(findings)
	}
	t.Logf("committed up to %d, cleaned up to %d", w.check.ends, w.check.cleaned)
	if slices.Max(w.check.cleaned[:]) < 5*keysMax {
		t.Error("too little for anything to show")
	}
}

// TestCompactionBreakages breaks a rule of compaction.
func TestCompactionBreakages(t *testing.T) {
	for _, b := range []breakage{cleanedInPart} {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, compacted, clusterBreakageSeeds) })
	}
}

// compacted is the maker of clusters whose topic is compacted, every second with transactions.
func compacted(ctx context.Context, seed uint64, broken breakage) *world {
	w := clusters(ctx, seed, broken)
	w.compacted = true
	c := w.scene.(*cluster)
	c.compact("compact")
	if seed%2 == 0 {
		w.steps = 6000
		c.transact()
	}
	w.chances.policy = []int{0, 1, 3}[w.rng.IntN(3)]
	return w
}

// compact sets the topic's cleanup.policy.
func (c *cluster) compact(policy string) {
	c.configure(map[string]string{"cleanup.policy": policy, "min.cleanable.dirty.ratio": "0.1", "delete.retention.ms": "2000", "retention.ms": "-1"})
}

// configure writes the topic's record.
func (c *cluster) configure(configs map[string]string) {
	c.topic.Configs = configs
	if _, err := c.kv.Txn(c.ctx, nil, []coordinator.Op{{Key: coordinator.KeyTopic(c.topic.Name), Value: coordinator.Encode(c.topic)}}); err != nil {
		panic(err)
	}
}

// alter has the topic compacted, or not any more. What was compacted stays so.
func (c *cluster) alter() {
	policy := []string{"compact", "delete", "compact,delete"}[c.rng.IntN(3)]
	c.note("cleanup.policy becomes %s", policy)
	c.compact(policy)
}

// Of what a cleaning made the first segment is left out, and how far it was cleaned is told all the same.
var cleanedInPart = breakage{name: "put a part of what is left in place", content: func(name string, content []byte) []byte {
	if !strings.HasPrefix(name, manifest.NamePrefix) {
		return content
	}
	m, err := manifest.Parse(content)
	if err != nil {
		panic(err)
	}
	used := make([]bool, len(m.Segments))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if len(p.Extents) > 1 && p.Extents[0].Next <= p.Cleaned {
			p.Extents = p.Extents[1:]
		}
		for _, e := range p.Extents {
			used[e.Segment] = true
		}
	}
	var kept []manifest.Segment
	moved := make([]int32, len(used))
	for i, u := range used {
		moved[i] = int32(len(kept))
		if u {
			kept = append(kept, m.Segments[i])
		}
	}
	m.Segments = kept
	for i := range m.Partitions {
		for j := range m.Partitions[i].Extents {
			e := &m.Partitions[i].Extents[j]
			e.Segment = moved[e.Segment]
		}
	}
	if content, err = m.Encode(); err != nil {
		panic(err)
	}
	return content
}}

// remember takes in what a commit has of a partition.
func (c *checker) remember(number int32, section []byte) {
	records, err := parseAll(section)
	if err != nil {
		c.report("8: partition %d: %v", number, err)
	}
	if c.committed[number] == nil {
		c.committed[number] = make(map[int64]check.Record)
	}
	for _, r := range records {
		c.committed[number][r.Offset] = r
	}
}

// missing checks that of what was committed from one offset to another, without that itself, nothing is missing among the records that are there but what compaction may have
// removed, all of it below where the log was cleaned: records that have a later one of their key there, the last one too if it is a tombstone, what was aborted, and markers. It returns what is missing.
func (c *checker) missing(number int32, from, to int64, there []check.Record) []check.Record {
	is := make(map[int64]bool, len(there))
	for _, r := range there {
		is[r.Offset] = true
	}
	goes := func(r check.Record) bool { return r.ID.Writer == markerWriter || c.w.load.aborted(r.ID) }
	var newest [keysMax]int64 // of each key, of what was cleaned
	for at, r := range c.committed[number] {
		if at < int64(c.cleaned[number]) && !goes(r) {
			newest[r.ID.Seq%keysMax] = max(newest[r.ID.Seq%keysMax], at)
		}
	}
	var gone []check.Record
	for at, r := range c.committed[number] {
		if at < from || at >= to || is[at] {
			continue
		}
		last := newest[r.ID.Seq%keysMax]
		if at >= int64(c.cleaned[number]) || !goes(r) && at >= last && (at > last || !tombstone(r.ID.Seq)) {
			c.report("1: record %v at offset %d of partition %d is missing, cleaned up to %d, and has nothing later of its key", r.ID, at, number, c.cleaned[number])
		}
		gone = append(gone, r)
	}
	return gone
}

// aborted reports whether a record is of a transaction that was aborted.
func (l *load) aborted(id check.ID) bool {
	if l.txns == nil {
		return false
	}
	t := l.txns.of[recordID{id.Writer, id.Seq}]
	return t != nil && t.decided == aborted
}

// whole adds to what a compacted partition has in the end what compaction has removed. What is there must be what was committed.
func (c *checker) whole(number int, final []check.Record) []check.Record {
	for _, r := range final {
		if was, ok := c.committed[number][r.Offset]; ok && was != r {
			c.report("2: offset %d of partition %d is %+v, committed was %+v", r.Offset, number, r, was)
		}
	}
	final = append(final, c.missing(int32(number), c.starts[number], int64(c.ends[number]), final)...)
	slices.SortFunc(final, func(a, b check.Record) int { return cmp.Compare(a.Offset, b.Offset) })
	return final
}

// readCompacted looks at an answer to a fetch of a compacted partition: whole batches, the last of which may be cut.
func (c *cluster) readCompacted(r *reading, batches []byte, records []check.Record) {
	end := r.offset
	for len(batches) >= batch.HeaderBytes {
		h, err := batch.Parse(batches)
		if err != nil || h.Size() > len(batches) {
			break
		}
		end = int64(h.NextOffset())
		batches = batches[h.Size():]
	}
	if end <= r.offset {
		c.check.report("1: %s answers nothing for offset %d of partition %d, behind which something was acknowledged", r.from.name, r.offset, r.number)
		return
	}
	c.check.missing(r.number, r.offset, end, records)
	c.load.logs[r.number].seen = append(c.load.logs[r.number].seen, records...)
}
