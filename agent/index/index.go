// Package index knows, for each partition, which committed segments hold which offsets: what an agent learns
// from the commits that it follows. It holds ranges of offsets, not batches; those are in the segments' footers.
//
// The ranges of a partition are contiguous and never change; they come in order, from its leaders' commits, and leave when their topic
// is deleted. An [Index] may be used concurrently.
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
	// Order counts the objects as [Index.Add] first saw them, from 1. Of two that have a partition in common, the one with the earlier offsets
	// comes first; their logs and commits say nothing about that, since an older log may get the shards after a younger one.
	Order     uint64
	Name      string
	Size      int64 // bytes
	FooterPos int64 // where its footer begins; the footer ends at Size
	Log       uint64
	Commit    uint64
	CreatedMs int64 // by the writer's clock, Unix milliseconds
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

// Index is the index of all partitions.
type Index struct {
	mu         sync.RWMutex
	objects    uint64                    // that were added
	partitions map[partition.ID][]Extent // ascending, contiguous
}

// New returns an empty index.
func New() *Index { return &Index{partitions: make(map[partition.ID][]Extent)} }

// Add adds an extent of a partition. Adding one that is there already does nothing; one that does not continue
// the partition is an error, for commits come in order of offsets.
func (x *Index) Add(id partition.ID, e Extent) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := x.partitions[id]
	if n := len(list); n > 0 {
		end := list[n-1].Next
		switch {
		case e.First < end:
			if at := find(list, e.First); at < n && list[at].First == e.First && list[at].Object.Name == e.Object.Name {
				return nil
			}
			return fmt.Errorf("index %s/%d: offsets [%d,%d) of %s overlap, the log ends at %d",
				id.Topic, id.Partition, e.First, e.Next, e.Object.Name, end)
		case e.First > end:
			return fmt.Errorf("index %s/%d: offsets [%d,%d) of %s leave a gap, the log ends at %d",
				id.Topic, id.Partition, e.First, e.Next, e.Object.Name, end)
		}
	}
	if e.Object.Order == 0 {
		x.objects++
		e.Object.Order = x.objects
	}
	x.partitions[id] = append(list, e)
	return nil
}

// find returns the index of the extent that holds offset, or where it would be.
func find(list []Extent, offset protocol.Offset) int {
	return sort.Search(len(list), func(i int) bool { return list[i].Next > offset })
}

// Find returns the extent that holds offset.
func (x *Index) Find(id partition.ID, offset protocol.Offset) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := x.partitions[id]
	at := find(list, offset)
	if at == len(list) || list[at].First > offset {
		return Extent{}, false
	}
	return list[at], true
}

// End returns the offset after the last that is committed; 0 if nothing is.
func (x *Index) End(id partition.ID) protocol.Offset {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := x.partitions[id]
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Next
}

// Range is how far a partition's committed records reach. It is zero if there are none.
type Range struct {
	First      protocol.Offset // of the first that was ever committed, below the log start offset or not
	End        protocol.Offset // after the last
	LastStable protocol.Offset // that a reader of committed transactions may read up to; at most End
}

// Range returns how far the committed records of a partition reach.
func (x *Index) Range(id partition.ID) Range {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := x.partitions[id]
	if len(list) == 0 {
		return Range{}
	}
	last := &list[len(list)-1]
	return Range{First: list[0].First, End: last.Next, LastStable: min(last.LastStable, last.Next)}
}

// Extents returns a copy of a partition's extents, in order.
func (x *Index) Extents(id partition.ID) []Extent {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.partitions[id])
}

// FindTime returns the first extent, from offset from on, that has a record of at least that timestamp.
func (x *Index) FindTime(id partition.ID, from protocol.Offset, ts int64) (Extent, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := x.partitions[id]
	for _, e := range list[find(list, from):] {
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
	list := x.partitions[id]
	var best Extent
	found := false
	for _, e := range list[find(list, from):] {
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
	list := x.partitions[id]
	for _, e := range list[find(list, from):] {
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
