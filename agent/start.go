package agent

import (
	"context"
	"errors"
	"net"
	"strconv"

	"github.com/google/uuid"

	"github.com/varve-io/varve/agent/api"
	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
)

// start brings the agent to where it serves. What it spawns lives until run ends; waiting ends with ctx.
func (a *Agent) start(run, ctx context.Context) error {
	a.server = server.New(a.cfg.Server, a.log, a.deps.Metrics)
	a.spawn(run, "serve", func(ctx context.Context) error { return a.server.Serve(ctx, a.deps.Listener) })
	store := a.deps.Disk.Identity().String()
	if err := a.join(ctx, store); err != nil {
		return err
	}
	if err := a.follow(run, ctx); err != nil {
		return err
	}
	if err := a.recoverLogs(ctx, store); err != nil {
		return err
	}
	record, revision, err := a.openLog(ctx, store)
	if err != nil {
		return err
	}
	if err := a.startFlush(run, record, revision); err != nil {
		return err
	}
	if err := a.lead(ctx); err != nil {
		return err
	}
	a.startGroups(run)
	if err := a.register(run, ctx); err != nil {
		return err
	}
	return a.serve(run)
}

// join finds or creates the cluster, and takes the agent's node id and the number of its log.
func (a *Agent) join(ctx context.Context, store string) error {
	kv := a.deps.KV
	create := coordinator.Cluster{
		ID: protocol.TopicID(newID()).String(), Shards: a.cfg.Shards, Generation: 1, CreatedMs: a.deps.Now().UnixMilli(),
	}
	err := retry.Coordinator(ctx, a.log, "join the cluster", func(ctx context.Context) (err error) {
		if a.cluster, err = ensureCluster(ctx, kv, create); err != nil {
			return err
		}
		if a.node, err = ensureNode(ctx, kv, store); err != nil {
			return err
		}
		id, err := take(ctx, kv, coordinator.KeyNextLog, 1)
		a.id = coordinator.LogID(id)
		return err
	})
	if err != nil {
		return err
	}
	if a.clusterID, err = parseClusterID(a.cluster.ID); err != nil {
		return err
	}
	err = a.deps.Disk.Bind(a.clusterID)
	a.log = a.log.With("node", a.node)
	return err
}

// follow starts the view and waits until it, and the index, have seen everything that is there now.
func (a *Agent) follow(run, ctx context.Context) error {
	a.index = index.New()
	a.footers = fetch.NewFooters(a.deps.Store, a.cfg.FooterBytesMax)
	a.follower = lead.NewFollower(lead.FollowerConfig{
		Index: a.index, Footers: a.footers, Dropped: a.dropTopic, Log: a.log,
		Known: func(id [16]byte) bool {
			_, ok := a.view.TopicByID(id)
			return ok
		},
	})
	a.view = coordinator.NewView(a.deps.KV, coordinator.ViewConfig{OnCommit: a.follower.OnCommit, OnTopic: a.follower.OnTopic, Log: a.log})
	a.partitions = newPartitions(a.view, a.cluster.Shards)
	a.ledger = ledger.New(a.deps.KV, a.resign)
	a.starts = upkeep.NewStarts(a.deps.Store, a.ledger, a.clusterID, a.deps.Now)
	a.spawn(run, "follow the coordinator", a.view.Run)
	a.spawn(run, "index commits", a.follower.Run)
	a.spawn(run, "write to the coordinator", func(ctx context.Context) error {
		a.ledger.Run(ctx)
		return nil
	})
	return a.catchUp(ctx)
}

