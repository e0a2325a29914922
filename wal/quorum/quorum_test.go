package quorum

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/varve-io/varve/wal/frame"
)

// TestScripts runs the machines through testdata. The commands:
//
//	tracker copies=3 quorum=2     begins a segment
//	ack store=0 through=7         prints the tracker
//	seal copies=3 quorum=2        begins a seal
//	answer store=0 entries=1-7    prints the seal and its result
//	fail store=1                  prints the seal and its result
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var segment tracker
		var seal *Seal
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			number := func(key string) int {
				var n int
				d.ScanArgs(t, key, &n)
				return n
			}
			var err error
			switch d.Cmd {
			case "tracker":
				if segment, err = newTracker(Size{number("copies"), number("quorum")}, 0); err != nil {
					return err.Error()
				}
				return segment.String()
			case "ack":
				segment.ack(number("store"), Position(number("through")))
				return segment.String()
			case "seal":
				if seal, err = NewSeal(Size{number("copies"), number("quorum")}); err != nil {
					return err.Error()
				}
			case "answer":
				var entries string
				d.ScanArgs(t, "entries", &entries)
				first, last, _ := strings.Cut(entries, "-")
				seal.Answered(number("store"), Answer{First: entryID(t, first), Last: entryID(t, last)})
			case "fail":
				seal.Failed(number("store"))
			default:
				t.Fatalf("unknown command %q", d.Cmd)
			}
			state, store, answer := seal.Result()
			if state != Sealed {
				return seal.String()
			}
			return fmt.Sprintf("%s\nstore %d: %d-%d", seal, store, answer.First, answer.Last)
		})
	})
}

func entryID(t *testing.T, s string) frame.EntryID {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return frame.EntryID(n)
}

// run acknowledges at random and seals with random stores away; it says whether every acknowledged entry is in the
// result. Quorum is what the tracker takes, answers how many stores the seal waits for.
func run(rng *rand.Rand, copies, quorum, answers int) (held bool) {
	segment, _ := newTracker(Size{copies, quorum}, 0)
	var stored [copiesMax]Position
	for range 20 {
		i := rng.IntN(copies)
		stored[i] += Position(rng.IntN(4))
		segment.ack(i, stored[i])
	}
	seal, _ := NewSeal(Size{copies, copies - answers + 1})
	for n, i := range rng.Perm(copies) {
		if n < answers {
			seal.Answered(i, Answer{First: 1, Last: frame.EntryID(stored[i])})
		} else {
			seal.Failed(i)
		}
	}
	_, _, answer := seal.Result()
	return uint64(answer.Last) >= uint64(segment.durable)
}

// TestSealHoldsWhatWasAcknowledged also breaks the rule on purpose, by one, each way: the test must notice.
func TestSealHoldsWhatWasAcknowledged(t *testing.T) {
	for copies := 1; copies <= 5; copies++ {
		for quorum := 1; quorum <= copies; quorum++ {
			rng := rand.New(rand.NewPCG(uint64(copies), uint64(quorum)))
			size := Size{copies, quorum}
			for range 2000 {
				if !run(rng, copies, quorum, size.SealAnswers()) {
					t.Fatalf("%+v: an acknowledged entry is not in the seal", size)
				}
			}
			if quorum > 1 && !fails(rng, copies, quorum-1, size.SealAnswers()) {
				t.Errorf("%+v: acknowledged by one store too few, and nothing was lost", size)
			}
			if size.SealAnswers() > 1 && !fails(rng, copies, quorum, size.SealAnswers()-1) {
				t.Errorf("%+v: sealed by one store too few, and nothing was lost", size)
			}
		}
	}
}

func fails(rng *rand.Rand, copies, quorum, answers int) bool {
	for range 5000 {
		if !run(rng, copies, quorum, answers) {
			return true
		}
	}
	return false
}

// TestTrackerAgainstSort compares with the definition.
func TestTrackerAgainstSort(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		copies := 1 + rng.IntN(copiesMax)
		quorum := 1 + rng.IntN(copies)
		segment, err := newTracker(Size{copies, quorum}, 0)
		if err != nil {
			t.Fatal(err)
		}
		stored := make([]Position, copies)
		before := Position(0)
		for range 50 {
			i, through := rng.IntN(copies), Position(rng.IntN(30))
			stored[i] = max(stored[i], through)
			sorted := slices.Sorted(slices.Values(stored))
			got := segment.ack(i, through)
			if want := sorted[copies-quorum]; got != want || got < before || segment.durable != got {
				t.Fatalf("%s: durable %d, want %d, before %d", &segment, got, want, before)
			}
			before = got
		}
	}
}

func TestAckAllocatesNothing(t *testing.T) {
	segment, _ := newTracker(Size{3, 2}, 0)
	n := Position(0)
	if allocs := testing.AllocsPerRun(100, func() { n++; segment.ack(int(n%3), n) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
