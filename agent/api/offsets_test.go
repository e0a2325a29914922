package api_test

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// timed returns a batch of one record per timestamp.
func timed(t *testing.T, codec batch.Codec, timestamps ...int64) []byte {
	t.Helper()
	b := batch.NewBuilder(codec)
	for _, ts := range timestamps {
		b.Append(ts, nil, fmt.Append(nil, ts))
	}
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// listOffset asks for one partition's offset by timestamp.
func (p *peer) listOffset(version int16, topic string, partition int32, timestamp int64) kmsg.ListOffsetsResponseTopicPartition {
	p.t.Helper()
	req := kmsg.NewPtrListOffsetsRequest()
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp = partition, timestamp
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return ask[*kmsg.ListOffsetsResponse](p, version, req).Topics[0].Partitions[0]
}

func (p *peer) deleteRecords(topic string, partition int32, offset int64) kmsg.DeleteRecordsResponseTopicPartition {
	p.t.Helper()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10_000
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Partition, rp.Offset = partition, offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return ask[*kmsg.DeleteRecordsResponse](p, 2, req).Topics[0].Partitions[0]
}

const base = int64(1_700_000_000_000) // of the records' timestamps

// lookup is a timestamp and what ListOffsets answers for it.
type lookup struct {
	ask, offset, timestamp int64
}

func checkLookups(t *testing.T, p *peer, when string, lookups []lookup) {
	t.Helper()
	for _, l := range lookups {
		got := p.listOffset(10, "t", 0, l.ask)
		if got.ErrorCode != 0 || got.Offset != l.offset || got.Timestamp != l.timestamp {
			t.Errorf("%s, timestamp %d: offset %d of time %d and %v, want %d of %d",
				when, l.ask, got.Offset, got.Timestamp, protocol.ErrorCode(got.ErrorCode), l.offset, l.timestamp)
		}
	}
}

// TestListOffsets asks for every kind of timestamp: of an empty partition, of one in memory, of one in the bucket, of one in both, and of
// one whose first records were deleted.
func TestListOffsets(t *testing.T) {
	w := start(t, func(c *agent.Config) { c.Flush.SegmentBytes = 200 })
	p := w.dial(t)
	p.create("t", 1)
	checkLookups(t, p, "empty", []lookup{
		{-1, 0, -1}, {-2, 0, -1}, {-3, -1, -1}, {-4, 0, -1}, {-5, -1, -1}, {0, -1, -1}, {base, -1, -1},
	})
	// Timestamps are not in order, within a batch and from batch to batch.
	p.mustProduce("t", 0, timed(t, batch.None, base+10, base+30, base+20)) // 0, 1, 2
	p.mustProduce("t", 0, timed(t, batch.Zstd, base+5, base+50))           // 3, 4
	p.mustProduce("t", 0, timed(t, batch.Gzip, base+40, base+50))          // 5, 6
	p.mustProduce("t", 0, timed(t, batch.LZ4, base+1, base+2))             // 7, 8
	lookups := []lookup{
		{-1, 9, -1},
		{-2, 0, -1},
		{-3, 4, base + 50},
		{-4, 0, -1},
		{-5, -1, -1},
		{0, 0, base + 10},
		{base + 10, 0, base + 10},
		{base + 11, 1, base + 30},
		{base + 30, 1, base + 30},
		{base + 31, 4, base + 50},
		{base + 50, 4, base + 50},
		{base + 51, -1, -1},
	}
	checkLookups(t, p, "in memory", lookups)
	w.restart(t)
	p = w.dial(t)
	checkLookups(t, p, "in the bucket", lookups)
	p.mustProduce("t", 0, timed(t, batch.Snappy, base+45, base+60)) // 9, 10
	lookups = append(lookups[5:len(lookups)-1], lookup{base + 51, 10, base + 60}, lookup{-3, 10, base + 60}, lookup{-1, 11, -1}, lookup{base + 61, -1, -1})
	checkLookups(t, p, "in both", lookups)

	if got := p.deleteRecords("t", 0, 5); got.ErrorCode != 0 || got.LowWatermark != 5 {
		t.Fatalf("delete records: %+v", got)
	}
	cut := []lookup{
		{-2, 5, -1}, {-4, 5, -1}, {-1, 11, -1}, {0, 5, base + 40}, {base + 31, 5, base + 40}, {base + 50, 6, base + 50}, {base + 51, 10, base + 60},
	}
	checkLookups(t, p, "after a deletion", cut)
	w.restart(t)
	checkLookups(t, w.dial(t), "after a deletion and a restart", cut)
}

func TestListOffsetsVersions(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, timed(t, batch.None, base))
	for _, v := range versions(t, protocol.KeyListOffsets) {
		for ts, since := range map[int64]int16{-1: 1, -2: 1, base: 1, -3: 7, -4: 8, -5: 9, -6: 100, -7: 100} {
			want := protocol.None
			if v < since {
				want = protocol.UnsupportedVersion
			}
			got := p.listOffset(v, "t", 0, ts)
			if protocol.ErrorCode(got.ErrorCode) != want {
				t.Errorf("version %d, timestamp %d: %v, want %v", v, ts, protocol.ErrorCode(got.ErrorCode), want)
			}
			if v >= 4 && ts == -1 && got.LeaderEpoch != 1 {
				t.Errorf("version %d: leader epoch %d, want 1", v, got.LeaderEpoch)
			}
		}
	}
	if got := protocol.ErrorCode(p.listOffset(7, "t", 1, -1).ErrorCode); got != protocol.UnknownTopicOrPartition {
		t.Errorf("an unknown partition is answered with %v", got)
	}
	req := kmsg.NewPtrListOffsetsRequest()
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = "t"
	for _, epoch := range []int32{0, 2} {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Timestamp, rp.CurrentLeaderEpoch = -1, epoch
		rt.Partitions = []kmsg.ListOffsetsRequestTopicPartition{rp}
		req.Topics = []kmsg.ListOffsetsRequestTopic{rt}
		want := map[int32]protocol.ErrorCode{0: protocol.FencedLeaderEpoch, 2: protocol.UnknownLeaderEpoch}[epoch]
		if got := protocol.ErrorCode(ask[*kmsg.ListOffsetsResponse](p, 7, req).Topics[0].Partitions[0].ErrorCode); got != want {
			t.Errorf("epoch %d is answered with %v, want %v", epoch, got, want)
		}
	}
	rt.Partitions = append(rt.Partitions, rt.Partitions[0])
	req.Topics = []kmsg.ListOffsetsRequestTopic{rt}
	for _, got := range ask[*kmsg.ListOffsetsResponse](p, 7, req).Topics[0].Partitions {
		if protocol.ErrorCode(got.ErrorCode) != protocol.InvalidRequest {
			t.Errorf("a partition that is asked for twice is answered with %v", protocol.ErrorCode(got.ErrorCode))
		}
	}
}

