package group

import (
	"time"

	"github.com/varve-io/varve/protocol"
)

func joinError(memberID string, code protocol.ErrorCode) JoinResult {
	return JoinResult{Code: code, MemberID: memberID, Generation: -1}
}

func (m *Machine) joinGroup(now time.Time, e Join) {
	switch {
	case m.state == Dead:
		m.reply(e.Request, joinError(e.MemberID, protocol.CoordinatorNotAvailable))
	case !m.accepts(e):
		m.refuse(now, e)
	case !m.agrees(e.ProtocolType, e.Protocols):
		m.reply(e.Request, joinError(e.MemberID, protocol.InconsistentGroupProtocol))
	case e.MemberID == "":
		m.joinNew(now, e)
	default:
		m.joinExisting(now, e)
	}
}

// accepts tells whether there is room for the member. During the join phase those count that have joined, so that a
// group whose limit was lowered sheds its last members (GroupMetadataManager.acceptJoiningMember).
func (m *Machine) accepts(e Join) bool {
	bytes := payloadBytes(e.Protocols)
	waiting := 0
	for id, mb := range m.members {
		if id != e.MemberID {
			bytes += payloadBytes(mb.protocols)
		}
		if mb.join != 0 {
			waiting++
		}
	}
	if bytes > m.cfg.PayloadBytesMax {
		return false
	}
	known := m.members[e.MemberID]
	switch m.state {
	case Preparing:
		if known == nil && len(m.members) >= 2*m.cfg.MembersMax { // Kafka has no such limit
			return false
		}
		return known != nil && known.join != 0 || waiting < m.cfg.MembersMax
	case Completing, Stable:
		return known != nil || len(m.members) < m.cfg.MembersMax
	case Empty, Dead:
	}
	return true
}

// refuse turns away a member for which there is no room; if it was one, it no longer is.
func (m *Machine) refuse(now time.Time, e Join) {
	delete(m.pending, e.MemberID)
	if mb := m.members[e.MemberID]; mb != nil {
		m.remove(mb)
		m.note("member removed", mb.id, "the group has reached its maximum size")
		m.afterRemoval(now, "a member was removed because the group is full")
	}
	m.reply(e.Request, joinError("", protocol.GroupMaxSizeReached))
}

func (m *Machine) joinNew(now time.Time, e Join) {
	existing, isStatic := m.static[e.InstanceID]
	switch {
	case e.InstanceID != "" && isStatic:
		m.joinReplacing(now, m.members[existing], e)
	case e.InstanceID != "" || !e.KnownIDRequired:
		m.add(now, e.NewMemberID, e)
		m.rebalance(now, "a member joined", e.NewMemberID, e.Reason)
	case len(m.pending) >= m.cfg.MembersMax:
		m.reply(e.Request, joinError("", protocol.GroupMaxSizeReached))
	default:
		m.pending[e.NewMemberID] = now.Add(e.SessionTimeout)
		m.timer(now.Add(e.SessionTimeout))
		m.reply(e.Request, joinError(e.NewMemberID, protocol.MemberIDRequired))
	}
}

func (m *Machine) joinExisting(now time.Time, e Join) {
	if _, ok := m.pending[e.MemberID]; ok && e.InstanceID == "" {
		m.add(now, e.MemberID, e)
		m.rebalance(now, "a member joined", e.MemberID, e.Reason)
		return
	}
	mb, code := m.validate(e.MemberID, e.InstanceID)
	if code != protocol.None {
		m.reply(e.Request, joinError(e.MemberID, code))
		return
	}
	same := mb.matches(e.Protocols)
	switch {
	case m.state == Completing && same, // it may have missed the answer to its first JoinGroup
		m.state == Stable && same && m.leader != mb.id: // nothing has changed; the leader may know of other changes
		m.touch(now, mb)
		m.reply(e.Request, m.joined(mb))
	default:
		m.update(mb, e)
		m.rebalance(now, "a member joined again", mb.id, e.Reason)
	}
}

// joinReplacing takes in a static member that has restarted and does not know its id (KIP-345). It takes the place, and in a
// Stable group also the assignment, of its former self, without a rebalance if the group's protocol stays.
func (m *Machine) joinReplacing(now time.Time, mb *member, e Join) {
	old, leader := *mb, m.leader
	mb = m.replace(mb, e.NewMemberID)
	m.update(mb, e)
	m.touch(now, mb)
	m.note("static member replaced", mb.id, "instance "+mb.instance+" was "+old.id)
	if m.state != Stable || m.vote() != m.protocol {
		m.rebalance(now, "a static member joined again", mb.id, e.Reason)
		return
	}
	// The new id must outlive this agent before the member gets to know it.
	m.replacements[m.persist(m.snapshot(nil))] = &replacement{
		old: old, newID: mb.id, request: e.Request, leader: leader, skip: e.SkipSupported,
	}
}

// replaced ends the replacement of a static member, unless a rebalance has answered it since.
func (m *Machine) replaced(now time.Time, r *replacement, code protocol.ErrorCode) {
	mb := m.members[r.newID]
	if mb == nil || mb.join != r.request || m.state != Stable {
		return
	}
	mb.join = 0
	m.touch(now, mb)
	if code != protocol.None {
		mb = m.replace(mb, r.old.id)
		mb.protocols, mb.sessionTimeout, mb.rebalanceTimeout = r.old.protocols, r.old.sessionTimeout, r.old.rebalanceTimeout
		m.note("static member's new id could not be stored", r.newID, code.String())
		m.reply(r.request, joinError("", code))
		return
	}
	result := m.joined(mb)
	if r.skip {
		result.SkipAssignment = m.leader == mb.id
	} else {
		// A client that does not know SkipAssignment must not believe to be the leader: it would assign anew.
		result.Leader, result.Members = r.leader, nil
	}
	m.reply(r.request, result)
}

// joined is the answer for a member of this generation.
func (m *Machine) joined(mb *member) JoinResult {
	result := JoinResult{
		MemberID: mb.id, Generation: m.generation, ProtocolType: m.protocolType, Protocol: m.protocol, Leader: m.leader,
	}
	if m.leader == mb.id {
		for _, id := range sortedKeys(m.members) {
			other := m.members[id]
			result.Members = append(result.Members, Subscription{
				MemberID: id, InstanceID: other.instance, Metadata: other.metadata(m.protocol),
			})
		}
	}
	return result
}
