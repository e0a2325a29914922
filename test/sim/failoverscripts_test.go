package sim

import (
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
)

// Scripts of the interleavings 1, 9, 10, 15 and 16: what happens to shards and to what is read while agents, stores, disks and the bucket go and come back.

// forever is longer than any script.
const forever = 1 << 30

// insistAnywhere has a producer send a batch until whoever leads its partition acknowledges it.
func (s *clusterScript) insistAnywhere(p *producer) {
	x := s.load.newSend(p)
	p.waiting = append(p.waiting, x)
	s.wait("acknowledgement by anybody", func() bool {
		s.load.giveUp(p)
		n := s.leaderOf(s.shardOf(p.partition))
		for _, w := range p.waiting {
			if w.attempt == nil && n != nil {
				s.load.attempt(p, w, n)
			}
		}
		return len(p.waiting) == 0
	})
}

// awaitHeir waits until another node leads a shard.
func (s *clusterScript) awaitHeir(shard coordinator.ShardID, owner *node) (heir *node) {
	s.wait("an heir of "+owner.name, func() bool {
		heir = s.leaderOf(shard)
		return heir != nil && heir != owner
	})
	return heir
}

// isolate cuts a node off from all other machines.
func (s *clusterScript) isolate(n *node) {
	for _, o := range s.others(n) {
		s.cut(n.machine, o.machine, forever, true)
	}
}

// deleteRecords asks a node to delete the records before an offset.
func (n *node) deleteRecords(number int32, before int64) *exchange {
	t := kmsg.NewDeleteRecordsRequestTopic()
	t.Topic, t.Partitions = n.c.topic.Name, []kmsg.DeleteRecordsRequestTopicPartition{{Partition: number, Offset: before}}
	r := kmsg.NewPtrDeleteRecordsRequest()
	r.Version, r.TimeoutMillis, r.Topics = 2, 30_000, []kmsg.DeleteRecordsRequestTopic{t}
	return n.connection("admin").ask(r)
}

// oldManifestAfterANewerOne: the write of a manifest times out, its shard gets another leader, which installs a newer one, and then the old one's write arrives (13.1).
func oldManifestAfterANewerOne(s *clusterScript) {
	p, owner := s.begin()
	shard := s.shardOf(p.partition)
	s.insist(p, owner, s.send(p, owner))
	write := "txn " + coordinator.KeyWrite(shard)
	s.hold(&owner.process, write)
	owner.deleteRecords(p.partition, 1)
	s.grant(s.await(&owner.process, write), comesLate)
	late := s.await(&owner.process, write).late()
	s.world.late = nil
	s.isolate(owner) // so that it loses the shard without a word to etcd
	owner.away[kindKV] = forever
	heir := s.awaitHeir(shard, owner)
	s.wait("the heir serves", func() bool {
		x := heir.deleteRecords(p.partition, s.load.logs[p.partition].floor)
		s.wait("an answer", x.answered)
		return x.response != nil && x.response.(*kmsg.DeleteRecordsResponse).Topics[0].Partitions[0].ErrorCode == 0
	})
	if s.shard(shard).Manifest == "" {
		s.fail("there is no newer manifest: this shows nothing")
	}
	s.arriveInVain(late, shard)
}

// oldHandOverAfterTheNextOwner: a hand-over is under way when its sender dies, the shard gets another leader, and then the hand-over arrives (13.1).
func oldHandOverAfterTheNextOwner(s *clusterScript) {
	p, owner := s.begin()
	shard := s.shardOf(p.partition)
	s.wish(shard, s.others(owner)[0])
	s.hold(&owner.process, "txn "+coordinator.KeyWrite(shard))
	late := s.await(&owner.process, "txn "+coordinator.KeyWrite(shard)).late()
	s.lose(owner)
	s.world.late = nil
	s.awaitHeir(shard, owner)
	s.arriveInVain(late, shard)
	s.insistAnywhere(p)
}

// arriveInVain has an old write to a shard's record arrive, which must change nothing.
func (s *clusterScript) arriveInVain(late lateWrite, shard coordinator.ShardID) {
	before := s.present(coordinator.KeyShard(shard))
	late.apply()
	if now := s.present(coordinator.KeyShard(shard)); now.Revision != before.Revision {
		s.fail("an old write to the record of shard %d has applied", shard)
	}
}

// readBeyondTheIndex: a consumer asks an agent in its zone for what that one does not know to be committed (13.9).
func readBeyondTheIndex(s *clusterScript) {
	p, owner := s.begin()
	near := s.others(owner)[0]
	log := &s.load.logs[p.partition]
	letGo := s.hold(&near.process, "watch ")
	s.insist(p, owner, s.send(p, owner))
	s.wait("the commit", func() bool { return int64(s.check.ends[p.partition]) > log.floor })
	near.readFrom(p.partition, log.floor, near.machine.zone)
	s.wait("an answer, which is not that the offset is out of range", func() bool { return len(s.reads) == 0 })
	letGo()
	seen := len(log.seen)
	s.wait("the records", func() bool {
		if len(s.reads) == 0 && len(log.seen) == seen {
			near.readFrom(p.partition, log.floor, near.machine.zone)
		}
		return len(log.seen) > seen
	})
}

