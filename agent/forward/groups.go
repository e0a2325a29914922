package forward

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// ofGroup is a request about one group, which goes to its coordinator as it is.
type ofGroup struct {
	group string
	req   kmsg.Request
	resp  kmsg.Response
	code  func(kmsg.Response) int16
	waits bool
}

// oneGroup returns the request; code finds the error that says who coordinates the group.
func oneGroup[Resp kmsg.Response](req kmsg.Request, group string, code func(Resp) int16) *ofGroup {
	return &ofGroup{group: group, req: req, code: func(r kmsg.Response) int16 { return code(r.(Resp)) }}
}

func (o *ofGroup) places(r *route) []place { return []place{r.group(o.group)} }

func (o *ofGroup) part([]int) kmsg.Request { return o.req }

func (o *ofGroup) take(_ []int, answer kmsg.Response) bool {
	if answer.Key() != o.req.Key() {
		return false
	}
	o.resp = answer
	return true
}

func (o *ofGroup) again(int, place) bool { return notCoordinated(protocol.ErrorCode(o.code(o.resp))) }

func (o *ofGroup) answer() kmsg.Response { return o.resp }

func (o *ofGroup) long() bool { return o.waits }

func joinGroup(req *kmsg.JoinGroupRequest) divisible {
	o := oneGroup(req, req.Group, func(r *kmsg.JoinGroupResponse) int16 { return r.ErrorCode })
	o.waits = true
	return o
}

func syncGroup(req *kmsg.SyncGroupRequest) divisible {
	o := oneGroup(req, req.Group, func(r *kmsg.SyncGroupResponse) int16 { return r.ErrorCode })
	o.waits = true
	return o
}

func heartbeat(req *kmsg.HeartbeatRequest) divisible {
	return oneGroup(req, req.Group, func(r *kmsg.HeartbeatResponse) int16 { return r.ErrorCode })
}

func leaveGroup(req *kmsg.LeaveGroupRequest) divisible {
	return oneGroup(req, req.Group, func(r *kmsg.LeaveGroupResponse) int16 { return r.ErrorCode })
}

// offsetCommit: the error of the group stands with each partition.
func offsetCommit(req *kmsg.OffsetCommitRequest) divisible {
	return oneGroup(req, req.Group, func(r *kmsg.OffsetCommitResponse) int16 {
		for i := range r.Topics {
			for j := range r.Topics[i].Partitions {
				if code := r.Topics[i].Partitions[j].ErrorCode; notCoordinated(protocol.ErrorCode(code)) {
					return code
				}
			}
		}
		return 0
	})
}

func offsetDelete(req *kmsg.OffsetDeleteRequest) divisible {
	return oneGroup(req, req.Group, func(r *kmsg.OffsetDeleteResponse) int16 { return r.ErrorCode })
}

// offsetFetch: of several groups from version 8 on; before, of one, whose error stands with each partition in version 1.
func offsetFetch(req *kmsg.OffsetFetchRequest) divisible {
	if req.Version >= 8 {
		return offsetFetchGroups(req)
	}
	return oneGroup(req, req.Group, func(r *kmsg.OffsetFetchResponse) int16 {
		if req.Version < 2 && len(r.Topics) > 0 && len(r.Topics[0].Partitions) > 0 {
			return r.Topics[0].Partitions[0].ErrorCode
		}
		return r.ErrorCode
	})
}

// byGroup is a request about several groups, each of which has a result of its own.
type byGroup[Q, A any] struct {
	groups  []Q
	name    func(Q) string
	results []A
	code    func(*A) int16

	request  func([]Q) kmsg.Request
	got      func(kmsg.Response) []A
	response func([]A) kmsg.Response
}

func (b *byGroup[Q, A]) places(r *route) []place {
	all := make([]place, len(b.groups))
	for i, g := range b.groups {
		all[i] = r.group(b.name(g))
	}
	return all
}

func (b *byGroup[Q, A]) part(of []int) kmsg.Request {
	groups := make([]Q, len(of))
	for n, i := range of {
		groups[n] = b.groups[i]
	}
	return b.request(groups)
}

func (b *byGroup[Q, A]) take(of []int, answer kmsg.Response) bool {
	got := b.got(answer)
	if len(got) != len(of) {
		return false
	}
	for n, i := range of {
		b.results[i] = got[n]
	}
	return true
}

func (b *byGroup[Q, A]) again(i int, _ place) bool {
	return notCoordinated(protocol.ErrorCode(b.code(&b.results[i])))
}

func (b *byGroup[Q, A]) answer() kmsg.Response { return b.response(b.results) }

func (b *byGroup[Q, A]) long() bool { return false }

func offsetFetchGroups(req *kmsg.OffsetFetchRequest) divisible {
	return &byGroup[kmsg.OffsetFetchRequestGroup, kmsg.OffsetFetchResponseGroup]{
		groups: req.Groups, results: make([]kmsg.OffsetFetchResponseGroup, len(req.Groups)),
		name: func(g kmsg.OffsetFetchRequestGroup) string { return g.Group },
		code: func(g *kmsg.OffsetFetchResponseGroup) int16 { return g.ErrorCode },
		request: func(groups []kmsg.OffsetFetchRequestGroup) kmsg.Request {
			part := *req
			part.Groups = groups
			return &part
		},
		got: func(r kmsg.Response) []kmsg.OffsetFetchResponseGroup { return r.(*kmsg.OffsetFetchResponse).Groups },
		response: func(groups []kmsg.OffsetFetchResponseGroup) kmsg.Response {
			return &kmsg.OffsetFetchResponse{Version: req.Version, Groups: groups}
		},
	}
}

