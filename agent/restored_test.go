package agent_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/agent/status"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// copyAs has one copy in the bucket, of that etcd.
func (c *cluster) copyAs(t *testing.T, kv *memkv.Store) {
	t.Helper()
	c.forgetCopies(t, 0)
	copier := rebuild.NewCopier(time.Minute, rebuild.CopierDeps{
		KV: kv, Store: c.bucket, Cluster: clusterOf(t, kv), Elected: func() bool { return true }, Agents: func() []coordinator.Agent { return nil }, Nonce: rand.Uint64, Now: c.now,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err := copier.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func clusterOf(t *testing.T, kv coordinator.KV) protocol.TopicID {
	t.Helper()
	id, err := protocol.ParseTopicID(clusterRecord(t, kv).ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func clusterRecord(t *testing.T, kv coordinator.KV) coordinator.Cluster {
	t.Helper()
	item, _, err := kv.Get(t.Context(), coordinator.KeyCluster)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := coordinator.Decode[coordinator.Cluster](item)
	if err != nil {
		t.Fatal(err)
	}
	return cluster
}

// edit changes keys as no agent would.
func edit(t *testing.T, kv *memkv.Store, ops ...coordinator.Op) {
	t.Helper()
	if _, err := kv.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
}

// TestRestoreUnowned: shards got their leaders after the copy was made. Nobody leads them before all that their leaders acknowledged is recovered, also if a disk comes late.
func TestRestoreUnowned(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Copies, cfg.Flush.AgeMax = 1, time.Hour // what is acknowledged is on one disk alone
	}, "a", "b", "c")
	const partitions = 12
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 20, "")
	c.killAll()
	old := snapshot(t, c.kv)
	edit(t, old, coordinator.Op{Key: coordinator.PrefixShards, Delete: true, Prefix: true}, coordinator.Op{Key: coordinator.PrefixWrites, Delete: true, Prefix: true})
	c.copyAs(t, old)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	report, err := next.restore(t, rebuild.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Open) != 3 {
		t.Errorf("logs %v are to be recovered, want 3", report.Open)
	}
	next.launch(t, 0)
	next.launch(t, 1)
	t.Cleanup(func() { next.members[0].kill(); next.members[1].kill() })
	var problems []string
	eventually(t, "the logs wait for one whose disk is not there", func() bool {
		records, err := status.Read(t.Context(), next.kv)
		if err != nil {
			t.Fatal(err)
		}
		problems = status.Make("", records).Problems
		open := next.logs(t, false)
		return slices.Contains(problems, fmt.Sprintf("no shard gets a leader until the WAL logs from before etcd was restored are recovered: %s, %s, %s", open[0], open[1], open[2])) &&
			len(open) == 5 // and those of the two
	})
	for _, m := range next.members[:2] {
		select {
		case <-m.agent.Ready():
			t.Errorf("the agent in zone %s is ready; %q", m.zone, problems)
		case err := <-m.ended:
			t.Errorf("the agent in zone %s ended: %v", m.zone, err)
			m.ended <- err
		default:
		}
	}
	next.launch(t, 2)
	t.Cleanup(func() { next.members[2].kill() })
	for _, m := range next.members {
		m.await(t)
	}
	next.produce(t, "t", partitions, 20, 30, "")
	reader := next.client(t, kgo.ConsumeTopics("t"))
	expect(t, reader, make([]int64, partitions), 30)
	next.check(t)
}

// logs lists the WAL logs that are closed, or are not.
func (c *cluster) logs(t *testing.T, closed bool) (all []coordinator.LogID) {
	t.Helper()
	logs, err := coordinator.ListLogs(t.Context(), c.kv, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range logs.Records {
		if l.Closed == closed {
			all = append(all, l.ID)
		}
	}
	return all
}

// awaitRolled waits until, of three agents of which one is gone, its log is recovered, and the others' have rolled away from its disk.
func (c *cluster) awaitRolled(t *testing.T) {
	t.Helper()
	eventually(t, "its log is recovered, and the others rolled", func() bool {
		logs, err := coordinator.ListLogs(t.Context(), c.kv, 0)
		if err != nil {
			t.Fatal(err)
		}
		rolled := 0
		for _, l := range logs.Records {
			if n := len(l.Segments); !l.Closed && n > 0 && l.Segments[n-1].Number > 1 {
				rolled++
			}
		}
		return rolled == 2 && len(c.logs(t, true)) == 1
	})
}

// TestRestoreRolled: after the copy was made an agent died, whose log others recovered, and their logs rolled to other ensembles, where what they acknowledged since is. It is recovered from there.
func TestRestoreRolled(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Copies, cfg.Flush.AgeMax = 3, time.Hour
	}, "a", "b", "c")
	const partitions = 12
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 10, "")
	old, before := snapshot(t, c.kv), c.logs(t, false)
	c.members[2].kill()
	c.pass(5 * time.Second) // its lease ends
	c.awaitRolled(t)
	c.produce(t, "t", partitions, 10, 20, "")
	c.killAll()
	c.copyAs(t, old)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	report, err := next.restore(t, rebuild.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(report.Open, before) {
		t.Errorf("logs %v are to be recovered, want %v", report.Open, before)
	}
	next.startAll(t)
	next.produce(t, "t", partitions, 20, 30, "")
	reader := next.client(t, kgo.ConsumeTopics("t"))
	expect(t, reader, make([]int64, partitions), 30)
	next.check(t)
}

// TestRestoreUncounted: after the copy was made an agent died, and its log was recovered without its disk, which holds a batch that nobody counted. Others have its partitions since, and have written another one at that
// offset, which their disks alone have. Once all disks are there, it is theirs that counts.
func TestRestoreUncounted(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Copies, cfg.Flush.AgeMax = 3, time.Hour
	}, "a", "b", "c")
	const partitions = 12
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 10, "")
	old := snapshot(t, c.kv)
	c.members[2].kill()
	c.pass(5 * time.Second) // its lease ends
	c.awaitRolled(t)
	log := c.logs(t, true)[0]
	c.produce(t, "t", partitions, 10, 20, "")
	c.killAll()
	c.copyAs(t, old)
	repeat(t, c.members[2].dir, wal.LogID(log))

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	next.startAll(t)
	reader := next.client(t, kgo.ConsumeTopics("t"))
	at := make([]int64, partitions)
	expect(t, reader, at, 20)
	next.produce(t, "t", partitions, 20, 30, "")
	expect(t, reader, at, 30)
	next.check(t)
}

