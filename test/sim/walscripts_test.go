package sim

import (
	"slices"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// Scripts of the interleavings 1, 2, 5, 6, 7 and 12: what happens to entries while logs roll, are sealed, and shards move.

// handOverInDoubt: a hand-over times out, and is not there; it applies later, when the owner asks again (13.1).
func handOverInDoubt(s *clusterScript) {
	p, owner := s.begin()
	heir := s.others(owner)[0]
	shard := s.shardOf(p.partition)
	s.wish(shard, heir)
	letGo := s.hold(&owner.process, "txn "+coordinator.KeyWrite(shard))
	s.grant(s.await(&owner.process, "txn "+coordinator.KeyWrite(shard)), comesLate)
	late := s.await(&owner.process, "txn "+coordinator.KeyWrite(shard)).late()
	s.world.late = nil
	acked := s.send(p, owner)
	s.pause()
	if acked() || s.shard(shard).Owner != s.logOf(owner).ID {
		s.fail("the owner leads the shard while its hand-over is in doubt, or has handed it over")
	}
	late.apply()
	letGo()
	s.wait("the heir", func() bool { return s.leaderOf(shard) == heir })
	s.insist(p, heir, acked)
}

// oldAcknowledgementsDuringARoll: acknowledgements of the old ensemble arrive while a roll is listed; the listing applies, and the writer's machine is lost before it
// has sent the entry to the next ensemble (13.2).
func oldAcknowledgementsDuringARoll(s *clusterScript) {
	p, owner := s.begin()
	l := s.logOf(owner)
	key := "txn " + coordinator.KeyLog(l.ID)
	s.hold(&owner.process, key)
	s.cut(owner.machine, s.nodeOf(l.Segments[0].Stores[2]).machine, s.step+healSteps, true) // a store drops out, and the log rolls
	s.insist(p, owner, s.send(p, owner))
	s.wait("the roll's transaction", func() bool { return s.exactly(&owner.process, key) != nil })
	next := wal.SegmentID{Log: wal.LogID(l.ID), Number: l.Segments[0].Number + 1}
	s.holdAppends(owner, "", " "+next.String())
	acked := s.send(p, owner)
	s.pause()
	if acked() {
		s.fail("acknowledged by the old ensemble alone, while the next one is being listed")
	}
	s.grant(s.exactly(&owner.process, key), answerLost)
	s.pause()
	if acked() {
		s.fail("acknowledged by the old ensemble alone, while the next one may be listed")
	}
	s.lose(owner)
}

// sealOfACopyWaitsForItsSync: a log is claimed, and sealed on a store where a sync is in flight, which then ends well and is acknowledged (13.5).
func sealOfACopyWaitsForItsSync(s *clusterScript) {
	p, owner := s.begin()
	l := s.logOf(owner)
	claim := "txn " + coordinator.KeyLog(l.ID)
	letGo := s.holdAll(claim)
	owner.away[kindKV] = s.step + healSteps
	var recoverer *node
	s.wait("a claim", func() bool {
		for _, n := range s.others(owner) {
			if s.exactly(&n.process, claim) != nil {
				recoverer = n
			}
		}
		return recoverer != nil
	})
	other := slices.DeleteFunc(s.others(owner), func(n *node) bool { return n == recoverer })[0]
	s.holdAppends(owner, recoverer.machine.name, "")
	underway := func() bool {
		return s.parkedCall(&owner.process, "to "+other.machine.name+": append") != nil ||
			s.parkedCall(&other.process, "answer to "+owner.machine.name+": append") != nil || s.parkedCall(&other.process, "write ") != nil
	}
	s.wait("a moment without an append", func() bool { return !underway() })
	sync := s.hold(&other.process, "write ")
	acked := s.send(p, owner)
	s.await(&other.process, "write ")
	letGo()
	s.pause()
	if s.parkedCall(&recoverer.process, "put ") != nil {
		s.fail("the seal has answered while a sync was in flight")
	}
	sync()
	s.wait("acknowledgement by the old leader", acked)
	s.wait("the end of its log", func() bool { return s.check.logs[l.ID].Closed })
}

// handOverWaitsForDurability: a shard is to move, and entries of it are durable on one copy only (13.6).
func handOverWaitsForDurability(s *clusterScript) {
	p, owner := s.begin()
	shard, heir := s.shardOf(p.partition), s.others(owner)[0]
	letGo := s.holdAppends(owner, "", "")
	acked := s.send(p, owner)
	s.wish(shard, heir)
	s.pause()
	if acked() || s.parkedCall(&owner.process, "txn "+coordinator.KeyWrite(shard)) != nil || s.shard(shard).Owner != s.logOf(owner).ID {
		s.fail("acknowledged, or handed over, while one copy is durable")
	}
	letGo()
	s.wait("acknowledgement", acked)
	s.wait("the heir", func() bool { return s.leaderOf(shard) == heir })
}

// drainWithTheOnlySecondCopy: the only second copy of what was acknowledged is on an agent that is told to leave; then the writer's machine is lost (13.7).
func drainWithTheOnlySecondCopy(s *clusterScript) {
	p, owner := s.begin()
	others := s.others(owner)
	s.kill(others[1], false)
	s.leaveWithTheOnlySecondCopy(p, owner, others[0])
}

// toldToLeaveWhileItStarts: the same with an agent that has no log of its own yet (13.7).
func toldToLeaveWhileItStarts(s *clusterScript) {
	p, owner := s.begin()
	others := s.others(owner)
	s.kill(others[0], false)
	starting := s.start(others[0].machine)
	s.hold(&starting.process, "txn "+coordinator.PrefixLogs)
	s.await(&starting.process, "txn "+coordinator.PrefixLogs)
	s.kill(others[1], false)
	s.leaveWithTheOnlySecondCopy(p, owner, starting)
}

// leaveWithTheOnlySecondCopy waits until there is nobody else to have one.
func (s *clusterScript) leaveWithTheOnlySecondCopy(p *producer, owner, leaver *node) {
	s.wait("an ensemble of two", func() bool {
		l := s.logOf(owner)
		return len(l.Segments) == 1 && slices.Equal(l.Segments[0].Stores, []string{owner.identity(), leaver.identity()})
	})
	s.hold(&owner.process, "put ")
	s.insist(p, owner, s.send(p, owner))
	leaver.leave()
	s.until(200, func() bool { return !leaver.lives() })
	if !leaver.lives() {
		s.fail("an agent has left with the only second copy")
	}
	s.lose(owner)
}

// recoverersSealDifferently: one recoverer finds an entry that was never acknowledged, uploads it, and is lost with its disk; the next one does not find it, and a new
// leader writes others at its offsets. Then the first one's commit arrives (13.12).
func recoverersSealDifferently(s *clusterScript) { s.sealDifferently((*cluster).lose) }

// sealDifferently is that, with what becomes of the first recoverer.
func (s *clusterScript) sealDifferently(end func(*cluster, *node)) {
	p, owner := s.begin()
	l := s.logOf(owner)
	s.wait("the first commit", func() bool { return s.check.logs[l.ID].Commits == 1 })
	s.holdAppends(owner, "", "")
	s.send(p, owner)
	s.pause()
	s.kill(owner, false)
	claims := s.holdAll("txn " + coordinator.KeyLog(l.ID))
	again := s.start(owner.machine)
	commit := "txn " + coordinator.KeyLog(l.ID) + " " + coordinator.PrefixCommits
	s.hold(&again.process, commit)
	s.hold(&again.process, "to "+s.others(again)[0].machine.name+": seal") // so that its own answer counts
	late := s.await(&again.process, commit).late()
	end(s.cluster, again)
	s.world.late = nil
	claims()
	s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
	if n := s.check.logs[l.ID].Commits; n != 1 {
		s.fail("the second recoverer has committed, %d in all: this shows nothing", n)
	}
	var heir *node
	s.wait("an heir", func() bool {
		heir = s.leaderOf(s.shardOf(p.partition))
		return heir != nil
	})
	at := slices.IndexFunc(s.load.producers, func(other *producer) bool { return other != p && other.partition == p.partition })
	other := s.load.producers[at]
	s.insist(other, heir, s.send(other, heir)) // at the offset of what was never acknowledged
	s.insist(p, heir, s.send(p, heir))
	late.apply()
	if n := s.check.logs[l.ID].Commits; n != 1 {
		s.fail("a commit of a recoverer that had lost the log has applied")
	}
}
