// Package index knows, for each partition, which segments hold which committed offsets: what an agent learns from the manifests of shards and from the commits that
// it follows. It holds ranges of offsets, not batches; those are in the segments' footers.
//
//	0 ... log start ...... merged end ............... end
//	      \_ of the manifest _/\_ of commits, in order _/
//
// What a manifest says replaces what commits said of the same offsets ([Index.Replace]); a commit that has left the coordinator takes with it what no manifest has replaced here
// ([Index.Remove]), and then the manifest must be read to know of it: only who leads a shard always has its newest.
//
// An [Index] may be used concurrently.
package index

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
)

// Object is a segment in the bucket. It is shared by the extents in it and never changes once it is in an index.
type Object struct {
	Name      string
	Size      int64 // bytes
	FooterPos int64 // where its footer begins; the footer ends at Size
	CreatedMs int64 // by the writer's clock, Unix milliseconds
	// Revision is that of the coordinator which wrote the commit; 0 for a merged segment. Of two that have a partition in common, the one with the earlier offsets has the lower
	// one; their logs and commits say nothing about that, since an older log may get the shards after a younger one.
	Revision int64
}

// Extent is what one segment holds of one partition.
type Extent struct {
	First        protocol.Offset
	Next         protocol.Offset // one past the last
	LastStable   protocol.Offset // as of Next: where the first transaction begins that is open there
	Pos, Size    int64           // byte range of the section in the object
	MaxTimestamp int64           // of its records, Unix milliseconds
	Epoch        protocol.LeaderEpoch
	Shard        uint32
	Object       *Object
}

// Merged is what a manifest says of one partition.
type Merged struct {
	Start      protocol.Offset // log start offset
	End        protocol.Offset // everything committed below is in Extents, or gone for good
	LastStable protocol.Offset // as of End
	Cleaned    protocol.Offset // below it the log was compacted
	Extents    []Extent        // ascending; compacted partitions have gaps between them, and before End
}

// entry is one partition.
type entry struct {
	list   []Extent // ascending; from commits on contiguous
	merged int      // how many of list are of the manifest
	// start, end and stable are what the manifest says; zero without one.
	start, end, stable protocol.Offset
	replaced           uint64 // how often a manifest has said anew what is in list
	// seen and seenStable are how far it is known to reach, and to be stable there, though a commit has left and the manifest that has its records is not here yet.
	seen, seenStable protocol.Offset
}

// last returns the offset after the last that is known.
func (e *entry) last() protocol.Offset {
	if n := len(e.list); n > e.merged {
		return e.list[n-1].Next
	}
	return e.end
}

// Index is the index of all partitions.
type Index struct {
	mu         sync.RWMutex
	partitions map[partition.ID]*entry
}

// New returns an empty index.
func New() *Index { return &Index{partitions: make(map[partition.ID]*entry)} }

// Add adds an extent of a commit. Adding one that is there already, or that is merged, does nothing; one that does not continue
// the partition is an error, for commits come in order of offsets. But those of a revision up to merged may be missing, since the shard has merged them: then what was before is merged too, and forgotten.
func (x *Index) Add(id partition.ID, e Extent, merged int64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.partitions[id]
	if p == nil {
		p = new(entry)
		x.partitions[id] = p
	}
	end, last := p.last(), int64(0) // and the revision of what ends there, if a commit did
	if n := len(p.list); n > p.merged {
		last = p.list[n-1].Object.Revision
	}
	switch known := len(p.list) > p.merged || p.end > 0; {
	case known && e.Next <= p.end:
		return nil
	case known && e.First < end:
		if at := find(p.list, e.First); at < len(p.list) && p.list[at].First == e.First && p.list[at].Object.Name == e.Object.Name {
			return nil
		}
		return fmt.Errorf("index %s/%d: offsets [%d,%d) of %s overlap, the log ends at %d",
			id.Topic, id.Partition, e.First, e.Next, e.Object.Name, end)
	case len(p.list) > p.merged && e.First > end && last > 0 && last <= merged:
		p.list = slices.Clone(p.list[:p.merged])
	case len(p.list) > p.merged && e.First > end:
		return fmt.Errorf("index %s/%d: offsets [%d,%d) of %s leave a gap, the log ends at %d",
			id.Topic, id.Partition, e.First, e.Next, e.Object.Name, end)
	}
	p.list = append(p.list, e)
	return nil
}

// Replace takes in what a manifest says of a partition, over what commits said of the same offsets and what the manifest before it said.
// The manifests of a shard must come in their order.
func (x *Index) Replace(id partition.ID, m Merged) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.partitions[id]
	if p == nil {
		p = new(entry)
		x.partitions[id] = p
	}
	tail := p.list[p.merged:]
	for len(tail) > 0 && tail[0].Next <= m.End {
		tail = tail[1:]
	}
	if len(tail) > 0 && tail[0].First < m.End {
		return fmt.Errorf("index %s/%d: the manifest ends at %d, within [%d,%d) of %s", id.Topic, id.Partition, m.End, tail[0].First, tail[0].Next, tail[0].Object.Name)
	}
	p.list, p.merged = slices.Concat(m.Extents, tail), len(m.Extents)
	p.start, p.end, p.stable = m.Start, m.End, m.LastStable
	if m.Cleaned > 0 {
		p.replaced++
	}
	return nil
}

// Replaced returns how often [Index.Replace] was called for a partition that is compacted. While that stays the same, what was found once is what is found again: compaction takes batches of transactions
// away together with the markers that say what became of them.
func (x *Index) Replaced(id partition.ID) uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.partitions[id]; p != nil {
		return p.replaced
	}
	return 0
}

