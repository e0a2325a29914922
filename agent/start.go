package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/api"
	"github.com/varve-io/varve/agent/controller"
	"github.com/varve-io/varve/agent/ensemble"
	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/forward"
	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/placement"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/zone"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/peer"
)

// start brings the agent to where it serves. What it spawns lives until run ends; waiting ends with ctx.
func (a *Agent) start(run, ctx context.Context) error {
	a.server = server.New(a.cfg.Server, a.log, a.deps.Metrics)
	a.spawn(run, "serve", func(ctx context.Context) error { return a.server.Serve(ctx, a.deps.Listener) })
	store := a.deps.Disk.Identity().String()
	held := a.deps.Disk.Segments() // by earlier incarnations, of this agent and of others: from here on, others may begin new ones
	if err := a.compareCopies(ctx); err != nil {
		return err
	}
	if err := a.join(ctx, store); err != nil {
		return err
	}
	close(a.joined)
	a.follow(run)
	if err := a.reachPeers(run); err != nil {
		return err
	}
	if err := a.servePeers(run); err != nil {
		return err
	}
	if err := a.register(run, ctx, store); err != nil {
		return err
	}
	if err := a.recoverOwn(ctx, store, held); err != nil {
		return err
	}
	if err := a.openLog(run, ctx, store); err != nil {
		return err
	}
	a.startGroups(run)
	a.startTxns(run)
	a.serve(run)
	if err := a.takePart(run, ctx); err != nil {
		return err
	}
	return a.awaitLeaders(ctx)
}

// help starts, once, what the agent does for logs of others, and with them for its disk.
func (a *Agent) help(run context.Context) {
	a.helping.Do(func() {
		a.spawn(run, "recover WAL logs of others", a.succeed)
		a.spawn(run, "look after the WAL store", a.sweepStore)
	})
}

// takePart makes the agent one of those that lead shards, and that look after the others.
func (a *Agent) takePart(run, ctx context.Context) error {
	a.leading = a.spawn(run, "lead shards", a.leadShards)
	a.help(run)
	a.spawn(run, "tell what is not flushed", a.tellUnflushed)
	a.spawn(run, "tell the load", a.tellLoad)
	a.spawn(run, "tell what the bucket was asked", a.tellUsage)
	a.spawn(run, "keep a quorum", a.guardQuorum)
	a.spawn(run, "watch whether the bucket is in reach", a.watchBucket)
	a.spawn(run, "watch whether etcd was set back", a.watchLineage)
	c := controller.New(controller.Deps{
		KV: a.deps.KV, View: a.view, Tails: a.tails, Node: a.node, Log: a.id, Kick: a.members.subscribe(), Logger: a.log,
		Lease: func() int64 {
			lease, _ := a.registration.current()
			return lease
		},
		Willing: func() bool { return !a.draining.Load() },
	})
	a.spawn(run, "control the cluster", c.Run)
	return a.registration.become(ctx, coordinator.AgentServing)
}

