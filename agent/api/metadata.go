package api

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// unknownOperations is what "authorized operations" says where there is no authorizer and none were asked for.
const unknownOperations = -1 << 31

// Bits of authorized operations that a client without an authorizer has: all that Kafka's AclEntry supports for the resource.
const (
	topicOperations   = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<11 // read, write, create, delete, alter, describe, describe and alter configs
	clusterOperations = 1<<5 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11 | 1<<12       // create, alter, describe, cluster action, configs, idempotent write
)

// metadata serves Metadata, versions 0 to 13.
//
// Each partition has its leader, and as many replicas, all in sync, as agents live, up to the replication factor that was asked for: the WAL keeps the
// copies, and no agent has a partition of its own.
func (b *Broker) metadata(ctx context.Context, req *kmsg.MetadataRequest) *kmsg.MetadataResponse {
	resp := kmsg.NewPtrMetadataResponse()
	resp.Version = req.Version
	agents := b.agents()
	for _, a := range agents {
		resp.Brokers = append(resp.Brokers, kmsg.MetadataResponseBroker{NodeID: a.Node, Host: a.Host, Port: a.Port, Rack: rack(a.Zone)})
	}
	id := b.deps.View.Cluster().ID
	resp.ClusterID = &id
	resp.ControllerID = b.controller(agents)
	resp.AuthorizedOperations = unknownOperations
	if req.IncludeClusterAuthorizedOperations {
		resp.AuthorizedOperations = clusterOperations
	}
	// No topics means all of them: null from version 1 on, an empty list in version 0.
	if req.Topics == nil || req.Version == 0 && len(req.Topics) == 0 {
		for _, t := range b.deps.View.Topics() {
			resp.Topics = append(resp.Topics, b.describeTopic(&t, agents, req))
		}
		return resp
	}
	for i := range req.Topics {
		resp.Topics = append(resp.Topics, b.metadataTopic(ctx, req, &req.Topics[i], agents))
	}
	return resp
}

// agents returns those that clients may use: they serve, or drain and still lead something. Behind a load balancer it is one for all, which leads and
// coordinates everything.
func (b *Broker) agents() []coordinator.Agent {
	if b.cfg.Balancer.Node != 0 {
		return []coordinator.Agent{b.cfg.Balancer}
	}
	leads := make(map[coordinator.LogID]bool)
	for _, s := range b.deps.View.Shards() {
		leads[s.Owner] = true
	}
	return slices.DeleteFunc(b.deps.View.Agents(), func(a coordinator.Agent) bool {
		return a.State == coordinator.AgentStarting || a.State == coordinator.AgentDraining && !leads[a.Log]
	})
}

// controller names an agent that lives: every agent serves what a controller does.
func (b *Broker) controller(agents []coordinator.Agent) int32 {
	holder, _ := b.deps.View.Controller()
	for _, a := range agents {
		if a.Log == holder.Log {
			return a.Node
		}
	}
	if len(agents) > 0 {
		return agents[0].Node
	}
	return b.cfg.Node
}

func rack(zone string) *string {
	if zone == "" {
		return nil
	}
	return &zone
}

// metadataTopic answers for one topic that was asked for by name or id, which it may create.
func (b *Broker) metadataTopic(ctx context.Context, req *kmsg.MetadataRequest, asked *kmsg.MetadataRequestTopic,
	agents []coordinator.Agent,
) kmsg.MetadataResponseTopic {
	byID := asked.Topic == nil
	name := ""
	if !byID {
		name = *asked.Topic
	}
	t, err := b.topic(byID, name, asked.TopicID)
	create := b.cfg.AutoCreate && (req.Version < 4 || req.AllowAutoTopicCreation)
	if !byID && create && protocol.CodeOf(err) == protocol.UnknownTopicOrPartition {
		if err = b.deps.Topics.AutoCreate(ctx, name); err == nil {
			t, err = b.topic(false, name, asked.TopicID)
		}
	}
	if err != nil {
		out := kmsg.NewMetadataResponseTopic()
		out.ErrorCode, out.Topic, out.TopicID = int16(protocol.CodeOf(err)), asked.Topic, asked.TopicID
		return out
	}
	return b.describeTopic(t, agents, req)
}

func (b *Broker) describeTopic(t *coordinator.Topic, agents []coordinator.Agent, req *kmsg.MetadataRequest) kmsg.MetadataResponseTopic {
	out := kmsg.NewMetadataResponseTopic()
	name := t.Name
	out.Topic, out.TopicID = &name, t.ID
	out.AuthorizedOperations = unknownOperations
	if req.IncludeTopicAuthorizedOperations {
		out.AuthorizedOperations = topicOperations
	}
	out.Partitions = make([]kmsg.MetadataResponseTopicPartition, t.Partitions)
	for n := range out.Partitions {
		out.Partitions[n] = b.describePartition(t, int32(n), agents)
	}
	return out
}

