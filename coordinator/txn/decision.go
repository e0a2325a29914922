package txn

import (
	"time"

	"github.com/varve-io/varve/protocol"
)

// advance goes on from where nothing is under way: first what is due, then the requests that wait, in their order, up to
// one that begins a write which the next cannot join.
func (m *Machine) advance(now time.Time) {
	if m.busy() {
		return
	}
	if m.record.State == Ongoing && !now.Before(m.timeout()) {
		m.fence(now, "it took longer than its timeout")
	}
	for len(m.parked) > 0 && m.judge(now, m.parked[0]) {
		m.parked = m.parked[1:]
	}
	if m.writing == nil && m.lazy && !now.Before(m.notBefore) {
		m.stage(now, m.record, 0, Result{})
	}
	if m.writing != nil {
		m.writes++
		m.writing.number = m.writes
		m.effects = append(m.effects, Persist{Write: m.writes, Snapshot: m.writing.next})
	}
}

// stage prepares the write of a record, or puts it in the place of the one that is about to be written. The request is
// answered when it is durable.
func (m *Machine) stage(now time.Time, next Snapshot, request RequestID, result Result) {
	if m.writing == nil {
		m.writing = &write{}
	}
	next.UpdatedMs = now.UnixMilli()
	if m.record.State == Ongoing {
		next.Partitions = next.Partitions.Union(m.offsets)
	}
	m.writing.next = next
	m.writing.answers = append(m.writing.answers, Reply{Request: request, Result: result, Written: true})
}

// fence aborts the open transaction against its producer, whose epoch is no good from here on. If the producer is there
// after all, it may come with InitProducerId, or (in the second version) with EndTxn to abort, and gets the raised epoch.
func (m *Machine) fence(now time.Time, reason string) {
	m.note("transaction is aborted", reason)
	next := m.record
	next.LastProducerID, next.LastEpoch = next.ProducerID, next.Epoch
	next.State, next.Version2 = PrepareAbort, true
	next.Epoch++ // one is always left: see epochMax
	m.stage(now, next, 0, Result{})
}

// persisted takes the outcome of a write. If it failed, nothing was changed, and who waits is told rather than left to
// wait for the next attempt.
func (m *Machine) persisted(now time.Time, e Persisted) {
	w := m.writing
	if w == nil || w.number != e.Write {
		return
	}
	m.writing = nil
	if e.Code != protocol.None {
		m.failed(now, w, e.Code)
		return
	}
	m.record, m.lazy, m.notBefore = w.next, false, time.Time{}
	if m.record.State != Ongoing {
		m.offsets = nil
	}
	for _, a := range w.answers {
		if a.Request != 0 {
			m.effects = append(m.effects, a)
		}
	}
	if m.busy() {
		m.mark(w.number)
		return
	}
	m.advance(now)
}

func (m *Machine) failed(now time.Time, w *write, code protocol.ErrorCode) {
	m.note("record could not be stored", code.String())
	m.notBefore = now.Add(restDelay)
	for _, a := range w.answers {
		m.refuse(a.Request, code)
	}
	for _, e := range m.parked {
		m.refuse(requestOf(e), code)
	}
	m.parked = nil
}

// mark asks for the markers of the durable decision.
func (m *Machine) mark(number uint64) {
	m.marking = number
	m.effects = append(m.effects, Mark{
		Write: number, ProducerID: m.record.ProducerID, Epoch: m.record.Epoch,
		Commit: m.record.State == PrepareCommit, Version2: m.record.Version2, Partitions: m.record.Partitions,
	})
}

// loaded asks again for the markers of a decision that was found, which is harmless for those that are written.
func (m *Machine) loaded(now time.Time, e Loaded) {
	if m.busy() && m.writing == nil && m.marking == 0 {
		m.writes++
		m.mark(m.writes)
		return
	}
	if m.record.State == Ongoing {
		m.offsets = m.offsets.Union(e.Offsets)
	}
	m.advance(now)
}

// marked ends the transaction. That it ended is durable with the next write: until then, whoever takes the id over
// writes the markers again, before anything new begins.
func (m *Machine) marked(now time.Time, e Marked) {
	if m.marking == 0 || e.Write != m.marking {
		return
	}
	r := &m.record
	if len(r.Fence) > 0 { // not durable: who takes the id over begins with the decision's markers, which do nothing where these are
		r.State, r.Version2, r.Epoch, r.Partitions, r.Fence = PrepareAbort, false, epochMax, r.Fence, nil
		m.writes++
		m.mark(m.writes)
		return
	}
	if r.State == PrepareCommit {
		r.State = CompleteCommit
	} else {
		r.State = CompleteAbort
	}
	if r.NextProducerID >= 0 {
		r.ProducerID, r.Epoch, r.NextProducerID = r.NextProducerID, 0, protocol.NoProducerID
	}
	r.Partitions, r.UpdatedMs = nil, now.UnixMilli()
	m.marking, m.lazy, m.notBefore = 0, true, now.Add(restDelay)
	m.advance(now)
}

// expire deletes the record of an id that nobody has used for long. Its producer id is never given out again, so a
// producer that comes back after all is refused.
func (m *Machine) expire(now time.Time) {
	unused := now.Sub(time.UnixMilli(m.record.UpdatedMs))
	if m.busy() || m.record.State == Dead || m.record.State == Ongoing || unused < m.cfg.Expiration {
		return
	}
	m.note("transactional id has expired", "")
	m.writes++
	m.writing = &write{number: m.writes, next: noRecord}
	m.effects = append(m.effects, Delete{Write: m.writes})
}
