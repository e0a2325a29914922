package check

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// TxnHistory is what happened to some logs.
type TxnHistory struct {
	// Operations are in the order in which each process made its own; how processes interleave does not matter.
	Operations []Operation
	// Final is each log as it was read after the load at read_committed, from its start to its end. Nil says that nobody did, so that
	// what is above all reads is no finding.
	Final [][]Record
}

// Operation is one transaction, or else one send or one poll.
type Operation struct {
	// Process is a producer and a consumer that do one operation after the other. Whoever carries on after an Unknown outcome
	// with new clients is another process.
	Process int32
	// Group is the consumer group whose offsets are committed with the transaction; 0 for none.
	Group int32
	// Outcome is Acked for polls outside of a transaction.
	Outcome Outcome
	// Asked is when the commit was first asked for, or a send outside of a transaction was begun, by a clock that the whole
	// history shares. Zero if nobody knows.
	Asked time.Duration
	// Confirmed is when the commit was acknowledged, by the same clock. Offsets alone needs it, where Group is given.
	Confirmed time.Duration
	// Uncommitted says that the polls are at read_uncommitted. They serve to find out what is at an offset, and for nothing else
	// but Skipped and Backward.
	Uncommitted bool
	// Sends are in the order in which they were made.
	Sends []TxnSend
	// Polls count whatever becomes of the operation.
	Polls []Poll
}

// TxnSend is a record that an operation sent.
type TxnSend struct {
	Log     int32
	ID      ID // unique in the history
	Content uint64
	Offset  int64 // -1 if it was not acknowledged
}

// Poll is what a consumer was given at once.
type Poll struct {
	// Ended is when the records were there, by the clock of Operation.Asked.
	Ended time.Duration
	// Moved are the logs whose position was set anew since the poll before, by the consumer or by a rebalance.
	Moved   []int32
	Records []Read
}

// Read is a record of one of several logs.
type Read struct {
	Log int32
	Record
}

// Transactions returns the anomalies of a history. It changes nothing of it.
func Transactions(h TxnHistory) []Finding {
	a := newAnalysis(h)
	a.offsets()
	a.prove()
	a.reads()
	a.missing()
	a.order()
	a.positions()
	a.groups()
	a.circles()
	return a.findings
}

// analysis is what Transactions knows.
type analysis struct {
	history    TxnHistory
	operations []Operation // the last one is the final read, if there is one
	committed  []bool      // by operation
	sends      map[ID]*placed
	logs       []txnLog
	findings   []Finding
}

// placed is a send, its operation, and where it is.
type placed struct {
	*TxnSend
	operation int
	at        int64 // -1 if nobody knows
	read      bool  // at read_committed
	final     bool  // in the final read
	misplaced bool  // reported as Duplicate or WrongOffset
	unstable  bool  // reported as Unstable
}

// txnLog is one log.
type txnLog struct {
	ids map[int64]ID // by offset
	// all and committed are the offsets at which there are records, ascending; committed has those of committed operations alone.
	all, committed []int64
	highest        int64 // offset read at read_committed, -1 for none
}

func newAnalysis(h TxnHistory) *analysis {
	a := &analysis{history: h, operations: h.Operations, sends: make(map[ID]*placed)}
	if h.Final != nil {
		a.operations = append(slices.Clip(h.Operations), finalRead(h))
	}
	logs := len(h.Final)
	for i := range a.operations {
		o := &a.operations[i]
		for j := range o.Sends {
			s := &o.Sends[j]
			a.sends[s.ID] = &placed{TxnSend: s, operation: i, at: s.Offset}
			logs = max(logs, int(s.Log)+1)
		}
		for r := range readsOf(o) {
			logs = max(logs, int(r.Log)+1)
		}
	}
	a.committed, a.logs = make([]bool, len(a.operations)), make([]txnLog, logs)
	for i := range a.logs {
		a.logs[i].ids, a.logs[i].highest = make(map[int64]ID), -1
	}
	return a
}

// finalRead gives the final read as the operation of a process of its own.
func finalRead(h TxnHistory) Operation {
	o := Operation{Outcome: Acked}
	for i := range h.Operations {
		o.Process = max(o.Process, h.Operations[i].Process+1)
	}
	const never = time.Duration(1<<63 - 1)
	p := Poll{Ended: never}
	for log, records := range h.Final {
		for _, r := range records {
			p.Records = append(p.Records, Read{int32(log), r})
		}
	}
	o.Polls = []Poll{p}
	return o
}

