package sim

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	txnrecord "github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// What becomes of transactions when etcd is rebuilt from a copy.

// restored says what of all transactions is promised: what the copy has as decided is decided so, and all of it. What was decided since stays so if its markers were all written; if not, it is aborted where they were not.
// What was open is aborted, also what is added to it before its marker comes. Groups have the offsets of what the copy has as committed.
func (x *transacting) restored(c *checker, copied *copied, items []coordinator.Item, was map[string][]written) {
	for _, id := range x.ids {
		id.committed = 0
		it := copied.items[coordinator.KeyTxn(id.shard, id.name)]
		s, ok := recordIn(it.Key, it.Value)
		inDoubt := ok && s.State == txnrecord.PrepareCommit && !s.Version2
		behind := false // the transaction that the copy is about to commit
		for _, t := range x.all {
			if t.by.of != id {
				continue
			}
			known := t.decided != undecided && t.decidedIn <= copied.id.Revision
			switch {
			case known && t.decided == committed:
				id.committed = max(id.committed, t.offset)
			case known:
			case t.decided == committed:
				t.torn, t.offset = t.torn || t.doneIn == 0 || behind, 0
			default:
				t.torn = t.torn || behind
				t.decide(aborted, x.c.step)
			}
			behind = behind || inDoubt && known && t.decided == committed && t.claim == claim{s.ProducerID, s.Epoch}
			t.past, t.decidedIn, t.doneIn = true, 0, 1 // of another etcd
		}
		x.seen[id.group] = c.restoredOffset(items, coordinator.KeyOffsets(id.group, x.c.topic.Name, 0), was, copied.id.Revision)
	}
}

// done takes in that the markers of a decision are written.
func (x *transacting) done(name string, s *txnrecord.Snapshot) {
	if s.State == txnrecord.PrepareCommit || s.State == txnrecord.PrepareAbort {
		return
	}
	for _, t := range x.all {
		if t.by.of.name == name && t.decided != undecided && t.doneIn == 0 {
			t.doneIn = x.c.revision()
		}
	}
}

// endHanging does what an operator does about transactions that no coordinator knows: of those that a leader has open in a partition it aborts all. Nobody has one under way.
func (x *transacting) endHanging(n *node, number int32) {
	t := kmsg.NewDescribeProducersRequestTopic()
	t.Topic, t.Partitions = x.c.topic.Name, []int32{number}
	r := kmsg.NewPtrDescribeProducersRequest()
	r.Topics = append(r.Topics, t)
	x.c.inquire(n, "operator", r, func(response kmsg.Response) {
		for _, p := range response.(*kmsg.DescribeProducersResponse).Topics[0].Partitions[0].ActiveProducers {
			if p.CurrentTxnStartOffset < 0 {
				continue
			}
			x.c.note("the operator aborts what producer %d has open in %d, from %d on", p.ProducerID, number, p.CurrentTxnStartOffset)
			topic := kmsg.NewWriteTxnMarkersRequestMarkerTopic()
			topic.Topic, topic.Partitions = x.c.topic.Name, []int32{number}
			m := kmsg.NewWriteTxnMarkersRequestMarker()
			m.ProducerID, m.ProducerEpoch, m.CoordinatorEpoch = p.ProducerID, int16(p.ProducerEpoch), max(p.CoordinatorEpoch, 0)
			m.Topics = append(m.Topics, topic)
			r := kmsg.NewPtrWriteTxnMarkersRequest()
			r.Version = 1
			r.Markers = append(r.Markers, m)
			x.c.asked = append(x.c.asked, &question{client: "operator", exchange: n.connection("operator").ask(r), check: func(response kmsg.Response) {
				x.c.note("the operator is answered %v", protocol.ErrorCode(response.(*kmsg.WriteTxnMarkersResponse).Markers[0].Topics[0].Partitions[0].ErrorCode))
			}})
		}
	})
}

// decide has a transaction be decided at a step, unless it was before.
func (t *transaction) decide(how outcome, step int) {
	if t.decided == undecided {
		t.decided, t.decidedAt = how, step
	}
}
