package forward

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// A Fetch whose partitions have one leader is that leader's to answer. With several, all are first asked for what they have. If that is enough, it is the
// answer. If not, all are asked to wait, each for as long and for as much as the client would; the first that has enough makes the answer, with what was known of
// the others before: they have had nothing to tell since. What is under way with these is kept for the client's next Fetch, which mostly wants the same of them; so
// a leader without news is asked once per wait, however often the others answer.
//
// Fetch sessions are not given. They save naming partitions without news, and would be the state of one agent.

const (
	// fetchWaitMax bounds a long poll, whatever the client asks for.
	fetchWaitMax = 30 * time.Second
	// fetchGrace is how much later than it was asked to a leader may answer.
	fetchGrace = 5 * time.Second
	// fetchPatience is how long a Fetch with nothing to answer but that leaders have moved waits at least.
	fetchPatience = time.Second
)

// fetching is one Fetch on its way. Its items are partitions.
type fetching struct {
	f     *Forwarder
	r     *server.Request
	req   *kmsg.FetchRequest
	polls *polls
	at    []position
	late  time.Time // the answer need not wait for longer

	asked   []*asked
	parts   []wire.FetchPartition // by item
	bytes   int                   // of records in parts
	results []*result             // that the records lie in
}

// asked is what is asked of one leader.
type asked struct {
	agent coordinator.Agent
	of    []int
	poll  *poll // under way; nil if not
	known parts // what the leader said last, without records; nil if it has not
}

// fetch serves Fetch.
func (f *Forwarder) fetch(ctx context.Context, r *server.Request, req *kmsg.FetchRequest) server.Answer {
	resp := wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version}
	if req.SessionEpoch > 0 {
		resp.ErrorCode = protocol.FetchSessionIDNotFound
		return &fetched{resp: resp}
	}
	g := &fetching{
		f: f, r: r, req: req, polls: f.of(ctx, r).polls,
		late: f.deps.Now().Add(min(time.Duration(req.MaxWaitMillis)*time.Millisecond, fetchWaitMax)),
	}
	for i := range req.Topics {
		for j := range req.Topics[i].Partitions {
			g.at = append(g.at, position{i, j})
		}
	}
	for late := f.deps.Now().Add(fetchPatience); ; {
		changed := f.change()
		places := g.try(ctx)
		if !g.refused(places) || left(ctx, r) || g.remains() <= 0 && !f.deps.Now().Before(late) {
			break
		}
		g.release()
		f.metrics.again.Inc()
		wait(ctx, changed)
	}
	for i := range req.Topics {
		t := wire.FetchTopic{Name: req.Topics[i].Topic, ID: req.Topics[i].TopicID}
		n := len(req.Topics[i].Partitions)
		t.Partitions, g.parts = g.parts[:n:n], g.parts[n:]
		resp.Topics = append(resp.Topics, t)
	}
	return &fetched{resp: resp, results: g.results}
}

// remains is how long the answer may still wait.
func (g *fetching) remains() time.Duration { return g.late.Sub(g.f.deps.Now()) }

// refused reports whether there is nothing to answer but that leaders have moved.
func (g *fetching) refused(places []place) bool {
	moved := false
	for i := range g.parts {
		p := &g.parts[i]
		switch {
		case notLed(p.ErrorCode, places[i]):
			moved = true
		case p.ErrorCode != protocol.None || p.Diverging != nil || len(p.Records) > 0:
			return false
		}
	}
	return moved
}

// enough reports whether the answer need not wait.
func (g *fetching) enough() bool {
	for i := range g.parts {
		if g.parts[i].ErrorCode != protocol.None || g.parts[i].Diverging != nil {
			return true
		}
	}
	return g.bytes >= int(min(g.req.MinBytes, g.req.MaxBytes))
}

// try asks all leaders, as they are now.
func (g *fetching) try(ctx context.Context) []place {
	places, all := g.aim()
	g.polls.adopt(g)
	first := g.remains()
	if len(g.asked) > 1 || !all {
		first = 0
	}
	for _, a := range g.asked {
		if a.poll == nil {
			g.begin(ctx, a, first)
		}
	}
	g.await(ctx, func() bool {
		for _, a := range g.asked {
			if a.poll != nil && a.known == nil {
				return false
			}
		}
		return true
	})
	if (len(g.asked) > 1 || !g.idle()) && !g.enough() && g.remains() > 0 && !left(ctx, g.r) {
		g.release()
		for _, a := range g.asked {
			if a.poll == nil {
				g.begin(ctx, a, g.remains())
			}
		}
		g.await(ctx, func() bool { return g.enough() || g.idle() })
	}
	for _, a := range g.asked {
		if a.poll != nil && a.poll.leave != nil { // this agent's tells at once what there is
			close(a.poll.leave)
			<-a.poll.ready
			g.take(ctx, a)
		}
	}
	g.polls.park(g)
	return places
}