// join finds or creates the cluster, and takes the agent's node id and the number of its log.
func (a *Agent) join(ctx context.Context, store string) error {
	kv := a.deps.KV
	create := coordinator.Cluster{
		ID: protocol.TopicID(newID()).String(), Shards: a.cfg.Shards, Generation: 1, CreatedMs: a.deps.Now().UnixMilli(),
		Secret: newSecret(),
	}
	err := retry.Coordinator(ctx, a.log, "join the cluster", func(ctx context.Context) (err error) {
		if a.cluster, err = ensureCluster(ctx, kv, create); err != nil {
			return err
		}
		if a.node, err = ensureNode(ctx, kv, store); err != nil {
			return err
		}
		id, err := coordinator.Take(ctx, kv, coordinator.KeyNextLog, 1)
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

// known reports whether a topic exists.
func (a *Agent) known(id [16]byte) bool {
	_, ok := a.view.TopicByID(id)
	return ok
}

// follow starts the view and the index.
func (a *Agent) follow(run context.Context) {
	a.index, a.tails = index.New(), index.NewTails()
	a.footers = fetch.NewFooters(a.deps.Store, a.cfg.FooterBytesMax)
	a.follower = lead.NewFollower(lead.FollowerConfig{
		Index: a.index, Tails: a.tails, Footers: a.footers, Known: a.known, Dropped: a.dropTopic, Log: a.log,
		Leads: func(id coordinator.ShardID) bool {
			_, ok := a.partitions.Leads(id)
			return ok
		},
		Merged: func(id coordinator.ShardID) int64 {
			shard, _ := a.view.Shard(id)
			return shard.Merged
		},
		CatchUp: a.catchUp, Answers: a.bucketAnswers,
	})
	a.view = coordinator.NewView(a.deps.KV, coordinator.ViewConfig{
		OnCommit: a.follower.OnCommit, OnTopic: a.follower.OnTopic, OnMember: a.members.tell, Log: a.log,
	})
	a.partitions = newPartitions(a.view, a.cluster.Shards)
	a.ledger = ledger.New(a.deps.KV, a.resign)
	a.manifests = upkeep.NewManifests(upkeep.Deps{
		Store: a.deps.Store, Ledger: a.ledger, Index: a.index, Cluster: a.clusterID, Known: a.known, ProducerIdle: a.cfg.ProducerIdleMax, Broken: a.fatal, Now: a.deps.Now,
	})
	a.spawn(run, "follow the coordinator", a.view.Run)
	a.spawn(run, "watch how full etcd is", a.watchSpace)
	a.spawn(run, "index commits", a.follower.Run)
	a.spawn(run, "write to the coordinator", func(ctx context.Context) error {
		a.ledger.Run(ctx)
		return nil
	})
}

// catchUp returns when the view has seen what etcd has now.
func (a *Agent) catchUp(ctx context.Context) error {
	var revision int64
	err := retry.Coordinator(ctx, a.log, "read the revision", func(ctx context.Context) (err error) {
		_, revision, err = a.deps.KV.Get(ctx, coordinator.KeyCluster)
		return err
	})
	if err != nil {
		return err
	}
	return a.view.Wait(ctx, revision)
}

// peerStoresMax limits connections of other agents to the WAL store: a writer has one for each of its segments, and a few for the rest.
const peerStoresMax = 256

// reachPeers makes what this agent has of others: their WAL stores, and the blocks of segments that those of its zone have in memory.
func (a *Agent) reachPeers(run context.Context) error {
	peers := a.deps.Peers
	var err error
	if peers == nil {
		if peers, err = newNetwork(a.credentials()); err != nil {
			return err
		}
	}
	a.stores = newStores(a.deps.Disk, a.view, peers)
	context.AfterFunc(run, a.stores.close)
	a.peers = forward.NewPeers(a.view, func(ctx context.Context, to coordinator.Agent) (net.Conn, error) {
		return dial(ctx, peers, to, forwarding)
	}, a.log)
	kick := a.members.subscribe()
	a.spawn(run, "keep connections to agents that are there", func(ctx context.Context) error { return a.peers.Run(ctx, kick) })
	if a.deps.Ask == nil {
		a.deps.Ask = a.peers.Ask
	}
	n := &neighbours{view: a.view, zone: a.cfg.Zone, network: peers}
	bucket := a.openDiskCache(run, cache.NewBucket(a.deps.Store))
	a.source = zone.New(zone.Config{Self: a.node, Homes: n.homes, Dial: n.dial, Log: a.log}, bucket)
	if a.blocks, err = cache.New(cache.Config{BytesMax: a.cfg.CacheBytesMax}, a.source); err != nil {
		return err
	}
	context.AfterFunc(run, func() {
		a.blocks.Close()
		a.source.Close()
	})
	a.zone = zone.NewServer(a.blocks, a.cfg.CacheBytesMax)
	return nil
}

// credentials are what this agent and the others know each other by.
func (a *Agent) credentials() peering.Credentials {
	return peering.Credentials{Cluster: a.clusterID, Secret: a.cluster.Secret, TLS: a.deps.PeerTLS}
}

// servePeers lets other agents keep copies of their logs on this agent's disk, have blocks from its cache, and forward requests to it, if there is a place for it.
func (a *Agent) servePeers(run context.Context) error {
	if a.deps.PeerListener == nil {
		return nil
	}
	server, err := peering.NewServer(peering.ServerConfig{
		Identity: a.deps.Disk.Identity(), Credentials: a.credentials(), Metrics: a.deps.Metrics, Logger: a.log,
	})
	if err != nil {
		return err
	}
	walServer := peer.NewServer(peer.ServerConfig{Store: a.deps.Disk, Metrics: a.deps.Metrics, Logger: a.log})
	server.Handle(peer.ServiceName, peerStoresMax, walServer.Serve)
	server.Handle(forwarding, a.cfg.Server.ConnectionsMax, a.server.ServeAgent)
	server.Handle(blocksService, zone.ConnectionsMax, a.zone.Serve)
	listener := a.deps.PeerListener
	a.spawn(run, "serve peers", func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
		err := server.Serve(listener)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), retry.CallTimeout)
		defer cancel()
		// And wait: connections use the disk, which may be closed when Run has returned.
		if err := server.Close(limited); err != nil {
			a.log.Warn("end the peers' connections", "err", err)
		}
		return err
	})
	return nil
}

