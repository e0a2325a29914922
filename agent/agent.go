// Package agent is the life of one Varve agent: how it joins its cluster, what it recovers, what it leads, and how it leaves.
//
//	join -> register -> recover old WAL logs -> open a log of its own -> serve -> take shards, and give them -> drain
//
// DESIGN.md tells each step, its invariants and its failures. The rooms below do the work: server and api speak Kafka, ingest and fetch
// move records, flush fills the bucket, groups coordinates consumers.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/api"
	"github.com/varve-io/varve/agent/ensemble"
	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/forward"
	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/diskcache"
	"github.com/varve-io/varve/objectstore/metered"
	"github.com/varve-io/varve/objectstore/zone"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// Config is what an operator decides about an agent.
type Config struct {
	Zone          string // empty for none
	AdvertiseHost string // where clients are sent
	AdvertisePort int32
	// Balancer says that AdvertiseHost and AdvertisePort are those of a load balancer in front of all agents: clients are told of one broker there, and whichever
	// agent they get answers everything.
	Balancer       bool
	PeerAdvertise  string // host:port at which other agents reach this one; empty if they do not
	Copies         int    // stores that hold each entry of the WAL; more than half of them acknowledge it
	Shards         uint32 // of a cluster that this agent creates
	Topics         topics.Config
	AutoCreate     bool // auto.create.topics.enable
	Server         server.Config
	Flush          flush.Config
	Merge          upkeep.MergeConfig
	Clean          upkeep.CleanConfig
	Garbage        upkeep.GarbageConfig
	DiskCache      diskcache.Config // of 0 bytes for none; its Log is the agent's
	RetentionPause time.Duration    // between two looks for records that are past their topics' retention
	CopyPause      time.Duration    // between two copies of the coordinator's state in the bucket

	WALBytesMax     int64         // unflushed bytes; beyond it producers wait
	WALCacheBytes   int64         // flushed bytes that stay in memory for consumers of the tail
	CacheBytesMax   int64         // blocks of segments in memory
	FooterBytesMax  int64         // memory that footers of segments take; enough for those of the commits that a merge reads, MergeConfig.KeyBytesMax of them, or it reads them once for each shard
	GroupDelay      time.Duration // that a new group waits for more members (group.initial.rebalance.delay.ms)
	ProducerIdleMax time.Duration // after which an idempotent producer is forgotten (producer.id.expiration.ms)
	TxnTimeoutMax   time.Duration // of transactions that producers ask for (transaction.max.timeout.ms)
	TxnIDIdleMax    time.Duration // after which a transactional id is forgotten (transactional.id.expiration.ms)
	DrainMax        time.Duration // how long leaving may take

	// AcceptLoss is an operator's word that what this WAL log still holds is lost and may be given up: its disk is gone, or damaged where it
	// was durable. 0 for none.
	AcceptLoss coordinator.LogID
}

// Defaults returns the settings that hold unless they are configured. Advertise fields are empty.
func Defaults() Config {
	return Config{
		Copies: 3, Shards: 128, AutoCreate: true, Topics: topics.Defaults(), Server: server.Defaults(),
		Flush: flush.Config{
			SegmentBytes: flush.SegmentBytesDefault, AgeMax: flush.AgeMaxDefault, UploadsMax: flush.UploadsMaxDefault,
		},
		Merge: upkeep.DefaultMergeConfig(), Clean: upkeep.DefaultCleanConfig(), Garbage: upkeep.DefaultGarbageConfig(), RetentionPause: upkeep.RetentionPause,
		CopyPause:   rebuild.CopyPause,
		WALBytesMax: 512 << 20, WALCacheBytes: 128 << 20, CacheBytesMax: 256 << 20, FooterBytesMax: 128 << 20,
		GroupDelay: 3 * time.Second, ProducerIdleMax: 24 * time.Hour,
		TxnTimeoutMax: 15 * time.Minute, TxnIDIdleMax: 7 * 24 * time.Hour, DrainMax: 30 * time.Second,
	}
}

// Deps is what an agent works with. It closes none of it but the listener.
type Deps struct {
	KV       coordinator.KV
	Store    objectstore.Store
	Disk     *disk.Store
	Listener net.Listener
	// PeerListener is where other agents reach the disk; nil if they do not. PeerTLS is for both directions; nil for none.
	PeerListener net.Listener
	PeerTLS      *tls.Config
	// Peers reaches other agents, and Ask has one of them answer a request of Kafka's protocol; nil for protocol/peering over TCP.
	Peers   Peers
	Ask     func(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error)
	Metrics prometheus.Registerer
	Log     *slog.Logger
	Now     func() time.Time
}

// Agent is one incarnation. It runs once.
type Agent struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	joined chan struct{} // closed when node is set
	ready  chan struct{}
	tasks  sync.WaitGroup
	fatal  context.CancelCauseFunc // ends the incarnation

	cluster   coordinator.Cluster
	clusterID [16]byte
	node      int32
	id        coordinator.LogID // of its WAL log, and so of the incarnation

	members      members
	registration *registration
	stores       *stores
	peers        *forward.Peers
	bucket       *reach         // deps.Store
	etcd         *lineage       // deps.KV
	requests     *metered.Store // below it
	usage        *usage
	space        space
	draining     atomic.Bool
	deleted      chan string // topics

	view       *coordinator.View
	follower   *lead.Follower
	index      *index.Index
	tails      *index.Tails
	footers    *fetch.Footers
	disk       *diskcache.Source // of blocks, before the bucket; nil for none
	source     *zone.Source      // of blocks
	blocks     *cache.Cache
	zone       *zone.Server
	partitions *Partitions
	damaged    damage
	ledger     *ledger.Ledger
	ids        *producerIDs
	manifests  *upkeep.Manifests
	merger     *upkeep.Merger
	cleaner    *upkeep.Cleaner
	copier     *rebuild.Copier
	groups     *groups.Coordinator
	txns       *txns.Coordinator
	verifier   *txns.Verifier
	topics     *topics.Topics
	server     *server.Server
	api        atomic.Pointer[api.Broker]
	wal        *wal.Log
	writer     *flush.Writer
	flusher    *flush.Flusher
	keeper     *ensemble.Keeper
	helping    sync.Once
	flushing   task
	keeping    task
	leading    task
	lease      task
}

