package sim

import (
	"strings"
	"testing"
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

const clusterBreakageSeeds = 400 // one seed in fifty notices the one that is hardest to see; which ones changes with whatever an agent does

// clusterBreakages are caught within clusterBreakageSeeds seeds each. More rules are broken under scripts: clusterScripts.
var clusterBreakages = []breakage{ackOnOneCopy, sealOnTooFew, producersForgotten, commitUnguarded, handOverUnflushed, openLogsClosed, producerIDsUncounted}
