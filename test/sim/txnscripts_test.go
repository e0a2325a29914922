package sim

import (
	"strings"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// Scripts of transactions: the interleavings 8 and 9, and what may come between a decision and its markers.

// theatre is a script with one transactional producer, whose coordinator, partition's leader and group's leader are different nodes as far as the script needs that.
type theatre struct {
	*clusterScript
	x           *transacting
	i           *instance
	number      int32 // the partition that it writes to
	coordinator *node
	leader      *node // of the partition
}

// transacts lets a producer come, of either version of the protocol, whose coordinator does not lead the partition, nor its group.
func transacts(s *clusterScript, version2 bool, timeout time.Duration) *theatre {
	s.transact()
	x := s.load.txns
	t := &theatre{clusterScript: s, x: x, number: -1}
	for _, id := range x.ids {
		if id.version2 == version2 && id.shard != id.groupShard && t.i == nil {
			t.i, id.timeout = x.come(id), timeout
		}
	}
	if t.i == nil {
		s.fail("no transactional id has its group elsewhere")
		panic(scriptOver{})
	}
	for n := range int32(partitions) {
		if s.shardOf(n) != t.i.of.shard {
			t.number = n
		}
	}
	t.coordinator = s.leaderOf(t.i.of.shard)
	t.leader = t.apart(s.shardOf(t.number))
	t.apart(t.i.of.groupShard)
	t.until("a producer id", t.i.init, func() bool { return !t.i.needsID })
	return t
}

// apart has a shard led by another node than the coordinator's, and returns that.
func (t *theatre) apart(shard coordinator.ShardID) *node {
	if n := t.leaderOf(shard); n != t.coordinator {
		return n
	}
	t.moves(shard, t.others(t.coordinator)[0])
	return t.leaderOf(shard)
}

// moves hands a shard over.
func (t *theatre) moves(shard coordinator.ShardID, to *node) {
	t.wish(shard, to)
	t.wait("that "+to.name+" leads", func() bool { return t.leaderOf(shard) == to })
}

// until has the producer take a step, again and again, until that has come of it.
func (t *theatre) until(what string, step func(), done func() bool) {
	t.wait(what, func() bool {
		if done() {
			return true
		}
		if t.i.doing == nil {
			step()
		}
		return false
	})
}

// begin begins a transaction.
func (t *theatre) begin() *transaction {
	t.i.txn = &transaction{by: t.i, claim: t.i.claim}
	t.x.all = append(t.x.all, t.i.txn)
	return t.i.txn
}

// writes sends a batch of the transaction.
func (t *theatre) writes() {
	t.i.sendsTo = t.number
	t.i.unsent = t.i.newSend()
	t.until("a batch", t.i.produce, func() bool { return t.i.unsent == nil })
}

// sends sends an offset.
func (t *theatre) sends() {
	t.i.of.offset++
	t.i.txn.offset = t.i.of.offset
	t.until("an offset", t.i.sendOffset, func() bool { return t.i.txn.offsetSent })
}

// ends ends the transaction, which is then decided.
func (t *theatre) ends(how outcome) {
	t.until("the end of the transaction", func() { t.i.end(how) }, func() bool { return t.i.txn == nil })
}

// holdMarkers keeps markers from leaving a node.
func (t *theatre) holdMarkers(from *node) (letGo func()) { return t.holdAsks(from, "WriteTxnMarkers") }

func (t *theatre) holdAsks(from *node, what string) (letGo func()) {
	on := true
	t.held = append(t.held, func(c *call) bool {
		return on && c.by == &from.process && c.kind == kindNet && strings.HasPrefix(c.what, "to ") && strings.Contains(c.what, what)
	})
	return func() { on = false }
}

// markersFrom waits until a node has markers to send.
func (t *theatre) markersFrom(n *node) (found *call) {
	t.wait("markers from "+n.name, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, c := range t.parked {
			if c.by == &n.process && strings.HasPrefix(c.what, "to ") && strings.Contains(c.what, "WriteTxnMarkers") {
				found = c
			}
		}
		return found != nil
	})
	return found
}