func (b *Broker) describePartition(t *coordinator.Topic, number int32, agents []coordinator.Agent) kmsg.MetadataResponseTopicPartition {
	p := kmsg.NewMetadataResponseTopicPartition()
	p.Partition = number
	shard, _ := b.deps.View.Shard(t.ShardOf(number, b.deps.View.Cluster().Shards))
	p.Leader, p.LeaderEpoch = shard.Node, shard.Epoch
	if b.cfg.Balancer.Node != 0 { // to whom there is one broker its leader never changes
		p.LeaderEpoch = int32(protocol.NoLeaderEpoch)
	}
	if !slices.ContainsFunc(agents, func(a coordinator.Agent) bool { return a.Node == shard.Node }) {
		// Until somebody leads it again, an agent that lives says so itself, and the client asks again: some clients cannot do with a leader that is not listed.
		p.Leader = b.controller(agents)
	}
	p.Replicas = replicas(p.Leader, agents, t.Replication, number)
	p.ISR = p.Replicas
	p.OfflineReplicas = []int32{}
	if shard.Node == 0 && b.cfg.Balancer.Node == 0 {
		p.Leader = -1
		p.ErrorCode = int16(protocol.LeaderNotAvailable)
	}
	return p
}

// replicas lists the leader and then other agents, up to the replication factor: first one of each zone that has none in the list, so that consumers find one
// in theirs. With the partition's number others come first, so that a zone's agents share its consumers.
func replicas(leader int32, agents []coordinator.Agent, factor int16, number int32) []int32 {
	list := []int32{leader}
	if factor <= 1 {
		return list
	}
	zones := make([]string, 0, 4)
	for _, a := range agents {
		if a.Node == leader {
			zones = append(zones, a.Zone)
		}
	}
	for _, again := range []bool{false, true} { // one of each zone, and then whoever is left
		for i := range agents {
			a := &agents[(int(number)+i)%len(agents)]
			if len(list) >= int(factor) {
				return list
			}
			if slices.Contains(list, a.Node) || !again && slices.Contains(zones, a.Zone) {
				continue
			}
			list, zones = append(list, a.Node), append(zones, a.Zone)
		}
	}
	return list
}

// describeCluster serves DescribeCluster, versions 0 to 2.
func (b *Broker) describeCluster(req *kmsg.DescribeClusterRequest) *kmsg.DescribeClusterResponse {
	resp := kmsg.NewPtrDescribeClusterResponse()
	resp.Version = req.Version
	resp.EndpointType = req.EndpointType
	if req.Version >= 1 && req.EndpointType != 1 {
		text := "agents have no controller endpoint"
		resp.ErrorCode, resp.ErrorMessage = int16(protocol.MismatchedEndpointType), &text
		return resp
	}
	agents := b.agents()
	for _, a := range agents {
		resp.Brokers = append(resp.Brokers, kmsg.DescribeClusterResponseBroker{NodeID: a.Node, Host: a.Host, Port: a.Port, Rack: rack(a.Zone)})
	}
	resp.ClusterID = b.deps.View.Cluster().ID
	resp.ControllerID = b.controller(agents)
	resp.ClusterAuthorizedOperations = unknownOperations
	if req.IncludeClusterAuthorizedOperations {
		resp.ClusterAuthorizedOperations = clusterOperations
	}
	return resp
}

// findCoordinator serves FindCoordinator, versions 0 to 6.
func (b *Broker) findCoordinator(req *kmsg.FindCoordinatorRequest) *kmsg.FindCoordinatorResponse {
	resp := kmsg.NewPtrFindCoordinatorResponse()
	resp.Version = req.Version
	keys := req.CoordinatorKeys
	if req.Version < 4 {
		keys = []string{req.CoordinatorKey}
	}
	for _, key := range keys {
		c := kmsg.NewFindCoordinatorResponseCoordinator()
		c.Key, c.NodeID, c.Port = key, -1, -1
		agent, err := b.coordinator(req.CoordinatorType, key)
		if err != nil {
			c.ErrorCode, c.ErrorMessage = int16(protocol.CodeOf(err)), message(err)
		} else {
			c.NodeID, c.Host, c.Port = agent.Node, agent.Host, agent.Port
		}
		resp.Coordinators = append(resp.Coordinators, c)
	}
	if req.Version < 4 {
		c := &resp.Coordinators[0]
		resp.ErrorCode, resp.ErrorMessage, resp.NodeID, resp.Host, resp.Port = c.ErrorCode, c.ErrorMessage, c.NodeID, c.Host, c.Port
		resp.Coordinators = nil
	}
	return resp
}

// Coordinator types of FindCoordinator.
const (
	coordinatesGroup       = 0
	coordinatesTransaction = 1
)

func (b *Broker) coordinator(kind int8, key string) (coordinator.Agent, error) {
	if kind != coordinatesGroup && kind != coordinatesTransaction {
		return coordinator.Agent{}, protocol.InvalidRequest.Errorf("unknown coordinator type %d", kind)
	}
	if b.cfg.Balancer.Node != 0 {
		return b.cfg.Balancer, nil
	}
	shard, _ := b.deps.View.Shard(coordinator.ShardOfName(key, b.deps.View.Cluster().Shards))
	for _, a := range b.agents() {
		if a.Node == shard.Node {
			return a, nil
		}
	}
	return coordinator.Agent{}, protocol.CoordinatorNotAvailable.Err()
}
