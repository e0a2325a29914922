// Package group decides everything about one consumer group of Kafka's classic protocol: who is a member, which
// generation counts, what each member is assigned, and which commits of offsets are let in.
//
// # Model
//
// A [Machine] is one group. It is fed with events by [Machine.Step] and answers with effects, to be carried out in
// their order by the caller: reply to a request, persist a snapshot, take note. It has no goroutine, clock, lock or
// randomness: the time comes with each event, ids of new members come with [Join], and the same events give the same
// effects. [Machine.Deadline] says when the next [Tick] is due.
//
//	          first member joins                all joined, or time is up
//	Empty ------------------------> Preparing ---------------------------> Completing
//	  ^                              ^  |  ^                                |      |
//	  |        nobody is left        |  |  | a member joins, leaves, fails  |      | the leader's assignment
//	  +------------------------------|--+  +--------------------------------+      | is persisted
//	                                 |                                             v
//	                                 +------------------------------------------ Stable
//
// A generation begins when the join phase ends. Its leader gets everybody's subscription, computes the assignment and
// sends it with SyncGroup. The assignment is persisted first; only then do the waiting SyncGroups get their answers
// and does the group become Stable. So an agent that takes the group over finds every assignment that a member ever
// got, and the members go on without a rebalance ([Load]); a generation that was not persisted was never worked in.
//
// The behaviour, down to the error codes, is that of Kafka 4's org.apache.kafka.coordinator.group: ClassicGroup and
// the classic part of GroupMetadataManager; KIP-62 (timeouts), KIP-134 (initial delay), KIP-345 (static members), KIP-394
// (member ids), KIP-559 (protocol checks), KIP-814 (skipped assignment). Where it differs, it says so.
//
// Payloads (subscriptions and assignments) are opaque: Connect, Schema Registry and Streams bring their own.
package group

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// State is where a group stands.
type State uint8

// States, as Kafka names them.
const (
	Empty      State = iota // no members; there may be offsets
	Preparing               // members are asked to join again
	Completing              // members have joined and wait for the leader's assignment
	Stable                  // everybody has, or can ask for, an assignment
	Dead                    // deleted; nothing is answered any more but errors
)

