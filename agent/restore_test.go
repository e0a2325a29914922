package agent_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// copying has agents flush, merge and copy without waiting. What is merged stays for longer than a test.
func copying(c *agent.Config) {
	c.Copies = 2
	c.Flush.AgeMax = 20 * time.Millisecond
	c.Merge = upkeep.MergeConfig{DataBytes: 16 << 10, CommitsMax: 4, KeyBytesMax: 1 << 20, AgeMax: time.Hour}
	c.CopyPause = 50 * time.Millisecond
}

// copies lists the copies in the bucket.
func (c *cluster) copies(t *testing.T) []rebuild.Copy {
	t.Helper()
	all, err := rebuild.Copies(t.Context(), c.bucket)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// awaitCopy waits until there is a copy of all that is written by now, and returns the newest copy's number.
func (c *cluster) awaitCopy(t *testing.T) (number uint64) {
	t.Helper()
	_, revision, err := c.kv.Get(t.Context(), coordinator.KeyCluster)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is a newer copy", func() bool {
		all := c.copies(t)
		if len(all) == 0 {
			return false
		}
		newest := all[len(all)-1].ID
		number = newest.Number
		return newest.Revision >= revision
	})
	return number
}

// awaitFlushed waits until all partitions of a topic are in the bucket up to that offset, merged or not.
func (c *cluster) awaitFlushed(t *testing.T, topic string, to protocol.Offset) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is flushed to %d", topic, to), func() bool {
		ends := c.ends(t, topic)
		return len(ends) > 0 && slices.Min(ends) >= to
	})
}