// register makes the agent known, which others may then give copies of their logs, and waits until the view has seen that, and all that was there before.
func (a *Agent) register(run, ctx context.Context, store string) error {
	a.registration = &registration{writing: make(chan struct{}, 1), kv: a.deps.KV, view: a.view, changed: a.members.subscribe(), log: a.log, now: a.deps.Now, me: coordinator.Agent{
		Node: a.node, Log: a.id, Host: a.cfg.AdvertiseHost, Port: a.cfg.AdvertisePort,
		Store: store, Peer: a.cfg.PeerAdvertise, Zone: a.cfg.Zone, State: coordinator.AgentStarting,
		Copies: a.cfg.Copies,
	}}
	revision, err := a.registration.register(ctx)
	if err != nil {
		return err
	}
	a.lease = a.spawn(run, "keep the registration", a.registration.keep)
	return a.view.Wait(ctx, revision)
}

// recoverOwn brings to their end the logs that nobody else can: those that lie on this agent's disk alone, and one of which an operator has said that it is lost.
// Then it frees what the disk need not hold any more.
func (a *Agent) recoverOwn(ctx context.Context, store string, held []disk.SegmentInfo) error {
	var logs coordinator.Logs
	err := retry.Coordinator(ctx, a.log, "list WAL logs", func(ctx context.Context) (err error) {
		logs, err = coordinator.ListLogs(ctx, a.deps.KV, 0)
		return err
	})
	if err != nil {
		return err
	}
	for i := range logs.Records {
		l := &logs.Records[i]
		switch lost := l.ID == a.cfg.AcceptLoss; {
		case l.Closed:
			continue
		case lost:
			err = a.acceptLoss(ctx, *l)
		case l.ID < a.cluster.Restored, !isAlone(*l, store): // one from before a restore may have to wait for other agents' disks
			continue
		case !holds(held, *l):
			// Before it is claimed: it may have a writer that lives, on the disk that this one is a copy of.
			return fmt.Errorf("WAL log %s is to be on this disk alone, which does not have it: the disk has lost it, or is another one's copy", l.ID)
		default:
			err = a.recovery().Run(ctx, l.ID)
		}
		switch {
		case recovery.Fenced(err):
			a.log.Info("another agent recovers the WAL log", "log", l.ID) // it reaches this disk; if it dies, succeed takes over
		case err != nil:
			return err
		default:
			l.Closed = true
		}
	}
	unlisted, err := recovery.Sweep(a.deps.Disk, held, logs, a.cluster, a.cfg.AcceptLoss)
	if err != nil {
		return err
	}
	return recovery.CheckUnlisted(a.deps.Disk, unlisted)
}

// isAlone reports whether a log is on that store, and has never been on another. That the store would suffice to recover it is not enough: of two stores with a quorum
// of two one does, and the other may be the writer's, which lives.
func isAlone(l coordinator.Log, store string) bool {
	return !slices.ContainsFunc(l.Segments, func(s coordinator.WALSegment) bool { return len(s.Stores) != 1 || s.Stores[0] != store })
}

