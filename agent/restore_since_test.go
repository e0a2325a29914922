package agent_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// TestRestoreRecreated loses etcd after a topic was deleted and created anew, which no copy has: the agents' logs show which one came later.
func TestRestoreRecreated(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Merge = upkeep.MergeConfig{DataBytes: 1 << 30, CommitsMax: 1 << 20, KeyBytesMax: 1 << 30, AgeMax: time.Hour}
	}, "a", "b", "c")
	const partitions = 12 // each agent leads some of both
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 20, "")
	c.awaitFlushed(t, "t", 20)
	number := c.awaitCopy(t)
	if _, err := kadm.NewClient(c.client(t)).DeleteTopic(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 5, "")
	c.awaitFlushed(t, "t", 5)
	item, _, err := c.kv.Get(t.Context(), coordinator.KeyTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := coordinator.Decode[coordinator.Topic](item)
	if err != nil {
		t.Fatal(err)
	}
	c.killAll()
	c.forgetCopies(t, number)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	if item, _, err = next.kv.Get(t.Context(), coordinator.KeyTopic("t")); err != nil {
		t.Fatal(err)
	}
	if got, err := coordinator.Decode[coordinator.Topic](item); err != nil || got.ID != want.ID || got.Partitions != partitions {
		t.Errorf("the topic is %+v, %v, want %s with %d partitions", got, err, want.ID, partitions)
	}
	next.startAll(t)
	reader := next.client(t, kgo.ConsumeTopics("t"))
	at := make([]int64, partitions)
	expect(t, reader, at, 5)
	next.produce(t, "t", partitions, 5, 8, "")
	expect(t, reader, at, 8)
	next.check(t)
}

// TestRestoreHole loses etcd, and a segment that was flushed since the copy was made is not in the bucket, as if a later upload had overtaken it: the agent's disk has what was in it.
func TestRestoreHole(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Copies = 1
		cfg.Merge = upkeep.MergeConfig{DataBytes: 1 << 30, CommitsMax: 1 << 20, KeyBytesMax: 1 << 30, AgeMax: time.Hour}
	}, "a")
	c.create(t, "t", 2)
	c.produce(t, "t", 2, 0, 10, "")
	c.awaitFlushed(t, "t", 10)
	number := c.awaitCopy(t)
	c.produce(t, "t", 1, 10, 20, "")
	eventually(t, "partition 0 is flushed", func() bool { return c.ends(t, "t")[0] == 20 })
	producer := c.client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := 10; i < 20; i++ {
		send(t, producer, "t", 1, fmt.Sprint(i, " "))
	}
	c.awaitFlushed(t, "t", 20)
	items, _, err := c.kv.List(t.Context(), coordinator.PrefixCommits, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.killAll()
	c.forgetCopies(t, number)
	deleted := 0
	for _, it := range items {
		commit, err := coordinator.DecodeCommit(it.Value)
		if err != nil {
			t.Fatal(err)
		}
		if p := commit.Partitions[0]; len(commit.Partitions) > 1 || p.Partition != 0 || p.FirstOffset < 10 {
			continue
		}
		if err := c.bucket.Delete(t.Context(), commit.Object); err != nil {
			t.Fatal(err)
		}
		deleted++
	}
	if deleted == 0 {
		t.Fatal("no commit has what was written to partition 0 since the copy")
	}

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	if got := next.ends(t, "t"); !slices.Equal(got, []protocol.Offset{10, 20}) {
		t.Errorf("restored to %v, want [10 20]", got)
	}
	next.startAll(t)
	reader := next.client(t, kgo.ConsumeTopics("t"))
	at := make([]int64, 2)
	expect(t, reader, at, 20)
	next.produce(t, "t", 2, 20, 25, "")
	expect(t, reader, at, 25)
	next.check(t)
}

// TestRestoreOpenTransaction loses etcd while a transaction is open that agents' disks alone have: it is aborted, and readers of what is committed go on.
func TestRestoreOpenTransaction(t *testing.T) {
	c := newCluster(t, copying, "a", "b", "c")
	c.create(t, "x", 1)
	begin := func(c *cluster) *kgo.Client {
		return c.client(t, kgo.TransactionalID("p"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	transact(t, begin(c), "x", "one", true)
	c.awaitFlushed(t, "x", 2)
	c.killAll()
	c.change = func(cfg *agent.Config) {
		copying(cfg)
		cfg.Flush.AgeMax = time.Hour
	}
	c.startAll(t)
	p := begin(c)
	transact(t, p, "x", "two", true)
	number := c.awaitCopy(t)
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	send(t, p, "x", 0, "three")
	if ends := c.ends(t, "x"); ends[0] != 2 {
		t.Fatalf("the transactions are flushed: %v", ends)
	}
	c.killAll()
	c.forgetCopies(t, number)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	next.startAll(t)
	transact(t, begin(next), "x", "four", true)
	if got := next.committed(t, "x", 3); !slices.Equal(got, []string{"one", "two", "four"}) {
		t.Errorf("committed are %q", got)
	}
}

// TestRestoreUnknownTransaction loses etcd while a transaction is open of which neither the copy nor the bucket knows, but an agent's disk alone: it is aborted.
func TestRestoreUnknownTransaction(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Flush.AgeMax = time.Hour
	}, "a", "b", "c")
	c.create(t, "x", 1)
	number := c.awaitCopy(t)
	begin := func(c *cluster) *kgo.Client {
		return c.client(t, kgo.TransactionalID("p"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	p := begin(c)
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	send(t, p, "x", 0, "one")
	c.killAll()
	c.forgetCopies(t, number)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	next.startAll(t)
	transact(t, begin(next), "x", "two", true)
	if got := next.committed(t, "x", 1); !slices.Equal(got, []string{"two"}) {
		t.Errorf("committed are %q", got)
	}
}
