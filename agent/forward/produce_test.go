package forward_test

import (
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// batchOf returns the header of a batch with one record that is not there, which is all that a fake agent and the forwarder look at.
func batchOf(producer int64, sequence int32) []byte {
	b := make([]byte, batch.HeaderBytes)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	binary.BigEndian.PutUint64(b[43:], uint64(producer))
	binary.BigEndian.PutUint32(b[53:], uint32(sequence))
	binary.BigEndian.PutUint32(b[57:], 1)
	return b
}

// produceTo returns a request with a batch of that sequence number for each partition.
func produceTo(acks int16, producer int64, sequence int32, partitions ...int32) *kmsg.ProduceRequest {
	req, t := kmsg.NewPtrProduceRequest(), kmsg.NewProduceRequestTopic()
	req.Version, req.Acks, req.TimeoutMillis, t.Topic = 9, acks, 10_000, "t"
	for _, n := range partitions {
		t.Partitions = append(t.Partitions, kmsg.ProduceRequestTopicPartition{Partition: n, Records: batchOf(producer, sequence)})
	}
	req.Topics = append(req.Topics, t)
	return req
}

// wantAppended holds that a request was answered without errors, with that offset in each of its partitions, in its order.
func wantAppended(t *testing.T, req *kmsg.ProduceRequest, resp kmsg.Response, offset int64) {
	t.Helper()
	for i, p := range resp.(*kmsg.ProduceResponse).Topics[0].Partitions {
		if want := req.Topics[0].Partitions[i].Partition; p.Partition != want || p.ErrorCode != 0 || p.BaseOffset != offset {
			t.Errorf("partition %d has offset %d and error %d, want partition %d and offset %d", p.Partition, p.BaseOffset, p.ErrorCode, want, offset)
		}
	}
}

// logs are the batches of a partition, over all agents.
func (w *world) logs(partition int32) []int32 {
	var all []int32
	for _, a := range w.agents {
		all = append(all, a.log(partition)...)
	}
	return all
}

func TestProduce(t *testing.T) {
	w := newWorld(t)
	partitions := []int32{3, 5, 1, 0, 4, 2}
	for n := range int32(3) {
		req := produceTo(-1, 7, n, partitions...)
		wantAppended(t, req, w.ask(req), int64(n))
	}
	for _, p := range partitions {
		if got := w.agents[w.leader(p)].log(p); !slices.Equal(got, []int32{0, 1, 2}) {
			t.Errorf("the leader of partition %d has %v, want three batches", p, got)
		}
	}
}

// TestProduceSilent: acks=0 gets no answer, and its batches arrive all the same.
func TestProduceSilent(t *testing.T) {
	w := newWorld(t)
	a := w.serve(produceTo(0, -1, 0, 0, 1, 2))
	<-a.Ready()
	if bufs, _ := a.AppendTo(nil, nil); len(bufs) != 0 {
		t.Errorf("answered with %d buffers, want none", len(bufs))
	}
	for p := range int32(3) {
		if got := w.logs(p); len(got) != 1 {
			t.Errorf("partition %d has %v, want one batch", p, got)
		}
	}
}

// TestProduceSilentRefused: a producer that gets no answers loses its connection after a batch was refused.
func TestProduceSilentRefused(t *testing.T) {
	w := newWorld(t)
	req := produceTo(0, -1, 0, 99)
	<-w.serve(req).Ready()
	if _, err := w.f.Serve(w.ctx, w.request(req)); err == nil {
		t.Error("the connection goes on")
	}
}

// TestProduceMoves: while a leader moves, a producer that has many requests under way sees neither an error nor a gap.
func TestProduceMoves(t *testing.T) {
	for name, from := range map[string]int{"from here": 0, "from elsewhere": 1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p, other := w.partitionsOf(from)[0], w.partitionsOf(2)[0]
			type under struct {
				req *kmsg.ProduceRequest
				a   server.Answer
			}
			var all []under
			send := func(n int32) {
				req := produceTo(-1, 7, n, p, other)
				all = append(all, under{req, w.serve(req)})
			}
			for n := range int32(5) {
				send(n)
			}
			w.agents[from].lead(w.shard(p), false)
			moved := time.AfterFunc(100*time.Millisecond, func() {
				old, to := w.agents[from], w.agents[2]
				old.mu.Lock()
				log := slices.Clone(old.logs[p]) // which a new leader has
				old.mu.Unlock()
				to.mu.Lock()
				to.logs[p], to.shards[w.shard(p)] = log, true
				to.mu.Unlock()
				w.own(w.shard(p), 2)
			})
			defer moved.Stop()
			for n := range int32(10) {
				send(5 + n)
			}
			for n, u := range all {
				wantAppended(t, u.req, w.finish(u.req, u.a), int64(n))
			}
			if got := w.agents[2].log(p); len(got) != len(all) || !slices.IsSorted(got) {
				t.Errorf("the new leader has %v, want %d batches in order", got, len(all))
			}
		})
	}
}

