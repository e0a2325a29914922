package groups

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// openTransaction is what a producer has sent to the group in a transaction of which no end is known.
type openTransaction struct {
	id       string
	producer protocol.ProducerID
	epoch    protocol.ProducerEpoch
	offsets  topicOffsetsSet // what a commit applies
	request  *txnRequest     // that is being written and verified; nil for none
	doubt    bool            // it may be over, and no marker be to come: its coordinator is to be asked
	asking   bool            // it is being asked
	// While the end is being written: what has yet to be applied, and who waits for it; waiting is empty otherwise.
	left    []change
	waiting []func(protocol.ErrorCode)
}

// topicOffsetsSet are offsets by topic. It is replaced, never changed.
type topicOffsetsSet map[string]coordinator.GroupOffsets

// txnRequest is a TxnOffsetCommit whose offsets the transaction is not known to have yet.
type txnRequest struct {
	offsets topicOffsetsSet
	over    protocol.ErrorCode // why it is no request of its transaction any more
}

// with returns the set with other offsets in place of its own.
func (s topicOffsetsSet) with(other topicOffsetsSet) topicOffsetsSet {
	all := maps.Clone(s)
	if all == nil {
		all = topicOffsetsSet{}
	}
	for topic, offsets := range other {
		merged := coordinator.GroupOffsets{}
		maps.Copy(merged, s[topic])
		maps.Copy(merged, offsets)
		all[topic] = merged
	}
	return all
}

// split returns the offsets of partitions that a predicate does not name, and those of the ones that it does.
func (s topicOffsetsSet) split(named func(partition) bool) (kept, gone topicOffsetsSet) {
	kept, gone = topicOffsetsSet{}, topicOffsetsSet{}
	for topic, offsets := range s {
		for p, offset := range offsets {
			to := kept
			if named(partition{topic, p}) {
				to = gone
			}
			if to[topic] == nil {
				to[topic] = coordinator.GroupOffsets{}
			}
			to[topic][p] = offset
		}
	}
	return kept, gone
}

// changes returns the commit of the set's offsets, those of a block next to each other.
func (s topicOffsetsSet) changes() []change {
	var all []change
	for _, topic := range sortedNames(s) {
		for _, p := range sortedPartitions(s[topic]) {
			all = append(all, change{topic: topic, partition: p, offset: new(s[topic][p])})
		}
	}
	return all
}

func (tx *openTransaction) content() topicOffsetsSet {
	if tx.request == nil {
		return tx.offsets
	}
	return tx.offsets.with(tx.request.offsets)
}

func (tx *openTransaction) ending() bool { return len(tx.waiting) > 0 }

// offset returns what is pending for a partition.
func (tx *openTransaction) offset(topic string, p int32) (coordinator.GroupOffset, bool) {
	if tx.request != nil {
		if offset, ok := tx.request.offsets[topic][p]; ok {
			return offset, true
		}
	}
	offset, ok := tx.offsets[topic][p]
	return offset, ok
}

// unstable tells whether an open transaction may change a partition's offset.
func (o *owner) unstable(topic string, p int32) bool {
	for _, tx := range o.open {
		if _, ok := tx.offset(topic, p); ok {
			return true
		}
	}
	return false
}

// stamp returns the time of a commit that comes now. It is above those of all commits before it for the same partition, whatever clocks
// say: by it, a transaction's commit knows what was committed after its own offsets were sent.
func (o *owner) stamp(topic string, p int32, ms int64) int64 {
	if b := o.offsets[blockOf(topic, p)]; b != nil {
		if last, ok := b.latest[p]; ok {
			ms = max(ms, last.CommitMs+1)
		}
	}
	for _, tx := range o.open {
		if last, ok := tx.offset(topic, p); ok {
			ms = max(ms, last.CommitMs+1)
		}
	}
	return ms
}

