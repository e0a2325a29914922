package sim

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	txnrecord "github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
)

// isolatedRead is a fetch, and what a consumer makes of it.
type isolatedRead struct {
	from      *node
	client    string
	number    int32
	offset    int64
	rest      bool  // nobody has had a transaction under way for long
	stable    int64 // last stable offset that was seen on that node before
	committed bool  // isolation level
	exchange  *exchange

	// once answered
	step    int
	next    int64 // offset after what was read
	last    int64 // last stable offset
	visible []check.Record
}

// isolatedMax is how many fetches are under way.
const isolatedMax = 4

// read asks for records from an offset on, as a consumer in that zone; empty for one that does not say.
func (x *transacting) read(n *node, number int32, offset int64, zone string, committed bool) {
	client := fmt.Sprintf("isolated%d", number)
	if len(x.reading) >= isolatedMax || slices.ContainsFunc(x.reading, func(r *isolatedRead) bool { return r.client == client && r.from == n }) {
		return
	}
	x.c.note("%s: read %d from %d, in zone %q, committed %v", n.name, number, offset, zone, committed)
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = number, offset, 3000
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.Partitions = x.c.topic.Name, []kmsg.FetchRequestTopicPartition{p}
	r := kmsg.NewPtrFetchRequest()
	r.Version, r.MaxBytes, r.SessionEpoch, r.Topics, r.Rack = 12, 6000, -1, []kmsg.FetchRequestTopic{t}, zone
	if committed {
		r.IsolationLevel = 1
	}
	if change := x.c.broken.asks; change != nil {
		change(x.c, r)
	}
	x.reading = append(x.reading, &isolatedRead{
		from: n, client: client, number: number, offset: offset, stable: x.stable[stableKey(n, number)], committed: committed,
		rest: !x.idle.IsZero() && time.Since(x.idle) >= restsFor, exchange: n.connection(client).ask(r),
	})
}

func stableKey(n *node, number int32) string { return fmt.Sprintf("%s/%d", n.name, number) }

// pollReads takes the answers to fetches.
func (x *transacting) pollReads() {
	var open []*isolatedRead
	for _, r := range x.reading {
		switch {
		case x.c.isDead(&r.from.process):
		case !r.exchange.answered():
			open = append(open, r)
		case r.exchange.response != nil:
			resp := r.exchange.response.(*kmsg.FetchResponse)
			if change := x.c.broken.fetched; change != nil {
				change(resp)
			}
			x.answered(r, &resp.Topics[0].Partitions[0])
		}
	}
	x.reading = open
}

// answered judges an answer by itself, and keeps it for the end.
func (x *transacting) answered(r *isolatedRead, p *kmsg.FetchResponseTopicPartition) {
	if code := protocol.ErrorCode(p.ErrorCode); code != protocol.None || p.PreferredReadReplica >= 0 {
		x.c.aside("%s: read %d from %d: %v, or rather from node %d", r.from.name, r.number, r.offset, code, p.PreferredReadReplica)
		if p.PreferredReadReplica >= 0 {
			x.sent++
		}
		return
	}
	report := x.c.check.report
	switch key := stableKey(r.from, r.number); {
	case p.LastStableOffset > p.HighWatermark:
		report("6: last stable offset %d of %d is above the high watermark %d on %s", p.LastStableOffset, r.number, p.HighWatermark, r.from.name)
	case p.LastStableOffset < r.stable:
		report("6: last stable offset of %d fell from %d to %d on %s", r.number, r.stable, p.LastStableOffset, r.from.name)
	default:
		x.stable[key] = max(x.stable[key], p.LastStableOffset)
	}
	r.step, r.last, r.next = x.c.step, p.LastStableOffset, r.offset
	if err := r.consume(p); err != nil {
		report("8: %s serves what cannot be read: %v", r.from.name, err)
		return
	}
	x.c.note("%s: %d records of %d from %d to %d, last stable offset %d of %d", r.from.name, len(r.visible), r.number, r.offset, r.next, r.last, p.HighWatermark)
	if r.committed && r.next > max(r.last, r.offset) {
		report("6: %s answers offset %d of %d, the last stable offset is %d", r.from.name, r.next-1, r.number, r.last)
	}
	for _, record := range r.visible {
		t := x.of[recordID{record.ID.Writer, record.ID.Seq}]
		if r.committed && t != nil && t.decided != committed && !t.torn {
			report("6: %s shows offset %d of %d to a reader of what is committed, its transaction is %v", r.from.name, record.Offset, r.number, t.decided)
		}
	}
	if r.rest && r.last == p.HighWatermark && x.c.owns(r.from, x.c.shardOf(r.number)) {
		x.lasting[r.number] = true
	}
	x.c.load.logs[r.number].seen = append(x.c.load.logs[r.number].seen, r.visible...)
	x.reads = append(x.reads, r)
}

