// Package txn decides everything about one transactional id: which producer has it, which partitions take part in its
// transaction, how that ends, and what the next request is told.
//
// # Model
//
// A [Machine] is one transactional id. It is fed with events by [Machine.Step] and answers with effects, to be carried
// out in their order by the caller: reply to a request, persist a snapshot, send markers, take note. It has no goroutine,
// clock, lock or randomness: the time comes with each event, new producer ids with [Init] and [End], and the same events
// give the same effects. [Machine.Deadline] says when the next [Tick] is due.
//
//	                       Add                     End (commit)                 Marked
//	Dead --Init--> Empty ---------> Ongoing -----------------> PrepareCommit ---------> CompleteCommit
//	                 ^     Add    ^    |                                                    |   |
//	                 |            |    | End (abort), timeout, Init            Marked       |   |
//	                 |            |    +---------------------> PrepareAbort ---------> CompleteAbort
//	                 |            +---------------------------------------------------------+   |
//	                 +------------------------------- Init -------------------------------------+
//
// Every arrow but Marked is a write of the record, and takes effect, with its answers, when that is durable. The write
// of a Prepare state is the decision: after it, there is no other outcome, and markers are sent ([Mark]) until they are
// durable in all partitions ([Marked]). An Add is answered when the partition is in the durable record, so the markers
// reach every partition that a producer may write to. A transaction costs two writes (Ongoing, Prepare) and one more for
// each round of partitions that come later, none for groups; the completion goes along with the next write, or alone if none comes for a
// second.
//
// One write is under way at a time. What Kafka answers with CONCURRENT_TRANSACTIONS, because a write or markers are
// under way, waits here, in order, and is judged when the machine has come to rest ([Cancel] ends the wait). Adds that
// have waited share a write.
//
// # Offsets
//
// Shards of groups (partitions of the zero topic) join an open transaction without a write if what was sent to the groups is durable ([Add].Sent): their coordinators ask when it is, and name the
// transaction there, so that who takes the id over finds them ([Loaded]). They are in the record with the next write, and so in every decision.
//
// # Epochs
//
// Who has the record's producer id and epoch is the producer; everybody else is fenced. The epoch goes up with each
// InitProducerId, with each end in the second version of the protocol (Version2, KIP-890), and when a transaction is
// aborted against its producer: by its timeout, or by an InitProducerId, which waits until the markers are durable.
// Epoch 32766 is the last that a producer gets; then it gets another producer id. 32767 fences it. The record keeps what
// the current claim came from (LastProducerID and LastEpoch), so that a producer that has missed an answer can ask again.
//
// # Failure
//
// A write fails for certain or not at all, and the machine is as before: who waits is told the code. After a crash,
// [Load] takes up what is durable. Ongoing: the transaction goes on, with its timeout. Prepare: [Loaded] asks for the
// markers again, whether or not they were written; nothing new has begun, for that would have been another write. A
// transaction whose completion was not durable is completed a second time. What an etcd that was lost and
// rebuilt may not know of a producer, a second round of markers ends (Snapshot.Fence).
//
// # Kafka
//
// The behaviour, down to the error codes, is that of Kafka 4.1's TransactionCoordinator and TransactionMetadata: KIP-98,
// KIP-360 (recovery by InitProducerId), KIP-588 (timeouts), KIP-890 (verification, epochs). Where it differs:
//
//   - Requests wait instead of being sent back, as said above. PRODUCER_FENCED and the like are also told at rest only.
//   - An InitProducerId with a claim that is fenced leaves an open transaction alone. Kafka aborts it first.
//   - A producer that is fenced, or retries, in the last epoch gets a new producer id where Kafka fails
//     (KAFKA-20090). No answer ever carries epoch 32767.
//   - An abort without partitions, which raises the epoch, is one write instead of two.
//   - A transaction has at most PartitionsMax partitions: more are answered TRANSACTION_ABORTABLE.
//   - Dead is an id without a record, also one that was never used.
//
// PRODUCER_FENCED and TRANSACTION_ABORTABLE are not known to old clients: the caller puts INVALID_PRODUCER_EPOCH and
// INVALID_TXN_STATE in their place, by the version of the request.
package txn

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/varve-io/varve/protocol"
)

