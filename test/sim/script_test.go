package sim

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore/segment"
)

// stage is a world without trouble of its own, whose calls a script holds back and lets go.
type stage struct{ w *world }

// scriptOver ends a script that cannot go on; it has told why.
type scriptOver struct{}

// fail notes that not all went as it must.
func (s *stage) fail(format string, args ...any) { s.w.check.report("script: "+format, args...) }

// script is a stage with one machine.
type script struct {
	stage
	*single
}

// play runs a script on one machine, which must go well.
func play(t *testing.T, run func(*script)) {
	t.Helper()
	findings, lines := perform(t, func(ctx context.Context) (*world, func()) {
		s := newSingle(ctx, 1, breakage{})
		return s.world, func() { run(&script{stage{s.world}, s}) }
	})
	blame(t, findings, lines)
}

// blame fails a test for what a script found.
func blame(t *testing.T, findings, lines []string) {
	t.Helper()
	if len(findings) > 0 {
		t.Errorf("%s\n%s", strings.Join(findings, "\n"), strings.Join(lines, "\n"))
	}
}

// perform makes a world, runs what a script does in it, heals it, and reads everything back. It returns what it found, and the trace.
func perform(t *testing.T, create func(context.Context) (w *world, run func())) (findings, lines []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, run := create(t.Context())
		w.chances = chances{}
		w.log = func(line string) { lines = append(lines, line) }
		defer w.end()
		w.attempt(run)
		if !w.check.failed() {
			w.held = nil
			w.heal()
		}
		findings = w.check.findings
	})
	return findings, lines
}

// attempt runs a script as far as it goes.
func (w *world) attempt(run func()) {
	defer func() {
		if r := recover(); r != nil && r != any(scriptOver{}) {
			panic(r)
		}
	}()
	run()
}

// hold keeps calls of that process whose name begins so from happening, until it is let go.
func (s *stage) hold(by *process, what string) (letGo func()) {
	on := true
	s.w.held = append(s.w.held, func(c *call) bool { return on && c.by == by && strings.HasPrefix(c.what, what) })
	return func() { on = false }
}

// parked finds a call that waits, held or not; nil if there is none.
func (s *stage) parkedCall(by *process, what string) *call {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for _, c := range s.w.parked {
		if c.by == by && strings.HasPrefix(c.what, what) {
			return c
		}
	}
	return nil
}

// wait lets everything go on until cond holds.
func (s *stage) wait(what string, cond func() bool) {
	if !s.w.until(healSteps, cond) {
		s.fail("waited in vain for: %s", what)
		panic(scriptOver{})
	}
}

// await lets everything go on until a call waits.
func (s *stage) await(by *process, what string) *call {
	s.wait(by.name+" "+what, func() bool { return s.parkedCall(by, what) != nil })
	return s.parkedCall(by, what)
}

// linger lets everything that can go on do so for a while.
func (s *stage) linger() { s.w.until(300, func() bool { return false }) }

// pause lasts less than a second: nobody loses patience.
func (s *stage) pause() { s.last(500 * time.Millisecond) }

// last lets everything that can go on do so for a time.
func (s *stage) last(d time.Duration) {
	until := time.Now().Add(d)
	s.wait("time to pass", func() bool { return time.Now().After(until) })
}

// send sends a new batch of a producer; it is acknowledged when the result says so.
func (s *stage) send(p *producer, to broker) (acked func() bool) {
	x := s.w.load.newSend(p)
	p.waiting = append(p.waiting, x)
	s.w.load.attempt(p, x, to)
	return func() bool { return x.outcome != 0 }
}

// repeat sends a producer's oldest batch again.
func (s *stage) repeat(p *producer, to broker) {
	s.w.load.retry(p, 0)
	s.w.load.attempt(p, p.waiting[0], to)
}

// serve starts an agent and waits until it serves.
func (s *script) serve() *agent {
	a := s.start()
	s.wait(a.name+" serves", a.serving.Load)
	return a
}

// commits reads the commits of a log.
func (s *script) commits(a *agent) uint64 { return s.check.logs[a.id].Commits }

// TestLateOffsetCommit: an offset commit times out, the shard gets another leader, which takes a newer one, and then the old one arrives (13.1).
func TestLateOffsetCommit(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		g := s.load.committers[0]
		letGo := s.hold(&old.process, "txn writes/")
		s.load.commit(g, old)
		s.grant(s.await(&old.process, "txn writes/"), comesLate)
		s.late = []lateWrite{s.await(&old.process, "txn writes/").late()}
		heir := s.serve()
		g.attempt = nil // the consumer has given up
		s.load.commit(g, heir)
		s.wait("the second commit", func() bool { return g.acked == 2 })
		s.applyLate()
		letGo()
		s.linger()
	})
}

// TestLeaderWaitsForTheLastCommit: a new leader's watch has not shown the last commit of the old one yet (13.3).
func TestLeaderWaitsForTheLastCommit(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, old))
		heir := s.start()
		s.await(&heir.process, "list logs/")
		letGo := s.hold(&heir.process, "watch meta/")
		s.linger()
		if heir.serving.Load() {
			s.fail("serves without having seen the commit that its own recovery made")
		}
		letGo()
		s.wait("the heir", heir.serving.Load)
		s.wait("acknowledgement", s.send(p, heir))
	})
}

// TestRetryOfWhatWasLost: a batch lies in a tail that is not recovered; its retry is no duplicate (13.4).
func TestRetryOfWhatWasLost(t *testing.T) {
	play(t, func(s *script) {
		a := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, a))
		s.linger()
		letGo := s.hold(&s.machines[0].process, "write ")
		acked := s.send(p, a)
		s.linger()
		s.parkedCall(&s.machines[0].process, "write ").torn = nil // not a byte of it gets to the disk
		s.cutPower(true)
		letGo()
		heir := s.serve()
		s.repeat(p, heir)
		s.wait("acknowledgement of the retry", acked)
	})
}