// catchUp waits until view and index have seen everything up to now.
func (a *Agent) catchUp(ctx context.Context) error {
	var revision int64
	err := retry.Coordinator(ctx, a.log, "read the revision", func(ctx context.Context) (err error) {
		_, revision, err = a.deps.KV.Get(ctx, coordinator.KeyCluster)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.view.Wait(ctx, revision); err != nil {
		return err
	}
	return a.follower.Wait(ctx)
}

// recoverLogs brings every log that is open to its end: those on this agent's disk by itself; for others, of agents that live or whose
// disk is elsewhere, it waits.
func (a *Agent) recoverLogs(ctx context.Context, store string) error {
	r := &recovery.Recovery{
		KV: a.deps.KV, Store: a.deps.Store, Cluster: a.clusterID, Claimer: a.id, Now: a.deps.Now, Log: a.log,
		WAL: func(name string) wal.Sealer {
			if name == store {
				return a.deps.Disk
			}
			return nil
		},
	}
	own := func(name string) bool { return name == store }
	said := make(map[coordinator.LogID]bool)
	for {
		var logs []coordinator.Log
		var revision int64
		err := retry.Coordinator(ctx, a.log, "list WAL logs", func(ctx context.Context) (err error) {
			logs, revision, err = recovery.List(ctx, a.deps.KV)
			return err
		})
		if err != nil {
			return err
		}
		waits := false
		for i := range logs {
			l := &logs[i]
			if l.Closed || l.ID == a.id {
				continue
			}
			run := r.Run
			switch lost := l.ID == a.cfg.AcceptLoss; {
			case recovery.Recoverable(*l, own) && lost:
				run = func(ctx context.Context, id coordinator.LogID) error { return r.RunDamaged(ctx, id, a.deps.Disk) }
			case recovery.Recoverable(*l, own):
			case lost:
				run = r.Abandon
			default:
				if !said[l.ID] { // their flushes change the records all the time
					said[l.ID] = true
					a.log.Warn("waiting for another agent to close its WAL log", "log", l.ID, "of", l.Node,
						"stores", l.Segments[len(l.Segments)-1].Stores, "flushed", l.Flushed,
						"hint", "if its disk is lost for good, start with --accept-loss and this log's number")
				}
				waits = true
				continue
			}
			if err := run(ctx, l.ID); err != nil {
				return err
			}
			l.Closed = true
		}
		if !waits {
			return recovery.DropClosed(a.deps.Disk, logs)
		}
		if err := a.logsChanged(ctx, revision); err != nil {
			return err
		}
	}
}

// logsChanged waits until a log's record changes after that revision, at which they were listed.
func (a *Agent) logsChanged(ctx context.Context, revision int64) error {
	watch, changed := context.WithCancel(ctx)
	defer changed()
	err := a.deps.KV.Watch(watch, coordinator.PrefixLogs, revision, func(b coordinator.Batch) {
		if len(b.Events) > 0 {
			changed()
		}
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if watch.Err() == nil {
		a.log.Warn("watching WAL logs", "err", err)
		return retry.Pause(ctx)
	}
	return nil
}

// openLog begins the agent's own log: first on its disk, then in the coordinator, so that a log that is listed is on its stores.
func (a *Agent) openLog(ctx context.Context, store string) (coordinator.Log, int64, error) {
	id := wal.SegmentID{Log: wal.LogID(a.id), Number: 1}
	appender, err := a.deps.Disk.Create(id, 1, 1)
	if err != nil {
		return coordinator.Log{}, 0, err
	}
	record, revision, err := openLog(ctx, a.deps.KV, a.log, a.id, a.node, store)
	if err != nil {
		return coordinator.Log{}, 0, err
	}
	a.wal, err = wal.New(wal.Config{ //nolint:contextcheck // the log ends by Close, after the drain
		Segment: id, Fence: 1, First: 1, BytesMax: a.cfg.WALBytesMax,
		CacheBytes: a.cfg.WALCacheBytes, OwnerBytes: ingest.EntryMemoryBytes,
		OnFull: func(last wal.EntryID) { a.flusher.Hurry(int64(last)) },
	}, wal.Copy{Name: store, Store: appender})
	return record, revision, err
}

// startFlush starts the flush of the agent's own log.
func (a *Agent) startFlush(run context.Context, record coordinator.Log, revision int64) error {
	a.writer = flush.NewWriter(flush.WriterConfig{
		KV: a.deps.KV, Store: a.deps.Store, Cluster: a.clusterID, Record: record, Revision: revision, Now: a.deps.Now, Log: a.log,
	})
	a.flusher = flush.New(a.cfg.Flush, flush.Deps{
		Writer: a.writer, Committed: a.follower.Committed, Now: a.deps.Now, Log: a.log,
		Trim: func(entry int64) { a.wal.Trim(wal.EntryID(entry)) },
	})
	a.flushing = a.spawn(run, "flush", a.flusher.Run)
	a.spawn(run, "write-ahead log", func(ctx context.Context) error {
		select {
		case <-a.wal.Failed():
			return a.wal.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return nil
}

// claim claims the shards. Two agents that start at once both find no log open; the one that claims later then waits for the other's.
func (a *Agent) claim(ctx context.Context) (all []lead.Claimed, err error) {
	for {
		err = retry.Coordinator(ctx, a.log, "claim shards", func(ctx context.Context) (err error) {
			all, err = lead.Claim(ctx, a.deps.KV, a.cluster, a.id, a.node)
			return err
		})
		if !errors.Is(err, lead.ErrLed) {
			return all, err
		}
		a.log.Warn("another agent was faster", "err", err)
		if err := a.recoverLogs(ctx, a.deps.Disk.Identity().String()); err != nil {
			return nil, err
		}
	}
}

// lead claims the shards and restores their partitions.
func (a *Agent) lead(ctx context.Context) error {
	all, err := a.claim(ctx)
	if err != nil {
		return err
	}
	// Only now: the view must not be older than the revision that made this agent the leader.
	if err := a.catchUp(ctx); err != nil {
		return err
	}
	epochs := make(map[uint32]protocol.LeaderEpoch, len(all))
	for _, c := range all {
		a.ledger.Adopt(c.ID, c.Write, c.Revision)
		epochs[uint32(c.ID)] = protocol.LeaderEpoch(c.Shard.Epoch)
		if err := retry.Bucket(ctx, a.log, "read manifests", func() error { return a.starts.Adopt(ctx, c.ID, c.Shard) }); err != nil {
			return err
		}
	}
	r := &lead.Restorer{Index: a.index, Footers: a.footers, Now: a.deps.Now, ProducerIdle: a.cfg.ProducerIdleMax}
	var logs map[partition.ID]*partition.Log
	err = retry.Bucket(ctx, a.log, "restore partitions", func() (err error) {
		logs, err = r.Run(ctx, func(shard uint32) protocol.LeaderEpoch { return epochs[shard] }, a.logStart)
		return err
	})
	if err != nil {
		return err
	}
	a.partitions.adopt(epochs, logs)
	return nil
}

// logStart returns a partition's log start offset.
func (a *Agent) logStart(id partition.ID) protocol.Offset {
	t, ok := a.view.TopicByID(id.Topic)
	if !ok {
		return 0
	}
	return a.starts.Start(t.ShardOf(id.Partition, a.cluster.Shards), id)
}

// startGroups starts the coordinator of the consumer groups.
func (a *Agent) startGroups(run context.Context) {
	cfg := groups.DefaultConfig(a.cluster.Shards)
	cfg.InitialDelay = a.cfg.GroupDelay
	a.groups = groups.New(cfg, groups.Deps{
		KV: a.deps.KV, Ledger: a.ledger, Leads: a.partitions.Leads, Topics: a.view, Now: a.deps.Now,
		NewID: func() string { return uuid.NewString() }, Log: a.log, Metrics: a.deps.Metrics,
	})
	a.topics = topics.New(a.cfg.Topics, topics.Deps{
		KV: a.deps.KV, View: a.view, Now: a.deps.Now, Log: a.log, NewID: func() protocol.TopicID { return newID() },
		Deleted: a.groups.TopicDeleted, Node: a.node, Broker: a.brokerConfigs(),
	})
	a.spawn(run, "coordinate groups", func(ctx context.Context) error {
		a.groups.Run(ctx)
		return nil
	})
}

// brokerConfigs tells DescribeConfigs what differs here from Kafka's defaults.
func (a *Agent) brokerConfigs() map[string]string {
	listener := "PLAINTEXT://" + net.JoinHostPort(a.cfg.AdvertiseHost, strconv.Itoa(int(a.cfg.AdvertisePort)))
	return map[string]string{
		"advertised.listeners":             listener,
		"broker.rack":                      a.cfg.Zone,
		"auto.create.topics.enable":        strconv.FormatBool(a.cfg.AutoCreate),
		"group.max.size":                   strconv.Itoa(groups.DefaultConfig(a.cluster.Shards).MembersMax),
		"socket.request.max.bytes":         strconv.Itoa(a.cfg.Server.FrameBytesMax),
		"max.connections":                  strconv.Itoa(a.cfg.Server.ConnectionsMax),
		"max.connections.per.ip":           strconv.Itoa(a.cfg.Server.ConnectionsPerIPMax),
		"group.initial.rebalance.delay.ms": strconv.FormatInt(a.cfg.GroupDelay.Milliseconds(), 10),
		"producer.id.expiration.ms":        strconv.FormatInt(a.cfg.ProducerIdleMax.Milliseconds(), 10),
	}
}

// serve lets clients in.
func (a *Agent) serve(run context.Context) error {
	blocks, err := cache.New(cache.Config{BytesMax: a.cfg.CacheBytesMax}, a.deps.Store)
	if err != nil {
		return err
	}
	context.AfterFunc(run, blocks.Close)
	a.measure(blocks)
	reader := fetch.NewReader(a.index, a.footers, blocks, a.cfg.CacheBytesMax)
	handler := a.broker(fetch.New(reader), fetch.NewLookup(a.index, reader, a.cfg.Server.FrameBytesMax),
		api.Deps{Ingest: ingest.New(a.wal, a.flusher, a.deps.Now)})
	a.server.Open(handler)
	a.spawn(run, "forget idle producers", a.expireProducers)
	return nil
}
