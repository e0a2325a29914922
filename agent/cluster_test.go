package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/wal/disk"
)

// cluster is several agents that share etcd and bucket, each with a disk and a zone of its own, and with peers that keep copies of its log. Its methods are for
// the test's goroutine.
type cluster struct {
	kv      *memkv.Store
	bucket  *counted
	ahead   atomic.Int64 // by how much the clocks of all agents, and of etcd, are ahead of the real one, in nanoseconds
	change  func(*agent.Config)
	members []*member
}

// member is one agent's place in a cluster, and the incarnation that is there now.
type member struct {
	*running
	zone  string
	dir   string
	fs    disk.FS // of dir; nil for the real one
	agent *agent.Agent
	kill  func() // ends it without a flush; its log stays open
}

// newCluster starts an agent in each of the zones and returns when all of them serve. change may be nil.
func newCluster(t *testing.T, change func(*agent.Config), zones ...string) *cluster {
	t.Helper()
	c := &cluster{kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), bucket: &counted{Store: mem.New(), blocks: make(map[block]int)}, change: change}
	c.keepTime(t)
	for _, zone := range zones {
		c.members = append(c.members, &member{zone: zone, dir: t.TempDir()})
	}
	for i := range c.members {
		c.launch(t, i)
	}
	for _, m := range c.members {
		m.await(t)
	}
	t.Cleanup(func() { // at once: few agents cannot drain where the others are gone
		var all sync.WaitGroup
		for _, m := range c.members {
			all.Go(m.kill)
		}
		all.Wait()
	})
	return c
}

// now is the time in the cluster.
func (c *cluster) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// pass lets time pass for agents and etcd.
func (c *cluster) pass(d time.Duration) { c.ahead.Add(int64(d)) }

// keepTime ends leases.
func (c *cluster) keepTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.kv.Advance(c.now())
			case <-ctx.Done():
				return
			}
		}
	}()
}

// launch starts the agent of a member, on its disk, and does not wait until it serves.
func (c *cluster) launch(t *testing.T, i int) {
	t.Helper()
	m := c.members[i]
	d, err := disk.Open(disk.Config{Dir: m.dir, FS: m.fs, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	kafka, peers := listen(), listen()
	cfg := agent.Defaults()
	cfg.Zone, cfg.Shards = m.zone, 12
	cfg.AdvertiseHost, cfg.AdvertisePort = "127.0.0.1", int32(kafka.Addr().(*net.TCPAddr).Port)
	cfg.PeerAdvertise = peers.Addr().String()
	if c.change != nil {
		c.change(&cfg)
	}
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	ln := newLine(-1)
	m.agent = agent.New(cfg, agent.Deps{
		KV: &cutKV{c.kv, ln}, Store: &cutStore{c.bucket, ln}, Disk: d, Listener: kafka, PeerListener: peers, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(out, nil)).With("zone", m.zone), Now: c.now,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	m.running = &running{addr: kafka.Addr().String(), ended: ended}
	go func() {
		err := m.agent.Run(ctx)
		_ = d.Close()
		_ = kafka.Close()
		_ = peers.Close()
		ended <- err
	}()
	end := func() error {
		cancel()
		err := <-ended
		ended <- err
		return err
	}
	m.stop = func() {
		if err := end(); err != nil {
			t.Errorf("the agent in zone %s ended with %v", m.zone, err)
		}
	}
	m.kill = func() {
		ln.cut()
		_ = kafka.Close() // without which an agent does not go on
		err := <-ended    // whatever it says, it was killed
		ended <- err
		cancel()
	}
}

// await waits until the member serves.
func (m *member) await(t *testing.T) {
	t.Helper()
	select {
	case <-m.agent.Ready():
	case err := <-m.ended:
		m.ended <- err
		t.Fatalf("the agent in zone %s did not start: %v", m.zone, err)
	case <-time.After(30 * time.Second):
		t.Fatalf("the agent in zone %s is not ready after 30 s", m.zone)
	}
}

// client returns a client that knows all agents.
func (c *cluster) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	var seeds []string
	for _, m := range c.members {
		seeds = append(seeds, m.addr)
	}
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.MetadataMinAge(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// create makes a topic whose replicas are all agents.
func (c *cluster) create(t *testing.T, topic string, partitions int32) {
	t.Helper()
	resp, err := kadm.NewClient(c.client(t)).CreateTopic(t.Context(), partitions, int16(len(c.members)), nil, topic)
	if err != nil || resp.Err != nil {
		t.Fatalf("create topic %s: %v, %v", topic, err, resp.Err)
	}
}

// produce appends records to each of a topic's partitions, with their offsets, from and to the one before to, in front of padding as values, in batches of at
// most 4 KiB.
func (c *cluster) produce(t *testing.T, topic string, partitions int32, from, to int, padding string) {
	t.Helper()
	cl := c.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerBatchMaxBytes(4<<10))
	defer cl.Close()
	var records []*kgo.Record
	for p := range partitions {
		for i := from; i < to; i++ {
			records = append(records, &kgo.Record{Topic: topic, Partition: p, Value: []byte(fmt.Sprint(i, " ", padding))})
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// expect polls until each of a topic's partitions, whose next offsets are in next, has come up to offset to, each record once and in order.
func expect(t *testing.T, cl *kgo.Client, next []int64, to int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for slices.Min(next) < to {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("at offsets %v of %d: %v", next, to, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			var value int64
			if _, err := fmt.Sscan(string(r.Value), &value); err != nil || r.Offset != next[r.Partition] || value != r.Offset {
				t.Fatalf("partition %d has record %.20q at offset %d, want %d", r.Partition, r.Value, r.Offset, next[r.Partition])
			}
			next[r.Partition]++
		})
	}
}

// awaitCommits waits until all partitions of a topic are in the bucket up to that offset.
func (c *cluster) awaitCommits(t *testing.T, topic string, to int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	item, _, err := c.kv.Get(ctx, coordinator.KeyTopic(topic))
	if err != nil {
		t.Fatal(err)
	}
	record, err := coordinator.Decode[coordinator.Topic](item)
	if err != nil {
		t.Fatal(err)
	}
	ends := make(map[int32]int64)
	take := func(items ...coordinator.Item) {
		for _, it := range items {
			commit, err := coordinator.DecodeCommit(it.Value)
			if err != nil {
				t.Error(err)
			}
			for _, p := range commit.Partitions {
				if p.Topic == record.ID {
					ends[p.Partition] = max(ends[p.Partition], int64(p.NextOffset))
				}
			}
		}
		for p := range record.Partitions {
			if ends[p] < to {
				return
			}
		}
		cancel()
	}
	items, revision, err := c.kv.List(ctx, coordinator.PrefixCommits, 0)
	if err != nil {
		t.Fatal(err)
	}
	take(items...)
	_ = c.kv.Watch(ctx, coordinator.PrefixCommits, revision, func(b coordinator.Batch) {
		for _, e := range b.Events {
			if !e.Deleted {
				take(e.Item)
			}
		}
	})
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Fatalf("topic %s is committed up to %v, want %d", topic, ends, to)
	}
}

// leaders returns the members that lead a topic's partitions, by partition.
func (c *cluster) leaders(t *testing.T, topic string) []*member {
	t.Helper()
	meta, err := kadm.NewClient(c.client(t)).Metadata(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var all []*member
	for _, p := range meta.Topics[topic].Partitions.Sorted() {
		for _, m := range c.members {
			if m.agent.Node() == p.Leader {
				all = append(all, m)
			}
		}
	}
	return all
}
