package api_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

func TestProduceEveryVersion(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	for i, v := range versions(t, protocol.KeyProduce) {
		pt := part{topic: "t", records: plain(t, time.Now().UnixMilli(), "a", "b")}
		if v >= 13 {
			pt.topic, pt.id = "", id
		}
		resp := ask[*kmsg.ProduceResponse](p, v, produceRequest(-1, pt))
		if len(resp.Topics) != 1 || resp.Topics[0].Topic != pt.topic || v >= 13 && resp.Topics[0].TopicID != id {
			t.Fatalf("version %d: topics are %v", v, resp.Topics)
		}
		got := resp.Topics[0].Partitions[0]
		if got.ErrorCode != 0 || got.BaseOffset != int64(2*i) || got.LogAppendTime != -1 || v >= 5 && got.LogStartOffset != 0 {
			t.Errorf("version %d: got %+v, want base offset %d", v, got, 2*i)
		}
	}
}

// TestProduceErrorsByPartition holds that each bad batch has Kafka's code, and that the good ones beside it are stored.
func TestProduceErrorsByPartition(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 20)
	p.create("compact", 1, "cleanup.policy", "compact")
	now := time.Now().UnixMilli()
	good := func() []byte { return plain(t, now, "good") }
	badCRC := good()
	badCRC[len(badCRC)-1] ^= 1
	oldMagic := good()
	oldMagic[16] = 1
	cut := good()
	binary.BigEndian.PutUint32(cut[8:], uint32(len(cut)))
	control := good()
	control[22] |= 0x20
	fixCRC(control)
	counted := good()
	binary.BigEndian.PutUint32(counted[57:], 2)
	fixCRC(counted)
	appendTime := good()
	appendTime[22] |= 0x08
	fixCRC(appendTime)
	noSequence := batch.NewBuilder(batch.None)
	noSequence.ProducerID, noSequence.ProducerEpoch = 7, 0
	transactional := batch.NewBuilder(batch.None)
	transactional.ProducerID, transactional.ProducerEpoch, transactional.BaseSequence, transactional.Transactional = 7, 0, 0, true

	cases := []struct {
		name      string
		topic     string
		partition int32
		records   []byte
		want      protocol.ErrorCode
	}{
		{"good", "t", 0, good(), protocol.None},
		{"bad CRC", "t", 1, badCRC, protocol.CorruptMessage},
		{"old magic", "t", 2, oldMagic, protocol.InvalidRecord},
		{"cut", "t", 3, cut, protocol.CorruptMessage},
		{"two batches", "t", 4, append(good(), good()...), protocol.InvalidRecord},
		{"no records", "t", 5, nil, protocol.InvalidRecord},
		{"control", "t", 6, control, protocol.InvalidRecord},
		{"wrong count", "t", 7, counted, protocol.InvalidRecord},
		{"too large", "t", 8, plain(t, now, string(make([]byte, 2<<20))), protocol.MessageTooLarge},
		{"from the future", "t", 9, plain(t, now+2*time.Hour.Milliseconds(), "x"), protocol.InvalidTimestamp},
		{"log append time", "t", 10, appendTime, protocol.InvalidTimestamp},
		{"no sequence", "t", 11, built(t, noSequence, now, "x"), protocol.InvalidRecord},
		{"transactional", "t", 12, built(t, transactional, now, "x"), protocol.TransactionalIDAuthorizationFailed},
		{"negative partition", "t", -1, good(), protocol.UnknownTopicOrPartition},
		{"unknown partition", "t", 20, good(), protocol.UnknownTopicOrPartition},
		{"good too", "t", 19, good(), protocol.None},
		{"no key", "compact", 0, plain(t, now, "a", "b"), protocol.InvalidRecord},
		{"unknown topic", "nobody", 0, good(), protocol.UnknownTopicOrPartition},
		{"invalid topic", "no/body", 0, good(), protocol.InvalidTopicException},
	}
	var parts []part
	for _, c := range cases {
		parts = append(parts, part{topic: c.topic, partition: c.partition, records: c.records})
	}
	resp := ask[*kmsg.ProduceResponse](p, 9, produceRequest(-1, parts...))
	var got []kmsg.ProduceResponseTopicPartition
	for _, rt := range resp.Topics {
		got = append(got, rt.Partitions...)
	}
	if len(got) != len(cases) {
		t.Fatalf("%d partitions are answered, want %d", len(got), len(cases))
	}
	for i, c := range cases {
		g := got[i]
		if code := protocol.ErrorCode(g.ErrorCode); code != c.want || g.Partition != c.partition {
			t.Errorf("%s: partition %d has %v, want partition %d with %v", c.name, g.Partition, code, c.partition, c.want)
		}
		if ok := c.want == protocol.None; ok != (g.BaseOffset == 0) || !ok && (g.BaseOffset != -1 || g.ErrorMessage == nil) {
			t.Errorf("%s: base offset %d, message %v", c.name, g.BaseOffset, g.ErrorMessage)
		}
		if c.name == "no key" && len(g.ErrorRecords) != 2 {
			t.Errorf("%d records of the batch without keys are refused, want 2", len(g.ErrorRecords))
		}
	}
}

