package group

import (
	"time"

	"github.com/varve-io/varve/protocol"
)

func (m *Machine) syncGroup(now time.Time, e Sync) {
	mb, code := m.validateSync(e)
	if code != protocol.None {
		m.reply(e.Request, SyncResult{Code: code})
		return
	}
	switch m.state {
	case Preparing:
		m.reply(e.Request, SyncResult{Code: protocol.RebalanceInProgress})
	case Completing:
		m.reply(mb.sync, SyncResult{Code: protocol.RebalanceInProgress}) // its client has sent another since
		mb.sync, mb.synced = e.Request, true
		if mb.id == m.leader && m.storing == nil {
			m.store(now, e.Assignments)
		}
	case Stable:
		mb.synced = true
		m.touch(now, mb)
		m.reply(e.Request, m.synced(mb))
	case Empty, Dead: // without members; validateSync has refused
	}
}

func (m *Machine) validateSync(e Sync) (*member, protocol.ErrorCode) {
	if m.state == Dead {
		return nil, protocol.CoordinatorNotAvailable
	}
	mb, code := m.validate(e.MemberID, e.InstanceID)
	switch {
	case code != protocol.None:
		return nil, code
	case e.Generation != m.generation:
		return nil, protocol.IllegalGeneration
	case e.ProtocolType != nil && *e.ProtocolType != m.protocolType,
		e.Protocol != nil && m.protocol != "" && *e.Protocol != m.protocol:
		return nil, protocol.InconsistentGroupProtocol
	}
	return mb, protocol.None
}

// store sends the leader's assignment to the store. If the leader sends another for the same generation, the first counts:
// it may be durable already.
func (m *Machine) store(now time.Time, assignments map[string][]byte) {
	bytes := 0
	for _, a := range assignments {
		bytes += len(a)
	}
	if bytes > m.cfg.PayloadBytesMax {
		m.note("assignment refused", m.leader, "larger than the limit")
		m.answerSync(now, m.members[m.leader], SyncResult{Code: protocol.InvalidRequest})
		return
	}
	own := make(map[string][]byte, len(m.members))
	for id := range m.members {
		own[id] = assignments[id]
	}
	m.storing = &storing{assignments: own}
	m.storing.write = m.persist(m.snapshot(own))
}

func (m *Machine) synced(mb *member) SyncResult {
	return SyncResult{ProtocolType: m.protocolType, Protocol: m.protocol, Assignment: mb.assignment}
}

// persisted takes the outcome of a write. Nothing depends on that of an empty generation: if it is lost, the
// generation before it comes back at a change of coordinator, and its members time out.
func (m *Machine) persisted(now time.Time, e Persisted) {
	if r := m.replacements[e.Write]; r != nil {
		delete(m.replacements, e.Write)
		m.replaced(now, r, e.Code)
		return
	}
	if m.storing == nil || m.storing.write != e.Write {
		return // a rebalance has begun since
	}
	if e.Code != protocol.None {
		m.note("assignment could not be stored", m.leader, e.Code.String())
		m.resetAssignments(now, e.Code)
		m.rebalance(now, "the assignment could not be stored", "", "")
		return
	}
	assignments := m.storing.assignments
	m.storing = nil
	m.move(now, Stable)
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		mb.assignment = assignments[id]
		m.answerSync(now, mb, m.synced(mb))
	}
}

func (m *Machine) heartbeat(now time.Time, e Heartbeat) {
	m.reply(e.Request, CodeResult{Code: m.checkHeartbeat(now, e)})
}

func (m *Machine) checkHeartbeat(now time.Time, e Heartbeat) protocol.ErrorCode {
	if m.state == Dead {
		return protocol.CoordinatorNotAvailable
	}
	mb, code := m.validate(e.MemberID, e.InstanceID)
	switch {
	case code != protocol.None:
		return code
	case e.Generation != m.generation:
		return protocol.IllegalGeneration
	}
	m.touch(now, mb)
	if m.state == Preparing {
		return protocol.RebalanceInProgress
	}
	return protocol.None
}

func (m *Machine) leaveGroup(now time.Time, e Leave) {
	if m.state == Dead {
		m.reply(e.Request, LeaveResult{Code: protocol.CoordinatorNotAvailable})
		return
	}
	result := LeaveResult{Members: make([]LeftMember, 0, len(e.Members))}
	var left bool
	for _, who := range e.Members {
		code := protocol.None
		if _, ok := m.pending[who.MemberID]; ok {
			delete(m.pending, who.MemberID)
			m.completeIfJoined(now)
		} else if code = m.leave(who); code == protocol.None {
			left = true
		}
		result.Members = append(result.Members, LeftMember{MemberID: who.MemberID, InstanceID: who.InstanceID, Code: code})
	}
	m.reply(e.Request, result)
	if left {
		m.afterRemoval(now, "members left")
	}
}

func (m *Machine) leave(who LeavingMember) protocol.ErrorCode {
	id := who.MemberID
	if id == "" && who.InstanceID != "" {
		id = m.static[who.InstanceID]
	}
	mb, code := m.validate(id, who.InstanceID)
	if code != protocol.None {
		return code
	}
	m.remove(mb)
	m.note("member left", mb.id, who.Reason)
	return protocol.None
}

func (m *Machine) commit(now time.Time, e Commit) {
	m.reply(e.Request, CodeResult{Code: m.checkCommit(now, e)})
}

// checkCommit is ClassicGroup.validateOffsetCommit. Who is not a member, be it a tool or a consumer that assigns
// partitions to itself, may commit as long as the group is empty.
func (m *Machine) checkCommit(now time.Time, e Commit) protocol.ErrorCode {
	switch {
	case m.state == Dead:
		return protocol.CoordinatorNotAvailable
	case e.Generation < 0 && m.state == Empty:
		return protocol.None
	case e.Generation < 0 && e.MemberID == "" && e.InstanceID == "":
		if e.Transactional { // the older versions of TxnOffsetCommit do not name the member
			return protocol.None
		}
		return protocol.UnknownMemberID
	}
	mb, code := m.validate(e.MemberID, e.InstanceID)
	switch {
	case code != protocol.None:
		return code
	case e.Generation != m.generation:
		return protocol.IllegalGeneration
	case m.state == Completing && !e.Transactional:
		return protocol.RebalanceInProgress
	}
	m.touch(now, mb)
	return protocol.None
}

func (m *Machine) delete(now time.Time, e Delete) {
	switch m.state {
	case Dead:
		m.reply(e.Request, CodeResult{Code: protocol.GroupIDNotFound})
	case Empty:
		m.pending = map[string]time.Time{}
		m.move(now, Dead)
		m.reply(e.Request, CodeResult{Code: protocol.None})
	case Preparing, Completing, Stable:
		m.reply(e.Request, CodeResult{Code: protocol.NonEmptyGroup})
	}
}
