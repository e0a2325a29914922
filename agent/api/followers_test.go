package api_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/protocol"
)

// write writes to etcd what another agent would.
func (w *world) write(t *testing.T, ops ...coordinator.Op) {
	t.Helper()
	if _, err := w.kv.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
}

// register makes up an agent. Its log is closed and was claimed, so that nobody gives it shards.
func (w *world) register(t *testing.T, node int32, zone string, state coordinator.AgentState) {
	t.Helper()
	log := coordinator.LogID(1000 + node)
	w.write(t,
		coordinator.Op{Key: coordinator.KeyLog(log), Value: coordinator.Encode(coordinator.Log{ID: log, Node: node, Claimer: 1, Closed: true})},
		coordinator.Op{Key: coordinator.KeyAgent(node), Value: coordinator.Encode(coordinator.Agent{
			Node: node, Log: log, Host: "elsewhere", Port: 9000 + node, Zone: zone, State: state,
		})})
	t.Cleanup(func() { w.forget(t, node) }) // or the agent would wait for it when it drains
}

// forget ends the registration of an agent.
func (w *world) forget(t *testing.T, node int32) {
	t.Helper()
	if _, err := w.kv.Txn(context.WithoutCancel(t.Context()), nil, []coordinator.Op{{Key: coordinator.KeyAgent(node), Delete: true}}); err != nil {
		t.Error(err)
	}
}

// awaitBrokers waits until the agent knows that many agents.
func (p *peer) awaitBrokers(n int) {
	p.t.Helper()
	for len(ask[*kmsg.MetadataResponse](p, 12, metadataRequest()).Brokers) != n { // nothing tells what the view has seen
		time.Sleep(time.Millisecond)
	}
}

// lose gives the shard of a topic's first partition to another agent, which takes its log for open, and waits until the agent has heard of it.
func (w *world) lose(t *testing.T, p *peer, topic string, node int32) (epoch int32) {
	t.Helper()
	log := coordinator.LogID(1000 + node)
	get := func(key string) coordinator.Item {
		item, _, err := w.kv.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return item
	}
	record, err := coordinator.Decode[coordinator.Topic](get(coordinator.KeyTopic(topic)))
	if err != nil {
		t.Fatal(err)
	}
	id := record.ShardOf(0, 8)
	shard, err := coordinator.Decode[coordinator.Shard](get(coordinator.KeyShard(id)))
	if err != nil {
		t.Fatal(err)
	}
	shard.Owner, shard.Node, shard.Epoch = log, node, shard.Epoch+1
	w.write(t,
		coordinator.Op{Key: coordinator.KeyLog(log), Value: coordinator.Encode(coordinator.Log{ID: log, Node: node, Fence: 1})},
		coordinator.Op{Key: coordinator.KeyShard(id), Value: coordinator.Encode(shard)},
		coordinator.Op{Key: coordinator.KeyWrite(id), Value: coordinator.Encode(coordinator.Write{Owner: log, Epoch: shard.Epoch})})
	for only(t, p.fetch(10, fetchRequest(0, asked{topic: topic}))).ErrorCode == 0 { // the view tells nobody else
		time.Sleep(time.Millisecond)
	}
	return shard.Epoch
}

// ranked returns a Fetch of one partition by a consumer in a zone.
func ranked(zone string, a asked) *kmsg.FetchRequest {
	req := fetchRequest(5*time.Second, a)
	req.Rack = zone
	return req
}

// TestFetchSentToZone holds when a consumer is sent to an agent in its zone: if that agent knows what it asks for, and the Java client would go there.
func TestFetchSentToZone(t *testing.T) {
	w := start(t, nil) // in zone z1
	p := w.dial(t)
	id := p.createReplicated("t", 1, 3)
	p.createReplicated("alone", 1, 1)
	for _, topic := range []string{"t", "alone"} {
		p.mustProduce(topic, 0, plain(t, time.Now().UnixMilli(), "a", "b"))
	}
	w.restart(t)
	p = w.dial(t)
	p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), "tail"))
	w.register(t, 8, "z2", coordinator.AgentServing)
	w.register(t, 9, "z3", coordinator.AgentStarting)
	p.awaitBrokers(2)
	check := func(when string, version int16, zone string, a asked, replica int32, records int, code protocol.ErrorCode) {
		t.Helper()
		got := only(t, p.fetch(version, ranked(zone, a)))
		_, vals := values(t, got.RecordBatches)
		if got.PreferredReadReplica != replica || len(vals) != records || protocol.ErrorCode(got.ErrorCode) != code {
			t.Errorf("%s: sent to %d with %d records and %v, want %d, %d, %v", when, got.PreferredReadReplica, len(vals),
				protocol.ErrorCode(got.ErrorCode), replica, records, code)
		}
	}
	zombie := int32(99)
	check("committed just now", 12, "z2", asked{topic: "t"}, -1, 2, 0)
	w.ahead.Store(int64(time.Hour))
	check("committed long ago", 11, "z2", asked{topic: "t"}, 8, 0, 0)
	check("committed long ago, by id", 17, "z2", asked{id: id, offset: 1}, 8, 0, 0)
	check("a client that cannot say where it is", 10, "z2", asked{topic: "t"}, -1, 2, 0)
	check("a client that does not", 12, "", asked{topic: "t"}, -1, 2, 0)
	check("the leader's zone", 12, "z1", asked{topic: "t"}, -1, 2, 0)
	check("a zone whose agent does not serve", 12, "z3", asked{topic: "t"}, -1, 2, 0)
	check("not committed", 12, "z2", asked{topic: "t", offset: 2}, -1, 1, 0)
	check("no replica in the zone", 12, "z2", asked{topic: "alone"}, -1, 2, 0)
	check("another epoch", 12, "z2", asked{topic: "t", current: &zombie}, -1, 0, protocol.UnknownLeaderEpoch)
	check("out of range", 12, "z2", asked{topic: "t", offset: 9}, -1, 0, protocol.OffsetOutOfRange)

	s := &session{p: p}
	if got := only(t, s.fetch(12, fetchRequest(0, asked{topic: "t", offset: 2}))); len(got.RecordBatches) == 0 {
		t.Errorf("a session begins with %+v", got)
	}
	if got := only(t, s.fetch(12, ranked("z2", asked{topic: "t"}))); got.PreferredReadReplica != 8 {
		t.Errorf("in a session: %+v", got)
	}
}

