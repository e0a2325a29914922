package api_test

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// session is a client's side of a fetch session (KIP-227).
type session struct {
	p     *peer
	id    int32
	epoch int32
}

func (s *session) fetch(version int16, req *kmsg.FetchRequest) *kmsg.FetchResponse {
	s.p.t.Helper()
	req.SessionID, req.SessionEpoch = s.id, s.epoch
	resp := s.p.fetch(version, req)
	if resp.ErrorCode == 0 {
		s.id = resp.SessionID
		s.epoch++
	}
	return resp
}

// listed returns the partitions that a response names, in its order.
func listed(resp *kmsg.FetchResponse) []int32 {
	all := []int32{}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			all = append(all, p.Partition)
		}
	}
	return all
}

func TestFetchSession(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 4)
	s := &session{p: p}
	now := time.Now().UnixMilli()

	full := s.fetch(12, fetchRequest(0, asked{topic: "t"}, asked{topic: "t", partition: 1}, asked{topic: "t", partition: 2}))
	if s.id == 0 || !slices.Equal(listed(full), []int32{0, 1, 2}) {
		t.Fatalf("the full fetch has session %d and partitions %v", s.id, listed(full))
	}
	if got := s.fetch(12, fetchRequest(0)); len(got.Topics) != 0 || got.SessionID != s.id {
		t.Errorf("without news, session %d is told of %v", got.SessionID, listed(got))
	}
	p.mustProduce("t", 1, plain(t, now, "a"))
	if got := s.fetch(12, fetchRequest(0)); !slices.Equal(listed(got), []int32{1}) {
		t.Errorf("after a record in partition 1: %v", listed(got))
	}
	// Partition 1, which had its turn, is behind.
	p.mustProduce("t", 2, plain(t, now, "a"))
	if got := s.fetch(12, fetchRequest(0)); !slices.Equal(listed(got), []int32{2, 1}) {
		t.Errorf("the order of turns: %v, want 2 before 1", listed(got))
	}
	// The client goes on in partitions 1 and 2, adds one, forgets another.
	req := fetchRequest(0, asked{topic: "t", partition: 1, offset: 1}, asked{topic: "t", partition: 2, offset: 1}, asked{topic: "t", partition: 3})
	req.ForgottenTopics = []kmsg.FetchRequestForgottenTopic{{Topic: "t", Partitions: []int32{0}}}
	if got := s.fetch(12, req); !slices.Equal(listed(got), []int32{3}) {
		t.Errorf("a new partition is told of at once, and nothing else: %v", listed(got))
	}
	for _, n := range []int32{0, 2, 3} {
		p.mustProduce("t", n, plain(t, now, "b"))
	}
	if got := s.fetch(12, fetchRequest(0)); !slices.Equal(listed(got), []int32{2, 3}) {
		t.Errorf("after records in 0, 2 and 3, of which 0 is forgotten: %v", listed(got))
	}
	// Those that had records are behind those that had none.
	p.mustProduce("t", 1, plain(t, now, "c"))
	if got := s.fetch(12, fetchRequest(0)); !slices.Equal(listed(got), []int32{1, 2, 3}) {
		t.Errorf("the order of turns: %v, want 1 first", listed(got))
	}
	if got := s.fetch(12, fetchRequest(0)); !slices.Equal(listed(got), []int32{1, 2, 3}) {
		t.Errorf("what the client has not taken is sent again: %v", listed(got))
	}
}

func TestFetchSessionErrors(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 1)
	s := &session{p: p}
	s.fetch(12, fetchRequest(0, asked{topic: "t"}))
	code := func(sessionID, epoch int32, version int16) protocol.ErrorCode {
		req := fetchRequest(0)
		req.SessionID, req.SessionEpoch = sessionID, epoch
		resp := p.fetch(version, req)
		if resp.ErrorCode != 0 && (resp.SessionID != 0 || len(resp.Topics) != 0) {
			t.Errorf("an error comes with session %d and %v", resp.SessionID, resp.Topics)
		}
		return protocol.ErrorCode(resp.ErrorCode)
	}
	if got := code(s.id, s.epoch+1, 12); got != protocol.InvalidFetchSessionEpoch {
		t.Errorf("a wrong epoch is answered with %v", got)
	}
	if got := code(s.id+1, 1, 12); got != protocol.FetchSessionIDNotFound {
		t.Errorf("a wrong session is answered with %v", got)
	}
	if got := code(s.id, s.epoch, 13); got != protocol.FetchSessionTopicIDError {
		t.Errorf("a session of names is asked by id: %v", got)
	}
	if got := code(s.id, s.epoch, 12); got != protocol.None {
		t.Errorf("the session does not survive errors: %v", got)
	}
	// A final fetch is answered in full and ends the session.
	final := fetchRequest(0, asked{topic: "t"})
	final.SessionID, final.SessionEpoch = s.id, -1
	if got := p.fetch(12, final); got.ErrorCode != 0 || got.SessionID != 0 || len(listed(got)) != 1 {
		t.Errorf("the final fetch: %+v", got)
	}
	if got := code(s.id, s.epoch+1, 12); got != protocol.FetchSessionIDNotFound {
		t.Errorf("an ended session is answered with %v", got)
	}
	// By topic id, with errors of partitions told every time.
	s = &session{p: p}
	s.fetch(13, fetchRequest(0, asked{id: id}, asked{id: protocol.TopicID{7}}))
	got := s.fetch(13, fetchRequest(0))
	if len(got.Topics) != 1 || got.Topics[0].TopicID != (protocol.TopicID{7}) ||
		protocol.ErrorCode(got.Topics[0].Partitions[0].ErrorCode) != protocol.UnknownTopicID {
		t.Errorf("an unknown topic id in a session: %+v", got.Topics)
	}
}
