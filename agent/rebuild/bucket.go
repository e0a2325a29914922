package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// ErrNoCopy says that there is no whole copy in the bucket.
var ErrNoCopy = errors.New("there is no copy of etcd in the bucket that is whole")

// readsAtOnce is how many requests are under way.
const readsAtOnce = 8

// State is the coordinator's state as a copy has it.
type State struct {
	ID        backup.ID
	CreatedMs int64 // Unix milliseconds
	Items     []backup.Item
}

// load reads the newest copy that is whole.
func load(ctx context.Context, store objectstore.Store, copies []Copy) (*State, error) {
	var errs []error
	for _, c := range slices.Backward(copies) {
		state, err := loadOne(ctx, store, c)
		switch {
		case err == nil:
			return state, nil
		case !errors.Is(err, errNotWhole) && !errors.Is(err, backup.ErrCorrupt) && !errors.Is(err, objectstore.ErrNotFound):
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append([]error{ErrNoCopy}, errs...)...)
}

// errNotWhole says that pages of a copy are missing.
var errNotWhole = errors.New("not whole")

func loadOne(ctx context.Context, store objectstore.Store, c Copy) (*State, error) {
	s := &State{ID: c.ID}
	for i, info := range c.Pages {
		if info.Size > backup.PageBytesMax {
			return nil, fmt.Errorf("read %s: %w: %d bytes", info.Name, backup.ErrCorrupt, info.Size)
		}
		b, err := get(ctx, store, info.Name, 0, info.Size)
		if err != nil {
			return nil, err
		}
		page, err := backup.Parse(b)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", info.Name, err)
		}
		n := len(s.Items)
		if page.ID != c.ID || page.Number != uint32(i) || n > 0 && len(page.Items) > 0 && page.Items[0].Key <= s.Items[n-1].Key {
			return nil, fmt.Errorf("read %s: %w", info.Name, errNotWhole)
		}
		s.CreatedMs = page.CreatedMs
		s.Items = append(s.Items, page.Items...)
		if page.Last {
			return s, nil
		}
	}
	return nil, fmt.Errorf("copy %d: %w: %d pages", c.ID.Number, errNotWhole, len(c.Pages))
}