// task is a goroutine that can be ended before the others.
type task struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (t *task) stop() {
	if t.cancel != nil {
		t.cancel()
		<-t.done
	}
}

// New returns an agent; [Agent.Run] makes it live.
func New(cfg Config, deps Deps) *Agent {
	counted := metered.New(deps.Store)
	bucket := newReach(counted)
	deps.Store = bucket
	etcd := &lineage{KV: deps.KV}
	deps.KV = etcd
	return &Agent{cfg: cfg, deps: deps, etcd: etcd, log: deps.Log, bucket: bucket, requests: counted, usage: newUsage(deps.Now()), deleted: make(chan string, deletedMax), joined: make(chan struct{}), ready: make(chan struct{})}
}

// Ready is closed when the agent serves clients.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Joined is closed when the agent has its node id.
func (a *Agent) Joined() <-chan struct{} { return a.joined }

// Node returns the agent's node id, once it has joined.
func (a *Agent) Node() int32 { return a.node }

// errStopped is the cause of a run that was asked to end.
var errStopped = errors.New("stopped")

// Run joins the cluster, serves, and, when ctx ends, drains: it answers what it has, flushes the WAL, closes its log and leaves. It returns
// nil after that, when nothing on its disk is needed any more, and otherwise what ended the incarnation, or kept it from draining in time: a disk that failed, a
// log that another agent has claimed, a broken invariant. Whatever it leaves behind then, the next incarnation recovers.
func (a *Agent) Run(ctx context.Context) error {
	// What runs outlives ctx until it is drained.
	run, fatal := context.WithCancelCause(context.WithoutCancel(ctx))
	a.fatal, a.etcd.setBack = fatal, fatal
	defer a.endLog(run)
	defer a.tasks.Wait()
	defer fatal(errStopped)
	starting, cancel := context.WithCancel(run)
	stop := context.AfterFunc(ctx, cancel)
	err := a.start(run, starting)
	stop()
	cancel()
	if err == nil {
		close(a.ready)
	} else if cause := context.Cause(run); cause != nil {
		return fmt.Errorf("start agent: %w", cause)
	} else if ctx.Err() == nil {
		return fmt.Errorf("start agent: %w", err)
	} else if a.wal == nil {
		return a.leaveEarly(run)
	}
	select {
	case <-ctx.Done():
		err = a.drain(run)
	case <-run.Done():
	}
	fatal(errStopped)
	if cause := context.Cause(run); !errors.Is(cause, errStopped) {
		return cause
	}
	return err
}

// endLog ends the goroutines of the WAL and lets go of its memory, if a drain has not. It changes nothing about what is in the log.
func (a *Agent) endLog(run context.Context) {
	if a.wal == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(run), retry.CallTimeout)
	defer cancel()
	if err := a.wal.Close(ctx); err != nil && !errors.Is(err, wal.ErrFailed) {
		a.log.Warn("the WAL did not end", "err", err)
	}
}

// spawn runs f until the incarnation ends; an error of it that is not the context's ends the incarnation.
func (a *Agent) spawn(ctx context.Context, what string, f func(context.Context) error) task {
	ctx, cancel := context.WithCancel(ctx)
	t := task{cancel: cancel, done: make(chan struct{})}
	a.tasks.Go(func() {
		defer close(t.done)
		defer cancel()
		pprof.Do(ctx, pprof.Labels("varve", what), func(ctx context.Context) {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				a.log.Error("the agent cannot go on", "what", what, "err", err)
				a.fatal(fmt.Errorf("%s: %w", what, err))
			}
		})
	})
	return t
}

// newID returns a random UUID.
func newID() [16]byte { return [16]byte(uuid.New()) }

// broker returns the APIs of the agent, once everything that they need is there.
func (a *Agent) broker(fetcher *fetch.Fetcher, lookup *fetch.Lookup, deps api.Deps) *api.Broker {
	deps.View, deps.Partitions, deps.Fetcher, deps.Lookup, deps.Index = a.view, a.partitions, fetcher, lookup, a.index
	deps.Groups, deps.Topics, deps.Manifests = a.groups, a.topics, a.manifests
	deps.Prove, deps.Flush, deps.Draining, deps.Refuses = a.prove, a.flush, a.draining.Load, a.merger.Refuses
	deps.ProducerIDs, deps.Txns, deps.Verifier = a.ids, a.txns, a.verifier
	deps.Now, deps.Log = a.deps.Now, a.log
	cfg := api.Config{Node: a.node, Zone: a.cfg.Zone, AutoCreate: a.cfg.AutoCreate}
	if a.cfg.Balancer {
		cfg.Balancer = coordinator.Agent{Node: balancerNode, Host: a.cfg.AdvertiseHost, Port: a.cfg.AdvertisePort}
	}
	b := api.New(cfg, deps)
	a.api.Store(b)
	return b
}
