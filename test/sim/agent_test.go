package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// agent is one incarnation: the product's rooms, put together in the order of agent/start.go.
type agent struct {
	process
	w       *world
	id      coordinator.LogID
	machine *machine
	kv      *agentKV
	bucket  *agentBucket
	skew    time.Duration // of its clock

	run     context.Context
	fatal   context.CancelCauseFunc
	tasks   sync.WaitGroup
	serving atomic.Bool
	over    atomic.Bool // all its goroutines have ended
	err     error       // why, once over

	view     *coordinator.View
	follower *lead.Follower
	index    *index.Index
	footers  *fetch.Footers
	ledger   *ledger.Ledger
	wal      *wal.Log
	writer   *flush.Writer
	flusher  *flush.Flusher
	ingest   *ingest.Ingest
	live     map[partition.ID]*ingest.Partition
	epochs   map[coordinator.ShardID]protocol.LeaderEpoch
	high     map[partition.ID]protocol.Offset // high watermarks that readers saw
}

var (
	errStopped = errors.New("stopped")
	discard    = slog.New(slog.DiscardHandler)
)

const producerIdleMax = 24 * time.Hour

// exist is an agent's life.
func (a *agent) exist(open bool) {
	defer a.over.Store(true)
	err := a.start(open)
	if err == nil {
		a.serving.Store(true)
		<-a.run.Done()
		a.serving.Store(false)
	}
	a.fatal(errStopped)
	a.tasks.Wait()
	if a.wal != nil {
		_ = a.wal.Close(a.w.ctx)
	}
	if a.err = err; err == nil {
		a.err = context.Cause(a.run)
	}
}

func (a *agent) now() time.Time { return time.Now().Add(a.skew) }