// holds reports whether a disk that held these segments has the log's open one.
func holds(held []disk.SegmentInfo, l coordinator.Log) bool {
	return slices.ContainsFunc(held, func(s disk.SegmentInfo) bool {
		return s.ID.Log == wal.LogID(l.ID) && slices.ContainsFunc(l.Segments, func(x coordinator.WALSegment) bool { return x.Last < 0 && x.Number == s.ID.Number })
	})
}

// acceptLoss brings a log to its end of which an operator has said that it is lost: with what the stores in reach still have of it, if they are enough.
func (a *Agent) acceptLoss(ctx context.Context, l coordinator.Log) error {
	if slices.ContainsFunc(a.view.Agents(), func(m coordinator.Agent) bool { return m.Log == l.ID }) {
		return fmt.Errorf("WAL log %s is not lost: its agent, node %d, lives", l.ID, l.Node)
	}
	if l.ID < a.cluster.Restored || recovery.Recoverable(l, a.stores.reach) {
		return a.recovery().RunDamaged(ctx, l.ID, a.deps.Disk)
	}
	return a.recovery().Abandon(ctx, l.ID)
}

// sweepPause is how often the disk is looked through for what it need not hold any more.
const sweepPause = 10 * time.Second

// sweepStore frees, at intervals, what the disk holds of logs that are over. It ends the agent if its own log was claimed: an idle one would not notice.
func (a *Agent) sweepStore(ctx context.Context) error {
	seen := make(map[wal.SegmentID]time.Time) // segments of logs that are not listed, and since when
	return retry.Every(ctx, sweepPause, func() error {
		held := a.deps.Disk.Segments()
		var logs coordinator.Logs
		err := retry.Coordinator(ctx, a.log, "list WAL logs", func(ctx context.Context) (err error) {
			if logs, err = coordinator.ListLogs(ctx, a.deps.KV, 0); err != nil {
				return err
			}
			return a.registration.checkLog(logs)
		})
		if err != nil {
			return err
		}
		unlisted, err := recovery.Sweep(a.deps.Disk, held, logs, a.cluster, a.cfg.AcceptLoss)
		if err != nil {
			return err
		}
		return a.sweepUnlisted(unlisted, seen)
	})
}

// unlistedMax is how long a segment of a log that is not listed stays: longer than any transaction is under way.
const unlistedMax = time.Hour

// sweepUnlisted drops segments that have been unlisted for so long that their logs never will be listed.
func (a *Agent) sweepUnlisted(unlisted []disk.SegmentInfo, seen map[wal.SegmentID]time.Time) error {
	now := a.deps.Now()
	still := make(map[wal.SegmentID]bool)
	for _, s := range unlisted {
		still[s.ID] = true
		since, ok := seen[s.ID]
		switch {
		case !ok:
			seen[s.ID] = now
		case now.Sub(since) > unlistedMax:
			if err := recovery.Drop(a.deps.Disk, s.ID); err != nil {
				return err
			}
		}
	}
	maps.DeleteFunc(seen, func(id wal.SegmentID, _ time.Time) bool { return !still[id] })
	return nil
}

