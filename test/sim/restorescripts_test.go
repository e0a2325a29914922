package sim

import (
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
)

// Scripts of the interleavings 11 and 12: etcd is set back, or lost, and rebuilt from the bucket.

// awaitCopy waits until there is a copy that is newer than a revision, and knows everybody.
func (s *clusterScript) awaitCopy(revision int64) (x *copied) {
	s.wait("a copy", func() bool {
		x = s.mayLoseEtcd()
		return x != nil && x.id.Revision > revision
	})
	return x
}

// rebuild has an operator rebuild etcd, and waits until all serve again.
func (s *clusterScript) rebuild() {
	s.wait("etcd to be rebuilt", func() bool {
		if s.loss != nil {
			s.loss.hurry()
		}
		return s.loss == nil
	})
	s.wait("the cluster to serve again", s.recovered)
}

// askID asks a node for a producer id, which it need not give.
func (s *clusterScript) askID(n *node) {
	s.askProducerID(n)
	s.wait("an answer, or the agent's end", func() bool { return len(s.asked) == 0 || !n.lives() })
}

// etcdSetBack: etcd is restored from yesterday under agents that live: their watches wait at a revision that is to come, and it would give producer ids and epochs again (13.11).
func etcdSetBack(s *clusterScript) {
	p, owner := s.begin()
	g := s.load.committers[0]
	yesterday := s.revision()
	s.awaitCopy(yesterday)
	s.insist(p, owner, s.send(p, owner))
	s.load.commit(g, s.leader(g.shard))
	s.wait("a group's offset", func() bool { return g.acked == 1 })
	for range setBackMin {
		s.load.commit(g, s.leader(g.shard))
		s.wait("another offset", func() bool { return g.attempt == nil })
	}
	x := s.awaitCopy(s.revision() - 1)
	s.hold(&owner.process, "put ") // so that it is on disks alone
	s.insist(p, owner, s.send(p, owner))
	s.askID(owner)
	s.setBack(x, yesterday)
	again := s.send(p, owner)
	for _, n := range s.living() {
		s.askID(n)
	}
	s.wait("all agents to end by themselves", func() bool { return len(s.living()) == 0 })
	m := s.machines[0]
	n := s.start(m)
	s.wait("the end of one that starts", func() bool { return !n.lives() })
	if !errors.Is(n.err, rebuild.ErrSetBack) {
		s.fail("an agent that starts ends with: %v", n.err)
	}
	s.rebuild()
	for _, n := range s.living() {
		s.askID(n)
	}
	heir := s.awaitHeir(s.shardOf(p.partition), owner)
	s.insist(p, heir, again)
	s.insist(p, heir, s.send(p, heir))
}

// controller returns the node that is the controller, as etcd says; nil if it does not run.
func (s *clusterScript) controller() *node {
	item, _, err := s.kv.Get(s.ctx, coordinator.KeyController)
	if err != nil || item.ModRevision == 0 {
		return nil
	}
	c, err := coordinator.Decode[coordinator.Controller](item)
	if err != nil {
		panic(err)
	}
	i := slices.IndexFunc(s.living(), func(n *node) bool { return n.number() == c.Node })
	if i < 0 {
		return nil
	}
	return s.living()[i]
}

// lastCopy returns the copy that etcd gave a number last.
func (s *clusterScript) lastCopy() coordinator.LastCopy {
	item, _, err := s.kv.Get(s.ctx, coordinator.KeyLastCopy)
	if err != nil {
		panic(err)
	}
	last, err := coordinator.Decode[coordinator.LastCopy](item)
	if err != nil {
		panic(err)
	}
	return last
}

