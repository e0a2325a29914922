package sim

import (
	"testing"
	"time"
)

// TestClusters runs clusters by seed.
func TestClusters(t *testing.T) {
	first, last := uint64(1), *seeds/6
	var log func(string)
	if *seed != 0 {
		first, last = *seed, *seed
		log = func(line string) { t.Log(line) }
	}
	for n := first; n <= last; n++ {
		began := time.Now()
		if findings, _ := run(t, clusters, n, breakage{}, stepsPerCluster, log); len(findings) > 0 {
			t.Errorf("seed %d: %q", n, findings)
		}
		if testing.Verbose() {
			t.Logf("seed %d took %v", n, time.Since(began))
		}
	}
}

const stepsPerCluster = 3000

// TestSameClusterSameTrace is TestSameSeedSameTrace for clusters.
func TestSameClusterSameTrace(t *testing.T) {
	sameTraces(t, clusters, 60, stepsPerCluster)
}
