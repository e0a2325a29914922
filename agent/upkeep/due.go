package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// look is what was found when a shard was looked at. It is good as long as the shard has that manifest, its topics have those rules, and the time is before untilMs.
type look struct {
	shard   *shard
	of      *manifest.Manifest
	rules   map[protocol.TopicID]ruled
	untilMs int64     // when time alone may change something; 0 for at once
	ratio   float64   // the largest of those that have something to clean
	parts   []cleaned // that are compacted, if some of them are due, and the one that is due and has the most to clean first; else nil
}

// ruled is what [CleanerDeps.Rules] says of a topic.
type ruled struct {
	CleanRules
	ok bool
}

// good reports whether there is no need to look again.
func (c *Cleaner) good(l *look, m *manifest.Manifest, nowMs int64) bool {
	if l == nil || l.of != m || nowMs >= l.untilMs {
		return false
	}
	for topic, was := range l.rules {
		if r, ok := c.deps.Rules(topic); was != (ruled{r, ok}) {
			return false
		}
	}
	return true
}

// begin finds what to clean, and claims it; nil if nothing is due, or what is due is being merged.
func (c *Cleaner) begin(ctx context.Context) *cleaning {
	now := c.deps.Now()
	maps.DeleteFunc(c.failed, func(id partition.ID, f failure) bool {
		_, ok := c.deps.Rules(id.Topic)
		return !ok || !c.deps.Leads(f.shard)
	})
	c.resting.Store(int64(len(c.failed)))
	looks, ratio := make(map[coordinator.ShardID]*look), 0.0
	var due []coordinator.ShardID
	for id := range c.deps.Manifests.records() {
		sh := c.deps.Manifests.led(id)
		if sh == nil || !c.deps.Leads(id) {
			continue
		}
		l, m := c.looks[id], sh.newest()
		if !c.good(l, m, now.UnixMilli()) {
			l = c.judge(ctx, sh, m, now)
		}
		looks[id], ratio = l, max(ratio, l.ratio)
		if len(l.parts) > 0 {
			due = append(due, id)
		}
	}
	c.looks = looks
	c.ratio.Store(math.Float64bits(ratio))
	slices.SortFunc(due, func(a, b coordinator.ShardID) int {
		return cmp.Or(cmp.Compare(looks[b].parts[0].Ratio(), looks[a].parts[0].Ratio()), cmp.Compare(a, b))
	})
	for _, id := range due {
		if w := c.claim(id, looks[id], now); w != nil {
			return w
		}
		delete(c.looks, id) // a merge was faster: others first
	}
	return nil
}

// judge looks at the partitions of a shard.
func (c *Cleaner) judge(ctx context.Context, sh *shard, m *manifest.Manifest, now time.Time) *look {
	l := &look{shard: sh, of: m, rules: make(map[protocol.TopicID]ruled), untilMs: math.MaxInt64}
	claimed := sh.claimed()
	due := false
	for i := range m.Partitions {
		p := &m.Partitions[i]
		rules, known := l.rules[p.Topic]
		if !known {
			rules.CleanRules, rules.ok = c.deps.Rules(p.Topic)
			l.rules[p.Topic] = rules
		}
		id := partition.ID{Topic: p.Topic, Partition: p.Partition}
		switch until := c.failed[id].until; {
		case !rules.ok || len(p.Extents) == 0:
			continue
		case now.Before(until):
			l.untilMs = min(l.untilMs, until.UnixMilli())
			continue
		}
		one := cleaned{id: id, name: p.TopicName, of: p, rules: rules.CleanRules}
		pieces, err := c.pieces(ctx, l, &one, claimed, now.UnixMilli())
		if errors.Is(err, errChanged) {
			l.untilMs = 0
			continue
		}
		if err != nil {
			c.fail(ctx, coordinator.ShardID(m.Shard), []cleaned{one}, !away(err), fmt.Errorf("how old it is: %w", err))
			l.untilMs = 0
			continue
		}
		one.Range = one.rules.Range(compact.Log{Start: p.LogStartOffset, Cleaned: p.Cleaned, LastStable: p.LastStable, Pieces: pieces}, now.UnixMilli())
		l.ratio, due = max(l.ratio, one.Ratio()), due || one.Due
		l.parts = append(l.parts, one)
	}
	if !due {
		l.parts = nil
	}
	rank := func(p *cleaned) float64 {
		if p.Due {
			return 1 + p.Ratio()
		}
		return p.Ratio()
	}
	slices.SortStableFunc(l.parts, func(a, b cleaned) int { return cmp.Compare(rank(&b), rank(&a)) })
	return l
}

// again has the shard looked at again at that time, unless that is past, or too far away for a number.
func (l *look) again(ms, nowMs int64) {
	if ms > nowMs {
		l.untilMs = min(l.untilMs, ms)
	}
}

