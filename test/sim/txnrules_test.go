package sim

import (
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	txnrecord "github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// The rules of transactions, each broken.

// recordIn returns the record of a transactional id that an operation writes, or a listing has; false for anything else.
func recordIn(key string, value []byte) (s txnrecord.Snapshot, ok bool) {
	if !strings.HasPrefix(key, coordinator.PrefixTxns) || len(value) == 0 {
		return s, false
	}
	s, err := coordinator.Decode[txnrecord.Snapshot](coordinator.Item{Key: key, Value: value})
	if err != nil {
		panic(err)
	}
	return s, true
}

// decides reports whether a value is a decision.
func decides(key string, value []byte) bool {
	s, ok := recordIn(key, value)
	return ok && (s.State == txnrecord.PrepareCommit || s.State == txnrecord.PrepareAbort)
}

// What else its transaction holds is written at once, the decision some time later.
var markersFirst = breakage{name: "send markers before the decision is durable", txn: func(w *world, x *txn) {
	x.ops = slices.DeleteFunc(x.ops, func(op coordinator.Op) bool {
		if !decides(op.Key, op.Value) {
			return false
		}
		late := &txn{ops: []coordinator.Op{op}}
		w.late = append(w.late, lateWrite{what: "a decision", apply: func() {
			if _, err := w.kv.Txn(w.ctx, nil, late.ops); err == nil {
				w.check.applied(late.ops)
			}
		}})
		return true
	})
}}

var stableIgnored = breakage{name: "answer up to the high watermark", asks: func(_ *cluster, req kmsg.Request) {
	if r, ok := req.(*kmsg.FetchRequest); ok {
		r.IsolationLevel = 0
	}
}}

var abortedLeftOut = breakage{name: "leave out the list of aborted transactions", fetched: func(resp *kmsg.FetchResponse) {
	resp.Topics[0].Partitions[0].AbortedTransactions = nil
}}

var offsetsEarly = breakage{name: "apply offsets when they are sent", txn: func(_ *world, x *txn) {
	for _, op := range slices.Clone(x.ops) {
		if op.Delete || !strings.HasPrefix(op.Key, coordinator.PrefixPending) {
			continue
		}
		group, _, err := coordinator.ParseKeyPending(op.Key)
		if err != nil {
			panic(err)
		}
		pending, err := coordinator.Decode[coordinator.PendingOffsets](coordinator.Item{Key: op.Key, Value: op.Value})
		if err != nil {
			panic(err)
		}
		for topic, offsets := range pending.Offsets {
			key := coordinator.KeyOffsets(group, topic, 0)
			if !slices.ContainsFunc(x.ops, func(op coordinator.Op) bool { return op.Key == key }) {
				x.ops = append(x.ops, coordinator.Op{Key: key, Value: coordinator.Encode(offsets)})
			}
		}
	}
}}

var instabilityHidden = breakage{name: "answer offsets that an open transaction may change", asks: func(_ *cluster, req kmsg.Request) {
	if r, ok := req.(*kmsg.OffsetFetchRequest); ok {
		r.RequireStable = false
	}
}}

// Whoever asks the coordinator is taken for the current producer.
var staleEpoch = breakage{name: "accept a stale epoch", asks: func(c *cluster, req kmsg.Request) {
	switch r := req.(type) {
	case *kmsg.EndTxnRequest:
		c.renew(r.TransactionalID, &r.ProducerID, &r.ProducerEpoch)
	case *kmsg.AddOffsetsToTxnRequest:
		c.renew(r.TransactionalID, &r.ProducerID, &r.ProducerEpoch)
	case *kmsg.AddPartitionsToTxnRequest:
		c.renew(r.TransactionalID, &r.ProducerID, &r.ProducerEpoch)
		for i := range r.Transactions {
			t := &r.Transactions[i]
			c.renew(t.TransactionalID, &t.ProducerID, &t.ProducerEpoch)
		}
	}
}}

// renew puts the claim that counts in the place of another one. It may be called concurrently.
func (c *cluster) renew(id string, producer *int64, epoch *int16) {
	item, _, err := c.kv.Get(c.ctx, coordinator.KeyTxn(coordinator.ShardOfName(id, c.world.cluster.Shards), id))
	if err != nil {
		panic(err)
	}
	if s, ok := recordIn(item.Key, item.Value); ok {
		*producer, *epoch = int64(s.ProducerID), int16(s.Epoch)
	}
}

// Markers that were not answered, or were refused by who does not lead, count as written.
var oldLeaderMarks = breakage{name: "take markers for written that an old leader was sent", askedFor: func(req kmsg.Request, resp kmsg.Response, err error) (kmsg.Response, error) {
	r, ok := req.(*kmsg.WriteTxnMarkersRequest)
	if !ok {
		return resp, err
	}
	done := kmsg.NewPtrWriteTxnMarkersResponse()
	done.Version = r.Version
	for _, m := range r.Markers {
		marker := kmsg.NewWriteTxnMarkersResponseMarker()
		marker.ProducerID = m.ProducerID
		for _, t := range m.Topics {
			topic := kmsg.NewWriteTxnMarkersResponseMarkerTopic()
			topic.Topic = t.Topic
			for _, n := range t.Partitions {
				p := kmsg.NewWriteTxnMarkersResponseMarkerTopicPartition()
				p.Partition = n
				topic.Partitions = append(topic.Partitions, p)
			}
			marker.Topics = append(marker.Topics, topic)
		}
		done.Markers = append(done.Markers, marker)
	}
	return done, nil
}}

var unverified = breakage{name: "let batches begin transactions that are not open", askedFor: func(_ kmsg.Request, resp kmsg.Response, err error) (kmsg.Response, error) {
	a, ok := resp.(*kmsg.AddPartitionsToTxnResponse)
	if !ok {
		return resp, err
	}
	for _, t := range a.Transactions {
		for _, topic := range t.Topics {
			for i := range topic.Partitions {
				topic.Partitions[i].ErrorCode = int16(protocol.None)
			}
		}
	}
	return a, err
}}

// Leaders cannot tell markers of a coordinator that was deposed from those of the present one.
var oldCoordinatorMarks = breakage{name: "write markers of a deposed coordinator", asks: func(_ *cluster, req kmsg.Request) {
	if r, ok := req.(*kmsg.WriteTxnMarkersRequest); ok {
		for i := range r.Markers {
			r.Markers[i].CoordinatorEpoch = 1 << 20
		}
	}
}}

// A new coordinator does not see which transactions are open, or decided and not marked.
var openForgotten = breakage{name: "a new coordinator forgets open transactions", lists: func(prefix string, items []coordinator.Item) []coordinator.Item {
	if !strings.HasPrefix(prefix, coordinator.PrefixTxns) {
		return items
	}
	return slices.DeleteFunc(slices.Clone(items), func(it coordinator.Item) bool {
		s, ok := recordIn(it.Key, it.Value)
		return ok && (s.State == txnrecord.Ongoing || decides(it.Key, it.Value))
	})
}}

var pendingForgotten = breakage{name: "a group's new leader forgets the offsets of open transactions", lists: func(prefix string, items []coordinator.Item) []coordinator.Item {
	if strings.HasPrefix(prefix, coordinator.PrefixPending) {
		return nil
	}
	return items
}}