// TestFetchFollowed holds what an agent serves of a partition that another one leads: to consumers in its zone what is committed, and where that ends
// the way back.
func TestFetchFollowed(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	for _, v := range []string{"a", "b", "c"} {
		p.mustProduce("t", 0, plain(t, time.Now().UnixMilli(), v))
	}
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: "t", Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: 1}}}}
	if got := ask[*kmsg.DeleteRecordsResponse](p, 2, req); got.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatalf("delete records: %+v", got)
	}
	w.restart(t)
	p = w.dial(t)
	w.register(t, 8, "z2", coordinator.AgentServing)
	epoch := w.lose(t, p, "t", 8)

	w.bucket.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
	if got := only(t, p.fetch(12, ranked("z1", asked{topic: "t", offset: 1}))); protocol.ErrorCode(got.ErrorCode) != protocol.KafkaStorageError {
		t.Errorf("without the bucket, where the log starts is not known, and the answer is %+v", got)
	}
	w.bucket.Clear()
	old, next := epoch-1, epoch+1
	for _, c := range []struct {
		name    string
		version int16
		zone    string
		asked   asked
		code    protocol.ErrorCode
		replica int32
		values  []string
	}{
		{"committed", 11, "z1", asked{topic: "t", offset: 1}, 0, -1, []string{"b", "c"}},
		{"committed, by id and epoch", 17, "z1", asked{id: id, offset: 2, current: &epoch}, 0, -1, []string{"c"}},
		{"where the agent is not", 12, "z7", asked{topic: "t", offset: 1}, 0, -1, []string{"b", "c"}},
		{"the end", 12, "z1", asked{topic: "t", offset: 3}, 0, 8, nil},
		{"past the end", 12, "z1", asked{topic: "t", offset: 30}, 0, 8, nil},
		{"before the log start", 12, "z1", asked{topic: "t"}, 0, 8, nil},
		{"older epoch", 12, "z1", asked{topic: "t", offset: 1, current: &old}, protocol.FencedLeaderEpoch, -1, nil},
		{"newer epoch", 12, "z1", asked{topic: "t", offset: 1, current: &next}, protocol.UnknownLeaderEpoch, -1, nil},
		{"an old client", 10, "z1", asked{topic: "t", offset: 1}, protocol.NotLeaderOrFollower, -1, nil},
		{"one that was not sent", 12, "", asked{topic: "t", offset: 1}, protocol.NotLeaderOrFollower, -1, nil},
		{"no such partition", 12, "z1", asked{topic: "t", partition: 1}, protocol.UnknownTopicOrPartition, -1, nil},
	} {
		begin := time.Now()
		r := ranked(c.zone, c.asked)
		r.MinBytes = 1 << 20 // more never comes here
		got := only(t, p.fetch(c.version, r))
		_, vals := values(t, got.RecordBatches)
		if protocol.ErrorCode(got.ErrorCode) != c.code || got.PreferredReadReplica != c.replica || !slices.Equal(vals, c.values) {
			t.Errorf("%s: %v, %q, sent to %d, want %v, %q, %d", c.name, protocol.ErrorCode(got.ErrorCode), vals, got.PreferredReadReplica, c.code, c.values, c.replica)
		}
		if c.code == 0 && (got.HighWatermark != 3 || got.LastStableOffset != 3 || got.LogStartOffset != 1) {
			t.Errorf("%s: the log is [%d,%d), stable to %d", c.name, got.LogStartOffset, got.HighWatermark, got.LastStableOffset)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: it took %v", c.name, took)
		}
	}
	w.forget(t, 8)
	p.awaitBrokers(1)
	if got := only(t, p.fetch(12, ranked("z1", asked{topic: "t", offset: 3}))); protocol.ErrorCode(got.ErrorCode) != protocol.NotLeaderOrFollower {
		t.Errorf("the end, and no leader: %+v", got)
	}
	if got := only(t, p.fetch(12, ranked("z1", asked{topic: "t", offset: 2}))); len(got.RecordBatches) == 0 {
		t.Errorf("committed, and no leader: %+v", got)
	}
}