// readsOf goes through all that an operation read.
func readsOf(o *Operation) iter.Seq[*Read] {
	return func(yield func(*Read) bool) {
		for i := range o.Polls {
			for j := range o.Polls[i].Records {
				if !yield(&o.Polls[i].Records[j]) {
					return
				}
			}
		}
	}
}

func (a *analysis) report(kind Kind, log int32, id ID, offset int64, format string, args ...any) {
	a.findings = append(a.findings, Finding{Kind: kind, Log: log, ID: id, Offset: offset, Detail: fmt.Sprintf(format, args...)})
}

// name tells which operation it is.
func (a *analysis) name(operation int) string {
	if operation == len(a.history.Operations) {
		return "the final read"
	}
	return fmt.Sprintf("operation %d of process %d", operation, a.operations[operation].Process)
}

// isFinal tells whether an operation is the final read.
func (a *analysis) isFinal(operation int) bool { return operation == len(a.history.Operations) }

// offsets finds out what is at each offset of each log.
func (a *analysis) offsets() {
	for i := range a.operations {
		for _, s := range a.operations[i].Sends {
			if s.Offset >= 0 {
				a.occupy(s.Log, s.Offset, s.ID)
			}
		}
	}
	for i := range a.operations {
		for r := range readsOf(&a.operations[i]) {
			a.occupy(r.Log, r.Offset, r.ID)
			a.place(r)
		}
	}
}

// occupy notes which record is at an offset.
func (a *analysis) occupy(log int32, offset int64, id ID) {
	l := &a.logs[log]
	other, known := l.ids[offset]
	switch {
	case !known:
		l.ids[offset] = id
	case other != id:
		a.report(Inconsistent, log, id, offset, "%v is there too", other)
	}
}

// place notes where a record is.
func (a *analysis) place(r *Read) {
	s := a.sends[r.ID]
	switch {
	case s == nil || s.misplaced: // nobody's, which record reports
	case s.at < 0:
		s.at = r.Offset
	case s.at == r.Offset && s.Log == r.Log:
	case s.Offset == s.at:
		s.misplaced = true
		a.report(WrongOffset, r.Log, r.ID, r.Offset, "acknowledged at offset %d of log %d", s.Offset, s.Log)
	default:
		s.misplaced = true
		a.report(Duplicate, r.Log, r.ID, r.Offset, "at offset %d of log %d too", s.at, s.Log)
	}
}

// prove finds out which operations are committed, and what of them was read.
func (a *analysis) prove() {
	for i := range a.operations {
		a.committed[i] = a.operations[i].Outcome == Acked
	}
	for i := range a.operations {
		o := &a.operations[i]
		if o.Uncommitted {
			continue
		}
		for r := range readsOf(o) {
			l, s := &a.logs[r.Log], a.sends[r.ID]
			l.highest = max(l.highest, r.Offset)
			if s == nil {
				continue
			}
			s.read, s.final = true, s.final || a.isFinal(i)
			if a.operations[s.operation].Outcome == Unknown {
				a.committed[s.operation] = true
			}
		}
	}
	for i := range a.logs {
		l := &a.logs[i]
		for offset, id := range l.ids {
			l.all = append(l.all, offset)
			if s := a.sends[id]; s != nil && a.committed[s.operation] {
				l.committed = append(l.committed, offset)
			}
		}
		slices.Sort(l.all)
		slices.Sort(l.committed)
	}
}

// reads judges each record that was read by itself.
func (a *analysis) reads() {
	for i := range a.operations {
		o := &a.operations[i]
		for _, p := range o.Polls {
			for j := range p.Records {
				a.record(i, &p.Records[j], p.Ended)
			}
		}
	}
}

