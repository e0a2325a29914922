package forward_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// fetchFrom returns a request for partitions at offsets.
func fetchFrom(wait time.Duration, offsets map[int32]int64, partitions ...int32) *kmsg.FetchRequest {
	req, t := kmsg.NewPtrFetchRequest(), kmsg.NewFetchRequestTopic()
	req.Version, req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.SessionEpoch = 12, int32(wait.Milliseconds()), 1, 1<<20, 0
	t.Topic = "t"
	for _, n := range partitions {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = n, offsets[n], 1<<20, 9
		t.Partitions = append(t.Partitions, p)
	}
	req.Topics = append(req.Topics, t)
	return req
}

// shown is what a fetch brings: "partition:bytes@high watermark" or "partition!error", in order.
func shown(resp kmsg.Response) []string {
	var all []string
	for _, t := range resp.(*kmsg.FetchResponse).Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 {
				all = append(all, fmt.Sprintf("%d!%d", p.Partition, p.ErrorCode))
				continue
			}
			all = append(all, fmt.Sprintf("%d:%d@%d", p.Partition, len(p.RecordBatches), p.HighWatermark))
		}
	}
	return all
}

func want(t *testing.T, resp kmsg.Response, all ...string) {
	t.Helper()
	if got := fmt.Sprint(shown(resp)); got != fmt.Sprint(all) {
		t.Errorf("fetched %v, want %v", got, all)
	}
}

// TestFetch: each partition comes from its leader, in the order of the request, and no session is given.
func TestFetch(t *testing.T) {
	w := newWorld(t)
	var all []int32
	var expect []string
	for i := range int32(shards) {
		p := shards - 1 - i
		w.agents[w.leader(p)].grow(p, int64(p)+1)
		all = append(all, p)
		expect = append(expect, fmt.Sprintf("%d:%d@%d", p, p+1, p+1))
	}
	resp := w.ask(fetchFrom(time.Minute, nil, append(all, 99)...)).(*kmsg.FetchResponse)
	want(t, resp, append(expect, "99!3")...)
	if resp.SessionID != 0 {
		t.Errorf("session %d, want none", resp.SessionID)
	}
	for _, p := range resp.Topics[0].Partitions[:shards] {
		if int(p.RecordBatches[0]) != w.leader(p.Partition)+1 {
			t.Errorf("partition %d is of agent %d, want %d", p.Partition, p.RecordBatches[0], w.leader(p.Partition)+1)
		}
	}
}

func TestFetchSession(t *testing.T) {
	w := newWorld(t)
	req := fetchFrom(0, nil, 0)
	req.SessionID, req.SessionEpoch = 5, 1
	if got := w.ask(req).(*kmsg.FetchResponse).ErrorCode; got != int16(protocol.FetchSessionIDNotFound) {
		t.Errorf("error %d for a session of another agent, want FETCH_SESSION_ID_NOT_FOUND", got)
	}
}

// TestFetchWaits: a fetch waits until one of several leaders has something, or its time is over, and then tells what it knows of all.
func TestFetchWaits(t *testing.T) {
	w := newWorld(t)
	p := []int32{w.partitionsOf(0)[0], w.partitionsOf(1)[0], w.partitionsOf(2)[0]}
	w.agents[0].grow(p[0], 3)
	w.agents[1].grow(p[1], 4)
	at := map[int32]int64{p[0]: 3, p[1]: 4}
	start := time.Now()
	want(t, w.ask(fetchFrom(200*time.Millisecond, at, p...)), fmt.Sprintf("%d:0@3", p[0]), fmt.Sprintf("%d:0@4", p[1]), fmt.Sprintf("%d:0@0", p[2]))
	if took := time.Since(start); took < 190*time.Millisecond {
		t.Errorf("answered after %v, want 200 ms", took)
	}
	for n, a := range w.agents {
		grown := time.AfterFunc(100*time.Millisecond, func() { a.grow(p[n], 2) })
		start := time.Now()
		resp := w.ask(fetchFrom(time.Minute, at, p...)).(*kmsg.FetchResponse)
		grown.Stop()
		if got := resp.Topics[0].Partitions[n]; len(got.RecordBatches) != 2 || time.Since(start) > patience {
			t.Errorf("partition %d: %d bytes after %v, want 2 soon after they came", p[n], len(got.RecordBatches), time.Since(start))
		}
		at[p[n]] += 2
	}
}