func describeGroups(req *kmsg.DescribeGroupsRequest) divisible {
	return &byGroup[string, kmsg.DescribeGroupsResponseGroup]{
		groups: req.Groups, results: make([]kmsg.DescribeGroupsResponseGroup, len(req.Groups)),
		name: func(name string) string { return name },
		code: func(g *kmsg.DescribeGroupsResponseGroup) int16 { return g.ErrorCode },
		request: func(groups []string) kmsg.Request {
			part := *req
			part.Groups = groups
			return &part
		},
		got: func(r kmsg.Response) []kmsg.DescribeGroupsResponseGroup {
			return r.(*kmsg.DescribeGroupsResponse).Groups
		},
		response: func(groups []kmsg.DescribeGroupsResponseGroup) kmsg.Response {
			return &kmsg.DescribeGroupsResponse{Version: req.Version, Groups: groups}
		},
	}
}

func deleteGroups(req *kmsg.DeleteGroupsRequest) divisible {
	return &byGroup[string, kmsg.DeleteGroupsResponseGroup]{
		groups: req.Groups, results: make([]kmsg.DeleteGroupsResponseGroup, len(req.Groups)),
		name: func(name string) string { return name },
		code: func(g *kmsg.DeleteGroupsResponseGroup) int16 { return g.ErrorCode },
		request: func(groups []string) kmsg.Request {
			part := *req
			part.Groups = groups
			return &part
		},
		got: func(r kmsg.Response) []kmsg.DeleteGroupsResponseGroup { return r.(*kmsg.DeleteGroupsResponse).Groups },
		response: func(groups []kmsg.DeleteGroupsResponseGroup) kmsg.Response {
			return &kmsg.DeleteGroupsResponse{Version: req.Version, Groups: groups}
		},
	}
}

// everywhere serves requests that every agent answers for what it leads. merge puts the answers together, of which some may be missing: complete is false
// then.
func everywhere[Resp kmsg.Response](merge func(into Resp, answers []Resp, complete bool)) kind {
	return func(f *Forwarder, ctx context.Context, r *server.Request, req kmsg.Request) (server.Answer, error) {
		var answers []Resp
		var complete bool
		err := f.retry(ctx, r, f.deps.Now().Add(patience), func() (bool, error) {
			answers, complete = askOwners[Resp](ctx, f, r, req)
			return complete, nil
		})
		if err != nil {
			return nil, err
		}
		into := req.ResponseKind().(Resp)
		merge(into, answers, complete)
		return message(r, into), nil
	}
}

// askOwners asks all agents that lead something. Others may not answer: they start, or are about to leave. It is complete if every shard's leader has answered.
func askOwners[Resp kmsg.Response](ctx context.Context, f *Forwarder, r *server.Request, req kmsg.Request) (answers []Resp, complete bool) {
	route := f.route()
	complete = true
	owners := make(map[coordinator.LogID]coordinator.Agent)
	for _, s := range f.deps.View.Shards() {
		if a, ok := route.agents[s.Owner]; ok {
			owners[s.Owner] = a
		} else {
			complete = false
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range owners {
		wg.Go(func() {
			resp, err := f.ask(ctx, r, a, req, false)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || notCoordinated(listError(resp)) {
				complete = false
				return
			}
			answers = append(answers, resp.(Resp))
		})
	}
	wg.Wait()
	return answers, complete
}

// listError is the error of a list.
func listError(resp kmsg.Response) protocol.ErrorCode {
	switch list := resp.(type) {
	case *kmsg.ListGroupsResponse:
		return protocol.ErrorCode(list.ErrorCode)
	case *kmsg.ListTransactionsResponse:
		return protocol.ErrorCode(list.ErrorCode)
	}
	return protocol.None
}

// mergeGroups: each agent lists the groups that it coordinates. While a shard moves, two may list one.
func mergeGroups(into *kmsg.ListGroupsResponse, answers []*kmsg.ListGroupsResponse, complete bool) {
	byName := make(map[string]kmsg.ListGroupsResponseGroup)
	for _, answer := range answers {
		into.ErrorCode = cmp.Or(into.ErrorCode, answer.ErrorCode)
		for _, g := range answer.Groups {
			byName[g.Group] = g
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		into.Groups = append(into.Groups, byName[name])
	}
	if !complete {
		into.ErrorCode = int16(protocol.CoordinatorNotAvailable)
	}
}

// mergeLogDirs: each agent has the one directory that there is, with the partitions that it leads.
func mergeLogDirs(into *kmsg.DescribeLogDirsResponse, answers []*kmsg.DescribeLogDirsResponse, complete bool) {
	topics := make(map[string]map[int32]kmsg.DescribeLogDirsResponseDirTopicPartition)
	for _, answer := range answers {
		into.ErrorCode = cmp.Or(into.ErrorCode, answer.ErrorCode)
		for _, dir := range answer.Dirs {
			if len(into.Dirs) == 0 {
				first := dir
				first.Topics = nil
				into.Dirs = append(into.Dirs, first)
			}
			for _, t := range dir.Topics {
				if topics[t.Topic] == nil {
					topics[t.Topic] = make(map[int32]kmsg.DescribeLogDirsResponseDirTopicPartition)
				}
				for _, p := range t.Partitions {
					topics[t.Topic][p.Partition] = p
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(topics)) {
		t := kmsg.NewDescribeLogDirsResponseDirTopic()
		t.Topic = name
		for _, n := range slices.Sorted(maps.Keys(topics[name])) {
			t.Partitions = append(t.Partitions, topics[name][n])
		}
		into.Dirs[0].Topics = append(into.Dirs[0].Topics, t)
	}
	if !complete && len(into.Dirs) > 0 {
		into.Dirs[0].ErrorCode = int16(protocol.KafkaStorageError)
	}
}