// TestOffsetForLeaderEpoch restarts the agent, which raises the epoch each time.
func TestOffsetForLeaderEpoch(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, plain(t, base, "a", "b")) // epoch 1
	w.restart(t)                                    // epoch 2 without records
	w.restart(t)
	p = w.dial(t)
	p.mustProduce("t", 0, plain(t, base, "c")) // epoch 3
	for _, v := range versions(t, protocol.KeyOffsetForLeaderEpoch) {
		for asked, want := range map[int32][2]int64{0: {0, 0}, 1: {1, 2}, 2: {1, 2}, 3: {3, 3}, 4: {-1, -1}} {
			req := kmsg.NewPtrOffsetForLeaderEpochRequest()
			rt := kmsg.NewOffsetForLeaderEpochRequestTopic()
			rt.Topic = "t"
			for _, current := range []int32{-1, 3, 2, 4} {
				rp := kmsg.NewOffsetForLeaderEpochRequestTopicPartition()
				rp.CurrentLeaderEpoch, rp.LeaderEpoch = current, asked
				rt.Partitions = append(rt.Partitions, rp)
			}
			req.Topics = append(req.Topics, rt)
			got := ask[*kmsg.OffsetForLeaderEpochResponse](p, v, req).Topics[0].Partitions
			for _, g := range got[:2] {
				if g.ErrorCode != 0 || int64(g.LeaderEpoch) != want[0] || g.EndOffset != want[1] {
					t.Errorf("version %d, epoch %d: %d ends at %d, want %v", v, asked, g.LeaderEpoch, g.EndOffset, want)
				}
			}
			if c := protocol.ErrorCode(got[2].ErrorCode); c != protocol.FencedLeaderEpoch {
				t.Errorf("an older current epoch is answered with %v", c)
			}
			if c := protocol.ErrorCode(got[3].ErrorCode); c != protocol.UnknownLeaderEpoch {
				t.Errorf("a newer current epoch is answered with %v", c)
			}
		}
	}
}