// spawn runs f until the incarnation ends; an error of it ends the incarnation.
func (a *agent) spawn(what string, f func(context.Context) error) {
	a.tasks.Go(func() {
		if err := f(a.run); err != nil && a.run.Err() == nil {
			a.fatal(fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (a *agent) start(open bool) error {
	if open {
		if err := a.machine.open(); err != nil {
			return err
		}
	}
	if a.machine.store == nil {
		return errors.New("the store did not open")
	}
	if err := a.follow(); err != nil {
		return err
	}
	if err := a.recoverLogs(); err != nil {
		return err
	}
	if err := a.openLog(); err != nil {
		return err
	}
	return a.lead()
}

// follow starts the view and waits until it, and the index, have seen everything that is there now.
func (a *agent) follow() error {
	a.index = index.New()
	a.footers = fetch.NewFooters(a.bucket, 1<<20)
	a.follower = lead.NewFollower(lead.FollowerConfig{
		Index: a.index, Tails: index.NewTails(), Footers: a.footers, Log: discard,
		Known: func([16]byte) bool { return true }, Merged: func(coordinator.ShardID) int64 { return 0 }, Leads: func(coordinator.ShardID) bool { return false }, Dropped: func(coordinator.Topic) {},
		CatchUp: func(context.Context) error { return nil }, Answers: func(context.Context) bool { return false },
	})
	a.view = coordinator.NewView(a.kv, coordinator.ViewConfig{OnCommit: a.follower.OnCommit, OnTopic: a.follower.OnTopic, Log: discard})
	a.ledger = ledger.New(a.kv, func(coordinator.ShardID) {})
	a.spawn("follow the coordinator", a.view.Run)
	a.spawn("index commits", a.follower.Run)
	a.spawn("write to the coordinator", func(ctx context.Context) error {
		a.ledger.Run(ctx)
		return nil
	})
	return a.catchUp()
}

func (a *agent) catchUp() error {
	var revision int64
	err := retry.Coordinator(a.run, discard, "read the revision", func(ctx context.Context) (err error) {
		_, revision, err = a.kv.Get(ctx, coordinator.KeyCluster)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.view.Wait(a.run, revision); err != nil {
		return err
	}
	return a.follower.Wait(a.run)
}

// recoverLogs brings every log of another incarnation to its end.
func (a *agent) recoverLogs() error {
	var logs coordinator.Logs
	err := retry.Coordinator(a.run, discard, "list WAL logs", func(ctx context.Context) (err error) {
		logs, err = coordinator.ListLogs(ctx, a.kv, 0)
		return err
	})
	if err != nil {
		return err
	}
	var sealer wal.Sealer = a.machine.store
	if a.w.broken.sealer != nil {
		sealer = a.w.broken.sealer(a.machine)
	}
	r := &recovery.Recovery{
		KV: a.kv, Store: a.bucket, WAL: func(string) wal.Sealer { return sealer }, Cluster: [16]byte{9: 9}, Claimer: a.id, Now: a.now, Log: discard,
	}
	for _, l := range logs.Records {
		if l.Closed || l.ID == a.id {
			continue
		}
		if err := r.Run(a.run, l.ID); err != nil {
			return err
		}
		// A segment whose writer lives yet, fenced, is left to a later agent.
		if err := a.machine.store.Drop(wal.SegmentID{Log: wal.LogID(l.ID), Number: 1}); err != nil && !errors.Is(err, disk.ErrLive) {
			return err
		}
	}
	return nil
}

// openLog begins the agent's own log, first on the disk, then in etcd, and its flush.
func (a *agent) openLog() error {
	id := wal.SegmentID{Log: wal.LogID(a.id), Number: 1}
	appender, err := a.machine.store.Create(id, 1, 1)
	if err != nil {
		return err
	}
	record := coordinator.Log{
		ID: a.id, Node: 1, Fence: 1,
		Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"disk"}, Quorum: 1}},
	}
	var revision int64
	err = retry.Coordinator(a.run, discard, "open a WAL log", func(ctx context.Context) (err error) {
		revision, err = coordinator.OpenLog(ctx, a.kv, record)
		return err
	})
	if err != nil {
		return errors.Join(err, appender.Close())
	}
	a.wal, err = wal.New(wal.Config{
		Segment: id, Fence: 1, First: 1, BytesMax: 4 << 20, CacheBytes: 64 << 10,
	}, wal.Copy{Name: "disk", Store: appender})
	if err != nil {
		return err
	}
	a.writer = flush.NewWriter(flush.WriterConfig{
		KV: a.kv, Store: a.bucket, Cluster: [16]byte{9: 9}, Record: record, Revision: revision, Now: a.now, Log: discard,
	})
	a.flusher = flush.New(flush.Config{SegmentBytes: 1500, AgeMax: 5 * time.Second, UploadsMax: 2}, flush.Deps{
		Writer: a.writer, Committed: a.follower.Committed, Now: a.now, Log: discard,
		Trim: func(entry int64) { a.wal.Trim(wal.EntryID(entry)) },
	})
	a.ingest = ingest.New(a.wal, a.flusher, a.now)
	a.spawn("flush", a.flusher.Run)
	a.spawn("write-ahead log", func(ctx context.Context) error {
		select {
		case <-a.wal.Failed():
			return a.wal.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return nil
}

// claim gives this agent all shards, as a controller that knows of no other agent does; logs of owners that are open are recovered first.
func (a *agent) claim() (all []lead.Given, err error) {
	for {
		err = retry.Coordinator(a.run, discard, "claim shards", func(ctx context.Context) (err error) {
			if err := a.assignAll(ctx); err != nil {
				return err
			}
			all, _, err = lead.GivenTo(ctx, a.kv, a.w.cluster.Shards, a.id)
			return err
		})
		if !errors.Is(err, lead.ErrLed) {
			return all, err
		}
		if err := a.recoverLogs(); err != nil {
			return nil, err
		}
	}
}

func (a *agent) assignAll(ctx context.Context) error {
	items, _, err := a.kv.List(ctx, coordinator.PrefixShards, 0)
	if err != nil {
		return err
	}
	plan := make([]lead.Assignment, a.w.cluster.Shards)
	for id := range plan {
		plan[id] = lead.Assignment{Shard: coordinator.ShardID(id), To: a.id, Node: 1}
	}
	for id, it := range items {
		s, err := coordinator.Decode[coordinator.Shard](it)
		if err != nil {
			return err
		}
		plan[id].From = s.Owner
	}
	plan = slices.DeleteFunc(plan, func(p lead.Assignment) bool { return p.From == a.id })
	return lead.Assign(ctx, a.kv, a.w.cluster, plan)
}

// lead claims the shards and restores their partitions.
func (a *agent) lead() error {
	all, err := a.claim()
	if err != nil {
		return err
	}
	if err := a.catchUp(); err != nil {
		return err
	}
	for _, c := range all {
		a.ledger.Adopt(c.ID, c.Write, c.Revision)
		a.epochs[c.ID] = protocol.LeaderEpoch(c.Shard.Epoch)
	}
	idle := producerIdleMax
	if a.w.broken.forgetProducers {
		idle = -producerIdleMax
	}
	r := &lead.Restorer{
		Index: a.index, Footers: a.footers, Now: a.now, Known: func([16]byte) bool { return true }, ProducerIdle: idle, ProducersMax: 10_000,
		Retry: func(ctx context.Context, read func(context.Context) error) error {
			return retry.Bucket(ctx, discard, "restore partitions", func() error { return read(ctx) })
		},
	}
	settled := make(map[coordinator.ShardID]lead.Settled) // nothing is merged here
	for id, epoch := range a.epochs {
		settled[id] = lead.Settled{Epoch: epoch, Manifest: new(manifest.Manifest)}
	}
	logs, failed, err := r.Run(a.run, settled)
	if err != nil {
		return err
	}
	for _, err := range failed {
		return err
	}
	for id, l := range logs {
		a.adopt(id, l)
	}
	return nil
}

func (a *agent) adopt(id partition.ID, l *partition.Log) *ingest.Partition {
	p := ingest.NewPartition(id, a.w.topic.Name, a.w.shardOf(id.Partition), l)
	a.live[id] = p
	return p
}

// partition returns a partition that the agent leads.
func (a *agent) partition(number int32) *ingest.Partition {
	id := partition.ID{Topic: a.w.topic.ID, Partition: number}
	if p := a.live[id]; p != nil {
		return p
	}
	return a.adopt(id, partition.New(a.epochs[a.w.shardOf(number)]))
}

// flushAll begins to flush everything that is durable; done tells whether it is.
func (a *agent) flushAll() (done func() bool) {
	var ended atomic.Bool
	go func() {
		if a.flusher.Flush(a.run) == nil {
			ended.Store(true)
		}
	}()
	return ended.Load
}