// reads has somebody read a node's partition from an offset on, and returns how many records that showed: none if the reader was sent elsewhere. What it may show, the
// reader judges itself.
func (t *theatre) reads(n *node, offset int64, committed bool) int {
	before, sent := len(t.x.reads), t.x.sent
	t.wait("an answer to a reader", func() bool {
		if len(t.x.reads) == before && len(t.x.reading) == 0 {
			t.x.read(n, t.number, offset, n.machine.zone, committed)
		}
		return len(t.x.reads) > before || t.x.sent > sent
	})
	if len(t.x.reads) == before {
		return 0
	}
	return len(t.x.reads[len(t.x.reads)-1].visible)
}

// shows waits until whoever leads the partition shows a reader of what is committed something from an offset on.
func (t *theatre) shows(offset int64) {
	t.wait("that the transaction is visible", func() bool {
		if n := t.leaderOf(t.shardOf(t.number)); n != nil && len(t.x.reading) == 0 {
			t.x.read(n, t.number, offset, "", true)
		}
		last := len(t.x.reads) - 1
		return last >= 0 && t.x.reads[last].committed && t.x.reads[last].offset == offset && len(t.x.reads[last].visible) > 0
	})
}

// end is where the partition ends, as far as anybody was told.
func (t *theatre) end() int64 { return t.load.logs[t.number].floor + 1 }

// decidedElsewhere: a transaction is decided on one agent while the group's leader on another answers OffsetFetch from its cache (13.8).
func decidedElsewhere(s *clusterScript) {
	for _, version2 := range []bool{false, true} {
		t := transacts(s, version2, 10*time.Minute)
		offset := func(stable bool) {
			t.x.askOffset(t.i.of, stable)
			t.wait("an answer to a consumer", func() bool { return len(t.asked) == 0 })
		}
		t.begin()
		t.sends()
		t.ends(committed)
		t.wait("the first offset", func() bool {
			offset(true)
			return t.x.seen[t.i.of.group] == t.i.of.committed
		})
		t.begin()
		t.sends()
		offset(true)
		offset(false)
		letGo := t.holdMarkers(t.coordinator)
		t.ends(committed)
		for range 6 { // that the group's leader is asked, and not who knows nothing of it
			offset(true)
			offset(false)
		}
		letGo()
		t.wait("the second offset", func() bool {
			offset(true)
			return t.x.seen[t.i.of.group] == t.i.of.committed
		})
	}
}

// batchWithoutStableOffset: a consumer asks an agent that has a batch of a transaction, and not yet that the transaction is committed (13.9).
func batchWithoutStableOffset(s *clusterScript) {
	t := transacts(s, true, 10*time.Minute)
	near := t.others(t.leader)[0]
	t.begin()
	t.writes()
	first := t.end() - 1
	t.wait("the batch's commit", func() bool { return int64(t.check.ends[t.number]) > first })
	t.wait("the batch, by "+near.name, func() bool { return t.reads(near, first, false) > 0 })
	t.reads(near, first, true)
	letGo := t.hold(&near.process, "watch ")
	t.ends(committed)
	t.wait("the marker's commit", func() bool { return int64(t.check.ends[t.number]) > t.end() })
	t.reads(near, first, true)
	letGo()
	if t.x.all[0].decided != committed {
		t.fail("the transaction is not committed: this shows nothing")
	}
	t.wait("the transaction, by "+near.name, func() bool { return t.reads(near, first, true) > 0 })
}

// diesAfterTheDecision: a coordinator has decided a transaction, and dies before it has sent a marker.
func diesAfterTheDecision(s *clusterScript) {
	t := transacts(s, false, 10*time.Minute)
	t.begin()
	t.writes()
	t.sends()
	first := t.end() - 1
	t.holdMarkers(t.coordinator)
	t.ends(committed)
	t.markersFrom(t.coordinator)
	t.kill(t.coordinator, false)
	t.world.late = nil
	t.shows(first)
	t.wait("the offset", func() bool {
		t.x.askOffset(t.i.of, true)
		return t.x.seen[t.i.of.group] == t.i.of.committed
	})
}