func TestDeleteRecords(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 2)
	p.create("compact", 1, "cleanup.policy", "compact")
	for range 10 {
		p.mustProduce("t", 0, plain(t, base, "x"))
	}
	for _, c := range []struct {
		name      string
		topic     string
		partition int32
		offset    int64
		low       int64
		want      protocol.ErrorCode
	}{
		{"some", "t", 0, 4, 4, 0},
		{"fewer than before", "t", 0, 2, 4, 0},
		{"past the end", "t", 0, 11, -1, protocol.OffsetOutOfRange},
		{"negative", "t", 0, -2, -1, protocol.OffsetOutOfRange},
		{"of an empty partition", "t", 1, -1, 0, 0},
		{"unknown partition", "t", 2, 0, -1, protocol.UnknownTopicOrPartition},
		{"unknown topic", "nobody", 0, 0, -1, protocol.UnknownTopicOrPartition},
		{"compacted", "compact", 0, 0, -1, protocol.PolicyViolation},
	} {
		got := p.deleteRecords(c.topic, c.partition, c.offset)
		if protocol.ErrorCode(got.ErrorCode) != c.want || got.LowWatermark != c.low {
			t.Errorf("%s: low watermark %d and %v, want %d and %v", c.name, got.LowWatermark, protocol.ErrorCode(got.ErrorCode), c.low, c.want)
		}
	}
	check := func(when string, start int64) {
		t.Helper()
		if got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: start - 1}))); protocol.ErrorCode(got.ErrorCode) != protocol.OffsetOutOfRange {
			t.Errorf("%s, before the start: %v", when, protocol.ErrorCode(got.ErrorCode))
		}
		if got := only(t, p.fetch(12, fetchRequest(0, asked{topic: "t", offset: start}))); got.ErrorCode != 0 || got.LogStartOffset != start {
			t.Errorf("%s, at the start: %v, log start %d", when, protocol.ErrorCode(got.ErrorCode), got.LogStartOffset)
		}
	}
	check("at once", 4)
	w.restart(t)
	p = w.dial(t)
	check("after a restart", 4)
	if got := p.deleteRecords("t", 0, -1); got.ErrorCode != 0 || got.LowWatermark != 10 {
		t.Errorf("delete all: %+v", got)
	}
	w.restart(t)
	p = w.dial(t)
	if got := p.mustProduce("t", 0, plain(t, base, "next")); got != 10 {
		t.Errorf("after all was deleted, the next offset is %d, want 10", got)
	}
	check("after all was deleted", 10)
}

// TestDeleteRecordsWaits holds that without the bucket, or etcd, the request ends in time, and that the next one succeeds.
func TestDeleteRecordsWaits(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, plain(t, base, "x"))
	w.bucket.Add(unavailablePuts)
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 1
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic, rt.Partitions = "t", []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: 1}}
	req.Topics = append(req.Topics, rt)
	got := ask[*kmsg.DeleteRecordsResponse](p, 2, req).Topics[0].Partitions[0]
	if protocol.ErrorCode(got.ErrorCode) != protocol.RequestTimedOut {
		t.Errorf("without the bucket: %v", protocol.ErrorCode(got.ErrorCode))
	}
	if got := p.listOffset(7, "t", 0, -2); got.Offset != 0 {
		t.Errorf("the log start offset is %d, want 0", got.Offset)
	}
	w.bucket.Clear()
	if got := p.deleteRecords("t", 0, 1); got.ErrorCode != 0 || got.LowWatermark != 1 {
		t.Errorf("with the bucket back: %+v", got)
	}

	p.mustProduce("t", 0, plain(t, base, "x", "y"))
	w.kv.Inject(memkv.Fault{Call: memkv.CallTxn, Times: 1_000_000, Kind: memkv.UnknownLost})
	req.Topics[0].Partitions[0].Offset = 2
	got = ask[*kmsg.DeleteRecordsResponse](p, 2, req).Topics[0].Partitions[0]
	if protocol.ErrorCode(got.ErrorCode) != protocol.RequestTimedOut {
		t.Errorf("without etcd: %v", protocol.ErrorCode(got.ErrorCode))
	}
	w.kv.Heal()
	if got := p.deleteRecords("t", 0, 3); got.ErrorCode != 0 || got.LowWatermark != 3 {
		t.Errorf("with etcd back: %+v", got)
	}
}

// TestLatestAfterDeletion holds that a deleted record is not the latest, though memory still has it.
func TestLatestAfterDeletion(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, timed(t, batch.None, base+100))
	p.mustProduce("t", 0, timed(t, batch.None, base+50))
	p.deleteRecords("t", 0, 1)
	checkLookups(t, p, "after a deletion", []lookup{{-3, 1, base + 50}})
	w.restart(t)
	checkLookups(t, w.dial(t), "after a deletion and a restart", []lookup{{-3, 1, base + 50}})
}
