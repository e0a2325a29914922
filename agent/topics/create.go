package topics

import (
	"context"
	"errors"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// Topics that Kafka keeps for itself. Here their place is in the coordinator, and a client that merely looks at them must not make them.
const (
	consumerOffsets  = "__consumer_offsets"
	transactionState = "__transaction_state"
	clusterMetadata  = "__cluster_metadata"
)

// CreateTopics serves CreateTopics, versions 2 to 7. Errors and their wording are those of ReplicationControlManager, with these
// deviations: any replication factor and any brokers in a manual assignment are taken, since the write-ahead log and not the topic decides about copies,
// and there are limits of partitions (InvalidPartitions).
func (t *Topics) CreateTopics(ctx context.Context, req *kmsg.CreateTopicsRequest) *kmsg.CreateTopicsResponse {
	ctx, cancel := deadline(ctx, req.TimeoutMillis)
	defer cancel()
	resp := req.ResponseKind().(*kmsg.CreateTopicsResponse)
	resp.Topics = make([]kmsg.CreateTopicsResponseTopic, len(req.Topics))

	named := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		named[req.Topics[i].Topic]++
	}
	plan := t.plan()
	planned := make([]coordinator.Topic, len(req.Topics))
	errs := make([]error, len(req.Topics))
	for i := range req.Topics {
		asked := &req.Topics[i]
		switch {
		case named[asked.Topic] > 1:
			errs[i] = protocol.InvalidRequest.Errorf("Duplicate topic name.")
		case asked.Topic == clusterMetadata:
			errs[i] = protocol.InvalidRequest.Errorf("Creation of internal topic %s is prohibited.", clusterMetadata)
		default:
			planned[i], errs[i] = plan.add(asked)
		}
	}
	if !req.ValidateOnly {
		concurrently(len(planned), func(i int) {
			if errs[i] == nil {
				planned[i], errs[i] = t.createSeen(ctx, planned[i])
			}
		})
	}
	for i := range req.Topics {
		resp.Topics[i] = t.created(req.Topics[i].Topic, &planned[i], errs[i])
	}
	return resp
}

// createSeen creates a topic and returns once this agent's view shows it.
func (t *Topics) createSeen(ctx context.Context, topic coordinator.Topic) (coordinator.Topic, error) {
	topic, revision, err := t.create(ctx, topic)
	if err != nil {
		return topic, err
	}
	t.deps.Log.Info("topic created", "topic", topic.Name, "id", topic.ID, "partitions", topic.Partitions)
	return topic, t.seen(ctx, revision)
}

// created answers for one topic.
func (t *Topics) created(name string, topic *coordinator.Topic, err error) kmsg.CreateTopicsResponseTopic {
	out := kmsg.NewCreateTopicsResponseTopic()
	out.Topic = name
	if err != nil {
		out.ErrorCode, out.ErrorMessage = answer(err)
		return out
	}
	out.TopicID, out.NumPartitions, out.ReplicationFactor = topic.ID, topic.Partitions, topic.Replication
	out.Configs = make([]kmsg.CreateTopicsResponseTopicConfig, 0, len(definitions))
	for i := range definitions {
		s := t.topicSetting(&definitions[i], topic.Configs)
		c := kmsg.NewCreateTopicsResponseTopicConfig()
		c.Name, c.Value, c.Source = s.name, s.value, int8(s.source)
		out.Configs = append(out.Configs, c)
	}
	return out
}

// answer gives the code and the message of a response. The code's own message goes without saying.
func answer(err error) (int16, *string) {
	code := protocol.CodeOf(err)
	if code == protocol.None {
		return 0, nil
	}
	text := code.Message()
	if e, ok := errors.AsType[*protocol.Error](err); ok {
		text = e.Text()
	}
	return int16(code), &text
}

// plan is what a request is about to create, beside what exists.
type plan struct {
	topics     *Topics
	names      map[string]string // by the name that collisions are told by
	partitions int
}

// unified is a name with what Kafka takes for the same in names of metrics (Topic.unifyCollisionChars).
func unified(name string) string { return strings.ReplaceAll(name, ".", "_") }

