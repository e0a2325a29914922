package group

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol"
)

// TestWalk drives groups at random and checks after every step what must hold whatever happens:
//
//   - generations never go back, and one generation has one protocol and one leader;
//   - an answered SyncGroup brings the assignment that the leader of that generation sent, and it was durable before;
//   - a commit is let in for the group's present generation only, and not while that one is being assigned;
//   - the snapshot that is durable can be loaded, and gives members the same assignments;
//   - every request is answered, once.
//
// Deliberate breakages of the machine, and what catches each (tried by hand):
//
//	answer syncs when the assignment is sent, not when it is durable   walk, lifecycle
//	take the outcome of another write for that of the assignment       leader_failure
//	keep the assignment on its way through a rebalance                 walk, leader_failure
//	let a second SyncGroup of the leader replace the assignment        walk, rejoin
//	ignore that the assignment could not be stored                     walk, leader_failure
//	do not compare the generation of a commit, or of a SyncGroup       walk, commits, rejoin
//	let commits in while Completing                                    walk, commits
//	do not raise the generation when a join phase ends                 walk, nearly all scripts
//	forget to answer a JoinGroup that a second one replaces            walk, rejoin
//	forget to answer a SyncGroup of a removed member                   walk
//	let a replaced static member's old id in                           walk, static
//	do not persist a replaced static member, or lose its assignment    walk, static
//	do not elect another leader                                        static_absent
//	leave a new member that waits unwatched                            slow_members
//	do not wait for ids that were given out                            size, slow_members
//	no deadline for SyncGroup                                          walk, slow_members
//	do not renew a session when a SyncGroup is answered                leader_failure, slow_members
func TestWalk(t *testing.T) {
	for seed := range uint64(150) {
		first := newWalk(t, seed).run(400)
		if seed%50 == 0 {
			if second := newWalk(t, seed).run(400); first != second {
				t.Fatalf("seed %d: two runs differ", seed)
			}
		}
	}
}

// walker is a client that may or may not be a member.
type walker struct {
	id, instance string
	generation   int32
	subscription string
}

type durable struct {
	generation  int32
	assignments map[string]string
}

type walk struct {
	t    *testing.T
	seed uint64
	rnd  *rand.Rand
	m    *Machine
	cfg  Config
	now  time.Time

	clients []*walker
	ids     int
	request RequestID
	open    map[RequestID]func(Result)
	writes  []Persist // under way, in order
	stored  *Snapshot
	last    durable // what stored holds
	leaders map[int32]string
	sent    map[int32]map[string]string // by generation, what the leader sent first
	highest int32
	fenced  map[string]bool // member ids that were replaced
	trace   strings.Builder
}

func newWalk(t *testing.T, seed uint64) *walk {
	t.Helper()
	w := &walk{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), now: time.UnixMilli(1_000_000),
		cfg:  Config{InitialDelay: time.Second, MembersMax: 4, PayloadBytesMax: 1000},
		open: map[RequestID]func(Result){}, leaders: map[int32]string{}, sent: map[int32]map[string]string{}, fenced: map[string]bool{},
	}
	w.m = New(w.cfg, w.now)
	for i := range 5 {
		c := &walker{subscription: "s0"}
		if i%2 == 0 {
			c.instance = fmt.Sprintf("i%d", i)
		}
		w.clients = append(w.clients, c)
	}
	return w
}

func (w *walk) run(steps int) string {
	w.t.Helper()
	for range steps {
		w.act()
		w.check()
	}
	// Nothing happens any more: everybody times out.
	for range 100 {
		for len(w.writes) > 0 {
			w.persisted(false)
		}
		at, ok := w.m.Deadline()
		if !ok {
			break
		}
		if at.After(w.now) {
			w.now = at
		}
		w.step(Tick{})
	}
	if len(w.open) > 0 || !w.m.Idle() {
		w.fail("%d requests unanswered in the end: %s", len(w.open), w.m)
	}
	return w.trace.String()
}

func (w *walk) fail(format string, args ...any) {
	w.t.Helper()
	trace := w.trace.String()
	if len(trace) > 4000 {
		trace = "..." + trace[len(trace)-4000:]
	}
	w.t.Fatalf("seed %d: %s\n%s", w.seed, fmt.Sprintf(format, args...), trace)
}

