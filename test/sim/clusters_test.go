package sim

import (
	"strconv"
	"strings"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// seedsPerCluster is how many worlds of one machine are run for each cluster, which takes as many times longer.
const seedsPerCluster = 6

// TestClusters runs clusters by seed.
func TestClusters(t *testing.T) {
	runSeeds(t, clusters, *seeds/seedsPerCluster)
}

// TestSameClusterSameTrace is TestSameSeedSameTrace for clusters.
func TestSameClusterSameTrace(t *testing.T) {
	sameTraces(t, clusters, 4)
}

// TestClusterBreakages breaks one rule of replication at a time.
func TestClusterBreakages(t *testing.T) {
	for _, b := range clusterBreakages {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, clusters, clusterBreakageSeeds) })
	}
}

const clusterBreakageSeeds = 100

// clusterBreakages are caught within clusterBreakageSeeds seeds each.
var clusterBreakages = []breakage{
	// The store of one machine acknowledges what it does not get, so that one copy suffices.
	{name: "acknowledge on one copy", append: func(x *connection, frames []byte, send func([]byte) error) error {
		if x.place == "m1" {
			return nil
		}
		return send(frames)
	}},
	{name: "seal on too few answers", got: func(item *coordinator.Item, _ *int64) {
		if !strings.HasPrefix(item.Key, coordinator.PrefixLogs) || item.ModRevision == 0 {
			return
		}
		l, err := coordinator.Decode[coordinator.Log](*item)
		if err != nil {
			panic(err)
		}
		for i := range l.Segments {
			l.Segments[i].Quorum = len(l.Segments[i].Stores) // of which any one then holds everything
		}
		item.Value = coordinator.Encode(l)
	}},
	{name: "skip the fence at a store", etcdCuts: true, peer: func(to *node) wal.Sealer { return openSealer{to.machine.disk} }},
	// 13.2: until the roll is listed, the next ensemble acknowledges what it gets only afterwards.
	{name: "count only the old ensemble while a roll is listed", append: func(x *connection, frames []byte, send func([]byte) error) error {
		x.unsent = append(x.unsent, frames...)
		if !x.from.c.listed(x.id) {
			return nil
		}
		frames, x.unsent = x.unsent, nil
		return send(frames)
	}},
	// 13.6: whoever writes the wish carries it out.
	{name: "hand over a shard before its entries are flushed", txn: func(w *world, x *txn) { w.handOver(x) }},
	{name: "assign a shard whose owner's log is open", overOpenLogs: true},
}

// listed reports whether a segment, or a later one, was ever listed in its log's record; the first is always.
func (c *cluster) listed(id wal.SegmentID) bool {
	l := c.check.logs[coordinator.LogID(id.Log)]
	return id.Number == 1 || len(l.Segments) > 0 && l.Segments[len(l.Segments)-1].Number >= id.Number
}

// handOver gives shards at once to whom the transaction only wishes to have them.
func (w *world) handOver(x *txn) {
	for _, op := range x.ops {
		if op.Delete || !strings.HasPrefix(op.Key, coordinator.PrefixMoves) {
			continue
		}
		id, err := strconv.Atoi(strings.TrimPrefix(op.Key, coordinator.PrefixMoves))
		if err != nil {
			panic(err)
		}
		move, err := coordinator.Decode[coordinator.Move](coordinator.Item{Key: op.Key, Value: op.Value})
		if err != nil {
			panic(err)
		}
		s := w.shard(coordinator.ShardID(id))
		s.Owner, s.Node, s.Epoch = move.To, w.check.logs[move.To].Node, s.Epoch+1
		ops := []coordinator.Op{
			{Key: coordinator.KeyShard(coordinator.ShardID(id)), Value: coordinator.Encode(s)},
			{Key: coordinator.KeyWrite(coordinator.ShardID(id)), Value: coordinator.Encode(coordinator.Write{Owner: s.Owner, Epoch: s.Epoch})},
		}
		if _, err := w.apply(&txn{ops: ops}); err != nil {
			panic(err)
		}
	}
}
