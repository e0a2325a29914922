package sim

import "testing"

// seedsPerCluster is how many worlds of one machine are run for each cluster, which takes as many times longer.
const seedsPerCluster = 6

// TestClusters runs clusters by seed.
func TestClusters(t *testing.T) {
	runSeeds(t, clusters, *seeds/seedsPerCluster)
}

// TestSameClusterSameTrace is TestSameSeedSameTrace for clusters.
func TestSameClusterSameTrace(t *testing.T) {
	sameTraces(t, clusters, 5, 5)
}
