package group

import (
	"time"

	"github.com/varve-io/varve/protocol"
)

// RequestID is the caller's handle of a request; each is answered by one [Reply], at once or later. 0 stands for a
// request that nobody waits for.
type RequestID uint64

// Event is what can happen to a group: one of [Join], [Sync], [Heartbeat], [Leave], [Commit], [Delete], [Persisted]
// and [Tick].
type Event interface{ event() }

// Protocol is a way of assigning that a member supports, with its subscription for it.
type Protocol struct {
	Name     string
	Metadata []byte // opaque; not copied, must not change
}

// Join is a JoinGroup request. Answered by a [JoinResult], which may take as long as a rebalance.
type Join struct {
	Request          RequestID
	MemberID         string // empty: the client does not know it yet
	InstanceID       string // group.instance.id; empty for a dynamic member
	NewMemberID      string // for a client without an id: the one to give it. Never used before
	ClientID         string
	ClientHost       string
	SessionTimeout   time.Duration
	RebalanceTimeout time.Duration
	ProtocolType     string
	Protocols        []Protocol // in order of preference
	KnownIDRequired  bool       // the client comes back with the id that it gets (v4, KIP-394)
	SkipSupported    bool       // the client knows SkipAssignment (v9, KIP-814)
	Reason           string     // the client's words (KIP-800)
}

// Sync is a SyncGroup request. Answered by a [SyncResult].
type Sync struct {
	Request      RequestID
	MemberID     string
	InstanceID   string
	Generation   int32
	ProtocolType *string           // nil: the client's version does not say (KIP-559)
	Protocol     *string           // likewise
	Assignments  map[string][]byte // of the leader, by member id; not copied, must not change
}

// Heartbeat is a Heartbeat request. Answered at once by a [CodeResult].
type Heartbeat struct {
	Request    RequestID
	MemberID   string
	InstanceID string
	Generation int32
}

// Leave is a LeaveGroup request. Answered at once by a [LeaveResult].
type Leave struct {
	Request RequestID
	Members []LeavingMember
}

// LeavingMember is one of the members that a Leave removes. An empty MemberID with an InstanceID removes whoever has that
// instance id: this is how administrators remove static members.
type LeavingMember struct {
	MemberID   string
	InstanceID string
	Reason     string
}

// Commit asks whether a commit of offsets is let in. Answered at once by a [CodeResult]. It counts as a heartbeat.
type Commit struct {
	Request       RequestID
	MemberID      string
	InstanceID    string
	Generation    int32 // negative: not from a member
	Transactional bool  // of TxnOffsetCommit
}

// Delete asks for the group to be deleted, which is let in for an empty one only. Answered at once by a [CodeResult];
// after None the group is Dead, and its keys are the caller's to delete.
type Delete struct {
	Request RequestID
}

// Persisted is the outcome of a [Persist].
type Persisted struct {
	Write uint64
	// Code is None if it is durable; else what requests that depended on it are told.
	Code protocol.ErrorCode
}

// Tick says that time has passed.
type Tick struct{}

func (Join) event()      {}
func (Sync) event()      {}
func (Heartbeat) event() {}
func (Leave) event()     {}
func (Commit) event()    {}
func (Delete) event()    {}
func (Persisted) event() {}
func (Tick) event()      {}

// Effect is what a caller must do: one of [Reply], [Persist], [Moved] and [Note].
type Effect interface{ effect() }

// Reply answers a request.
type Reply struct {
	Request RequestID
	Result  Result
}

// Persist stores the snapshot in place of the one before, and comes back as [Persisted]. Several may be on their way;
// they must take effect in order.
type Persist struct {
	Write    uint64 // from 1
	Snapshot Snapshot
}

// Moved tells of a change of state.
type Moved struct {
	From, To   State
	Generation int32
}

// Note is a line for the log.
type Note struct {
	Message    string // constant
	Generation int32
	Member     string // member id, if it is about one
	Reason     string
}

func (Reply) effect()   {}
func (Persist) effect() {}
func (Moved) effect()   {}
func (Note) effect()    {}

// Result is the content of an answer: one of [JoinResult], [SyncResult], [LeaveResult] and [CodeResult].
type Result interface{ result() }

// JoinResult answers a [Join]. With an error, only MemberID is set beside it.
type JoinResult struct {
	Code           protocol.ErrorCode
	MemberID       string
	Generation     int32 // -1 with an error
	ProtocolType   string
	Protocol       string
	Leader         string
	SkipAssignment bool           // the leader is told to leave the assignment as it is
	Members        []Subscription // for the leader
}

// Subscription is a member as the leader sees it.
type Subscription struct {
	MemberID   string
	InstanceID string
	Metadata   []byte // for the chosen protocol
}

// SyncResult answers a [Sync].
type SyncResult struct {
	Code         protocol.ErrorCode
	ProtocolType string
	Protocol     string
	Assignment   []byte
}

// LeaveResult answers a [Leave], member by member in the order of the request.
type LeaveResult struct {
	Code    protocol.ErrorCode // of the request as a whole
	Members []LeftMember
}

// LeftMember is the outcome for one member.
type LeftMember struct {
	MemberID   string
	InstanceID string
	Code       protocol.ErrorCode
}

// CodeResult answers a [Heartbeat], [Commit] or [Delete].
type CodeResult struct {
	Code protocol.ErrorCode
}

func (JoinResult) result()  {}
func (SyncResult) result()  {}
func (LeaveResult) result() {}
func (CodeResult) result()  {}