func get(ctx context.Context, store objectstore.Store, name string, off, n int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	b := make([]byte, n)
	if err := store.Get(ctx, name, off, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// listing is what the bucket has, by names.
type listing struct {
	objects   map[string]int64    // sizes
	manifests map[uint32][]string // of each shard, from old to new
	flushed   map[segment.ID]string
	epochs    map[coordinator.ShardID]int32 // the highest that a name shows of a shard
	log       coordinator.LogID             // the highest that a name shows
}

func list(ctx context.Context, store objectstore.Store) (*listing, error) {
	l := &listing{
		objects: make(map[string]int64), manifests: make(map[uint32][]string), flushed: make(map[segment.ID]string), epochs: make(map[coordinator.ShardID]int32),
	}
	raise := func(shard uint32, epoch int32) {
		l.epochs[coordinator.ShardID(shard)] = max(l.epochs[coordinator.ShardID(shard)], epoch)
	}
	for _, prefix := range []string{segment.NamePrefix, segment.MergedNamePrefix, manifest.NamePrefix} {
		for info, err := range store.List(ctx, prefix, "") {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", store, err)
			}
			l.objects[info.Name] = info.Size
			if shard, epoch, _, err := manifest.ParseName(info.Name); err == nil && prefix == manifest.NamePrefix {
				l.manifests[shard] = append(l.manifests[shard], info.Name)
				raise(shard, int32(epoch))
			}
			id, err := segment.ParseName(info.Name)
			switch {
			case err != nil:
			case id.Level == segment.Merged:
				raise(uint32(id.Log), int32(id.Fence))
			default:
				l.flushed[id] = info.Name
				l.log = max(l.log, coordinator.LogID(id.Log))
			}
		}
	}
	return l, nil
}

// errDamaged says that an object is not what was written, errUseless that it is sound and of no use.
var (
	errDamaged = errors.New("damaged")
	errUseless = errors.New("passed over")
)

// serious returns what is wrong with more than an object.
func serious(err error) error {
	if errors.Is(err, errDamaged) || errors.Is(err, errUseless) {
		return nil
	}
	return err
}

// newest reads of each shard the newest manifest that is sound and all of whose segments are in the bucket. One that was written and never installed is as good: what it says is true.
func (l *listing) newest(ctx context.Context, store objectstore.Store, f *Found, cluster [16]byte) (notes []string, err error) {
	shards := slices.Sorted(maps.Keys(l.manifests))
	found, passed := make([]*manifest.Manifest, len(shards)), make([][]error, len(shards))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	for i, shard := range shards {
		g.Go(func() (err error) {
			for _, name := range slices.Backward(l.manifests[shard]) {
				found[i], err = l.manifest(ctx, store, name, cluster)
				if err == nil || serious(err) != nil {
					return err
				}
				passed[i] = append(passed[i], err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	f.Manifests = make(map[coordinator.ShardID]*manifest.Manifest)
	for i, shard := range shards {
		if found[i] != nil {
			f.Manifests[coordinator.ShardID(shard)] = found[i]
		}
		notes = append(notes, f.damaged(passed[i])...)
	}
	return notes, nil
}

// damaged takes in objects that are damaged; what is wrong with others it returns as notes.
func (f *Found) damaged(passed []error) (notes []string) {
	for _, err := range passed {
		if errors.Is(err, errDamaged) {
			f.Damaged = append(f.Damaged, err.Error())
		} else {
			notes = append(notes, err.Error())
		}
	}
	return notes
}

// manifest reads a manifest. Errors that say what is wrong with it wrap [errDamaged] or [errUseless].
func (l *listing) manifest(ctx context.Context, store objectstore.Store, name string, cluster [16]byte) (*manifest.Manifest, error) {
	size := l.objects[name]
	if size > manifest.BytesMax {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, errDamaged, size)
	}
	b, err := get(ctx, store, name, 0, size)
	if err != nil {
		return nil, absent(err)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return nil, unread(name, err)
	}
	if m.Name() != name || m.Cluster != cluster {
		return nil, fmt.Errorf("%s: %w: it is %s of cluster %s", name, errUseless, m.Name(), protocol.TopicID(m.Cluster))
	}
	for i := range m.Segments {
		if of := m.Segments[i].Name(m.Shard); l.objects[of] != m.Segments[i].Size {
			return nil, fmt.Errorf("%s: %w: %s is not there, or not of %d bytes", name, errUseless, of, m.Segments[i].Size)
		}
	}
	return m, nil
}

// footer reads the footer of a flushed segment. Errors that say what is wrong with it wrap [errDamaged] or [errUseless].
func (l *listing) footer(ctx context.Context, store objectstore.Store, name string, cluster [16]byte) (*segment.Footer, error) {
	size := l.objects[name]
	if size < segment.TrailerSize {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, errDamaged, size)
	}
	tail := min(size, footerTail)
	b, err := get(ctx, store, name, size-tail, tail)
	if err != nil {
		return nil, absent(err)
	}
	pos, err := segment.ParseTrailer(b, size)
	if err != nil {
		return nil, unread(name, err)
	}
	if from := size - tail; pos < from {
		if b, err = get(ctx, store, name, pos, size-pos); err != nil {
			return nil, absent(err)
		}
	} else {
		b = b[pos-from:]
	}
	f, err := segment.ParseFooter(b)
	if err != nil {
		return nil, unread(name, err)
	}
	if f.Header.ID.Name() != name || f.Header.Cluster != cluster {
		return nil, fmt.Errorf("%s: %w: it is %s of cluster %s", name, errUseless, f.Header.ID.Name(), protocol.TopicID(f.Header.Cluster))
	}
	return f, nil
}

// footerTail is how much of a segment's end is read to find its footer.
const footerTail = 64 << 10

// absent takes an object that is gone for one of no use.
func absent(err error) error {
	if errors.Is(err, objectstore.ErrNotFound) {
		return fmt.Errorf("%w: %w", errUseless, err)
	}
	return err
}

// unread takes an object that cannot be read for one that is damaged, be it by its version alone: if a newer build wrote it, an operator is told the version that it has, and what lacks without it.
func unread(name string, err error) error {
	for _, kind := range []error{segment.ErrCorrupt, manifest.ErrCorrupt, segment.ErrVersion, manifest.ErrVersion} {
		if errors.Is(err, kind) {
			return fmt.Errorf("%s: %w: %w", name, errDamaged, err)
		}
	}
	return fmt.Errorf("read %s: %w", name, err)
}

// footers reads the footers of the copy's commits, and of the segments that may have been committed since, into what was found.
func (l *listing) footers(ctx context.Context, store objectstore.Store, f *Found, cluster [16]byte) (notes []string, err error) {
	var fresh []string
	for id, name := range l.flushed {
		if f.MayBeNew(id) {
			fresh = append(fresh, name)
		}
	}
	slices.Sort(fresh)
	found, passed := make([]*segment.Footer, len(fresh)), make([]error, len(fresh))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	for i, name := range fresh {
		g.Go(func() (err error) {
			found[i], err = l.footer(ctx, store, name, cluster)
			passed[i] = err
			return serious(err)
		})
	}
	for i := range f.Commits {
		g.Go(func() (err error) {
			c := &f.Commits[i]
			c.Footer, err = l.footer(ctx, store, c.Object, cluster)
			if c.Footer != nil && c.InFooter {
				c.Partitions = flush.CommitPartitions(c.Footer)
			}
			return serious(err)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, footer := range found {
		if footer == nil {
			notes = append(notes, f.damaged(passed[i:i+1])...)
			continue
		}
		f.Segments = append(f.Segments, Segment{footer})
	}
	return notes, nil
}

// found decodes what a copy has of what a plan needs.
func (s *State) found() (*Found, error) {
	f := &Found{
		Topics: make(map[protocol.TopicID]coordinator.Topic), Shards: make(map[coordinator.ShardID]coordinator.Shard), Logs: make(map[coordinator.LogID]coordinator.Log),
	}
	for _, it := range s.Items {
		item := coordinator.Item{Key: it.Key, Value: it.Value, ModRevision: it.Revision}
		var err error
		switch {
		case it.Key == coordinator.KeyCluster:
			f.Cluster, err = coordinator.Decode[coordinator.Cluster](item)
		case it.Key == coordinator.KeyPastLog:
			f.Past, err = coordinator.Decode[coordinator.LogID](item)
		case strings.HasPrefix(it.Key, coordinator.PrefixTopics):
			var t coordinator.Topic
			t, err = coordinator.Decode[coordinator.Topic](item)
			f.Topics[t.ID] = t
		case strings.HasPrefix(it.Key, coordinator.PrefixShards):
			var id coordinator.ShardID
			if id, err = coordinator.ParseKeyShard(it.Key); err == nil {
				f.Shards[id], err = coordinator.Decode[coordinator.Shard](item)
			}
		case strings.HasPrefix(it.Key, coordinator.PrefixLogs):
			var l coordinator.Log
			l, err = coordinator.Decode[coordinator.Log](item)
			f.Logs[l.ID] = l
		case strings.HasPrefix(it.Key, coordinator.PrefixCommits):
			c := Commit{Revision: it.Revision}
			if c.Commit, err = coordinator.DecodeCommit(it.Value); err == nil {
				f.Commits = append(f.Commits, c)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read copy %d: %w", s.ID.Number, err)
		}
	}
	if id, err := protocol.ParseTopicID(f.Cluster.ID); err != nil || id != protocol.TopicID(s.ID.Cluster) {
		return nil, fmt.Errorf("copy %d is of cluster %q, by its name of %s: %w", s.ID.Number, f.Cluster.ID, protocol.TopicID(s.ID.Cluster), backup.ErrCorrupt)
	}
	slices.SortStableFunc(f.Commits, func(a, b Commit) int { return cmp.Compare(a.Revision, b.Revision) })
	return f, nil
}
