package api

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// Limits of fetch sessions.
const (
	sessionsMax         = 10_000          // max.incremental.fetch.session.cache.slots is 1,000 in Kafka, for many more brokers
	sessionIdle         = 2 * time.Minute // after which a session makes room for another (KIP-227)
	sessionPartitionMax = 200_000         // of one session; one that grows beyond it ends, and its client begins anew
)

// sessions are the fetch sessions of all connections (KIP-227): a client that fetches the same partitions again and again names only what changed, and is
// told only of partitions with news. When there are too many, a new client simply gets no session.
type sessions struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[int32]*list.Element // of *session
	order list.List               // the one used last is in front
}

// session is one client's set of partitions. Between open and answer it belongs to one request; a client has one request of a
// session at a time.
type session struct {
	id    int32 // 0: the request has none
	epoch int32 // that the next request must have
	used  time.Time

	mu         sync.Mutex
	partitions list.List // of *askedPartition, in the order in which they take turns
	byKey      map[partitionKey]*list.Element
	full       bool // the answer lists every partition
	byTopicID  bool // partitions are named by topic id
}

// partitionKey names a partition as the client does: by topic name or, from version 13 on, by topic id.
type partitionKey struct {
	name      string
	id        protocol.TopicID
	partition int32
}

// askedPartition is what a client wants of one partition, and what it was told last.
type askedPartition struct {
	key          partitionKey
	offset       protocol.Offset
	bytesMax     int32
	currentEpoch protocol.LeaderEpoch
	lastEpoch    protocol.LeaderEpoch

	toldHigh  protocol.Offset
	toldStart protocol.Offset
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, byID: make(map[int32]*list.Element)}
}

// Epochs with a meaning of their own (FetchMetadata).
const (
	epochFull  = 0  // a full request, which opens a session if it can
	epochFinal = -1 // a full request that closes its session
)

// open finds or makes the session of a request and takes the request's changes into it.
func (ss *sessions) open(req *kmsg.FetchRequest) (*session, protocol.ErrorCode) {
	if req.Version < 7 || req.SessionEpoch == epochFinal || req.SessionEpoch == epochFull {
		if req.Version >= 7 {
			ss.close(req.SessionID)
		}
		s := &session{full: true, byTopicID: req.Version >= 13, byKey: make(map[partitionKey]*list.Element)}
		s.update(req)
		if req.Version >= 7 && req.SessionEpoch == epochFull && len(s.byKey) > 0 {
			ss.add(s)
		}
		return s, protocol.None
	}
	ss.mu.Lock()
	e := ss.byID[req.SessionID]
	if e == nil {
		ss.mu.Unlock()
		return nil, protocol.FetchSessionIDNotFound
	}
	ss.order.MoveToFront(e)
	s := e.Value.(*session)
	s.used = ss.now()
	ss.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch != req.SessionEpoch {
		return nil, protocol.InvalidFetchSessionEpoch
	}
	if s.byTopicID != (req.Version >= 13) {
		return nil, protocol.FetchSessionTopicIDError
	}
	s.epoch = nextEpoch(s.epoch)
	s.full = false
	s.update(req)
	if len(s.byKey) > sessionPartitionMax {
		ss.close(s.id)
		return nil, protocol.FetchSessionIDNotFound
	}
	return s, protocol.None
}

func nextEpoch(e int32) int32 {
	if e == 1<<31-1 {
		return 1
	}
	return e + 1
}

// add gives a session an id, if there is room.
func (ss *sessions) add(s *session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(s.byKey) > sessionPartitionMax {
		return
	}
	if ss.order.Len() >= sessionsMax {
		oldest := ss.order.Back()
		if ss.now().Sub(oldest.Value.(*session).used) < sessionIdle {
			return
		}
		delete(ss.byID, ss.order.Remove(oldest).(*session).id)
	}
	for s.id == 0 || ss.byID[s.id] != nil {
		s.id = rand.Int32()
	}
	s.epoch, s.used = 1, ss.now()
	ss.byID[s.id] = ss.order.PushFront(s)
}