// TestFetchKeepsPolls: a leader without news is asked once per wait, however often the others have some; and what it then has comes.
func TestFetchKeepsPolls(t *testing.T) {
	w := newWorld(t)
	busy, idle := w.partitionsOf(1)[0], w.partitionsOf(2)[0]
	w.agents[2].grow(idle, 7)
	at := map[int32]int64{idle: 7}
	const fetches = 20
	for n := range fetches {
		grown := time.AfterFunc(10*time.Millisecond, func() { w.agents[1].grow(busy, 1) })
		parts := []int32{busy, idle}
		if n%2 == 1 { // clients change the order
			parts = []int32{idle, busy}
		}
		resp := w.ask(fetchFrom(time.Minute, at, parts...))
		grown.Stop()
		expect := []string{fmt.Sprintf("%d:1@%d", busy, n+1), fmt.Sprintf("%d:0@7", idle)}
		if n%2 == 1 {
			expect[0], expect[1] = expect[1], expect[0]
		}
		want(t, resp, expect...)
		at[busy]++
	}
	if got := w.agents[2].count("Fetch"); got > 3 {
		t.Errorf("the leader without news was asked %d times in %d fetches, want 2", got, fetches)
	}
	w.agents[2].grow(idle, 1)
	want(t, w.ask(fetchFrom(time.Minute, at, busy, idle)), fmt.Sprintf("%d:0@%d", busy, fetches), fmt.Sprintf("%d:1@8", idle))
}

// TestFetchMoves: a leader that moves while a client waits is no error to the client.
func TestFetchMoves(t *testing.T) {
	w := newWorld(t)
	moves, stays := w.partitionsOf(1)[0], w.partitionsOf(0)[0]
	w.agents[1].lead(w.shard(moves), false)
	moved := time.AfterFunc(100*time.Millisecond, func() {
		w.agents[2].grow(moves, 5)
		w.agents[2].lead(w.shard(moves), true)
		w.own(w.shard(moves), 2)
	})
	defer moved.Stop()
	want(t, w.ask(fetchFrom(time.Minute, nil, stays, moves)), fmt.Sprintf("%d:0@0", stays), fmt.Sprintf("%d:5@5", moves))
}

// TestFetchShare: the client's limit of bytes is for the whole answer.
func TestFetchShare(t *testing.T) {
	w := newWorld(t)
	req := fetchFrom(time.Minute, nil, 0, 1, 2)
	req.MaxBytes = 300
	w.agents[w.leader(0)].grow(0, 1)
	w.ask(req)
	for _, a := range w.agents {
		a.mu.Lock()
		got := a.bytesMax
		a.mu.Unlock()
		if got != 100 {
			t.Errorf("agent %d was asked for at most %d bytes, want a third of 300", a.node, got)
		}
	}
}