// sendOffsets takes offsets into a transaction: writes them, has them verified, and then calls done. Those that are refused are taken out again.
//
// Where something is pending already, the coordinator is asked before that is touched too: a request of a higher epoch comes from a
// producer whose transaction is over, but the marker may still be on its way; one of the same epoch may be a copy that was late, and
// comes after the decision. Consent (given) says that the request's transaction is open, and so that all markers of earlier ones are written.
func (o *owner) sendOffsets(t Transaction, wanted []change, given bool, done func(protocol.ErrorCode)) {
	tx := o.open[t.Producer]
	switch {
	case o.machine.State() == group.Dead, tx == nil && len(o.open) >= o.c.cfg.TransactionsMax:
		done(protocol.CoordinatorNotAvailable)
		return
	case tx == nil:
	case t.Epoch < tx.epoch:
		done(protocol.InvalidProducerEpoch)
		return
	case tx.request != nil, tx.ending():
		done(protocol.CoordinatorLoadInProgress) // one request at a time; the client asks again
		return
	case !given:
		o.askFirst(tx, t, wanted, done)
		return
	}
	if tx == nil || t.Epoch > tx.epoch {
		tx = &openTransaction{id: t.ID, producer: t.Producer, epoch: t.Epoch}
	}
	request := &txnRequest{offsets: o.stamped(wanted)}
	tx.request = request
	op := o.pendingOp(tx)
	if len(op.Value) > coordinator.ValueBytesMax {
		tx.request = nil
		done(protocol.InvalidCommitOffsetSize)
		return
	}
	o.open[t.Producer] = tx
	o.indexProducer(t.Producer)
	ops := []coordinator.Op{op}
	record := !o.recorded
	if record {
		ops = append(ops, o.simpleRecord())
	}
	o.write(ops, func(code protocol.ErrorCode) {
		if record && code == protocol.None {
			o.nowRecorded()
		}
		switch {
		case tx.request != request:
			done(request.over)
		case code != protocol.None:
			tx.request = nil
			o.doubtful(tx)
			done(code)
		default:
			o.aside(func(ctx context.Context) func() {
				err := o.c.verify(ctx, t)
				return func() { o.verified(tx, request, err, done) }
			})
		}
	})
}

// stamped returns what is wanted as a set.
func (o *owner) stamped(wanted []change) topicOffsetsSet {
	set := topicOffsetsSet{}
	for _, ch := range wanted {
		if set[ch.topic] == nil {
			set[ch.topic] = coordinator.GroupOffsets{}
		}
		offset := *ch.offset
		offset.CommitMs = o.stamp(ch.topic, ch.partition, offset.CommitMs)
		set[ch.topic][ch.partition] = offset
	}
	return set
}

// askFirst continues sendOffsets once the coordinator has consented.
func (o *owner) askFirst(tx *openTransaction, t Transaction, wanted []change, done func(protocol.ErrorCode)) {
	request := &txnRequest{}
	tx.request = request
	o.aside(func(ctx context.Context) func() {
		err := o.c.verify(ctx, t)
		return func() {
			if tx.request == request {
				tx.request = nil
			}
			if err != nil {
				done(refusal(err))
				return
			}
			o.sendOffsets(t, wanted, true, done)
		}
	})
}

// verified ends a request whose offsets are durable.
func (o *owner) verified(tx *openTransaction, request *txnRequest, err error, done func(protocol.ErrorCode)) {
	switch {
	case !o.leads():
		o.tellEnd(protocol.NotCoordinator)
	case tx.request != request && err == nil:
		done(request.over)
	case tx.request != request:
		done(refusal(err))
	case err == nil:
		tx.request, tx.doubt = nil, false
		tx.offsets = tx.offsets.with(request.offsets)
		done(protocol.None)
	default:
		tx.request = nil
		o.storePending(tx, func(code protocol.ErrorCode) {
			if code != protocol.None {
				o.doubtful(tx)
			}
			done(refusal(err))
		})
	}
}

// pendingOp writes what is pending of a transaction, or deletes it if nothing is.
func (o *owner) pendingOp(tx *openTransaction) coordinator.Op {
	key, content := coordinator.KeyPending(o.shard, o.name, tx.producer), tx.content()
	if len(content) == 0 {
		return coordinator.Op{Key: key, Delete: true}
	}
	return coordinator.Op{Key: key, Value: coordinator.Encode(coordinator.PendingOffsets{
		TransactionalID: tx.id, Epoch: tx.epoch, Offsets: content,
	})}
}

// storePending writes what is pending of a transaction after some was taken out of it, and forgets it if nothing is left.
func (o *owner) storePending(tx *openTransaction, done func(protocol.ErrorCode)) {
	if o.open[tx.producer] != tx || o.machine.State() == group.Dead {
		done(protocol.None) // deleted, or about to be
		return
	}
	op := o.pendingOp(tx)
	o.write([]coordinator.Op{op}, func(code protocol.ErrorCode) {
		if code == protocol.None && op.Delete && len(tx.content()) == 0 && tx.request == nil && !tx.ending() {
			o.forgetOpen(tx)
		}
		done(code)
	})
}

