package forward

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/protocol"
)

// Transactional ids are coordinated as groups are: by whoever leads the shard that their name gives.

// initProducerID: that of an idempotent producer any agent answers.
func (f *Forwarder) initProducerID(ctx context.Context, r *server.Request, req kmsg.Request) (server.Answer, error) {
	if req.(*kmsg.InitProducerIDRequest).TransactionalID == nil {
		return f.deps.Local.Serve(ctx, r)
	}
	return spreads(func(req *kmsg.InitProducerIDRequest) divisible {
		return oneGroup(req, *req.TransactionalID, func(r *kmsg.InitProducerIDResponse) int16 { return r.ErrorCode })
	})(f, ctx, r, req)
}

// firstAgents is the version of AddPartitionsToTxn from which on only agents ask.
const firstAgents = 4

// addPartitionsToTxn: the error of the coordinator stands with each partition.
func addPartitionsToTxn(req *kmsg.AddPartitionsToTxnRequest) divisible {
	id := req.TransactionalID
	if req.Version >= firstAgents && len(req.Transactions) > 0 {
		id = req.Transactions[0].TransactionalID
	}
	return oneGroup(req, id, func(r *kmsg.AddPartitionsToTxnResponse) int16 {
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				if notCoordinated(protocol.ErrorCode(p.ErrorCode)) {
					return p.ErrorCode
				}
			}
		}
		return 0
	})
}

func addOffsetsToTxn(req *kmsg.AddOffsetsToTxnRequest) divisible {
	return oneGroup(req, req.TransactionalID, func(r *kmsg.AddOffsetsToTxnResponse) int16 { return r.ErrorCode })
}

func endTxn(req *kmsg.EndTxnRequest) divisible {
	return oneGroup(req, req.TransactionalID, func(r *kmsg.EndTxnResponse) int16 { return r.ErrorCode })
}

// txnOffsetCommit goes to the group's coordinator, whose error stands with each partition.
func txnOffsetCommit(req *kmsg.TxnOffsetCommitRequest) divisible {
	return oneGroup(req, req.Group, func(r *kmsg.TxnOffsetCommitResponse) int16 {
		for _, t := range r.Topics {
			for _, p := range t.Partitions {
				if notCoordinated(protocol.ErrorCode(p.ErrorCode)) {
					return p.ErrorCode
				}
			}
		}
		return 0
	})
}

func describeTransactions(req *kmsg.DescribeTransactionsRequest) divisible {
	return &byGroup[string, kmsg.DescribeTransactionsResponseTransactionState]{
		groups: req.TransactionalIDs, results: make([]kmsg.DescribeTransactionsResponseTransactionState, len(req.TransactionalIDs)),
		name: func(id string) string { return id },
		code: func(s *kmsg.DescribeTransactionsResponseTransactionState) int16 { return s.ErrorCode },
		request: func(ids []string) kmsg.Request {
			part := *req
			part.TransactionalIDs = ids
			return &part
		},
		got: func(r kmsg.Response) []kmsg.DescribeTransactionsResponseTransactionState {
			return r.(*kmsg.DescribeTransactionsResponse).TransactionStates
		},
		response: func(states []kmsg.DescribeTransactionsResponseTransactionState) kmsg.Response {
			return &kmsg.DescribeTransactionsResponse{Version: req.Version, TransactionStates: states}
		},
	}
}

// mergeTransactions: each agent lists the ids that it coordinates. While a shard moves, two may list one.
func mergeTransactions(into *kmsg.ListTransactionsResponse, answers []*kmsg.ListTransactionsResponse, complete bool) {
	byID := make(map[string]kmsg.ListTransactionsResponseTransactionState)
	for _, answer := range answers {
		into.ErrorCode = cmp.Or(into.ErrorCode, answer.ErrorCode)
		into.UnknownStateFilters = answer.UnknownStateFilters
		for _, s := range answer.TransactionStates {
			byID[s.TransactionalID] = s
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		into.TransactionStates = append(into.TransactionStates, byID[id])
	}
	if !complete {
		into.ErrorCode = int16(protocol.CoordinatorNotAvailable)
	}
}

// markersRequest is what an operator sends to end a transaction that hangs: each marker of a partition goes to its leader.
type markersRequest struct {
	req   *kmsg.WriteTxnMarkersRequest
	items []markerItem
}

// markerItem is one partition's marker, and what came of it.
type markerItem struct {
	marker    *kmsg.WriteTxnMarkersRequestMarker
	topic     string
	partition int32
	code      int16
}

func writeTxnMarkers(req *kmsg.WriteTxnMarkersRequest) divisible {
	m := &markersRequest{req: req}
	for i := range req.Markers {
		for _, t := range req.Markers[i].Topics {
			for _, n := range t.Partitions {
				m.items = append(m.items, markerItem{marker: &req.Markers[i], topic: t.Topic, partition: n})
			}
		}
	}
	return m
}

func (m *markersRequest) places(r *route) []place {
	all := make([]place, len(m.items))
	for i, item := range m.items {
		t, found := r.topic(false, item.topic, protocol.TopicID{})
		all[i] = r.partition(t, found, item.partition)
	}
	return all
}

func (m *markersRequest) part(of []int) kmsg.Request {
	part := *m.req
	part.Markers = nil
	for _, i := range of {
		one := *m.items[i].marker
		one.Topics = []kmsg.WriteTxnMarkersRequestMarkerTopic{{Topic: m.items[i].topic, Partitions: []int32{m.items[i].partition}}}
		part.Markers = append(part.Markers, one)
	}
	return &part
}

func (m *markersRequest) take(of []int, answer kmsg.Response) bool {
	got := answer.(*kmsg.WriteTxnMarkersResponse).Markers
	if len(got) != len(of) {
		return false
	}
	for n, i := range of {
		if len(got[n].Topics) != 1 || len(got[n].Topics[0].Partitions) != 1 {
			return false
		}
		m.items[i].code = got[n].Topics[0].Partitions[0].ErrorCode
	}
	return true
}

func (m *markersRequest) again(i int, at place) bool {
	return notLed(protocol.ErrorCode(m.items[i].code), at)
}

func (m *markersRequest) answer() kmsg.Response {
	resp := &kmsg.WriteTxnMarkersResponse{Version: m.req.Version}
	at := 0
	for i := range m.req.Markers {
		out := kmsg.WriteTxnMarkersResponseMarker{ProducerID: m.req.Markers[i].ProducerID}
		for _, t := range m.req.Markers[i].Topics {
			topic := kmsg.WriteTxnMarkersResponseMarkerTopic{Topic: t.Topic}
			for _, n := range t.Partitions {
				topic.Partitions = append(topic.Partitions, kmsg.WriteTxnMarkersResponseMarkerTopicPartition{Partition: n, ErrorCode: m.items[at].code})
				at++
			}
			out.Topics = append(out.Topics, topic)
		}
		resp.Markers = append(resp.Markers, out)
	}
	return resp
}

func (m *markersRequest) long() bool { return false }
