package upkeep

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// claim takes segments of a shard for somebody who writes anew what is in them: nobody else does, until unclaim. It is false, and takes none, if one of them is
// taken, or is not in the newest manifest any more.
func (sh *shard) claim(segments []manifest.Segment) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, g := range segments {
		if _, ok := sh.manifest.FindSegment(g.Epoch, g.Number); !ok || sh.claims[g] {
			return false
		}
	}
	for _, g := range segments {
		sh.claims[g] = true
	}
	return true
}

func (sh *shard) unclaim(segments []manifest.Segment) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, g := range segments {
		delete(sh.claims, g)
	}
}

// claimed returns what is claimed.
func (sh *shard) claimed() map[manifest.Segment]bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return maps.Clone(sh.claims)
}

// errChanged says that a segment is not there, and that the shard's newest manifest does not name it any more: who reads for longer than garbage stays has to plan anew.
var errChanged = errors.New("the shard has another manifest by now")

// changed returns the error of who reads segments that a manifest of the shard named: errChanged, if it says that something is not there, and one of them is not in the newest
// manifest any more, or the shard is not led any more. Otherwise an object that is not there is damage.
func (sh *shard) changed(err error, segments ...manifest.Segment) error {
	if !errors.Is(err, objectstore.ErrNotFound) {
		return err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	gone := func(g manifest.Segment) bool {
		_, ok := sh.manifest.FindSegment(g.Epoch, g.Number)
		return !ok
	}
	if sh.led && !slices.ContainsFunc(segments, gone) {
		return err
	}
	return fmt.Errorf("%w: %w", errChanged, err)
}

// number is one that a leader has taken.
type number struct {
	epoch  protocol.LeaderEpoch
	number uint64
}

// number returns a number for a segment that no other segment of the shard's leader has.
func (s *Manifests) number(id coordinator.ShardID, epoch protocol.LeaderEpoch) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.numbers[id]
	if n.epoch != epoch {
		n = number{epoch: epoch}
	}
	n.number++
	s.numbers[id] = n
	return n.number
}

// output is merged segments of a shard that are written, until a manifest names them.
type output struct {
	manifests *Manifests
	store     objectstore.Store
	footers   Footers
	cluster   [16]byte
	builder   *segment.Builder

	id      coordinator.ShardID
	shard   *shard
	old     *manifest.Manifest // the newest when it began
	epoch   protocol.LeaderEpoch
	created int64 // when the newest of what is in them was written, Unix milliseconds

	made    []manifest.Segment
	extents map[partition.ID][]manifest.Extent // in made
}

// begin returns the builder, ready for the first segment.
func (o *output) begin() *segment.Builder {
	o.builder.Level = segment.Merged
	return o.builder
}

// put puts the segment that is in the builder, and empties it.
func (o *output) put(ctx context.Context) error {
	for {
		sid := segment.ID{Level: segment.Merged, Log: uint64(o.id), Fence: uint64(o.epoch), Commit: o.manifests.number(o.id, o.epoch)}
		parts, footer, err := o.builder.Finish(segment.Header{ID: sid, Cluster: o.cluster, CreatedMs: o.created})
		if err != nil {
			return err
		}
		err = o.patiently(ctx, func(ctx context.Context) error {
			return o.store.Put(ctx, sid.Name(), objectstore.Body{Parts: parts, Size: footer.ObjectSize})
		})
		if errors.Is(err, objectstore.ErrExists) {
			continue // of this leader, before it started anew; or of a try whose outcome nobody knows
		}
		if err != nil {
			return fmt.Errorf("put segment %s: %w", sid.Name(), err)
		}
		if o.extents == nil {
			o.extents = make(map[partition.ID][]manifest.Extent)
		}
		for i := range footer.Sections {
			s := &footer.Sections[i]
			id := partition.ID{Topic: s.Topic, Partition: s.Partition}
			o.extents[id] = append(o.extents[id], manifest.Extent{
				Segment: int32(len(o.made)), First: s.FirstOffset, Next: s.NextOffset, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: s.LeaderEpoch,
			})
		}
		o.made = append(o.made, manifest.Segment{
			Epoch: o.epoch, Number: sid.Commit, Size: footer.ObjectSize, FooterPos: footer.Pos, CreatedMs: o.created,
		})
		o.footers.Put(footer)
		o.builder.Reset()
		return nil
	}
}

const (
	// triesMax is how often a request is made while the bucket is away, and triesPause the wait after the first time; it doubles with each.
	triesMax   = 5
	triesPause = time.Second
)

// patiently makes a request again for a while, if the bucket is away: what was read and written before it need not be done again.
func (o *output) patiently(ctx context.Context, request func(context.Context) error) error {
	for try := 0; ; try++ {
		once, cancel := context.WithTimeout(ctx, mergeRequestMax)
		err := request(once)
		cancel()
		if try+1 == triesMax || !errors.Is(err, objectstore.ErrUnavailable) && !errors.Is(err, objectstore.ErrUnknownOutcome) {
			return err
		}
		select {
		case <-time.After(triesPause << try):
		case <-o.shard.gone:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// placed returns what was made of a partition, in a manifest in whose segments those that were made begin at base.
func (o *output) placed(id partition.ID, base int32) []manifest.Extent {
	list := slices.Clone(o.extents[id])
	for i := range list {
		list[i].Segment += base
	}
	return list
}

// install makes what was made part of the shard's next manifest. What is not in it, because log start offsets have moved past it meanwhile, or surely never will be, is garbage.
func (o *output) install(ctx context.Context, c change) error {
	c.installed = func(m *manifest.Manifest) error {
		o.discard(m)
		return nil
	}
	err := o.manifests.install(ctx, o.id, o.shard, c)
	if errors.Is(err, errNotWritten) || errors.Is(err, coordinator.ErrNoSpace) || errors.Is(err, coordinator.ErrLimit) {
		o.discard(nil)
	}
	return err
}

// discard gives up the segments that were made, but for those in a manifest.
func (o *output) discard(installed *manifest.Manifest) {
	for _, g := range o.made {
		if installed == nil || !slices.Contains(installed.Segments, g) {
			o.manifests.garbage.add(o.manifests.deps.Now(), g.Name(o.old.Shard))
		}
	}
}