// TestSealWaitsForSync: a log is sealed while a sync is in flight, which then ends well (13.5).
func TestSealWaitsForSync(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		p := s.load.producers[0]
		s.linger()
		letGo := s.hold(&s.machines[0].process, "write 0.wal")
		acked := s.send(p, old)
		heir := s.start()
		s.linger()
		if s.parkedCall(&heir.process, "put ") != nil || heir.serving.Load() {
			s.fail("the seal answered while a sync was in flight")
		}
		letGo()
		s.wait("acknowledgement by the old leader", acked)
		s.wait("the heir", heir.serving.Load)
		if end := heir.index.End(heir.partition(0).ID); end == 0 {
			s.fail("the heir does not know what the old leader acknowledged after the seal was asked for")
		}
	})
}

// TestRecovererDiesAfterUpload: one recoverer uploads and dies, another continues, and a new leader goes on (13.12, on one store).
func TestRecovererDiesAfterUpload(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, old))
		s.kill(old)
		first := s.start()
		s.hold(&first.process, "txn logs/0000000000000001 meta/commits/")
		late := s.await(&first.process, "txn logs/0000000000000001 meta/commits/").late()
		s.kill(first)
		s.late = nil
		heir := s.serve()
		late.apply()
		s.wait("acknowledgement", s.send(p, heir))
		if l := s.check.logs[old.id]; l.Commits != 1 || l.Fence != 3 || !l.Closed {
			s.fail("the log's record is %+v, want one commit under fence 3, and closed", l)
		}
	})
}

// TestPutTimesOut: a put times out and arrives later, between its retries (13.13).
func TestPutTimesOut(t *testing.T) {
	play(t, func(s *script) {
		a := s.serve()
		letGo := s.hold(&a.process, "put ")
		s.wait("acknowledgement", s.send(s.load.producers[0], a))
		put := s.await(&a.process, "put ")
		s.grant(put, answerLost)
		s.grant(s.await(&a.process, "put "), comesLate)
		letGo()
		s.wait("the commit", func() bool { return s.commits(a) == 1 })
	})
}

// TestNameIsTaken: an object of the same name and with other bytes is there; it is not taken for one's own (13.13).
func TestNameIsTaken(t *testing.T) {
	play(t, func(s *script) {
		s.broken.squat = true
		a := s.serve()
		s.wait("acknowledgement", s.send(s.load.producers[0], a))
		s.wait("the commit", func() bool { return s.commits(a) == 1 })
		second := segment.ID{Log: uint64(a.id), Fence: 1, Commit: 1, Attempt: 1}.Name()
		if _, footer := s.check.object(second); footer == nil {
			s.fail("%s is not there", second)
		}
		s.broken.squat = false
	})
}

// TestCommitBetweenReadAndClaim: a recoverer reads the flushed position, the writer commits, the recoverer claims (13.14).
func TestCommitBetweenReadAndClaim(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, old))
		letGo := s.hold(&old.process, "txn logs/")
		s.await(&old.process, "txn logs/")
		heir := s.start()
		claim := s.hold(&heir.process, "txn logs/")
		s.await(&heir.process, "txn logs/")
		letGo()
		s.wait("the commit", func() bool { return s.commits(old) == 1 })
		claim()
		s.wait("an heir", func() bool {
			if len(s.living()) < 2 && !heir.serving.Load() {
				heir = s.start() // the one that lost the race has ended
			}
			return heir.serving.Load()
		})
		s.wait("acknowledgement", s.send(p, heir))
	})
}

// TestHandedAShardAndDies: an agent claims the shards and dies at once (13.15).
func TestHandedAShardAndDies(t *testing.T) {
	play(t, func(s *script) {
		old := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, old))
		heir := s.start()
		s.hold(&heir.process, "txn writes/")
		s.grant(s.await(&heir.process, "txn writes/"), answerLost)
		s.kill(heir)
		next := s.serve()
		s.wait("acknowledgement", s.send(p, next))
	})
}

// TestTwoStartAtOnce: both agents find no log open, and open their own; the one that is late must not take the shards from under the other.
func TestTwoStartAtOnce(t *testing.T) {
	play(t, func(s *script) {
		slow := s.start()
		letGo := s.hold(&slow.process, "list meta/shards/")
		s.await(&slow.process, "get meta/cluster")
		open := s.hold(&slow.process, "txn logs/")
		s.await(&slow.process, "txn logs/")
		fast := s.serve()
		open()
		s.await(&slow.process, "list meta/shards/")
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, fast))
		letGo()
		s.wait("the slow one to lead after the fast one's log was closed", slow.serving.Load)
		s.wait("acknowledgement", s.send(p, slow))
	})
}

// TestOlderLogLeadsLater: an agent that was slow to start leads after one with a younger log. Who comes then must see the commits in the order of offsets, not
// of logs, and know what each producer sent last.
func TestOlderLogLeadsLater(t *testing.T) {
	play(t, func(s *script) {
		slow := s.start()
		open := s.hold(&slow.process, "txn logs/")
		s.await(&slow.process, "txn logs/")
		fast := s.serve()
		p := s.load.producers[0]
		s.wait("acknowledgement", s.send(p, fast))
		open()
		s.wait("the slow one", slow.serving.Load)
		s.wait("acknowledgement", s.send(p, slow))
		s.wait("its commit", func() bool { return s.commits(slow) == 1 })
		s.kill(slow)
		next := s.serve()
		s.wait("acknowledgement", s.send(p, next))
		if slow.id > fast.id {
			s.fail("the order of logs is that of leaders: this shows nothing")
		}
	})
}