func fixCRC(b []byte) {
	h, err := batch.Parse(b)
	if err != nil {
		panic(err)
	}
	batch.SetMaxTimestamp(b, h.MaxTimestamp)
}

func TestProduceRequestErrors(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	now := time.Now().UnixMilli()
	code := func(version int16, req *kmsg.ProduceRequest) protocol.ErrorCode {
		return protocol.ErrorCode(ask[*kmsg.ProduceResponse](p, version, req).Topics[0].Partitions[0].ErrorCode)
	}
	one := func() part { return part{topic: "t", records: plain(t, now, "x")} }
	if got := code(9, produceRequest(2, one())); got != protocol.InvalidRequiredAcks {
		t.Errorf("acks=2 is answered with %v", got)
	}
	transactional := batch.NewBuilder(batch.None)
	transactional.ProducerID, transactional.ProducerEpoch, transactional.BaseSequence, transactional.Transactional = 7, 0, 0, true
	txn := produceRequest(-1, part{topic: "t", records: built(t, transactional, now, "x")})
	id := "txn"
	txn.TransactionID = &id
	if got := code(9, txn); got != protocol.InvalidProducerIDMapping {
		t.Errorf("a transaction of an id that nobody has is answered with %v", got)
	}
	if got := code(13, produceRequest(-1, part{id: protocol.TopicID{1, 2}, records: plain(t, now, "x")})); got != protocol.UnknownTopicID {
		t.Errorf("an unknown topic id is answered with %v", got)
	}
	zstd := part{topic: "t", records: built(t, batch.NewBuilder(batch.Zstd), now, "x")}
	if got := code(6, produceRequest(-1, zstd)); got != protocol.UnsupportedCompressionType {
		t.Errorf("zstd in version 6 is answered with %v", got)
	}
	if got := code(9, produceRequest(1, one())); got != protocol.None {
		t.Errorf("acks=1 is answered with %v", got)
	}
	if resp := ask[*kmsg.ProduceResponse](p, 9, produceRequest(-1)); len(resp.Topics) != 0 {
		t.Errorf("a request without topics is answered with %v", resp.Topics)
	}
}

// TestProduceWithoutAnswer holds that acks=0 has no response, that it is stored, and that a refusal ends the connection.
func TestProduceWithoutAnswer(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	req := produceRequest(0, part{topic: "t", records: plain(t, time.Now().UnixMilli(), "x")})
	req.SetVersion(9)
	p.send(req)
	ask[*kmsg.ApiVersionsResponse](p, 0, kmsg.NewPtrApiVersionsRequest())
	if base := p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "y")); base != 1 {
		t.Errorf("the next batch has offset %d, want 1", base)
	}
	bad := produceRequest(0, part{topic: "nobody", records: plain(t, time.Now().UnixMilli(), "x")})
	bad.SetVersion(9)
	if _, err := p.tryReceive(bad, p.send(bad)); !errors.Is(err, io.EOF) {
		t.Errorf("after a refused batch the connection gives %v, want its end", err)
	}
}

// idempotent returns a batch of n records of producer id.
func idempotent(t *testing.T, id int64, epoch int16, sequence int32, n int) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = protocol.ProducerID(id), protocol.ProducerEpoch(epoch), sequence
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprint(int(sequence) + i)
	}
	return built(t, b, time.Now().UnixMilli(), values...)
}

func TestProduceSequences(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	steps := []struct {
		what     string
		epoch    int16
		sequence int32
		n        int
		base     int64
		want     protocol.ErrorCode
	}{
		{"first", 0, 0, 3, 0, 0},
		{"next", 0, 3, 2, 3, 0},
		{"repeated", 0, 3, 2, 3, 0},
		{"repeated from before", 0, 0, 3, 0, 0},
		{"with a gap", 0, 6, 1, -1, protocol.OutOfOrderSequenceNumber},
		{"overlapping", 0, 4, 2, -1, protocol.OutOfOrderSequenceNumber},
		{"of a new epoch, not from 0", 1, 5, 1, -1, protocol.OutOfOrderSequenceNumber},
		{"of a new epoch", 1, 0, 1, 5, 0},
		{"of an old epoch", 0, 5, 1, -1, protocol.InvalidProducerEpoch},
	}
	run := func(when string) {
		t.Helper()
		for _, s := range steps {
			got := p.produce("t", 0, idempotent(t, 5, s.epoch, s.sequence, s.n))
			if protocol.ErrorCode(got.ErrorCode) != s.want || got.BaseOffset != s.base {
				t.Errorf("batch %s %s: offset %d and %v, want %d and %v",
					s.what, when, got.BaseOffset, protocol.ErrorCode(got.ErrorCode), s.base, s.want)
			}
		}
	}
	run("")
	// All of it is told again by an agent that knows the producer from the segments' footers.
	w.restart(t)
	p = w.dial(t)
	steps = []struct {
		what     string
		epoch    int16
		sequence int32
		n        int
		base     int64
		want     protocol.ErrorCode
	}{
		{"repeated", 1, 0, 1, 5, 0},
		{"of an old epoch", 0, 5, 1, -1, protocol.InvalidProducerEpoch},
		{"with a gap", 1, 2, 1, -1, protocol.OutOfOrderSequenceNumber},
		{"next", 1, 1, 1, 6, 0},
	}
	run("after a restart")
}

