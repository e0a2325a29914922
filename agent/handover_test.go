package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
)

// TestBucketGoesInHandOver takes the bucket away between the two flushes of a hand-over, when nobody leads the shards: they stay where they are, and take records, until the
// bucket is back.
func TestBucketGoesInHandOver(t *testing.T) {
	t.Parallel()
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

// TestManifestInHandOver holds up the manifest of a DeleteRecords, as when the bucket or etcd is away, while its shard is to be handed over: the shard is led on until that is through.
func TestManifestInHandOver(t *testing.T) {
	t.Parallel()
	s := newSeveral(t, false)
	const partitions = 2 // as many as shards
	var gates [partitions]*fault.Gate
	bucket := fault.New(s.store)
	for shard := range gates {
		gates[shard] = fault.NewGate()
		bucket.Add(fault.Rule{Op: fault.Put, Prefix: fmt.Sprintf("%s%02x/", manifest.NamePrefix, shard), Times: fault.Always, Gate: gates[shard]})
	}
	s.store = bucket
	begin := func(disk string) {
		s.agents[disk] = s.launch(t, s.folder(t, disk), -1, func(c *agent.Config) { c.Copies, c.Shards = 1, partitions })
		s.agents[disk].line.slow.Store(true)
		s.agents[disk].await(t)
	}
	begin("a")
	cl, err := kgo.NewClient(s.seeds(), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond), kgo.MaxVersions(kversion.V3_0_0()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	admin := kadm.NewClient(cl)
	if resp, err := admin.CreateTopic(t.Context(), partitions, 1, nil, "t"); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	produce := func() {
		t.Helper()
		for p := range int32(partitions) {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Partition: p}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	produce()
	deleted := make(chan error, partitions)
	for p := range int32(partitions) {
		own, err := kgo.NewClient(s.seeds()) // requests of one connection are served one after the other
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(own.Close)
		go func() {
			var one kadm.Offsets
			one.AddOffset("t", p, 1, -1)
			admin := kadm.NewClient(own)
			admin.SetTimeoutMillis(60_000)
			resp, err := admin.DeleteRecords(t.Context(), one)
			deleted <- errors.Join(err, resp.Error())
		}()
	}
	for _, gate := range gates {
		<-gate.Entered()
	}
	first := cl.SeedBrokers()[0]
	begin("b")
	refused := func() bool {
		req := kmsg.NewPtrFetchRequest()
		req.Version, req.MaxBytes, req.SessionEpoch = 12, 1<<20, -1
		rt := kmsg.NewFetchRequestTopic()
		rt.Topic = "t"
		for p := range int32(partitions) {
			rp := kmsg.NewFetchRequestTopicPartition()
			rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p, 1, 1<<20
			rt.Partitions = append(rt.Partitions, rp)
		}
		req.Topics = append(req.Topics, rt)
		resp, err := first.Request(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(resp.(*kmsg.FetchResponse).Topics[0].Partitions, func(p kmsg.FetchResponseTopicPartition) bool { return p.ErrorCode != 0 })
	}
	eventually(t, "a shard is about to be handed over", refused)
	eventually(t, "it is led again", func() bool { return !refused() })
	for _, gate := range gates {
		gate.Open()
	}
	for range gates {
		if err := <-deleted; err != nil {
			t.Error(err)
		}
	}
	eventually(t, "both lead", func() bool { return len(s.owners(t)) == 2 })
	produce()
	starts, err := admin.ListStartOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	starts.Each(func(o kadm.ListedOffset) {
		if o.Offset != 1 || o.Err != nil {
			t.Errorf("partition %d starts at offset %d (%v), want 1", o.Partition, o.Offset, o.Err)
		}
	})
}