// aim finds the leaders; all is false if a partition has none.
func (g *fetching) aim() (places []place, all bool) {
	r := g.f.route()
	g.asked, g.parts, all = nil, make([]wire.FetchPartition, len(g.at)), true
	byLog := make(map[coordinator.LogID]*asked)
	topic, found := coordinator.Topic{}, false
	for i, at := range g.at {
		if t := &g.req.Topics[at.topic]; at.part == 0 && g.req.Version >= 13 {
			topic, found = r.view.TopicByID(t.TopicID)
		} else if at.part == 0 {
			topic, _, found = r.view.Topic(t.Topic)
		}
		number := g.req.Topics[at.topic].Partitions[at.part].Partition
		g.parts[i] = wire.NewFetchPartition(number, protocol.NotLeaderOrFollower)
		places = append(places, r.partition(topic, found, number))
		agent, led := g.f.leader(&r, places[i])
		if !led {
			all = false
			continue
		}
		a := byLog[agent.Log]
		if a == nil {
			a = &asked{agent: agent}
			byLog[agent.Log] = a
			g.asked = append(g.asked, a)
		}
		a.of = append(a.of, i)
	}
	return places, all
}

// part is the request to one leader. Of the client's limit of bytes it gets its share, since some clients refuse an answer that is larger by far.
func (g *fetching) part(a *asked, wait time.Duration) *kmsg.FetchRequest {
	part := *g.req
	part.Topics = some(g.req.Topics, func(t *kmsg.FetchRequestTopic) *[]kmsg.FetchRequestTopicPartition { return &t.Partitions }, g.at, a.of)
	for i := range part.Topics {
		for j := range part.Topics[i].Partitions {
			part.Topics[i].Partitions[j].CurrentLeaderEpoch = int32(protocol.NoLeaderEpoch)
		}
	}
	part.SessionID, part.SessionEpoch, part.ForgottenTopics, part.Rack = 0, -1, nil, ""
	part.MaxWaitMillis = int32(wait.Milliseconds())
	part.MaxBytes = max(1, g.req.MaxBytes/int32(len(g.asked)))
	part.MinBytes = min(part.MinBytes, part.MaxBytes)
	return &part
}

// begin asks a leader to answer within a time.
func (g *fetching) begin(ctx context.Context, a *asked, wait time.Duration) {
	a.poll = newPoll(g.part(a, wait), a.known)
	if a.agent.Log == g.f.cfg.Self {
		local := *g.r
		local.Body, local.Forwarded = a.poll.req.AppendTo(nil), true
		a.poll.askLocal(ctx, g.f.deps.Local, &local, g.polls.wake)
		return
	}
	g.f.metrics.forwarded.WithLabelValues(protocol.KeyFetch.String()).Inc()
	a.poll.ask(ctx, g.f.peers.of(a.agent), encode(nil, g.r, a.poll.req), g.polls.wake)
}

// await takes answers as they come, until done, or the client or this agent leaves.
func (g *fetching) await(ctx context.Context, done func() bool) {
	timer := time.NewTimer(max(0, g.remains()) + fetchGrace)
	defer timer.Stop()
	for {
		for _, a := range g.asked {
			if a.poll != nil && a.poll.isReady() {
				g.take(ctx, a)
			}
		}
		if done() {
			return
		}
		select {
		case <-g.polls.wake:
		case <-timer.C:
			return
		case <-g.r.Leave:
			return
		case <-ctx.Done():
			return
		}
	}
}

// idle reports whether nothing is under way.
func (g *fetching) idle() bool {
	for _, a := range g.asked {
		if a.poll != nil {
			return false
		}
	}
	return true
}

// take puts a leader's answer in its place. If there is no room for it now it stays where it is, for the next Fetch; only the first is worth
// waiting for: who holds some and waits for more could wait for ever.
func (g *fetching) take(ctx context.Context, a *asked) {
	res, err := a.poll.finish(ctx, g.f, len(g.results) == 0)
	if errors.Is(err, errNoRoom) {
		if a.known == nil {
			a.known = parts{}
		}
		return
	}
	a.poll = nil
	if err != nil {
		g.f.deps.Log.Debug("a part of a fetch was not answered", "agent", a.agent.Node, "err", err)
		a.known = parts{}
		return
	}
	g.results = append(g.results, res)
	a.known = make(parts, len(a.of))
	for _, i := range a.of {
		p, ok := res.parts[g.key(i)]
		if !ok {
			continue
		}
		g.parts[i] = p
		for _, records := range p.Records {
			g.bytes += len(records)
		}
		p.Records = nil
		a.known[g.key(i)] = p
	}
}

func (g *fetching) key(i int) partKey {
	t := &g.req.Topics[g.at[i].topic]
	k := partKey{number: t.Partitions[g.at[i].part].Partition}
	if g.req.Version >= 13 {
		k.id = t.TopicID
	} else {
		k.name = t.Topic
	}
	return k
}

// release lets go of the records; what else was said stays.
func (g *fetching) release() {
	for _, res := range g.results {
		res.release()
	}
	g.results, g.bytes = nil, 0
	for i := range g.parts {
		g.parts[i].Records = nil
	}
}

// fetched is the answer to Fetch. It holds the records until it is written.
type fetched struct {
	resp    wire.FetchResponse
	results []*result
}

// Ready implements [server.Answer].
func (a *fetched) Ready() <-chan struct{} { return nil }

// AppendTo implements [server.Answer].
func (a *fetched) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	return a.resp.AppendTo(bufs, scratch)
}

// Release implements [server.Answer].
func (a *fetched) Release() {
	for _, res := range a.results {
		res.release()
	}
	a.results = nil
}