// TestFetchSlow: a leader that does not answer keeps nobody from the others' records, and is a leader without news once something is known of its partitions.
func TestFetchSlow(t *testing.T) {
	w := newWorld(t)
	busy, frozen := w.partitionsOf(0)[0], w.partitionsOf(1)[0]
	w.agents[0].grow(busy, 1)
	w.agents[1].grow(frozen, 3)
	want(t, w.ask(fetchFrom(time.Minute, nil, busy, frozen)), fmt.Sprintf("%d:1@1", busy), fmt.Sprintf("%d:3@3", frozen))
	at := map[int32]int64{busy: 1, frozen: 3}
	w.agents[1].mu.Lock()
	w.agents[1].deaf = true
	w.agents[1].mu.Unlock()
	for n := range int64(3) {
		w.agents[0].grow(busy, 1)
		start := time.Now()
		want(t, w.ask(fetchFrom(time.Minute, at, busy, frozen)), fmt.Sprintf("%d:1@%d", busy, n+2), fmt.Sprintf("%d:0@3", frozen))
		if took := time.Since(start); took > 10*time.Second { // the wait for it is fetchWaitMax, 30 s
			t.Errorf("fetch %d took %v, want not to wait for the one that is frozen", n, took)
		}
		at[busy]++
	}
}

// TestFetchLeaderless: a partition without a leader is no error to the client, which gets the others' records meanwhile, and others are not asked again for it.
func TestFetchLeaderless(t *testing.T) {
	w := newWorld(t)
	lost, idle, busy := w.partitionsOf(1)[0], w.partitionsOf(2)[0], w.partitionsOf(0)[0]
	parts := []int32{lost, idle, busy}
	w.agents[1].grow(lost, 2)
	want(t, w.ask(fetchFrom(0, map[int32]int64{lost: 2}, parts...)), fmt.Sprintf("%d:0@2", lost), fmt.Sprintf("%d:0@0", idle), fmt.Sprintf("%d:0@0", busy))
	w.put(coordinator.KeyShard(w.shard(lost)), coordinator.Shard{Owner: 99, Node: 99, Epoch: 2})
	w.settled()
	asked := w.agents[2].count("Fetch")
	at := map[int32]int64{lost: 2}
	want(t, w.ask(fetchFrom(500*time.Millisecond, at, parts...)), fmt.Sprintf("%d:0@2", lost), fmt.Sprintf("%d:0@0", idle), fmt.Sprintf("%d:0@0", busy))
	if got := w.agents[2].count("Fetch") - asked; got > 2 {
		t.Errorf("another leader was asked %d times, want 2", got)
	}
	w.agents[0].grow(busy, 1)
	want(t, w.ask(fetchFrom(time.Minute, at, parts...)), fmt.Sprintf("%d:0@2", lost), fmt.Sprintf("%d:0@0", idle), fmt.Sprintf("%d:1@1", busy))
}

// TestTopicIDs: versions that name topics by their ids go the same ways.
func TestTopicIDs(t *testing.T) {
	w := newWorld(t)
	partitions := []int32{4, 1, 3, 0}
	req := produceTo(-1, 7, 0, partitions...)
	req.Version, req.Topics[0].Topic, req.Topics[0].TopicID = 13, "", w.topic.ID
	resp := w.ask(req).(*kmsg.ProduceResponse)
	wantAppended(t, req, resp, 0)
	if resp.Topics[0].TopicID != w.topic.ID {
		t.Errorf("topic id %v, want that of the request", resp.Topics[0].TopicID)
	}
	var expect []string
	for _, p := range partitions {
		w.agents[w.leader(p)].grow(p, 2)
		expect = append(expect, fmt.Sprintf("%d:2@2", p))
	}
	fetch := fetchFrom(time.Minute, nil, partitions...)
	fetch.Version, fetch.Topics[0].Topic, fetch.Topics[0].TopicID = 16, "", w.topic.ID
	got := w.ask(fetch).(*kmsg.FetchResponse)
	want(t, got, expect...)
	if got.Topics[0].TopicID != w.topic.ID {
		t.Errorf("topic id %v, want that of the request", got.Topics[0].TopicID)
	}
	unknown := fetchFrom(time.Minute, nil, 0)
	unknown.Version, unknown.Topics[0].Topic, unknown.Topics[0].TopicID = 16, "", [16]byte{9}
	if got := w.ask(unknown).(*kmsg.FetchResponse).Topics[0].Partitions[0].ErrorCode; got == 0 {
		t.Error("a topic that there is not was fetched")
	}
}
