package txn

import (
	"slices"
	"time"

	"github.com/varve-io/varve/protocol"
)

// request takes a request. It waits while something is under way, unless nothing can change what it is told.
func (m *Machine) request(now time.Time, e Event) {
	if m.answeredAtOnce(e) {
		return
	}
	if m.busy() && len(m.parked) >= m.cfg.ParkedMax {
		m.refuse(requestOf(e), protocol.ConcurrentTransactions)
		return
	}
	m.parked = append(m.parked, e)
	m.advance(now)
}

func requestOf(e Event) RequestID {
	switch e := e.(type) {
	case Init:
		return e.Request
	case Add:
		return e.Request
	case End:
		return e.Request
	}
	return 0
}

// answeredAtOnce answers what does not depend on what is under way: requests that contradict themselves, and partitions
// that are in the transaction while others are being added. The latter is what most of a producer's partitions ask.
func (m *Machine) answeredAtOnce(e Event) bool {
	switch e := e.(type) {
	case Init:
		switch {
		case (e.ProducerID == protocol.NoProducerID) != (e.Epoch == protocol.NoProducerEpoch):
			m.refuse(e.Request, protocol.InvalidRequest)
			return true
		case e.TimeoutMs <= 0 || time.Duration(e.TimeoutMs)*time.Millisecond > m.cfg.TimeoutMax:
			m.refuse(e.Request, protocol.InvalidTransactionTimeout)
			return true
		}
	case Add:
		adding := m.record.State == Ongoing && m.writing != nil && m.writing.next.State == Ongoing
		if adding && m.holds(e.ProducerID, e.Epoch) == current && m.partitions().Missing(e.Partitions) == nil {
			m.refuse(e.Request, protocol.None)
			return true
		}
	}
	return false
}

// cancel ends the wait of a request. What it has caused goes on.
func (m *Machine) cancel(e Cancel) {
	i := slices.IndexFunc(m.parked, func(p Event) bool { return requestOf(p) == e.Request })
	if i >= 0 && e.Request != 0 {
		m.parked = slices.Delete(m.parked, i, i+1)
		m.refuse(e.Request, protocol.ConcurrentTransactions)
	}
}

// claim is what a producer id and an epoch are, as far as the record tells.
type claim uint8

const (
	foreign claim = iota // of another producer, or fenced
	current              // the producer's own
	former               // what it had before; it has not got the answer that told it the current one
)

// holds judges a producer id and an epoch. The epoch above epochMax is nobody's.
func (m *Machine) holds(id protocol.ProducerID, epoch protocol.ProducerEpoch) claim {
	r := &m.record
	switch {
	case r.State == Dead || id < 0:
		return foreign
	case id == r.ProducerID && epoch == r.Epoch && epoch <= epochMax:
		return current
	case id == r.LastProducerID && epoch == r.LastEpoch:
		return former
	}
	return foreign
}

// check is what Kafka tells a producer that is not the current one.
func (m *Machine) check(id protocol.ProducerID, epoch protocol.ProducerEpoch) protocol.ErrorCode {
	switch {
	case m.record.State == Dead || id != m.record.ProducerID:
		return protocol.InvalidProducerIDMapping
	case m.holds(id, epoch) != current:
		return protocol.ProducerFenced
	}
	return protocol.None
}

// judge decides on a request while nothing is under way, but for a write that is about to be: of partitions, which more
// may join. It returns false if the request must wait.
func (m *Machine) judge(now time.Time, e Event) bool {
	if add, ok := e.(Add); ok {
		return m.add(now, add)
	}
	if m.writing != nil {
		return false
	}
	switch e := e.(type) {
	case Init:
		return m.init(now, e)
	case End:
		m.end(now, e)
	}
	return true
}

// init gives the producer an epoch of its own. An open transaction is aborted first.
func (m *Machine) init(now time.Time, e Init) bool {
	r, claim := m.record, m.holds(e.ProducerID, e.Epoch)
	switch {
	case r.State != Dead && e.ProducerID >= 0 && claim == foreign,
		// Who has begun a transaction knows the current epoch: this is somebody else, or from long ago.
		r.State == Ongoing && claim == former:
		m.refuse(e.Request, protocol.ProducerFenced)
		return true
	case r.State == Ongoing:
		m.fence(now, "a producer was initialized")
		return false
	}
	next := r
	next.State, next.Partitions, next.StartedMs, next.TimeoutMs = Empty, nil, -1, e.TimeoutMs
	if lost := claim == former && r.Epoch <= epochMax; !lost && !next.raise(e.ProducerID, e.Epoch, e.FreshID) {
		m.refuse(e.Request, protocol.ConcurrentTransactions)
		return true
	}
	m.stage(now, next, e.Request, Result{ProducerID: next.ProducerID, Epoch: next.Epoch})
	return true
}