// readFromADeposedLeader: a leader that nobody reaches has lost its shards, and does not know it; a consumer asks it for what was acknowledged since (13.9).
func readFromADeposedLeader(s *clusterScript) {
	p, owner := s.begin()
	s.isolate(owner)
	owner.away[kindKV] = forever
	heir := s.awaitHeir(s.shardOf(p.partition), owner)
	for range 2 { // what it knows to be the end is not out of range
		s.insist(p, heir, s.send(p, heir))
	}
	if !owner.ready() {
		return // it has noticed, and ended
	}
	owner.readFrom(p.partition, s.load.logs[p.partition].floor, "")
	s.wait("an answer, which is not that the offset is out of range", func() bool { return len(s.reads) == 0 })
}

// quorumChangesBeforeTheSeal: a log is written with three copies, of which two acknowledge, and sealed by agents that are configured for one copy (13.10).
func quorumChangesBeforeTheSeal(s *clusterScript) {
	p, owner := s.begin()
	s.copies = 1
	for _, n := range s.others(owner) {
		s.kill(n, false)
		s.start(n.machine)
		s.last(10 * time.Second) // until the log has rolled away from it, and back
		s.wait("three copies", func() bool {
			l := s.logOf(owner)
			return s.recovered() && len(l.Segments) == 1 && len(l.Segments[0].Stores) == 3
		})
	}
	l := s.logOf(owner)
	others := s.others(owner)
	s.hold(&owner.process, "put ")
	s.holdAppends(owner, others[0].machine.name, "")
	s.insist(p, owner, s.send(p, owner))
	s.lose(owner)
	s.cut(others[0].machine, others[1].machine, forever, true)
	claim := s.hold(&others[1].process, "txn "+coordinator.KeyLog(l.ID)) // so that the one that lacks the entry recovers
	s.last(time.Minute)
	if s.check.logs[l.ID].Closed {
		s.fail("one copy was enough to seal a log whose quorum was two of three")
	}
	clear(s.cuts)
	claim()
	s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
}

// handedAShardAndDies: an agent is handed a shard and dies at once (13.15).
func handedAShardAndDies(s *clusterScript) {
	p, owner := s.begin()
	shard, heir := s.shardOf(p.partition), s.others(owner)[0]
	s.wish(shard, heir)
	s.wait("the heir", func() bool { return s.shard(shard).Owner == s.logOf(heir).ID })
	s.kill(heir, true)
	s.insistAnywhere(p)
}

// leaseWithoutPeers: an agent holds its lease, and reaches no other agent (13.15).
func leaseWithoutPeers(s *clusterScript) {
	p, owner := s.begin()
	s.isolate(owner)
	s.awaitHeir(s.shardOf(p.partition), owner)
	s.insistAnywhere(p)
}

// diskThatHangs: a leader's disk hangs; it, or somebody else, acknowledges all the same (13.15).
func diskThatHangs(s *clusterScript) {
	p, owner := s.begin()
	owner.hung = forever
	for range 3 {
		s.insistAnywhere(p)
	}
}

// recovererStalls: an agent has claimed a log and gets nowhere, while its lease lives (13.15).
func recovererStalls(s *clusterScript) {
	p, owner := s.begin()
	l := s.logOf(owner)
	s.hold(&owner.process, "put ")
	s.insist(p, owner, s.send(p, owner))
	s.kill(owner, true)
	s.wait("a claim", func() bool { return s.check.logs[l.ID].Claimer != 0 })
	claimer := s.check.logs[l.ID].Claimer
	for _, n := range s.living() {
		if s.logOf(n).ID == claimer {
			s.hold(&n.process, "put ")
		}
	}
	s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
	if s.check.logs[l.ID].Claimer == claimer {
		s.fail("the recoverer that stalls has closed the log: this shows nothing")
	}
}

// muchToRecover: the bucket is away while producers go on, and with it comes the end of a leader (13.15).
func muchToRecover(s *clusterScript) {
	p, owner := s.begin()
	l := s.logOf(owner)
	letGo := s.holdAll("put ")
	for range 60 {
		s.insist(p, owner, s.send(p, owner))
	}
	s.lose(owner)
	s.last(15 * time.Second)
	if s.check.logs[l.ID].Closed {
		s.fail("the log was closed without the bucket")
	}
	letGo()
	s.insistAnywhere(p)
}

// storeComesBackWithAClosedLog: a store is away when a log is closed, and comes back with it (13.16).
func storeComesBackWithAClosedLog(s *clusterScript) {
	_, owner := s.begin()
	away := s.others(owner)[0].machine
	l := s.logOf(owner)
	s.kill(away.node, false)
	owner.leave()
	s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
	s.start(away)
	s.wait("its store", func() bool { return away.node.store.Load() != nil })
	if !s.holdsClosed(away) {
		s.fail("it holds nothing of the log: this shows nothing")
	}
	s.wait("that it drops the log", func() bool { return away.node.ready() && !s.holdsClosed(away) })
}

// storeMissesTheDrop: a store is not told that a log is over (13.16).
func storeMissesTheDrop(s *clusterScript) {
	_, owner := s.begin()
	other := s.others(owner)[0]
	l := s.logOf(owner)
	s.hold(&owner.process, "to "+other.machine.name+": drop")
	owner.leave()
	s.wait("the end of the log", func() bool { return s.check.logs[l.ID].Closed })
	if !s.holdsClosed(other.machine) {
		s.fail("it holds nothing of the log: this shows nothing")
	}
	s.wait("that it drops the log", func() bool { return !s.holdsClosed(other.machine) })
}