// record judges a record that an operation read.
func (a *analysis) record(reader int, r *Read, ended time.Duration) {
	s := a.sends[r.ID]
	if s == nil {
		a.report(Foreign, r.Log, r.ID, r.Offset, "nobody sent it, and %s read it", a.name(reader))
		return
	}
	if r.Content != s.Content {
		a.report(Changed, r.Log, r.ID, r.Offset, "content has hash %016x, sent was %016x", r.Content, s.Content)
	}
	if a.operations[reader].Uncommitted {
		return
	}
	writer := &a.operations[s.operation]
	switch {
	case s.operation == reader:
		a.report(Precommitted, r.Log, r.ID, r.Offset, "%s sent it itself", a.name(reader))
	case writer.Outcome == Failed:
		a.report(AbortedRead, r.Log, r.ID, r.Offset, "%s read it, %s sent it and failed", a.name(reader), a.name(s.operation))
	case ended < writer.Asked:
		a.report(Premature, r.Log, r.ID, r.Offset, "%s read it at %v, %s asked to commit at %v",
			a.name(reader), ended, a.name(s.operation), writer.Asked)
	}
	if a.history.Final != nil && !s.final && !s.unstable && writer.Outcome != Failed {
		s.unstable = true
		a.report(Unstable, r.Log, r.ID, r.Offset, "%s read it, the final read did not", a.name(reader))
	}
}

// missing finds what is committed and was not read by anybody.
func (a *analysis) missing() {
	for i := range a.operations {
		if !a.committed[i] {
			continue
		}
		sends := a.operations[i].Sends
		there := slices.IndexFunc(sends, func(s TxnSend) bool { return a.sends[s.ID].read })
		for j := range sends {
			s := a.sends[sends[j].ID]
			below := s.at >= 0 && s.at <= a.logs[s.Log].highest
			switch {
			case s.read || !below && a.history.Final == nil:
			case there >= 0:
				a.report(Torn, s.Log, s.ID, s.at, "%s sent it, and %v in log %d, which was read", a.name(i), sends[there].ID, sends[there].Log)
			case below:
				a.report(Lost, s.Log, s.ID, s.at, "%s sent it, and offset %d was read", a.name(i), a.logs[s.Log].highest)
			default:
				a.report(Unseen, s.Log, s.ID, s.at, "%s sent it", a.name(i))
			}
		}
	}
}

// position names a process's place in a log.
type position struct {
	process int32
	log     int32
}

// order judges the offsets of each process's sends.
func (a *analysis) order() {
	last := make(map[position]*placed)
	for i := range a.operations {
		o := &a.operations[i]
		for _, send := range o.Sends {
			s := a.sends[send.ID]
			if s.at < 0 {
				continue
			}
			at := position{o.Process, s.Log}
			if before := last[at]; before != nil && s.at < before.at {
				a.report(Reordered, s.Log, s.ID, s.at, "%s sent it after %v, which is at offset %d", a.name(i), before.ID, before.at)
				continue
			}
			last[at] = s
		}
	}
}

// positions judges successive reads of each process.
func (a *analysis) positions() {
	last := make(map[position]int64)
	for i := range a.operations {
		o := &a.operations[i]
		for _, p := range o.Polls {
			for _, log := range p.Moved {
				delete(last, position{o.Process, log})
			}
			for j := range p.Records {
				r := &p.Records[j]
				at := position{o.Process, r.Log}
				if before, ok := last[at]; ok {
					a.step(i, r, before)
				}
				last[at] = r.Offset
			}
		}
	}
}

// step judges a record that was read after another of the same log.
func (a *analysis) step(reader int, r *Read, before int64) {
	if r.Offset <= before {
		a.report(Backward, r.Log, r.ID, r.Offset, "%s read it after offset %d", a.name(reader), before)
		return
	}
	l := &a.logs[r.Log]
	known := l.committed
	if a.operations[reader].Uncommitted {
		known = l.all
	}
	next, _ := slices.BinarySearch(known, before+1)
	if next < len(known) && known[next] < r.Offset {
		due := known[next]
		a.report(Skipped, r.Log, r.ID, r.Offset, "%s read it after offset %d, %v at offset %d was due", a.name(reader), before, l.ids[due], due)
	}
}

// groups finds what a group processed twice.
func (a *analysis) groups() {
	type key struct {
		group, log int32
		offset     int64
	}
	by := make(map[key]int)
	for i := range a.operations {
		o := &a.operations[i]
		if o.Group == 0 || !a.committed[i] {
			continue
		}
		for r := range readsOf(o) {
			k := key{o.Group, r.Log, r.Offset}
			if other, twice := by[k]; twice {
				a.report(Repeated, r.Log, r.ID, r.Offset, "by %s and %s", a.name(other), a.name(i))
			}
			by[k] = i
		}
	}
}
