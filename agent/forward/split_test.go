package forward_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// result is the answer for one item: where it stands, who gave it, and its error.
type result struct {
	item string
	node int64
	code int16
}

// byPartition are the requests about partitions, each for all partitions, backwards, and one that does not exist.
var byPartition = map[string]struct {
	request func(partitions []int32) kmsg.Request
	results func(kmsg.Response) []result
}{
	"ListOffsets": {
		func(partitions []int32) kmsg.Request {
			req, t := kmsg.NewPtrListOffsetsRequest(), kmsg.NewListOffsetsRequestTopic()
			req.Version, t.Topic = 7, "t"
			for _, n := range partitions {
				t.Partitions = append(t.Partitions, kmsg.ListOffsetsRequestTopicPartition{Partition: n, CurrentLeaderEpoch: 9})
			}
			req.Topics = append(req.Topics, t)
			return req
		},
		func(resp kmsg.Response) (all []result) {
			for _, t := range resp.(*kmsg.ListOffsetsResponse).Topics {
				for _, p := range t.Partitions {
					all = append(all, result{fmt.Sprint(t.Topic, p.Partition), p.Offset, p.ErrorCode})
				}
			}
			return all
		},
	},
	"OffsetForLeaderEpoch": {
		func(partitions []int32) kmsg.Request {
			req, t := kmsg.NewPtrOffsetForLeaderEpochRequest(), kmsg.NewOffsetForLeaderEpochRequestTopic()
			req.Version, t.Topic = 4, "t"
			for _, n := range partitions {
				t.Partitions = append(t.Partitions, kmsg.OffsetForLeaderEpochRequestTopicPartition{Partition: n, CurrentLeaderEpoch: 9})
			}
			req.Topics = append(req.Topics, t)
			return req
		},
		func(resp kmsg.Response) (all []result) {
			for _, t := range resp.(*kmsg.OffsetForLeaderEpochResponse).Topics {
				for _, p := range t.Partitions {
					all = append(all, result{fmt.Sprint(t.Topic, p.Partition), p.EndOffset, p.ErrorCode})
				}
			}
			return all
		},
	},
	"DeleteRecords": {
		func(partitions []int32) kmsg.Request {
			req, t := kmsg.NewPtrDeleteRecordsRequest(), kmsg.NewDeleteRecordsRequestTopic()
			req.Version, t.Topic = 2, "t"
			for _, n := range partitions {
				t.Partitions = append(t.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: n})
			}
			req.Topics = append(req.Topics, t)
			return req
		},
		func(resp kmsg.Response) (all []result) {
			for _, t := range resp.(*kmsg.DeleteRecordsResponse).Topics {
				for _, p := range t.Partitions {
					all = append(all, result{fmt.Sprint(t.Topic, p.Partition), p.LowWatermark, p.ErrorCode})
				}
			}
			return all
		},
	},
	"DescribeProducers": {
		func(partitions []int32) kmsg.Request {
			req, t := kmsg.NewPtrDescribeProducersRequest(), kmsg.NewDescribeProducersRequestTopic()
			t.Topic, t.Partitions = "t", partitions
			req.Topics = append(req.Topics, t)
			return req
		},
		func(resp kmsg.Response) (all []result) {
			for _, t := range resp.(*kmsg.DescribeProducersResponse).Topics {
				for _, p := range t.Partitions {
					r := result{item: fmt.Sprint(t.Topic, p.Partition), code: p.ErrorCode}
					for _, a := range p.ActiveProducers {
						r.node = a.ProducerID
					}
					all = append(all, r)
				}
			}
			return all
		},
	},
}

// TestPartitions: each partition is answered by its leader, in the order of the request, before and after it moves.
func TestPartitions(t *testing.T) {
	for name, kind := range byPartition {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			partitions := []int32{5, 3, 4, 1, 2, 0, 99}
			want := func() []result {
				var all []result
				for _, n := range partitions[:shards] {
					all = append(all, result{fmt.Sprint("t", n), int64(w.leader(n) + 1), 0})
				}
				return all
			}()
			check := func() {
				t.Helper()
				got := kind.results(w.ask(kind.request(partitions)))
				last := got[len(got)-1]
				if last.item != "t99" || last.code != int16(protocol.UnknownTopicOrPartition) {
					t.Errorf("the partition that does not exist: %+v", last)
				}
				if got = got[:len(got)-1]; !slices.Equal(got, want) {
					t.Errorf("results %v, want %v", got, want)
				}
			}
			check()
			for n, a := range w.agents {
				if got := a.count(name); got != 1 {
					t.Errorf("agent %d was asked %d times, want 1", n, got)
				}
			}
			// Partition 0's leader has moved, and the view does not know yet.
			old, next := w.leader(0), (w.leader(0)+1)%agents
			w.agents[old].lead(w.shard(0), false)
			w.agents[next].lead(w.shard(0), true)
			want[5].node = int64(next + 1)
			moved := time.AfterFunc(100*time.Millisecond, func() { w.own(w.shard(0), next) })
			defer moved.Stop()
			check()
		})
	}
}

