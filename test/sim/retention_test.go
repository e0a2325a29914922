package sim

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
)

const (
	// seedsPerRetention is how many worlds of one machine are run for each cluster whose topic has a retention.
	seedsPerRetention = 20
	// retentionBytes is how much of each partition is kept there, about a dozen batches.
	retentionBytes = 4000
)

// TestRetention runs clusters whose topic keeps some bytes only, and whose records are deleted by request too, by seed.
func TestRetention(t *testing.T) {
	runSeeds(t, retained, *seeds/seedsPerRetention)
}

// TestCalmRetention has nothing go wrong, in which case much is deleted, and sparse segments are written anew: in one of a few worlds, or in that of a seed.
func TestCalmRetention(t *testing.T) {
	var w *world
	for n := range uint64(5) {
		findings, _ := run(t, func(ctx context.Context, seed uint64, broken breakage) *world {
			w = retained(ctx, seed, broken)
			w.chances, w.steps = chances{}, 20_000
			return w
		}, max(*seed, n+1), breakage{}, logTo(t))
		if len(findings) > 0 {
			t.Fatal(findings)
		}
		t.Logf("committed up to %d, deleted up to %d, %d segments rewritten", w.check.ends, w.check.starts, w.check.rewritten)
		if *seed > 0 || slices.Max(w.check.starts[:]) > 50 && w.check.rewritten > 0 {
			return
		}
	}
	t.Error("too little for anything to show")
}

// TestRetentionBreakages breaks a rule of retention at a time.
func TestRetentionBreakages(t *testing.T) {
	for _, b := range []breakage{retainsLess, startsForgotten} {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, retained, clusterBreakageSeeds) })
	}
}

// Everything that is merged is taken for past its retention.
var retainsLess = breakage{name: "delete everything that is merged", content: changedManifests(func(p *manifest.Partition) { p.LogStartOffset = p.End })}

var startsForgotten = breakage{name: "leave log start offsets out of manifests", content: changedManifests(func(p *manifest.Partition) { p.LogStartOffset = 0 })}

// retained is the maker of clusters whose topic has a retention. Partitions share shards, and so segments.
func retained(ctx context.Context, seed uint64, broken breakage) *world {
	w := clustersOf(ctx, seed, broken, 2)
	c := w.scene.(*cluster)
	c.retention = time.Second
	w.check.retains = true
	c.configure(map[string]string{"retention.bytes": strconv.Itoa(retentionBytes), "retention.ms": "-1"})
	return w
}

// deleteSome asks for the deletion of records up to one that was acknowledged.
func (c *cluster) deleteSome() {
	number := int32(c.rng.IntN(1 + c.rng.IntN(partitions))) // from some more than from others, so that little is left of segments
	n, ok := c.choose(c.shardOf(number)).(*node)
	if floor := c.load.logs[number].floor; ok && floor >= 0 {
		before := c.rng.Int64N(floor + 1)
		c.note("delete what is before %d of %d", before, number)
		c.check.asked[number] = max(c.check.asked[number], before)
		n.deleteRecords(number, before)
	}
}

// started checks that a log starts later, and for a reason: somebody has asked for it, or there is enough behind.
func (c *checker) started(number int32, start int64) {
	was := c.starts[number]
	c.starts[number] = start
	switch {
	case start < was:
		c.report("2: partition %d starts at %d, did at %d", number, start, was)
	case start == was || !c.retains || start <= c.asked[number]:
	case c.bytesFrom(number, start) < retentionBytes:
		c.report("1: partition %d starts at %d, did at %d, and has %d bytes behind that, retained are %d", number, start, was, c.bytesFrom(number, start), retentionBytes)
	}
}

// countRewritten counts the segments that a manifest has and the one before had not.
func (c *checker) countRewritten(before, name string) {
	was, is := c.readManifest(before), c.readManifest(name)
	if was == nil || is == nil {
		return // which is reported
	}
	for _, g := range is.Segments {
		if !slices.Contains(was.Segments, g) {
			c.rewritten++
		}
	}
}

// bytesFrom is how many bytes a partition may have from an offset on: what is committed there, and whatever was sent and is not committed.
func (c *checker) bytesFrom(number int32, start int64) (bytes int64) {
	for _, s := range c.w.load.logs[number].sends {
		bytes += int64(len(s.bytes))
	}
	for _, b := range c.batches[number] {
		if int64(b.next) <= start {
			bytes -= b.size
		}
	}
	return bytes
}

// deleted are the records before an offset as they were committed.
func (c *checker) deleted(number int, start int64) (records []check.Record) {
	for at, r := range c.committed[number] {
		if at < start {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b check.Record) int { return cmp.Compare(a.Offset, b.Offset) })
	return records
}

// committedBatch is one of a commit.
type committedBatch struct {
	next protocol.Offset
	size int64
}

// count takes in the batches that a commit has of a partition.
func (c *checker) count(number int32, section []byte) {
	for len(section) > 0 {
		h, err := batch.Parse(section)
		if err != nil {
			c.report("8: partition %d: %v", number, err)
			return
		}
		c.batches[number] = append(c.batches[number], committedBatch{next: h.NextOffset(), size: int64(h.Size())})
		section = section[h.Size():]
	}
}