// copierStalls: the controller stalls when it is about to have etcd give a copy its number. Another one is elected, and has that number given to a copy of its own. All but the first end, and etcd is set back to when that one stalled,
// so that it sees no revision fall. It goes on: etcd gives the number again, and lacks what was written in between (13.11).
func copierStalls(s *clusterScript) {
	p, _ := s.begin()
	s.awaitCopy(0)
	first := s.controller()
	const take = "txn " + coordinator.KeyLastCopy
	s.await(&first.process, take)
	s.held = append(s.held, func(c *call) bool {
		return c.by == &first.process && (s.loss == nil || (c.kind == kindKV || c.kind == kindWatch) && !strings.Contains(c.who, "copy the coordinator's state"))
	})
	stalled := s.revision()
	var letGo []func()
	for _, n := range s.others(first) {
		letGo = append(letGo, s.hold(&n.process, take))
	}
	g := s.load.committers[0]
	s.wait("a group's offset", func() bool {
		if n := s.leaderOf(g.shard); g.attempt == nil && n != nil && n != first {
			s.load.commit(g, n)
		}
		return g.acked > 0
	})
	for _, f := range letGo {
		f()
	}
	x := s.awaitCopy(s.revision() - 1)
	for _, n := range s.others(first) {
		s.kill(n, false)
	}
	s.note("etcd is set back to revision %d, from %d; the newest copy is %d", stalled, s.revision(), x.id.Number)
	s.loss = &loss{c: s.cluster, copied: x, back: true, open: true}
	s.kv = s.before(x, stalled)
	s.wait("the end of the one that stalled", func() bool { return !first.lives() })
	if !errors.Is(first.err, rebuild.ErrSetBack) {
		s.fail("the one that stalled ends with: %v", first.err)
	}
	if last := s.lastCopy(); last.Number != x.id.Number || last.Nonce == x.id.Nonce {
		s.fail("etcd gave a number last to copy %+v, the newest is %+v: this shows nothing", last, x.id)
	}
	n := s.start(first.machine)
	s.wait("the end of one that starts", func() bool { return !n.lives() })
	if !errors.Is(n.err, rebuild.ErrSetBack) {
		s.fail("an agent that starts ends with: %v", n.err)
	}
	s.rebuild()
	s.insistAnywhere(p)
}

// recoverersThenRebuilt: the same as when recoverers seal differently, but that the first one's machine is down, and then etcd is lost, and rebuilt from a copy from before all that (13.12). The machine comes back with the
// entry that was never acknowledged.
func recoverersThenRebuilt(s *clusterScript) {
	s.recoverThenRebuild(func() {
		s.wait("that all is committed", func() bool { return int64(s.check.ends[0]) > s.load.logs[0].floor })
	}, func(*node) {})
}

// recoverersThenOnDisks: the same, but what the next leader has written is on disks alone when etcd is lost, and what the first recoverer has uploaded is in the bucket: nobody else has put anything there.
func recoverersThenOnDisks(s *clusterScript) {
	s.recoverThenRebuild(func() {}, func(n *node) { s.hold(&n.process, "put "+segment.LogPrefix(uint64(s.logOf(n).ID))) })
}

// recoverThenRebuild is that, with what the others do once the first recoverer is gone, and what is waited for before etcd is lost.
func (s *clusterScript) recoverThenRebuild(await func(), other func(*node)) {
	s.awaitCopy(0)
	s.holdAll("put copies/")
	var first *node
	s.sealDifferently(func(c *cluster, n *node) {
		first = n
		c.kill(n, false)
		for _, n := range c.living() {
			other(n)
		}
	})
	await()
	x := s.newestCopy(math.MaxUint64)
	l := coordinator.Log{}
	for id := range s.check.logs {
		if one := x.log(id); one.ID != 0 && s.check.logs[id].Closed {
			l = one
		}
	}
	if l.ID == 0 || l.Closed {
		s.fail("the log that was recovered is %+v in the copy: this shows nothing", l)
	}
	s.wipe(x)
	s.start(first.machine)
	s.rebuild()
	s.insistAnywhere(s.load.producers[0])
}

// onDisksAlone: etcd is lost while agents' disks alone have what was acknowledged.
func onDisksAlone(s *clusterScript) {
	p, owner := s.begin()
	x := s.awaitCopy(0)
	letGo := s.holdAll("put ")
	s.insist(p, owner, s.send(p, owner))
	s.wipe(x)
	letGo()
	s.rebuild()
	s.insistAnywhere(p)
}
