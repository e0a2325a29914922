package agent_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// counted is a bucket that counts how often each block is read from it.
type counted struct {
	objectstore.Store

	mu     sync.Mutex
	blocks map[block]int
}

// block is a block of a cache: what begins elsewhere is a footer or a manifest.
type block struct {
	name string
	off  int64
}

const blockBytes = 1 << 20

// Get implements [objectstore.Store].
func (c *counted) Get(ctx context.Context, name string, off int64, p []byte) error {
	err := c.Store.Get(ctx, name, off, p)
	if err != nil || off%blockBytes != 0 {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := int64(0); at < int64(len(p)); at += blockBytes {
		c.blocks[block{name, off + at}]++
	}
	return nil
}

// readAt reads a topic's partitions up to offset to from one agent, whoever leads them, as a consumer in its zone that was sent there, and
// checks the batches.
func readAt(t *testing.T, m *member, topic string, partitions int32, to protocol.Offset) {
	cl := client(t, m.running, kgo.MaxVersions(kversion.V3_0_0()), kgo.DisableFetchSessions()) // topics by name
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for p := range partitions {
		for next := protocol.Offset(0); next < to; {
			req := kmsg.NewPtrFetchRequest()
			req.Version, req.MaxBytes, req.SessionEpoch, req.Rack = 12, 1<<20, -1, m.zone
			rt, rp := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
			rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p, int64(next), 1<<20
			rt.Topic, rt.Partitions = topic, append(rt.Partitions, rp)
			req.Topics = append(req.Topics, rt)
			resp, err := cl.SeedBrokers()[0].Request(ctx, req)
			if err != nil {
				t.Errorf("read partition %d from offset %d in node %d: %v", p, next, m.agent.Node(), err)
				return
			}
			got := &resp.(*kmsg.FetchResponse).Topics[0].Partitions[0]
			if err := kerr.ErrorForCode(got.ErrorCode); err != nil && !kerr.IsRetriable(err) {
				t.Errorf("read partition %d from offset %d in node %d: %v", p, next, m.agent.Node(), err)
				return
			}
			err = batch.Each(got.RecordBatches, func(h batch.Header, b []byte) error {
				next = h.NextOffset()
				return batch.Verify(b, &h)
			})
			if err != nil {
				t.Errorf("read partition %d up to offset %d in node %d: %v", p, next, m.agent.Node(), err)
				return
			}
		}
	}
}

// TestOneFetchPerZone: when all agents of a zone read the same old records, each block of them is read from the bucket once; and when one of the agents dies, the others
// read what it would have handed to them.
func TestOneFetchPerZone(t *testing.T) {
	const partitions, n = 6, 1000
	c := newCluster(t, func(cfg *agent.Config) {
		cfg.Flush.SegmentBytes, cfg.Flush.AgeMax, cfg.WALCacheBytes = 3<<19, 500*time.Millisecond, 1
	}, "a", "a", "a")
	for _, topic := range []string{"before", "after"} {
		c.create(t, topic, partitions)
		c.produce(t, topic, partitions, 0, n, strings.Repeat("x", 1000))
		c.awaitCommits(t, topic, n)
	}
	read := func(topic string, members ...*member) {
		var all sync.WaitGroup
		for _, m := range members {
			all.Go(func() { readAt(t, m, topic, partitions, n) })
		}
		all.Wait()
	}
	read("before", c.members...)
	c.bucket.mu.Lock()
	if len(c.bucket.blocks) == 0 {
		t.Error("nothing was read from the bucket")
	}
	for b, times := range c.bucket.blocks {
		if times > 1 {
			t.Errorf("the block at %d of %s was read %d times", b.off, b.name, times)
		}
	}
	c.bucket.mu.Unlock()

	c.members[1].kill()
	read("after", c.members[0], c.members[2])
}
