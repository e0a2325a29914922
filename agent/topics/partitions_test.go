package topics_test

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

func growth(name string, count int32, assignment ...[]int32) kmsg.CreatePartitionsRequestTopic {
	asked := kmsg.NewCreatePartitionsRequestTopic()
	asked.Topic, asked.Count = name, count
	for _, replicas := range assignment {
		a := kmsg.NewCreatePartitionsRequestTopicAssignment()
		a.Replicas = replicas
		asked.Assignment = append(asked.Assignment, a)
	}
	return asked
}

func TestCreatePartitions(t *testing.T) {
	cfg := topics.Defaults()
	cfg.PartitionsPerTopicMax, cfg.PartitionsMax = 20, 25
	tests := []struct {
		name  string
		asked []kmsg.CreatePartitionsRequestTopic
		codes []protocol.ErrorCode
		text  string // of the last
		want  int32  // partitions of topic "three" then
	}{
		{"more", []kmsg.CreatePartitionsRequestTopic{growth("three", 5)}, []protocol.ErrorCode{protocol.None}, "", 5},
		{"assigned to one broker", []kmsg.CreatePartitionsRequestTopic{growth("three", 4, []int32{1})}, []protocol.ErrorCode{protocol.None}, "", 4},
		{
			"as many",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 3)},
			[]protocol.ErrorCode{protocol.InvalidPartitions},
			"Topic already has 3 partition(s).", 3,
		},
		{
			"fewer",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 2)},
			[]protocol.ErrorCode{protocol.InvalidPartitions},
			"The topic three currently has 3 partition(s); 2 would not be an increase.", 3,
		},
		{
			"negative",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", -1)},
			[]protocol.ErrorCode{protocol.InvalidPartitions},
			"The topic three currently has 3 partition(s); -1 would not be an increase.", 3,
		},
		{"absent", []kmsg.CreatePartitionsRequestTopic{growth("absent", 3)}, []protocol.ErrorCode{protocol.UnknownTopicOrPartition}, "", 3},
		{"bad name", []kmsg.CreatePartitionsRequestTopic{growth("a/b", 3)}, []protocol.ErrorCode{protocol.UnknownTopicOrPartition}, "", 3},
		{
			"assigned too few",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 5, []int32{1})},
			[]protocol.ErrorCode{protocol.InvalidReplicaAssignment},
			"Attempted to add 2 additional partition(s), but only 1 assignment(s) were specified.", 3,
		},
		{
			"assigned to nobody",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 4, nil)},
			[]protocol.ErrorCode{protocol.InvalidReplicaAssignment},
			"", 3,
		},
		{
			"twice",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 4), growth("three", 5)},
			[]protocol.ErrorCode{protocol.InvalidRequest, protocol.InvalidRequest},
			"Duplicate topic name.", 3,
		},
		{
			"too many of one",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 21)},
			[]protocol.ErrorCode{protocol.InvalidPartitions},
			"Topic 'three' would have 21 partitions, at most 20", 3,
		},
		{
			"too many together",
			[]kmsg.CreatePartitionsRequestTopic{growth("three", 13), growth("four", 13)},
			[]protocol.ErrorCode{protocol.None, protocol.InvalidPartitions},
			"The cluster would have 26 partitions with topic 'four', at most 25", 13,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := start(t, mem.New(mem.Config{}), cfg)
			before := a.make(t, "three", 3)
			a.make(t, "four", 4)
			req := kmsg.NewPtrCreatePartitionsRequest()
			req.Version, req.Topics, req.TimeoutMillis = 3, tt.asked, 5000
			for i, got := range a.CreatePartitions(t.Context(), req).Topics {
				text := ""
				if i == len(tt.codes)-1 {
					text = tt.text
				}
				expect(t, got.Topic, got.ErrorCode, got.ErrorMessage, tt.codes[i], text)
			}
			if got := a.must(t, "three"); got.Partitions != tt.want || got.ID != before.ID {
				t.Errorf("then it has %d partitions and id %v, want %d and %v", got.Partitions, got.ID, tt.want, before.ID)
			}
		})
	}
}

func TestCreatePartitionsValidateOnly(t *testing.T) {
	a := alone(t)
	a.make(t, "t", 3)
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.Version, req.ValidateOnly = 3, true
	req.Topics = []kmsg.CreatePartitionsRequestTopic{growth("t", 4), growth("absent", 4)}
	resp := a.CreatePartitions(t.Context(), req)
	expect(t, "t", resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage, protocol.None, "")
	expect(t, "absent", resp.Topics[1].ErrorCode, resp.Topics[1].ErrorMessage, protocol.UnknownTopicOrPartition, "")
	if got := a.must(t, "t").Partitions; got != 3 {
		t.Errorf("it has %d partitions, want still 3", got)
	}
}
