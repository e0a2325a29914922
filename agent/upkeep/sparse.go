package upkeep

import (
	"cmp"
	"maps"
	"slices"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
)

const (
	// sparseWorth is the part of DataBytes that a shard has at least of what may not be read any more when segments are written anew: that is two PUTs, and another manifest.
	sparseWorth = 16
	// sparseMax is how many segments are written anew at once.
	sparseMax = 64
)

// sparse plans to write anew segments of a manifest of which more than half may not be read any more, since some of the partitions in them keep less than others: those from which most goes. With them go older ones that are
// no larger than all that comes behind them, so that what is left of many segments does not stay as many. All of each partition follows one another. What compaction has left is not touched, nor
// what is claimed. The plan is empty if nothing is worth it.
func (c MergeConfig) sparse(m *manifest.Manifest, claimed map[manifest.Segment]bool) (best plan) {
	live := m.Live()
	dead := func(at int) int64 { return m.Segments[at].FooterPos - live[at] }
	isSparse := func(at int) bool { return live[at] < dead(at) }
	worth := func(places []int) bool {
		var sum int64
		for _, at := range places {
			if isSparse(at) {
				sum += dead(at)
			}
		}
		return sum >= c.DataBytes/sparseWorth
	}
	var order []int // from new to old, by what is in them
	for i := range m.Segments {
		if !claimed[m.Segments[i]] {
			order = append(order, i)
		}
	}
	if !worth(order) { // mostly; and extents are many
		return plan{}
	}
	extents := extentsOf(m)
	order = slices.DeleteFunc(order, func(at int) bool { return extents[at] == nil })
	if !worth(order) {
		return plan{}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(m.Segments[b].CreatedMs, m.Segments[a].CreatedMs), cmp.Compare(b, a))
	})
	tried := make([]bool, len(m.Segments))
	var most int64
	for n, from := range order {
		if !isSparse(from) || tried[from] {
			continue
		}
		var p plan
		var gone int64
		first := make(map[int32]int32) // of each partition, the first extent that is in the plan
		for _, at := range order[n:] {
			if len(p.join) == sparseMax || !c.sameSpan(m.Segments[from].CreatedMs, m.Segments[at].CreatedMs) {
				break
			}
			if p.bytes+live[at] > c.DataBytes || !isSparse(at) && live[at] > p.bytes || !follow(first, extents[at]) {
				continue
			}
			for _, e := range extents[at] {
				first[e.partition] = e.extent
			}
			p.join = append(p.join, at)
			p.bytes += live[at]
			gone += dead(at)
			tried[at] = true
		}
		if gone > most {
			best, most = p, gone
		}
	}
	return best
}

// follow reports whether of each partition what is in a plan, which begins with these extents, comes right behind what a segment has.
func follow(first map[int32]int32, extents []extentOf) bool {
	for _, e := range extents {
		if next, ok := first[e.partition]; ok && next != e.extent+1 {
			return false
		}
	}
	return true
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
	now, records := m.deps.Now(), m.deps.Manifests.records()
	maps.DeleteFunc(m.looked, func(id coordinator.ShardID, _ string) bool { _, led := records[id]; return !led })
	ids := slices.Sorted(maps.Keys(records))
	after, _ := slices.BinarySearch(ids, m.rewrote+1)
	for _, id := range slices.Concat(ids[after:], ids[:after]) {
		sh := m.deps.Manifests.led(id)
		if sh == nil || !m.deps.Leads(id) || rests(m.spoiled[id], now, sparseRest) {
			continue
		}
		old, claimed := sh.newest(), sh.claimed()
		if m.looked[id] == old.Name() {
			continue
		}
		p := m.cfg.sparse(old, claimed)
		if len(p.join) == 0 {
			if len(claimed) == 0 {
				m.looked[id] = old.Name()
			}
			continue
		}
		if w := m.work(id, sh, old, p); w != nil {
			m.rewrote = id
			return w
		}
	}
	return nil
}
