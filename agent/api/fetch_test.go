package api_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/protocol"
)

var unavailablePuts = fault.Rule{Op: fault.Put, Times: fault.Always, Effect: fault.Unavailable}

// asked is one partition of a Fetch request.
type asked struct {
	topic     string
	id        protocol.TopicID
	partition int32
	offset    int64
	bytesMax  int32  // 0: 1 MiB
	current   *int32 // leader epoch; nil: none
	last      *int32 // leader epoch of the last record; nil: none
}

// fetchRequest returns a Fetch without a session that waits up to that long for one byte.
func fetchRequest(wait time.Duration, partitions ...asked) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = int32(wait.Milliseconds()), 1, 50<<20
	req.SessionEpoch = -1
	for _, a := range partitions {
		n := len(req.Topics)
		if n == 0 || req.Topics[n-1].Topic != a.topic || req.Topics[n-1].TopicID != a.id {
			t := kmsg.NewFetchRequestTopic()
			t.Topic, t.TopicID = a.topic, a.id
			req.Topics = append(req.Topics, t)
			n++
		}
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = a.partition, a.offset, a.bytesMax
		if a.bytesMax == 0 {
			p.PartitionMaxBytes = 1 << 20
		}
		if a.current != nil {
			p.CurrentLeaderEpoch = *a.current
		}
		if a.last != nil {
			p.LastFetchedEpoch = *a.last
		}
		req.Topics[n-1].Partitions = append(req.Topics[n-1].Partitions, p)
	}
	return req
}

func (p *peer) fetch(version int16, req *kmsg.FetchRequest) *kmsg.FetchResponse {
	p.t.Helper()
	return ask[*kmsg.FetchResponse](p, version, req)
}

// only returns the single partition of a response.
func only(t *testing.T, resp *kmsg.FetchResponse) *kmsg.FetchResponseTopicPartition {
	t.Helper()
	if resp.ErrorCode != 0 || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		t.Fatalf("response has %v and topics %+v, want one partition", protocol.ErrorCode(resp.ErrorCode), resp.Topics)
	}
	return &resp.Topics[0].Partitions[0]
}

// TestFetchEveryVersion fetches from memory and, after a restart, from the bucket.
func TestFetchEveryVersion(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "a", "b"))
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "c"))
	check := func(where string) {
		t.Helper()
		for _, v := range versions(t, protocol.KeyFetch) {
			a := asked{topic: "t", offset: 1}
			if v >= 13 {
				a.topic, a.id = "", id
			}
			req := fetchRequest(0, a)
			req.IsolationLevel = int8(v % 2)
			resp := p.fetch(v, req)
			got := only(t, resp)
			// A fetch from within a batch gets all of it.
			first, vals := values(t, got.RecordBatches)
			if got.ErrorCode != 0 || first != 0 || !slices.Equal(vals, []string{"a", "b", "c"}) {
				t.Errorf("version %d %s: %v, offset %d, %v", v, where, protocol.ErrorCode(got.ErrorCode), first, vals)
			}
			if got.HighWatermark != 3 || got.LastStableOffset != 3 || v >= 5 && got.LogStartOffset != 0 || got.PreferredReadReplica != -1 {
				t.Errorf("version %d %s: %+v", v, where, got)
			}
			if v >= 13 && resp.Topics[0].TopicID != id || v < 13 && resp.Topics[0].Topic != "t" {
				t.Errorf("version %d %s: topic %q, %v", v, where, resp.Topics[0].Topic, resp.Topics[0].TopicID)
			}
		}
	}
	check("from memory")
	w.restart(t)
	p = w.dial(t)
	check("from the bucket")
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "d"))
	got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: 3})))
	if first, vals := values(t, got.RecordBatches); first != 3 || !slices.Equal(vals, []string{"d"}) {
		t.Errorf("behind the bucket's records: offset %d, %v", first, vals)
	}
}

