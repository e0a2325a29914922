package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// What is garbage is decided from names, from the coordinator and from the newest manifests; there is no list of it that could be wrong.
//
//   - A segment of a commit: the commit with its number was made, or can never be made any more, and the coordinator has none that names it.
//   - A manifest, or a merged segment: the shard's newest manifest is another, or does not name it, and whoever wrote it leads the shard no more, or has put another in its place, or given it up. That its writer has installed a segment of a higher number
//     says nothing: a cleaning draws its numbers as it goes, and merges are installed meanwhile.
//
// And there is what is left of multipart uploads whose agent died, or whose beginning was not answered: parts that no listing of objects shows.
//
// It is deleted when it has been garbage for a while: somebody may be reading it. A reader whom that surprises gets an error, and comes again.

// GarbageConfig says when garbage is deleted.
type GarbageConfig struct {
	Pause time.Duration // between two looks
	Grace time.Duration // for how long it must have been seen
}

// DefaultGarbageConfig returns what production uses.
func DefaultGarbageConfig() GarbageConfig {
	return GarbageConfig{Pause: time.Minute, Grace: 10 * time.Minute}
}

// SweeperDeps is what a [Sweeper] works with.
type SweeperDeps struct {
	KV        coordinator.KV
	View      *coordinator.View
	Store     objectstore.Store
	Manifests *Manifests
	// Leads reports whether a shard is led: the manifests of others stay as they are.
	Leads func(coordinator.ShardID) bool
	// Uploads lists and aborts multipart uploads; nil if there are none.
	Uploads objectstore.Uploads
	// Elected reports whether this agent is the cluster's controller, which looks after the segments of commits, and after uploads.
	Elected func() bool
	Now     func() time.Time
	Log     *slog.Logger
}

// Sweeper deletes garbage from the bucket.
type Sweeper struct {
	cfg  GarbageConfig
	deps SweeperDeps
	seen map[string]time.Time // segments of commits that are garbage, since when

	uploads map[objectstore.Upload]time.Time // that are not complete, without their times; since when this sweeper knows them
	refused bool                             // an operator has been told that uploads cannot be listed, or aborted
}

// viewMax bounds how long the view may be behind what was just read; it is some seconds where nothing happens.
const viewMax = 30 * time.Second

const (
	// deleteMax bounds the deletion of an object, and the end of an upload. listMax bounds a listing, of which a page with a thousand names takes a tenth of a second, and all that is done at once about uploads, or about manifests that have deleted topics. A request that is never answered must not keep what else is garbage.
	deleteMax, listMax = time.Minute, 5 * time.Minute
	// uploadMax is longer than anybody takes for an upload: all puts have deadlines of some minutes. An upload is not aborted before; nobody reads it, so that the grace does not matter.
	uploadMax = 10 * time.Minute
	// uploadsSeenMax is how many uploads a sweeper keeps in mind.
	uploadsSeenMax = 1000
)

// NewSweeper returns a sweeper; [Sweeper.Run] makes it work.
func NewSweeper(cfg GarbageConfig, deps SweeperDeps) *Sweeper {
	return &Sweeper{cfg: cfg, deps: deps, seen: make(map[string]time.Time)}
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) error {
	return retry.Every(ctx, s.cfg.Pause, func() error {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.deps.Log.Warn("garbage stays in the bucket for now", "err", err)
		}
		return nil
	})
}

func (s *Sweeper) sweep(ctx context.Context) error {
	errs := []error{s.deps.Manifests.dropDeleted(ctx, s.deps.Leads), s.list(ctx)}
	due := s.deps.Manifests.garbage.due(s.deps.Now().Add(-s.cfg.Grace))
	for i, name := range due {
		if err := s.delete(ctx, name); err != nil { // it waits once more, so that the rest does not wait for it
			s.deps.Manifests.garbage.back(due[i+1:])
			s.deps.Manifests.garbage.add(s.deps.Now(), name)
			errs = append(errs, err)
			break
		}
	}
	if s.deps.Elected() {
		errs = append(errs, s.sweepCommits(ctx), s.sweepUploads(ctx))
	} else {
		clear(s.seen)
		clear(s.uploads)
	}
	return errors.Join(errs...)
}

func (s *Sweeper) delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteMax)
	defer cancel()
	if err := s.deps.Store.Delete(ctx, name); err != nil {
		return fmt.Errorf("delete garbage: %w", err)
	}
	return nil
}

// names lists the objects below a prefix.
func (s *Sweeper) names(ctx context.Context, prefix string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	for info, err := range s.deps.Store.List(ctx, prefix, "") {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, err)
		}
		names = append(names, info.Name)
	}
	return names, nil
}

// sweepCommits looks after the segments of commits.
func (s *Sweeper) sweepCommits(ctx context.Context) error {
	names, err := s.names(ctx, segment.NamePrefix)
	if err != nil {
		return err
	}
	// After the listing, and in this order: a commit that a record counts was made before, and the view has seen all that was.
	logs, err := coordinator.ListLogs(ctx, s.deps.KV, 0)
	if err != nil {
		return err
	}
	seen, cancel := context.WithTimeout(ctx, viewMax)
	defer cancel()
	if err := s.deps.View.Wait(seen, logs.AsOf); err != nil {
		return fmt.Errorf("look for commits: %w", err)
	}
	named := s.deps.View.Segments()
	now, still := s.deps.Now(), make(map[string]time.Time)
	for _, name := range names {
		if named[name] || !isOver(name, &logs) {
			continue
		}
		since, ok := s.seen[name]
		if !ok {
			since = now
		}
		if now.Sub(since) < s.cfg.Grace || err != nil {
			still[name] = since
			continue
		}
		if err = s.delete(ctx, name); err != nil {
			still[name] = now // as above
		}
	}
	s.seen = still
	return err
}