// State is where a transactional id stands.
type State uint8

// States, as Kafka names them. Dead stands for an id without a record: it was never used, or has expired.
const (
	Dead           State = iota // no record
	Empty                       // no transaction since the producer came
	Ongoing                     // a transaction is open
	PrepareCommit               // it is decided, the markers are on their way
	PrepareAbort                // likewise
	CompleteCommit              // the markers are written
	CompleteAbort               // likewise, or there were none to write
)

var stateNames = [...]string{"Dead", "Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort"}

// String returns the name that DescribeTransactions shows.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// ParseState undoes [State.String].
func ParseState(name string) (State, error) {
	for i, n := range stateNames {
		if n == name {
			return State(i), nil
		}
	}
	return Dead, fmt.Errorf("parse state of transaction %q: want one of %v", name, stateNames)
}

// MarshalText implements encoding.TextMarshaler with the form of [State.String].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see [ParseState].
func (s *State) UnmarshalText(text []byte) error {
	parsed, err := ParseState(string(text))
	*s = parsed
	return err
}

// Config holds the limits of a transactional id. All must be positive.
type Config struct {
	TimeoutMax    time.Duration // of a transaction (transaction.max.timeout.ms)
	Expiration    time.Duration // without use, after which [Expire] deletes the record (transactional.id.expiration.ms)
	PartitionsMax int           // most partitions in a transaction, shards of groups aside
	ParkedMax     int           // most requests that wait
}

const (
	// epochMax is the highest epoch that a producer gets: there is always one above it that fences it
	// (TransactionMetadata.isEpochExhausted).
	epochMax protocol.ProducerEpoch = math.MaxInt16 - 1

	// restDelay is how long a completion waits for a write to go along with, and how long a write that nobody asked for
	// waits after a failed one.
	restDelay = time.Second
)

// noRecord is what a transactional id has that has no record.
var noRecord = Snapshot{
	Format: snapshotFormat, State: Dead, ProducerID: protocol.NoProducerID, Epoch: protocol.NoProducerEpoch,
	LastProducerID: protocol.NoProducerID, LastEpoch: protocol.NoProducerEpoch, NextProducerID: protocol.NoProducerID, StartedMs: -1,
}

// Machine is one transactional id. It is not safe for concurrent use.
type Machine struct {
	cfg Config

	record    Snapshot  // what is durable; but see lazy
	offsets   Set       // shards of groups in the open transaction, in the record or not
	lazy      bool      // the record says Complete, what is durable says Prepare
	notBefore time.Time // no write of the machine's own accord before it

	writes  uint64 // number of the newest Persist, Delete or Mark of a loaded decision
	writing *write // under way, or, within a step, about to be; nil for none
	marking uint64 // number of the Mark under way; 0 for none

	parked []Event // requests that wait, in order; none unless something is under way that they wait for

	effects []Effect // of the step under way
}

// write is a change on its way to the store.
type write struct {
	number  uint64
	next    Snapshot // the record after it; Dead to delete it
	answers []Reply  // when it is durable
}

// New returns an id that has no record.
func New(cfg Config, _ time.Time) *Machine { return &Machine{cfg: cfg, record: noRecord} }

// Step applies one event and returns what must be done about it, in this order. Times must not go back.
func (m *Machine) Step(now time.Time, event Event) []Effect {
	m.effects = nil
	switch e := event.(type) {
	case Init, Add, End:
		m.request(now, e)
	case Cancel:
		m.cancel(e)
	case Expire:
		m.expire(now)
	case Persisted:
		m.persisted(now, e)
	case Marked:
		m.marked(now, e)
	case Loaded:
		m.loaded(now, e)
	case Tick:
		m.advance(now)
	}
	effects := m.effects
	m.effects = nil
	return effects
}