// ofGroup are the requests about one group each.
var ofGroup = map[string]struct {
	request func(group string) kmsg.Request
	result  func(kmsg.Response) (node int64, code int16)
}{
	"JoinGroup": {
		func(group string) kmsg.Request { return &kmsg.JoinGroupRequest{Version: 6, Group: group} },
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.JoinGroupResponse)
			return int64(r.Generation), r.ErrorCode
		},
	},
	"SyncGroup": {
		func(group string) kmsg.Request { return &kmsg.SyncGroupRequest{Version: 5, Group: group} },
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.SyncGroupResponse)
			return int64(r.MemberAssignment[0]), r.ErrorCode
		},
	},
	"Heartbeat": {
		func(group string) kmsg.Request { return &kmsg.HeartbeatRequest{Version: 4, Group: group} },
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.HeartbeatResponse)
			return int64(r.ThrottleMillis), r.ErrorCode
		},
	},
	"LeaveGroup": {
		func(group string) kmsg.Request { return &kmsg.LeaveGroupRequest{Version: 5, Group: group} },
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.LeaveGroupResponse)
			return int64(r.ThrottleMillis), r.ErrorCode
		},
	},
	"OffsetDelete": {
		func(group string) kmsg.Request { return &kmsg.OffsetDeleteRequest{Group: group} },
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.OffsetDeleteResponse)
			return int64(r.ThrottleMillis), r.ErrorCode
		},
	},
	"OffsetCommit": {
		func(group string) kmsg.Request {
			return &kmsg.OffsetCommitRequest{Version: 8, Group: group, Topics: []kmsg.OffsetCommitRequestTopic{{
				Topic: "t", Partitions: []kmsg.OffsetCommitRequestTopicPartition{{Partition: 1}},
			}}}
		},
		func(resp kmsg.Response) (int64, int16) {
			r := resp.(*kmsg.OffsetCommitResponse)
			return int64(r.ThrottleMillis), r.Topics[0].Partitions[0].ErrorCode
		},
	},
	"OffsetFetch": {
		func(group string) kmsg.Request {
			return &kmsg.OffsetFetchRequest{Version: 1, Group: group, Topics: []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{1}}}}
		},
		func(resp kmsg.Response) (int64, int16) {
			p := resp.(*kmsg.OffsetFetchResponse).Topics[0].Partitions[0]
			return p.Offset, p.ErrorCode
		},
	},
}

// TestGroup: a request about a group is answered by its coordinator, before and after it moves, though that refuses it at first.
func TestGroup(t *testing.T) {
	for name, kind := range ofGroup {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, g := range groupNames {
				if node, code := kind.result(w.ask(kind.request(g))); node != int64(coordinatorOf(g)) || code != 0 {
					t.Errorf("group %s: answered by %d with error %d, want %d", g, node, code, coordinatorOf(g))
				}
			}
			shard := coordinator.ShardOfName("a", shards)
			next := int(coordinatorOf("a")) % agents
			w.agents[coordinatorOf("a")-1].lead(shard, false)
			moved := time.AfterFunc(100*time.Millisecond, func() {
				w.own(shard, next)
				w.agents[next].lead(shard, true)
			})
			defer moved.Stop()
			if node, code := kind.result(w.ask(kind.request("a"))); node != int64(next+1) || code != 0 {
				t.Errorf("after a move: answered by %d with error %d, want %d", node, code, next+1)
			}
		})
	}
}

// TestGroups: each of several groups is answered by its coordinator, in order.
func TestGroups(t *testing.T) {
	w := newWorld(t)
	var want []result
	for _, g := range groupNames {
		want = append(want, result{g, int64(coordinatorOf(g)), 0})
	}
	var described []result
	for _, g := range w.ask(&kmsg.DescribeGroupsRequest{Version: 5, Groups: groupNames}).(*kmsg.DescribeGroupsResponse).Groups {
		r := result{item: g.Group, code: g.ErrorCode}
		_, _ = fmt.Sscan(g.State, &r.node)
		described = append(described, r)
	}
	if !slices.Equal(described, want) {
		t.Errorf("DescribeGroups: %v, want %v", described, want)
	}
	fetch := &kmsg.OffsetFetchRequest{Version: 8}
	for _, g := range groupNames {
		fetch.Groups = append(fetch.Groups, kmsg.OffsetFetchRequestGroup{Group: g})
	}
	var fetched []result
	for _, g := range w.ask(fetch).(*kmsg.OffsetFetchResponse).Groups {
		fetched = append(fetched, result{g.Group, g.Topics[0].Partitions[0].Offset, g.ErrorCode})
	}
	if !slices.Equal(fetched, want) {
		t.Errorf("OffsetFetch: %v, want %v", fetched, want)
	}
	for i, g := range w.ask(&kmsg.DeleteGroupsRequest{Version: 2, Groups: groupNames}).(*kmsg.DeleteGroupsResponse).Groups {
		if g.Group != groupNames[i] || g.ErrorCode != 0 {
			t.Errorf("DeleteGroups: %+v, want %s deleted", g, groupNames[i])
		}
	}
}

