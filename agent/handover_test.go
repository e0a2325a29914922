package agent_test

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/segment"
)

// TestBucketGoesInHandOver takes the bucket away between the two flushes of a hand-over, when nobody leads the shards: they stay where they are, and take records, until the
// bucket is back.
func TestBucketGoesInHandOver(t *testing.T) {
	s := newSeveral(t, false)
	first, later := fault.NewGate(), fault.NewGate()
	s.store = fault.New(s.store, fault.Rule{Op: fault.Put, Prefix: segment.NamePrefix, Gate: first}, fault.Rule{Op: fault.Put, Prefix: segment.NamePrefix, Nth: 2, Times: fault.Always, Gate: later})
	begin := func(disk string) {
		s.agents[disk] = s.launch(t, s.folder(t, disk), -1, func(c *agent.Config) {
			c.Copies, c.Shards, c.Flush.AgeMax = 1, 8, time.Hour // nothing is flushed but for the hand-over
		})
		s.agents[disk].line.slow.Store(true)
		s.agents[disk].await(t)
	}
	begin("a")
	const partitions = 8
	cl, err := kgo.NewClient(s.seeds(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	if resp, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, nil, "t"); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	rounds := 0
	produce := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var records []*kgo.Record
		for p := range int32(partitions) {
			records = append(records, &kgo.Record{Topic: "t", Partition: p, Value: []byte{byte(rounds)}})
		}
		if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatalf("round %d: %v", rounds, err)
		}
		rounds++
	}
	produce()
	begin("b")
	<-first.Entered()
	produce() // for the second flush to have something to do
	first.Open()
	<-later.Entered()
	produce()
	if n := len(s.owners(t)); n != 1 {
		t.Errorf("%d agents lead while the bucket is away", n)
	}
	later.Open()
	eventually(t, "both lead", func() bool { return len(s.owners(t)) == 2 })
	produce()
	for p := range int32(partitions) {
		reader, err := kgo.NewClient(s.seeds(), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {p: kgo.NewOffset().AtStart()}}))
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < rounds; {
			fetches := reader.PollFetches(t.Context())
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if r.Offset != int64(n) || int(r.Value[0]) != n {
					t.Errorf("partition %d has record %d at offset %d, want %d", p, r.Value[0], r.Offset, n)
				}
				n++
			})
		}
		reader.Close()
	}
}