// openLog begins the agent's own log: first on the stores of its ensemble, then in the coordinator, so that a log that is listed is on its stores; and its flush.
func (a *Agent) openLog(run, ctx context.Context, store string) error {
	need := placement.Need{
		Log: placement.LogID(a.id), Own: placement.Store{ID: store, Node: a.node, Zone: a.cfg.Zone},
		Copies: a.cfg.Copies, Quorum: a.cfg.Copies/2 + 1,
	}
	a.keeper = ensemble.New(ensemble.Config{Log: a.id, Fence: 1, Own: need.Own, Copies: need.Copies, Quorum: need.Quorum}, ensemble.Deps{
		Candidates: a.stores.candidates, Create: a.stores.create, Now: a.deps.Now, Logger: a.log,
		Rolled: func() { a.flusher.Hurry(int64(a.wal.Durable())) },
	})
	segment, copies, err := a.firstSegment(run, ctx, need)
	if err != nil {
		return err
	}
	record, revision, err := openLog(ctx, a.deps.KV, a.log, a.id, a.node, segment)
	if err != nil {
		return err
	}
	a.wal, err = wal.New(wal.Config{ //nolint:contextcheck // the log ends by Close, after the drain
		Segment: wal.SegmentID{Log: wal.LogID(a.id), Number: segment.Number}, Fence: 1, First: 1, Quorum: segment.Quorum,
		BytesMax: a.cfg.WALBytesMax, CacheBytes: a.cfg.WALCacheBytes, OwnerBytes: ingest.EntryMemoryBytes,
		OnLost: a.keeper.Lost, OnFull: func(last wal.EntryID) { a.flusher.Hurry(int64(last)) },
	}, copies...)
	if err != nil {
		return err
	}
	a.startFlush(run, record, revision)
	a.keeping = a.spawn(run, "keep the WAL's ensemble", func(ctx context.Context) error { return a.keeper.Run(ctx, a.wal, a.writer) })
	kick := a.members.subscribe()
	a.spawn(run, "watch for WAL stores", func(ctx context.Context) error {
		for {
			select {
			case <-kick:
				a.keeper.Changed()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return nil
}

// firstSegment begins the log on an ensemble, and waits until there are enough stores for one, and room on the own disk.
func (a *Agent) firstSegment(run, ctx context.Context, need placement.Need) (coordinator.WALSegment, []wal.Copy, error) {
	kick := a.members.subscribe()
	said, full := "", false
	for number := uint32(1); ; {
		segment := coordinator.WALSegment{Number: number, First: 1, Last: -1, Quorum: need.Quorum}
		var copies []wal.Copy
		chosen, err := placement.Ensemble(need, a.keeper.Candidates(), nil)
		if err == nil {
			segment.Stores = chosen
			number++ // one that came to nothing may be on some store
			copies, err = a.keeper.Create(ctx, segment, 1)
			if now := errors.Is(err, errNoRoom); now != full {
				full = now
				if err := a.tellFull(run, ctx, full, err); err != nil {
					return segment, nil, err
				}
			}
		}
		pause := segmentPause
		switch {
		case err == nil:
			return segment, copies, nil
		case ctx.Err() != nil:
			return segment, nil, ctx.Err()
		case full:
			pause = roomPause
		case said != err.Error():
			said = err.Error()
			a.log.Warn("waiting for stores to keep copies of the WAL", "copies", need.Copies, "quorum", need.Quorum, "err", err,
				"hint", "other agents, with --peer-listen, or --wal-copies 1 for one agent alone")
		}
		select {
		case <-kick:
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

const (
	// segmentPause is the wait after a first segment that could not be begun, and roomPause if the agent's own disk is full: a try writes to what room there is.
	segmentPause = time.Second
	roomPause    = 3 * time.Second
)

// tellFull tells the others, and the log, that the agent waits for room on its disk, or no longer does. While it waits it recovers logs: what they leave on the disk
// is room, and agents that find all their disks full would wait for each other.
func (a *Agent) tellFull(run, ctx context.Context, full bool, why error) error {
	if full {
		a.help(run)
		a.log.Error("waiting for room on the WAL's disk", "to", "begin a log", "err", why,
			"hint", "other agents read what is on it, and what they or this one have recovered becomes room; else make some")
	} else {
		a.log.Info("there is room on the WAL's disk")
	}
	return a.registration.change(ctx, "tell whether the WAL's disk is full", func(me *coordinator.Agent) { me.Full = full })
}

// startFlush starts the flush of the agent's own log.
func (a *Agent) startFlush(run context.Context, record coordinator.Log, revision int64) {
	a.writer = flush.NewWriter(flush.WriterConfig{
		KV: a.deps.KV, Store: a.deps.Store, Cluster: a.clusterID, Record: record, Revision: revision, Now: a.deps.Now, Log: a.log,
	})
	a.flusher = flush.New(a.cfg.Flush, flush.Deps{
		Writer: a.writer, Committed: a.follower.Committed, Now: a.deps.Now, Log: a.log,
		Trim:    func(entry int64) { a.wal.Trim(wal.EntryID(entry)) },
		Crowded: func() bool { return a.cfg.Merge.Crowded(a.tails.Len()) },
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
}

// startGroups starts the coordinator of the consumer groups.
func (a *Agent) startGroups(run context.Context) {
	a.verifier = &txns.Verifier{View: a.view, Ask: a.ask}
	a.ids = newProducerIDs(a.deps.KV)
	cfg := groups.DefaultConfig(a.cluster.Shards)
	cfg.InitialDelay = a.cfg.GroupDelay
	a.groups = groups.New(cfg, groups.Deps{
		KV: a.deps.KV, Ledger: a.ledger, Leads: a.partitions.Leads, Prove: a.prove, Topics: a.view, Now: a.deps.Now,
		Verify: func(ctx context.Context, t groups.Transaction) error {
			return a.verifier.VerifyGroup(ctx, t.ID, t.Producer, t.Epoch, t.Shard, t.Add)
		},
		CoordinatorEpoch: func(id string) int32 {
			shard, _ := a.view.Shard(coordinator.ShardOfName(id, a.cluster.Shards))
			return shard.Epoch
		},
		NewID: func() string { return uuid.NewString() }, Log: a.log, Metrics: a.deps.Metrics,
	})
	topic := a.cfg.Topics
	topic.Replication = int16(a.cfg.Copies)
	a.topics = topics.New(topic, topics.Deps{
		KV: a.deps.KV, View: a.view, Now: a.deps.Now, Log: a.log, NewID: func() protocol.TopicID { return newID() },
		Deleted: a.groups.TopicDeleted, Node: a.shownNode(), Broker: a.brokerConfigs(),
	})
	a.spawn(run, "delete offsets of topics", a.dropOffsets)
	a.spawn(run, "coordinate groups", func(ctx context.Context) error {
		a.groups.Run(ctx)
		return nil
	})
}

// startTxns starts the coordinator of transactions.
func (a *Agent) startTxns(run context.Context) {
	cfg := txns.DefaultConfig(a.cluster.Shards)
	cfg.TimeoutMax, cfg.Expiration = a.cfg.TxnTimeoutMax, a.cfg.TxnIDIdleMax
	a.txns = txns.New(cfg, txns.Deps{
		KV: a.deps.KV, Ledger: a.ledger, View: a.view, Ask: a.ask, NextID: a.ids.Next, Prove: a.prove, Now: a.deps.Now, Log: a.log, Metrics: a.deps.Metrics,
	})
	a.spawn(run, "coordinate transactions", a.txns.Run)
}

// ask has an agent, this one or another, answer a request of this agent's own.
func (a *Agent) ask(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error) {
	if to.Log == a.id {
		return a.Answer(ctx, req)
	}
	return a.deps.Ask(ctx, to, req)
}

// Answer answers a request that an agent, this one or another, asks on its own: what Deps.Ask of the others brings. It fails while the agent does not serve.
func (a *Agent) Answer(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	b := a.api.Load()
	if b == nil {
		return nil, protocol.CoordinatorNotAvailable.Errorf("node %d does not serve yet", a.node)
	}
	return b.Local(ctx, req)
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
		"transaction.max.timeout.ms":       strconv.FormatInt(a.cfg.TxnTimeoutMax.Milliseconds(), 10),
		"transactional.id.expiration.ms":   strconv.FormatInt(a.cfg.TxnIDIdleMax.Milliseconds(), 10),
	}
}

// serve lets clients in.
func (a *Agent) serve(run context.Context) {
	a.startUpkeep(run)
	a.measure()
	reader := fetch.NewReader(a.index, a.footers, a.blocks)
	handler := a.broker(fetch.New(reader), fetch.NewLookup(a.index, reader, a.cfg.Server.FrameBytesMax),
		api.Deps{Ingest: ingest.New(a.wal, a.flusher, a.deps.Now)})
	a.server.Open(a.balanced(run, handler))
	a.spawn(run, "forget idle producers", a.expireProducers)
}