// raise gives the producer the next epoch, or a new id if there is none, and remembers what it comes from. It returns
// false if there is no new id.
func (s *Snapshot) raise(id protocol.ProducerID, epoch protocol.ProducerEpoch, fresh protocol.ProducerID) bool {
	if s.ProducerID < 0 || s.Epoch >= epochMax {
		if fresh < 0 {
			return false
		}
		s.ProducerID, s.Epoch = fresh, protocol.NoProducerEpoch
	}
	s.Epoch++
	s.LastProducerID, s.LastEpoch = id, epoch
	return true
}

// add begins a transaction, or adds to it, or tells what is in it.
func (m *Machine) add(now time.Time, e Add) bool {
	if m.writing != nil && (m.writing.next.State != Ongoing || e.VerifyOnly) {
		return false
	}
	missing := m.partitions().Missing(e.Partitions)
	if code := m.check(e.ProducerID, e.Epoch); code != protocol.None {
		m.refuse(e.Request, code)
		return true
	}
	if m.record.State == Ongoing && e.Sent {
		m.offsets = m.offsets.Union(missing)
		missing = nil
	}
	if e.VerifyOnly || m.record.State == Ongoing && missing == nil {
		result := codeResult(protocol.None)
		result.Missing = missing
		m.reply(e.Request, result)
		return true
	}
	next := m.record
	if m.writing != nil {
		next = m.writing.next
	}
	if next.State != Ongoing {
		next.State, next.Partitions, next.StartedMs = Ongoing, nil, now.UnixMilli()
	}
	next.Partitions = next.Partitions.Union(missing)
	if next.Partitions.ofTopics() > m.cfg.PartitionsMax {
		m.note("partitions refused", "more than a transaction may have")
		m.refuse(e.Request, protocol.TransactionAbortable)
		return true
	}
	m.stage(now, next, e.Request, codeResult(protocol.None))
	return true
}

// end is TransactionCoordinator.endTransaction (for Version2) and endTransactionWithTV1, for a machine at rest.
func (m *Machine) end(now time.Time, e End) {
	state := m.record.State
	complete := state == CompleteCommit || state == CompleteAbort
	// A producer that has not got the answer asks with what it had before the decision raised its epoch.
	again := e.Version2 && m.record.Version2 && complete && m.holds(e.ProducerID, e.Epoch) == former
	same := complete && e.Commit == (state == CompleteCommit)
	if code := m.check(e.ProducerID, e.Epoch); code != protocol.None && !again {
		m.refuse(e.Request, code)
		return
	}
	switch {
	case state == Ongoing:
		m.decide(now, e)
	case same && (again || !e.Version2) && m.record.Epoch <= epochMax:
		m.reply(e.Request, Result{ProducerID: m.record.ProducerID, Epoch: m.record.Epoch})
	case same && again, e.Version2 && !e.Commit && !again:
		m.abortNothing(now, e)
	default:
		m.refuse(e.Request, protocol.InvalidTxnState)
	}
}

// decide flips the record to the outcome that the producer asks for.
func (m *Machine) decide(now time.Time, e End) {
	next := m.record
	next.State, next.Version2 = PrepareAbort, e.Version2
	if e.Commit {
		next.State = PrepareCommit
	}
	result := Result{ProducerID: next.ProducerID, Epoch: next.Epoch}
	if e.Version2 {
		next.LastProducerID, next.LastEpoch = next.ProducerID, next.Epoch
		next.Epoch++
		result.Epoch = next.Epoch
		if next.Epoch > epochMax {
			if e.FreshID < 0 {
				m.refuse(e.Request, protocol.ConcurrentTransactions)
				return
			}
			next.NextProducerID = e.FreshID
			result.ProducerID, result.Epoch = e.FreshID, 0
		}
	}
	m.stage(now, next, e.Request, result)
}

// abortNothing raises the epoch for a producer of the second version that aborts without having added anything, as far
// as the coordinator knows: what it has sent to partitions must not get in any more. There is nothing to mark, so this
// takes one write, where Kafka goes through PrepareAbort. It also serves a producer whose transaction timed out in the
// last epoch: what fenced it is nobody's.
func (m *Machine) abortNothing(now time.Time, e End) {
	next := m.record
	if !next.raise(e.ProducerID, e.Epoch, e.FreshID) {
		m.refuse(e.Request, protocol.ConcurrentTransactions)
		return
	}
	next.State, next.Version2, next.StartedMs = CompleteAbort, true, now.UnixMilli()
	m.stage(now, next, e.Request, Result{ProducerID: next.ProducerID, Epoch: next.Epoch})
}