// Deadline returns when the next Tick is due, and false if none is. A Tick that comes early, or in vain, is harmless.
func (m *Machine) Deadline() (time.Time, bool) {
	switch {
	case m.writing != nil:
		return time.Time{}, false
	case m.record.State == Ongoing:
		return m.timeout(), true
	case m.lazy:
		return m.notBefore, true
	}
	return time.Time{}, false
}

// timeout returns when the open transaction is aborted.
func (m *Machine) timeout() time.Time {
	at := time.UnixMilli(m.record.StartedMs).Add(time.Duration(m.record.TimeoutMs) * time.Millisecond)
	if at.Before(m.notBefore) {
		return m.notBefore
	}
	return at
}

// State returns where the id stands.
func (m *Machine) State() State { return m.record.State }

// Idle tells whether nothing is lost by forgetting the machine and loading it again later, or making it anew if it is Dead.
func (m *Machine) Idle() bool {
	return !m.busy() && !m.lazy && m.record.State != Ongoing
}

// NeedsID tells whether an [Init] or [End] that came now might need a producer id that was never used. If one comes
// without, and needs it after all, it is answered CONCURRENT_TRANSACTIONS, and the client tries again.
func (m *Machine) NeedsID() bool {
	// What is under way, and an abort before an InitProducerId, may raise the epoch first.
	return m.record.State == Dead || m.record.Epoch >= epochMax-2 || m.writing != nil && m.writing.next.State == Dead
}

// partitions are those of the open transaction, or of the one whose markers are on their way.
func (m *Machine) partitions() Set {
	if len(m.offsets) == 0 {
		return m.record.Partitions
	}
	return m.record.Partitions.Union(m.offsets)
}

// busy tells whether requests must wait: for a write, or for markers.
func (m *Machine) busy() bool {
	return m.writing != nil || m.record.State == PrepareCommit || m.record.State == PrepareAbort
}

// String describes the id in a line, for tests and for people: everything that decides what it does next.
func (m *Machine) String() string {
	r := m.record
	if r.State == Dead {
		return m.describe("Dead")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s producer=%d/%d", r.State, r.ProducerID, r.Epoch)
	if r.LastProducerID >= 0 {
		fmt.Fprintf(&b, " last=%d/%d", r.LastProducerID, r.LastEpoch)
	}
	if r.NextProducerID >= 0 {
		fmt.Fprintf(&b, " next=%d", r.NextProducerID)
	}
	if r.Version2 {
		b.WriteString(" v2")
	}
	if all := m.partitions(); len(all) > 0 {
		text, _ := all.MarshalText() // never fails
		fmt.Fprintf(&b, " [%s]", text)
	}
	if len(r.Fence) > 0 {
		text, _ := r.Fence.MarshalText() // never fails
		fmt.Fprintf(&b, " fence=[%s]", text)
	}
	return m.describe(b.String())
}

// describe adds what is not in the record.
func (m *Machine) describe(record string) string {
	var b strings.Builder
	b.WriteString(record)
	if m.lazy {
		b.WriteString(" lazy")
	}
	if m.writing != nil {
		fmt.Fprintf(&b, " writing=%d", m.writing.number)
	}
	if m.marking != 0 {
		fmt.Fprintf(&b, " marking=%d", m.marking)
	}
	if len(m.parked) > 0 {
		fmt.Fprintf(&b, " parked=%d", len(m.parked))
	}
	return b.String()
}

func (m *Machine) reply(request RequestID, result Result) {
	if request != 0 {
		m.effects = append(m.effects, Reply{Request: request, Result: result})
	}
}

// refuse answers with a code, which may be None.
func (m *Machine) refuse(request RequestID, code protocol.ErrorCode) {
	m.reply(request, codeResult(code))
}

func codeResult(code protocol.ErrorCode) Result {
	return Result{Code: code, ProducerID: protocol.NoProducerID, Epoch: protocol.NoProducerEpoch}
}

func (m *Machine) note(message, reason string) {
	m.effects = append(m.effects, Note{
		Message: message, ProducerID: m.record.ProducerID, Epoch: m.record.Epoch, Reason: reason,
	})
}
