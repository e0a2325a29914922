package forward

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// patience is how long a request is sent again: longer than a failover takes, and less than clients wait before they try again themselves. What is sent for a client that has
// done so already, as an old OffsetCommit, would undo what it has done since.
const patience = 8 * time.Second

// divisible is a request that can be taken apart. Its items (partitions, groups) are numbered in its order, and so are those of its answer.
type divisible interface {
	// places returns where each item is led.
	places(r *route) []place
	// part returns the request for some of the items.
	part(of []int) kmsg.Request
	// take puts the answer to such a request in its place. It is false if the answer is not one to that request.
	take(of []int, answer kmsg.Response) bool
	// again reports whether the item was refused by an agent that does not lead it; the place is as it was when it was asked.
	again(i int, at place) bool
	// answer returns the whole answer, once every item's was taken.
	answer() kmsg.Response
	// long says that it may wait for others until the answer comes.
	long() bool
}

// spreads serves requests that take takes apart: each item is answered by whoever leads it, again and again while leaders move.
func spreads[Req kmsg.Request](take func(Req) divisible) kind {
	return func(f *Forwarder, ctx context.Context, r *server.Request, req kmsg.Request) (server.Answer, error) {
		d := take(req.(Req))
		var items []int
		late := time.Time{} // members of a group may wait for long until their coordinator moves
		if !d.long() {
			late = f.deps.Now().Add(patience)
		}
		err := f.retry(ctx, r, late, func() (done bool, err error) {
			route := f.route()
			places := d.places(&route)
			if items == nil {
				items = numbers(len(places))
			}
			err = f.spread(ctx, r, d, &route, places, items)
			if err == nil {
				items = slices.DeleteFunc(items, func(i int) bool { return !d.again(i, places[i]) })
			}
			return len(items) == 0, err
		})
		if err != nil {
			return nil, err
		}
		return message(r, d.answer()), nil
	}
}

// message returns the answer that is a response.
func message(r *server.Request, resp kmsg.Response) server.Answer {
	resp.SetVersion(r.Version)
	return server.Message(r.CorrelationID, resp)
}

// retry has try done again and again, until it is or fails, the client or this agent leaves, or it is late; if late is zero, this is counted from the end of the first time.
func (f *Forwarder) retry(ctx context.Context, r *server.Request, late time.Time, try func() (done bool, err error)) error {
	for times := 0; ; times++ {
		changed := f.change()
		done, err := try()
		now := f.deps.Now()
		if late.IsZero() {
			late = now.Add(patience)
		}
		if done || err != nil || left(ctx, r) || !now.Before(late) {
			return err
		}
		f.metrics.again.Inc()
		wait(ctx, changed, times)
	}
}

// numbers returns the first n.
func numbers(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// spread asks the leaders of those items, all at the same time.
func (f *Forwarder) spread(ctx context.Context, r *server.Request, d divisible, route *route, places []place, items []int) error {
	type target struct {
		agent coordinator.Agent
		of    []int
		resp  kmsg.Response
	}
	var targets []*target
	byLog := make(map[coordinator.LogID]*target)
	for _, i := range items {
		a, _ := f.leader(route, places[i])
		t := byLog[a.Log]
		if t == nil {
			t = &target{agent: a}
			byLog[a.Log] = t
			targets = append(targets, t)
		}
		t.of = append(t.of, i)
	}
	var g errgroup.Group
	for _, t := range targets {
		g.Go(func() (err error) {
			part := d.part(t.of)
			start := f.deps.Now()
			t.resp, err = f.ask(ctx, r, t.agent, part, d.long())
			if err != nil && (d.long() || f.deps.Now().Sub(start) < patience) {
				t.resp, err = f.askLocal(ctx, r, part) // which refuses it, unless it has come to lead that
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, t := range targets {
		if !d.take(t.of, t.resp) {
			return fmt.Errorf("node %d answered %v for something else than it was asked", t.agent.Node, r.Key)
		}
	}
	return nil
}

// notLed reports whether a partition was refused because its leader has moved. A leader whose view is behind does not know a topic yet that this agent knows.
func notLed(code protocol.ErrorCode, at place) bool {
	switch code {
	case protocol.NotLeaderOrFollower, protocol.LeaderNotAvailable:
		return true
	case protocol.UnknownTopicOrPartition, protocol.UnknownTopicID:
		return at.known
	default:
		return false
	}
}

// notCoordinated reports whether a group was refused because its coordinator has moved.
func notCoordinated(code protocol.ErrorCode) bool {
	switch code {
	case protocol.NotCoordinator, protocol.CoordinatorNotAvailable, protocol.CoordinatorLoadInProgress:
		return true
	default:
		return false
	}
}
