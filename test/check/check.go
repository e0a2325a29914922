// Package check tells from a history whether a broker lost, doubled, reordered or changed records.
//
// A history is what writers sent and were told, and what readers saw. Each send carries an [ID] that is used once, so that a
// record tells which send it is of; client retries happen below a send. Every log (topic-partition) is checked by itself:
//
//	h := check.History{Sends: sends, Final: all}
//	for _, f := range check.Log(h) {
//		t.Error(f)
//	}
//
// # What is found
//
// With the offsets of acknowledgements nothing has to be guessed, so that one pass is enough (the linear check of Redpanda's
// chaos tests), O(n) in time and memory:
//
//   - offsets of the final read increase by one, from the log's start: [Gap], [Disorder];
//   - every acknowledged send is there, once, at the offset of its acknowledgement, with its content:
//     [Lost], [Duplicate], [WrongOffset], [Changed];
//   - no offset is acknowledged twice, and none at or below one that was acknowledged before the send began: [Reused],
//     [Stale];
//   - what is there is of a send that may have happened: [Foreign], [Undone];
//   - the sends of one writer are in the order in which it made them: [Reordered]. Only idempotent producers promise that;
//   - what a reader saw while the load ran is what the final read has at that offset: [Unstable].
//
// A send whose outcome is unknown may be there or not, but not twice.
//
// Of a compacted log ([History.Compacted]) the final read may leave out offsets, and what readers have seen, but of no key the newest record ([Lost]), unless that deletes the key: then it
// may be missing together with everything before it, and not alone ([Revived]).
//
// # Transactions
//
// [Transactions] checks operations on many logs at a time (after Jepsen's tests of Kafka). An [Operation] is a transaction, or
// a send or a poll outside of one; it has the records that it sent and those that it was given by polls, and an outcome: Acked is
// committed, Failed is never asked to commit, and Unknown is all between. A record at read_committed that is of an Unknown
// operation proves it committed, and that all else that it sent must be there.
//
//	h := check.TxnHistory{Operations: operations, Final: all}
//	for _, f := range check.Transactions(h) {
//		t.Error(f)
//	}
//
// What is found, in O(n log n):
//
//   - two records at one offset, whoever saw them and however: [Inconsistent]; one record at two offsets: [Duplicate], or
//     [WrongOffset] if one of them is that of its acknowledgement;
//   - a read_committed poll has what an operation sent that failed: [AbortedRead] (G1a), what its own transaction sent:
//     [Precommitted], or what nobody had asked to commit when the poll ended: [Premature];
//   - what was committed is missing below what others read: [Lost], or in the final read altogether: [Unseen]; if other records
//     of its transaction are there: [Torn]; it was there and is not any more: [Unstable];
//   - successive polls of a process leave out a record of a log, or go back: [Skipped], [Backward]. Those at
//     read_uncommitted may leave out nothing whatever, those at read_committed nothing that was committed;
//   - the sends of a process to a log have offsets in another order: [Reordered];
//   - operations that read of one another in a circle, so that one of them read what was not committed yet: [Circle] (G1c).
//     Kafka promises nothing about the order of writes of several transactions; circles that have such an edge are no findings;
//   - a group whose offsets go with its transactions committed a record's processing twice: [Repeated].
//
// [Offsets] checks what anybody was told of the offsets that a group committed with its transactions: they count from the
// decision on, and not before. [Stable] checks the last stable offsets that anybody was told.
//
// [Copies] compares what a group of copiers made of a log with that log, exactly once and in order, and [Sums] does the sums over
// accounts whose money transactions move.
package check

import "fmt"

// ID names a send: its writer, and which of this writer's sends it is. It is unique in the history of a log.
type ID struct {
	Writer int32
	Seq    int64
}

// String gives writer/sequence.
func (id ID) String() string { return fmt.Sprintf("%d/%d", id.Writer, id.Seq) }

// Outcome is what a writer knows of a send.
type Outcome uint8

