package api

import (
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// Whoever asks in the wrong place is told the right one with the error (KIP-951), if it is known: Produce from version 10, Fetch from version 16 on.

// isMisplaced reports whether an error says that another agent, or the same under another epoch, leads the partition.
func isMisplaced(code protocol.ErrorCode) bool {
	return code == protocol.NotLeaderOrFollower || code == protocol.FencedLeaderEpoch
}

// leader returns who leads a partition, and the epoch; ok is false if nobody does who serves, or this agent is to and does not yet.
func (b *Broker) leader(byID bool, name string, id [16]byte, number int32, code protocol.ErrorCode) (a coordinator.Agent, epoch int32, ok bool) {
	t, err := b.topic(byID, name, id)
	if err != nil {
		return a, 0, false
	}
	shard, _ := b.deps.View.Shard(t.ShardOf(number, b.deps.View.Cluster().Shards))
	a, ok = b.owner(&shard)
	return a, shard.Epoch, ok && (a.Node != b.cfg.Node || code == protocol.FencedLeaderEpoch)
}

// hintLeaders adds the leaders to a response to Fetch.
func (b *Broker) hintLeaders(resp *wire.FetchResponse) {
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			if !isMisplaced(p.ErrorCode) {
				continue
			}
			a, epoch, ok := b.leader(resp.Version >= 13, t.Name, t.ID, p.Partition, p.ErrorCode)
			if !ok {
				continue
			}
			p.CurrentLeader = &wire.LeaderEpoch{LeaderID: a.Node, Epoch: protocol.LeaderEpoch(epoch)}
			if !slices.ContainsFunc(resp.NodeEndpoints, func(n wire.NodeEndpoint) bool { return n.NodeID == a.Node }) {
				resp.NodeEndpoints = append(resp.NodeEndpoints, wire.NodeEndpoint{NodeID: a.Node, Host: a.Host, Port: a.Port, Rack: a.Zone})
			}
		}
	}
}

// hintProduce adds the leaders to a response to Produce.
func (b *Broker) hintProduce(resp *kmsg.ProduceResponse) {
	for i := range resp.Topics {
		t := &resp.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			code := protocol.ErrorCode(p.ErrorCode)
			if !isMisplaced(code) {
				continue
			}
			a, epoch, ok := b.leader(resp.Version >= 13, t.Topic, t.TopicID, p.Partition, code)
			if !ok {
				continue
			}
			p.CurrentLeader.LeaderID, p.CurrentLeader.LeaderEpoch = a.Node, epoch
			if !slices.ContainsFunc(resp.Brokers, func(n kmsg.ProduceResponseBroker) bool { return n.NodeID == a.Node }) {
				resp.Brokers = append(resp.Brokers, kmsg.ProduceResponseBroker{NodeID: a.Node, Host: a.Host, Port: a.Port, Rack: rack(a.Zone)})
			}
		}
	}
}