func TestFetchErrors(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "a"))
	w.restart(t) // under leader epoch 2
	p = w.dial(t)
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "b"))
	epoch := func(e int32) *int32 { return &e }
	cases := []struct {
		name    string
		version int16
		asked   asked
		want    protocol.ErrorCode
	}{
		{"before the start", 12, asked{topic: "t", offset: -1}, protocol.OffsetOutOfRange},
		{"past the end", 12, asked{topic: "t", offset: 3}, protocol.OffsetOutOfRange},
		{"older epoch", 12, asked{topic: "t", current: epoch(1)}, protocol.FencedLeaderEpoch},
		{"newer epoch", 12, asked{topic: "t", current: epoch(3)}, protocol.UnknownLeaderEpoch},
		{"unknown last epoch", 12, asked{topic: "t", current: epoch(2), last: epoch(3)}, protocol.OffsetOutOfRange},
		{"unknown topic", 12, asked{topic: "nobody"}, protocol.UnknownTopicOrPartition},
		{"unknown partition", 12, asked{topic: "t", partition: 1}, protocol.UnknownTopicOrPartition},
		{"unknown topic id", 13, asked{id: protocol.TopicID{9}}, protocol.UnknownTopicID},
		{"zero topic id", 13, asked{}, protocol.UnknownTopicID},
		{"unknown partition by id", 13, asked{id: id, partition: 7}, protocol.UnknownTopicOrPartition},
	}
	for _, c := range cases {
		// An error is told at once, however long the client would wait.
		got := only(t, p.fetch(c.version, fetchRequest(time.Hour, c.asked)))
		if code := protocol.ErrorCode(got.ErrorCode); code != c.want || len(got.RecordBatches) > 0 {
			t.Errorf("%s: %v and %d bytes, want %v", c.name, code, len(got.RecordBatches), c.want)
		}
	}
	ok := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: 1, current: epoch(2), last: epoch(1)})))
	if ok.ErrorCode != 0 || ok.DivergingEpoch.EndOffset != -1 || len(ok.RecordBatches) == 0 {
		t.Errorf("a fetch that goes on from the last epoch: %+v", ok)
	}
	diverging := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: 2, current: epoch(2), last: epoch(1)})))
	if diverging.DivergingEpoch.Epoch != 1 || diverging.DivergingEpoch.EndOffset != 1 || len(diverging.RecordBatches) > 0 {
		t.Errorf("a fetch past the end of its epoch: %+v, want epoch 1 to end at 1", diverging.DivergingEpoch)
	}
}