// ends tells how far each partition of a topic is committed, merged or not; nothing of one that does not exist.
func (c *cluster) ends(t *testing.T, topic string) []protocol.Offset {
	t.Helper()
	items, _, err := c.kv.List(t.Context(), coordinator.PrefixMeta, 0)
	if err != nil {
		t.Fatal(err)
	}
	var record coordinator.Topic
	ends := make(map[partition.ID]protocol.Offset)
	reach := func(topic protocol.TopicID, n int32, end protocol.Offset) {
		id := partition.ID{Topic: topic, Partition: n}
		ends[id] = max(ends[id], end)
	}
	for _, it := range items {
		switch {
		case it.Key == coordinator.KeyTopic(topic):
			record, err = coordinator.Decode[coordinator.Topic](it)
		case strings.HasPrefix(it.Key, coordinator.PrefixCommits):
			var commit coordinator.Commit
			commit, err = coordinator.DecodeCommit(it.Value)
			for _, p := range commit.Partitions {
				reach(p.Topic, p.Partition, p.NextOffset)
			}
		case strings.HasPrefix(it.Key, coordinator.PrefixShards):
			var shard coordinator.Shard
			if shard, err = coordinator.Decode[coordinator.Shard](it); err == nil && shard.Manifest != "" {
				for _, p := range c.manifest(t, shard.Manifest).Partitions {
					reach(p.Topic, p.Partition, p.End)
				}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []protocol.Offset
	for n := range record.Partitions {
		all = append(all, ends[partition.ID{Topic: record.ID, Partition: n}])
	}
	return all
}

func (c *cluster) manifest(t *testing.T, name string) *manifest.Manifest {
	t.Helper()
	info, err := c.bucket.Stat(t.Context(), name)
	if errors.Is(err, objectstore.ErrNotFound) { // superseded since
		return new(manifest.Manifest)
	}
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, info.Size)
	if err := c.bucket.Get(t.Context(), name, 0, b); err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// forgetCopies deletes those after a number, as if they had not been made.
func (c *cluster) forgetCopies(t *testing.T, after uint64) {
	t.Helper()
	for _, copied := range c.copies(t) {
		for _, page := range copied.Pages {
			if copied.ID.Number <= after {
				continue
			}
			if err := c.bucket.Delete(t.Context(), page.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// killAll ends all agents at once, without a flush.
func (c *cluster) killAll() {
	var all sync.WaitGroup
	for _, m := range c.members {
		all.Go(m.kill)
	}
	all.Wait()
}

// again is a cluster with the same bucket, and that etcd. Its agents have the disks of before, unless they are lost.
func (c *cluster) again(t *testing.T, kv *memkv.Store, lost bool) *cluster {
	t.Helper()
	next := &cluster{kv: kv, bucket: c.bucket, change: c.change}
	next.keepTime(t)
	for _, m := range c.members {
		dir := m.dir
		if lost {
			dir = t.TempDir()
		}
		next.members = append(next.members, &member{zone: m.zone, dir: dir})
	}
	return next
}

func (c *cluster) startAll(t *testing.T) {
	t.Helper()
	for i := range c.members {
		c.launch(t, i)
	}
	for _, m := range c.members {
		m.await(t)
	}
	t.Cleanup(c.killAll)
}

func (c *cluster) restore(t *testing.T, o rebuild.Options) (*rebuild.Report, error) {
	t.Helper()
	o.Secret, o.Log = []byte("a secret of 32 bytes or the like"), slog.New(slog.NewTextHandler(t.Output(), nil))
	report, err := rebuild.Restore(t.Context(), c.kv, c.bucket, o)
	if report != nil {
		if err := report.Write(t.Output()); err != nil {
			t.Error(err)
		}
	}
	return report, err
}

// check wants nothing to be wrong.
func (c *cluster) check(t *testing.T) {
	t.Helper()
	report, err := fsck.Check(t.Context(), c.kv, c.bucket, fsck.Options{Now: time.Now, Grace: time.Hour, Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Clean {
		_ = report.WriteTable(t.Output())
		t.Error("fsck finds that not all is in order")
	}
}

// detour takes connections to where an agent was to where its successor is.
type detour struct {
	mu sync.Mutex
	to map[string]string
}

func (d *detour) dial(ctx context.Context, network, host string) (net.Conn, error) {
	d.mu.Lock()
	host = cmp.Or(d.to[host], host)
	d.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, network, host)
}

func (d *detour) set(from, to *cluster) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = make(map[string]string)
	for i := range from.members {
		d.to[from.members[i].addr] = to.members[i].addr
	}
}

// send produces one record to a partition of a topic.
func send(t *testing.T, p *kgo.Client, topic string, n int32, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: n, Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// end ends a transaction that has one record.
func transact(t *testing.T, p *kgo.Client, topic, value string, commit bool) {
	t.Helper()
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	send(t, p, topic, 0, value)
	if err := p.EndTransaction(t.Context(), kgo.TransactionEndTry(commit)); err != nil {
		t.Fatal(err)
	}
}

// committed reads the first n committed records of partition 0 of a topic.
func (c *cluster) committed(t *testing.T, topic string, n int) (values []string) {
	t.Helper()
	reader := c.client(t, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(values) < n {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %q: %v", values, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

// TestRestore loses etcd and all disks. What was flushed is there again, also what came after the newest copy.
func TestRestore(t *testing.T) {
	c := newCluster(t, copying, "a", "b", "c")
	const partitions = 4
	c.create(t, "t", partitions)
	c.create(t, "x", 1)
	adm := kadm.NewClient(c.client(t))
	retention := "123456789"
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &retention}}, "t"); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 200; i += 20 { // in many flushes, which are merged
		c.produce(t, "t", partitions, i, i+20, "padding padding padding padding padding padding padding padding")
	}
	road := new(detour)
	producer := c.client(t, kgo.Dialer(road.dial), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	send(t, producer, "t", 1, "200")
	transactional := func(c *cluster, opts ...kgo.Opt) *kgo.Client {
		return c.client(t, append(opts, kgo.TransactionalID("p"), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	}
	p := transactional(c)
	transact(t, p, "x", "one", true)
	transact(t, p, "x", "two", false)
	var at kadm.Offsets
	at.Add(kadm.Offset{Topic: "t", Partition: 0, At: 150, LeaderEpoch: -1})
	at.Add(kadm.Offset{Topic: "t", Partition: 1, At: 7, LeaderEpoch: -1})
	if err := adm.CommitAllOffsets(t.Context(), "g", at); err != nil {
		t.Fatal(err)
	}
	c.awaitFlushed(t, "t", 200)
	number := c.awaitCopy(t)

	// After the copy: a topic, records, and a transaction that stays open.
	c.create(t, "later", 1)
	c.produce(t, "later", 1, 0, 10, "")
	for n := range int32(partitions) {
		if n != 1 {
			send(t, producer, "t", n, "200")
		}
	}
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	send(t, p, "x", 0, "three")
	c.awaitFlushed(t, "t", 201)
	c.awaitFlushed(t, "later", 10)
	c.awaitFlushed(t, "x", 5) // two records, two markers, one record
	c.killAll()
	c.forgetCopies(t, number)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), true)
	next.launch(t, 0)
	if err := <-next.members[0].ended; !errors.Is(err, rebuild.ErrLost) {
		t.Errorf("an agent that finds etcd empty ends with %v", err)
	} else {
		next.members[0].ended <- err
	}
	report, err := next.restore(t, rebuild.Options{DisksLost: true})
	if err != nil {
		t.Fatal(err)
	}
	if report.Copy.Number != number || report.Adopted == 0 || len(report.Open) > 0 {
		t.Errorf("restored copy %d with %d newer commits and open logs %v", report.Copy.Number, report.Adopted, report.Open)
	}
	next.check(t)
	if _, err := next.restore(t, rebuild.Options{DisksLost: true}); !errors.Is(err, rebuild.ErrCurrent) {
		t.Errorf("restoring again: %v", err)
	}
	next.startAll(t)
	road.set(c, next)
	send(t, producer, "t", 1, "201") // goes on where it was
	all := func(c *cluster, topic string, partitions int32, to int64) {
		t.Helper()
		reader := c.client(t, kgo.ConsumeTopics(topic))
		defer reader.Close()
		expect(t, reader, make([]int64, partitions), to)
	}
	all(next, "t", partitions, 201)
	all(next, "later", 1, 10)
	again := transactional(next)
	transact(t, again, "x", "four", true)
	if got := next.committed(t, "x", 2); !slices.Equal(got, []string{"one", "four"}) {
		t.Errorf("committed are %q", got)
	}
	adm = kadm.NewClient(next.client(t))
	offsets, err := adm.FetchOffsets(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []int64{150, 7} {
		if o, ok := offsets.Lookup("t", int32(n)); !ok || o.At != want {
			t.Errorf("offset of partition %d is %+v, want %d", n, o, want)
		}
	}
	configs, err := adm.DescribeTopicConfigs(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if of := configs[0].Configs; !slices.ContainsFunc(of, func(c kadm.Config) bool { return c.Key == "retention.ms" && c.MaybeValue() == retention }) {
		t.Errorf("the configs of t are %+v", of)
	}
	next.produce(t, "later", 1, 10, 20, "")
	all(next, "later", 1, 20)
	next.check(t)
}

// snapshot returns an etcd that has what another had, at the same revisions.
func snapshot(t *testing.T, kv *memkv.Store) *memkv.Store {
	t.Helper()
	items, _, err := kv.List(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(items, func(a, b coordinator.Item) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	back := memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()})
	write := func(ops ...coordinator.Op) {
		t.Helper()
		if _, err := back.Txn(t.Context(), nil, ops); err != nil {
			t.Fatal(err)
		}
	}
	for len(items) > 0 {
		n := 1
		for n < len(items) && items[n].ModRevision == items[0].ModRevision {
			n++
		}
		_, revision, err := back.Get(t.Context(), "filler")
		if err != nil {
			t.Fatal(err)
		}
		for ; revision < items[0].ModRevision-1; revision++ {
			write(coordinator.Op{Key: "filler", Value: fmt.Append(nil, revision)})
		}
		var ops []coordinator.Op
		for _, it := range items[:n] {
			if it.Lease == 0 {
				ops = append(ops, coordinator.Op{Key: it.Key, Value: it.Value})
			}
		}
		if len(ops) > 0 {
			write(ops...)
		}
		items = items[n:]
	}
	write(coordinator.Op{Key: "filler", Delete: true})
	return back
}

// TestSetBack sets etcd back to an earlier state, while all agents are down. None of them begins; once it is up to date again, all that was acknowledged is there.
func TestSetBack(t *testing.T) {
	c := newCluster(t, copying, "a", "b", "c")
	const partitions = 4
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 100, "")
	c.awaitFlushed(t, "t", 100)
	old := snapshot(t, c.kv)
	c.produce(t, "t", partitions, 100, 200, "")
	c.create(t, "u", 1)
	c.awaitFlushed(t, "t", 200)
	c.awaitCopy(t)
	c.produce(t, "t", partitions, 200, 250, "")
	c.killAll()

	next := c.again(t, old, false)
	next.launch(t, 0)
	if err := <-next.members[0].ended; !errors.Is(err, rebuild.ErrSetBack) {
		t.Fatalf("an agent that finds etcd set back ends with %v", err)
	} else {
		next.members[0].ended <- err
	}
	if _, err := next.restore(t, rebuild.Options{}); !errors.Is(err, rebuild.ErrSetBack) {
		t.Fatalf("without a word to repair it: %v", err)
	}
	if _, err := next.restore(t, rebuild.Options{Repair: true}); err != nil {
		t.Fatal(err)
	}
	next.check(t)
	next.startAll(t)
	next.produce(t, "t", partitions, 250, 260, "")
	reader := next.client(t, kgo.ConsumeTopics("t"))
	expect(t, reader, make([]int64, partitions), 260)
	if _, _, err := next.kv.Get(t.Context(), coordinator.KeyTopic("u")); err != nil {
		t.Error(err)
	}
	next.check(t)
}

// TestRestoreFromAnyCopy kills agents one after the other under load, which others recover, and then all of them, and loses etcd and some of the newest copies, while what is merged is deleted at once:
// nothing that was committed is missing.
func TestRestoreFromAnyCopy(t *testing.T) {
	t.Parallel()
	for dropped := range 3 {
		t.Run(fmt.Sprint(dropped), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, func(cfg *agent.Config) {
				copying(cfg)
				cfg.Garbage = upkeep.GarbageConfig{Pause: 20 * time.Millisecond, Grace: 50 * time.Millisecond}
			}, "a", "b", "c")
			const partitions = 6
			c.create(t, "t", partitions)
			written := 0
			write := func() {
				c.produce(t, "t", partitions, written, written+50, "padding padding padding padding padding padding padding padding padding padding")
				written += 50
			}
			for i := range c.members {
				write()
				c.members[i].kill()
				c.pass(5 * time.Second) // its lease ends
				write()
				c.launch(t, i)
				c.members[i].await(t)
			}
			write()
			c.awaitCopy(t)
			write()
			c.killAll()
			all := c.copies(t)
			c.forgetCopies(t, all[len(all)-1-dropped].ID.Number)

			next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), true)
			if _, err := next.restore(t, rebuild.Options{DisksLost: true}); err != nil {
				t.Fatal(err)
			}
			committed, restored := c.ends(t, "t"), next.ends(t, "t")
			for n := range committed {
				if restored[n] < committed[n] {
					t.Errorf("partition %d ends at %d, %d was committed", n, restored[n], committed[n])
				}
			}
			next.check(t)
			next.startAll(t)
			reader := next.client(t, kgo.ConsumeTopics("t"))
			expect(t, reader, make([]int64, partitions), int64(slices.Min(restored)))
		})
	}
}