// repeat appends the last batch of a log again to its segment on a disk, with the offsets that follow it, as if the writer had died before another disk had it.
func repeat(t *testing.T, dir string, log wal.LogID) {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	held := slices.DeleteFunc(d.Segments(), func(s disk.SegmentInfo) bool { return s.ID.Log != log })
	if len(held) != 1 {
		t.Fatalf("the disk holds %+v of the log", held)
	}
	id, first := held[0].ID, held[0].First
	var entries [][]byte
	err = d.Read(id, first, func(_ wal.EntryID, b []byte) error {
		entries = append(entries, slices.Clone(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	again := slices.Clone(entries[len(entries)-1])
	_, b, err := ingest.ParseEntry(again)
	if err != nil {
		t.Fatal(err)
	}
	h, err := batch.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	batch.Restamp(b, h.NextOffset(), h.LeaderEpoch)
	if err := d.Drop(id); err != nil {
		t.Fatal(err)
	}
	a, err := d.Create(id, 1, first)
	if err != nil {
		t.Fatal(err)
	}
	l, err := wal.New(wal.Config{Segment: id, Fence: 1, First: first}, wal.Copy{Name: "own", Store: a})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range append(entries, again) {
		if _, err := l.Append(nil, e, crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRestoreUnknownLog: a log was opened after the copy was made, and what it acknowledged is on its agent's disk alone. The disk keeps it, and the agent does not start, however much later, before an operator gives the log up.
func TestRestoreUnknownLog(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		copying(cfg)
		cfg.Copies, cfg.Flush.AgeMax = 1, time.Hour
	}, "a")
	c.create(t, "t", 1)
	number := c.awaitCopy(t)
	c.killAll()
	c.startAll(t)
	c.produce(t, "t", 1, 0, 10, "")
	open := c.logs(t, false)
	c.killAll()
	c.forgetCopies(t, number)

	next := c.again(t, memkv.New(memkv.Config{ClusterID: 2, Start: time.Now()}), false)
	if _, err := next.restore(t, rebuild.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"at first", "once later logs are over"} {
		next.launch(t, 0)
		var err error
		select {
		case <-next.members[0].agent.Ready():
			next.members[0].kill()
			t.Fatalf("%s, the agent is ready", step)
		case err = <-next.members[0].ended:
			next.members[0].ended <- err
		}
		if err == nil || !strings.Contains(err.Error(), "--accept-loss") {
			t.Fatalf("%s, the agent ended with %v", step, err)
		}
		edit(t, next.kv, coordinator.Op{Key: coordinator.KeyPastLog, Value: coordinator.Encode(clusterRecord(t, next.kv).Restored)})
	}
	change := next.change
	next.change = func(cfg *agent.Config) {
		change(cfg)
		cfg.AcceptLoss = open[len(open)-1]
	}
	next.startAll(t)
	next.produce(t, "t", 1, 0, 5, "")
	next.check(t)
}
