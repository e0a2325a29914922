package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
)

// hurry is how much faster than the agents' time etcd's passes, so that leases end soon.
const hurry = 4

// several is a world of agents that keep copies of each other's logs, and of a load on them.
type several struct {
	*world
	agents map[string]*crashing // by disk
	kv     *memkv.Store
	drains bool // agents have time to drain; then they take as long to be killed
}

func newSeveral(t *testing.T, drains bool, disks ...string) *several {
	t.Helper()
	s := &several{world: newWorld(t), agents: make(map[string]*crashing), drains: drains}
	s.kv = s.world.kv.(*memkv.Store)
	ctx, cancel := context.WithCancel(t.Context())
	var ticking sync.WaitGroup
	ticking.Go(func() { // leases end by it
		start, tick := time.Now(), time.NewTicker(20*time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.kv.Advance(start.Add(time.Since(start) * hurry))
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		ticking.Wait()
	})
	for _, d := range disks {
		s.begin(t, d)
	}
	for _, d := range disks {
		s.agents[d].await(t)
	}
	return s
}

// begin starts an agent on that disk, and does not wait.
func (s *several) begin(t *testing.T, disk string) {
	t.Helper()
	s.agents[disk] = s.launch(t, s.folder(t, disk), -1, func(c *agent.Config) {
		if c.Copies, c.Shards, c.Zone = 3, 8, "zone-"+disk; s.drains {
			c.DrainMax = 20 * time.Second
		}
		c.Topics.Partitions = 8
		c.Flush.SegmentBytes = 16 << 10 // some is flushed, and some is not
	})
	s.agents[disk].line.slow.Store(true)
}

// folder is where a disk is.
func (s *several) folder(t *testing.T, disk string) string {
	t.Helper()
	dir := filepath.Join(s.dir, disk)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// crash cuts an agent off, and ends it; its lease ends by itself.
func (s *several) crash(disk string) {
	s.agents[disk].kill()
	delete(s.agents, disk)
}

// drain has agents leave, all at once, and wants them to succeed.
func (s *several) drain(t *testing.T, disks ...string) {
	t.Helper()
	for _, d := range disks {
		s.agents[d].leave()
	}
	for _, d := range disks {
		err := <-s.agents[d].ended
		if s.agents[d].ended <- err; err != nil {
			t.Errorf("the agent on disk %s drained with %v", d, err)
		}
		delete(s.agents, d)
	}
}

// left are the disks of the agents that live.
func (s *several) left() []string { return slices.Sorted(maps.Keys(s.agents)) }

// seeds are the addresses of the agents that live.
func (s *several) seeds() kgo.Opt {
	var all []string
	for _, a := range s.agents {
		all = append(all, a.addr)
	}
	return kgo.SeedBrokers(all...)
}

// owners returns how many shards each log leads.
func (s *several) owners(t *testing.T) map[coordinator.LogID]int {
	t.Helper()
	items, _, err := s.kv.List(t.Context(), coordinator.PrefixShards, 0)
	if err != nil {
		t.Fatal(err)
	}
	owners := make(map[coordinator.LogID]int)
	for _, it := range items {
		shard, err := coordinator.Decode[coordinator.Shard](it)
		if err != nil {
			t.Fatal(err)
		}
		owners[shard.Owner]++
	}
	return owners
}

// open returns the logs that are not closed.
func (s *several) open(t *testing.T) (open []coordinator.Log) {
	t.Helper()
	logs, err := coordinator.ListLogs(t.Context(), s.kv, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range logs.Records {
		if !l.Closed {
			open = append(open, l)
		}
	}
	return open
}

// patience is for how long something that must come is waited for: only what hangs takes that long, on a slow machine and beside other tests, too.
const patience = 5 * time.Minute

// eventually waits until something is so that no event tells.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// load is an idempotent producer that goes on until it is stopped, and what was acknowledged to it.
type load struct {
	client *kgo.Client
	stop   context.CancelFunc
	ended  chan struct{}
	acked  atomic.Int64 // records, which are numbered from 0
}

// load starts a load of a thousand records per second at most.
func (s *several) load(t *testing.T) *load {
	t.Helper()
	l := &load{ended: make(chan struct{})}
	var err error
	l.client, err = kgo.NewClient(s.seeds(), kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }), kgo.MaxBufferedRecords(64))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.client.Close)
	ctx, cancel := context.WithCancel(t.Context())
	l.stop = cancel
	go func() {
		defer close(l.ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			<-tick.C
			value := append([]byte(strconv.Itoa(n)+" "), make([]byte, 500)...)
			l.client.Produce(context.WithoutCancel(ctx), &kgo.Record{Value: value}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("record %d: %v", n, err)
				}
				l.acked.Add(1)
			})
		}
	}()
	return l
}

