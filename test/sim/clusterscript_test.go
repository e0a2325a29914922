package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/coordinator"
)

// clusterScript is a stage with a cluster.
type clusterScript struct {
	stage
	*cluster
}

// playCluster runs a script on a cluster of so many machines that has come up, and then heals it and reads everything back. It returns what it found, and the trace.
func playCluster(t *testing.T, size int, broken breakage, run func(*clusterScript)) (findings, lines []string) {
	t.Helper()
	return perform(t, func(ctx context.Context) (*world, func()) {
		c := newCluster(ctx, 1, broken, size, clusterShards)
		s := &clusterScript{stage{c.world}, c}
		c.check.restores = true
		return c.world, func() {
			s.wait("the cluster", s.settled)
			s.held = append(s.held, func(c *call) bool { return strings.HasPrefix(c.what, "txn "+coordinator.PrefixMoves) }) // no shard moves but by the script
			run(s)
		}
	})
}

// clusterScripts are interleavings, by their numbers in the package comment, and the rules that forbid what they would otherwise do.
var clusterScripts = []struct {
	number int
	name   string
	size   int // of the cluster
	run    func(*clusterScript)
	broken []breakage // with each of which the script must fail
}{
	{1, "hand-over in doubt", 3, handOverInDoubt, nil},
	{1, "old hand-over after the next owner", 3, oldHandOverAfterTheNextOwner, []breakage{shardUnguarded}},
	{1, "old manifest after a newer one", 3, oldManifestAfterANewerOne, []breakage{shardUnguarded}},
	{2, "old acknowledgements during a roll", 4, oldAcknowledgementsDuringARoll, []breakage{oldEnsembleCounts}},
	{5, "seal of a copy waits for its sync", 3, sealOfACopyWaitsForItsSync, []breakage{fenceSkipped}},
	{6, "hand-over waits for durability", 3, handOverWaitsForDurability, []breakage{handOverUnflushed}},
	{7, "drain with the only second copy", 3, drainWithTheOnlySecondCopy, []breakage{leftAtOnce}},
	{7, "told to leave while it starts", 3, toldToLeaveWhileItStarts, []breakage{leftAtOnce}},
	{8, "decided elsewhere", 3, decidedElsewhere, []breakage{instabilityHidden}},
	{8, "dies after the decision", 4, diesAfterTheDecision, []breakage{openForgotten}},
	{8, "a marker is not durable", 4, markerIsNotDurable, []breakage{oldLeaderMarks}},
	{8, "a batch after the timeout", 3, batchAfterTheTimeout, nil},
	{8, "a batch of what is over", 3, batchOfWhatIsOver, []breakage{unverified}},
	{8, "the coordinator moves", 3, coordinatorMoves, []breakage{oldCoordinatorMarks}},
	{8, "the leader moves", 3, leaderMovesWithOpenTransaction, nil},
	{8, "the group moves", 3, groupMovesWithOpenTransaction, []breakage{pendingForgotten}},
	{9, "a batch without its stable offset", 3, batchWithoutStableOffset, []breakage{stableIgnored}},
	{9, "read beyond the index", 3, readBeyondTheIndex, nil},
	{9, "read from a deposed leader", 3, readFromADeposedLeader, []breakage{proofOfNothing}},
	{10, "quorum changes before the seal", 3, quorumChangesBeforeTheSeal, []breakage{sealOnTooFew}},
	{11, "etcd is set back", 3, etcdSetBack, []breakage{setBackUnseen, restoredIDsAgain}},
	{11, "a copier stalls, and etcd is set back", 4, copierStalls, []breakage{nonceIgnored}},
	{12, "recoverers seal differently, and etcd is rebuilt", 3, recoverersThenRebuilt, []breakage{restoreSeesTheCopyAlone}},
	{12, "recoverers seal differently, and disks alone have what came later", 3, recoverersThenOnDisks, []breakage{restoreSeesNothingEmpty}},
	{12, "on disks alone when etcd is lost", 3, onDisksAlone, []breakage{restoredLogsClosed}},
	{12, "recoverers seal differently", 3, recoverersSealDifferently, []breakage{commitUnguarded}},
	{15, "handed a shard, and dies", 3, handedAShardAndDies, nil},
	{15, "a lease, and no peers", 3, leaseWithoutPeers, []breakage{proofOfNothing}},
	{15, "a disk that hangs", 3, diskThatHangs, nil},
	{15, "a recoverer stalls", 4, recovererStalls, []breakage{claimedForGood}},
	{15, "much to recover", 3, muchToRecover, nil},
	{16, "a store comes back with a closed log", 3, storeComesBackWithAClosedLog, nil},
	{16, "a store misses the drop", 3, storeMissesTheDrop, []breakage{neverSwept}},
}

// TestScripts plays them.
func TestScripts(t *testing.T) {
	for _, s := range clusterScripts {
		t.Run(fmt.Sprintf("13.%d %s", s.number, s.name), func(t *testing.T) {
			findings, lines := playCluster(t, s.size, breakage{}, s.run)
			blame(t, findings, lines)
		})
	}
}

// TestScriptBreakages plays each without its rule, and wants it to fail.
func TestScriptBreakages(t *testing.T) {
	for _, s := range clusterScripts {
		for _, b := range s.broken {
			t.Run(fmt.Sprintf("13.%d %s: %s", s.number, s.name, b.name), func(t *testing.T) {
				findings, lines := playCluster(t, s.size, b, s.run)
				if len(findings) == 0 {
					t.Fatalf("not noticed:\n%s", strings.Join(lines, "\n"))
				}
				t.Log(findings[0])
			})
		}
	}
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

// begin returns a producer of which a first batch is acknowledged and committed, and the node that leads its partition.
func (s *clusterScript) begin() (p *producer, owner *node) {
	p = s.load.producers[0]
	owner = s.leaderOf(s.shardOf(p.partition))
	s.insist(p, owner, s.send(p, owner))
	s.wait("the first commit", func() bool { return int64(s.check.ends[p.partition]) > s.load.logs[p.partition].floor })
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

// wish wishes that a shard moves, as the controller does.
func (s *clusterScript) wish(id coordinator.ShardID, to *node) {
	_, err := s.world.apply(&txn{ops: []coordinator.Op{{Key: coordinator.KeyMove(id), Value: coordinator.Encode(coordinator.Move{To: s.logOf(to).ID})}}})
	if err != nil {
		panic(err)
	}
}

// insist has a producer repeat what it sent until it is acknowledged.
func (s *clusterScript) insist(p *producer, to *node, acked func() bool) {
	s.wait("acknowledgement by "+to.name, func() bool {
		if len(p.waiting) > 0 && p.waiting[0].attempt == nil {
			s.repeat(p, to)
		}
		return acked()
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
