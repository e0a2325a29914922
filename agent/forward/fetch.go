package forward

import (
	"context"
	"errors"
	"slices"
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
// A partition whose leader has moved, or does not answer, is one without news until the time is over.
//
// Fetch sessions are not given. They save naming partitions without news, and would be the state of one agent.

const (
	// fetchWaitMax bounds a long poll, whatever the client asks for.
	fetchWaitMax = 30 * time.Second
	// fetchSlow is how long a leader may take for an answer at once, and for one that was asked for at a time; fetchGrace if nothing is known of its
	// partitions yet.
	fetchSlow  = 100 * time.Millisecond
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
	places  []place               // by item
	parts   []wire.FetchPartition // by item
	bytes   int                   // of records in parts
	results []*result             // that the records lie in
}

// asked is what is asked of one leader.
type asked struct {
	agent coordinator.Agent
	of    []int
	poll  *poll // under way; nil if not
	said  bool  // something, or it was waited for in vain before
	gave  bool  // records, which are in the answer
	moved bool  // it does not lead some of it, or cannot be reached
}

// fetch serves Fetch.
func (f *Forwarder) fetch(ctx context.Context, r *server.Request, whole kmsg.Request) (server.Answer, error) {
	req := whole.(*kmsg.FetchRequest)
	resp := wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version}
	if req.SessionEpoch > 0 {
		resp.ErrorCode = protocol.FetchSessionIDNotFound
		return &fetched{resp: resp}, nil
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
	late := f.deps.Now().Add(fetchPatience)
	for times := 0; ; times++ {
		moved := g.try(ctx, times)
		if !moved || g.enough() || left(ctx, r) || g.remains() <= 0 && (!g.unknown() || !f.deps.Now().Before(late)) {
			break
		}
		g.release()
		f.metrics.again.Inc()
	}
	for i := range req.Topics {
		t := wire.FetchTopic{Name: req.Topics[i].Topic, ID: req.Topics[i].TopicID}
		n := len(req.Topics[i].Partitions)
		t.Partitions, g.parts = g.parts[:n:n], g.parts[n:]
		resp.Topics = append(resp.Topics, t)
	}
	return &fetched{resp: resp, results: g.results}, nil
}

// remains is how long the answer may still wait.
func (g *fetching) remains() time.Duration { return max(0, g.late.Sub(g.f.deps.Now())) }

// unknown reports whether there is a partition of which nothing is known but that it has moved.
func (g *fetching) unknown() bool {
	for i := range g.parts {
		if notLed(g.parts[i].ErrorCode, g.places[i]) {
			return true
		}
	}
	return false
}

// enough reports whether the answer need not wait.
func (g *fetching) enough() bool {
	for i := range g.parts {
		if p := &g.parts[i]; p.Diverging != nil || p.ErrorCode != protocol.None && !notLed(p.ErrorCode, g.places[i]) {
			return true
		}
	}
	return g.full()
}

// full reports whether there are as many records as the client waits for.
func (g *fetching) full() bool { return g.bytes >= int(min(g.req.MinBytes, g.req.MaxBytes)) }

// try asks all leaders, as they are now. If some have moved, it returns soon, and reports it.
func (g *fetching) try(ctx context.Context, times int) (moved bool) {
	changed := g.f.change()
	g.aim()
	g.polls.adopt(g)
	g.takeReady(ctx)
	first := g.remains()
	if len(g.asked) > 1 {
		first = 0
	}
	here := func(a *asked) bool { return a.agent.Log == g.f.cfg.Self }
	g.begin(ctx, first, func(a *asked) bool { return !here(a) })
	g.await(ctx, g.known, nil, fetchSlow)
	// This agent comes last: what it answers holds blocks of its cache, which others that it serves may wait for.
	g.begin(ctx, first, here)
	g.await(ctx, g.known, nil, fetchSlow)

	moved = slices.ContainsFunc(g.asked, func(a *asked) bool { return a.moved })
	waits := g.remains() > 0 && (len(g.asked) > 1 || !g.idle())
	if !g.enough() && !left(ctx, g.r) && (moved || waits || !g.known()) {
		if waits {
			g.release()
			g.begin(ctx, g.remains(), func(a *asked) bool { return !a.moved })
		}
		if !moved {
			g.await(ctx, func() bool { return g.enough() || g.idle() }, nil, g.remains()+g.slack())
		} else {
			g.await(ctx, g.enough, changed, pause(times))
		}
	}
	for _, a := range g.asked {
		if a.poll != nil && a.poll.leave != nil { // this agent's tells at once what there is
			close(a.poll.leave)
			<-a.poll.ready
			g.take(ctx, a)
		}
	}
	g.polls.know(g)
	g.polls.park(g)
	return slices.ContainsFunc(g.asked, func(a *asked) bool { return a.moved })
}

// slack is how much later than it was asked to a leader may answer.
func (g *fetching) slack() time.Duration {
	if g.unknown() {
		return fetchGrace
	}
	return fetchSlow
}

// known reports whether everybody who was asked has said something.
func (g *fetching) known() bool {
	return !slices.ContainsFunc(g.asked, func(a *asked) bool { return a.poll != nil && !a.said })
}

// aim finds the leaders. Of each partition the client is told what is known already until its leader says more.
func (g *fetching) aim() {
	r := g.f.route()
	g.asked, g.places, g.parts = nil, g.places[:0], make([]wire.FetchPartition, len(g.at))
	byLog := make(map[coordinator.LogID]*asked)
	for i, at := range g.at {
		t := &g.req.Topics[at.topic]
		number := t.Partitions[at.part].Partition
		topic, found := r.topic(g.req.Version >= 13, t.Topic, t.TopicID)
		place := r.partition(topic, found, number)
		g.places = append(g.places, place)
		g.parts[i] = g.polls.known(place, number)
		agent, _ := g.f.leader(&r, place)
		a := byLog[agent.Log]
		if a == nil {
			a = &asked{agent: agent}
			byLog[agent.Log] = a
			g.asked = append(g.asked, a)
		}
		a.of = append(a.of, i)
	}
}

// newsBytes is for how much a leader is asked that has none yet. It may be left unread until the client comes again, and must fit into the connection meanwhile.
const newsBytes = 64 << 10

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
	if len(g.asked) > 1 && wait > 0 {
		part.MaxBytes = min(part.MaxBytes, max(part.MinBytes, newsBytes))
	}
	return &part
}