// forgetOpen forgets a transaction of which nothing is pending any more.
func (o *owner) forgetOpen(tx *openTransaction) {
	if o.open[tx.producer] == tx {
		delete(o.open, tx.producer)
		o.unindexProducer(tx.producer)
	}
}

// endTransaction carries out a marker. A request that is not verified by now is not of the transaction: its producer has
// not waited for the answer.
func (o *owner) endTransaction(m Marker, done func(protocol.ErrorCode)) {
	tx := o.open[m.Producer]
	switch {
	case o.machine.State() == group.Dead:
		done(protocol.CoordinatorLoadInProgress) // until its deletion has succeeded or failed
		return
	case tx == nil:
		o.unindexProducer(m.Producer)
		done(protocol.None)
		return
	case !m.ends(tx.epoch):
		done(protocol.None)
		return
	case m.CoordinatorEpoch < o.c.deps.CoordinatorEpoch(tx.id):
		done(protocol.TransactionCoordinatorFenced)
		return
	}
	if tx.request != nil {
		tx.request.over = protocol.InvalidTxnState
		if m.Epoch > tx.epoch {
			tx.request.over = protocol.InvalidProducerEpoch
		}
		tx.request = nil
	}
	if tx.ending() {
		tx.waiting = append(tx.waiting, done)
		return
	}
	outcome := outcomeAborted
	var apply []change
	if m.applies(tx.epoch) {
		outcome, apply = outcomeCommitted, tx.offsets.changes()
	}
	o.end(tx, apply, func(code protocol.ErrorCode) {
		if code == protocol.None {
			o.c.metrics.txnEnds.WithLabelValues(outcome).Inc()
		}
		done(code)
	})
}

// end applies offsets and deletes what is pending of a transaction.
func (o *owner) end(tx *openTransaction, apply []change, done func(protocol.ErrorCode)) {
	tx.left, tx.waiting = apply, []func(protocol.ErrorCode){done}
	o.applyLeft(tx)
}

// applyLeft writes as many of the offsets that are left as one call of the ledger takes, and goes on once they are durable; what was
// pending is deleted with the last ones. So after a failure or a crash all can be applied again.
func (o *owner) applyLeft(tx *openTransaction) {
	if o.machine.State() == group.Dead {
		o.endedOpen(tx, protocol.CoordinatorLoadInProgress)
		return
	}
	var writes []blockWrite
	bytes, n := 0, 0
	for n < len(tx.left) && len(writes) < writeOpsMax {
		key := tx.left[n].block()
		next := n + 1
		for next < len(tx.left) && tx.left[next].block() == key {
			next++
		}
		w, ok := o.committing(key, tx.left[n:next])
		if ok && len(writes) > 0 && bytes+len(w.value) > writeBytesMax {
			break
		}
		if ok {
			writes = append(writes, w)
			bytes += len(w.value)
		}
		n = next
	}
	tx.left = tx.left[n:]
	if len(tx.left) > 0 {
		o.writePart(writes, nil, func(code protocol.ErrorCode) {
			if code != protocol.None {
				o.endedOpen(tx, code)
				return
			}
			o.applyLeft(tx)
		})
		return
	}
	pending := coordinator.Op{Key: coordinator.KeyPending(o.shard, o.name, tx.producer), Delete: true}
	o.writePart(writes, []coordinator.Op{pending}, func(code protocol.ErrorCode) { o.endedOpen(tx, code) })
}

// committing returns the write of a block with a transaction's offsets, and false if there is nothing to write: offsets that were
// committed after those of the transaction were sent stay (OffsetMetadataManager.replayEndTransactionMarker). A commit cannot be
// refused any more: if the block is too large, its metadata is left out.
func (o *owner) committing(key blockKey, changes []change) (blockWrite, bool) {
	content := coordinator.GroupOffsets{}
	changed := false
	if b := o.offsets[key]; b != nil {
		maps.Copy(content, b.latest)
		changed = b.inFlight > 0 // should the later commit fail, this one must not be missing
	}
	for _, ch := range changes {
		if last, ok := content[ch.partition]; !ok || last.CommitMs <= ch.offset.CommitMs {
			content[ch.partition] = *ch.offset
			changed = true
		}
	}
	w := blockWrite{key: key, content: content, value: coordinator.Encode(content)}
	if len(w.value) > coordinator.ValueBytesMax {
		o.c.log.Warn("offsets of a transaction are committed without metadata, which is too large", "group", o.name, "topic", key.topic)
		for p, offset := range content {
			offset.Metadata = ""
			content[p] = offset
		}
		w.value = coordinator.Encode(content)
	}
	return w, changed
}

