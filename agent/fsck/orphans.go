package fsck

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
)

// An object that nothing refers to is garbage if nothing ever can again:
//
//   - a commit's segment, when the commit with its number was made, or its log is closed;
//   - a manifest, when its writer leads the shard no more, or has installed a later one since;
//   - a merged segment, when its writer leads the shard no more, or an earlier manifest named it.
//
// A merged segment of the shard's leader that no manifest has named may be of a merge or a cleaning under way, whatever its age and its number: a cleaning has no time limit, merges and cleanings draw numbers from one counter, and any of them may be
// installed before another that drew a lower one. It is no orphan. If it is of one that failed, the leader deletes it, or the shard's next leader does.
//
// Since when, is told by what can be seen still. A manifest is garbage since the next one was written. A merged segment was in use as long as a manifest that names it was the newest, and the manifests of the last minutes are there still. A
// commit's segment was in use until its shards had merged it, into segments that are there still, unless they were merged once more. Without such a trace it counts as garbage since it was written.

// probeAge is after which time agents delete the objects by which others have tried the bucket. Each deletes its own.
const probeAge = time.Hour

// uploadMax is longer than anybody takes for an upload.
const uploadMax = 10 * time.Minute

// orphan is an object that nothing refers to, or an upload that nobody completes, for longer than the grace.
type orphan struct {
	name      string
	uploads   objectstore.Uploads // of the upload; nil for an object
	upload    objectstore.Upload
	problem   int  // place in the report's problems
	removable bool // it can never be referred to again
}

