package groups

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

func TestGroupFromJoinToDelete(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		equal(t, "state of no group", a.state("g"), "Dead")
		begin := time.Now()
		members := a.form("g", 2)
		equal(t, "initial delay", time.Since(begin), 6*time.Second) // 3 s, and as much for the second member
		equalSlices(t, "listed", a.list(), "g/consumer/Stable")
		equalSlices(t, "listed stable", a.list("stable"), "g/consumer/Stable")
		equalSlices(t, "listed empty", a.list("Empty"))

		code(t, "heartbeat", a.heartbeat("g", members[1]), protocol.None)
		code(t, "commit", a.commit("g", members[1], "orders", 70, 5), protocol.None)
		code(t, "commit of an old generation", a.commit("g", member{members[1].id, 0}, "orders", 70, 4), protocol.IllegalGeneration)
		code(t, "commit of a stranger", a.commit("g", nobody, "orders", 70, 3), protocol.UnknownMemberID)
		equal(t, "offset", a.fetchOffset("g", "orders", 70), 5)
		equal(t, "no offset", a.fetchOffset("g", "orders", 71), -1)

		r := kmsg.NewPtrDescribeGroupsRequest()
		r.Version, r.Groups, r.IncludeAuthorizedOperations = 6, []string{"g", "none"}, true
		described := a.DescribeGroups(t.Context(), r).Groups
		g := described[0]
		if g.State != "Stable" || g.Protocol != "range" || len(g.Members) != 2 || g.AuthorizedOperations != 3400 ||
			g.Members[0].ClientHost != client.Host || !strings.HasPrefix(string(g.Members[0].MemberAssignment), "for client-") {
			t.Fatalf("described %+v", g)
		}
		code(t, "describe none", described[1].ErrorCode, protocol.GroupIDNotFound)

		del := kmsg.NewPtrDeleteGroupsRequest()
		del.Version, del.Groups = 2, []string{"g", "none"}
		deleted := a.DeleteGroups(t.Context(), del)
		code(t, "delete", deleted.Groups[0].ErrorCode, protocol.NonEmptyGroup)
		code(t, "delete none", deleted.Groups[1].ErrorCode, protocol.GroupIDNotFound)
		a.leave("g", members...)
		equal(t, "state", a.state("g"), "Empty")
		equal(t, "offset", a.fetchOffset("g", "orders", 70), 5)
		code(t, "delete", a.DeleteGroups(t.Context(), del).Groups[0].ErrorCode, protocol.None)
		equal(t, "offset", a.fetchOffset("g", "orders", 70), -1)
		equal(t, "state", a.state("g"), "Dead")
		equalSlices(t, "listed", a.list())
		if items, _, _ := c.store.List(t.Context(), "", 0); len(items) != 0 {
			t.Fatalf("left behind: %v", items)
		}
	})
}

func TestMemberFailsAndOthersGoOn(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("m", 2)
		for range 3 {
			time.Sleep(4 * time.Second)
			a.heartbeat("m", members[1])
		}
		code(t, "heartbeat", a.heartbeat("m", members[1]), protocol.RebalanceInProgress)
		r := a.JoinGroup(t.Context(), client, joinRequest("m", members[1].id))
		code(t, "join", r.ErrorCode, protocol.None)
		equal(t, "members", len(r.Members), 1)
		time.Sleep(time.Minute)
		equal(t, "state", a.state("m"), "Empty")
	})
}