// TestProduceOrder holds that many requests on their way at once are appended and answered in order.
func TestProduceOrder(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	const n = 300
	var reqs []*kmsg.ProduceRequest
	var ids []int32
	for i := range n {
		req := produceRequest(-1, part{topic: "t", records: idempotent(t, 9, 0, int32(i), 1)})
		req.SetVersion(9)
		reqs = append(reqs, req)
		ids = append(ids, p.send(req))
	}
	for i := range n {
		got := p.receive(reqs[i], ids[i]).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if got.ErrorCode != 0 || got.BaseOffset != int64(i) {
			t.Fatalf("request %d has offset %d and %v", i, got.BaseOffset, protocol.ErrorCode(got.ErrorCode))
		}
	}
}

// TestFullLog holds that producers wait while the bucket is away and the WAL is full, that others are served meanwhile, that who waits for too long is
// told so, and that everything goes on when the bucket is back, at once.
func TestFullLog(t *testing.T) {
	w := start(t, func(c *agent.Config) {
		c.WALBytesMax = 4 << 20
		c.Flush.AgeMax = time.Hour
		c.Server.InFlightBytesMax = 3 << 20
	})
	p := w.dial(t)
	p.create("t", 1)
	w.bucket.Add(unavailablePuts)
	value := string(bytes.Repeat([]byte("v"), 900<<10))
	now := time.Now().UnixMilli()
	full := false
	for range 8 {
		req := produceRequest(-1, part{topic: "t", records: plain(t, now, value)})
		req.TimeoutMillis = 1000
		resp := ask[*kmsg.ProduceResponse](p, 9, req)
		if code := protocol.ErrorCode(resp.Topics[0].Partitions[0].ErrorCode); code == protocol.RequestTimedOut {
			full = true
			break
		}
	}
	if !full {
		t.Fatal("the WAL is never full")
	}
	// Three requests take all in-flight bytes of Produce.
	var waiting []*peer
	var reqs []*kmsg.ProduceRequest
	for range 4 {
		q := w.dial(t)
		req := produceRequest(-1, part{topic: "t", records: plain(t, now, value)})
		req.TimeoutMillis = 60_000
		req.SetVersion(9)
		q.send(req)
		waiting, reqs = append(waiting, q), append(reqs, req)
	}
	got := w.dial(t).fetch(12, fetchRequest(0, asked{topic: "t"}))
	if first, _ := values(t, got.Topics[0].Partitions[0].RecordBatches); first != 0 {
		t.Errorf("a fetch beside waiting producers got offset %d, want 0", first)
	}
	w.bucket.Clear()
	for i, q := range waiting {
		resp := q.receive(reqs[i], 1).(*kmsg.ProduceResponse)
		if code := protocol.ErrorCode(resp.Topics[0].Partitions[0].ErrorCode); code != protocol.None {
			t.Errorf("a producer that waited is told %v", code)
		}
	}
}

// TestClogged: a shard that cannot be merged takes no more records once its commits are half of what is too much; others do, and so does it when it can be merged.
func TestClogged(t *testing.T) {
	w := start(t, func(c *agent.Config) {
		c.Flush.AgeMax = 10 * time.Millisecond
		c.Merge = upkeep.MergeConfig{DataBytes: 64 << 10, CommitsMax: 1, KeyBytesMax: 1 << 20, AgeMax: 24 * time.Hour}
	})
	p := w.dial(t)
	p.create("t", 2)
	p.mustProduce("t", 0, plain(t, 1, "x"))
	w.restart(t) // now the record is in the bucket alone
	p = w.dial(t)
	w.bucket.Add(fault.Rule{Op: fault.Get, Prefix: segment.NamePrefix, Times: fault.Always, Effect: fault.Unavailable})
	produceUntil := func(want protocol.ErrorCode) (taken int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			got := protocol.ErrorCode(p.produce("t", 0, plain(t, 1, "x")).ErrorCode)
			switch {
			case got == want:
				return taken
			case got != protocol.None && got != protocol.NotEnoughReplicas:
				t.Fatalf("the answer is %v", got)
			case time.Now().After(end):
				t.Fatalf("the answer is still %v, want %v", got, want)
			}
			taken++
			w.ahead.Add(int64(time.Minute)) // what has failed is tried again
			time.Sleep(20 * time.Millisecond)
		}
	}
	if taken := produceUntil(protocol.NotEnoughReplicas); taken < 8 {
		t.Errorf("it took %d records, want half of the commits that are too many", taken)
	}
	if got := p.produce("t", 1, plain(t, 1, "x")); got.ErrorCode != 0 {
		t.Errorf("another shard's partition answers %v", protocol.ErrorCode(got.ErrorCode))
	}
	w.bucket.Clear()
	produceUntil(protocol.None)
}