// TestProduceFirst: a leader that refuses the first batch of a producer and is then ready takes the second one after it, though it would take any batch as the first.
func TestProduceFirst(t *testing.T) {
	for name, n := range map[string]int{"here": 0, "elsewhere": 1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.partitionsOf(n)[0]
			a := w.agents[n]
			a.lead(w.shard(p), false)
			first, second := produceTo(-1, 7, 0, p), produceTo(-1, 7, 1, p)
			one := w.serve(first)
			for a.count("Produce") == 0 { // it has refused the first
				time.Sleep(time.Millisecond)
			}
			a.lead(w.shard(p), true)
			two := w.serve(second)
			wantAppended(t, first, w.finish(first, one), 0)
			wantAppended(t, second, w.finish(second, two), 1)
			if got := a.log(p); !slices.Equal(got, []int32{0, 1}) {
				t.Errorf("appended %v, want both in order", got)
			}
		})
	}
}

// TestProduceGap: what was refused for a gap, because the one before it has to be sent again, follows it.
func TestProduceGap(t *testing.T) {
	w := newWorld(t)
	p := w.partitionsOf(1)[0]
	a := w.agents[1]
	known := produceTo(-1, 7, 0, p)
	wantAppended(t, known, w.ask(known), 0)
	a.lead(w.shard(p), false)
	first := produceTo(-1, 7, 1, p)
	one := w.serve(first)
	for a.count("Produce") == 1 { // it has refused the first
		time.Sleep(time.Millisecond)
	}
	a.lead(w.shard(p), true) // and leads again
	second := produceTo(-1, 7, 2, p)
	two := w.serve(second)
	wantAppended(t, first, w.finish(first, one), 1)
	wantAppended(t, second, w.finish(second, two), 2)
}

// TestProduceTrueGap: a gap that nobody closes is told, and soon.
func TestProduceTrueGap(t *testing.T) {
	w := newWorld(t)
	w.ask(produceTo(-1, 7, 0, w.partitionsOf(1)[0]))
	req := produceTo(-1, 7, 3, w.partitionsOf(1)[0])
	start := time.Now()
	got := w.ask(req).(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode
	if got != int16(protocol.OutOfOrderSequenceNumber) || time.Since(start) > 5*time.Second {
		t.Errorf("error %d after %v, want OUT_OF_ORDER_SEQUENCE_NUMBER at once", got, time.Since(start))
	}
}

// TestProduceLost: when the connection ends before the answer, an idempotent batch is sent again, and of another the producer must decide.
func TestProduceLost(t *testing.T) {
	for name, test := range map[string]struct {
		producer int64
		code     protocol.ErrorCode
	}{"idempotent": {7, protocol.None}, "not idempotent": {-1, protocol.RequestTimedOut}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.partitionsOf(1)[0]
			failed := false
			w.agents[1].mu.Lock()
			w.agents[1].fail = func(protocol.Key) bool {
				first := !failed
				failed = true
				return first
			}
			w.agents[1].mu.Unlock()
			got := w.ask(produceTo(-1, test.producer, 0, p)).(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode
			if got != int16(test.code) {
				t.Errorf("error %d, want %d", got, test.code)
			}
		})
	}
}

// TestProduceRefused: when a leader takes no records, of an idempotent producer either, the producer is told at once, and other partitions of the request are not held up.
func TestProduceRefused(t *testing.T) {
	w := newWorld(t)
	p, other := w.partitionsOf(1)[0], w.partitionsOf(2)[0]
	w.agents[1].refused = protocol.NotEnoughReplicas
	got := w.ask(produceTo(-1, 7, 0, p, other)).(*kmsg.ProduceResponse).Topics[0].Partitions
	if code := protocol.ErrorCode(got[0].ErrorCode); code != protocol.NotEnoughReplicas || got[1].ErrorCode != 0 {
		t.Errorf("the answers are %v and %v", code, protocol.ErrorCode(got[1].ErrorCode))
	}
	if n := w.agents[1].count("Produce"); n != 1 {
		t.Errorf("the leader was asked %d times, want once", n)
	}
}

// TestProduceTimeout: a request whose leader does not answer is answered when its time is over.
func TestProduceTimeout(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	defer close(hold)
	w.agents[1].mu.Lock()
	w.agents[1].hold = hold
	w.agents[1].mu.Unlock()
	req := produceTo(-1, -1, 0, w.partitionsOf(1)[0], w.partitionsOf(2)[0])
	req.TimeoutMillis = 100
	parts := w.ask(req).(*kmsg.ProduceResponse).Topics[0].Partitions
	if parts[0].ErrorCode != int16(protocol.RequestTimedOut) || parts[1].ErrorCode != 0 {
		t.Errorf("errors %d and %d, want REQUEST_TIMED_OUT and none", parts[0].ErrorCode, parts[1].ErrorCode)
	}
}

// TestProduceAgainHoldsOneCopy: a request that is sent again and again takes the memory of one.
func TestProduceAgainHoldsOneCopy(t *testing.T) {
	w := newWorld(t)
	p := w.partitionsOf(1)[0]
	w.agents[1].lead(w.shard(p), false)
	req := produceTo(-1, 7, 0, p)
	req.Topics[0].Partitions[0].Records = append(req.Topics[0].Partitions[0].Records, make([]byte, 16<<20)...)
	req.TimeoutMillis = 60_000 // for it to be sent eight times on a busy machine
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	a := w.serve(req)
	for w.agents[1].count("Produce") < 8 {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 200<<20 {
		t.Errorf("%d MiB are held for a request of 16 MiB", got>>20)
	}
	w.agents[1].lead(w.shard(p), true)
	wantAppended(t, req, w.finish(req, a), 0)
}