// consume does what Kafka's CompletedFetch does: it leaves out markers, and at that isolation level batches of the transactions that are listed as aborted.
func (r *isolatedRead) consume(p *kmsg.FetchResponseTopicPartition) error {
	list := slices.SortedFunc(slices.Values(p.AbortedTransactions), func(a, b kmsg.FetchResponseTopicPartitionAbortedTransaction) int {
		return cmp.Compare(a.FirstOffset, b.FirstOffset)
	})
	out := make(map[int64]bool) // producers whose batches are of aborted transactions
	for b := p.RecordBatches; len(b) > 0; {
		h, err := batch.Parse(b)
		if err != nil {
			return err
		}
		if h.Size() > len(b) {
			return errors.New("a batch is cut")
		}
		whole := b[:h.Size()]
		b = b[h.Size():]
		for len(list) > 0 && list[0].FirstOffset <= int64(h.LastOffset()) {
			out[list[0].ProducerID] = true
			list = list[1:]
		}
		r.next = int64(h.NextOffset())
		if h.Attributes.Control() {
			m, err := batch.ParseControl(&h, whole)
			if err != nil {
				return err
			}
			if m.Marker == batch.Abort {
				delete(out, int64(h.ProducerID))
			}
			continue
		}
		if r.committed && h.Attributes.Transactional() && out[int64(h.ProducerID)] {
			continue
		}
		records, err := parse(whole)
		if err != nil {
			return err
		}
		for _, record := range records {
			if record.Offset >= r.offset {
				r.visible = append(r.visible, record)
			}
		}
	}
	return nil
}

// askOffset asks for a group's offset. A stable one is that of the newest transaction that was committed when it was asked for, or of a later one.
func (x *transacting) askOffset(id *transactional, stable bool) {
	n := x.leader(id.groupShard)
	if n == nil {
		return
	}
	t := kmsg.NewOffsetFetchRequestTopic()
	t.Topic, t.Partitions = x.c.topic.Name, []int32{0}
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Version, r.Group, r.Topics, r.RequireStable = 7, id.group, []kmsg.OffsetFetchRequestTopic{t}, stable
	floor := x.seen[id.group]
	if stable {
		floor = id.committed
	}
	if change := x.c.broken.asks; change != nil {
		change(x.c, r)
	}
	x.c.inquire(n, fmt.Sprintf("consumer of %s", id.group), r, func(response kmsg.Response) {
		a := response.(*kmsg.OffsetFetchResponse)
		if a.ErrorCode != 0 || len(a.Topics) == 0 || a.Topics[0].Partitions[0].ErrorCode != 0 {
			return
		}
		offset := max(a.Topics[0].Partitions[0].Offset, 0) // -1 for none
		x.c.note("offset of %s: %d, stable %v", id.group, offset, stable)
		switch {
		case offset < floor:
			x.c.check.report("6: %s says that the offset of %s is %d, %d was committed, stable %v", n.name, id.group, offset, floor, stable)
		case offset > id.committed:
			x.c.check.report("6: %s says that the offset of %s is %d, the newest transaction that is committed sent %d", n.name, id.group, offset, id.committed)
		}
		x.seen[id.group] = max(x.seen[id.group], offset)
	})
}

// applied looks at what etcd has from now on: decisions, and offsets of groups.
func (x *transacting) applied(ops []coordinator.Op) {
	for _, op := range ops {
		if strings.HasPrefix(op.Key, coordinator.PrefixTxns) && !op.Delete {
			name, err := coordinator.ParseKeyTxn(op.Key)
			if err != nil {
				panic(err)
			}
			s, err := coordinator.Decode[txnrecord.Snapshot](coordinator.Item{Key: op.Key, Value: op.Value})
			if err != nil {
				panic(err)
			}
			x.decide(name, &s)
			x.done(name, &s)
		}
	}
	for _, op := range ops {
		for _, id := range x.ids {
			if op.Delete || op.Key != coordinator.KeyOffsets(id.group, x.c.topic.Name, 0) {
				continue
			}
			n, err := x.c.offsetIn(coordinator.Item{Key: op.Key, Value: op.Value})
			if err != nil {
				panic(err)
			}
			if n > id.committed {
				x.c.check.report("6: the offset of %s becomes %d, the newest transaction that is committed sent %d", id.group, n, id.committed)
			}
		}
	}
}