// Outcomes. When in doubt a send is Unknown: a wrong Failed gives false alarms.
const (
	Unknown Outcome = iota // timed out, connection lost, or never answered
	Acked                  // acknowledged at Send.Offset
	Failed                 // certainly not done
)

// Send is one record that a writer sent.
type Send struct {
	ID      ID
	Content uint64 // hash
	// Key is what a later send to a compacted log supersedes this one by; of no meaning in others.
	Key uint64
	// Deletes says that a send to a compacted log deletes its key.
	Deletes bool
	// Floor is the highest offset that any writer of this log had been told when this send began, or -1.
	Floor   int64
	Outcome Outcome
	Offset  int64 // if Acked
}

// Record is one record that a reader saw.
type Record struct {
	Offset  int64
	ID      ID
	Content uint64 // hash
}

// History is what happened to one log.
type History struct {
	// Sends are in the order in which each writer made its own; how writers interleave does not matter.
	Sends []Send
	// Start is the offset at which the log begins.
	Start int64
	// Compacted says that records may be gone that others with their keys supersede. Sends that delete keys must not be Unknown.
	Compacted bool
	// Final is the whole log as it was read from Start after the load, in the order of reading.
	Final []Record
	// Seen is what readers saw while the load ran, in any order; a record may be in it several times.
	Seen []Record
}

// Kind is a kind of anomaly.
type Kind string

// Anomalies.
const (
	Lost        Kind = "lost"         // acknowledged, and not in the final read
	Duplicate   Kind = "duplicate"    // at more than one offset
	WrongOffset Kind = "wrong offset" // acknowledged at one offset, found at another
	Changed     Kind = "changed"      // other content than was sent
	Reordered   Kind = "reordered"    // after a later send of the same writer
	Foreign     Kind = "foreign"      // nobody sent it
	Undone      Kind = "undone"       // there, though its send certainly failed
	Reused      Kind = "reused"       // an offset that was acknowledged for two sends
	Stale       Kind = "stale"        // at or below an offset acknowledged before its send began
	Gap         Kind = "gap"          // an offset that the final read leaves out
	Disorder    Kind = "disorder"     // an offset of the final read that is not above the one before
	Unstable    Kind = "unstable"     // seen during the load, and not what the final read has at its offset
	Revived     Kind = "revived"      // there, though what deleted its key later is gone
)

// Anomalies of transactions.
const (
	Inconsistent Kind = "inconsistent offsets" // another record had been seen or acknowledged at this offset
	AbortedRead  Kind = "aborted read"         // read at read_committed, though its transaction was never asked to commit
	Precommitted Kind = "precommitted read"    // read by the transaction that sent it
	Premature    Kind = "premature read"       // read before its transaction was asked to commit
	Torn         Kind = "torn transaction"     // missing, while other records of its transaction are there
	Unseen       Kind = "unseen"               // committed, above all that was read, and not in the final read
	Skipped      Kind = "poll skip"            // the poll before ended at a record that is not the one before this
	Backward     Kind = "non-monotonic poll"   // the poll before was beyond this record
	Circle       Kind = "write-read circle"    // read by a transaction whose records its own transaction read, maybe by way of others
	Repeated     Kind = "processed twice"      // by committed transactions of one group
	Unprocessed  Kind = "unprocessed"          // in the input, and not in the output
	EarlyOffset  Kind = "early offset"         // told for a group, by whose committed transactions it is not, or not yet
	OldOffset    Kind = "old offset"           // told for a group after a later one was committed, or for a log after a later one was told
	EarlyStable  Kind = "early stable offset"  // above a record that nobody had asked to commit when the offset was told
	Unbalanced   Kind = "unbalanced"           // what transactions moved does not add up to nothing
)

// Finding is one anomaly.
type Finding struct {
	Kind   Kind
	Log    int32 // as the caller numbers them; 0 where one log is checked by itself
	ID     ID
	Offset int64 // where it shows; that of the acknowledgement if it shows nowhere
	Detail string
}

// String gives the finding in one line.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: record %v, offset %d", f.Kind, f.ID, f.Offset)
	if f.Detail != "" {
		s += ": " + f.Detail
	}
	return s
}
