package topics

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// CreatePartitions serves CreatePartitions, versions 0 to 3: topics only grow. Errors and their wording are those of
// ReplicationControlManager, with the deviations of [Topics.CreateTopics].
func (t *Topics) CreatePartitions(ctx context.Context, req *kmsg.CreatePartitionsRequest) *kmsg.CreatePartitionsResponse {
	ctx, cancel := deadline(ctx, req.TimeoutMillis)
	defer cancel()
	resp := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
	resp.Topics = make([]kmsg.CreatePartitionsResponseTopic, len(req.Topics))
	named := make(map[string]int, len(req.Topics))
	for i := range req.Topics {
		named[req.Topics[i].Topic]++
	}
	errs := make([]error, len(req.Topics))
	total := 0
	for _, topic := range t.deps.View.Topics() {
		total += int(topic.Partitions)
	}
	// One after the other, so that each counts the partitions of those before it.
	for i := range req.Topics {
		if named[req.Topics[i].Topic] > 1 {
			errs[i] = protocol.InvalidRequest.Errorf("Duplicate topic name.")
			continue
		}
		var added int
		added, errs[i] = t.grow(ctx, &req.Topics[i], total, req.ValidateOnly)
		total += added
	}
	for i := range req.Topics {
		out := kmsg.NewCreatePartitionsResponseTopic()
		out.Topic = req.Topics[i].Topic
		out.ErrorCode, out.ErrorMessage = answer(errs[i])
		resp.Topics[i] = out
	}
	return resp
}

// grow gives one topic of a request its partitions and returns how many it added to the total.
func (t *Topics) grow(ctx context.Context, asked *kmsg.CreatePartitionsRequestTopic, total int, validateOnly bool) (added int, err error) {
	edit := func(now coordinator.Topic, doubt bool) (coordinator.Topic, error) {
		if doubt && asked.Count == now.Partitions {
			return now, nil // our own work
		}
		added = int(asked.Count) - int(now.Partitions)
		if err := checkGrowth(asked, &now); err != nil {
			return now, err
		}
		now.Partitions = asked.Count
		return now, t.roomFor(now.Name, now.Partitions, total+added)
	}
	if validateOnly {
		now, _, err := t.find(ctx, asked.Topic)
		if err == nil {
			_, err = edit(now, false)
		}
		return 0, err
	}
	revision, err := t.change(ctx, asked.Topic, edit)
	if err != nil {
		return 0, err
	}
	t.deps.Log.Info("partitions added", "topic", asked.Topic, "partitions", asked.Count)
	return added, t.seen(ctx, revision)
}

func checkGrowth(asked *kmsg.CreatePartitionsRequestTopic, now *coordinator.Topic) error {
	switch {
	case asked.Count == now.Partitions:
		return protocol.InvalidPartitions.Errorf("Topic already has %d partition(s).", now.Partitions)
	case asked.Count < now.Partitions:
		return protocol.InvalidPartitions.Errorf("The topic %s currently has %d partition(s); %d would not be an increase.",
			now.Name, now.Partitions, asked.Count)
	}
	if asked.Assignment == nil {
		return nil
	}
	if added := int(asked.Count - now.Partitions); len(asked.Assignment) != added {
		return protocol.InvalidReplicaAssignment.Errorf("Attempted to add %d additional partition(s), but only %d assignment(s) were specified.",
			added, len(asked.Assignment))
	}
	for i := range asked.Assignment {
		if err := checkReplicas(asked.Assignment[i].Replicas, -1); err != nil {
			return err
		}
	}
	return nil
}
