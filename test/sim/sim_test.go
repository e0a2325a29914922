package sim

import (
	"flag"
	"strings"
	"testing"
)

var (
	seeds = flag.Uint64("seeds", 150, "how many seeds to run")
	seed  = flag.Uint64("seed", 0, "run only this seed, and print its trace with -v")
)

const stepsPerSeed = 1500

// TestSeeds runs worlds by seed, the first ones always the same.
func TestSeeds(t *testing.T) {
	first, last := uint64(1), *seeds
	var log func(string)
	if *seed != 0 {
		first, last = *seed, *seed
		log = func(line string) { t.Log(line) }
	}
	t.Logf("seeds %d to %d; to replay one: go test ./test/sim -run TestSeeds -seed N -v", first, last)
	for n := first; n <= last; n++ {
		if findings, _ := run(t, singles, n, breakage{}, stepsPerSeed, log); len(findings) > 0 {
			t.Fatalf("seed %d: %q", n, findings)
		}
	}
}

// TestSameSeedSameTrace holds that a seed decides everything, but for what the race detector shuffles.
func TestSameSeedSameTrace(t *testing.T) {
	sameTraces(t, singles, 20, stepsPerSeed)
}

func sameTraces(t *testing.T, create maker, seeds uint64, steps int) {
	if raced {
		t.Log("nothing to compare under the race detector")
		return
	}
	for n := uint64(1); n <= seeds; n++ {
		var lines [2][]string
		var hash [2]uint64
		for i := range hash {
			_, hash[i] = run(t, create, n, breakage{}, steps, func(line string) {
				if !strings.HasPrefix(line, "    -- ") {
					lines[i] = append(lines[i], line)
				}
			})
		}
		if hash[0] == hash[1] {
			continue
		}
		for i := range lines[0] {
			if i >= len(lines[1]) || lines[0][i] != lines[1][i] {
				t.Errorf("seed %d: traces part at line %d:\n%v\n%v", n, i, strings.Join(lines[0][max(0, i-5):i+1], "\n"),
					strings.Join(lines[1][max(0, i-5):min(len(lines[1]), i+1)], "\n"))
				break
			}
		}
	}
}
