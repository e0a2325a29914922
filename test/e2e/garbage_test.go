package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/test/servers"
)

// churnShards is few, so that topics share them.
const churnShards = 8

// TestNothingIsLeft has topics come and go, and what is in them, while agents merge all the time, are killed and leave. In the end each object of the bucket is one that something refers to, and there are as few as what is retained needs; and
// when nothing is retained, there are none but the newest manifests.
func TestNothingIsLeft(t *testing.T) {
	server := servers.Etcd(t, servers.EtcdOptions{})
	c := churn{t: t, lake: lake{
		cluster: cluster{etcd: "http://" + server.Address, name: "churn"}, objects: filepath.Join(t.TempDir(), "objects"),
	}, seen: make(map[string]bool)}
	seed := uint64(time.Now().UnixNano())
	c.rng = rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for i := range 3 {
		c.agents = append(c.agents, &churned{kafka: freeAddress(t), args: c.with("agent", "--zone", string("abc"[i]), "--peer-listen", freeAddress(t), "--http", freeAddress(t),
			"--data", filepath.Join(t.TempDir(), "data"), "--shards", strconv.Itoa(churnShards), "--merge-after", "1s", "--garbage-grace", "2s", "--retention-check", "1s")})
	}
	for _, a := range c.agents {
		a.start(t)
	}
	var seeds []string
	for _, a := range c.agents {
		a.process.ready(t)
		seeds = append(seeds, a.kafka)
	}
	c.client = connect(t, seeds[0], kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.UniformBytesPartitioner(1<<10, false, false, nil)), kgo.UnknownTopicRetries(-1))
	c.admin = kadm.NewClient(c.client)
	c.work()
	c.quiet()
	c.judge()

	// Nothing is retained any more.
	for i := range c.made {
		c.drop(within(t), topicName(i)) // or it does not exist any more
	}
	until(t, "nothing is left of topics that are deleted", func() bool {
		return len(named(t, c.objects, "merged/")) == 0 && len(named(t, c.objects, "segments/")) == 0
	})
	c.quiet()
	if n := c.judge(); n > churnShards {
		t.Errorf("%d objects of a cluster without records, want the newest manifests of %d shards at most", n, churnShards)
	}
}

// churned is an agent that comes and goes.
type churned struct {
	kafka   string
	args    []string
	process *process
}

func (a *churned) start(t *testing.T) {
	t.Helper()
	a.process = start(t, nil, append(slices.Clone(a.args), "--listen", a.kafka)...)
}

// churn is a workload that leaves as little as it can.
type churn struct {
	lake
	t      *testing.T
	rng    *rand.Rand
	agents []*churned
	client *kgo.Client
	admin  *kadm.Client
	topics []string        // that exist
	made   int             // topics that were created, or perhaps
	seen   map[string]bool // objects
}

func topicName(i int) string { return fmt.Sprintf("topic-%d", i) }

// drop deletes a topic.
func (c *churn) drop(ctx context.Context, topic string) {
	if answers, err := c.admin.DeleteTopics(ctx, topic); err == nil && (answers.Error() == nil || errors.Is(answers.Error(), kerr.UnknownTopicOrPartition)) {
		c.topics = slices.DeleteFunc(c.topics, func(name string) bool { return name == topic })
	}
}

// work goes on until the bucket has seen so many merges. An agent is killed, or drained, after every few of them.
func (c *churn) work() {
	const disruptions, mergesEach = 4, 4
	next := mergesEach
	for done := 0; done < disruptions || c.merges() < next; {
		c.step()
		if done == disruptions || c.merges() < next {
			continue
		}
		// Records come meanwhile, as far as there are leaders.
		writing, stop := context.WithCancel(c.t.Context())
		written := make(chan struct{})
		go func() {
			defer close(written)
			for writing.Err() == nil {
				_ = c.client.ProduceSync(writing, &kgo.Record{Topic: c.topics[0], Value: make([]byte, 1000)}).FirstErr() // it is cut off in the end
			}
		}()
		how := []os.Signal{syscall.SIGKILL, syscall.SIGTERM}[done%2]
		a := c.agents[c.rng.IntN(len(c.agents))]
		a.process.signal(c.t, how)
		if status := a.process.status(c.t); how == syscall.SIGTERM && status != 0 {
			c.t.Fatalf("exit status %d after SIGTERM", status)
		}
		a.start(c.t)
		a.process.ready(c.t)
		stop()
		<-written
		done++
		next = c.merges() + mergesEach
	}
	c.t.Logf("%d topics, %d objects seen, %d of them merged segments", c.made, len(c.seen), c.merges())
}

// merges looks at the bucket, and returns how many merged segments it has seen there.
func (c *churn) merges() int {
	n := 0
	for _, name := range named(c.t, c.objects, "") {
		c.seen[name] = true
	}
	for name := range c.seen {
		if strings.HasPrefix(name, "merged/") {
			n++
		}
	}
	return n
}