// Remove takes out what a commit that has left the coordinator said of a partition, unless a manifest has replaced it.
func (x *Index) Remove(id partition.ID, object string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := x.partitions[id]
	if p == nil {
		return
	}
	at := slices.IndexFunc(p.list[p.merged:], func(e Extent) bool { return e.Object.Name == object })
	if at < 0 {
		return
	}
	// Those before it have left too, or will: commits leave in any order, but what is before a merged one is merged.
	if gone := &p.list[p.merged+at]; gone.Next > p.seen {
		p.seen, p.seenStable = gone.Next, min(gone.LastStable, gone.Next)
	}
	p.list = slices.Delete(p.list, p.merged, p.merged+at+1)
}

// find returns the index of the first extent that ends after offset.
func find(list []Extent, offset protocol.Offset) int {
	return sort.Search(len(list), func(i int) bool { return list[i].Next > offset })
}

// Find returns the extent that holds offset, or, in a gap that compaction has left, the next one.
func (x *Index) Find(id partition.ID, offset protocol.Offset) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p := x.partitions[id]
	if p == nil {
		return Extent{}, false
	}
	at := find(p.list, offset)
	if at == len(p.list) {
		return Extent{}, false
	}
	e := p.list[at]
	compacted := offset >= p.start && offset < p.end && (at < p.merged || e.First == p.end)
	return e, e.First <= offset || compacted
}

// Next returns the extents from the one on that holds offset or comes after it, n at most.
func (x *Index) Next(id partition.ID, offset protocol.Offset, n int) []Extent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := x.from(id, offset)
	return slices.Clone(list[:min(n, len(list))])
}

// Beyond returns where a gap ends that compaction has left behind all extents: what comes from there on is not committed yet. ok is false if offset is in no such gap.
func (x *Index) Beyond(id partition.ID, offset protocol.Offset) (next protocol.Offset, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p := x.partitions[id]
	if p == nil || offset < p.start || offset >= p.end || find(p.list, offset) < len(p.list) {
		return 0, false
	}
	return p.end, true
}

// End returns the offset after the last that is committed; 0 if nothing is.
func (x *Index) End(id partition.ID) protocol.Offset { return x.Range(id).End }

// Range is how far a partition's committed records reach. It is zero if there are none.
type Range struct {
	First      protocol.Offset // the first that is known here, below the log start offset or not
	End        protocol.Offset // after the last
	LastStable protocol.Offset // that a reader of committed transactions may read up to; at most End
}

// Range returns how far the committed records of a partition reach.
func (x *Index) Range(id partition.ID) Range {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p := x.partitions[id]
	if p == nil {
		return Range{}
	}
	r := Range{First: p.start, End: p.last(), LastStable: p.stable}
	if p.end == 0 && len(p.list) > 0 {
		r.First = max(p.start, p.list[0].First)
	}
	if n := len(p.list); n > p.merged {
		r.LastStable = min(p.list[n-1].LastStable, r.End)
	}
	if p.seen > r.End {
		r.End, r.LastStable = p.seen, p.seenStable
	}
	return r
}

// Extents returns a copy of a partition's extents, in order.
func (x *Index) Extents(id partition.ID) []Extent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.partitions[id]; p != nil {
		return slices.Clone(p.list)
	}
	return nil
}

// Tail returns a copy of the extents of a partition that are not merged, in order.
func (x *Index) Tail(id partition.ID) []Extent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.partitions[id]; p != nil {
		return slices.Clone(p.list[p.merged:])
	}
	return nil
}

// In returns the extent of a partition that a commit's segment has and that is not merged.
func (x *Index) In(id partition.ID, object string) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p := x.partitions[id]
	if p == nil {
		return Extent{}, false
	}
	at := slices.IndexFunc(p.list[p.merged:], func(e Extent) bool { return e.Object.Name == object })
	if at < 0 {
		return Extent{}, false
	}
	return p.list[p.merged+at], true
}

// from returns a partition's extents that end after an offset. The caller holds mu.
func (x *Index) from(id partition.ID, offset protocol.Offset) []Extent {
	p := x.partitions[id]
	if p == nil {
		return nil
	}
	return p.list[find(p.list, offset):]
}

// FindTime returns the first extent, from offset from on, that has a record of at least that timestamp.
func (x *Index) FindTime(id partition.ID, from protocol.Offset, ts int64) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, e := range x.from(id, from) {
		if e.MaxTimestamp >= ts {
			return e, true
		}
	}
	return Extent{}, false
}

// LargestTimestamp returns the extent with the largest timestamp, the first such, from offset from on.
func (x *Index) LargestTimestamp(id partition.ID, from protocol.Offset) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var best Extent
	found := false
	for _, e := range x.from(id, from) {
		if !found || e.MaxTimestamp > best.MaxTimestamp {
			best, found = e, true
		}
	}
	return best, found
}

// Size returns the bytes of the extents that end after offset from.
func (x *Index) Size(id partition.ID, from protocol.Offset) int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var bytes int64
	for _, e := range x.from(id, from) {
		bytes += e.Size
	}
	return bytes
}

// DropTopic forgets all partitions of a topic.
func (x *Index) DropTopic(topic protocol.TopicID, partitions int32) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p := range partitions {
		delete(x.partitions, partition.ID{Topic: topic, Partition: p})
	}
}

// Partitions returns the partitions that have extents, ordered.
func (x *Index) Partitions() []partition.ID {
	x.mu.RLock()
	all := make([]partition.ID, 0, len(x.partitions))
	for id := range x.partitions {
		all = append(all, id)
	}
	x.mu.RUnlock()
	slices.SortFunc(all, func(a, b partition.ID) int {
		return cmp.Or(slices.Compare(a.Topic[:], b.Topic[:]), cmp.Compare(a.Partition, b.Partition))
	})
	return all
}