// markerIsNotDurable: a partition's leader is lost when it has a marker that is not durable.
func markerIsNotDurable(s *clusterScript) {
	t := transacts(s, true, 10*time.Minute)
	t.begin()
	t.writes()
	first := t.end() - 1
	markers := t.holdMarkers(t.coordinator)
	t.ends(committed)
	t.markersFrom(t.coordinator)
	t.holdAppends(t.leader, "", "")
	markers()
	t.pause()
	if t.reads(t.leader, first, true) > 0 {
		t.fail("what a marker that is not durable has ended is shown")
	}
	t.lose(t.leader)
	t.world.late = nil
	t.shows(first)
}

// batchAfterTheTimeout: a coordinator has answered that a transaction includes a partition; the answer comes after the transaction's timeout, and with it the batch.
func batchAfterTheTimeout(s *clusterScript) {
	t := transacts(s, false, time.Second)
	open := t.begin()
	t.i.sendsTo = t.number
	t.i.unsent = t.i.newSend()
	on := true
	t.held = append(t.held, func(c *call) bool {
		return on && c.by == &t.coordinator.process && strings.HasPrefix(c.what, "answer to "+t.leader.name+": AddPartitionsToTxn")
	})
	t.until("the verification", t.i.produce, func() bool {
		return t.parkedCall(&t.coordinator.process, "answer to "+t.leader.name+": AddPartitionsToTxn") != nil
	})
	t.wait("the timeout", func() bool { return open.decided == aborted })
	t.last(time.Second) // for the markers
	on = false
	t.until("that the producer is told", t.i.produce, func() bool { return t.i.needsID })
}

// batchOfWhatIsOver: a producer whose transaction has timed out sends its first batch to a partition that has never seen it, and so fences nothing.
func batchOfWhatIsOver(s *clusterScript) {
	t := transacts(s, true, time.Second)
	open := t.begin()
	t.sends()
	t.wait("the timeout", func() bool { return open.decided == aborted })
	t.i.sendsTo = t.number
	t.i.unsent = t.i.newSend()
	t.until("that the producer is told", t.i.produce, func() bool { return t.i.needsID || t.i.unsent == nil })
	if t.i.unsent == nil && !t.i.needsID {
		t.fail("a batch of a transaction that is over was taken")
	}
}

// coordinatorMoves: a coordinator's shard is handed over while markers are on their way; they come when another transaction has begun.
func coordinatorMoves(s *clusterScript) {
	t := transacts(s, false, 10*time.Minute) // of version 1: the epoch is the same in the next one
	t.begin()
	t.writes()
	first := t.end() - 1
	t.holdMarkers(t.coordinator)
	t.ends(committed)
	late := t.markersFrom(t.coordinator).late()
	t.moves(t.i.of.shard, t.others(t.coordinator)[0])
	t.shows(first)
	t.begin()
	t.writes()
	late.apply()
	t.pause()
	t.reads(t.leaderOf(t.shardOf(t.number)), first, true)
	t.ends(aborted)
}

// leaderMovesWithOpenTransaction: a partition with an open transaction is handed over, and then the transaction is aborted.
func leaderMovesWithOpenTransaction(s *clusterScript) {
	t := transacts(s, true, 10*time.Minute)
	t.begin()
	t.writes()
	first := t.end() - 1
	t.moves(t.shardOf(t.number), t.coordinator)
	t.reads(t.coordinator, first, true)
	t.ends(aborted)
	t.wait("the abort", func() bool {
		return t.reads(t.coordinator, first, true) == 0 && len(t.x.reads) > 0 && t.x.reads[len(t.x.reads)-1].last > first
	})
}

// groupMovesWithOpenTransaction: a group to which an open transaction has sent an offset is handed over, and then the transaction is committed.
func groupMovesWithOpenTransaction(s *clusterScript) {
	t := transacts(s, true, 10*time.Minute)
	t.begin()
	t.sends()
	group := t.leaderOf(t.i.of.groupShard)
	for _, n := range t.others(group) {
		if n != t.coordinator {
			t.moves(t.i.of.groupShard, n)
			break
		}
	}
	t.ends(committed)
	t.wait("the offset", func() bool {
		t.x.askOffset(t.i.of, true)
		return t.x.seen[t.i.of.group] == t.i.of.committed
	})
}