// sweepUploads aborts uploads that have been under way for so long that nobody can be at them. Their age is measured by this agent's own clock, as
// somebody may pay with a damaged object for one that is aborted too early: see [objectstore.Uploads].
func (s *Sweeper) sweepUploads(ctx context.Context) error {
	if s.deps.Uploads == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	now, still := s.deps.Now(), make(map[objectstore.Upload]time.Time)
	for upload, err := range s.deps.Uploads.Uploads(ctx) {
		if err != nil {
			return s.refuse(err)
		}
		if !mayUpload(upload.Name) {
			continue
		}
		upload.Began = time.Time{} // by the store's clock, if it is the same each time
		since, ok := s.uploads[upload]
		if !ok {
			since = now
		}
		still[upload] = since
		if len(still) == uploadsSeenMax {
			break
		}
	}
	s.uploads = still
	var errs []error
	for upload, since := range still {
		if now.Sub(since) < uploadMax || ctx.Err() != nil {
			continue
		}
		err := s.abort(ctx, upload)
		if err == nil {
			delete(still, upload)
		}
		errs = append(errs, s.refuse(err))
	}
	return errors.Join(errs...)
}

func (s *Sweeper) abort(ctx context.Context, upload objectstore.Upload) error {
	ctx, cancel := context.WithTimeout(ctx, deleteMax)
	defer cancel()
	return s.deps.Uploads.Abort(ctx, upload)
}

// refuse returns the error of listing or aborting uploads, unless it says that the bucket does not have that done: of which an operator is told once.
func (s *Sweeper) refuse(err error) error {
	if !errors.Is(err, objectstore.ErrDenied) && !errors.Is(err, objectstore.ErrNotFound) {
		return err
	}
	if !s.refused {
		s.refused = true
		s.deps.Log.Warn("what is left of uploads stays in the bucket; it needs a rule that aborts incomplete multipart uploads", "err", err)
	}
	return nil
}

// mayUpload reports whether an object may be one of Varve's that goes in parts: in a bucket without a prefix there may be others.
func mayUpload(name string) bool {
	_, segmentErr := segment.ParseName(name)
	_, _, _, manifestErr := manifest.ParseName(name)
	return segmentErr == nil || manifestErr == nil || strings.HasPrefix(name, objectstore.ProbePrefix)
}

// isOver reports whether the commit for which a segment was written was made, or can never be. What is not named like a segment is not.
func isOver(name string, logs *coordinator.Logs) bool {
	id, err := segment.ParseName(name)
	if err != nil || id.Level != segment.Flushed {
		return false
	}
	log := coordinator.LogID(id.Log)
	record := logs.Record(log)
	return logs.Closed(log) || record != nil && id.Commit <= record.Commits
}

// garbage are objects of this agent's shards that nothing refers to any more.
type garbage struct {
	mu     sync.Mutex
	items  []discarded                   // in order of their times
	listed map[coordinator.ShardID]int32 // for which epoch what older leaders have left was looked for
}

// discarded is an object, and since when it is garbage.
type discarded struct {
	name  string
	since time.Time
}

func (g *garbage) add(now time.Time, names ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range names {
		g.items = append(g.items, discarded{name, now})
	}
}

// due takes out what has been garbage since a time.
func (g *garbage) due(since time.Time) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for len(g.items) > 0 && !g.items[0].since.After(since) {
		names = append(names, g.items[0].name)
		g.items = g.items[1:]
	}
	return names
}

// back puts in again what was not deleted.
func (g *garbage) back(names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	items := make([]discarded, 0, len(names)+len(g.items))
	for _, name := range names {
		items = append(items, discarded{name: name})
	}
	g.items = append(items, g.items...)
}

// list looks for what former leaders of this agent's shards have left, once for each shard.
func (s *Sweeper) list(ctx context.Context) error {
	for id, record := range s.deps.Manifests.records() {
		if s.deps.Manifests.garbage.isListed(id, record.Epoch) {
			continue
		}
		m := s.deps.Manifests.Of(id)
		if m == nil {
			continue
		}
		var left []string
		for _, prefix := range []string{manifest.ShardPrefix(uint32(id)), segment.MergedPrefix(uint32(id))} {
			names, err := s.names(ctx, prefix)
			if err != nil {
				return err
			}
			for _, name := range names {
				if isLeft(name, m, protocol.LeaderEpoch(record.Epoch)) {
					left = append(left, name)
				}
			}
		}
		s.deps.Manifests.garbage.add(s.deps.Now(), left...)
		s.deps.Manifests.garbage.setListed(id, record.Epoch)
	}
	return nil
}

// isLeft reports whether an object of a shard was written by a former leader, and is not of the manifest m, which is of the leader's time or was when it began.
func isLeft(name string, m *manifest.Manifest, epoch protocol.LeaderEpoch) bool {
	if _, e, _, err := manifest.ParseName(name); err == nil {
		return e < epoch && name != m.Name()
	}
	id, err := segment.ParseName(name)
	if err != nil || id.Level != segment.Merged || id.Fence >= uint64(epoch) {
		return false
	}
	_, ok := m.FindSegment(protocol.LeaderEpoch(id.Fence), id.Commit)
	return !ok
}

func (g *garbage) isListed(id coordinator.ShardID, epoch int32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.listed[id] == epoch
}

func (g *garbage) setListed(id coordinator.ShardID, epoch int32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listed == nil {
		g.listed = make(map[coordinator.ShardID]int32)
	}
	g.listed[id] = epoch
}
