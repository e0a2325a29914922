package cost

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// ErrNoCluster: there is no cluster where it was looked for.
var ErrNoCluster = errors.New("no agent has ever created this cluster")

// errMoves says that a shard had another manifest each time that it was looked at.
var errMoves = errors.New("it changes too fast to be read")

const (
	readersMax  = 8           // requests to the bucket at once
	callTimeout = time.Minute // of each request
	triesMax    = 3           // of reading a shard's newest manifest
)

// Read reads what there is to know of a cluster, which may run. It changes nothing. The commits, and a few manifests at once, are in memory meanwhile.
func Read(ctx context.Context, kv coordinator.KV, store objectstore.Store) (Records, error) {
	r := reader{kv: kv, store: store, sizes: make(map[string]int64), shards: make(map[coordinator.ShardID]coordinator.Shard), Records: Records{
		Usage: make(map[int32]coordinator.Usage), Topics: make(map[protocol.TopicID]string), Stored: make(map[protocol.TopicID]int64), Objects: make(map[ObjectKind]Count),
	}}
	for _, step := range []func(context.Context) error{r.list, r.read, r.manifests} {
		if err := step(ctx); err != nil {
			return Records{}, err
		}
	}
	r.tails()
	return r.Records, nil
}

type reader struct {
	kv    coordinator.KV
	store objectstore.Store
	sizes map[string]int64 // of manifests
	Records
	shards  map[coordinator.ShardID]coordinator.Shard
	commits []coordinator.Commit
	written []int64 // the revisions that wrote them

	mu sync.Mutex // of Stored, shards
}

func (r *reader) list(ctx context.Context) error {
	for info, err := range r.store.List(ctx, "", "") {
		if err != nil {
			return fmt.Errorf("list %s: %w", r.store, err)
		}
		kind := Others
		switch {
		case strings.HasPrefix(info.Name, segment.NamePrefix):
			kind = Flushed
		case strings.HasPrefix(info.Name, segment.MergedNamePrefix):
			kind = Merged
		case strings.HasPrefix(info.Name, manifest.NamePrefix):
			kind = Manifests
			r.sizes[info.Name] = info.Size
		}
		c := r.Objects[kind]
		r.Objects[kind] = Count{c.Objects + 1, c.Bytes + info.Size}
	}
	return nil
}

// read reads the coordinator, as of one revision.
func (r *reader) read(ctx context.Context) error {
	items, revision, err := coordinator.ListAll(ctx, r.kv, coordinator.PrefixMeta, coordinator.PrefixUsage)
	if err != nil {
		return err
	}
	r.Revision = revision
	for _, item := range items {
		if err := r.take(item); err != nil {
			return err
		}
	}
	if r.Cluster.ID == "" {
		return ErrNoCluster
	}
	return nil
}

// take takes one key in.
func (r *reader) take(item coordinator.Item) (err error) {
	under := func(prefix string) bool { return strings.HasPrefix(item.Key, prefix) }
	switch {
	case item.Key == coordinator.KeyCluster:
		r.Cluster, err = coordinator.Decode[coordinator.Cluster](item)
	case under(coordinator.PrefixAgents):
		var a coordinator.Agent
		a, err = coordinator.Decode[coordinator.Agent](item)
		r.Agents = append(r.Agents, a)
	case under(coordinator.PrefixTopics):
		var t coordinator.Topic
		t, err = coordinator.Decode[coordinator.Topic](item)
		r.Topics[t.ID] = t.Name
	case under(coordinator.PrefixShards):
		var id uint64
		if id, err = strconv.ParseUint(strings.TrimPrefix(item.Key, coordinator.PrefixShards), 10, 32); err == nil {
			r.shards[coordinator.ShardID(id)], err = coordinator.Decode[coordinator.Shard](item)
		}
	case under(coordinator.PrefixCommits):
		var c coordinator.Commit
		if c, err = coordinator.DecodeCommit(item.Value); err == nil {
			r.commits, r.written = append(r.commits, c), append(r.written, item.ModRevision)
		}
	case under(coordinator.PrefixUsage):
		var node int64
		if node, err = strconv.ParseInt(strings.TrimPrefix(item.Key, coordinator.PrefixUsage), 10, 32); err == nil {
			r.Usage[int32(node)], err = coordinator.Decode[coordinator.Usage](item)
		}
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", item.Key, err)
	}
	return nil
}

// manifests adds up what the newest manifests have of each topic.
func (r *reader) manifests(ctx context.Context) error {
	g, reading := errgroup.WithContext(ctx)
	g.SetLimit(readersMax)
	for id, record := range maps.Clone(r.shards) { // which changes meanwhile
		if record.Manifest != "" {
			g.Go(func() error { return r.manifest(reading, id, record) })
		}
	}
	return g.Wait()
}

// manifest adds up a shard's. A record that has another one meanwhile is read anew: the one before is in the bucket for minutes, and no more.
func (r *reader) manifest(ctx context.Context, id coordinator.ShardID, record coordinator.Shard) error {
	for range triesMax {
		m, err := r.get(ctx, record.Manifest)
		if err == nil {
			r.merged(id, record, m)
			return nil
		}
		if !errors.Is(err, objectstore.ErrNotFound) {
			return err
		}
		item, _, again := r.kv.Get(ctx, coordinator.KeyShard(id))
		if again != nil {
			return fmt.Errorf("read shard %d again: %w", id, again)
		}
		now, again := coordinator.Decode[coordinator.Shard](item)
		if again != nil || now.Manifest == record.Manifest {
			return errors.Join(err, again)
		}
		record = now
	}
	return fmt.Errorf("read the manifest of shard %d: %w", id, errMoves)
}

func (r *reader) get(ctx context.Context, name string) (*manifest.Manifest, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	size, ok := r.sizes[name]
	if !ok { // put since the bucket was listed
		info, err := r.store.Stat(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", name, err)
		}
		size = info.Size
	}
	if size > manifest.BytesMax {
		return nil, fmt.Errorf("read %s: %d bytes, want %d at most", name, size, manifest.BytesMax)
	}
	b := make([]byte, size)
	if err := r.store.Get(ctx, name, 0, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return m, nil
}

func (r *reader) merged(id coordinator.ShardID, record coordinator.Shard, m *manifest.Manifest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shards[id] = record
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for _, e := range p.Extents {
			if e.Next > p.LogStartOffset {
				r.Stored[p.Topic] += e.Size
			}
		}
	}
}

// tails adds what commits have beyond the manifests.
func (r *reader) tails() {
	for i := range r.commits {
		c := &r.commits[i]
		if c.InFooter {
			r.InFooter += c.ObjectSize
			continue
		}
		for _, p := range c.Partitions {
			if r.written[i] > r.shards[p.Shard].Merged {
				r.Stored[p.Topic] += p.Size
			}
		}
	}
}
