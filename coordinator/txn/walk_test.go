package txn

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol"
)

// TestWalk drives transactional ids at random, through failed writes, lost answers and changes of coordinator, and checks
// after every step what must hold whatever happens:
//
//   - one write is under way at a time, and while a durable decision is not marked there is none: a decision is never
//     reversed, and no transaction begins before the markers of the last;
//   - markers are sent for a durable decision only, and say what it says; they reach every partition whose Add was
//     answered None;
//   - a commit is decided for the current producer only, and an abort for it, for an InitProducerId that is let in, or
//     at the timeout;
//   - an Add is answered None, and a verification finds a partition, if the durable record is that of an open
//     transaction of this producer with these partitions;
//   - an End is answered None if that is what was decided last;
//   - what producers get grows, is durable before, and is never the epoch that fences; nobody gets what another has;
//   - the snapshot that is durable can be loaded;
//   - every request is answered, once; Deadline does not ask for the same Tick again.
//
// Deliberate breakages of the machine, and what catches each (tried by hand; "scripts" are nearly all of them):
//
//	send markers, answer an Add or an End before it is durable        walk, scripts
//	go on before the markers are written                              walk, scripts
//	do not ask for markers after a crash                              walk, takeover
//	take the outcome of another write                                 walk
//	ignore that a write failed                                        walk, limits, timeout
//	take a Marked of an earlier transaction                           walk, lifecycle
//	fence, initialize or end without raising the epoch                walk, scripts
//	do not compare the epoch                                          walk, TestEnd, scripts
//	let an Add through while the decision is on its way               walk, verify
//	answer an Add of a fenced producer from the set                   walk
//	let partitions that join a write replace those of the first       walk
//	keep the partitions, or the beginning, of the last transaction    walk, scripts
//	let the former epoch end a transaction                            walk, TestEnd, version2
//	take any outcome for a retry of EndTxn                            walk, TestEnd, scripts
//	do not abort at InitProducerId, or answer it before               walk, init_over_transaction
//	abort for an InitProducerId that is fenced                        walk, init_over_transaction
//	forget, or keep for another producer, the former epoch            walk, init
//	hand out, or accept, the epoch that fences                        walk, last_epoch_timeout
//	do not change the producer id after the last epoch                walk, last_epoch
//	no timeout, or too early; try a failed abort again at once        walk, timeout
//	never write the completion, or call the machine idle before       walk, lifecycle
//	expire an id in use, or with an open transaction                  walk, expire
//	forget who waits when a write fails, or answer a cancelled one    walk, limits
//	no bound for partitions, or for who waits                         walk, limits
func TestWalk(t *testing.T) {
	for seed := range uint64(100) {
		first := newWalk(t, seed).run(300)
		if seed%50 == 0 {
			if second := newWalk(t, seed).run(300); first != second {
				t.Fatalf("seed %d: two runs differ", seed)
			}
		}
	}
}

// identity is what a producer claims to be.
type identity struct {
	id    protocol.ProducerID
	epoch protocol.ProducerEpoch
}

func (i identity) compare(o identity) int {
	return cmp.Or(cmp.Compare(i.id, o.id), cmp.Compare(i.epoch, o.epoch))
}

// result is what a producer goes on with after a decision.
func result(s Snapshot) identity {
	if s.NextProducerID >= 0 {
		return identity{s.NextProducerID, 0}
	}
	return identity{s.ProducerID, s.Epoch}
}

// client is a producer, which may have been fenced.
type client struct {
	identity
	version2 bool
	last     *End // that it may send again
}

// outcome is the last decision, until the next transaction begins or a producer is initialized.
type outcome struct {
	of     identity
	commit bool
}

type question struct {
	event    Event
	answered func(Result)
}

type walk struct {
	t    *testing.T
	seed uint64
	rnd  *rand.Rand
	m    *Machine
	cfg  Config
	now  time.Time

	clients []*client
	fresh   protocol.ProducerID
	request RequestID
	open    map[RequestID]question
	writing Effect    // Persist or Delete under way
	stored  *Snapshot // what is durable; nil for no record
	marks   []Mark    // of this coordinator
	marked  bool      // the stored decision
	outcome *outcome
	known   Set              // partitions that were answered None, of the open transaction
	sent    map[identity]Set // shards of groups that offsets were sent to, durably, before the coordinator was asked
	newest  identity         // that was handed out, or that is durable
	handed  map[identity]bool
	trace   strings.Builder
}

