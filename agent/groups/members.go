package groups

import (
	"bytes"
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// JoinGroup enters a member into a group and returns when the generation begins that it takes part in.
func (c *Coordinator) JoinGroup(ctx context.Context, client Client, req *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	c.metrics.joins.Inc()
	session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	rebalance := time.Duration(max(req.RebalanceTimeoutMillis, 0)) * time.Millisecond
	if req.Version == 0 {
		rebalance = session
	}
	switch {
	case req.Group == "":
		return joinResponse(req, group.JoinResult{Code: protocol.InvalidGroupID, MemberID: req.MemberID, Generation: -1})
	case session < c.cfg.SessionTimeoutMin, session > c.cfg.SessionTimeoutMax:
		return joinResponse(req, group.JoinResult{Code: protocol.InvalidSessionTimeout, MemberID: req.MemberID, Generation: -1})
	}
	instance := deref(req.InstanceID)
	newID := client.ID + "-" + c.deps.NewID()
	if instance != "" {
		newID = instance + "-" + c.deps.NewID()
	}
	protocols := make([]group.Protocol, len(req.Protocols))
	for i, p := range req.Protocols {
		protocols[i] = group.Protocol{Name: p.Name, Metadata: bytes.Clone(p.Metadata)} // the request's buffer is reused
	}
	result, code := ask[group.JoinResult](ctx, c, req.Group, func(id group.RequestID) group.Event {
		return group.Join{
			Request: id, MemberID: req.MemberID, InstanceID: instance, NewMemberID: newID,
			ClientID: client.ID, ClientHost: client.Host, SessionTimeout: session, RebalanceTimeout: rebalance,
			ProtocolType: req.ProtocolType, Protocols: protocols,
			KnownIDRequired: req.Version >= 4, SkipSupported: req.Version >= 9, Reason: deref(req.Reason),
		}
	})
	if code != protocol.None {
		result = group.JoinResult{Code: code, MemberID: req.MemberID, Generation: -1}
	}
	return joinResponse(req, result)
}

func joinResponse(req *kmsg.JoinGroupRequest, result group.JoinResult) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Version = req.Version
	resp.ErrorCode = int16(result.Code)
	resp.MemberID = result.MemberID
	resp.Generation = result.Generation
	resp.LeaderID = result.Leader
	resp.SkipAssignment = result.SkipAssignment
	if result.Code == protocol.None {
		resp.ProtocolType, resp.Protocol = &result.ProtocolType, &result.Protocol
	} else if req.Version < 7 { // not nullable before
		resp.Protocol = new(string)
	}
	for _, s := range result.Members {
		member := kmsg.NewJoinGroupResponseMember()
		member.MemberID, member.InstanceID, member.ProtocolMetadata = s.MemberID, nullable(s.InstanceID), s.Metadata
		resp.Members = append(resp.Members, member)
	}
	return resp
}

// SyncGroup returns a member's assignment, once the group's leader has sent it and it is durable.
func (c *Coordinator) SyncGroup(ctx context.Context, req *kmsg.SyncGroupRequest) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.Version = req.Version
	if req.Group == "" {
		resp.ErrorCode = int16(protocol.InvalidGroupID)
		return resp
	}
	assignments := make(map[string][]byte, len(req.GroupAssignment))
	for _, a := range req.GroupAssignment {
		assignments[a.MemberID] = bytes.Clone(a.MemberAssignment) // the request's buffer is reused
	}
	result, code := ask[group.SyncResult](ctx, c, req.Group, func(id group.RequestID) group.Event {
		return group.Sync{
			Request: id, MemberID: req.MemberID, InstanceID: deref(req.InstanceID), Generation: req.Generation,
			ProtocolType: req.ProtocolType, Protocol: req.Protocol, Assignments: assignments,
		}
	})
	if code == protocol.None {
		code = result.Code
	}
	resp.ErrorCode = int16(code)
	if code == protocol.None {
		resp.ProtocolType, resp.Protocol, resp.MemberAssignment = &result.ProtocolType, &result.Protocol, result.Assignment
	}
	return resp
}

// Heartbeat takes a member's sign of life and tells it whether to join again. While the group is being loaded it is
// simply fine, as nothing can have happened to it yet.
func (c *Coordinator) Heartbeat(ctx context.Context, req *kmsg.HeartbeatRequest) *kmsg.HeartbeatResponse {
	resp := kmsg.NewPtrHeartbeatResponse()
	resp.Version = req.Version
	if req.Group == "" {
		resp.ErrorCode = int16(protocol.InvalidGroupID)
		return resp
	}
	result, code := ask[group.CodeResult](ctx, c, req.Group, func(id group.RequestID) group.Event {
		return group.Heartbeat{Request: id, MemberID: req.MemberID, InstanceID: deref(req.InstanceID), Generation: req.Generation}
	})
	if code == protocol.None || code == protocol.CoordinatorLoadInProgress {
		code = result.Code
	}
	resp.ErrorCode = int16(code)
	return resp
}

// LeaveGroup removes members. A member's own outcome stands with it (v3 and later) or for the whole (before).
func (c *Coordinator) LeaveGroup(ctx context.Context, req *kmsg.LeaveGroupRequest) *kmsg.LeaveGroupResponse {
	resp := kmsg.NewPtrLeaveGroupResponse()
	resp.Version = req.Version
	if req.Group == "" {
		resp.ErrorCode = int16(protocol.InvalidGroupID)
		return resp
	}
	leaving := make([]group.LeavingMember, 0, max(1, len(req.Members)))
	if req.Version < 3 {
		leaving = append(leaving, group.LeavingMember{MemberID: req.MemberID})
	}
	for _, m := range req.Members {
		leaving = append(leaving, group.LeavingMember{MemberID: m.MemberID, InstanceID: deref(m.InstanceID), Reason: deref(m.Reason)})
	}
	result, code := ask[group.LeaveResult](ctx, c, req.Group, func(id group.RequestID) group.Event {
		return group.Leave{Request: id, Members: leaving}
	})
	if code == protocol.None {
		code = result.Code
	}
	resp.ErrorCode = int16(code)
	if code != protocol.None {
		return resp
	}
	if req.Version < 3 {
		resp.ErrorCode = int16(result.Members[0].Code)
		return resp
	}
	for _, m := range result.Members {
		member := kmsg.NewLeaveGroupResponseMember()
		member.MemberID, member.InstanceID, member.ErrorCode = m.MemberID, nullable(m.InstanceID), int16(m.Code)
		resp.Members = append(resp.Members, member)
	}
	return resp
}

// deref returns what a nullable string of the protocol holds; null is the same as empty.
func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// nullable undoes deref.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