// TestLeaderHints holds that who asks in the wrong place is told the right one (KIP-951), in the versions that have room for it.
func TestLeaderHints(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	w.register(t, 8, "z2", coordinator.AgentServing)
	epoch := w.lose(t, p, "t", 8)
	for _, v := range versions(t, protocol.KeyFetch) {
		a := asked{topic: "t"}
		if v >= 13 {
			a.topic, a.id = "", id
		}
		resp := p.fetch(v, fetchRequest(0, a))
		got := only(t, resp)
		if protocol.ErrorCode(got.ErrorCode) != protocol.NotLeaderOrFollower {
			t.Errorf("fetch version %d: %v", v, protocol.ErrorCode(got.ErrorCode))
		}
		hinted := got.CurrentLeader.LeaderID == 8 && got.CurrentLeader.LeaderEpoch == epoch &&
			len(resp.Brokers) == 1 && resp.Brokers[0].NodeID == 8 && resp.Brokers[0].Host == "elsewhere" && *resp.Brokers[0].Rack == "z2"
		if hinted != (v >= 16) {
			t.Errorf("fetch version %d: leader %+v at %+v", v, got.CurrentLeader, resp.Brokers)
		}
	}
	for _, v := range versions(t, protocol.KeyProduce) {
		to := part{topic: "t", records: plain(t, time.Now().UnixMilli(), "a")}
		if v >= 13 {
			to.topic, to.id = "", id
		}
		resp := ask[*kmsg.ProduceResponse](p, v, produceRequest(-1, to))
		got := resp.Topics[0].Partitions[0]
		if protocol.ErrorCode(got.ErrorCode) != protocol.NotLeaderOrFollower {
			t.Errorf("produce version %d: %v", v, protocol.ErrorCode(got.ErrorCode))
		}
		hinted := got.CurrentLeader.LeaderID == 8 && got.CurrentLeader.LeaderEpoch == epoch &&
			len(resp.Brokers) == 1 && resp.Brokers[0].NodeID == 8 && resp.Brokers[0].Port == 9008
		if hinted != (v >= 10) {
			t.Errorf("produce version %d: leader %+v at %+v", v, got.CurrentLeader, resp.Brokers)
		}
	}
	old := epoch - 1
	req := ranked("z1", asked{topic: "t", current: &old})
	if got := only(t, p.fetch(16, req)); got.CurrentLeader.LeaderID != -1 { // by id, which is none
		t.Errorf("an unknown topic: %+v", got)
	}
	if got := only(t, p.fetch(17, ranked("z1", asked{id: id, current: &old}))); got.CurrentLeader.LeaderID != 8 {
		t.Errorf("an older epoch: %+v", got)
	}
	w.forget(t, 8)
	p.awaitBrokers(1)
	if resp := p.fetch(17, fetchRequest(0, asked{id: id})); only(t, resp).CurrentLeader.LeaderID != -1 || len(resp.Brokers) != 0 {
		t.Errorf("a leader that is not registered: %+v", resp)
	}
}

// TestReplicasOverZones holds that a partition's replicas are in as many zones as there can be, and that a zone's agents share the partitions.
func TestReplicasOverZones(t *testing.T) {
	w := start(t, nil) // node 1 in zone z1
	for node, zone := range map[int32]string{5: "z1", 6: "z2", 7: "z2", 8: "z3"} {
		w.register(t, node, zone, coordinator.AgentServing)
	}
	p := w.dial(t)
	p.awaitBrokers(5)
	zones := map[int32]string{1: "z1", 5: "z1", 6: "z2", 7: "z2", 8: "z3"}
	for factor := range int16(7) {
		if factor == 0 {
			continue
		}
		topic := string('a' + rune(factor))
		p.createReplicated(topic, 10, factor)
		used := make(map[int32]bool)
		for _, part := range ask[*kmsg.MetadataResponse](p, 12, metadataRequest(topic)).Topics[0].Partitions {
			covered := make(map[string]bool)
			for _, node := range part.Replicas {
				covered[zones[node]], used[node] = true, true
			}
			once := slices.Compact(slices.Sorted(slices.Values(part.Replicas)))
			if len(once) != min(int(factor), 5) || len(part.Replicas) != len(once) || len(covered) != min(int(factor), 3) || part.Replicas[0] != part.Leader {
				t.Errorf("factor %d: partition %d has replicas %v", factor, part.Partition, part.Replicas)
			}
		}
		if factor >= 3 && !(used[6] && used[7]) {
			t.Errorf("factor %d: of zone z2 only %v are used", factor, used)
		}
	}
}