func newWalk(t *testing.T, seed uint64) *walk {
	t.Helper()
	w := &walk{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), now: time.UnixMilli(1_000_000),
		cfg:  Config{TimeoutMax: time.Minute, Expiration: 20 * time.Second, PartitionsMax: 3, ParkedMax: 4},
		open: map[RequestID]question{}, sent: map[identity]Set{}, handed: map[identity]bool{}, fresh: 10, newest: identity{-1, -1},
	}
	w.m = New(w.cfg, w.now)
	if seed%3 > 0 { // near the last epoch
		s := noRecord
		s.State, s.ProducerID, s.Epoch, s.TimeoutMs, s.UpdatedMs = Empty, 1, epochMax-protocol.ProducerEpoch(w.rnd.IntN(8)), 5000, w.now.UnixMilli()
		w.stored, w.newest = &s, identity{s.ProducerID, s.Epoch}
		w.load()
	}
	for i := range 3 {
		w.clients = append(w.clients, &client{identity: w.newest, version2: (seed/3+uint64(i))%3 > 0})
	}
	return w
}

func (w *walk) run(steps int) string {
	w.t.Helper()
	for range steps {
		w.act()
		w.check()
	}
	// Nothing happens any more, but what the machine asks for.
	for range 100 {
		switch at, ok := w.m.Deadline(); {
		case w.writing != nil:
			w.persisted(false)
		case len(w.marks) > 0 && w.m.marking == w.marks[len(w.marks)-1].Write:
			w.markersWritten(w.marks[len(w.marks)-1])
		case ok:
			w.now = slices.MaxFunc([]time.Time{w.now, at}, time.Time.Compare)
			w.step(Tick{})
		}
		w.check()
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
	switch w.rnd.IntN(16) {
	case 0:
		w.init(c)
	case 1, 2, 3, 4:
		w.add(c)
	case 5, 6:
		w.end(c)
	case 7, 8, 9, 10:
		if w.writing != nil {
			w.persisted(w.rnd.IntN(6) == 0)
		}
	case 11, 12:
		if len(w.marks) > 0 { // the last, or an old one again
			w.markersWritten(w.marks[max(0, len(w.marks)-1-w.rnd.IntN(3))])
		}
	case 13:
		w.now = w.now.Add(time.Duration(w.rnd.IntN(1500)) * time.Millisecond)
		w.step(Tick{})
		if at, ok := w.m.Deadline(); ok && !at.After(w.now) {
			w.fail("a Tick at %s changes nothing about the deadline: %s", w.now, w.m)
		}
	case 14:
		w.step(Cancel{Request: w.request - RequestID(w.rnd.IntN(5))})
	case 15:
		switch w.rnd.IntN(12) {
		case 0, 1, 2:
			w.takeover()
		case 3:
			w.now = w.now.Add(time.Duration(w.rnd.IntN(25)) * time.Second)
			w.step(Expire{})
		case 4:
			w.step(Persisted{Write: w.m.writes + 7, Code: protocol.NotCoordinator})
		}
	}
}

// freshID is passed when the machine wants it, and sometimes forgotten.
func (w *walk) freshID() protocol.ProducerID {
	if !w.m.NeedsID() || w.rnd.IntN(10) == 0 {
		return -1
	}
	w.fresh++
	return w.fresh
}

func (w *walk) init(c *client) {
	e := Init{Request: w.request + 1, TimeoutMs: 5000, ProducerID: -1, Epoch: -1, FreshID: w.freshID()}
	switch w.rnd.IntN(6) {
	case 0, 1:
		e.ProducerID, e.Epoch = c.id, c.epoch
	case 2:
		e.TimeoutMs = 61_000 * int32(w.rnd.IntN(2))
	}
	w.ask(e, func(r Result) {
		if r.Code != protocol.None {
			return
		}
		got := identity{r.ProducerID, r.Epoch}
		before := w.handed[got]
		w.handOut(got)
		switch {
		case e.ProducerID < 0 && before:
			w.fail("a new producer gets %v, which another has", got)
		case w.stored.State != Empty || got != (identity{w.stored.ProducerID, w.stored.Epoch}):
			w.fail("got %v, stored is %+v", got, w.stored)
		case e.ProducerID < 0 && w.stored.LastProducerID >= 0:
			w.fail("a new producer can be mistaken for %d/%d", w.stored.LastProducerID, w.stored.LastEpoch)
		}
		if w.rnd.IntN(5) > 0 { // else the answer is lost
			c.identity, c.last = got, nil
		}
	})
}

// handOut takes what a producer was told to go on with.
func (w *walk) handOut(got identity) {
	if got.compare(w.newest) < 0 || got.epoch > epochMax || got.epoch < 0 {
		w.fail("handed out %v after %v", got, w.newest)
	}
	w.newest, w.handed[got] = got, true
}

func (w *walk) add(c *client) {
	e := Add{Request: w.request + 1, ProducerID: c.id, Epoch: c.epoch, VerifyOnly: w.rnd.IntN(4) == 0}
	for range 1 + w.rnd.IntN(2) {
		e.Partitions = e.Partitions.Union(Set{{Topic: protocol.TopicID{byte(w.rnd.IntN(2))}, Partition: int32(w.rnd.IntN(4))}})
	}
	if w.rnd.IntN(20) == 0 {
		e.Epoch++ // nobody's
	}
	e.Sent = !e.VerifyOnly && e.Partitions.ofTopics() == 0 && w.rnd.IntN(2) == 0
	is := w.send(e)
	w.ask(e, func(r Result) {
		found := slices.DeleteFunc(slices.Clone(e.Partitions), func(p Partition) bool { return slices.Contains(r.Missing, p) })
		if r.Code != protocol.None {
			return
		}
		if len(found) == 0 {
			return
		}
		switch {
		case w.stored == nil || w.stored.State != Ongoing || w.stored.Partitions.Missing(found).ofTopics() > 0:
			w.fail("%+v is answered None, stored is %+v", e, w.stored)
		case is != identity{w.stored.ProducerID, w.stored.Epoch} || is.compare(w.newest) < 0:
			w.fail("%+v is answered None, but %v is the newest", e, w.newest)
		case w.deciding():
			w.fail("%+v is answered None while %+v is on its way", e, w.writing)
		case !e.VerifyOnly && r.Missing != nil:
			w.fail("%+v is answered None without %v", e, r.Missing)
		}
		w.known = w.known.Union(found)
	})
}

// send has the groups' coordinators take offsets, before the transaction's is asked.
func (w *walk) send(e Add) identity {
	is := identity{e.ProducerID, e.Epoch}
	if e.Sent {
		w.sent[is] = w.sent[is].Union(e.Partitions)
	}
	return is
}

func (w *walk) end(c *client) {
	e := End{ProducerID: c.id, Epoch: c.epoch, Commit: w.rnd.IntN(2) == 0, Version2: c.version2}
	if c.last != nil && w.rnd.IntN(4) == 0 {
		e = *c.last
	}
	c.last = &e
	e.Request, e.FreshID = w.request+1, w.freshID()
	w.ask(e, func(r Result) {
		if r.Code != protocol.None {
			return
		}
		got, want := identity{r.ProducerID, r.Epoch}, result(*w.stored)
		w.handOut(got)
		switch is := (identity{e.ProducerID, e.Epoch}); {
		case w.outcome == nil || *w.outcome != outcome{is, e.Commit}:
			w.fail("%+v is answered None, decided is %+v", e, w.outcome)
		case got != want || e.Version2 == (got == is):
			w.fail("%+v is answered %v, stored is %+v", e, got, w.stored)
		}
		if w.rnd.IntN(5) > 0 {
			c.identity, c.last = got, nil
		}
	})
}

// persisted ends the write that is under way.
func (w *walk) persisted(fails bool) {
	code := protocol.None
	if fails {
		code = protocol.CoordinatorNotAvailable
	}
	number := w.apply(!fails)
	w.step(Persisted{Write: number, Code: code})
	if at, ok := w.m.Deadline(); fails && ok && !at.After(w.now) {
		w.fail("tries again at once: %s", w.m)
	}
}

// apply takes the write that is under way from there to where it is durable.
func (w *walk) apply(durable bool) (number uint64) {
	p, ok := w.writing.(Persist)
	if !ok {
		number = w.writing.(Delete).Write
		if w.writing = nil; durable {
			w.stored, w.outcome, w.known = nil, nil, nil
		}
		return number
	}
	if w.writing = nil; !durable {
		return p.Write
	}
	before := noRecord
	if w.stored != nil {
		before = *w.stored
	}
	s := p.Snapshot
	w.stored = &s
	switch {
	case s.State == Ongoing && before.State == Ongoing:
	case s.State == Ongoing, s.State == Empty:
		w.outcome, w.known = nil, nil
	case s.State == PrepareCommit, s.State == PrepareAbort:
		w.outcome = &outcome{identity{before.ProducerID, before.Epoch}, s.State == PrepareCommit}
		w.marked = false
		if missing := s.Partitions.Missing(w.known); missing != nil {
			w.fail("decided without %v: %+v", missing, s)
		}
	case (identity{s.ProducerID, s.Epoch}) != result(before): // not a completion, but an abort of nothing
		w.outcome = &outcome{identity{s.LastProducerID, s.LastEpoch}, false}
	}
	if is := (identity{s.ProducerID, s.Epoch}); s.Epoch <= epochMax && is.compare(w.newest) > 0 {
		w.newest = is
	}
	return p.Write
}

func (w *walk) decided() bool {
	return w.stored != nil && (w.stored.State == PrepareCommit || w.stored.State == PrepareAbort)
}

// deciding tells whether a decision is being written.
func (w *walk) deciding() bool {
	p, ok := w.writing.(Persist)
	return ok && p.Snapshot.State != Ongoing
}

func (w *walk) markersWritten(mark Mark) {
	if mark.Write == w.m.marking {
		w.marked = true
		clear(w.sent) // applied, or dropped, but for those of the next transaction
		for _, q := range w.open {
			if e, ok := q.event.(Add); ok {
				w.send(e)
			}
		}
	}
	w.step(Marked{Write: mark.Write})
}

// takeover loads the id as another agent would. Requests that wait are lost with the agent; a write that was under way
// may have been carried out, and markers are not known to be written.
func (w *walk) takeover() {
	if w.writing != nil {
		w.apply(w.rnd.IntN(2) == 0)
	}
	clear(w.open)
	w.marked, w.marks = false, nil
	if w.m = New(w.cfg, w.now); w.stored != nil {
		w.load()
	}
	if w.decided() != (len(w.marks) == 1) {
		w.fail("loaded %+v: markers %v", w.stored, w.marks)
	}
}

func (w *walk) load() {
	text, err := json.Marshal(w.stored)
	if err != nil {
		w.fail("encode: %v", err)
	}
	var s Snapshot
	if err := json.Unmarshal(text, &s); err != nil {
		w.fail("decode %s: %v", text, err)
	}
	if w.m, err = Load(w.cfg, w.now, s); err != nil {
		w.fail("load: %v", err)
	}
	fmt.Fprintf(&w.trace, "takeover: %s\n", w.m)
	w.step(Loaded{Offsets: w.sent[identity{s.ProducerID, s.Epoch}]})
}

func (w *walk) ask(e Event, answered func(Result)) {
	w.request++
	w.open[w.request] = question{e, answered}
	w.step(e)
}

func (w *walk) step(e Event) {
	fmt.Fprintf(&w.trace, "%T%+v\n", e, e)
	for _, effect := range w.m.Step(w.now, e) {
		fmt.Fprintf(&w.trace, "  %T%+v\n", effect, effect)
		switch effect := effect.(type) {
		case Reply:
			q, ok := w.open[effect.Request]
			if !ok {
				w.fail("request %d answered twice, or never asked", effect.Request)
			}
			delete(w.open, effect.Request)
			q.answered(effect.Result)
		case Persist:
			w.checkPersist(effect.Snapshot)
			w.writing = effect
		case Delete:
			young := w.stored != nil && w.now.UnixMilli()-w.stored.UpdatedMs < w.cfg.Expiration.Milliseconds()
			if w.stored == nil || w.writing != nil || w.stored.State == Ongoing || w.decided() && !w.marked || young {
				w.fail("expired: %+v", w.stored)
			}
			w.writing = effect
		case Mark:
			w.checkMark(effect)
			w.marks = append(w.marks, effect)
		case Note:
		}
	}
}

// checkPersist judges a write by what is durable and who has asked.
func (w *walk) checkPersist(s Snapshot) {
	before := noRecord
	if w.stored != nil {
		before = *w.stored
	}
	was, is := identity{before.ProducerID, before.Epoch}, identity{s.ProducerID, s.Epoch}
	switch {
	case w.writing != nil:
		w.fail("writes %+v while another write is under way", s)
	case w.decided() && !w.marked:
		w.fail("writes %+v before the markers of %+v", s, before)
	case before.State == Ongoing && s.State != Ongoing && s.State != PrepareCommit && s.State != PrepareAbort:
		w.fail("forgets %+v for %+v", before, s)
	case s.State == Ongoing && before.State != Ongoing && s.StartedMs != w.now.UnixMilli():
		w.fail("begins at %s: %+v", w.now, s)
	case is.compare(was) < 0:
		w.fail("writes %+v over %v", s, was)
	case s.Epoch > epochMax && (s.State == Ongoing || s.State == Empty):
		w.fail("hands out the epoch that fences: %+v", s)
	case s.State == Ongoing && before.State == Ongoing && (is != was || s.StartedMs != before.StartedMs || s.Partitions.Missing(before.Partitions) != nil):
		w.fail("transaction %+v goes on as %+v", before, s)
	case s.Partitions.ofTopics() > w.cfg.PartitionsMax:
		w.fail("%d partitions", len(s.Partitions))
	}
	if s.State != PrepareCommit && s.State != PrepareAbort {
		return
	}
	timeout := w.now.UnixMilli()-before.StartedMs >= int64(before.TimeoutMs)
	if before.State != Ongoing || s.State == PrepareCommit && !w.asked(s, was) || !timeout && !w.asked(s, was) {
		w.fail("nobody has asked to decide %+v over %+v", s, before)
	}
	if raised := is == (identity{was.id, was.epoch + 1}); raised != s.Version2 || !raised && is != was {
		w.fail("decides %+v over %+v", s, before)
	}
}

// asked tells whether an open request asks for a decision, and may.
func (w *walk) asked(s Snapshot, was identity) bool {
	for _, q := range w.open {
		switch e := q.event.(type) {
		case End:
			if (identity{e.ProducerID, e.Epoch}) == was && e.Commit == (s.State == PrepareCommit) && e.Version2 == s.Version2 {
				return true
			}
		case Init:
			claims := identity{e.ProducerID, e.Epoch}
			if s.State == PrepareAbort && s.Version2 && (claims == was || claims == identity{-1, -1}) {
				return true
			}
		}
	}
	return false
}

func (w *walk) checkMark(mark Mark) {
	if !w.decided() || w.marked {
		w.fail("marks what is not decided: %+v, stored is %+v", mark, w.stored)
	}
	want := Mark{
		Write: mark.Write, ProducerID: w.stored.ProducerID, Epoch: w.stored.Epoch, Version2: w.stored.Version2,
		Commit: w.outcome.commit, Partitions: w.stored.Partitions,
	}
	if fmt.Sprint(mark) != fmt.Sprint(want) {
		w.fail("marks %+v, want %+v", mark, want)
	}
}

func (w *walk) check() {
	switch {
	case len(w.m.parked) > w.cfg.ParkedMax:
		w.fail("%d requests wait", len(w.m.parked))
	case !w.m.busy() && len(w.m.parked) > 0:
		w.fail("requests wait for nothing: %s", w.m)
	case (w.m.writing != nil) != (w.writing != nil):
		w.fail("under way is %+v: %s", w.writing, w.m)
	case w.m.Idle() && w.m.State() == Ongoing:
		w.fail("idle, with a transaction that may time out: %s", w.m)
	case w.m.Idle() && (w.stored == nil) != (w.m.State() == Dead):
		w.fail("idle, stored is %+v: %s", w.stored, w.m)
	case w.m.Idle() && w.stored != nil && fmt.Sprint(w.m.Snapshot()) != fmt.Sprint(*w.stored):
		w.fail("idle, but %+v is not stored: %+v", w.m.Snapshot(), w.stored)
	}
}
