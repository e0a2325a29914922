package sim

import (
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// clusterScript is a stage with a cluster.
type clusterScript struct {
	stage
	*cluster
}

// playCluster runs a script on a cluster of so many machines that has come up, and then heals it and reads everything back.
func playCluster(t *testing.T, size int, run func(*clusterScript)) {
	t.Helper()
	perform(t, func(t *testing.T) (*world, func()) {
		c := newCluster(t.Context(), 1, breakage{}, size)
		s := &clusterScript{stage{t, c.world}, c}
		return c.world, func() {
			s.wait("the cluster", s.settled)
			run(s)
		}
	})
}

// settled reports whether all machines serve, all shards are led, none is to move, and every log has as many copies as it may.
func (s *clusterScript) settled() bool {
	if !s.recovered() {
		return false
	}
	moves, _, err := s.kv.List(s.ctx, coordinator.PrefixMoves, 0)
	if err != nil || len(moves) > 0 {
		return false
	}
	for _, n := range s.living() {
		l := s.logOf(n)
		if len(l.Segments) != 1 || len(l.Segments[0].Stores) != 3 {
			return false
		}
	}
	for id := range coordinator.ShardID(s.world.cluster.Shards) {
		if s.leaderOf(id) == nil {
			return false
		}
	}
	return true
}

// logOf returns the record of a node's own log.
func (s *clusterScript) logOf(n *node) (own coordinator.Log) {
	for _, l := range s.check.logs {
		if l.Node == n.number() && l.ID > own.ID {
			own = l
		}
	}
	return own
}

// begin returns a producer of which a first batch is acknowledged, and the node that leads its partition.
func (s *clusterScript) begin() (p *producer, owner *node) {
	s.Helper()
	p = s.load.producers[0]
	owner = s.leaderOf(s.shardOf(p.partition))
	s.insist(p, owner, s.send(p, owner))
	return p, owner
}

// others are the nodes that live, but for one.
func (s *clusterScript) others(n *node) []*node {
	return slices.DeleteFunc(s.living(), func(o *node) bool { return o == n })
}

// holdAll holds calls of all nodes.
func (s *clusterScript) holdAll(what string) (letGo func()) {
	var all []func()
	for _, n := range s.living() {
		all = append(all, s.hold(&n.process, what))
	}
	return func() {
		for _, f := range all {
			f()
		}
	}
}

// wish has the controller wish that a shard moves; it does not take it back.
func (s *clusterScript) wish(id coordinator.ShardID, to *node) {
	s.holdAll("txn " + coordinator.PrefixMoves)
	_, err := s.world.apply(&txn{ops: []coordinator.Op{{Key: coordinator.KeyMove(id), Value: coordinator.Encode(coordinator.Move{To: s.logOf(to).ID})}}})
	if err != nil {
		s.Fatal(err)
	}
}

// insist has a producer repeat what it sent until it is acknowledged.
func (s *clusterScript) insist(p *producer, to *node, acked func() bool) {
	s.Helper()
	s.wait("acknowledgement by "+to.name, func() bool {
		if len(p.waiting) > 0 && p.waiting[0].attempt == nil {
			s.repeat(p, to)
		}
		return acked()
	})
}

// TestHandOverInDoubt: a hand-over times out, and is not there; it applies later, when the owner asks again (13.1).
func TestHandOverInDoubt(t *testing.T) {
	playCluster(t, 3, func(s *clusterScript) {
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
			t.Error("the owner leads the shard while its hand-over is in doubt, or has handed it over")
		}
		late.apply()
		letGo()
		s.wait("the heir", func() bool { return s.leaderOf(shard) == heir })
		s.insist(p, heir, acked)
	})
}

// exactly finds a call that waits and whose whole name this is; nil if there is none.
func (s *clusterScript) exactly(by *process, what string) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.parked, func(c *call) bool { return c.by == by && c.what == what })
	if i < 0 {
		return nil
	}
	return s.parked[i]
}

// nodeOf returns the node that has a store.
func (s *clusterScript) nodeOf(store string) *node {
	for _, n := range s.living() {
		if n.identity() == store {
			return n
		}
	}
	return nil
}

// holdAppends holds what a node sends to a segment on another machine.
func (s *clusterScript) holdAppends(from *node, to string, segment string) (letGo func()) {
	on := true
	s.held = append(s.held, func(c *call) bool {
		return on && c.by == &from.process && strings.HasPrefix(c.what, "to "+to) && strings.Contains(c.what, ": append ") && strings.HasSuffix(c.what, segment)
	})
	return func() { on = false }
}