func (t *Topics) plan() *plan {
	p := &plan{topics: t, names: make(map[string]string)}
	for _, topic := range t.deps.View.Topics() {
		p.names[unified(topic.Name)] = topic.Name
		p.partitions += int(topic.Partitions)
	}
	return p
}

// add decides about one topic of a request.
func (p *plan) add(asked *kmsg.CreateTopicsRequestTopic) (coordinator.Topic, error) {
	topic := coordinator.Topic{Name: asked.Topic, CreatedMs: p.topics.deps.Now().UnixMilli()}
	if err := protocol.ValidateTopicName(asked.Topic); err != nil {
		return topic, err
	}
	if _, _, ok := p.topics.deps.View.Topic(asked.Topic); ok {
		return topic, alreadyExists(asked.Topic)
	}
	if other, ok := p.names[unified(asked.Topic)]; ok {
		return topic, protocol.InvalidTopicException.Errorf("Topic '%s' collides with existing topic: %s", asked.Topic, other)
	}
	configs, err := createConfigs(asked.Configs)
	if err != nil {
		return topic, err
	}
	topic.Configs = configs
	if err := p.size(asked, &topic); err != nil {
		return topic, err
	}
	if err := p.topics.roomFor(topic.Name, topic.Partitions, p.partitions+int(topic.Partitions)); err != nil {
		return topic, err
	}
	p.names[unified(asked.Topic)] = asked.Topic
	p.partitions += int(topic.Partitions)
	return topic, nil
}

// createConfigs reads the configurations of a new topic.
func createConfigs(asked []kmsg.CreateTopicsRequestTopicConfig) (map[string]string, error) {
	configs := make(map[string]string, len(asked))
	var null []string
	for _, c := range asked {
		if c.Value == nil {
			null = append(null, c.Name)
			continue
		}
		configs[c.Name] = *c.Value
	}
	if len(null) > 0 {
		return nil, protocol.InvalidConfig.Errorf("Null value not supported for topic configs: %s", strings.Join(null, ","))
	}
	return validate(configs)
}

// size decides about partitions and replication, from numbers or from a manual assignment.
func (p *plan) size(asked *kmsg.CreateTopicsRequestTopic, topic *coordinator.Topic) error {
	cfg := &p.topics.cfg
	topic.Partitions, topic.Replication = asked.NumPartitions, asked.ReplicationFactor
	if len(asked.ReplicaAssignment) > 0 {
		return assigned(asked, topic)
	}
	switch {
	case asked.ReplicationFactor < -1 || asked.ReplicationFactor == 0:
		return protocol.InvalidReplicationFactor.Errorf("Replication factor must be larger than 0, or -1 to use the default value.")
	case asked.NumPartitions < -1 || asked.NumPartitions == 0:
		return protocol.InvalidPartitions.Errorf("Number of partitions was set to an invalid non-positive value.")
	}
	if asked.NumPartitions == -1 {
		topic.Partitions = cfg.Partitions
	}
	if asked.ReplicationFactor == -1 {
		topic.Replication = cfg.Replication
	}
	return nil
}

// assigned takes a manual assignment for its numbers.
func assigned(asked *kmsg.CreateTopicsRequestTopic, topic *coordinator.Topic) error {
	switch {
	case asked.ReplicationFactor != -1:
		return protocol.InvalidRequest.Errorf("A manual partition assignment was specified, but replication factor was not set to -1.")
	case asked.NumPartitions != -1:
		return protocol.InvalidRequest.Errorf("A manual partition assignment was specified, but numPartitions was not set to -1.")
	}
	have := make(map[int32]bool, len(asked.ReplicaAssignment))
	replication := -1
	for i := range asked.ReplicaAssignment {
		a := &asked.ReplicaAssignment[i]
		if have[a.Partition] {
			return protocol.InvalidReplicaAssignment.Errorf("Found multiple manual partition assignments for partition %d", a.Partition)
		}
		have[a.Partition] = true
		if err := checkReplicas(a.Replicas, replication); err != nil {
			return err
		}
		replication = len(a.Replicas)
	}
	for n := range int32(len(asked.ReplicaAssignment)) {
		if !have[n] {
			return protocol.InvalidReplicaAssignment.Errorf("partitions should be a consecutive 0-based integer sequence")
		}
	}
	topic.Partitions, topic.Replication = int32(len(asked.ReplicaAssignment)), int16(replication)
	return nil
}