// begin asks those leaders, with whom nothing is under way, to answer within a time.
func (g *fetching) begin(ctx context.Context, wait time.Duration, which func(*asked) bool) {
	for _, a := range g.asked {
		if a.poll != nil || a.gave || !which(a) {
			continue
		}
		a.poll = newPoll(g.part(a, wait), g.f.frames.Add(1))
		if a.agent.Log == g.f.cfg.Self {
			local := *g.r
			local.Body, local.Forwarded = a.poll.req.AppendTo(nil), true
			a.poll.askLocal(ctx, g.f.deps.Local, &local, g.polls.wake)
			continue
		}
		g.f.metrics.forwarded.WithLabelValues(protocol.KeyFetch.String()).Inc()
		a.poll.ask(ctx, g.f.deps.Peers.of(a.agent), encode(nil, g.r, a.poll.req, a.poll.correlationID), g.polls.wake)
	}
}

// takeReady takes the answers that have come.
func (g *fetching) takeReady(ctx context.Context) {
	for _, a := range g.asked {
		if a.poll != nil && isClosed(a.poll.ready) {
			g.take(ctx, a)
		}
	}
}

// await takes answers as they come, until done, or something changed, or the time is over, or the client or this agent leaves.
func (g *fetching) await(ctx context.Context, done func() bool, changed <-chan struct{}, most time.Duration) {
	timer := time.NewTimer(most)
	defer timer.Stop()
	for {
		g.takeReady(ctx)
		if done() {
			return
		}
		select {
		case <-g.polls.wake:
		case <-changed:
			return
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
	a.said = true
	if errors.Is(err, errNoRoom) {
		return
	}
	a.poll = nil
	if err != nil {
		g.f.deps.Log.Debug("a part of a fetch was not answered", "agent", a.agent.Node, "err", err)
		a.moved = true
		return
	}
	g.results = append(g.results, res)
	for _, i := range a.of {
		p, ok := res.parts[g.key(i)]
		if !ok || notLed(p.ErrorCode, g.places[i]) {
			a.moved = true
			continue
		}
		g.parts[i] = p
		for _, records := range p.Records {
			g.bytes += len(records)
			a.gave = true
		}
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
	for _, a := range g.asked {
		a.gave = false
	}
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
