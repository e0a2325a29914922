package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	product "github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
	"github.com/varve-io/varve/wal/disk"
)

// node is one incarnation of the product's agent, with the disk of its machine.
type node struct {
	process
	c        *cluster
	machine  *host
	listener *listener
	clients  map[string]*kafka
	high     map[int32]int64 // high watermarks that readers saw, by partition
	store    atomic.Pointer[disk.Store]
	agent    atomic.Pointer[product.Agent]
	clock    atomic.Int64       // nanoseconds by which it is wrong
	stop     context.CancelFunc // tells it to leave
	over     atomic.Bool
	err      error // why it ended, once over
}

// start starts the next node on a machine.
func (c *cluster) start(m *host) *node {
	c.starts++
	n := &node{
		c: c, machine: m, process: newProcess(fmt.Sprintf("a%d", c.starts)), listener: newListener(),
		clients: make(map[string]*kafka), high: make(map[int32]int64),
	}
	if m.node != nil {
		m.held = m.holds()
	}
	m.node = n
	c.nodes = append(c.nodes, n)
	c.note("%s starts on %s", n.name, m.name)
	n.clock.Store(int64(time.Duration(c.rng.IntN(7200)-3600) * time.Second))
	fs := &machineFS{Disk: m.disk, w: c.world, by: &n.process}
	var ctx context.Context
	ctx, n.stop = context.WithCancel(c.ctx)
	go n.exist(ctx, fs)
	return n
}

// exist is a node's life, as the command line puts it together.
func (n *node) exist(ctx context.Context, fs disk.FS) {
	defer n.over.Store(true)
	defer n.listener.Close()
	store, err := disk.Open(disk.Config{FS: fs, FileBytes: walFileBytes}) //nolint:contextcheck // its disk ends with the process
	if err != nil {
		n.err = err
		return
	}
	n.store.Store(store)
	cfg := product.Defaults()
	cfg.Copies = n.c.copies
	cfg.Zone, cfg.AdvertiseHost, cfg.AdvertisePort, cfg.PeerAdvertise = n.machine.zone, n.machine.name, 9092, n.machine.name
	cfg.WALBytesMax, cfg.WALCacheBytes, cfg.CacheBytesMax, cfg.FooterBytesMax = 4<<20, 64<<10, 1<<20, 1<<20
	cfg.Flush.SegmentBytes, cfg.Flush.AgeMax, cfg.GroupDelay = 1500, n.c.ageMax, 100*time.Millisecond
	cfg.Merge = upkeep.MergeConfig{DataBytes: 6000, CommitsMax: 8, KeyBytesMax: 64 << 10, AgeMax: time.Minute}
	cfg.Clean = upkeep.CleanConfig{Pause: 2 * time.Second, MemoryBytes: 100, DataBytes: 6000}
	cfg.Garbage = upkeep.GarbageConfig{Pause: 5 * time.Second, Grace: 30 * time.Second}
	if n.c.retention > 0 {
		cfg.RetentionPause = n.c.retention
	}
	if n.c.copyPause > 0 {
		cfg.CopyPause = n.c.copyPause
	}
	if n.c.broken.forgetProducers {
		cfg.ProducerIdleMax = -cfg.ProducerIdleMax
	}
	a := product.New(cfg, product.Deps{
		KV:    &agentKV{Store: n.c.kv, w: n.c.world, by: &n.process},
		Store: &agentBucket{Store: n.c.bucket, w: n.c.world, by: &n.process},
		Disk:  store, Listener: n.listener, Peers: network{n}, Ask: network{n}.Ask, Metrics: prometheus.NewRegistry(), Log: n.logger(),
		Now: n.now,
	})
	n.agent.Store(a)
	n.err = a.Run(ctx)
	if err := store.Close(); err != nil && n.err == nil {
		n.err = err
	}
}

// now is the time as its machine has it.
func (n *node) now() time.Time { return time.Now().Add(time.Duration(n.clock.Load())) }

// jump sets its clock forward or back. What measures how long something takes is wrong with it, which is worse than on a real machine: it must not go back by much.
func (n *node) jump(d time.Duration) {
	n.c.note("the clock of %s jumps by %v", n.name, d)
	n.clock.Add(int64(d))
}

