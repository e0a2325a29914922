package upkeep

import (
	"cmp"
	"maps"
	"slices"

	"github.com/varve-io/varve/objectstore/manifest"
)

// sparseWorth is the part of DataBytes that must go for segments to be written anew: that is two PUTs, and another manifest.
const sparseWorth = 16

// sparse plans to write anew segments of a manifest of which more than half may not be read any more, since some of the partitions in them keep less than others. With them go older ones that are no larger than all that
// comes behind them, so that what is left of many segments does not stay as many. All of each partition follows one another. What compaction has left is not touched, nor what is claimed. The plan is
// empty if nothing is worth it.
func (c MergeConfig) sparse(m *manifest.Manifest, claimed map[manifest.Segment]bool) plan {
	live := m.Live()
	isSparse := func(at int) bool { return 2*live[at] < m.Segments[at].FooterPos }
	extents := extentsOf(m)
	var order []int // from new to old, by what is in them
	for i := range m.Segments {
		if extents[i] != nil && !claimed[m.Segments[i]] {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(m.Segments[b].CreatedMs, m.Segments[a].CreatedMs), cmp.Compare(b, a))
	})
	tried := make([]bool, len(m.Segments))
	for n, from := range order {
		if !isSparse(from) || tried[from] {
			continue
		}
		var p plan
		var dead int64
		first := make(map[int32]int32) // of each partition, the first extent that is in the plan
		for _, at := range order[n:] {
			follow := !slices.ContainsFunc(extents[at], func(e extentOf) bool {
				next, ok := first[e.partition]
				return ok && next != e.extent+1
			})
			if !follow || !c.sameSpan(m.Segments[from].CreatedMs, m.Segments[at].CreatedMs) || p.bytes+live[at] > c.DataBytes || !isSparse(at) && live[at] > p.bytes {
				continue
			}
			for _, e := range extents[at] {
				first[e.partition] = e.extent
			}
			p.join = append(p.join, at)
			p.bytes += live[at]
			dead += m.Segments[at].FooterPos - live[at]
			tried[at] = true
		}
		if dead >= c.DataBytes/sparseWorth {
			return p
		}
	}
	return plan{}
}

// extentOf is an extent of a segment.
type extentOf struct{ partition, extent int32 } // places in the manifest, and in the partition

// extentsOf returns what each segment of a manifest has, the last of each partition first; nil for those in which something was cleaned.
func extentsOf(m *manifest.Manifest) [][]extentOf {
	all := make([][]extentOf, len(m.Segments))
	cleaned := make([]bool, len(m.Segments))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for j, e := range slices.Backward(p.Extents) {
			all[e.Segment] = append(all[e.Segment], extentOf{int32(i), int32(j)})
			cleaned[e.Segment] = cleaned[e.Segment] || e.First < p.Cleaned
		}
	}
	for i := range all {
		if cleaned[i] {
			all[i] = nil
		}
	}
	return all
}

// sparse begins to write the sparse segments of a shard anew, of those that are led in turn; nil if there are none. A manifest is looked at once.
func (m *Merger) sparse() *work {
	now, ids := m.deps.Now(), slices.Sorted(maps.Keys(m.deps.Manifests.records()))
	after, _ := slices.BinarySearch(ids, m.rewrote+1)
	for _, id := range slices.Concat(ids[after:], ids[:after]) {
		sh := m.deps.Manifests.led(id)
		if sh == nil || !m.deps.Leads(id) || m.rests(id, now) {
			continue
		}
		old := sh.newest()
		if m.looked[id] == old.Name() {
			continue
		}
		p := m.cfg.sparse(old, sh.claimed())
		if len(p.join) == 0 {
			m.looked[id] = old.Name()
			continue
		}
		if w := m.work(id, sh, old, p); w != nil {
			m.rewrote = id
			return w
		}
	}
	return nil
}
