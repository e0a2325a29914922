package manifest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/varve-io/varve/protocol"
)

// NamePrefix is what the names of all manifests start with.
const NamePrefix = "manifests/"

// Name returns the name of the manifest's object:
//
//	manifests/<shard mod 256>/<shard>/<epoch>-<generation>
//
// in lower-case hexadecimal of fixed width, so that a listing goes from old to new. The first part spreads consecutive shards
// over the key space, by which S3 splits its load.
func Name(shard uint32, epoch protocol.LeaderEpoch, generation uint64) string {
	return fmt.Sprintf("%s%08x-%016x", ShardPrefix(shard), uint32(epoch), generation)
}

// Name returns the name of the manifest's object.
func (m *Manifest) Name() string { return Name(m.Shard, m.Epoch, m.Generation) }

// ShardPrefix returns what the names of a shard's manifests, and of no others, start with.
func ShardPrefix(shard uint32) string {
	return fmt.Sprintf("%s%02x/%08x/", NamePrefix, byte(shard), shard)
}

// Name returns the name of a merged segment's object, which is of that shard:
//
//	merged/<shard mod 256>/<shard>/<epoch>-<number>
//
// in lower-case hexadecimal of fixed width.
func (s *Segment) Name(shard uint32) string {
	return fmt.Sprintf("merged/%02x/%08x/%08x-%016x", byte(shard), shard, uint32(s.Epoch), s.Number)
}

// ParseName undoes [Name]. It takes exactly what Name returns for an epoch that is not negative.
func ParseName(name string) (shard uint32, epoch protocol.LeaderEpoch, generation uint64, err error) {
	parts := strings.FieldsFunc(strings.TrimPrefix(name, NamePrefix), func(r rune) bool { return r == '/' || r == '-' })
	if len(parts) != 4 {
		return 0, 0, 0, fmt.Errorf("parse manifest name %q: want %sHH/SHARD/EPOCH-GENERATION", name, NamePrefix)
	}
	var fields [3]uint64
	for i, bits := range []int{32, 31, 64} {
		if fields[i], err = strconv.ParseUint(parts[i+1], 16, bits); err != nil {
			return 0, 0, 0, fmt.Errorf("parse manifest name %q: %w", name, err)
		}
	}
	shard, epoch, generation = uint32(fields[0]), protocol.LeaderEpoch(fields[1]), fields[2]
	if want := Name(shard, epoch, generation); want != name {
		return 0, 0, 0, fmt.Errorf("parse manifest name %q: want %q", name, want)
	}
	return shard, epoch, generation, nil
}