// TestOldAcknowledgementsDuringARoll: acknowledgements of the old ensemble arrive while a roll is listed; the listing applies, and the writer's machine is lost before it
// has sent the entry to the next ensemble (13.2).
func TestOldAcknowledgementsDuringARoll(t *testing.T) {
	playCluster(t, 4, func(s *clusterScript) {
		p, owner := s.begin()
		l := s.logOf(owner)
		key := "txn " + coordinator.KeyLog(l.ID)
		s.hold(&owner.process, key)
		s.cut(owner.machine, s.nodeOf(l.Segments[0].Stores[2]).machine, s.step+healSteps, true) // a store drops out, and the log rolls
		s.wait("acknowledgement by two copies", s.send(p, owner))
		s.wait("the roll's transaction", func() bool { return s.exactly(&owner.process, key) != nil })
		next := wal.SegmentID{Log: wal.LogID(l.ID), Number: l.Segments[0].Number + 1}
		s.holdAppends(owner, "", " "+next.String())
		acked := s.send(p, owner)
		s.pause()
		if acked() {
			t.Error("acknowledged by the old ensemble alone, while the next one is being listed")
		}
		s.grant(s.exactly(&owner.process, key), answerLost)
		s.pause()
		if acked() {
			t.Error("acknowledged by the old ensemble alone, while the next one may be listed")
		}
		s.lose(owner)
	})
}

// TestSealOfACopyWaitsForItsSync: a log is claimed, and sealed on a store where a sync is in flight, which then ends well and is acknowledged (13.5).
func TestSealOfACopyWaitsForItsSync(t *testing.T) {
	playCluster(t, 3, func(s *clusterScript) {
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
		sync := s.hold(&other.process, "write ")
		acked := s.send(p, owner)
		letGo()
		s.pause()
		if s.parkedCall(&recoverer.process, "put ") != nil {
			t.Error("the seal has answered while a sync was in flight")
		}
		sync()
		s.wait("acknowledgement by the old leader", acked)
		s.wait("the end of its log", func() bool { return s.check.logs[l.ID].Closed })
	})
}

// TestHandOverWaitsForDurability: a shard is to move, and entries of it are durable on one copy only (13.6).
func TestHandOverWaitsForDurability(t *testing.T) {
	playCluster(t, 3, func(s *clusterScript) {
		p, owner := s.begin()
		shard, heir := s.shardOf(p.partition), s.others(owner)[0]
		letGo := s.holdAppends(owner, "", "")
		acked := s.send(p, owner)
		s.wish(shard, heir)
		s.pause()
		if acked() || s.parkedCall(&owner.process, "txn "+coordinator.KeyWrite(shard)) != nil || s.shard(shard).Owner != s.logOf(owner).ID {
			t.Error("acknowledged, or handed over, while one copy is durable")
		}
		letGo()
		s.wait("acknowledgement", acked)
		s.wait("the heir", func() bool { return s.leaderOf(shard) == heir })
	})
}

// TestDrainWithTheOnlySecondCopy: the only second copy of what was acknowledged is on an agent that is told to leave; then the writer's machine is lost (13.7).
func TestDrainWithTheOnlySecondCopy(t *testing.T) {
	playCluster(t, 3, func(s *clusterScript) {
		p, owner := s.begin()
		leaver := s.others(owner)[0]
		s.kill(s.others(owner)[1], false)
		s.wait("an ensemble of two", func() bool {
			l := s.logOf(owner)
			return len(l.Segments) == 1 && slices.Equal(l.Segments[0].Stores, []string{owner.identity(), leaver.identity()})
		})
		s.hold(&owner.process, "put ")
		s.wait("acknowledgement", s.send(p, owner))
		leaver.stop()
		s.until(200, func() bool { return !leaver.lives() })
		if !leaver.lives() {
			t.Error("an agent has left with the only second copy")
		}
		s.lose(owner)
	})
}

// TestRecoverersSealDifferently: one recoverer finds an entry that was never acknowledged, uploads it, and is lost with its disk; the next one does not find it, and a new
// leader writes others at its offsets. Then the first one's commit arrives (13.12).
func TestRecoverersSealDifferently(t *testing.T) {
	playCluster(t, 3, func(s *clusterScript) {
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
		s.lose(again)
		s.world.late = nil
		claims()
		s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
		if n := s.check.logs[l.ID].Commits; n != 1 {
			t.Errorf("the second recoverer has committed, %d in all: this shows nothing", n)
		}
		var heir *node
		s.wait("an heir", func() bool {
			heir = s.leaderOf(s.shardOf(p.partition))
			return heir != nil
		})
		s.insist(p, heir, s.send(p, heir))
		late.apply()
		if n := s.check.logs[l.ID].Commits; n != 1 {
			t.Error("a commit of a recoverer that had lost the log has applied")
		}
	})
}