// more waits until that many more records are acknowledged.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	want := l.acked.Load() + n
	eventually(t, fmt.Sprintf("%d more records are acknowledged", n), func() bool { return l.acked.Load() >= want })
}

// end stops the load and returns how many records there are.
func (l *load) end(t *testing.T) int {
	t.Helper()
	l.stop()
	<-l.ended
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := l.client.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	return int(l.acked.Load())
}

// wants reads everything: each of n records is there once, and offsets have no gaps.
func (s *several) wants(t *testing.T, n int) {
	t.Helper()
	c, err := kgo.NewClient(s.seeds(), kgo.ConsumeTopics("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var ends kadm.ListedOffsets
	eventually(t, "every partition tells its end", func() bool { // shards may still move
		ends, err = kadm.NewClient(c).ListEndOffsets(ctx, "t")
		return err == nil && ends.Error() == nil
	})
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	if left != int64(n) {
		t.Errorf("partitions end at %d together, want %d", left, n)
	}
	seen := make(map[string]bool)
	next := make(map[int32]int64)
	for left > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("with %d records left: %v", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			value, _, _ := strings.Cut(string(r.Value), " ")
			if seen[value] || r.Offset != next[r.Partition] {
				t.Errorf("partition %d has record %s at offset %d, want offset %d, and each once", r.Partition, value, r.Offset, next[r.Partition])
			}
			seen[value] = true
			next[r.Partition] = r.Offset + 1
			left--
		})
	}
	for i := range n {
		if !seen[strconv.Itoa(i)] {
			t.Fatalf("record %d, of %d that were acknowledged, is gone", i, n)
		}
	}
}

// TestTakeover kills one agent of three after another under load, and has it come back on its disk: nothing that was acknowledged is lost, nothing is there twice, and
// who comes back gets its share.
func TestTakeover(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, false, "a", "b", "c")
	l := s.load(t)
	for _, disk := range []string{"a", "b"} {
		l.more(t, 500)
		s.crash(disk)
		eventually(t, "two logs are open, and lead everything", func() bool { return len(s.open(t)) == 2 && len(s.owners(t)) == 2 })
		l.more(t, 500)
		s.begin(t, disk)
		s.agents[disk].await(t)
		eventually(t, "three lead", func() bool { return len(s.owners(t)) == 3 })
	}
	l.more(t, 500)
	s.wants(t, l.end(t))
}

// TestTwoGone kills two agents of three at once: the third cannot acknowledge anything until one of them comes back, and then nothing is lost.
func TestTwoGone(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, false, "a", "b", "c")
	l := s.load(t)
	l.more(t, 500)
	s.crash("a")
	s.crash("c")
	s.begin(t, "c")
	s.agents["c"].await(t)
	eventually(t, "two lead", func() bool { return len(s.open(t)) == 2 && len(s.owners(t)) == 2 })
	l.more(t, 500)
	s.wants(t, l.end(t))
}

// TestDrain drains one agent of three after another under load, the controller first, and has it come back on an empty disk: the producer sees no error.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, true, "a", "b", "c")
	l := s.load(t)
	for i, disk := range []string{"a", "b", "c"} {
		l.more(t, 500)
		s.drain(t, disk)
		if open := s.open(t); len(open) != 2 {
			t.Errorf("open logs after the drain: %+v", open)
		}
		fresh := fmt.Sprint("fresh-", i)
		s.begin(t, fresh)
		s.agents[fresh].await(t)
		eventually(t, "three lead", func() bool { return len(s.owners(t)) == 3 })
	}
	l.more(t, 500)
	s.wants(t, l.end(t))
	s.drain(t, s.left()...)
}

// TestNoneAndBack drains all agents at once, loses their disks, and starts others: every record and every offset is there.
func TestNoneAndBack(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, true, "a", "b", "c")
	l := s.load(t)
	l.more(t, 2000)
	n := l.end(t)
	adm := kadm.NewClient(l.client)
	offsets := kadm.OffsetsFromRecords(kgo.Record{Topic: "t", Partition: 3, Offset: 41})
	if err := adm.CommitAllOffsets(t.Context(), "g", offsets); err != nil {
		t.Fatal(err)
	}
	s.drain(t, "a", "b", "c")
	if open := s.open(t); len(open) > 0 {
		t.Errorf("open logs: %+v", open)
	}
	for _, disk := range []string{"d", "e", "f"} {
		s.begin(t, disk)
	}
	for _, disk := range []string{"d", "e", "f"} {
		s.agents[disk].await(t)
	}
	s.wants(t, n)
	c, err := kgo.NewClient(s.seeds())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := kadm.NewClient(c).FetchOffsets(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := got.Lookup("t", 3); !ok || o.At != 42 {
		t.Errorf("the group's offset is %+v, want 42", o)
	}
	s.drain(t, s.left()...)
}

