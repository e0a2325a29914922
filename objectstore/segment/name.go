package segment

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// What the names of all segments of a level, and of no others, start with.
const (
	NamePrefix       = "segments/" // level 0
	MergedNamePrefix = "merged/"   // level 1
)

// Levels of segments.
const (
	Flushed uint8 = 0 // written by a flush of a WAL log: many shards
	Merged  uint8 = 1 // written by a shard's leader, of what was flushed or merged before: one shard
)

// ID says who made a segment and when; it stands in the header and in the object's name. Whoever writes other bytes takes another
// ID (a flush that is cut anew its next attempt, a merge the next number), so that an ID, like a name, stands for fixed bytes.
type ID struct {
	Level   uint8  // [Flushed] or [Merged]
	Log     uint64 // WAL log that was flushed; of level 1 the shard, 32 bits
	Fence   uint64 // of the log when it was flushed: its own writer's, or a recoverer's; of level 1 the leader's epoch, 31 bits
	Commit  uint64 // number that the commit has, or would have had; of level 1 a number that the leader takes once in its epoch
	Attempt uint32 // at that commit under that fence, from 0; 0 in level 1
}

// Name returns the name of the segment's object:
//
//	segments/<log mod 256>/<log>/<commit>-<fence>-<attempt>
//	merged/<shard mod 256>/<shard>/<epoch>-<number>
//
// in lower-case hexadecimal of fixed width, so that a listing is in order. The first part spreads consecutive logs and shards over
// the key space, by which S3 splits its load. In level 0 the commit stands before the fence, so that all rivals for one place in the log are
// listed together, and a listing can start at a commit. In level 1 the epoch stands first: what earlier leaders left is listed before
// what the present one writes.
func (id ID) Name() string {
	if id.Level == Merged {
		return fmt.Sprintf("%s%08x-%016x", MergedPrefix(uint32(id.Log)), id.Fence, id.Commit)
	}
	return fmt.Sprintf("%s%016x-%016x-%08x", LogPrefix(id.Log), id.Commit, id.Fence, id.Attempt)
}

// LogPrefix returns what the names of a WAL log's segments, and of no others, start with.
func LogPrefix(log uint64) string {
	return fmt.Sprintf("%s%02x/%016x/", NamePrefix, byte(log), log)
}

// MergedPrefix returns what the names of a shard's merged segments, and of no others, start with.
func MergedPrefix(shard uint32) string {
	return fmt.Sprintf("%s%02x/%08x/", MergedNamePrefix, byte(shard), shard)
}

// valid reports whether there can be such a segment.
func (id ID) valid() bool {
	return id.Level == Flushed || id.Level == Merged && id.Log <= math.MaxUint32 && id.Fence <= math.MaxInt32 && id.Attempt == 0
}

// ParseName undoes [ID.Name], of either level. It takes exactly what Name returns for the ID of a segment that there can be.
func ParseName(name string) (ID, error) {
	var id ID
	var attempt uint64
	numbers, want := []*uint64{&id.Log, &id.Commit, &id.Fence, &attempt}, NamePrefix+"HH/LOG/COMMIT-FENCE-ATTEMPT"
	rest, merged := strings.CutPrefix(name, MergedNamePrefix)
	if merged {
		id.Level = Merged
		numbers, want = []*uint64{&id.Log, &id.Fence, &id.Commit}, MergedNamePrefix+"HH/SHARD/EPOCH-NUMBER"
	} else {
		rest = strings.TrimPrefix(name, NamePrefix)
	}
	parts := strings.FieldsFunc(rest, func(r rune) bool { return r == '/' || r == '-' })
	if len(parts) != 1+len(numbers) {
		return ID{}, fmt.Errorf("parse segment name %q: want %s", name, want)
	}
	for i, number := range numbers {
		v, err := strconv.ParseUint(parts[i+1], 16, 64)
		if err != nil {
			return ID{}, fmt.Errorf("parse segment name %q: %w", name, err)
		}
		*number = v
	}
	id.Attempt = uint32(attempt)
	if !id.valid() || id.Name() != name {
		return ID{}, fmt.Errorf("parse segment name %q: want %s, or the like", name, id.Name())
	}
	return id, nil
}