// endedOpen takes the outcome of the end of a transaction.
func (o *owner) endedOpen(tx *openTransaction, code protocol.ErrorCode) {
	waiting := tx.waiting
	tx.left, tx.waiting = nil, nil
	if code == protocol.None {
		o.forgetOpen(tx)
	}
	for _, done := range waiting {
		done(code)
	}
}

// strip takes partitions out of what is pending, as their offsets are being deleted.
func (o *owner) strip(named func(partition) bool, done func(protocol.ErrorCode)) {
	missing, worst := 1, protocol.None
	finish := func(code protocol.ErrorCode) {
		if worst == protocol.None {
			worst = code
		}
		if missing--; missing == 0 {
			done(worst)
		}
	}
	for _, producer := range slices.Sorted(maps.Keys(o.open)) {
		tx := o.open[producer]
		tx.left = slices.DeleteFunc(tx.left, func(ch change) bool { return named(partition{ch.topic, ch.partition}) })
		kept, gone := tx.offsets.split(named)
		tx.offsets = kept
		stripped := len(gone) > 0
		if tx.request != nil {
			wanted, refused := tx.request.offsets.split(named)
			tx.request.offsets = wanted
			stripped = stripped || len(refused) > 0
		}
		if !stripped || tx.ending() {
			continue
		}
		missing++
		o.storePending(tx, func(code protocol.ErrorCode) {
			if code != protocol.None {
				tx.offsets = gone.with(tx.offsets)
			}
			finish(code)
		})
	}
	finish(protocol.None)
}

// discardOpen deletes everything pending, with the group.
func (o *owner) discardOpen(done func(protocol.ErrorCode)) {
	if len(o.open) == 0 {
		done(protocol.None)
		return
	}
	all := coordinator.Op{Key: coordinator.PrefixGroupPending(o.shard, o.name), Delete: true, Prefix: true}
	o.write([]coordinator.Op{all}, func(code protocol.ErrorCode) {
		if code == protocol.None {
			for _, tx := range o.open {
				tx.request = nil // committed before the deletion, as it were
				o.forgetOpen(tx)
			}
		}
		done(code)
	})
}

// loadPending enters what was pending when the owner came.
func (o *owner) loadPending(items []coordinator.Item) error {
	for _, item := range items {
		_, producer, err := coordinator.ParseKeyPending(item.Key)
		if err != nil {
			return err
		}
		stored, err := coordinator.Decode[coordinator.PendingOffsets](item)
		if err != nil {
			return err
		}
		o.open[producer] = &openTransaction{
			id: stored.TransactionalID, producer: producer, epoch: stored.Epoch, offsets: stored.Offsets, doubt: true,
		}
		o.indexProducer(producer)
		o.askAt = o.c.deps.Now()
	}
	return nil
}

// doubtful notes that a transaction's coordinator is to be asked.
func (o *owner) doubtful(tx *openTransaction) {
	tx.doubt = true
	if o.askAt.IsZero() {
		o.askAt = o.c.deps.Now().Add(o.c.cfg.VerifyInterval)
	}
}

// askDoubts asks about the transactions in doubt, again and again until there are none.
func (o *owner) askDoubts() {
	o.askAt = time.Time{}
	for _, producer := range slices.Sorted(maps.Keys(o.open)) {
		tx := o.open[producer]
		if !tx.doubt {
			continue
		}
		o.doubtful(tx)
		if tx.asking || tx.request != nil || tx.ending() {
			continue
		}
		tx.asking = true
		o.aside(func(ctx context.Context) func() {
			found := o.c.examine(ctx, Transaction{ID: tx.id, Producer: tx.producer, Epoch: tx.epoch, Shard: o.shard})
			return func() { o.examined(tx, found) }
		})
	}
}

// examined takes the answer about a transaction that was in doubt, unless something has happened to it since.
func (o *owner) examined(tx *openTransaction, found certainty) {
	tx.asking = false
	switch {
	case o.open[tx.producer] != tx, !tx.doubt, tx.request != nil, tx.ending():
	case found == stillOpen:
		tx.doubt = false
	case found == over:
		o.c.log.Info("offsets of a transaction that is over are dropped", "group", o.name, "transaction", tx.id,
			"producer", tx.producer, "epoch", tx.epoch)
		o.end(tx, nil, func(code protocol.ErrorCode) {
			if code == protocol.None {
				o.c.metrics.txnEnds.WithLabelValues(outcomeDropped).Inc()
			}
		})
	}
}
