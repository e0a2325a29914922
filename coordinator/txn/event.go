package txn

import "github.com/varve-io/varve/protocol"

// RequestID is the caller's handle of a request; each is answered by one [Reply], at once or later. 0 stands for a
// request that nobody waits for.
type RequestID uint64

// Event is what can happen to a transactional id: one of [Init], [Add], [End], [Cancel], [Expire], [Persisted], [Marked],
// [Loaded] and [Tick].
type Event interface{ event() }

// Init is an InitProducerId request: a producer begins, or goes on after an error (KIP-360).
type Init struct {
	Request   RequestID
	TimeoutMs int32 // of its transactions, milliseconds
	// ProducerID and Epoch are what the client believes to have; -1 and -1 if it begins.
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch
	// FreshID is a producer id that was never used, for the case that one is needed; -1 for none. See [Machine.NeedsID].
	FreshID protocol.ProducerID
}

// Add brings partitions into the transaction, and begins it if there is none: AddPartitionsToTxn, AddOffsetsToTxn, and
// the leader of a partition that got a first batch.
type Add struct {
	Request    RequestID
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch
	Partitions Set
	VerifyOnly bool // asks which of them are in the transaction, and changes nothing
	// Sent: these are shards of groups whose coordinators have durably what was sent to them, under the transactional id: no write is needed for them to join an open transaction.
	Sent bool
}

// End is an EndTxn request.
type End struct {
	Request    RequestID
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch
	Commit     bool                // else abort
	Version2   bool                // the client takes a new epoch with the answer (v5, KIP-890)
	FreshID    protocol.ProducerID // as in [Init]
}

// Cancel says that the client has waited long enough. A request that waits here is answered CONCURRENT_TRANSACTIONS; one
// whose answer depends on a write that is under way is answered when that ends; others are not known any more.
type Cancel struct {
	Request RequestID
}

// Expire asks for the record to be deleted, which happens if the id was not used for [Config.Expiration].
type Expire struct{}

// Persisted is the outcome of a [Persist] or [Delete].
type Persisted struct {
	Write uint64
	// Code is None if it is durable; else nothing was changed, for certain, and requests that depended on it are told.
	Code protocol.ErrorCode
}

// Marked says that every marker that a [Mark] asked for is durable where it belongs.
type Marked struct {
	Write uint64 // of the Mark
}

// Loaded is the first event after [Load], when the caller can send markers: those of a decision that the one before may
// not have sent are asked for again.
type Loaded struct {
	// Offsets are the shards of all groups that the record's producer has sent offsets to, in its epoch, as far as that is durable: see "Offsets" in the
	// package comment.
	Offsets Set
}

// Tick says that time has passed.
type Tick struct{}

func (Init) event()      {}
func (Add) event()       {}
func (End) event()       {}
func (Cancel) event()    {}
func (Expire) event()    {}
func (Persisted) event() {}
func (Marked) event()    {}
func (Loaded) event()    {}
func (Tick) event()      {}

// Effect is what a caller must do: one of [Reply], [Persist], [Delete], [Mark] and [Note].
type Effect interface{ effect() }

// Reply answers a request.
type Reply struct {
	Request RequestID
	Result  Result
	Written bool // a write that began after the request came is durable; else the caller has to know that the id is still its to judge
}

// Persist stores the snapshot in place of the one before, and comes back as [Persisted]. Never more than one Persist or
// Delete is under way.
type Persist struct {
	Write    uint64 // from 1
	Snapshot Snapshot
}

// Delete removes the record of an expired id, and comes back as [Persisted].
type Delete struct {
	Write uint64
}

// Mark sends a marker to each of the partitions, as often as it takes, and comes back as [Marked]. The decision is durable.
type Mark struct {
	Write      uint64 // names it
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch // above that of the transaction's records with Version2, else the same
	Commit     bool
	Version2   bool
	Partitions Set // may be empty; must not be changed
}

// Note is a line for the log.
type Note struct {
	Message    string // constant
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch
	Reason     string
}

func (Reply) effect()   {}
func (Persist) effect() {}
func (Delete) effect()  {}
func (Mark) effect()    {}
func (Note) effect()    {}

// Result is the content of an answer.
type Result struct {
	Code protocol.ErrorCode
	// ProducerID and Epoch are what the client goes on with, for an [Init] or [End] that was answered None; else -1.
	ProducerID protocol.ProducerID
	Epoch      protocol.ProducerEpoch
	// Missing is what an Add with VerifyOnly asked for and the transaction does not have: TRANSACTION_ABORTABLE for each.
	Missing Set
}
