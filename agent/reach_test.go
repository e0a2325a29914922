package agent_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
)

// TestBucketOutOfReach has an agent join that others reach, and that does not reach the bucket: it gives back what it is given and cannot restore, and gets it once the bucket answers.
func TestBucketOutOfReach(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, false)
	begin := func(disk string) {
		s.agents[disk] = s.launch(t, s.folder(t, disk), -1, func(c *agent.Config) { c.Copies, c.Shards = 1, 8 })
		s.agents[disk].line.slow.Store(true)
	}
	begin("a")
	s.agents["a"].await(t)
	const partitions = 8
	cl, err := kgo.NewClient(s.seeds(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	if resp, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, nil, "t"); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	produce := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for p := range int32(partitions) {
			if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "t", Partition: p}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	produce()
	var rules []fault.Rule
	for _, op := range []fault.Op{fault.Get, fault.Put, fault.Stat, fault.Delete} { // it has looked for copies of etcd before the bucket is out of its reach
		rules = append(rules, fault.Rule{Op: op, Times: fault.Always, Effect: fault.Unavailable})
	}
	cut := fault.New(s.store, rules...)
	s.store = cut
	begin("b")
	bucketless := func() bool {
		items, _, err := s.kv.List(t.Context(), coordinator.PrefixAgents, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			a, err := coordinator.Decode[coordinator.Agent](it)
			if err != nil {
				t.Fatal(err)
			}
			if a.Bucketless {
				return true
			}
		}
		return false
	}
	eventually(t, "it is known that the bucket is out of the newcomer's reach", bucketless)
	produce()
	eventually(t, "the newcomer leads nothing", func() bool { return len(s.owners(t)) == 1 })
	cut.Clear()
	eventually(t, "both lead", func() bool { return len(s.owners(t)) == 2 && !bucketless() })
	produce()
}
