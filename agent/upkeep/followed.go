package upkeep

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// Followed are the log start offsets of shards that other agents lead. It reads a shard's manifest when somebody asks for it, and holds one per shard. It may be
// used concurrently.
type Followed struct {
	store   objectstore.Store
	flights singleflight.Group // by name of the manifest

	mu     sync.Mutex
	shards map[coordinator.ShardID]*manifest.Manifest // the one that was read last
}

// NewFollowed returns the starts of shards in that bucket.
func NewFollowed(store objectstore.Store) *Followed {
	return &Followed{store: store, shards: make(map[coordinator.ShardID]*manifest.Manifest)}
}

// flightTime bounds the read of a manifest: nobody's context does.
const flightTime = 30 * time.Second

// Start returns the log start offset of a partition of a shard, whose newest manifest has that name; 0 if there is none, or it does not say.
func (f *Followed) Start(ctx context.Context, id coordinator.ShardID, name string, p partition.ID) (protocol.Offset, error) {
	if name == "" {
		return 0, nil
	}
	if m := f.held(id, name); m != nil {
		return m.LogStart(p.Topic, p.Partition), nil
	}
	flight := f.flights.DoChan(name, func() (any, error) {
		// The flight serves others too, so that the end of this caller must not end it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		if m := f.held(id, name); m != nil { // another flight has landed meanwhile
			return m, nil
		}
		m, err := readManifest(ctx, f.store, name)
		if err != nil {
			return nil, err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.shards[id] = m
		return m, nil
	})
	select {
	case res := <-flight:
		if res.Err != nil {
			return 0, fmt.Errorf("read log start offsets of shard %d: %w", id, res.Err)
		}
		return res.Val.(*manifest.Manifest).LogStart(p.Topic, p.Partition), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("read log start offsets of shard %d: %w", id, ctx.Err())
	}
}

// held returns the manifest of that name if it is there.
func (f *Followed) held(id coordinator.ShardID, name string) *manifest.Manifest {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.shards[id]; m != nil && m.Name() == name {
		return m
	}
	return nil
}

// readManifest reads the manifest of that name.
func readManifest(ctx context.Context, store objectstore.Store, name string) (*manifest.Manifest, error) {
	info, err := store.Stat(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	if info.Size > manifest.BytesMax {
		return nil, fmt.Errorf("read manifest %s: %d bytes, want at most %d", name, info.Size, manifest.BytesMax)
	}
	b := make([]byte, info.Size)
	if err := store.Get(ctx, name, 0, b); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	if m.Name() != name {
		return nil, fmt.Errorf("read manifest %s: %w: it is %s", name, manifest.ErrCorrupt, m.Name())
	}
	return m, nil
}