func TestTakeoverWithoutRebalance(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("g", 2)
		code(t, "commit", a.commit("g", members[0], "orders", 0, 9), protocol.None)
		a.stop()
		code(t, "after the end", a.heartbeat("g", members[0]), protocol.NotCoordinator)

		b := c.start(2)
		equalSlices(t, "listed", b.list(), "g/consumer/Stable")
		equal(t, "live", b.live(), 0)
		for _, m := range members {
			code(t, "heartbeat", b.heartbeat("g", m), protocol.None)
		}
		equal(t, "offset", b.fetchOffset("g", "orders", 0), 9)
		s := &kmsg.SyncGroupRequest{Version: 5, Group: "g", MemberID: members[1].id, Generation: members[1].generation}
		equal(t, "assignment", string(b.SyncGroup(t.Context(), s).MemberAssignment), "for "+members[1].id)
		time.Sleep(11 * time.Second)
		equal(t, "state", b.state("g"), "Empty")
	})
}

func TestSyncWaitsForDurability(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		first := a.JoinGroup(t.Context(), client, joinRequest("g", ""))
		r := a.JoinGroup(t.Context(), client, joinRequest("g", first.MemberID))
		a.ledger.hold()
		request := &kmsg.SyncGroupRequest{Version: 5, Group: "g", MemberID: r.MemberID, Generation: r.Generation}
		answer := later(func() *kmsg.SyncGroupResponse { return a.SyncGroup(t.Context(), request) })
		pending(t, answer, "sync")
		equal(t, "state", a.state("g"), "CompletingRebalance")
		a.ledger.fail(coordinator.ErrNoSpace)
		a.ledger.release()
		code(t, "sync", (<-answer).ErrorCode, protocol.CoordinatorNotAvailable)
		equal(t, "state", a.state("g"), "PreparingRebalance")
	})
}

func TestResign(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("g", 1)
		a.form("other", 1)
		id := a.JoinGroup(t.Context(), client, joinRequest("g", "")).MemberID
		join := later(func() *kmsg.JoinGroupResponse { return a.JoinGroup(t.Context(), client, joinRequest("g", id)) })
		a.ledger.hold()
		commit := later(func() int16 { return a.commit("g", members[0], "orders", 0, 9) })
		pending(t, join, "join")
		pending(t, commit, "commit")
		shard := coordinator.ShardOfName("g", testShards)
		a.mu.Lock()
		delete(a.epochs, shard)
		a.mu.Unlock()
		a.Resign(shard)
		code(t, "join", (<-join).ErrorCode, protocol.NotCoordinator)
		code(t, "commit", <-commit, protocol.NotCoordinator)
		code(t, "heartbeat", a.heartbeat("g", members[0]), protocol.NotCoordinator)
		equalSlices(t, "listed", a.list(), "other/consumer/Stable")
		a.ledger.release()
		synctest.Wait()

		a.mu.Lock()
		a.epochs[shard] = 3
		a.mu.Unlock()
		code(t, "heartbeat", a.heartbeat("g", members[0]), protocol.None)
		equal(t, "offset", a.fetchOffset("g", "orders", 0), 9) // the ledger had it already
		equalSlices(t, "listed", a.list(), "g/consumer/Stable", "other/consumer/Stable")

		a.Resign(shard)
		deleted := []coordinator.Op{{Key: coordinator.KeyGroup("g"), Delete: true}} // by another agent
		if _, err := c.store.Txn(t.Context(), nil, deleted); err != nil {
			t.Fatal(err)
		}
		equalSlices(t, "listed", a.list(), "other/consumer/Stable")
	})
}

func TestFencedOwnerEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("g", 1)
		a.ledger.fail(&coordinator.FencedError{Keys: []string{"x"}})
		code(t, "commit", a.commit("g", members[0], "orders", 0, 1), protocol.NotCoordinator)
		equal(t, "live", a.live(), 0)

		members = c.start(2).form("h", 1)
		a.form("i", 1)
		a.lose()
		before := a.ledger.writes
		code(t, "commit", a.commit("i", members[0], "orders", 0, 1), protocol.NotCoordinator)
		equal(t, "writes", a.ledger.writes, before)
	})
}

func TestNothingIsWrittenAfterTheLeadershipIsLost(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		a.form("g", 1)
		before := a.ledger.writes
		a.lose()
		time.Sleep(11 * time.Second) // the member's session ends, and the empty group would be stored
		equal(t, "writes", a.ledger.writes, before)
		equal(t, "live", a.live(), 0)
	})
}