// pieces returns what the log has, up to the first segment that is claimed. The first extent that is too young in part is two pieces: merges make extents of old and new, which as a whole might never be old enough.
func (c *Cleaner) pieces(ctx context.Context, l *look, of *cleaned, claimed map[manifest.Segment]bool, nowMs int64) ([]compact.Piece, error) {
	p, rules := of.of, &of.rules
	all := make([]compact.Piece, 0, len(p.Extents)+1)
	from, first, young := max(p.Cleaned, p.LogStartOffset), rules.LagMsMax < math.MaxInt64, int64(math.MaxInt64)
	if rules.LagMsMin > 0 {
		young = nowMs - rules.LagMsMin
	}
	for j := range p.Extents {
		e := &p.Extents[j]
		if claimed[l.of.Segments[e.Segment]] {
			l.untilMs = 0
			break
		}
		piece := compact.Piece{First: e.First, Next: e.Next, Bytes: e.Size, MaxTimestampMs: e.MaxTimestamp}
		if e.Next > from && (first || e.MaxTimestamp > young) {
			d, err := c.dates(ctx, l, p, e, from, young)
			if err != nil {
				return nil, err
			}
			if first {
				piece.TimestampMs, first = d.firstMs, false
				l.again(d.firstMs+rules.LagMsMax+1, nowMs)
			}
			piece.MaxTimestampMs = min(piece.MaxTimestampMs, young)
			if d.young < e.Next {
				l.again(d.youngMs+rules.LagMsMin, nowMs)
				old := piece
				old.Next = max(d.young, e.First)
				old.Bytes = int64(float64(e.Size) * (float64(old.Next-e.First) / float64(e.Next-e.First)))
				all = append(all, old)
				piece.First, piece.Bytes, piece.MaxTimestampMs = old.Next, e.Size-old.Bytes, d.youngMs
				young = math.MaxInt64 // what follows is beyond the bound
			}
		}
		all = append(all, piece)
	}
	return all, nil
}

// dates are timestamps of batches in an extent, beyond where it is clean.
type dates struct {
	firstMs int64 // of the first
	young   protocol.Offset
	youngMs int64 // of the first that is younger than asked for, at offset young; that is the extent's end if there is none
}

// dates looks into an extent's footer.
func (c *Cleaner) dates(ctx context.Context, l *look, p *manifest.Partition, e *manifest.Extent, from protocol.Offset, youngMs int64) (dates, error) {
	d := dates{young: e.Next}
	s, _, err := c.section(ctx, l.shard, l.of, p, e)
	if err != nil {
		return d, err
	}
	for b, err := range s.All() {
		switch {
		case err != nil:
			return d, err
		case b.Next() <= from:
			continue
		case d.firstMs <= 0:
			d.firstMs = b.MaxTimestamp
		}
		if b.MaxTimestamp > youngMs {
			d.young, d.youngMs = b.Offset, b.MaxTimestamp
			return d, nil
		}
	}
	return d, nil
}

// claim begins a cleaning of the first that is due, and of others of the shard, as many as together are small: those that are due too; and those of which the better part is in segments
// that would be kept for less than half of what they have.
func (c *Cleaner) claim(id coordinator.ShardID, l *look, now time.Time) *cleaning {
	w := &cleaning{c: c, nowMs: now.UnixMilli(), output: output{
		manifests: c.deps.Manifests, store: c.deps.Store, footers: c.deps.Footers, cluster: c.deps.Cluster, builder: &c.builder,
		id: id, shard: l.shard, old: l.of, epoch: protocol.LeaderEpoch(l.shard.newestRecord().Epoch),
	}}
	live, bytes := l.of.Live(), int64(0)
	places := make(map[int32]bool)
	for i := range l.parts {
		p := &l.parts[i]
		size, wasted := p.DirtyBytes+p.CleanBytes, int64(0)
		for _, e := range p.of.Extents {
			if e.First < p.Bound && 2*live[e.Segment] < l.of.Segments[e.Segment].Size {
				wasted += e.Size
			}
		}
		if i > 0 && (bytes+size > c.cfg.DataBytes || !p.Due && (size == 0 || 2*wasted < size)) {
			continue
		}
		bytes += size
		for _, e := range p.of.Extents {
			if e.First < p.Bound {
				places[e.Segment] = true
				live[e.Segment] -= e.Size
			}
		}
		w.parts = append(w.parts, *p)
	}
	for at := range places {
		g := w.old.Segments[at]
		w.claimed = append(w.claimed, g)
		w.created = max(w.created, g.CreatedMs)
	}
	if l.shard.newest() != l.of || !l.shard.claim(w.claimed) {
		return nil
	}
	return w
}
