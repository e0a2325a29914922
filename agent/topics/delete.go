package topics

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// DeleteTopics serves DeleteTopics, versions 1 to 6: by name, and from version 6 on by id too. Errors are those of ControllerApis. The records
// go later; offsets of groups have gone when it answers, where Deps.Deleted does that.
func (t *Topics) DeleteTopics(ctx context.Context, req *kmsg.DeleteTopicsRequest) *kmsg.DeleteTopicsResponse {
	ctx, cancel := deadline(ctx, req.TimeoutMillis)
	defer cancel()
	resp := req.ResponseKind().(*kmsg.DeleteTopicsResponse)
	asked := req.Topics
	if req.Version < 6 {
		asked = make([]kmsg.DeleteTopicsRequestTopic, len(req.TopicNames))
		for i := range req.TopicNames {
			asked[i].Topic = &req.TopicNames[i]
		}
	}
	found, errs := t.toDelete(ctx, asked)
	concurrently(len(asked), func(i int) {
		if errs[i] == nil {
			errs[i] = t.deleteSeen(ctx, found[i])
		}
	})
	resp.Topics = make([]kmsg.DeleteTopicsResponseTopic, len(asked))
	for i := range asked {
		out := kmsg.NewDeleteTopicsResponseTopic()
		out.Topic, out.TopicID = asked[i].Topic, asked[i].TopicID
		if found[i].Value.Name != "" {
			out.Topic, out.TopicID = &found[i].Value.Name, found[i].Value.ID
		}
		out.ErrorCode, out.ErrorMessage = answer(errs[i])
		resp.Topics[i] = out
	}
	return resp
}

// toDelete finds the topics of a request, each of which may be named once, be it by name or id.
func (t *Topics) toDelete(ctx context.Context, asked []kmsg.DeleteTopicsRequestTopic) ([]coordinator.Versioned[coordinator.Topic], []error) {
	found := make([]coordinator.Versioned[coordinator.Topic], len(asked))
	errs := make([]error, len(asked))
	names, ids := make(map[string]int), make(map[protocol.TopicID]int)
	for i := range asked {
		if asked[i].Topic != nil {
			names[*asked[i].Topic]++
		} else {
			ids[asked[i].TopicID]++
		}
	}
	concurrently(len(asked), func(i int) {
		a := &asked[i]
		switch {
		case a.Topic == nil && protocol.TopicID(a.TopicID).IsZero():
			errs[i] = protocol.InvalidRequest.Errorf("Neither topic name nor id were specified.")
		case a.Topic != nil && !protocol.TopicID(a.TopicID).IsZero():
			errs[i] = protocol.InvalidRequest.Errorf("You may not specify both topic name and topic id.")
		case a.Topic != nil && names[*a.Topic] > 1:
			errs[i] = protocol.InvalidRequest.Errorf("Duplicate topic name.")
		case a.Topic == nil && ids[a.TopicID] > 1:
			errs[i] = protocol.InvalidRequest.Errorf("Duplicate topic id.")
		case a.Topic != nil:
			found[i].Value, found[i].Revision, errs[i] = t.find(ctx, *a.Topic)
		default:
			found[i], errs[i] = t.byID(a.TopicID)
		}
	})
	for i := range asked {
		if asked[i].Topic != nil && errs[i] == nil && ids[found[i].Value.ID] > 0 {
			errs[i] = protocol.InvalidRequest.Errorf("The provided topic name maps to an ID that was already supplied.")
		}
	}
	return found, errs
}

// byID finds a topic by its id in the view.
func (t *Topics) byID(id protocol.TopicID) (found coordinator.Versioned[coordinator.Topic], err error) {
	if topic, ok := t.deps.View.TopicByID(id); ok {
		found.Value, found.Revision, ok = t.deps.View.Topic(topic.Name)
		if ok && found.Value.ID == id {
			return found, nil
		}
	}
	return coordinator.Versioned[coordinator.Topic]{}, protocol.UnknownTopicID.Err()
}

// deleteSeen deletes a topic and returns once this agent's view is without it.
func (t *Topics) deleteSeen(ctx context.Context, topic coordinator.Versioned[coordinator.Topic]) error {
	revision, err := t.remove(ctx, topic.Value, topic.Revision)
	if err != nil {
		return err
	}
	t.deps.Log.Info("topic deleted", "topic", topic.Value.Name, "id", topic.Value.ID)
	if err := t.seen(ctx, revision); err != nil {
		return err
	}
	if t.deps.Deleted == nil {
		return nil
	}
	if err := t.deps.Deleted(ctx, topic.Value.Name); err != nil {
		t.deps.Log.Warn("a deleted topic left offsets of groups behind", "topic", topic.Value.Name, "err", err)
	}
	return nil
}