// An owner that is forgotten while its writes are under way would be followed by one that does not see them.
func TestGroupWithWritesUnderWayIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		a.ledger.hold()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r := a.OffsetCommit(ctx, commitRequest("g", nobody, "orders", map[int32]int64{0: 1}))
		code(t, "commit", r.Topics[0].Partitions[0].ErrorCode, protocol.CoordinatorNotAvailable)
		time.Sleep(time.Hour)
		equal(t, "live", a.live(), 1)
		answer := later(func() int16 { return a.commit("g", nobody, "orders", 1, 2) })
		pending(t, answer, "commit")
		a.ledger.release()
		code(t, "commit", <-answer, protocol.None)
		equal(t, "offset", a.fetchOffset("g", "orders", 0), 1)
		time.Sleep(2 * time.Minute)
		equal(t, "live", a.live(), 0)
	})
}

func TestAnotherEpochLoadsAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a, b := c.start(1), c.start(2)
		code(t, "commit", a.commit("g", nobody, "orders", 0, 1), protocol.None)
		code(t, "commit", b.commit("g", nobody, "orders", 0, 2), protocol.None)
		a.mu.Lock()
		a.epochs[coordinator.ShardOfName("g", testShards)] = 3
		a.mu.Unlock()
		code(t, "commit while the old owner ends", a.commit("g", nobody, "orders", 1, 7), protocol.CoordinatorLoadInProgress)
		synctest.Wait()
		equal(t, "offset", a.fetchOffset("g", "orders", 0), 2)
	})
}

func TestLoadFails(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("g", 1)
		a.stop()
		b := c.start(2)
		c.store.Inject(mem.Fault{Call: mem.CallGet, Kind: mem.Unavailable}, mem.Fault{Call: mem.CallList, Kind: mem.Unavailable})
		code(t, "commit", b.commit("g", members[0], "orders", 0, 1), protocol.CoordinatorLoadInProgress)
		code(t, "heartbeat", b.heartbeat("g", members[0]), protocol.None)
		c.store.Heal()
		code(t, "commit", b.commit("g", members[0], "orders", 0, 1), protocol.None)
	})
}

func TestIdleGroupIsForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "commit", a.commit("simple", nobody, "orders", 0, 4), protocol.None)
		equal(t, "offset", a.fetchOffset("nothing", "orders", 0), -1)
		members := a.form("left", 1)
		a.leave("left", members...)
		a.form("h", 1)
		equal(t, "live", a.live(), 4)
		time.Sleep(5 * time.Second)
		equal(t, "live", a.live(), 4)
		for range 8 {
			time.Sleep(9 * time.Second)
			code(t, "heartbeat", a.heartbeat("h", member{members[0].id, 0}), protocol.UnknownMemberID)
		}
		equal(t, "live", a.live(), 1) // h itself, whose member is gone but which was asked for
		equal(t, "offset", a.fetchOffset("simple", "orders", 0), 4)
		equalSlices(t, "listed", a.list(), "h/consumer/Empty", "left/consumer/Empty", "simple//Empty")
	})
}

func TestLimits(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.GroupsMax = 2 })
		a.form("g", 1)
		a.form("h", 1)
		r := a.JoinGroup(t.Context(), client, joinRequest("i", ""))
		code(t, "join", r.ErrorCode, protocol.CoordinatorNotAvailable)
		r = a.JoinGroup(t.Context(), client, joinRequest(strings.Repeat("i", 5000), ""))
		code(t, "join", r.ErrorCode, protocol.InvalidGroupID)
		r = a.JoinGroup(t.Context(), client, joinRequest("", ""))
		code(t, "join", r.ErrorCode, protocol.InvalidGroupID)
		short := joinRequest("g", "")
		short.SessionTimeoutMillis = 5999
		code(t, "join", a.JoinGroup(t.Context(), client, short).ErrorCode, protocol.InvalidSessionTimeout)
	})
}

func TestCallEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		first := a.JoinGroup(ctx, client, joinRequest("g", ""))
		r := a.JoinGroup(ctx, client, joinRequest("g", first.MemberID))
		code(t, "join", r.ErrorCode, protocol.CoordinatorNotAvailable)
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatal("answered before the context ended")
		}
	})
}

func TestTooLargeForTheStore(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		big := joinRequest("g", "")
		big.Version = 3
		big.Protocols[0].Metadata = make([]byte, coordinator.ValueBytesMax)
		r := a.JoinGroup(t.Context(), client, big)
		code(t, "join", r.ErrorCode, protocol.None)
		s := &kmsg.SyncGroupRequest{Version: 3, Group: "g", MemberID: r.MemberID, Generation: r.Generation}
		code(t, "sync", a.SyncGroup(t.Context(), s).ErrorCode, protocol.None)
		item, _, err := c.store.Get(t.Context(), coordinator.KeyGroup("g"))
		if err != nil {
			t.Fatal(err)
		}
		stored, err := coordinator.Decode[group.Snapshot](item)
		if err != nil || !stored.Bare || len(stored.Members) != 1 {
			t.Fatalf("stored %+v, %v", stored, err)
		}
		a.stop()
		code(t, "heartbeat", c.start(2).heartbeat("g", member{r.MemberID, r.Generation}), protocol.RebalanceInProgress)
	})
}

func TestOldVersions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		old := joinRequest("g", "")
		old.Version, old.RebalanceTimeoutMillis = 0, -1
		r := a.JoinGroup(t.Context(), client, old)
		code(t, "join", r.ErrorCode, protocol.None)
		unknown := &kmsg.LeaveGroupRequest{Version: 1, Group: "none", MemberID: "nobody"}
		code(t, "leave", a.LeaveGroup(t.Context(), unknown).ErrorCode, protocol.UnknownMemberID)
		left := &kmsg.LeaveGroupRequest{Version: 1, Group: "g", MemberID: r.MemberID}
		code(t, "leave", a.LeaveGroup(t.Context(), left).ErrorCode, protocol.None)
		unsynced := &kmsg.SyncGroupRequest{Version: 0, Group: "none", MemberID: "nobody", Generation: 1}
		code(t, "sync", a.SyncGroup(t.Context(), unsynced).ErrorCode, protocol.UnknownMemberID)
		refused := joinRequest("g", "nobody")
		refused.Version = 5
		if resp := a.JoinGroup(t.Context(), client, refused); resp.Protocol == nil || resp.Generation != -1 {
			t.Fatalf("refused with %+v", resp)
		}
	})
}

// The server reuses the memory of a request once it is answered.
func TestPayloadsAreCopied(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		join := joinRequest("g", "")
		join.Version = 3
		metadata := join.Protocols[0].Metadata
		want := string(metadata)
		r := a.JoinGroup(t.Context(), client, join)
		clear(metadata)
		assignment := []byte("all of it")
		s := &kmsg.SyncGroupRequest{Version: 3, Group: "g", MemberID: r.MemberID, Generation: r.Generation}
		s.GroupAssignment = []kmsg.SyncGroupRequestGroupAssignment{{MemberID: r.MemberID, MemberAssignment: assignment}}
		code(t, "sync", a.SyncGroup(t.Context(), s).ErrorCode, protocol.None)
		clear(assignment)
		g := a.DescribeGroups(t.Context(), &kmsg.DescribeGroupsRequest{Version: 5, Groups: []string{"g"}}).Groups[0]
		equal(t, "metadata", string(g.Members[0].ProtocolMetadata), want)
		equal(t, "assignment", string(g.Members[0].MemberAssignment), "all of it")
	})
}