// TestFetchLimits holds the rules about sizes, in memory and in the bucket: whole batches, no more than asked for, but at least one per request.
func TestFetchLimits(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 4)
	value := string(bytes.Repeat([]byte("v"), 1000))
	size := len(plain(t, 0, value))
	for n := range int32(4) {
		for range 5 {
			p.mustProduce("t", n, plain(t, time.Now().UnixMilli(), value))
		}
	}
	all := func(bytesMax int32) []asked {
		var as []asked
		for n := range int32(4) {
			as = append(as, asked{topic: "t", partition: n, bytesMax: bytesMax})
		}
		return as
	}
	check := func(where string) {
		t.Helper()
		for _, c := range []struct {
			name          string
			partition, of int32 // limits per partition and of the answer
			want          []int // batches by partition
		}{
			{"everything", 1 << 20, 50 << 20, []int{5, 5, 5, 5}},
			{"two batches each", int32(2*size + 10), 50 << 20, []int{2, 2, 2, 2}},
			{"smaller than a batch", 10, 50 << 20, []int{1, 0, 0, 0}},
			{"answer smaller than a batch", 1 << 20, 10, []int{1, 0, 0, 0}},
			{"nothing", 0, 0, []int{1, 0, 0, 0}},
			{"answer of three batches", int32(2 * size), int32(3*size + 10), []int{2, 1, 0, 0}},
		} {
			req := fetchRequest(0, all(1)...)
			for i := range req.Topics[0].Partitions {
				req.Topics[0].Partitions[i].PartitionMaxBytes = c.partition
			}
			req.MaxBytes = c.of
			var got []int
			for _, fp := range p.fetch(12, req).Topics[0].Partitions {
				got = append(got, len(fp.RecordBatches)/size)
				if len(fp.RecordBatches)%size != 0 {
					t.Errorf("%s %s: %d bytes are not whole batches of %d", c.name, where, len(fp.RecordBatches), size)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s %s: batches %v, want %v", c.name, where, got, c.want)
			}
		}
	}
	check("from memory")
	w.restart(t)
	p = w.dial(t)
	check("from the bucket")
	// One partition in memory before, and one behind, those in the bucket.
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), value))
	req := fetchRequest(0, asked{topic: "t", partition: 1, bytesMax: int32(size)}, asked{topic: "t", partition: 0, offset: 5, bytesMax: 10})
	if got := p.fetch(12, req).Topics[0].Partitions; len(got[0].RecordBatches) != size || len(got[1].RecordBatches) != 0 {
		t.Errorf("bucket before memory: %d and %d bytes, want %d and none", len(got[0].RecordBatches), len(got[1].RecordBatches), size)
	}
	req = fetchRequest(0, asked{topic: "t", partition: 0, offset: 5}, asked{topic: "t", partition: 1, bytesMax: 10})
	if got := p.fetch(12, req).Topics[0].Partitions; len(got[0].RecordBatches) != size || len(got[1].RecordBatches) != 0 {
		t.Errorf("memory before bucket: %d and %d bytes, want %d and none", len(got[0].RecordBatches), len(got[1].RecordBatches), size)
	}
}

// TestFetchAcrossSegments reads a partition whose records lie in many segments, from every offset.
func TestFetchAcrossSegments(t *testing.T) {
	w := start(t, func(c *agent.Config) { c.Flush.SegmentBytes = 300 })
	p := w.dial(t)
	p.create("t", 1)
	const n = 60
	for i := range n {
		p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), fmt.Sprint(i)))
	}
	w.restart(t)
	p = w.dial(t)
	for offset := range int64(n) {
		got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: offset})))
		first, vals := values(t, got.RecordBatches)
		if first != offset || int64(len(vals)) != n-offset || vals[0] != fmt.Sprint(offset) {
			t.Fatalf("from offset %d: offset %d and %d records", offset, first, len(vals))
		}
	}
}