// TestEverywhere: every agent is asked for what it leads.
func TestEverywhere(t *testing.T) {
	w := newWorld(t)
	var got, want []result
	for _, g := range w.ask(&kmsg.ListGroupsRequest{Version: 4}).(*kmsg.ListGroupsResponse).Groups {
		r := result{item: g.Group}
		_, _ = fmt.Sscan(g.ProtocolType, &r.node)
		got = append(got, r)
	}
	for _, g := range groupNames {
		want = append(want, result{g, int64(coordinatorOf(g)), 0})
	}
	if !slices.Equal(got, want) {
		t.Errorf("ListGroups: %v, want %v", got, want)
	}
	got, want = nil, nil
	dirs := w.ask(&kmsg.DescribeLogDirsRequest{Version: 4}).(*kmsg.DescribeLogDirsResponse).Dirs
	if len(dirs) != 1 || dirs[0].Dir != "/varve" || dirs[0].ErrorCode != 0 {
		t.Fatalf("DescribeLogDirs: %+v, want one directory", dirs)
	}
	for _, p := range dirs[0].Topics[0].Partitions {
		got = append(got, result{fmt.Sprint(p.Partition), p.Size, 0})
	}
	for n := range int32(shards) {
		want = append(want, result{fmt.Sprint(n), int64(w.leader(n) + 1), 0})
	}
	if !slices.Equal(got, want) {
		t.Errorf("DescribeLogDirs: %v, want %v", got, want)
	}
}

// TestEverywhereLeaving: an agent that leads nothing is not waited for, and one that is gone is.
func TestEverywhereLeaving(t *testing.T) {
	w := newWorld(t)
	w.agents[2].stop()
	for p := range int32(shards) {
		if w.leader(p) == 2 {
			w.agents[1].lead(w.shard(p), true)
			w.own(w.shard(p), 1)
		}
	}
	w.settled()
	start := time.Now()
	list := func() int { return len(w.ask(&kmsg.ListGroupsRequest{Version: 4}).(*kmsg.ListGroupsResponse).Groups) }
	if got := list(); got != len(groupNames) || time.Since(start) > 5*time.Second {
		t.Errorf("%d groups after %v, want %d at once", got, time.Since(start), len(groupNames))
	}
	w.agents[1].stop()
	taken := time.AfterFunc(100*time.Millisecond, func() {
		for s := range coordinator.ShardID(shards) {
			w.agents[0].lead(s, true)
			w.own(s, 0)
		}
	})
	defer taken.Stop()
	if got := list(); got != len(groupNames) {
		t.Errorf("%d groups after a failover, want %d", got, len(groupNames))
	}
}

// TestAgentGone: what waits for an agent that is not registered any more is asked of who comes after it.
func TestAgentGone(t *testing.T) {
	w := newWorld(t)
	p := w.partitionsOf(1)[0]
	w.agents[1].stop()
	gone := time.AfterFunc(50*time.Millisecond, func() {
		w.agents[2].lead(w.shard(p), true)
		w.own(w.shard(p), 2)
	})
	defer gone.Stop()
	kind := byPartition["ListOffsets"]
	if got := kind.results(w.ask(kind.request([]int32{p}))); got[0].node != 3 || got[0].code != 0 {
		t.Errorf("partition %d: %+v, want the answer of agent 3", p, got[0])
	}
}

// TestLeave: when the agent drains, nothing is tried again.
func TestLeave(t *testing.T) {
	w := newWorld(t)
	p := w.partitionsOf(1)[0]
	w.agents[1].lead(w.shard(p), false)
	close(w.leave)
	kind := byPartition["ListOffsets"]
	if got := kind.results(w.ask(kind.request([]int32{p}))); got[0].code != int16(protocol.NotLeaderOrFollower) {
		t.Errorf("partition %d: %+v, want NOT_LEADER_OR_FOLLOWER", p, got[0])
	}
}

// TestGivesUp: what no coordinator takes is refused before the client tries again itself.
func TestGivesUp(t *testing.T) {
	w := newWorld(t)
	n := coordinatorOf("a") - 1
	a := w.agents[n]
	a.lead(coordinator.ShardOfName("a", shards), false)
	go func() {
		for a.count("OffsetCommit") < 2 {
			time.Sleep(time.Millisecond)
		}
		w.late.Store(int64(9 * time.Second))
	}()
	kind := ofGroup["OffsetCommit"]
	if _, code := kind.result(w.ask(kind.request("a"))); code != int16(protocol.NotCoordinator) {
		t.Errorf("error %d, want NOT_COORDINATOR", code)
	}
}
