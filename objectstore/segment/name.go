package segment

import (
	"fmt"
	"strconv"
	"strings"
)

// NamePrefix is what the names of all segments start with.
const NamePrefix = "segments/"

// ID says which flush made a segment; it stands in the header and in the object's name. A flush that is cut anew (other
// entries, other bytes) takes a new attempt, so that an ID, like a name, stands for fixed bytes.
type ID struct {
	Log     uint64 // WAL log that was flushed
	Fence   uint64 // of the log when it was flushed: its own writer's, or a recoverer's
	Commit  uint64 // number that the commit has, or would have had
	Attempt uint32 // at that commit under that fence, from 0
}

// Name returns the name of the segment's object:
//
//	segments/<log mod 256>/<log>/<commit>-<fence>-<attempt>
//
// in lower-case hexadecimal of fixed width, so that a listing is in order. The first part spreads consecutive logs over
// the key space, by which S3 splits its load. The commit stands before the fence, so that all rivals for one place in the log are
// listed together, and a listing can start at a commit.
func (id ID) Name() string {
	return fmt.Sprintf("%s%016x-%016x-%08x", LogPrefix(id.Log), id.Commit, id.Fence, id.Attempt)
}

// LogPrefix returns what the names of a WAL log's segments, and of no others, start with.
func LogPrefix(log uint64) string {
	return fmt.Sprintf("%s%02x/%016x/", NamePrefix, byte(log), log)
}

// ParseName undoes [ID.Name]. It takes exactly what Name returns.
func ParseName(name string) (ID, error) {
	var id ID
	parts := strings.FieldsFunc(strings.TrimPrefix(name, NamePrefix), func(r rune) bool { return r == '/' || r == '-' })
	if len(parts) != 5 {
		return id, fmt.Errorf("parse segment name %q: want %sHH/LOG/COMMIT-FENCE-ATTEMPT", name, NamePrefix)
	}
	for i, field := range []*uint64{&id.Log, &id.Commit, &id.Fence} {
		v, err := strconv.ParseUint(parts[i+1], 16, 64)
		if err != nil {
			return ID{}, fmt.Errorf("parse segment name %q: %w", name, err)
		}
		*field = v
	}
	attempt, err := strconv.ParseUint(parts[4], 16, 32)
	if err != nil {
		return ID{}, fmt.Errorf("parse segment name %q: %w", name, err)
	}
	id.Attempt = uint32(attempt)
	if id.Name() != name {
		return ID{}, fmt.Errorf("parse segment name %q: want %q", name, id.Name())
	}
	return id, nil
}