// TestFetchWaits holds the long poll: produce wakes it, min.bytes holds it, time ends it, and a drain too.
func TestFetchWaits(t *testing.T) {
	w := start(t, nil)
	p, q := w.dial(t), w.dial(t)
	p.create("t", 2)

	begin := time.Now()
	if got := p.fetch(12, fetchRequest(50*time.Millisecond, asked{topic: "t"})); len(only(t, got).RecordBatches) != 0 || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("a fetch of nothing took %v and brought %+v", time.Since(begin), got)
	}

	req := fetchRequest(20*time.Second, asked{topic: "t"}, asked{topic: "t", partition: 1})
	req.SetVersion(12)
	id := p.send(req)
	q.mustProduce("t", 1, plain(t, time.Now().UnixMilli(), "wake"))
	got := p.receive(req, id).(*kmsg.FetchResponse)
	if _, vals := values(t, got.Topics[0].Partitions[1].RecordBatches); !slices.Equal(vals, []string{"wake"}) {
		t.Errorf("the fetch woke to %v", vals)
	}

	req = fetchRequest(20*time.Second, asked{topic: "t"})
	req.MinBytes = int32(3 * len(plain(t, 0, "x")))
	req.SetVersion(12)
	id = p.send(req)
	for range 3 {
		q.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "x"))
	}
	if _, vals := values(t, only(t, p.receive(req, id).(*kmsg.FetchResponse)).RecordBatches); len(vals) != 3 {
		t.Errorf("a fetch of min.bytes of three batches brought %d", len(vals))
	}

	// What there is comes when the time is over, though it is too little.
	req = fetchRequest(50*time.Millisecond, asked{topic: "t"})
	req.MinBytes = 1 << 20
	if _, vals := values(t, only(t, p.fetch(12, req)).RecordBatches); len(vals) != 3 {
		t.Errorf("after the wait: %d records, want 3", len(vals))
	}
	// More than max.bytes cannot come, so that it is not waited for.
	req = fetchRequest(time.Hour, asked{topic: "t"})
	req.MinBytes, req.MaxBytes = 1<<20, 10
	if _, vals := values(t, only(t, p.fetch(12, req)).RecordBatches); len(vals) != 1 {
		t.Errorf("min.bytes above max.bytes: %d records, want 1", len(vals))
	}

	req = fetchRequest(time.Hour, asked{topic: "t", offset: 3})
	req.SetVersion(12)
	id = p.send(req)
	q.mustProduce("t", 1, plain(t, time.Now().UnixMilli(), "no wake"))
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.stop()
	}()
	// The connection may also end before the agent has read the request.
	drained, err := p.tryReceive(req, id)
	<-stopped
	if err == nil && len(only(t, drained.(*kmsg.FetchResponse)).RecordBatches) != 0 || err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a drain ends the wait with %+v, %v", drained, err)
	}
}

// TestFetchDeletedTopic holds that a waiting fetch hears of the deletion.
func TestFetchDeletedTopic(t *testing.T) {
	w := start(t, nil)
	p, q := w.dial(t), w.dial(t)
	id := p.create("t", 1)
	req := fetchRequest(time.Hour, asked{id: id})
	req.SetVersion(13)
	sent := p.send(req)
	del := kmsg.NewPtrDeleteTopicsRequest()
	rt := kmsg.NewDeleteTopicsRequestTopic()
	name := "t"
	rt.Topic = &name
	del.Topics = append(del.Topics, rt)
	if got := ask[*kmsg.DeleteTopicsResponse](q, 6, del); got.Topics[0].ErrorCode != 0 {
		t.Fatalf("delete topic: %v", protocol.ErrorCode(got.Topics[0].ErrorCode))
	}
	got := protocol.ErrorCode(only(t, p.receive(req, sent).(*kmsg.FetchResponse)).ErrorCode)
	if got != protocol.UnknownTopicOrPartition && got != protocol.UnknownTopicID {
		t.Errorf("the waiting fetch is told %v", got)
	}
	if got := protocol.ErrorCode(only(t, p.fetch(13, fetchRequest(0, asked{id: id}))).ErrorCode); got != protocol.UnknownTopicID {
		t.Errorf("a fetch of the deleted topic is told %v", got)
	}
}

// TestFetchDamage holds that damaged bytes are never served, and that right ones are when the bucket gives them again.
func TestFetchDamage(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), string(bytes.Repeat([]byte("v"), 10_000))))
	w.restart(t)
	p = w.dial(t)
	for _, effect := range []fault.Effect{fault.WrongBytes, fault.Unavailable} {
		w.bucket.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: effect})
		got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t"})))
		if protocol.ErrorCode(got.ErrorCode) != protocol.KafkaStorageError || len(got.RecordBatches) != 0 {
			t.Errorf("effect %d: %v and %d bytes", effect, protocol.ErrorCode(got.ErrorCode), len(got.RecordBatches))
		}
		w.bucket.Clear()
	}
	got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t"})))
	if _, vals := values(t, got.RecordBatches); got.ErrorCode != 0 || len(vals) != 1 {
		t.Errorf("from the healed bucket: %v and %d records", protocol.ErrorCode(got.ErrorCode), len(vals))
	}
}