func (w *walk) act() {
	c := w.clients[w.rnd.IntN(len(w.clients))]
	switch w.rnd.IntN(13) {
	case 0, 1, 2:
		w.join(c)
	case 3, 4, 5:
		w.sync(c)
	case 6:
		w.ask(Heartbeat{Request: w.request + 1, MemberID: c.id, InstanceID: c.instance, Generation: c.generation}, func(Result) {})
	case 7:
		w.commit(c)
	case 8, 9:
		if len(w.writes) > 0 {
			w.persisted(w.rnd.IntN(5) == 0)
		}
	case 10:
		w.now = w.now.Add(time.Duration(w.rnd.IntN(4)) * time.Second)
		w.step(Tick{})
	case 11:
		switch w.rnd.IntN(8) {
		case 0:
			w.ask(Leave{Request: w.request + 1, Members: []LeavingMember{{MemberID: c.id, InstanceID: c.instance}}}, func(Result) {})
		case 1:
			c.subscription = fmt.Sprintf("s%d", w.rnd.IntN(3))
		case 2:
			c.id = "" // restarts
		}
	case 12:
		if w.rnd.IntN(10) == 0 {
			w.takeover()
		}
	}
}

func (w *walk) join(c *walker) {
	w.ids++
	e := Join{
		Request: w.request + 1, MemberID: c.id, InstanceID: c.instance, NewMemberID: fmt.Sprintf("m%d", w.ids),
		SessionTimeout: 6 * time.Second, RebalanceTimeout: 9 * time.Second, ProtocolType: "consumer",
		Protocols:       []Protocol{{"range", []byte(c.subscription)}, {"sticky", nil}},
		KnownIDRequired: w.rnd.IntN(2) == 0, SkipSupported: true,
	}
	if w.rnd.IntN(2) == 0 {
		e.Protocols = e.Protocols[1:]
	}
	before := w.m.static[c.instance]
	w.ask(e, func(r Result) {
		j := r.(JoinResult)
		if j.Code == protocol.MemberIDRequired {
			c.id = j.MemberID
			return
		}
		if j.Code != protocol.None {
			if j.Code != protocol.RebalanceInProgress {
				c.id = ""
			}
			return
		}
		c.id, c.generation = j.MemberID, j.Generation
		key := j.Protocol + " " + j.Leader
		if have, ok := w.leaders[j.Generation]; ok && have != key && !w.fenced[strings.Fields(have)[1]] {
			w.fail("generation %d has %q and %q", j.Generation, have, key)
		}
		w.leaders[j.Generation] = key
	})
	if now := w.m.static[c.instance]; c.instance != "" && before != "" && now != before {
		w.fenced[before] = true
		delete(w.fenced, now)
		if sent := w.sent[w.m.generation]; sent != nil {
			sent[now] = sent[before]
		}
	}
}

func (w *walk) sync(c *walker) {
	e := Sync{
		Request: w.request + 1, MemberID: c.id, InstanceID: c.instance, Generation: c.generation, Assignments: map[string][]byte{},
	}
	sent := map[string]string{}
	if c.id == w.m.leader {
		for id := range w.m.members {
			sent[id] = fmt.Sprintf("%d/%s/%d", c.generation, id, e.Request)
			e.Assignments[id] = []byte(sent[id])
		}
	}
	id, generation := c.id, c.generation
	fenced := w.fenced[id] && c.instance != ""
	if !fenced && len(sent) > 0 && w.sent[generation] == nil && w.m.state == Completing && generation == w.m.generation {
		w.sent[generation] = sent
	}
	w.ask(e, func(r Result) {
		s := r.(SyncResult)
		if s.Code != protocol.None {
			return
		}
		if fenced {
			w.fail("%s was fenced and synced", id)
		}
		if want := w.sent[generation][id]; string(s.Assignment) != want {
			w.fail("%s got assignment %q in generation %d, want %q", id, s.Assignment, generation, want)
		}
		if w.last.generation != generation {
			w.fail("%s got assignment of generation %d, not durable: %d", id, generation, w.last.generation)
		}
	})
}

