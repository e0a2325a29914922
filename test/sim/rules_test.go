package sim

import (
	"slices"
	"strconv"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/frame"
)

// The rules of clusters, each broken.

// The store of one machine acknowledges what it does not get, so that one copy suffices.
var ackOnOneCopy = breakage{name: "acknowledge on one copy", append: func(x *connection, frames []byte, send func([]byte) error) error {
	if x.place == "m1" {
		return nil
	}
	return send(frames)
}}

var sealOnTooFew = breakage{name: "seal on too few answers", got: func(_ *world, item *coordinator.Item, _ *int64) {
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
}}

var fenceSkipped = breakage{name: "skip the fence at a store", peer: func(to *node) wal.Sealer { return openSealer{to.machine.disk} }}

// Until the roll is listed, the next ensemble acknowledges what it gets only afterwards.
var oldEnsembleCounts = breakage{name: "count only the old ensemble while a roll is listed", append: func(x *connection, frames []byte, send func([]byte) error) error {
	x.unsent = append(x.unsent, frames...)
	if !x.from.c.listed(x.id) {
		return nil
	}
	frames, x.unsent = x.unsent, nil
	return send(frames)
}}

// An append of no entries, which proves that nobody has sealed the log, is not sent.
var proofOfNothing = breakage{name: "take leadership for proved", append: func(_ *connection, frames []byte, send func([]byte) error) error {
	if h, err := frame.Unstamped(frames); err == nil && h.Count == 0 {
		return nil
	}
	return send(frames)
}}

var producersForgotten = breakage{name: "a new leader forgets idempotent producers", forgetProducers: true}

var commitUnguarded = breakage{name: "commit without comparing the log's record, so under an old fence or out of order", txn: func(_ *world, x *txn) {
	if x.writes(coordinator.PrefixCommits) != nil {
		x.compares = nil
	}
}}

// Two that take a block of ids see the same counter.
var producerIDsUncounted = breakage{
	name: "take producer ids without comparing the counter",
	got: func(_ *world, item *coordinator.Item, _ *int64) {
		if item.Key == coordinator.KeyNextPID {
			*item = coordinator.Item{Key: item.Key}
		}
	},
	txn: func(_ *world, x *txn) {
		if x.writes(coordinator.KeyNextPID) != nil {
			x.compares = nil
		}
	},
}

// Whoever writes the wish that a shard moves carries it out.
var handOverUnflushed = breakage{name: "hand over a shard before its entries are flushed", txn: func(w *world, x *txn) { w.handOver(x) }}

var shardUnguarded = breakage{name: "write a shard's record without comparing its guard", txn: func(_ *world, x *txn) {
	if x.writes(coordinator.PrefixShards) != nil && x.writes(coordinator.PrefixWrites) != nil && len(x.ops) <= 3 { // of one shard that has an owner
		x.compares = nil
	}
}}

// Those look at logs so who give shards away.
var openLogsClosed = breakage{name: "claim or assign shards while their owner's log is open", logs: func(w *world, who string, at int64, all []coordinator.Log) {
	if at == 0 && who != "control the cluster" {
		return
	}
	registered, _, err := w.kv.List(w.ctx, coordinator.PrefixAgents, 0)
	if err != nil {
		panic(err)
	}
	for i, l := range all {
		all[i].Closed = l.Closed || !slices.ContainsFunc(registered, func(it coordinator.Item) bool {
			a, err := coordinator.Decode[coordinator.Agent](it)
			return err == nil && a.Log == l.ID
		})
	}
}}

var neverSwept = breakage{name: "a store never looks which of its logs are over", logs: func(_ *world, who string, _ int64, all []coordinator.Log) {
	if who == "look after the WAL store" {
		for i := range all {
			all[i].Closed = false
		}
	}
}}

var leftAtOnce = breakage{name: "leave without waiting for other agents' copies", leavesAtOnce: true}

var claimedForGood = breakage{name: "a log that was claimed is claimed by nobody else", txn: func(w *world, x *txn) {
	if l, ok := x.claims(); ok && w.check.logs[l.ID].Claimer != 0 {
		x.compares = []coordinator.Compare{{Key: coordinator.KeyCluster, Revision: 1 << 40}}
	}
}}

// listed reports whether a segment, or a later one, was ever listed in its log's record; the first is always. It may be called concurrently.
func (c *cluster) listed(id wal.SegmentID) bool {
	if id.Number == 1 {
		return true
	}
	item, _, err := c.kv.Get(c.ctx, coordinator.KeyLog(coordinator.LogID(id.Log)))
	if err != nil {
		panic(err)
	}
	l, err := coordinator.Decode[coordinator.Log](item)
	if err != nil {
		panic(err)
	}
	return len(l.Segments) > 0 && l.Segments[len(l.Segments)-1].Number >= id.Number
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
