package upkeep

import (
	"time"

	"github.com/varve-io/varve/agent/index"
)

// MergeConfig says when a shard merges.
type MergeConfig struct {
	// DataBytes is how much is merged at once, if there is as much, and when there is no need to wait for more; at most MergeDataBytesMax, unless one commit has more.
	DataBytes int64
	// CommitsMax and KeyBytesMax are how many commits may be in the coordinator, and what they may take there, before shards merge what is less.
	CommitsMax, KeyBytesMax int
	// AgeMax is how long a commit may wait, however small.
	AgeMax time.Duration
}

// DefaultMergeConfig returns what production uses. Each merge of a shard costs two PUTs and a write of the coordinator. With 16 MiB a flush, merges of 48 MiB add less than one PUT to each; and where little comes, a thousand flushes are
// shared by one merge of each shard that had something in them.
func DefaultMergeConfig() MergeConfig {
	return MergeConfig{DataBytes: MergeDataBytesMax, CommitsMax: 1000, KeyBytesMax: 16 << 20, AgeMax: time.Hour}
}

// crowd is how many times as much as makes shards merge whatever they have is so much that merges cannot keep up.
const crowd = 16

// Crowded reports whether so many commits are in the coordinator, or they take so much there, that flushes must wait until merges have caught up: nothing else bounds
// them but the coordinator's quota, at which merges could not go on either.
func (c MergeConfig) Crowded(commits, bytes int) bool {
	return commits > crowd*c.CommitsMax || bytes > crowd*c.KeyBytesMax
}

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

// plan is a merge: of the first commits that a shard has not merged, and of the last segments that it has.
type plan struct {
	parts []index.Part
	bytes int64 // of all that is merged
	join  int   // place in the manifest's segments from which on they are merged anew
}

// plan decides what to merge: from the oldest commit on as much as is merged at once; and of the segments at the manifest's end those that are no larger than all that comes behind them, so that small ones
// double, and a byte is merged as often as the logarithm of DataBytes over the size of a merge. live are the bytes of each segment that may still be read.
func (c MergeConfig) plan(parts []index.Part, live []int64) plan {
	var bytes int64
	n := 0
	for n < len(parts) && (n == 0 || bytes+parts[n].Bytes <= c.DataBytes) {
		bytes += parts[n].Bytes
		n++
	}
	p := plan{parts: parts[:n], join: len(live)}
	for p.join > 0 && live[p.join-1] <= bytes && bytes+live[p.join-1] <= c.DataBytes {
		p.join--
		bytes += live[p.join]
	}
	p.bytes = bytes
	return p
}
