package group

import (
	"time"

	"github.com/varve-io/varve/protocol"
)

// rebalance begins a join phase, or, if one is under way, ends it if nobody is missing any more.
func (m *Machine) rebalance(now time.Time, why, memberID, reason string) {
	if m.state == Preparing {
		m.completeIfJoined(now)
		return
	}
	if reason != "" {
		why += ": " + reason
	}
	m.note("rebalance begins", memberID, why)
	m.prepare(now)
}

func (m *Machine) prepare(now time.Time) {
	if m.state == Completing {
		m.resetAssignments(now, protocol.RebalanceInProgress)
	}
	m.syncDeadline = time.Time{}
	m.initial = m.state == Empty
	if m.initial {
		m.delay = m.cfg.InitialDelay
		m.remaining = max(m.rebalanceTimeout()-m.cfg.InitialDelay, 0)
		m.newcomer = false
	}
	m.move(now, Preparing)
	switch {
	case m.initial:
		m.joinBy(now.Add(m.delay))
	case m.allJoined():
		m.completeJoin(now)
	default:
		m.joinBy(now.Add(m.rebalanceTimeout()))
	}
}

func (m *Machine) joinBy(at time.Time) {
	m.joinDeadline = at
	m.timer(at)
}

// resetAssignments takes back the assignments of a generation that does not come about, and tells those who wait.
func (m *Machine) resetAssignments(now time.Time, code protocol.ErrorCode) {
	m.storing = nil
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		mb.assignment = nil
		m.answerSync(now, mb, SyncResult{Code: code})
	}
}

// answerSync answers the SyncGroup that a member waits for, if there is one. While it waited its session timeout did
// not count, so it begins anew.
func (m *Machine) answerSync(now time.Time, mb *member, result SyncResult) {
	if mb.sync == 0 {
		return
	}
	m.reply(mb.sync, result)
	mb.sync = 0
	m.touch(now, mb)
}

// allJoined tells whether the join phase need not wait any longer.
func (m *Machine) allJoined() bool {
	for _, mb := range m.members {
		if mb.join == 0 {
			return false
		}
	}
	return len(m.pending) == 0
}

// completeIfJoined ends the join phase if nobody is missing. The initial delay is waited for nevertheless.
func (m *Machine) completeIfJoined(now time.Time) {
	if m.state == Preparing && !m.initial && m.allJoined() {
		m.completeJoin(now)
	}
}

// initialDelayOver ends the initial delay, or extends it if somebody came during it (KIP-134).
func (m *Machine) initialDelayOver(now time.Time) {
	next := min(m.cfg.InitialDelay, m.remaining)
	if !m.newcomer || next == 0 {
		m.completeJoin(now)
		return
	}
	m.newcomer = false
	m.remaining = max(m.remaining-m.delay, 0)
	m.delay = next
	m.joinBy(now.Add(next))
}

// completeJoin ends the join phase: dynamic members that did not join are gone (static ones keep their place until
// their session ends), and a generation begins.
func (m *Machine) completeJoin(now time.Time) {
	m.joinDeadline, m.initial = time.Time{}, false
	for _, id := range sortedKeys(m.members) {
		if mb := m.members[id]; mb.join == 0 && mb.instance == "" {
			m.remove(mb)
			m.note("member removed", id, "did not join in time")
		}
	}
	if len(m.members) > 0 && !m.electLeader() {
		// Only static members, and none of them joined: wait until one does or until their sessions end.
		m.note("rebalance waits", "", "no member joined")
		m.joinBy(now.Add(m.rebalanceTimeout()))
		return
	}
	m.generation++
	if len(m.members) == 0 {
		m.protocol = ""
		m.move(now, Empty)
		m.persist(m.snapshot(nil))
		return
	}
	m.protocol = m.vote()
	m.move(now, Completing)
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		m.reply(mb.join, m.joined(mb))
		mb.join, mb.synced, mb.fresh, mb.assignment = 0, false, false, nil
		m.touch(now, mb)
	}
	m.syncDeadline = now.Add(m.rebalanceTimeout())
	m.timer(m.syncDeadline)
}

// electLeader keeps the leader if it joined, else makes one of a member that did. False if none did.
func (m *Machine) electLeader() bool {
	if m.members[m.leader].join != 0 {
		return true
	}
	for _, id := range sortedKeys(m.members) {
		if m.members[id].join != 0 {
			m.note("leader elected", id, m.leader+" did not join in time")
			m.leader = id
			return true
		}
	}
	return false
}

// afterRemoval goes on without members that were removed.
func (m *Machine) afterRemoval(now time.Time, why string) {
	switch m.state {
	case Stable, Completing:
		m.rebalance(now, why, "", "")
	case Preparing:
		m.completeIfJoined(now)
	case Empty, Dead:
	}
}

func (m *Machine) tick(now time.Time) {
	due := func(at time.Time) bool { return !at.IsZero() && !at.After(now) }
	for _, id := range sortedKeys(m.pending) {
		if due(m.pending[id]) {
			delete(m.pending, id)
			m.note("member removed", id, "did not join with the id that it was given")
			m.afterExpiry(now)
		}
	}
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		if mb != nil && mb.watched() && due(mb.expires) {
			m.remove(mb)
			m.note("member removed", id, "its session timed out")
			m.afterExpiry(now)
		}
	}
	switch {
	case due(m.joinDeadline) && m.initial:
		m.initialDelayOver(now)
	case due(m.joinDeadline):
		m.completeJoin(now)
	}
	if due(m.syncDeadline) {
		m.syncOverdue(now)
	}
	m.resetTimer()
}

// afterExpiry is afterRemoval, but that an initial delay ends at once when the last member is gone.
func (m *Machine) afterExpiry(now time.Time) {
	if m.state == Preparing && m.allJoined() {
		m.completeJoin(now)
		return
	}
	m.afterRemoval(now, "a member failed")
}

// syncOverdue removes members that joined but never asked for their assignment.
func (m *Machine) syncOverdue(now time.Time) {
	m.syncDeadline = time.Time{}
	removed := false
	for _, id := range sortedKeys(m.members) {
		if mb := m.members[id]; !mb.synced {
			m.remove(mb)
			m.note("member removed", id, "did not send SyncGroup in time")
			removed = true
		}
	}
	if removed {
		m.afterRemoval(now, "members did not send SyncGroup in time")
	}
}

// resetTimer finds the earliest timer anew.
func (m *Machine) resetTimer() {
	m.next = time.Time{}
	for _, at := range m.pending {
		m.timer(at)
	}
	for _, mb := range m.members {
		if mb.watched() {
			m.timer(mb.expires)
		}
	}
	for _, at := range []time.Time{m.joinDeadline, m.syncDeadline} {
		if !at.IsZero() {
			m.timer(at)
		}
	}
}