// leave tells it to leave.
func (n *node) leave() {
	n.c.note("%s is told to leave", n.name)
	if n.c.broken.leavesAtOnce {
		n.c.lose(n)
		return
	}
	n.stop()
}

// logger puts what the agent says beside the trace.
func (n *node) logger() *slog.Logger {
	if n.c.log == nil {
		return discard
	}
	return slog.New(slog.NewTextHandler(aside{n}, &slog.HandlerOptions{Level: slog.LevelInfo, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// aside is what an agent says.
type aside struct{ *node }

func (a aside) Write(p []byte) (int, error) {
	a.c.aside("%s says: %s", a.name, bytes.TrimSpace(p))
	return len(p), nil
}

// lives reports whether the node has not ended; nil has.
func (n *node) lives() bool { return n != nil && !n.dead && !n.over.Load() }

// serves returns its store; nil if it does not serve.
func (n *node) serves() *disk.Store {
	if !n.lives() {
		return nil
	}
	return n.store.Load()
}

// identity is that of its disk; empty while it is not known.
func (n *node) identity() string {
	if s := n.store.Load(); s != nil {
		return s.Identity().String()
	}
	return ""
}

// number is its node id; 0 while it has none.
func (n *node) number() int32 {
	if !n.ready() {
		return 0
	}
	return n.agent.Load().Node()
}

// ready reports whether it serves clients.
func (n *node) ready() bool {
	if !n.lives() || n.agent.Load() == nil {
		return false
	}
	select {
	case <-n.agent.Load().Ready():
		return true
	default:
		return false
	}
}

// life implements broker.
func (n *node) life() *process { return &n.process }

// produce implements broker.
func (n *node) produce(number int32, s *send) func() (protocol.Offset, error, bool) {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = number, s.bytes
	t := kmsg.NewProduceRequestTopic()
	t.Topic, t.Partitions = n.c.topic.Name, []kmsg.ProduceRequestTopicPartition{p}
	r := kmsg.NewPtrProduceRequest()
	r.Version, r.Acks, r.TimeoutMillis, r.Topics = 9, -1, 30_000, []kmsg.ProduceRequestTopic{t}
	x := n.connection(fmt.Sprintf("p%d", s.writer)).ask(r)
	return func() (protocol.Offset, error, bool) {
		if !x.answered() {
			return 0, nil, false
		}
		if x.response == nil {
			return 0, errConnection, true
		}
		a := x.response.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		return protocol.Offset(a.BaseOffset), errorOf(a.ErrorCode), true
	}
}

// commitRequest commits an offset of a group, for a member of it or for none.
func (c *cluster) commitRequest(group, member string, generation int32, offset int64) *kmsg.OffsetCommitRequest {
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Offset = offset
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic, t.Partitions = c.topic.Name, []kmsg.OffsetCommitRequestTopicPartition{p}
	r := kmsg.NewPtrOffsetCommitRequest()
	r.Version, r.Group, r.MemberID, r.Generation, r.Topics = 8, group, member, generation, []kmsg.OffsetCommitRequestTopic{t}
	return r
}

// commit implements broker.
func (n *node) commit(c *committer, offset int64) func() (error, bool) {
	x := n.connection(c.group).ask(n.c.commitRequest(c.group, "", -1, offset))
	return func() (error, bool) {
		if !x.answered() {
			return nil, false
		}
		if x.response == nil {
			return errConnection, true
		}
		return errorOf(x.response.(*kmsg.OffsetCommitResponse).Topics[0].Partitions[0].ErrorCode), true
	}
}

// reading is a fetch under way.
type reading struct {
	from     *node
	number   int32
	offset   int64
	high     int64 // watermark that was seen before
	exchange *exchange
}

// readsMax is how many fetches are under way.
const readsMax = 4

// read implements broker: somewhere below what somebody was told is there. Half of the readers say that they are in the zone of some node, and ask that one.
func (n *node) read(number int32) {
	floor := n.c.load.logs[number].floor
	if floor < 0 || len(n.c.reads) >= readsMax {
		return
	}
	start := n.c.check.starts[number]
	offset := min(start+n.c.rng.Int64N(max(floor-start, 0)+1), floor)
	if all := n.c.living(); n.c.rng.IntN(2) == 0 {
		near := all[n.c.rng.IntN(len(all))]
		near.readFrom(number, offset, near.machine.zone)
		return
	}
	n.readFrom(number, offset, "")
}

// readFrom asks for records from an offset on, as a consumer in that zone; empty for one that does not say.
func (n *node) readFrom(number int32, offset int64, zone string) {
	n.c.note("%s: read %d from %d, in zone %q", n.name, number, offset, zone)
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = number, offset, 2000
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = n.c.topic.Name, []kmsg.FetchRequestTopicPartition{p}
	r := kmsg.NewPtrFetchRequest()
	r.Version, r.MaxBytes, r.SessionEpoch, r.Topics, r.Rack = 12, 4000, -1, []kmsg.FetchRequestTopic{t}, zone
	// A connection of its own: an answer may be long in coming.
	n.c.reads = append(n.c.reads, &reading{
		from: n, number: number, offset: offset, high: n.high[number], exchange: n.connection(fmt.Sprint("reader", n.c.rng.IntN(readsMax))).ask(r),
	})
}

// pollReads takes the answers to fetches.
func (c *cluster) pollReads() {
	var open []*reading
	for _, r := range c.reads {
		switch {
		case c.isDead(&r.from.process):
		case !r.exchange.answered():
			open = append(open, r)
		case r.exchange.response != nil:
			c.readAnswer(r)
		}
	}
	c.reads = open
}

func (c *cluster) readAnswer(r *reading) {
	p := r.exchange.response.(*kmsg.FetchResponse).Topics[0].Partitions[0]
	code := protocol.ErrorCode(p.ErrorCode)
	if code != protocol.None {
		c.aside("%s: read %d from %d: %v", r.from.name, r.number, r.offset, code)
		if code == protocol.OffsetOutOfRange && r.offset >= c.check.starts[r.number] {
			c.check.report("1: offset %d of partition %d was acknowledged, %s says that it is out of range", r.offset, r.number, r.from.name)
		}
		return
	}
	if p.PreferredReadReplica >= 0 {
		c.aside("%s: read %d from %d: rather from node %d", r.from.name, r.number, r.offset, p.PreferredReadReplica)
		return
	}
	if p.HighWatermark < r.high {
		c.check.report("3: high watermark of %d fell from %d to %d on %s", r.number, r.high, p.HighWatermark, r.from.name)
	}
	r.from.high[r.number] = max(r.from.high[r.number], p.HighWatermark)
	records, err := parseAll(p.RecordBatches)
	if err != nil {
		c.check.report("8: %s serves a batch that cannot be read: %v", r.from.name, err)
		return
	}
	c.note("%s: %d records of %d from %d", r.from.name, len(records), r.number, r.offset)
	if len(records) == 0 && !c.owns(r.from, c.shardOf(r.number)) {
		return // one that does not know yet that another leads; as in Kafka
	}
	if c.compacted {
		c.readCompacted(r, p.RecordBatches, records)
		return
	}
	if len(records) == 0 || records[0].Offset > r.offset || records[len(records)-1].Offset < r.offset {
		c.check.report("1: %s answers %d records for offset %d of partition %d, which was acknowledged", r.from.name, len(records), r.offset, r.number)
		return
	}
	c.load.logs[r.number].seen = append(c.load.logs[r.number].seen, records...)
}

// parseAll gives the records of batches, one behind the other; the last may be cut.
func parseAll(b []byte) ([]check.Record, error) {
	var all []check.Record
	for len(b) > 0 {
		h, err := batch.Parse(b)
		if err != nil {
			return nil, err
		}
		n := h.Size()
		if n > len(b) {
			return nil, errors.New("a batch is cut")
		}
		records, err := parse(b[:n])
		if err != nil {
			return nil, err
		}
		all, b = append(all, records...), b[n:]
	}
	return all, nil
}
