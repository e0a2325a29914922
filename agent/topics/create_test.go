package topics_test

import (
	"context"
	"maps"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

func TestCreateTopics(t *testing.T) {
	a := alone(t)
	req := creation(topic("orders", 3, "retention.ms= 60000", "cleanup.policy=compact, delete"), topic("all.defaults", -1))
	req.Topics[0].ReplicationFactor = 32767
	req.Topics[1].ReplicationFactor = -1
	resp := a.CreateTopics(t.Context(), req)
	if resp.Version != 7 || len(resp.Topics) != 2 {
		t.Fatalf("version %d with %d topics, want 7 with 2", resp.Version, len(resp.Topics))
	}
	for i, want := range []struct {
		partitions  int32
		replication int16
		configs     map[string]string
	}{
		{3, 32767, map[string]string{"retention.ms": "60000", "cleanup.policy": "compact,delete"}},
		{1, 1, nil},
	} {
		got := resp.Topics[i]
		expect(t, got.Topic, got.ErrorCode, got.ErrorMessage, protocol.None, "")
		stored := a.must(t, got.Topic)
		if got.NumPartitions != want.partitions || got.ReplicationFactor != want.replication || stored.ID != got.TopicID || stored.ID.Reserved() {
			t.Errorf("%s: answered %d partitions, replication %d, id %v", got.Topic, got.NumPartitions, got.ReplicationFactor, got.TopicID)
		}
		if stored.Partitions != want.partitions || stored.Replication != want.replication || stored.CreatedMs != nowMs || !maps.Equal(stored.Configs, want.configs) {
			t.Errorf("%s: stored %+v", got.Topic, stored)
		}
	}
	echoed := map[string]string{}
	for _, c := range resp.Topics[0].Configs {
		if c.Value != nil && kmsg.ConfigSource(c.Source) == kmsg.ConfigSourceDynamicTopicConfig {
			echoed[c.Name] = *c.Value
		}
	}
	if want := map[string]string{"retention.ms": "60000", "cleanup.policy": "compact,delete"}; !maps.Equal(echoed, want) {
		t.Errorf("echoed %v as set, want %v", echoed, want)
	}
	if n := len(resp.Topics[0].Configs); n != 33 {
		t.Errorf("echoed %d configurations, want all 33", n)
	}
}

func TestCreateTopicsErrors(t *testing.T) {
	assignment := func(replicas ...[]int32) kmsg.CreateTopicsRequestTopic {
		asked := topic("t", -1)
		asked.ReplicationFactor = -1
		for n, r := range replicas {
			part := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
			part.Partition, part.Replicas = int32(n), r
			asked.ReplicaAssignment = append(asked.ReplicaAssignment, part)
		}
		return asked
	}
	with := func(asked kmsg.CreateTopicsRequestTopic, edit func(*kmsg.CreateTopicsRequestTopic)) kmsg.CreateTopicsRequestTopic {
		edit(&asked)
		return asked
	}
	tests := []struct {
		name  string
		asked kmsg.CreateTopicsRequestTopic
		code  protocol.ErrorCode
		text  string
	}{
		{"exists", topic("there.is", 1), protocol.TopicAlreadyExists, "Topic 'there.is' already exists."},
		{"collides", topic("there_is", 1), protocol.InvalidTopicException, "Topic 'there_is' collides with existing topic: there.is"},
		{"bad name", topic("a/b", 1), protocol.InvalidTopicException, "Topic name is invalid"},
		{"no name", topic("", 1), protocol.InvalidTopicException, "Topic name is invalid"},
		{"metadata", topic("__cluster_metadata", 1), protocol.InvalidRequest, "Creation of internal topic __cluster_metadata is prohibited."},
		{"no partitions", topic("t", 0), protocol.InvalidPartitions, "Number of partitions was set to an invalid non-positive value."},
		{"negative partitions", topic("t", -2), protocol.InvalidPartitions, "Number of partitions was set to an invalid non-positive value."},
		{"many partitions", topic("t", 100_001), protocol.InvalidPartitions, "Topic 't' would have 100001 partitions, at most 100000"},
		{
			"no replicas", with(topic("t", 1), func(r *kmsg.CreateTopicsRequestTopic) { r.ReplicationFactor = 0 }),
			protocol.InvalidReplicationFactor, "Replication factor must be larger than 0, or -1 to use the default value.",
		},
		{"unknown config", topic("t", 1, "retention=1"), protocol.InvalidConfig, "Unknown topic config name: retention"},
		{
			"null config", with(topic("t", 1, "retention.ms=1"), func(r *kmsg.CreateTopicsRequestTopic) { r.Configs[0].Value = nil }),
			protocol.InvalidConfig, "Null value not supported for topic configs: retention.ms",
		},
		{
			"bad config", topic("t", 1, "retention.ms=-2"), protocol.InvalidConfig,
			"Invalid value -2 for configuration retention.ms: Value must be at least -1",
		},
		{
			"assigned and partitions", with(assignment([]int32{1}), func(r *kmsg.CreateTopicsRequestTopic) { r.NumPartitions = 1 }),
			protocol.InvalidRequest, "A manual partition assignment was specified, but numPartitions was not set to -1.",
		},
		{
			"assigned and replicas", with(assignment([]int32{1}), func(r *kmsg.CreateTopicsRequestTopic) { r.ReplicationFactor = 1 }),
			protocol.InvalidRequest, "A manual partition assignment was specified, but replication factor was not set to -1.",
		},
		{
			"assigned with a gap", with(assignment([]int32{1}, []int32{1}), func(r *kmsg.CreateTopicsRequestTopic) { r.ReplicaAssignment[1].Partition = 2 }),
			protocol.InvalidReplicaAssignment, "partitions should be a consecutive 0-based integer sequence",
		},
		{
			"assigned twice", with(assignment([]int32{1}, []int32{1}), func(r *kmsg.CreateTopicsRequestTopic) { r.ReplicaAssignment[1].Partition = 0 }),
			protocol.InvalidReplicaAssignment, "Found multiple manual partition assignments for partition 0",
		},
		{"assigned to nobody", assignment([]int32{}), protocol.InvalidReplicaAssignment, "The manual partition assignment includes an empty replica list."},
		{"assigned to one twice", assignment([]int32{4, 4}), protocol.InvalidReplicaAssignment, "The manual partition assignment includes the broker 4 more"},
		{"assigned unevenly", assignment([]int32{1}, []int32{1, 2}), protocol.InvalidReplicaAssignment, "The manual partition assignment includes a partition with 2"},
		{"assigned", assignment([]int32{7, 8}, []int32{8, 9}, []int32{9, 1}), protocol.None, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := alone(t)
			a.make(t, "there.is", 1)
			for _, validateOnly := range []bool{true, false} {
				req := creation(tt.asked)
				req.ValidateOnly = validateOnly
				got := a.CreateTopics(t.Context(), req).Topics[0]
				expect(t, "answer", got.ErrorCode, got.ErrorMessage, tt.code, tt.text)
				if _, _, ok := a.view.Topic("t"); ok != (tt.code == protocol.None && !validateOnly) {
					t.Errorf("validate only %v: created %v", validateOnly, ok)
				}
				if tt.code == protocol.None && (got.NumPartitions != 3 || got.ReplicationFactor != 2) {
					t.Errorf("assigned %d partitions with %d replicas, want 3 with 2", got.NumPartitions, got.ReplicationFactor)
				}
			}
		})
	}
}