// orphans looks at every object that nothing refers to.
func (c *checker) orphans(ctx context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(c.objects)) {
		if c.objects[name].kind != notLookedAt {
			continue
		}
		var err error
		switch {
		case strings.HasPrefix(name, segment.NamePrefix):
			err = c.flushed(ctx, name)
		case strings.HasPrefix(name, segment.MergedNamePrefix):
			err = c.merged(ctx, name)
		case strings.HasPrefix(name, manifest.NamePrefix):
			err = c.superseded(ctx, name)
		case strings.HasPrefix(name, backup.NamePrefix):
			c.copied(name)
		case strings.HasPrefix(name, objectstore.ProbePrefix):
			err = c.unreferenced(ctx, name, c.objects[name].modified.Add(probeAge), true, "a probe of the bucket")
		default:
			c.stranger(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// uploads looks for multipart uploads that nobody completes, of objects of Varve's.
func (c *checker) uploads(ctx context.Context) error {
	uploads, ok := c.store.(objectstore.Uploads)
	if !ok {
		return nil
	}
	for upload, err := range uploads.Uploads(ctx) {
		if errors.Is(err, objectstore.ErrDenied) {
			return nil // a rule of the bucket has to look after them
		}
		if err != nil {
			return err
		}
		age := c.began.Sub(upload.Began)
		_, segmentErr := segment.ParseName(upload.Name)
		_, _, _, manifestErr := manifest.ParseName(upload.Name)
		ours := segmentErr == nil || manifestErr == nil || strings.HasPrefix(upload.Name, objectstore.ProbePrefix) // of all that goes in parts
		if !ours || age <= max(c.o.Grace, uploadMax) {
			continue
		}
		c.orphaned = append(c.orphaned, orphan{name: upload.Name, uploads: uploads, upload: upload, problem: len(c.report.Problems), removable: true})
		c.report.problem(Orphan, upload.Name, "a multipart upload that was begun %v ago, and never completed", age.Round(time.Second))
	}
	return nil
}

// copied settles what a page of a copy of etcd is. Copies are not read: nothing refers to what they name.
func (c *checker) copied(name string) {
	if _, _, err := backup.ParseName(name); err != nil {
		c.stranger(name)
		return
	}
	c.objects[name].kind = copyPage
}

// stranger reports an object that is not named like any of Varve's.
func (c *checker) stranger(name string) {
	c.objects[name].kind = unknownObject
	c.report.problem(Unknown, name, "%d bytes, written at %s", c.objects[name].size, c.objects[name].modified.UTC().Format(time.RFC3339))
}

// unreferenced settles what an object is that nothing refers to. since is from when on it is garbage, if isGarbage.
func (c *checker) unreferenced(ctx context.Context, name string, since time.Time, isGarbage bool, what string) error {
	o := c.objects[name]
	age := c.began.Sub(since)
	switch {
	case age <= c.o.Grace && isGarbage:
		o.kind = garbage
		return nil
	case age <= c.o.Grace:
		o.kind = underWay
		return nil
	}
	delete(c.objects, name)
	if again, err := c.find(ctx, name); again == nil { // garbage that was deleted meanwhile, and what told since when
		return err
	}
	c.objects[name].kind = orphanedObject
	c.orphaned = append(c.orphaned, orphan{name: name, problem: len(c.report.Problems), removable: isGarbage})
	c.report.problem(Orphan, name, "%s, %d bytes, for %v at least", what, o.size, age.Round(time.Second))
	return nil
}

// old reports whether an object was written before the grace.
func (c *checker) old(name string) bool { return c.began.Sub(c.objects[name].modified) > c.o.Grace }

// flushed settles what a segment is that no commit names.
func (c *checker) flushed(ctx context.Context, name string) error {
	id, err := segment.ParseName(name)
	if err != nil {
		c.stranger(name)
		return nil //nolint:nilerr // it has been reported
	}
	log := coordinator.LogID(id.Log)
	if c.state.bad[commitNumber{log, id.Commit}] {
		c.objects[name].kind = commitSegment // most likely
		return nil
	}
	record := c.state.logs.Record(log)
	over := c.state.logs.Closed(log) || record != nil && id.Commit <= record.Commits
	since := c.objects[name].modified
	if over && c.old(name) {
		mergedAt, gone, err := c.mergedAt(ctx, name)
		if err != nil {
			return err
		}
		if gone {
			delete(c.objects, name)
			return nil
		}
		since = later(since, mergedAt)
	}
	what := "no commit names it, and its number is taken"
	if !over {
		what = "no commit names it yet"
	}
	return c.unreferenced(ctx, name, since, over, what)
}

// mergedAt returns when the shards of a segment had merged it, as far as that can be seen, or zero. gone says that it was deleted meanwhile.
func (c *checker) mergedAt(ctx context.Context, name string) (at time.Time, gone bool, err error) {
	f, gone, err := c.footer(ctx, name)
	if f == nil {
		return time.Time{}, gone, err
	}
	for i := range f.Sections {
		s := &f.Sections[i]
		m := c.manifests[coordinator.ShardID(s.Shard)]
		if m == nil {
			continue
		}
		p, ok := m.Find(s.Topic, s.Partition)
		if !ok {
			continue
		}
		for _, e := range p.Extents {
			if e.First < s.NextOffset && e.Next > s.FirstOffset {
				at = later(at, time.UnixMilli(m.Segments[e.Segment].CreatedMs))
			}
		}
	}
	return at, false, nil
}

// footer reads the footer of a segment, knowing its size alone; it is nil if that is damaged, or gone.
func (c *checker) footer(ctx context.Context, name string) (f *segment.Footer, gone bool, err error) {
	size := c.objects[name].size
	if size < segment.TrailerSize {
		return nil, false, nil
	}
	b, err := c.get(ctx, name, size-segment.TrailerSize, segment.TrailerSize)
	if b == nil {
		return nil, err == nil, err
	}
	pos, err := segment.ParseTrailer(b, size)
	if err != nil {
		return nil, false, nil //nolint:nilerr // nobody needs it any more
	}
	if b, err = c.get(ctx, name, pos, size-pos); b == nil {
		return nil, err == nil, err
	}
	if f, err = segment.ParseFooter(b); err != nil {
		return nil, false, nil //nolint:nilerr // as above
	}
	return f, false, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// superseded settles what a manifest is that is not the newest.
func (c *checker) superseded(ctx context.Context, name string) error {
	shard, epoch, generation, err := manifest.ParseName(name)
	if err != nil {
		c.stranger(name)
		return nil //nolint:nilerr // it has been reported
	}
	record, newest := c.state.shards[coordinator.ShardID(shard)], c.manifests[coordinator.ShardID(shard)]
	before := name < record.Manifest // names are in the order in which manifests are written
	isGarbage := int32(epoch) < record.Epoch || newest != nil && generation <= newest.Generation
	since := c.objects[name].modified
	if before {
		since = later(since, c.next(shard, name))
	}
	return c.unreferenced(ctx, name, since, isGarbage && !c.unknown[coordinator.ShardID(shard)], "a manifest that is not the newest")
}

// next returns when the manifest after one was written, which is the newest at the latest.
func (c *checker) next(shard uint32, name string) time.Time {
	names := c.manifestsOf(shard)
	at, _ := slices.BinarySearch(names, name)
	if at+1 < len(names) {
		return c.objects[names[at+1]].modified
	}
	return time.Time{}
}

// manifestsOf returns the names of a shard's manifests, from old to new.
func (c *checker) manifestsOf(shard uint32) []string {
	if c.listed == nil {
		c.listed = make(map[uint32][]string)
		for _, name := range slices.Sorted(maps.Keys(c.objects)) {
			if of, _, _, err := manifest.ParseName(name); err == nil {
				c.listed[of] = append(c.listed[of], name)
			}
		}
	}
	return c.listed[shard]
}

// merged settles what a merged segment is that its shard's newest manifest does not name.
func (c *checker) merged(ctx context.Context, name string) error {
	id, err := segment.ParseName(name)
	if err != nil {
		c.stranger(name)
		return nil //nolint:nilerr // it has been reported
	}
	shard := coordinator.ShardID(id.Log)
	if c.unknown[shard] {
		c.objects[name].kind = mergedSegment // most likely
		return nil
	}
	record := c.state.shards[shard]
	until, wasNamed, err := c.namedUntil(ctx, uint32(shard), name)
	if err != nil {
		return err
	}
	if !wasNamed && id.Fence >= uint64(max(record.Epoch, 0)) {
		c.objects[name].kind = underWay
		return nil
	}
	return c.unreferenced(ctx, name, later(c.objects[name].modified, until), true, "the shard's newest manifest does not name it")
}

// namedUntil returns until when a manifest was the newest that names a merged segment; ok is false if none does of those that are there still.
func (c *checker) namedUntil(ctx context.Context, shard uint32, name string) (until time.Time, ok bool, err error) {
	newest := c.state.shards[coordinator.ShardID(shard)].Manifest
	for _, of := range slices.Backward(c.manifestsOf(shard)) {
		if of >= newest {
			continue // of one that was never installed nobody knows whether it may still be
		}
		names, err := c.names(ctx, of)
		if err != nil {
			return time.Time{}, false, err
		}
		if names[name] {
			return c.next(shard, of), true, nil
		}
	}
	return time.Time{}, false, nil
}

// names returns the segments that a manifest names; none if it is damaged, or gone.
func (c *checker) names(ctx context.Context, of string) (map[string]bool, error) {
	if names, ok := c.named[of]; ok {
		return names, nil
	}
	m, _, err := c.manifest(ctx, of)
	if err != nil {
		return nil, fmt.Errorf("look for what is in use: %w", err)
	}
	names := make(map[string]bool)
	if m != nil {
		for i := range m.Segments {
			names[m.Segments[i].Name(m.Shard)] = true
		}
	}
	c.named[of] = names
	return names, nil
}