// step does one thing or another. What fails because an agent has just gone is tried again some other time.
func (c *churn) step() {
	ctx := within(c.t)
	if len(c.topics) < 3 {
		c.create(ctx)
		return
	}
	topic := c.topics[c.rng.IntN(len(c.topics))]
	switch n := c.rng.IntN(100); {
	case n < 4 && len(c.topics) < 20:
		c.create(ctx)
	case n < 7:
		c.drop(ctx, topic)
	case n < 12:
		c.deleteRecords(ctx, topic)
	case n < 17:
		name, value := c.retention()
		_, _ = c.admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic)
	default:
		records := make([]*kgo.Record, 1+c.rng.IntN(20))
		for i := range records {
			records[i] = &kgo.Record{Topic: topic, Value: make([]byte, c.rng.IntN(4000))}
		}
		if err := c.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			c.t.Fatalf("produce to %s: %v", topic, err)
		}
	}
}

func (c *churn) create(ctx context.Context) {
	configs := map[string]*string{}
	if c.rng.IntN(2) == 0 {
		key, value := c.retention()
		configs[key] = &value
	}
	name := topicName(c.made)
	c.made++
	if _, err := c.admin.CreateTopic(ctx, int32(1+c.rng.IntN(4)), 1, configs, name); err == nil {
		c.topics = append(c.topics, name)
	}
}

// retention is what a topic is to retain.
func (c *churn) retention() (name, value string) {
	switch c.rng.IntN(3) {
	case 0:
		return "retention.ms", strconv.Itoa(1000 + c.rng.IntN(10_000))
	case 1:
		return "retention.bytes", strconv.Itoa(c.rng.IntN(200_000))
	}
	return "retention.ms", "-1"
}

// deleteRecords deletes a part of what each partition of a topic has.
func (c *churn) deleteRecords(ctx context.Context, topic string) {
	ends, err := c.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return
	}
	up := make(kadm.Offsets)
	for partition, end := range ends[topic] {
		if end.Err == nil && end.Offset > 0 {
			up.Add(kadm.Offset{Topic: topic, Partition: partition, At: c.rng.Int64N(end.Offset + 1)})
		}
	}
	_, _ = c.admin.DeleteRecords(ctx, up)
}

// quiet waits until all that was written is merged, and all garbage is deleted, by fsck's account.
func (c *churn) quiet() {
	c.t.Helper()
	until(c.t, "all is merged, and garbage deleted", func() bool {
		status, r := c.fsck(c.t, c.objects)
		if status == 1 {
			c.t.Fatalf("problems %+v", r.Problems)
		}
		return objectsOf(r, "segments of commits") == 0 && objectsOf(r, "garbage") == 0 && objectsOf(r, "under way") == 0
	})
}

// judge compares the bucket with what the coordinator's records, and the manifests that they name, refer to. It returns how many objects there are.
func (c *churn) judge() int {
	c.t.Helper()
	kv, err := etcd.New(etcd.Config{Endpoints: []string{c.etcd}, Prefix: "/varve/" + c.name + "/"})
	if err != nil {
		c.t.Fatal(err)
	}
	defer kv.Close()
	var referred map[string]bool
	var retained uint64
	until(c.t, "objects are what is referred to", func() bool { // retention goes on meanwhile
		before := slices.DeleteFunc(named(c.t, c.objects, ""), isCopy)
		referred, retained = c.referred(kv)
		return referred != nil && slices.Equal(before, slices.Sorted(maps.Keys(referred)))
	})
	// A manifest for each shard, and of segments as many as its size has binary digits, since small ones join into larger ones. These are far fewer than were made.
	most := churnShards * (1 + bits.Len64(retained))
	c.t.Logf("%d objects for %d bytes", len(referred), retained)
	if len(referred) > most || len(referred) > len(c.seen)/2 {
		c.t.Errorf("%d objects for %d bytes, of %d that were made, want %d at most", len(referred), retained, len(c.seen), most)
	}
	if status, r := c.fsck(c.t, c.objects, "--deep"); status != 0 {
		c.t.Errorf("fsck: exit status %d, problems %+v", status, r.Problems)
	}
	return len(referred)
}

// isCopy reports whether an object is of a copy of etcd, of which there is always one more.
func isCopy(name string) bool { return strings.HasPrefix(name, backup.NamePrefix) }

// referred returns the objects that something refers to, and the bytes of those that may still be read. It is nil if they change just now.
func (c *churn) referred(kv coordinator.KV) (names map[string]bool, retained uint64) {
	items, _, err := kv.List(within(c.t), coordinator.PrefixMeta, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	names = make(map[string]bool)
	for _, item := range items {
		switch {
		case strings.HasPrefix(item.Key, coordinator.PrefixCommits):
			commit, err := coordinator.DecodeCommit(item.Value)
			if err != nil {
				c.t.Fatal(err)
			}
			names[commit.Object] = true
		case strings.HasPrefix(item.Key, coordinator.PrefixShards):
			shard, err := coordinator.Decode[coordinator.Shard](item)
			if err != nil {
				c.t.Fatal(err)
			}
			if shard.Manifest == "" {
				continue
			}
			b, err := os.ReadFile(filepath.Join(c.objects, shard.Manifest))
			if errors.Is(err, os.ErrNotExist) {
				return nil, 0
			}
			m, err := manifest.Parse(b)
			if err != nil {
				c.t.Fatalf("%s: %v", shard.Manifest, err)
			}
			names[shard.Manifest] = true
			for i, live := range m.Live() {
				names[m.Segments[i].Name(m.Shard)] = true
				retained += uint64(live)
			}
		}
	}
	return names, retained
}
