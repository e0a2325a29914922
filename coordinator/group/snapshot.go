package group

import (
	"fmt"
	"time"
)

// snapshotFormat is the newest format version; older ones are read, newer ones refused.
const snapshotFormat = 1

// Snapshot is what outlives the agent that coordinates a group: the last generation that was worked in. It is stored
// as JSON under coordinator.KeyGroup.
type Snapshot struct {
	Format       int              `json:"format"`
	Type         string           `json:"type"` // always "classic"
	Generation   int32            `json:"generation"`
	ProtocolType string           `json:"protocol_type,omitempty"`
	Protocol     string           `json:"protocol,omitempty"`
	Leader       string           `json:"leader,omitempty"`
	SinceMs      int64            `json:"since_ms"` // when the group came into its state, Unix milliseconds
	Members      []SnapshotMember `json:"members,omitempty"`
	// Bare says that the members' payloads were left out because they are too large for the store: after a change of
	// coordinator the members must join again.
	Bare bool `json:"bare,omitempty"`
}

// SnapshotMember is a member in a [Snapshot].
type SnapshotMember struct {
	ID                 string `json:"id"`
	InstanceID         string `json:"instance_id,omitempty"`
	ClientID           string `json:"client_id"`
	ClientHost         string `json:"client_host"`
	SessionTimeoutMs   int64  `json:"session_timeout_ms"`
	RebalanceTimeoutMs int64  `json:"rebalance_timeout_ms"`
	Metadata           []byte `json:"metadata,omitempty"` // subscription for the chosen protocol
	Assignment         []byte `json:"assignment,omitempty"`
}

// State is the state that the snapshot will be loaded in.
func (s Snapshot) State() State {
	switch {
	case len(s.Members) == 0:
		return Empty
	case s.Bare:
		return Preparing
	}
	return Stable
}

// WithoutPayloads returns the snapshot without subscriptions and assignments.
func (s Snapshot) WithoutPayloads() Snapshot {
	members := make([]SnapshotMember, len(s.Members))
	for i, mb := range s.Members {
		mb.Metadata, mb.Assignment = nil, nil
		members[i] = mb
	}
	s.Members, s.Bare = members, true
	return s
}

// WithoutMembers returns the snapshot as that of an empty group: after a change of coordinator its members are
// strangers and begin anew, above its generation.
func (s Snapshot) WithoutMembers() Snapshot {
	s.Members, s.Leader, s.Protocol, s.Bare = nil, "", "", false
	return s
}

// Snapshot returns the group as it would be persisted now.
func (m *Machine) Snapshot() Snapshot { return m.snapshot(nil) }

// snapshot takes the assignments from its argument, or from the members if that is nil.
func (m *Machine) snapshot(assignments map[string][]byte) Snapshot {
	s := Snapshot{
		Format: snapshotFormat, Type: "classic", Generation: m.generation, ProtocolType: m.protocolType, Protocol: m.protocol,
		Leader: m.leader, SinceMs: m.since.UnixMilli(),
	}
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		assignment := mb.assignment
		if assignments != nil {
			assignment = assignments[id]
		}
		s.Members = append(s.Members, SnapshotMember{
			ID: id, InstanceID: mb.instance, ClientID: mb.clientID, ClientHost: mb.clientHost,
			SessionTimeoutMs: mb.sessionTimeout.Milliseconds(), RebalanceTimeoutMs: mb.rebalanceTimeout.Milliseconds(),
			Metadata: mb.metadata(m.protocol), Assignment: assignment,
		})
	}
	return s
}

// Load returns the group as a snapshot has it. Its members' session timeouts begin anew. It fails if the snapshot is
// of a format that this program does not know, or contradicts itself.
func Load(cfg Config, now time.Time, s Snapshot) (*Machine, error) {
	if s.Format < 1 || s.Format > snapshotFormat || s.Type != "classic" {
		return nil, fmt.Errorf("load group: format %d of type %q, want at most %d of type classic", s.Format, s.Type, snapshotFormat)
	}
	m := New(cfg, now)
	m.generation, m.protocolType, m.since = s.Generation, s.ProtocolType, time.UnixMilli(s.SinceMs)
	if len(s.Members) == 0 {
		return m, nil
	}
	m.state, m.protocol, m.leader = Stable, s.Protocol, s.Leader
	for _, mb := range s.Members {
		if mb.InstanceID != "" {
			m.static[mb.InstanceID] = mb.ID
		}
		m.members[mb.ID] = &member{
			id: mb.ID, instance: mb.InstanceID, clientID: mb.ClientID, clientHost: mb.ClientHost,
			sessionTimeout:   time.Duration(mb.SessionTimeoutMs) * time.Millisecond,
			rebalanceTimeout: time.Duration(mb.RebalanceTimeoutMs) * time.Millisecond,
			protocols:        []Protocol{{Name: s.Protocol, Metadata: mb.Metadata}},
			assignment:       mb.Assignment, synced: true,
		}
		m.touch(now, m.members[mb.ID])
	}
	if m.members[s.Leader] == nil {
		return nil, fmt.Errorf("load group: leader %q is not among the %d members", s.Leader, len(s.Members))
	}
	if s.Bare {
		m.state = Preparing
		m.joinBy(now.Add(m.rebalanceTimeout()))
	}
	return m, nil
}

// Description is a group as DescribeGroups shows it.
type Description struct {
	State        State
	ProtocolType string
	Protocol     string              // empty unless Stable
	Members      []MemberDescription // by id
}

// MemberDescription is a member in a [Description].
type MemberDescription struct {
	MemberID   string
	InstanceID string
	ClientID   string
	ClientHost string
	Metadata   []byte // nil unless the group is Stable
	Assignment []byte // likewise
}

// Describe returns what DescribeGroups shows. Payloads are shared with the machine and must not be changed.
func (m *Machine) Describe() Description {
	d := Description{State: m.state, ProtocolType: m.protocolType}
	if m.state == Stable {
		d.Protocol = m.protocol
	}
	for _, id := range sortedKeys(m.members) {
		mb := m.members[id]
		md := MemberDescription{MemberID: id, InstanceID: mb.instance, ClientID: mb.clientID, ClientHost: mb.clientHost}
		if m.state == Stable {
			md.Metadata, md.Assignment = mb.metadata(m.protocol), mb.assignment
		}
		d.Members = append(d.Members, md)
	}
	return d
}

// Subscriptions returns each member's subscription for the protocol of this generation, in order of member ids.
func (m *Machine) Subscriptions() [][]byte {
	subscriptions := make([][]byte, 0, len(m.members))
	for _, id := range sortedKeys(m.members) {
		subscriptions = append(subscriptions, m.members[id].metadata(m.protocol))
	}
	return subscriptions
}