// TestStoreThatTakesNothing: an agent is registered whose store nobody can reach; the others start without it.
func TestStoreThatTakesNothing(t *testing.T) {
	s := newSeveral(t, false)
	mute := coordinator.Agent{Node: 99, Log: 99, Store: "00000000-0000-0000-0000-000000000099", Peer: "127.0.0.1:1", State: coordinator.AgentStarting}
	if _, err := s.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyAgent(99), Value: coordinator.Encode(mute)}}); err != nil {
		t.Fatal(err)
	}
	s.begin(t, "a")
	s.begin(t, "b")
	s.agents["a"].await(t)
	s.agents["b"].await(t)
	l := s.load(t)
	l.more(t, 100)
	s.wants(t, l.end(t))
}

// TestLeaveBeforeReady: an agent is told to leave while another one's shard has no leader, so that it never was ready. It leads the others, and drains like any other.
func TestLeaveBeforeReady(t *testing.T) {
	w := newWorld(t)
	lost := coordinator.Log{ID: 77, Node: 9, Fence: 1, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"lost disk"}, Quorum: 1}}}
	_, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{
		{Key: coordinator.KeyLog(77), Value: coordinator.Encode(lost)},
		{Key: coordinator.KeyShard(0), Value: coordinator.Encode(coordinator.Shard{Owner: 77, Node: 9, Epoch: 1})},
		{Key: coordinator.KeyWrite(0), Value: coordinator.Encode(coordinator.Write{Owner: 77, Epoch: 1})},
	})
	if err != nil {
		t.Fatal(err)
	}
	a := w.launch(t, w.dir, -1, func(c *agent.Config) { c.DrainMax = 20 * time.Second })
	eventually(t, "it leads the other shards", func() bool {
		item, _, err := w.kv.Get(t.Context(), coordinator.KeyShard(1))
		return err == nil && item.ModRevision != 0
	})
	a.leave()
	err = <-a.ended
	if a.ended <- err; err != nil {
		t.Fatal(err)
	}
	item, _, err := w.kv.Get(t.Context(), coordinator.KeyLog(1))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := coordinator.Decode[coordinator.Log](item); err != nil || !l.Closed {
		t.Errorf("the log of an agent that left: %+v, %v", l, err)
	}
}

// TestAcceptLossOfLive: an operator names the log of an agent that lives.
func TestAcceptLossOfLive(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	b := w.launch(t, t.TempDir(), -1, func(c *agent.Config) { c.AcceptLoss = 1 })
	err := <-b.ended
	if b.ended <- err; err == nil || !strings.Contains(err.Error(), "lives") {
		t.Errorf("the agent ended with %v", err)
	}
	produce(t, a.running, "t", 0, 10)
	consume(t, a.running, "t", 10)
}

// TestRegistrationGone: an agent whose registration is gone although its lease lives registers again.
func TestRegistrationGone(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	if _, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyAgent(1), Delete: true}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is registered", func() bool {
		item, _, err := w.kv.Get(t.Context(), coordinator.KeyAgent(1))
		return err == nil && item.ModRevision != 0
	})
	produce(t, a.running, "t", 0, 10)
}

// TestClaimedAlive: an agent whose log was claimed ends when it registers again, before anything else shows it.
func TestClaimedAlive(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	item, _, err := w.kv.Get(t.Context(), coordinator.KeyLog(1))
	if err != nil {
		t.Fatal(err)
	}
	l, err := coordinator.Decode[coordinator.Log](item)
	if err != nil {
		t.Fatal(err)
	}
	l.Fence, l.Claimer = 2, 9
	agentItem, _, err := w.kv.Get(t.Context(), coordinator.KeyAgent(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyLog(1), Value: coordinator.Encode(l)}}); err != nil {
		t.Fatal(err)
	}
	if err := w.kv.Revoke(t.Context(), agentItem.Lease); err != nil {
		t.Fatal(err)
	}
	err = <-a.ended
	if a.ended <- err; !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("the agent ended with %v, want that it was fenced", err)
	}
}
