package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// balanced is a cluster whose balancer looks at it every ten seconds. Owners carry wishes out in between.
type balanced struct {
	*life
	b   Balancer
	now time.Time
}

func newBalanced(shards, agents int) *balanced {
	w := &balanced{life: newLife(shards, 16), now: time.Unix(1e9, 0)}
	for range agents {
		w.join()
	}
	return w
}

// look plans once, and returns how many moves it asked for.
func (w *balanced) look() int {
	w.obey()
	w.now = w.now.Add(10 * time.Second)
	p := w.b.Plan(w.now, w.cluster())
	w.write(p)
	return len(p.Wish)
}

// pass lets time pass, and returns how many moves there were.
func (w *balanced) pass(d time.Duration) int {
	moves := 0
	for end := w.now.Add(d); w.now.Before(end); {
		moves += w.look()
	}
	return moves
}

// load sets the load of each shard, by its owner.
func (w *balanced) load(by func(shard int, owner LogID) int64) {
	for i := range w.shards {
		w.shards[i].Load = by(i, w.shards[i].Owner)
	}
}

// TestBalancer holds what moves, and when, after the load of a settled cluster of three agents and 48 shards has changed.
func TestBalancer(t *testing.T) {
	const base = 1000
	for name, c := range map[string]struct {
		load  func(shard int, owner LogID) int64
		first time.Duration // without a move
		then  int           // moves in the look after that
		rest  int           // moves within half an hour then
	}{
		"nothing":                  {func(int, LogID) int64 { return base }, time.Hour, 0, 0},
		"a fifth more for one":     {func(_ int, o LogID) int64 { return base + base/5*at(o == 1) }, time.Hour, 0, 0},
		"double for one":           {func(_ int, o LogID) int64 { return base + base*at(o == 1) }, time.Minute, 4, 0},
		"five times for one":       {func(_ int, o LogID) int64 { return base + 4*base*at(o == 1) }, time.Minute, 4, 3},
		"all on one":               {func(_ int, o LogID) int64 { return base * at(o == 1) }, time.Minute, 4, 4},
		"one shard, as half of it": {func(s int, _ LogID) int64 { return base + 47*base*at(s == 0) }, time.Minute, 4, 11},
	} {
		t.Run(name, func(t *testing.T) {
			w := newBalanced(48, 3)
			w.load(func(int, LogID) int64 { return base })
			w.pass(10 * time.Minute)
			w.load(c.load)
			if moves := w.pass(c.first); moves != 0 {
				t.Errorf("%d moves within %v", moves, c.first)
			}
			if moves := w.look(); moves != c.then {
				t.Errorf("%d moves after that, want %d", moves, c.then)
			}
			if moves := w.pass(30 * time.Minute); moves != c.rest {
				t.Errorf("%d moves within half an hour, want %d", moves, c.rest)
			}
			if moves := w.pass(time.Hour); moves != 0 {
				t.Errorf("%d moves later", moves)
			}
		})
	}
}

func at(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// TestBalancerPasses: load that is uneven for less than a minute at a time moves nothing, and neither does one that changes sides.
func TestBalancerPasses(t *testing.T) {
	w := newBalanced(48, 3)
	w.load(func(int, LogID) int64 { return 1000 })
	w.pass(10 * time.Minute)
	for minute := range 60 {
		busy := LogID(1 + minute%3)
		w.load(func(_ int, o LogID) int64 { return 1000 + 5000*at(o == busy) })
		if moves := w.pass(50 * time.Second); moves != 0 {
			t.Fatalf("minute %d: %d moves", minute, moves)
		}
		w.load(func(int, LogID) int64 { return 1000 })
		w.pass(10 * time.Second)
	}
}

// TestBalancerHopeless: an agent that is overloaded by one shard is no reason to move what others have, whose differences are small.
func TestBalancerHopeless(t *testing.T) {
	w := newBalanced(48, 3)
	w.load(func(int, LogID) int64 { return 1000 })
	w.pass(10 * time.Minute)
	w.load(func(s int, _ LogID) int64 { return 1000 + 200_000*at(s == 0) })
	if moves := w.pass(time.Hour); moves != 15 || w.shards[0].Owner != 1 {
		t.Fatalf("%d moves, and shard 0 is of %d; want the other 15 of its agent to move", moves, w.shards[0].Owner)
	}
	w.load(func(s int, owner LogID) int64 { return 1000 + 200_000*at(s == 0) + 1200*at(owner == 2) })
	if moves := w.pass(time.Hour); moves != 0 {
		t.Errorf("%d moves between the others", moves)
	}
}

// TestBalancerJoins: who joins gets a share at once, by what the load is then, and who leaves loses all at once.
func TestBalancerJoins(t *testing.T) {
	w := newBalanced(48, 2)
	w.pass(10 * time.Minute)
	w.load(func(shard int, _ LogID) int64 { return 1000 * at(shard < 12) })
	w.join()
	n, busy := w.look(), int64(0)
	for i, s := range w.shards {
		busy += at(i < 12 && s.Wish == 3)
	}
	if n > 16 || busy != 4 {
		t.Errorf("%d moves to the newcomer, %d of shards that have load, want 4", n, busy)
	}
	w.pass(10 * time.Minute)
	w.agents[3] = Agent{Log: 3, Draining: true}
	w.look()
	w.obey()
	for i, s := range w.shards {
		if s.Owner == 3 {
			t.Errorf("shard %d is still led by who drains", i)
		}
	}
}

// TestBalancerConverges: whatever the loads of shards are, and however they vary when they are measured, a cluster comes to rest, with few moves at a time, and as even
// as its shards allow; and so again each time that the loads have changed.
func TestBalancerConverges(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			w := newBalanced(32+rnd.IntN(240), 2+rnd.IntN(10))
			rates := make([]float64, len(w.shards))
			noisy := func(d time.Duration) (moves int) {
				for end := w.now.Add(d); w.now.Before(end); {
					w.load(func(shard int, _ LogID) int64 { return int64(1e6 * rates[shard] * (0.85 + 0.3*rnd.Float64())) })
					n := w.look()
					if few := max(4, len(w.shards)/64); n > few {
						t.Fatalf("%d moves at once, want %d at most", n, few)
					}
					moves += n
				}
				return moves
			}
			w.look()
			w.look()
			for change := range 3 {
				for i := range rates {
					rates[i] = rnd.ExpFloat64() * rnd.ExpFloat64()
					if w.shards[i].Owner == 1 {
						rates[i] *= 3
					}
				}
				if moves, most := noisy(10*time.Minute), 11*max(4, len(w.shards)/64); moves > most {
					t.Fatalf("change %d: %d moves in 10 minutes, want %d at most", change, moves, most)
				}
				n := noisy(time.Hour)
				// One that is as uneven as it just may be can be taken for worse, once.
				if late := noisy(time.Hour); late > max(4, len(w.shards)/64) {
					t.Errorf("change %d: %d moves, and %d when it should be quiet", change, n, late)
				}
				w.load(func(shard int, _ LogID) int64 { return int64(1e6 * rates[shard]) })
				// With margins, since what was measured is not quite what is so.
				c := w.cluster()
				p := newPlanner(c)
				p.locate()
				moves := Leaders(c).Wish
				most, relief := slices.Max(p.load), p.relief(moves)
				if most > p.fair*140/100 && relief > int64(len(moves))*reliefWeight*3/2 {
					t.Errorf("change %d: still uneven after %d moves: %v", change, n, w.life)
				}
			}
		})
	}
}