func (ss *sessions) close(id int32) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if e := ss.byID[id]; e != nil {
		delete(ss.byID, id)
		ss.order.Remove(e)
	}
}

// update takes a request's partitions into the session, and those out that it forgets.
func (s *session) update(req *kmsg.FetchRequest) {
	for i := range req.Topics {
		t := &req.Topics[i]
		for j := range t.Partitions {
			p := &t.Partitions[j]
			key := partitionKey{partition: p.Partition}
			if req.Version >= 13 {
				key.id = t.TopicID
			} else {
				key.name = t.Topic
			}
			a := &askedPartition{key: key, toldHigh: protocol.NoOffset, toldStart: protocol.NoOffset}
			if e := s.byKey[key]; e != nil {
				a = e.Value.(*askedPartition)
			} else {
				s.byKey[key] = s.partitions.PushBack(a)
			}
			a.offset, a.bytesMax = protocol.Offset(p.FetchOffset), p.PartitionMaxBytes
			a.currentEpoch, a.lastEpoch = protocol.LeaderEpoch(p.CurrentLeaderEpoch), protocol.LeaderEpoch(p.LastFetchedEpoch)
		}
	}
	for i := range req.ForgottenTopics {
		t := &req.ForgottenTopics[i]
		for _, n := range t.Partitions {
			key := partitionKey{partition: n}
			if req.Version >= 13 {
				key.id = t.TopicID
			} else {
				key.name = t.Topic
			}
			if e := s.byKey[key]; e != nil {
				s.partitions.Remove(e)
				delete(s.byKey, key)
			}
		}
	}
}

// asked returns copies of the session's partitions, in the order of their turns: another request of the session must not change them while
// this one waits.
func (s *session) asked() []askedPartition {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]askedPartition, 0, s.partitions.Len())
	for e := s.partitions.Front(); e != nil; e = e.Next() {
		all = append(all, *e.Value.(*askedPartition))
	}
	return all
}

// answer fills the response. An incremental one leaves out partitions without news; those with records go to the back of the line, so that
// all take fair turns.
func (s *session) answer(resp *wire.FetchResponse, asked []askedPartition, result *fetch.Result, readCommitted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range asked {
		a := &asked[i]
		e := s.byKey[a.key]
		if e != nil {
			a = e.Value.(*askedPartition)
		}
		part := &result.Parts[i]
		news := len(part.Records) > 0 || part.Err != nil || part.Diverging != nil || part.Replica != 0 ||
			part.State.HighWatermark != a.toldHigh || part.State.Start != a.toldStart
		if !s.full && !news {
			continue
		}
		if e != nil && len(part.Records) > 0 && s.id != 0 {
			s.partitions.MoveToBack(e)
		}
		p := wire.NewFetchPartition(a.key.partition, protocol.CodeOf(part.Err))
		a.toldHigh, a.toldStart = protocol.NoOffset, protocol.NoOffset
		if part.Err == nil {
			p.HighWatermark, p.LastStableOffset, p.LogStartOffset = part.State.HighWatermark, part.State.LastStable, part.State.Start
			p.Records, p.Diverging = part.Records, part.Diverging
			if part.Replica != 0 {
				p.PreferredReadReplica = part.Replica
			}
			a.toldHigh, a.toldStart = part.State.HighWatermark, part.State.Start
			if p.Aborted = part.Aborted; readCommitted && p.Aborted == nil {
				p.Aborted = []wire.AbortedTransaction{} // none, which is not what null says
			}
		}
		appendPartition(resp, a.key, p)
	}
}

// appendPartition adds a partition to the response, under the topic that stands last if it is the same: a topic may stand more than
// once, since partitions keep their turns.
func appendPartition(resp *wire.FetchResponse, key partitionKey, p wire.FetchPartition) {
	n := len(resp.Topics)
	if n == 0 || resp.Topics[n-1].Name != key.name || resp.Topics[n-1].ID != key.id {
		resp.Topics = append(resp.Topics, wire.FetchTopic{Name: key.name, ID: key.id})
		n++
	}
	t := &resp.Topics[n-1]
	t.Partitions = append(t.Partitions, p)
}
