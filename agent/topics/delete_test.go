package topics_test

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// deletion asks for topics by name, or by id.
func deletion(asked ...any) *kmsg.DeleteTopicsRequest {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TimeoutMillis = 6, 5000
	for _, a := range asked {
		topic := kmsg.NewDeleteTopicsRequestTopic()
		switch a := a.(type) {
		case string:
			topic.Topic = &a
		case protocol.TopicID:
			topic.TopicID = a
		}
		req.Topics = append(req.Topics, topic)
	}
	return req
}

func TestDeleteTopics(t *testing.T) {
	a := alone(t)
	byName, byID := a.make(t, "by-name", 1), a.make(t, "by-id", 1)
	resp := a.DeleteTopics(t.Context(), deletion("by-name", byID.ID, "absent", protocol.TopicID{9}, protocol.TopicID{}))
	for i, want := range []struct {
		name string
		id   protocol.TopicID
		code protocol.ErrorCode
		text string
	}{
		{"by-name", byName.ID, protocol.None, ""},
		{"by-id", byID.ID, protocol.None, ""},
		{"absent", protocol.TopicID{}, protocol.UnknownTopicOrPartition, ""},
		{"", protocol.TopicID{9}, protocol.UnknownTopicID, ""},
		{"", protocol.TopicID{}, protocol.InvalidRequest, "Neither topic name nor id were specified."},
	} {
		got := resp.Topics[i]
		expect(t, want.name, got.ErrorCode, got.ErrorMessage, want.code, want.text)
		if message(got.Topic) != want.name || got.TopicID != want.id {
			t.Errorf("answer %d is about %s %v, want %s %v", i, message(got.Topic), got.TopicID, want.name, want.id)
		}
	}
	if left := a.view.Topics(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	slices.Sort(a.deleted)
	if !slices.Equal(a.deleted, []string{"by-id", "by-name"}) {
		t.Errorf("told of the deletion of %v", a.deleted)
	}
}

func TestDeleteTopicsBeforeIDs(t *testing.T) {
	a := alone(t)
	a.make(t, "old", 1)
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.Version, req.TopicNames = 5, []string{"old", "twice", "twice"}
	resp := a.DeleteTopics(t.Context(), req)
	for i, code := range []protocol.ErrorCode{protocol.None, protocol.InvalidRequest, protocol.InvalidRequest} {
		expect(t, req.TopicNames[i], resp.Topics[i].ErrorCode, resp.Topics[i].ErrorMessage, code, "")
	}
}

func TestDeleteTopicsNamedTwice(t *testing.T) {
	a := alone(t)
	id := a.make(t, "t", 1).ID
	both := deletion("t")
	both.Topics[0].TopicID = id
	for name, tt := range map[string]struct {
		req  *kmsg.DeleteTopicsRequest
		text string
	}{
		"id":          {deletion(id, id), "Duplicate topic id."},
		"name":        {deletion("t", "t"), "Duplicate topic name."},
		"both in one": {both, "You may not specify both topic name and topic id."},
	} {
		for _, got := range a.DeleteTopics(t.Context(), tt.req).Topics {
			expect(t, name, got.ErrorCode, got.ErrorMessage, protocol.InvalidRequest, tt.text)
		}
	}
	resp := a.DeleteTopics(t.Context(), deletion("t", id))
	expect(t, "name and id", resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage, protocol.InvalidRequest, "The provided topic name maps")
	expect(t, "id and name", resp.Topics[1].ErrorCode, resp.Topics[1].ErrorMessage, protocol.None, "")
}

func TestRecreatedTopicHasAnotherID(t *testing.T) {
	a := alone(t)
	first := a.make(t, "t", 1)
	a.DeleteTopics(t.Context(), deletion("t"))
	second := a.make(t, "t", 1)
	if first.ID == second.ID {
		t.Fatalf("both lives have id %v", first.ID)
	}
	got := a.DeleteTopics(t.Context(), deletion(first.ID)).Topics[0]
	expect(t, "delete by the old id", got.ErrorCode, got.ErrorMessage, protocol.UnknownTopicID, "")
	a.must(t, "t")
}
