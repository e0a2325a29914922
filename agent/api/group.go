package api

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/server"
)

// group serves the APIs of consumer groups, each by the group's coordinator.
func (b *Broker) group(ctx context.Context, r *server.Request, req kmsg.Request) kmsg.Response {
	g := b.deps.Groups
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		ctx, cancel := untilLeaving(ctx, r)
		defer cancel()
		return g.JoinGroup(ctx, groups.Client{ID: r.ClientID, Host: r.Client.Host}, req)
	case *kmsg.SyncGroupRequest:
		ctx, cancel := untilLeaving(ctx, r)
		defer cancel()
		return g.SyncGroup(ctx, req)
	case *kmsg.HeartbeatRequest:
		return g.Heartbeat(ctx, req)
	case *kmsg.LeaveGroupRequest:
		return g.LeaveGroup(ctx, req)
	case *kmsg.OffsetCommitRequest:
		return g.OffsetCommit(ctx, req)
	case *kmsg.OffsetFetchRequest:
		return g.OffsetFetch(ctx, req)
	case *kmsg.OffsetDeleteRequest:
		return g.OffsetDelete(ctx, req)
	case *kmsg.ListGroupsRequest:
		return g.ListGroups(ctx, req)
	case *kmsg.DescribeGroupsRequest:
		return g.DescribeGroups(ctx, req)
	case *kmsg.DeleteGroupsRequest:
		return g.DeleteGroups(ctx, req)
	}
	return nil
}

// untilLeaving returns a context for a request that waits for other members of its group: it ends when the agent drains, and the member, which is then told
// COORDINATOR_NOT_AVAILABLE, tries again elsewhere.
func untilLeaving(ctx context.Context, r *server.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-r.Leave:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
