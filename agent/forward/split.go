package forward

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

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
	// again reports whether the item was not answered, or refused by an agent that does not lead it; the place is as it was when it was asked.
	again(i int, at place) bool
	// answer returns the whole answer. Before anything was taken, it refuses every item as an agent does that does not lead it.
	answer() kmsg.Response
	// waits says that it may take long until the answer comes, as others must act first.
	waits() bool
}

// spread has each item of a request answered by whoever leads it, again and again while leaders move.
func (f *Forwarder) spread(ctx context.Context, r *server.Request, d divisible) kmsg.Response {
	route := f.route()
	places := d.places(&route)
	items := make([]int, len(places))
	for i := range items {
		items[i] = i
	}
	for late := (time.Time{}); ; {
		changed := f.change()
		f.spreadOnce(ctx, r, d, &route, places, items)
		rest := items[:0]
		for _, i := range items {
			if d.again(i, places[i]) {
				rest = append(rest, i)
			}
		}
		items = rest
		now := f.deps.Now()
		if late.IsZero() { // members of a group may have waited for long until their coordinator moved
			late = now.Add(patience)
		}
		if len(items) == 0 || left(ctx, r) || !now.Before(late) {
			return d.answer()
		}
		f.metrics.again.Inc()
		wait(ctx, changed)
		route = f.route()
		places = d.places(&route)
	}
}

// spreadOnce asks the leaders of those items, all at the same time.
func (f *Forwarder) spreadOnce(ctx context.Context, r *server.Request, d divisible, route *route, places []place, items []int) {
	type target struct {
		agent coordinator.Agent
		of    []int
		resp  kmsg.Response
	}
	var targets []*target
	byLog := make(map[coordinator.LogID]*target)
	for _, i := range items {
		a, ok := f.leader(route, places[i])
		if !ok {
			continue
		}
		t := byLog[a.Log]
		if t == nil {
			t = &target{agent: a}
			byLog[a.Log] = t
			targets = append(targets, t)
		}
		t.of = append(t.of, i)
	}
	ask := func(t *target) {
		resp, err := f.askUntilLeaving(ctx, r, t.agent, d.part(t.of), d.waits())
		if err != nil {
			f.deps.Log.Debug("a part of a request was not answered", "err", err)
			return
		}
		t.resp = resp
	}
	var wg sync.WaitGroup
	for n, t := range targets {
		if n == len(targets)-1 {
			ask(t)
		} else {
			wg.Go(func() { ask(t) })
		}
	}
	wg.Wait()
	for _, t := range targets {
		if t.resp != nil && !d.take(t.of, t.resp) {
			f.deps.Log.Warn("an agent answered something else than what it was asked", "api", r.Key, "agent", t.agent.Node)
		}
	}
}

// askUntilLeaving is ask, but for requests that wait for others and are with another agent when this one drains: they end, so that the client tries again
// elsewhere.
func (f *Forwarder) askUntilLeaving(ctx context.Context, r *server.Request, to coordinator.Agent, req kmsg.Request, wait bool) (kmsg.Response, error) {
	if wait && to.Log != f.cfg.Self {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			select {
			case <-r.Leave:
				cancel()
			case <-stop:
			}
		}()
	}
	return f.ask(ctx, r, to, req, wait)
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
