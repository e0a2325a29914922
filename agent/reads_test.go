package agent_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/protocol"
)

// traffic counts what a client reads in answers to Fetch, by node.
type traffic struct {
	mu    sync.Mutex
	bytes map[int32]int
}

var _ kgo.HookBrokerRead = (*traffic)(nil)

// OnBrokerRead implements [kgo.HookBrokerRead].
func (f *traffic) OnBrokerRead(meta kgo.BrokerMetadata, key int16, bytes int, _, _ time.Duration, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if key == int16(protocol.KeyFetch) {
		f.bytes[meta.NodeID] += bytes
	}
}

func (f *traffic) of(m *member) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes[m.agent.Node()]
}

// quickly flushes soon, so that tests need not wait for it.
func quickly(c *agent.Config) { c.Flush.AgeMax = 50 * time.Millisecond }

// soon has a client's long polls end soon: a partition that moves to an agent waits for the client's fetch that is there.
var soon = kgo.FetchMaxWait(100 * time.Millisecond)

// TestReadsInZone: a consumer that says where it is reads what is committed from the agent in its zone, and goes on at the leaders.
func TestReadsInZone(t *testing.T) {
	c := newCluster(t, quickly, "a", "b", "c")
	const partitions, n = 6, 300
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, n, strings.Repeat("x", 1000))
	c.awaitCommits(t, "t", n)
	c.pass(time.Hour)

	read := &traffic{bytes: make(map[int32]int)}
	cl := c.client(t, kgo.ConsumeTopics("t"), kgo.Rack("b"), kgo.WithHooks(read), soon)
	next := make([]int64, partitions)
	expect(t, cl, next, n)
	for _, m := range c.members {
		if got := read.of(m); m.zone == "b" && got < partitions*n*1000 || m.zone != "b" && got > n*1000/10 {
			t.Errorf("of %d bytes in %d partitions, %d came from zone %s", partitions*n*1000, partitions, got, m.zone)
		}
	}
	c.produce(t, "t", partitions, n, n+10, "")
	expect(t, cl, next, n+10)
}

// TestReadsAfterLeaderDies: a consumer that reads in its zone goes on when the leader of what it reads dies, whose last records are not committed, and gets
// every record once.
func TestReadsAfterLeaderDies(t *testing.T) {
	c := newCluster(t, quickly, "a", "b", "c")
	const partitions = 6
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, 200, strings.Repeat("x", 1000))
	c.awaitCommits(t, "t", 200)
	c.pass(time.Hour)
	victim := c.leaders(t, "t")[0]
	zone := "a"
	if victim.zone == zone {
		zone = "b"
	}
	cl := c.client(t, kgo.ConsumeTopics("t"), kgo.Rack(zone), kgo.FetchMaxPartitionBytes(500), soon)
	next := make([]int64, partitions)
	expect(t, cl, next, 100)
	c.produce(t, "t", partitions, 200, 210, "")
	victim.kill()
	c.produce(t, "t", partitions, 210, 220, "")
	expect(t, cl, next, 220)
}

// TestReadsWhileAgentDrains: consumers of an agent that leaves go back to the leaders and miss nothing.
func TestReadsWhileAgentDrains(t *testing.T) {
	c := newCluster(t, quickly, "a", "b", "c")
	const partitions, n = 6, 500
	c.create(t, "t", partitions)
	c.produce(t, "t", partitions, 0, n, strings.Repeat("x", 1000))
	c.awaitCommits(t, "t", n)
	c.pass(time.Hour)
	cl := c.client(t, kgo.ConsumeTopics("t"), kgo.Rack("b"), kgo.FetchMaxPartitionBytes(500), soon)
	next := make([]int64, partitions)
	expect(t, cl, next, 10)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		c.members[1].stop()
	}()
	expect(t, cl, next, n)
	<-drained
}

// TestNoProof: an agent that does not reach the stores of its log may have lost what it leads, and does not say where partitions begin and end.
func TestNoProof(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil, "a", "b", "c")
	c.create(t, "t", 1)
	c.produce(t, "t", 1, 0, 10, "")
	left := c.leaders(t, "t")[0]
	cl := client(t, left.running, kgo.MaxVersions(kversion.V3_0_0()), kgo.DisableFetchSessions()) // topics by name
	list := kmsg.NewPtrListOffsetsRequest()
	list.Version = 6
	lt, lp := kmsg.NewListOffsetsRequestTopic(), kmsg.NewListOffsetsRequestTopicPartition()
	lp.Timestamp = protocol.LatestTimestamp
	lt.Topic, lt.Partitions = "t", append(lt.Partitions, lp)
	list.Topics = append(list.Topics, lt)
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version, fetch.MaxBytes, fetch.SessionEpoch = 12, 1<<20, -1
	ft, fp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	fp.FetchOffset = 11
	ft.Topic, ft.Partitions = "t", append(ft.Partitions, fp)
	fetch.Topics = append(fetch.Topics, ft)
	ask := func() (listed, fetched error) {
		var both sync.WaitGroup
		send := func(req kmsg.Request) kmsg.Response {
			resp, err := cl.SeedBrokers()[0].Request(t.Context(), req)
			if err != nil {
				t.Errorf("%T: %v", req, err)
				return req.ResponseKind()
			}
			return resp
		}
		both.Go(func() {
			listed = kerr.ErrorForCode(send(list).(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0].ErrorCode)
		})
		both.Go(func() {
			fetched = kerr.ErrorForCode(send(fetch).(*kmsg.FetchResponse).Topics[0].Partitions[0].ErrorCode)
		})
		both.Wait()
		return listed, fetched
	}
	if listed, fetched := ask(); listed != nil || !errors.Is(fetched, kerr.OffsetOutOfRange) {
		t.Errorf("with a quorum: %v, %v", listed, fetched)
	}
	for _, m := range c.members {
		if m != left {
			m.kill()
		}
	}
	begin := time.Now()
	if listed, fetched := ask(); !errors.Is(listed, kerr.NotLeaderForPartition) || !errors.Is(fetched, kerr.NotLeaderForPartition) {
		t.Errorf("without a quorum: %v, %v", listed, fetched)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the answer took %v", took)
	}
}