// decide takes in a decision.
func (x *transacting) decide(name string, s *txnrecord.Snapshot) {
	of, how := claim{s.ProducerID, s.Epoch}, committed
	switch s.State {
	case txnrecord.PrepareCommit:
	case txnrecord.PrepareAbort:
		how = aborted
	default:
		return
	}
	if s.Version2 {
		of = claim{s.LastProducerID, s.LastEpoch}
	}
	var past *transaction
	for _, t := range slices.Backward(x.all) {
		if t.by.of.name != name || t.claim != of {
			continue
		}
		x.c.note("the transaction of %s in epoch %d/%d is %v", t.by.client, of.id, of.epoch, how)
		if t.past {
			if t.decided == how {
				return
			}
			past = t // one before it may have had the same claim
			continue
		}
		switch {
		case t.decided != undecided:
			x.c.check.report("6: the transaction of %s in epoch %d/%d is %v, it was %v", t.by.client, of.id, of.epoch, how, t.decided)
		case how == committed && t.asked != committed:
			x.c.check.report("6: the transaction of %s in epoch %d/%d is committed, which nobody has asked for", t.by.client, of.id, of.epoch)
		}
		t.decided, t.decidedAt, t.decidedIn = how, x.c.step, x.c.revision()
		if how == committed && t.offset > 0 {
			t.by.of.committed = max(t.by.of.committed, t.offset)
		}
		return
	}
	if past != nil {
		x.c.check.report("6: the transaction of %s in epoch %d/%d is %v, it was %v before etcd was lost", past.by.client, of.id, of.epoch, how, past.decided)
	}
}

// placed is a record in the final log.
type placed struct {
	check.Record
	of      *transaction // nil for none
	visible bool         // to a reader of what is committed
}

// final compares a partition with the decisions, and with what readers saw.
func (x *transacting) final(number int32, batches [][]byte) {
	var all []placed
	open := make(map[protocol.ProducerID][]int) // indices of records
	for _, b := range batches {
		h, err := batch.Parse(b)
		if err != nil {
			return // reported
		}
		if h.Attributes.Control() {
			m, err := batch.ParseControl(&h, b)
			if err != nil {
				x.c.check.report("8: a marker at offset %d of %d: %v", h.BaseOffset, number, err)
				return
			}
			for _, at := range open[h.ProducerID] {
				all[at].visible = m.Marker == batch.Commit
			}
			delete(open, h.ProducerID)
			continue
		}
		records, err := parse(b)
		if err != nil {
			return // reported
		}
		for _, r := range records {
			if h.Attributes.Transactional() {
				open[h.ProducerID] = append(open[h.ProducerID], len(all))
			}
			all = append(all, placed{Record: r, of: x.of[recordID{r.ID.Writer, r.ID.Seq}], visible: !h.Attributes.Transactional()})
		}
	}
	for id, at := range open {
		x.c.check.report("6: the transaction of producer %d is open in partition %d, from offset %d on", id, number, all[at[0]].Offset)
	}
	for _, r := range all {
		if r.of != nil && !r.of.torn && r.visible != (r.of.decided == committed) {
			x.c.check.report("6: offset %d of %d is visible %v, its transaction, of %s in epoch %d/%d, is %v",
				r.Offset, number, r.visible, r.of.by.client, r.of.claim.id, r.of.claim.epoch, r.of.decided)
		}
	}
	for _, r := range x.reads {
		if r.number == number {
			x.compare(r, all)
		}
	}
}

// compare compares what a reader of what is committed saw with the final log.
func (x *transacting) compare(r *isolatedRead, all []placed) {
	from, _ := slices.BinarySearchFunc(all, r.offset, func(p placed, offset int64) int { return cmp.Compare(p.Offset, offset) })
	i := 0
	gone := func(before int64) { // what was compacted away since, and was shown
		for i < len(r.visible) && r.visible[i].Offset < before && x.c.check.committed[r.number][r.visible[i].Offset] == r.visible[i] {
			i++
		}
	}
	for _, p := range all[from:] {
		if r.committed && p.Offset < r.next && p.visible {
			gone(p.Offset)
			if i == len(r.visible) || r.visible[i].ID != p.ID {
				x.c.check.report("6: %s did not show %v at offset %d of %d to a reader of what is committed, from offset %d to %d", r.from.name, p.ID, p.Offset, r.number, r.offset, r.next)
				return
			}
			i++
		}
	}
	gone(r.next)
	if r.committed && i < len(r.visible) {
		x.c.check.report("6: %s showed %v of %d to a reader of what is committed", r.from.name, r.visible[i].ID, r.number)
	}
	for _, p := range all {
		if p.Offset < r.last && p.of != nil && (p.of.decided == undecided || p.of.decidedAt > r.step) {
			x.c.check.report("6: the last stable offset of %d was %d on %s at step %d, that of the transaction at %d was decided at step %d",
				r.number, r.last, r.from.name, r.step, p.Offset, p.of.decidedAt)
			return
		}
	}
}
