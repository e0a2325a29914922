package group

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/varve-io/varve/protocol"
)

// member is one member of the group.
type member struct {
	id               string
	instance         string // empty for a dynamic member
	clientID         string
	clientHost       string
	sessionTimeout   time.Duration
	rebalanceTimeout time.Duration
	protocols        []Protocol // in order of preference
	assignment       []byte     // of this generation, once it is Stable

	join   RequestID // JoinGroup that waits; 0 for none
	sync   RequestID // SyncGroup that waits; 0 for none
	synced bool      // has sent SyncGroup in this generation
	fresh  bool      // has not been in a generation yet

	expires time.Time // without a sign of life by then it has failed
}

// watched tells whether its silence counts. A member that waits for an answer cannot send heartbeats and is taken for
// alive, but a new one is not: its client may have given up and come again under another id, over and over.
func (mb *member) watched() bool {
	return mb.fresh || mb.join == 0 && mb.sync == 0
}

func (mb *member) supports(name string) bool {
	return slices.ContainsFunc(mb.protocols, func(p Protocol) bool { return p.Name == name })
}

// metadata returns its subscription for the protocol, nil if it does not support it.
func (mb *member) metadata(name string) []byte {
	for _, p := range mb.protocols {
		if p.Name == name {
			return p.Metadata
		}
	}
	return nil
}

// matches tells whether it had joined with just these protocols.
func (mb *member) matches(protocols []Protocol) bool {
	return slices.EqualFunc(mb.protocols, protocols, func(a, b Protocol) bool {
		return a.Name == b.Name && bytes.Equal(a.Metadata, b.Metadata)
	})
}

// String describes the member for [Machine.String].
func (mb *member) String() string {
	var b strings.Builder
	b.WriteString(mb.id)
	if mb.instance != "" {
		fmt.Fprintf(&b, " instance=%s", mb.instance)
	}
	if mb.join != 0 {
		fmt.Fprintf(&b, " join=%d", mb.join)
	}
	if mb.sync != 0 {
		fmt.Fprintf(&b, " sync=%d", mb.sync)
	}
	if len(mb.assignment) > 0 {
		fmt.Fprintf(&b, " assigned=%q", mb.assignment)
	}
	return b.String()
}

func payloadBytes(protocols []Protocol) int {
	n := 0
	for _, p := range protocols {
		n += len(p.Name) + len(p.Metadata)
	}
	return n
}

// validate finds the member that a request comes from (ClassicGroup.validateMember): a static one is known by its
// instance id, and any other member id under that instance id has been replaced.
func (m *Machine) validate(id, instance string) (*member, protocol.ErrorCode) {
	if instance != "" {
		switch existing, ok := m.static[instance]; {
		case !ok:
			return nil, protocol.UnknownMemberID
		case existing != id:
			return nil, protocol.FencedInstanceID
		}
	}
	mb := m.members[id]
	if mb == nil {
		return nil, protocol.UnknownMemberID
	}
	return mb, protocol.None
}

// add makes a member of a client that joins.
func (m *Machine) add(now time.Time, id string, e Join) {
	mb := &member{
		id: id, instance: e.InstanceID, clientID: e.ClientID, clientHost: e.ClientHost,
		sessionTimeout: e.SessionTimeout, rebalanceTimeout: e.RebalanceTimeout, protocols: e.Protocols,
		join: e.Request, fresh: true,
	}
	if len(m.members) == 0 {
		m.protocolType = e.ProtocolType
	}
	if m.leader == "" {
		m.leader = id
	}
	if m.state == Preparing && m.initial {
		m.newcomer = true
	}
	m.members[id] = mb
	if mb.instance != "" {
		m.static[mb.instance] = id
	}
	delete(m.pending, id)
	m.expireAt(mb, now.Add(newMemberJoinTimeout))
}

// update takes over what a member says when it joins again. A JoinGroup of it that still waits is answered: its
// client has sent another since.
func (m *Machine) update(mb *member, e Join) {
	m.reply(mb.join, joinError(mb.id, protocol.RebalanceInProgress))
	mb.protocols, mb.sessionTimeout, mb.rebalanceTimeout = e.Protocols, e.SessionTimeout, e.RebalanceTimeout
	mb.clientID, mb.clientHost = e.ClientID, e.ClientHost
	mb.join = e.Request
}

// remove forgets a member and answers what it waits for: UNKNOWN_MEMBER_ID lets a client that is still there come again.
func (m *Machine) remove(mb *member) {
	m.reply(mb.join, joinError("", protocol.UnknownMemberID))
	m.reply(mb.sync, SyncResult{Code: protocol.UnknownMemberID})
	delete(m.members, mb.id)
	if mb.instance != "" {
		delete(m.static, mb.instance)
	}
	if m.leader != mb.id {
		return
	}
	m.leader = ""
	if ids := sortedKeys(m.members); len(ids) > 0 {
		m.leader = ids[0]
	}
}

// replace gives a static member, which has restarted, its new id. Requests that wait under the old one are fenced.
func (m *Machine) replace(mb *member, newID string) *member {
	m.reply(mb.join, joinError(mb.id, protocol.FencedInstanceID))
	m.reply(mb.sync, SyncResult{Code: protocol.FencedInstanceID})
	replaced := *mb
	replaced.id, replaced.join, replaced.sync = newID, 0, 0
	delete(m.members, mb.id)
	m.members[newID] = &replaced
	m.static[replaced.instance] = newID
	if m.leader == mb.id {
		m.leader = newID
	}
	return &replaced
}

// touch takes a sign of life.
func (m *Machine) touch(now time.Time, mb *member) {
	m.expireAt(mb, now.Add(mb.sessionTimeout))
}

func (m *Machine) expireAt(mb *member, at time.Time) {
	mb.expires = at
	m.timer(at)
}

// timer lets [Machine.Deadline] be no later than at.
func (m *Machine) timer(at time.Time) {
	if m.next.IsZero() || at.Before(m.next) {
		m.next = at
	}
}

// agrees tells whether a member with this protocol type and these protocols can be in the group with the others
// (ClassicGroup.supportsProtocols).
func (m *Machine) agrees(protocolType string, protocols []Protocol) bool {
	if protocolType == "" || len(protocols) == 0 {
		return false
	}
	if m.state == Empty {
		return true
	}
	if len(m.members) > 0 && protocolType != m.protocolType {
		return false
	}
	return slices.ContainsFunc(protocols, func(p Protocol) bool { return m.common(p.Name) })
}

// common tells whether all members support a protocol.
func (m *Machine) common(name string) bool {
	for _, mb := range m.members {
		if !mb.supports(name) {
			return false
		}
	}
	return true
}

// vote chooses the protocol for a generation: each member votes for the first of its protocols that all support; of
// several with as many votes, the first by name (Kafka leaves that to chance).
func (m *Machine) vote() string {
	votes, common := map[string]int{}, map[string]bool{}
	for _, mb := range m.members {
		for _, p := range mb.protocols {
			ok, known := common[p.Name]
			if !known {
				ok = m.common(p.Name)
				common[p.Name] = ok
			}
			if ok {
				votes[p.Name]++
				break
			}
		}
	}
	chosen := ""
	for _, name := range sortedKeys(votes) {
		if chosen == "" || votes[name] > votes[chosen] {
			chosen = name
		}
	}
	return chosen
}

// rebalanceTimeout is how long members have to join: that of the most patient one.
func (m *Machine) rebalanceTimeout() time.Duration {
	var longest time.Duration
	for _, mb := range m.members {
		longest = max(longest, mb.rebalanceTimeout)
	}
	return longest
}