// String returns the name that ListGroups and DescribeGroups show.
func (s State) String() string {
	switch s {
	case Empty:
		return "Empty"
	case Preparing:
		return "PreparingRebalance"
	case Completing:
		return "CompletingRebalance"
	case Stable:
		return "Stable"
	case Dead:
		return "Dead"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// newMemberJoinTimeout is how long a member that does not know its id yet may wait for its first generation: it cannot
// send heartbeats, so nothing else tells whether it is still there (GroupMetadataManager, 5 minutes).
const newMemberJoinTimeout = 5 * time.Minute

// Config holds a group's limits. All must be positive, but for InitialDelay.
type Config struct {
	// InitialDelay is how long the first generation of an empty group waits for more members
	// (group.initial.rebalance.delay.ms); each newcomer extends it, up to the rebalance timeout. 0 waits for nobody.
	InitialDelay time.Duration
	// MembersMax is the most members, and the most ids handed out to members to come (group.max.size).
	MembersMax int
	// PayloadBytesMax is the most bytes of subscriptions, and of assignments, that a group may hold.
	PayloadBytesMax int
}

// Machine is one group. It is not safe for concurrent use.
type Machine struct {
	cfg Config

	state      State
	since      time.Time
	generation int32 // of the last completed join phase; 0 before the first

	protocolType string // of the members, or of the last ones; empty if there never were any
	protocol     string // chosen for this generation; empty if there is none
	leader       string // member id; empty if and only if there are no members

	members map[string]*member   // by id
	static  map[string]string    // instance id -> member id
	pending map[string]time.Time // ids handed out to members that have yet to join with them -> when they lapse

	joinDeadline time.Time     // Preparing: when the join phase ends; zero if no timer runs
	initial      bool          // the join deadline is that of an initial delay
	delay        time.Duration // of the initial delay that runs
	remaining    time.Duration // that newcomers may still add to it
	newcomer     bool          // a member came during the initial delay that runs
	syncDeadline time.Time     // when members that have not sent SyncGroup are removed; zero if no timer runs

	next time.Time // no timer is due before it; zero if none runs

	writes       uint64                  // number of the newest persist effect
	storing      *storing                // assignment of this generation that is being persisted
	replacements map[uint64]*replacement // static members whose new id is being persisted, by write

	effects []Effect // of the step under way
}

// storing is a leader's assignment on its way to the coordinator's store.
type storing struct {
	write       uint64
	assignments map[string][]byte
}

// replacement is a static member's new id on its way to the store, with what is needed to take it back.
type replacement struct {
	old     member // as it was
	newID   string
	request RequestID
	leader  string // before the replacement
	skip    bool   // the client knows SkipAssignment (KIP-814)
}

// New returns a group that never had a member.
func New(cfg Config, now time.Time) *Machine {
	return &Machine{
		cfg: cfg, state: Empty, since: now,
		members: map[string]*member{}, static: map[string]string{}, pending: map[string]time.Time{},
		replacements: map[uint64]*replacement{},
	}
}

// Step applies one event and returns what must be done about it, in this order. Times must not go back.
func (m *Machine) Step(now time.Time, event Event) []Effect {
	m.effects = nil
	switch e := event.(type) {
	case Join:
		m.joinGroup(now, e)
	case Sync:
		m.syncGroup(now, e)
	case Heartbeat:
		m.heartbeat(now, e)
	case Leave:
		m.leaveGroup(now, e)
	case Commit:
		m.commit(now, e)
	case Delete:
		m.delete(now, e)
	case Persisted:
		m.persisted(now, e)
	case Tick:
		m.tick(now)
	}
	effects := m.effects
	m.effects = nil
	return effects
}

// Deadline returns when the next Tick is due, and false if none is. A Tick that comes early, or in vain, is harmless.
func (m *Machine) Deadline() (time.Time, bool) {
	return m.next, !m.next.IsZero()
}

// State returns where the group stands.
func (m *Machine) State() State { return m.state }

// Since returns when the group came into its state, as far as it is known ([Load]).
func (m *Machine) Since() time.Time { return m.since }

// ProtocolType returns the members' protocol type ("consumer", "connect", "sr", ...) or that of the last ones; it is
// empty for a group that only ever stored offsets.
func (m *Machine) ProtocolType() string { return m.protocolType }

// Idle tells whether nothing is lost by forgetting the machine and loading it again later: no members, none to come.
func (m *Machine) Idle() bool {
	return (m.state == Empty || m.state == Dead) && len(m.members) == 0 && len(m.pending) == 0
}

// String describes the group in a line or more, for tests and for people: everything that decides what it does next.
func (m *Machine) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s generation=%d", m.state, m.generation)
	if m.protocolType != "" {
		fmt.Fprintf(&b, " protocol=%s/%s", m.protocolType, m.protocol)
	}
	if m.storing != nil {
		fmt.Fprintf(&b, " storing=%d", m.storing.write)
	}
	for _, id := range sortedKeys(m.pending) {
		fmt.Fprintf(&b, "\n  pending %s", id)
	}
	for _, id := range sortedKeys(m.members) {
		fmt.Fprintf(&b, "\n  %s", m.members[id])
		if id == m.leader {
			b.WriteString(" leader")
		}
	}
	return b.String()
}

func (m *Machine) move(now time.Time, to State) {
	m.effects = append(m.effects, Moved{From: m.state, To: to, Generation: m.generation})
	m.state, m.since = to, now
}

func (m *Machine) reply(request RequestID, result Result) {
	if request != 0 {
		m.effects = append(m.effects, Reply{Request: request, Result: result})
	}
}

func (m *Machine) note(message, member, reason string) {
	m.effects = append(m.effects, Note{Message: message, Generation: m.generation, Member: member, Reason: reason})
}

// persist asks for the snapshot to be stored and returns the number under which the answer will come.
func (m *Machine) persist(s Snapshot) uint64 {
	m.writes++
	m.effects = append(m.effects, Persist{Write: m.writes, Snapshot: s})
	return m.writes
}

func sortedKeys[V any](set map[string]V) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
