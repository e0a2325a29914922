// Package upkeep is what a shard's leader does to its committed data besides serving it.
//
// [Starts] moves log start offsets: it writes a new manifest of the shard into the bucket, then makes it the shard's newest by a
// guarded write, and only then do readers see the new start. A manifest that was written and not installed is an orphan.
package upkeep

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// Ledger writes to the coordinator under the guards of shards; done is called once.
type Ledger interface {
	Write(shard coordinator.ShardID, ops []coordinator.Op, done func(error))
}

// Starts are the log start offsets of the shards that this agent leads. It may be used concurrently.
type Starts struct {
	store   objectstore.Store
	ledger  Ledger
	cluster [16]byte
	now     func() time.Time

	mu     sync.Mutex
	shards map[coordinator.ShardID]*shard
}

// shard is the newest manifest of a shard.
type shard struct {
	turn chan struct{} // of capacity 1: whoever installs a manifest has put a token in; the record is theirs

	record coordinator.Shard

	mu       sync.Mutex // of manifest; only who has the turn writes it
	manifest manifest.Manifest
}

// NewStarts returns the starts of no shard.
func NewStarts(store objectstore.Store, ledger Ledger, cluster [16]byte, now func() time.Time) *Starts {
	return &Starts{store: store, ledger: ledger, cluster: cluster, now: now, shards: make(map[coordinator.ShardID]*shard)}
}

// Adopt loads the newest manifest of a shard that this agent has just begun to lead.
func (s *Starts) Adopt(ctx context.Context, id coordinator.ShardID, record coordinator.Shard) error {
	sh := &shard{turn: make(chan struct{}, 1), record: record, manifest: manifest.Manifest{Cluster: s.cluster, Shard: uint32(id)}}
	if record.Manifest != "" {
		m, err := readManifest(ctx, s.store, record.Manifest)
		if err != nil {
			return fmt.Errorf("adopt shard %d: %w", id, err)
		}
		sh.manifest = *m
	}
	sh.manifest.Epoch = protocol.LeaderEpoch(record.Epoch)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shards[id] = sh
	return nil
}

// Resign forgets a shard that another agent leads now.
func (s *Starts) Resign(id coordinator.ShardID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.shards, id)
}

// Hold waits until no new manifest of a shard is under way, and returns the shard's record. It stays as it is until release is called, or for ever if Resign is: the
// shard is to be handed over. ok is false if the shard was not adopted.
func (s *Starts) Hold(ctx context.Context, id coordinator.ShardID) (record coordinator.Shard, release func(), ok bool, err error) {
	sh := s.shard(id)
	if sh == nil {
		return coordinator.Shard{}, nil, false, nil
	}
	select {
	case sh.turn <- struct{}{}:
		return sh.record, func() { <-sh.turn }, true, nil
	case <-ctx.Done():
		return coordinator.Shard{}, nil, false, fmt.Errorf("wait for the manifest of shard %d: %w", id, ctx.Err())
	}
}

// Start returns the log start offset of a partition of a shard that was adopted; 0 if none was ever set.
func (s *Starts) Start(id coordinator.ShardID, p partition.ID) protocol.Offset {
	sh := s.shard(id)
	if sh == nil {
		return 0
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.manifest.LogStart(p.Topic, p.Partition)
}

func (s *Starts) shard(id coordinator.ShardID) *shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[id]
}

// DeleteBefore makes the log start offset of each partition at least the one given, and returns once that is durable and visible.
// Offsets must not be past the high watermarks. Each shard is one write; if one fails, the others may have succeeded, and trying again does no harm.
func (s *Starts) DeleteBefore(ctx context.Context, starts map[*ingest.Partition]protocol.Offset) error {
	byShard := make(map[coordinator.ShardID][]*ingest.Partition)
	for p := range starts {
		byShard[p.Shard] = append(byShard[p.Shard], p)
	}
	for id, partitions := range byShard {
		if err := s.install(ctx, id, partitions, starts); err != nil {
			return fmt.Errorf("delete records of shard %d: %w", id, err)
		}
	}
	return nil
}

// install has the next manifest of a shard written and waits until it is the newest, or ctx ends; it is brought to its end then all the same, since
// whether it applied must be known before the next one.
func (s *Starts) install(ctx context.Context, id coordinator.ShardID, partitions []*ingest.Partition, starts map[*ingest.Partition]protocol.Offset) error {
	sh := s.shard(id)
	if sh == nil {
		return protocol.NotLeaderOrFollower.Err()
	}
	select {
	case sh.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	next := sh.next(s.now().UnixMilli(), partitions, starts)
	if err := s.put(ctx, sh, next); err != nil {
		<-sh.turn
		return err
	}
	record := sh.record
	record.Manifest = next.Name()
	done := make(chan error, 1)
	s.ledger.Write(id, []coordinator.Op{{Key: coordinator.KeyShard(id), Value: coordinator.Encode(record)}}, func(err error) {
		if err == nil {
			sh.record = record
			err = sh.installed(next, partitions)
		}
		<-sh.turn
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// next returns a copy of the manifest with the partitions' new starts and all else as it was, without a generation of its own.
func (sh *shard) next(nowMs int64, partitions []*ingest.Partition, starts map[*ingest.Partition]protocol.Offset) *manifest.Manifest {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	next := sh.manifest
	next.Partitions = slices.Clone(next.Partitions)
	next.CreatedMs = nowMs
	for _, p := range partitions {
		entry := manifest.Partition{Topic: p.ID.Topic, TopicName: p.Name, Partition: p.ID.Partition}
		if held, ok := next.Find(p.ID.Topic, p.ID.Partition); ok {
			entry = *held
		}
		entry.LogStartOffset = max(starts[p], entry.LogStartOffset)
		next.Set(entry)
	}
	return &next
}

// installed makes the manifest, which is durable, the one that readers see.
func (sh *shard) installed(next *manifest.Manifest, partitions []*ingest.Partition) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.manifest = *next
	for _, p := range partitions {
		if err := p.SetStart(next.LogStart(p.ID.Topic, p.ID.Partition)); err != nil {
			return err
		}
	}
	return nil
}

// putPause is the wait between two tries to write a manifest.
const putPause = 200 * time.Millisecond

// put writes the manifest under the next free generation; it tries until ctx ends. A generation whose outcome is unknown is not used again, so that a
// name stands for fixed bytes.
func (s *Starts) put(ctx context.Context, sh *shard, next *manifest.Manifest) error {
	for {
		sh.mu.Lock()
		sh.manifest.Generation++
		next.Generation = sh.manifest.Generation
		sh.mu.Unlock()
		b, err := next.Encode()
		if err != nil {
			return err
		}
		err = s.store.Put(ctx, next.Name(), objectstore.Bytes(b))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, objectstore.ErrExists):
			continue
		}
		select {
		case <-time.After(putPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}
