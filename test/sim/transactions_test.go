package sim

import (
	"context"
	"strings"
	"testing"
	"time"
)

// seedsPerTransactions is how many worlds of one machine are run for each cluster with transactions.
const seedsPerTransactions = 10

// TestTransactions runs clusters with transactions by seed.
func TestTransactions(t *testing.T) {
	runSeeds(t, transactions, *seeds/seedsPerTransactions)
}

// TestCalmTransactions has nothing go wrong, in which case transactions are committed, and some are aborted.
func TestCalmTransactions(t *testing.T) {
	var w *world
	findings, _ := run(t, func(ctx context.Context, seed uint64, broken breakage) *world {
		w = newCluster(ctx, seed, broken, 3, clusterShards).world
		w.scene.(*cluster).transact()
		w.chances, w.steps, w.passes = chances{}, 8000, []time.Duration{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond}
		return w
	}, max(*seed, 1), breakage{}, logTo(t))
	if len(findings) > 0 {
		t.Error(findings)
	}
	counts := w.load.txns.counts
	t.Log(counts)
	if counts["committed"] < 10 || counts["aborted"] < 3 {
		t.Errorf("too few transactions for anything to show: %v", counts)
	}
}

// TestTransactionBreakages breaks one rule of transactions at a time.
func TestTransactionBreakages(t *testing.T) {
	for _, b := range transactionBreakages {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, transactions, clusterBreakageSeeds) })
	}
}

// transactionBreakages are caught within clusterBreakageSeeds seeds each. More rules are broken under scripts.
var transactionBreakages = []breakage{
	markersFirst, stableIgnored, abortedLeftOut, offsetsEarly, staleEpoch, oldLeaderMarks, openForgotten,
}

// TestMergeBreakages breaks one rule of merges at a time.
func TestMergeBreakages(t *testing.T) {
	for _, b := range mergeBreakages {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, transactions, clusterBreakageSeeds) })
	}
}

// TestSameTransactionsSameTrace is TestSameSeedSameTrace for clusters with transactions.
func TestSameTransactionsSameTrace(t *testing.T) {
	sameTraces(t, transactions, 1)
}
