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

// patience is how long a request is sent again after it was first refused: a little more than a failover takes.
const patience = 10 * time.Second

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

// spread has each item of a request answered by whoever leads it, again and again while leaders move.
func (f *Forwarder) spread(ctx context.Context, r *server.Request, d divisible) (kmsg.Response, error) {
	var places []place
	var items []int
	late := time.Time{}
	for times := 0; ; times++ {
		changed := f.change()
		route := f.route()
		places = d.places(&route)
		if times == 0 {
			items = numbers(len(places))
		}
		if err := f.spreadOnce(ctx, r, d, &route, places, items); err != nil {
			return nil, err
		}
		items = slices.DeleteFunc(items, func(i int) bool { return !d.again(i, places[i]) })
		now := f.deps.Now()
		if late.IsZero() { // members of a group may have waited for long until their coordinator moved
			late = now.Add(patience)
		}
		if len(items) == 0 || left(ctx, r) || !now.Before(late) {
			return d.answer(), nil
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

// spreadOnce asks the leaders of those items, all at the same time.
func (f *Forwarder) spreadOnce(ctx context.Context, r *server.Request, d divisible, route *route, places []place, items []int) error {
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
			if t.resp, err = f.ask(ctx, r, t.agent, part, d.long()); err != nil {
				t.resp, err = f.askLocal(ctx, r, part) // which refuses what it does not lead
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
