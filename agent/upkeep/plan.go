package upkeep

import (
	"slices"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/objectstore/manifest"
)

// MergeConfig says when a shard merges.
type MergeConfig struct {
	// DataBytes is how much is merged at once, if there is as much, and when there is no need to wait for more; at most MergeDataBytesMax, unless one commit has more.
	DataBytes int64
	// CommitsMax and KeyBytesMax are how many commits may be in the coordinator, and what they may take there, before shards merge what is less.
	CommitsMax, KeyBytesMax int
	// AgeMax is how long a commit may wait, however small.
	AgeMax time.Duration
	// Span divides time: what was written in different ones of its parts is not merged into one, so that each extent may leave when it is time. 0 for one part.
	Span time.Duration
}

// DefaultMergeConfig returns what production uses. Each merge of a shard costs a PUT for its manifest, one for its segment, or five for a segment of 48 MiB, which goes in three parts, and a write of the coordinator. With 16 MiB a flush, such
// merges add two PUTs to each; and where little comes, a thousand flushes are shared by one merge of each shard that had something in them.
func DefaultMergeConfig() MergeConfig {
	return MergeConfig{DataBytes: MergeDataBytesMax, CommitsMax: 1000, KeyBytesMax: 16 << 20, AgeMax: time.Hour, Span: 7 * 24 * time.Hour}
}

// crowd is how many times as much as makes shards merge whatever they have is so much that merges cannot keep up.
const crowd = 16

// Crowded reports whether so many commits are in the coordinator, or they take so much there, that flushes must wait until merges have caught up: nothing else bounds
// them but the coordinator's quota, at which merges could not go on either.
func (c MergeConfig) Crowded(commits, bytes int) bool {
	return commits > crowd*c.CommitsMax || bytes > crowd*c.KeyBytesMax
}

// clogs reports whether a shard, whose last merges have failed that many times one after the other, is to take no writes any more: the oldest commit that it has not merged is so far back that those from there on are half of what is too
// much. half is the revision up to which commits are more than that. Then the other half is left to the shards that do merge; the first failure may have been another shard's, which was to be merged along. What is unread is not even tried
// to merge, and counts as what has failed.
func clogs(failures int, oldest index.Part, half int64) bool {
	return (failures >= clogFailures || oldest.Unread) && oldest.Revision <= half
}

// clogFailures is how many merges of a shard must have failed, one after the other.
const clogFailures = 3

// MergeDataBytesMax bounds the batches in a merged segment: with its footer the object stays below [objectstore.ObjectBytesMax].
const MergeDataBytesMax = 48 << 20

// due reports whether a shard should merge now what it has in these commits. surplus is the revision up to which there are too many commits.
func (c MergeConfig) due(parts []index.Part, surplus int64, now time.Time) bool {
	if len(parts) == 0 {
		return false
	}
	var bytes int64
	for _, p := range parts {
		bytes += p.Bytes
	}
	return bytes >= c.DataBytes || parts[0].Revision <= surplus || parts[0].CreatedMs <= now.Add(-c.AgeMax).UnixMilli()
}

// sameSpan reports whether what was written at two times may be merged into one. Retention deletes whole extents: one that grew for months, where little comes, would stay for months too long.
func (c MergeConfig) sameSpan(aMs, bMs int64) bool {
	span := c.Span.Milliseconds()
	return span <= 0 || aMs/span == bMs/span
}

// candidate is a segment that a merge may take in again.
type candidate struct {
	place     int   // in the manifest's segments
	live      int64 // bytes of it that may still be read
	createdMs int64
}

// joinable returns the segments of a manifest that may be merged with what comes next, the newest first. Each of them may if all before it are: then what it has of a partition comes right before what they have, or is the
// last. What compaction has left is not: it is written again when its partition is cleaned, and would hide how much of the partition is dirty. Nor is what is claimed.
func joinable(m *manifest.Manifest, claimed map[manifest.Segment]bool) []candidate {
	next := make([][]int32, len(m.Segments)) // where the extents are that follow those of a segment
	free := make([]bool, len(m.Segments))
	for i := range m.Segments {
		free[i] = !claimed[m.Segments[i]]
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for j := range p.Extents {
			at := p.Extents[j].Segment
			if p.Extents[j].First < p.Cleaned {
				free[at] = false
			}
			if j+1 < len(p.Extents) && p.Extents[j+1].Segment != at {
				next[at] = append(next[at], p.Extents[j+1].Segment)
			}
		}
	}
	live := m.Live()
	var all []candidate
	joins := make([]bool, len(m.Segments))
	for i := len(m.Segments) - 1; i >= 0; i-- {
		if free[i] && !slices.ContainsFunc(next[i], func(at int32) bool { return !joins[at] }) {
			joins[i] = true
			all = append(all, candidate{i, live[i], m.Segments[i].CreatedMs})
		}
	}
	return all
}

// plan is a merge: of the first commits that a shard has not merged, and of the last segments that it has.
type plan struct {
	parts []index.Part
	bytes int64 // of all that is merged
	join  []int // places in the manifest's segments, of those that are merged anew
}

// plan decides what to merge: from the oldest commit on as much as is merged at once; and of the candidates, the newest first, those that are no larger than all that comes behind them, so that small ones
// double, and a byte is merged as often as the logarithm of DataBytes over the size of a merge.
func (c MergeConfig) plan(parts []index.Part, candidates []candidate) plan {
	var p plan
	for len(p.parts) < len(parts) && (len(p.parts) == 0 || p.bytes+parts[len(p.parts)].Bytes <= c.DataBytes && c.sameSpan(parts[0].CreatedMs, parts[len(p.parts)].CreatedMs)) {
		p.bytes += parts[len(p.parts)].Bytes
		p.parts = parts[:len(p.parts)+1]
	}
	if len(p.parts) == 0 {
		return p
	}
	for _, g := range candidates {
		if g.live > p.bytes || p.bytes+g.live > c.DataBytes || !c.sameSpan(g.createdMs, p.parts[0].CreatedMs) {
			break
		}
		p.join = append(p.join, g.place)
		p.bytes += g.live
	}
	return p
}
