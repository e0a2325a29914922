package sim

import (
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var (
	seeds = flag.Uint64("seeds", 150, "how many seeds to run")
	fresh = flag.Bool("fresh", false, "begin at a seed that was hardly run before")
	seed  = flag.Uint64("seed", 0, "run only this seed, and print its trace with -v")
)

// TestSeeds runs worlds by seed.
func TestSeeds(t *testing.T) {
	runSeeds(t, singles, *seeds)
}

// logTo prints a trace, if a seed was asked for.
func logTo(t *testing.T) func(string) {
	if *seed == 0 {
		return nil
	}
	return func(line string) { t.Log(line) }
}

// runSeeds runs so many seeds, the same ones each time unless fresh ones are asked for.
func runSeeds(t *testing.T, create maker, count uint64) {
	first := uint64(1)
	var log func(string)
	switch {
	case *seed != 0:
		first, count, log = *seed, 1, logTo(t)
	case *fresh:
		first = 1_000_000 + rand.Uint64N(1_000_000_000)
	}
	runFrom(t, create, first, count, log)
}

// runFrom runs so many seeds from a first one on.
func runFrom(t *testing.T, create maker, first, count uint64, log func(string)) {
	t.Logf("seeds %d to %d", first, first+count-1)
	n := first
	over := false
	defer func() {
		if !over { // by a panic
			t.Errorf("seed %d was under way", n)
		}
	}()
	for ; n < first+count; n++ {
		if findings, _ := run(t, create, n, breakage{}, log); len(findings) > 0 {
			t.Errorf("%q; to replay: go test ./test/sim -run '^%s$' -seed %d -v", findings, t.Name(), n)
		}
	}
	over = true
}

// TestSameSeedSameTrace holds that a seed decides everything.
func TestSameSeedSameTrace(t *testing.T) {
	sameTraces(t, singles, 20)
}

// runsMax is after how many runs of a seed two must have been the same. Two are enough on an idle machine; on a busy one the runtime puts a goroutine off now and then,
// and so changes the order in which some take a lock.
const runsMax = 25

// sameTraces wants two runs of each seed to have the same trace.
func sameTraces(t *testing.T, create maker, seeds uint64) {
	if raced {
		t.Log("nothing to compare under the race detector")
		return
	}
	for n := uint64(1); n <= seeds; n++ {
		seen := make(map[uint64][]string)
		for range runsMax {
			var lines []string
			_, hash := run(t, create, n, breakage{}, func(line string) {
				if !strings.HasPrefix(line, asidePrefix) {
					lines = append(lines, line)
				}
			})
			if seen[hash] != nil {
				seen = nil
				break
			}
			seen[hash] = lines
		}
		if seen != nil {
			t.Errorf("seed %d: %d runs, and no two are the same: %s", n, runsMax, parting(slices.Collect(maps.Values(seen))))
		}
	}
}

// parting shows where two traces part.
func parting(traces [][]string) string {
	a, b := traces[0], traces[1]
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	show := func(lines []string) string { return strings.Join(lines[max(0, i-5):min(len(lines), i+1)], "\n") }
	return show(a) + "\nand\n" + show(b)
}