func (w *walk) commit(c *walker) {
	e := Commit{Request: w.request + 1, MemberID: c.id, InstanceID: c.instance, Generation: c.generation}
	if w.rnd.IntN(4) == 0 {
		e.Generation--
	}
	state, generation := w.m.state, w.m.generation
	w.ask(e, func(r Result) {
		if r.(CodeResult).Code != protocol.None || e.Generation < 0 && state == Empty {
			return
		}
		switch {
		case e.Generation != generation:
			w.fail("commit of old generation %d let in at %d", e.Generation, generation)
		case state != Stable && state != Preparing:
			w.fail("commit let in while the generation is being assigned")
		case w.fenced[e.MemberID] && e.InstanceID != "":
			w.fail("commit of fenced %s let in", e.MemberID)
		}
	})
}

// persisted ends the oldest write; after a failed one nothing can be said about the durable snapshot's ids.
func (w *walk) persisted(fails bool) {
	p := w.writes[0]
	w.writes = w.writes[1:]
	e := Persisted{Write: p.Write}
	if fails {
		e.Code = protocol.CoordinatorNotAvailable
		if r := w.m.replacements[p.Write]; r != nil && w.m.members[r.newID] != nil && w.m.state == Stable &&
			w.m.members[r.newID].join == r.request {
			delete(w.fenced, r.old.id)
			w.fenced[r.newID] = true
		}
	} else {
		w.stored = &p.Snapshot
		w.last = durable{generation: p.Snapshot.Generation, assignments: map[string]string{}}
		for _, m := range p.Snapshot.Members {
			w.last.assignments[m.ID] = string(m.Assignment)
		}
	}
	w.step(e)
}

// takeover loads the group as another agent would. Requests that wait are lost with the agent, and so are its writes.
func (w *walk) takeover() {
	if w.stored == nil {
		return
	}
	m, err := Load(w.cfg, w.now, *w.stored)
	if err != nil {
		w.fail("load: %v", err)
	}
	for id, mb := range m.members {
		if string(mb.assignment) != w.last.assignments[id] {
			w.fail("loaded %s has %q, want %q", id, mb.assignment, w.last.assignments[id])
		}
	}
	for id, mb := range w.m.members {
		if w.m.state == Stable && w.m.generation == m.generation && mb.join == 0 && len(w.writes) == 0 && m.members[id] == nil {
			w.fail("member %s of a stable group is not in what is durable", id)
		}
	}
	w.m, w.writes, w.highest = m, nil, m.generation
	clear(w.open)
	clear(w.fenced)
	for generation := range w.leaders {
		if generation > m.generation {
			delete(w.leaders, generation)
			delete(w.sent, generation)
		}
	}
	w.sent[m.generation] = w.last.assignments
	w.leaders[m.generation] = m.protocol + " " + m.leader
	fmt.Fprintf(&w.trace, "takeover: %s\n", m)
}

func (w *walk) ask(e Event, answered func(Result)) {
	w.request++
	w.open[w.request] = answered
	w.step(e)
}

func (w *walk) step(e Event) {
	fmt.Fprintf(&w.trace, "%T%+v\n", e, e)
	var replies []Reply
	for _, effect := range w.m.Step(w.now, e) {
		switch effect := effect.(type) {
		case Reply:
			replies = append(replies, effect)
		case Persist:
			w.writes = append(w.writes, effect)
		case Moved, Note:
		}
		fmt.Fprintf(&w.trace, "  %T%+v\n", effect, effect)
	}
	for _, r := range replies {
		answered := w.open[r.Request]
		if answered == nil {
			w.fail("request %d answered twice, or never asked", r.Request)
		}
		delete(w.open, r.Request)
		answered(r.Result)
	}
}

func (w *walk) check() {
	if w.m.generation < w.highest {
		w.fail("generation %d after %d", w.m.generation, w.highest)
	}
	w.highest = w.m.generation
	_, hasLeader := w.m.members[w.m.leader]
	if hasLeader != (len(w.m.members) > 0) || !hasLeader && w.m.leader != "" {
		w.fail("leader %q of %d members", w.m.leader, len(w.m.members))
	}
	for id, mb := range w.m.members {
		if mb.id != id || mb.instance != "" && w.m.static[mb.instance] != id {
			w.fail("member %s is not known by its names", id)
		}
	}
	if len(w.m.members) > 2*w.cfg.MembersMax {
		w.fail("%d members", len(w.m.members))
	}
	if _, ok := w.m.Deadline(); !ok && !w.m.Idle() && len(w.writes) == 0 {
		w.fail("nothing will ever happen: %s", w.m)
	}
}