// replicasMax is the largest replication factor that the protocol can say.
const replicasMax = 1<<15 - 1

// checkReplicas checks the brokers of one partition in a manual assignment, of which there must be as many as replication says, or any number if it
// is negative. Which brokers they are does not matter: no agent has a partition of its own.
func checkReplicas(replicas []int32, replication int) error {
	if len(replicas) == 0 {
		return protocol.InvalidReplicaAssignment.Errorf("The manual partition assignment includes an empty replica list.")
	}
	if len(replicas) > replicasMax {
		return protocol.InvalidReplicaAssignment.Errorf("The manual partition assignment includes %d replicas, at most %d are possible.", len(replicas), replicasMax)
	}
	seen := make(map[int32]bool, len(replicas))
	for _, r := range replicas {
		if seen[r] {
			return protocol.InvalidReplicaAssignment.Errorf("The manual partition assignment includes the broker %d more than once.", r)
		}
		seen[r] = true
	}
	if replication >= 0 && len(replicas) != replication {
		return protocol.InvalidReplicaAssignment.Errorf("The manual partition assignment includes a partition with %d replica(s), but this is not "+
			"consistent with previous partitions, which have %d replica(s).", len(replicas), replication)
	}
	return nil
}

// roomFor holds a topic's partitions, and all topics' with them, against the limits.
func (t *Topics) roomFor(name string, partitions int32, total int) error {
	if partitions > t.cfg.PartitionsPerTopicMax {
		return protocol.InvalidPartitions.Errorf("Topic '%s' would have %d partitions, at most %d are possible.", name, partitions, t.cfg.PartitionsPerTopicMax)
	}
	if total > t.cfg.PartitionsMax {
		return protocol.InvalidPartitions.Errorf("The cluster would have %d partitions with topic '%s', at most %d are possible.", total, name, t.cfg.PartitionsMax)
	}
	return nil
}

// AutoCreate creates a topic with all defaults, as Metadata may, and returns once this agent's view shows it; it returns nil too if the
// topic exists. Calls for the same name share one creation. The topics that Kafka keeps for itself are not created: UnknownTopicOrPartition.
// Errors are [*protocol.Error].
func (t *Topics) AutoCreate(ctx context.Context, name string) error {
	switch name {
	case consumerOffsets, transactionState, clusterMetadata:
		return protocol.UnknownTopicOrPartition.Err()
	}
	done := t.flight.DoChan(name, func() (any, error) {
		// Whoever asked first must not end it for the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeoutDefault)
		defer cancel()
		return nil, t.autoCreate(ctx, name)
	})
	select {
	case res := <-done:
		return res.Err
	case <-ctx.Done():
		return protocol.RequestTimedOut.Errorf("create topic %s: %v", name, ctx.Err())
	}
}

func (t *Topics) autoCreate(ctx context.Context, name string) error {
	if _, _, ok := t.deps.View.Topic(name); ok {
		return nil
	}
	asked := kmsg.NewCreateTopicsRequestTopic()
	asked.Topic, asked.NumPartitions, asked.ReplicationFactor = name, -1, -1
	topic, err := t.plan().add(&asked)
	if protocol.CodeOf(err) == protocol.TopicAlreadyExists {
		return nil // it came into the view meanwhile
	}
	if err != nil {
		return err
	}
	topic, revision, err := t.create(ctx, topic)
	if err != nil && protocol.CodeOf(err) != protocol.TopicAlreadyExists {
		return err
	}
	if err == nil {
		t.deps.Log.Info("topic created on demand", "topic", name, "id", topic.ID, "partitions", topic.Partitions)
	}
	return t.seen(ctx, revision)
}