func TestCreateTopicsWithinOneRequest(t *testing.T) {
	cfg := topics.Defaults()
	cfg.PartitionsMax = 10
	a := start(t, mem.New(mem.Config{}), cfg)
	resp := a.CreateTopics(t.Context(), creation(
		topic("twice", 1), topic("twice", 1), topic("a.b", 4), topic("a_b", 1), topic("six", 6), topic("one-more", 1)))
	for i, want := range []struct {
		code protocol.ErrorCode
		text string
	}{
		{protocol.InvalidRequest, "Duplicate topic name."},
		{protocol.InvalidRequest, "Duplicate topic name."},
		{protocol.None, ""},
		{protocol.InvalidTopicException, "Topic 'a_b' collides with existing topic: a.b"},
		{protocol.None, ""},
		{protocol.InvalidPartitions, "The cluster would have 11 partitions with topic 'one-more', at most 10 are possible."},
	} {
		got := resp.Topics[i]
		expect(t, got.Topic, got.ErrorCode, got.ErrorMessage, want.code, want.text)
	}
}

func TestAutoCreate(t *testing.T) {
	cfg := topics.Defaults()
	cfg.Partitions, cfg.Replication = 5, 2
	kv := mem.New(mem.Config{})
	agents := []*agent{start(t, kv, cfg), start(t, kv, cfg)}
	agents[1].lastID = 100 // so that the agents' ids differ
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			a := agents[i%2]
			if err := a.AutoCreate(t.Context(), "wanted"); err != nil {
				t.Errorf("create: %v", err)
			}
			if _, _, ok := a.view.Topic("wanted"); !ok {
				t.Error("created, and not in the view")
			}
		})
	}
	wg.Wait()
	got := agents[0].must(t, "wanted")
	if got.Partitions != 5 || got.Replication != 2 || got.ID != agents[1].must(t, "wanted").ID {
		t.Errorf("created %+v and %+v", got, agents[1].must(t, "wanted"))
	}
	for name, want := range map[string]protocol.ErrorCode{
		"__consumer_offsets": protocol.UnknownTopicOrPartition, "__transaction_state": protocol.UnknownTopicOrPartition,
		"a b": protocol.InvalidTopicException,
	} {
		if err := agents[0].AutoCreate(t.Context(), name); protocol.CodeOf(err) != want {
			t.Errorf("create %q: %v, want %v", name, err, want)
		}
	}
}

func TestAutoCreateOutlivesWhoAskedFirst(t *testing.T) {
	a := alone(t)
	a.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.Unavailable})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	first := a.AutoCreate(ctx, "wanted")
	if code := protocol.CodeOf(first); code != protocol.RequestTimedOut && code != protocol.None {
		t.Errorf("the one who left: %v", first)
	}
	if err := a.AutoCreate(t.Context(), "wanted"); err != nil {
		t.Errorf("the one who stayed: %v", err)
	}
	a.must(t, "wanted")
}
