// Package fsck checks that everything a cluster has in etcd and in its bucket is there, is whole, and fits together; and that there is nothing else.
//
//	report, err := Check(ctx, kv, store, Options{Now: time.Now, Grace: time.Hour})
//	report.WriteTable(os.Stdout)
//
// # What is checked
//
//   - Keys: each can be decoded, is of a kind that there is, and agrees with those that say the same: a shard's guard with its record, the newest commit of a log with the log.
//   - Objects that something refers to: each commit's segment, each shard's newest manifest, each segment of that. They exist, with their sizes, are what they are named, their footers' checksums hold, and their sections are where the commit or the
//     manifest says. With Deep, every section's checksum too.
//   - Offsets: of each partition they go on without a gap from the manifest's log start through its extents to what is merged, and from there through the commits. What compaction has taken out is no gap.
//   - Objects that nothing refers to: garbage is deleted some minutes after it became that. One that is older is an orphan, as is one of a name that Varve gives to nothing. What a merge or a cleaning under way has written is neither, however old it is.
//   - Multipart uploads that nobody has completed, if the bucket lets them be listed: agents abort them. One that was begun before the grace is an orphan.
//
// # While the cluster runs
//
// Agents commit, merge and delete meanwhile, and nothing of that may look like damage. The bucket is listed first, then etcd is read, all as of one revision. So what was referred to when the listing began, and still is, is in both; an object
// that is not in the listing is asked for by name; and one that is missing is a problem only if what refers to it is still there. How long something has been garbage nobody writes down. It is estimated, never as longer than it is: see orphans.go.
//
// The package shares formats with what it checks, and no decisions: what is garbage, and what follows what, it knows by itself.
package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
)

// Options say how to check.
type Options struct {
	Now   func() time.Time
	Grace time.Duration // after which garbage that is still there is an orphan
	Deep  bool          // read all objects that something refers to, and check every section's checksum
	// Repair deletes orphans that can never be referred to again, and nothing else; and nothing at all if anything else is wrong, as it may be needed then.
	Repair bool
}

// ErrNoCluster says that there is no cluster where it was looked for.
var ErrNoCluster = errors.New("no agent has ever created this cluster")

// errMoves says that something changed each time that it was looked at.
var errMoves = errors.New("it changes too fast to be checked")

const (
	readersMax  = 8           // requests to the bucket at once
	callTimeout = time.Minute // of each request
)

// Check checks a cluster. Its error says that this could not be done; what is wrong with the cluster is in the report.
//
// It keeps in memory the names of all objects, the commits, and the newest manifests of all shards.
func Check(ctx context.Context, kv coordinator.KV, store objectstore.Store, o Options) (*Report, error) {
	c := &checker{
		kv: kv, store: store, o: o, began: o.Now(), report: &Report{Deep: o.Deep}, objects: make(map[string]*object), manifests: make(map[coordinator.ShardID]*manifest.Manifest),
		unknown: make(map[coordinator.ShardID]bool), named: make(map[string]map[string]bool),
	}
	for _, step := range []func(context.Context) error{c.list, c.read, c.shards, c.commits, c.continuity, c.orphans, c.uploads, c.repair} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	c.report.finish(c.objects)
	return c.report, nil
}

// checker is a check under way.
type checker struct {
	kv     coordinator.KV
	store  objectstore.Store
	o      Options
	began  time.Time
	report *Report

	objects   map[string]*object // by name
	state     state
	manifests map[coordinator.ShardID]*manifest.Manifest // the newest; nil of a shard that has none
	unknown   map[coordinator.ShardID]bool               // shards of which something could not be read, so that nobody knows what continues what, and what is referred to
	orphaned  []orphan
	listed    map[uint32][]string        // manifests of each shard, from old to new; made when it is needed
	named     map[string]map[string]bool // segments that a manifest names
}

// object is one of the bucket.
type object struct {
	size     int64
	modified time.Time
	kind     objectKind
}

// list lists the bucket.
func (c *checker) list(ctx context.Context) error {
	for info, err := range c.store.List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("list %s: %w", c.store, err)
		}
		c.objects[info.Name] = &object{size: info.Size, modified: info.Modified}
	}
	return nil
}

// find returns an object that something refers to; nil if there is none. It may have been put since the bucket was listed.
func (c *checker) find(ctx context.Context, name string) (*object, error) {
	if o := c.objects[name]; o != nil {
		return o, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := c.store.Stat(ctx, name)
	switch {
	case errors.Is(err, objectstore.ErrNotFound), errors.Is(err, objectstore.ErrDenied) && !objectstore.ValidName(name):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look for %s: %w", name, err)
	}
	o := &object{size: info.Size, modified: info.Modified}
	c.objects[name] = o
	return o, nil
}

// get reads a part of an object; it is nil if the object is gone.
func (c *checker) get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b := make([]byte, n)
	switch err := c.store.Get(ctx, name, off, b); {
	case errors.Is(err, objectstore.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// repair deletes orphans, if that is wished and nothing else is wrong.
func (c *checker) repair(ctx context.Context) error {
	other := func(p Problem) bool { return p.Kind != Orphan && p.Kind != Unknown }
	if !c.o.Repair || c.report.Further > 0 || slices.ContainsFunc(c.report.Problems, other) {
		return nil
	}
	for _, o := range c.orphaned {
		if !o.removable {
			continue
		}
		if err := c.remove(ctx, o); err != nil {
			return err
		}
		c.report.Problems[o.problem].Repaired = true
	}
	return nil
}

func (c *checker) remove(ctx context.Context, o orphan) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if o.uploads != nil {
		if err := o.uploads.Abort(ctx, o.upload); err != nil {
			return fmt.Errorf("abort upload: %w", err)
		}
		return nil
	}
	if err := c.store.Delete(ctx, o.name); err != nil {
		return fmt.Errorf("delete orphan: %w", err)
	}
	delete(c.objects, o.name)
	return nil
}
