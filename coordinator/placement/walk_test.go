package placement

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestWalk drives clusters at random: agents join, drain, vanish, come back, are closed; loads change; owners carry some of their wishes
// out. After each plan it checks the rules of the package comment, and at rest that the load is balanced.
//
// Deliberate breakages of the planner, and what catches each (tried by hand):
//
//	an owner that is not registered loses its shards       walk, edges, scripts
//	a closed log keeps its shards, or gets some            walk, edges
//	what drains gets shards, or keeps them                 walk, edges, scripts
//	agents count in the order in which they are listed     walk
//	absent load is not reckoned with                       restart
//	absent load is not poured again after a move           absence
//	moves are begun while others are under way             walk, life
//	moves are not counted                                  walk, edges, life
//	wishes under way are planned anew                      walk
//	wishes under way count where the shard still is        walk, nearly all
//	a wish is forgotten when its owner's log is closed     edges
//	wishes in vain, or of absent owners, stand             walk, edges, wishes
//	shards are counted whatever their load                 walk, few moves, loads
//	an idle shard weighs nothing                           walk, noise
//	loads may overflow                                     edges
//	tolerance of 0 or 5 percent                            noise
//	tolerance of 40 percent                                walk, fewest moves, life
//	a move may turn the difference round                   noise, spread
//	heavy shards are placed when their turn comes          few moves
//	placing ignores balance, or spread                     spread, life
//	moves ignore the spread of the receiver, or giver      spread, scripts
//	the first shard is not a neighbour of the last         life
//	the lightest moves first                               few moves
//	what moves anyhow does not move first                  edges
//	a newcomer is filled beyond its share                  fewest moves
//	a newcomer takes all from one                          few moves
//	what is relieved gives more than it must               fewest moves
//	what is relieved overloads another                     relief
//	always fill, or always relieve                         scripts, few moves
//	a heavy shard moves though a light one would do        few moves
//	nothing moves that is heavier than a tenth of a share  walk, fewest moves
func TestWalk(t *testing.T) {
	for seed := range uint64(300) {
		w := &walk{life: newLife(1+int(seed*7%130), int(seed%9)), t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 2))}
		for range 60 {
			w.act()
			w.check()
		}
		w.rest()
	}
}

type walk struct {
	*life
	t    *testing.T
	seed uint64
	rnd  *rand.Rand
	logs LogID
	gone []Agent // not registered, but their logs are open
}

func (w *walk) act() {
	some := func() (LogID, bool) {
		logs := slices.Sorted(maps.Keys(w.agents))
		if len(logs) == 0 {
			return 0, false
		}
		return logs[w.rnd.IntN(len(logs))], true
	}
	switch log, ok := some(); w.rnd.IntN(9) {
	case 0, 1:
		if len(w.agents) < 12 {
			w.logs++
			w.agents[w.logs] = Agent{Log: w.logs}
		}
	case 2:
		if ok {
			w.agents[log] = Agent{Log: log, Draining: true}
		}
	case 3:
		if ok {
			w.gone = append(w.gone, w.agents[log])
			delete(w.agents, log)
		}
	case 4:
		if len(w.gone) > 0 {
			w.agents[w.gone[0].Log] = w.gone[0]
			w.gone = w.gone[1:]
		}
	case 5:
		if len(w.gone) > 0 {
			w.closed[w.gone[0].Log] = true
			w.gone = w.gone[1:]
		}
	case 6: // fenced, and its registration is still there
		if ok && w.rnd.IntN(3) == 0 {
			w.closed[log] = true
		}
	case 7:
		hot := 1 + w.rnd.Int64N(1<<uint(w.rnd.IntN(30)))
		for i := range w.shards {
			w.shards[i].Load = w.rnd.Int64N(hot)
		}
	case 8:
		for i, s := range w.shards {
			if _, there := w.agents[s.Owner]; there && s.Wish != 0 && w.rnd.IntN(2) == 0 {
				w.shards[i].Owner, w.shards[i].Wish = s.Wish, 0
			}
		}
	}
}

// check plans, checks the plan, and writes it down.
func (w *walk) check() {
	w.t.Helper()
	before, c := slices.Clone(w.shards), w.cluster()
	p := Leaders(c)
	fail := func(format string, args ...any) {
		w.t.Helper()
		w.t.Fatalf("seed %d: %s\nagents %v closed %v moves %d\nplan\n%sfor\n%s", w.seed, fmt.Sprintf(format, args...), c.Agents, w.closed, w.movesMax, p, w)
	}
	if !slices.Equal(before, w.shards) {
		fail("the shards were changed")
	}
	w.rnd.Shuffle(len(c.Agents), func(i, j int) { c.Agents[i], c.Agents[j] = c.Agents[j], c.Agents[i] })
	if other := Leaders(c); other.String() != p.String() {
		fail("with agents in another order: %s", other)
	}
	takes := func(log LogID) bool {
		a, there := w.agents[log]
		return there && !a.Draining && !w.closed[log]
	}
	anybody := slices.ContainsFunc(c.Agents, func(a Agent) bool { return takes(a.Log) })
	if !anybody && !p.Empty() {
		fail("nobody is there to take anything")
	}
	for _, m := range slices.Concat(p.Assign, p.Wish) {
		s := w.shards[m.Shard]
		_, there := w.agents[s.Owner]
		leaderless := s.Owner == 0 || w.closed[s.Owner]
		switch {
		case m.From != s.Owner || m.From == m.To:
			fail("shard %d: owner %d", m.Shard, s.Owner)
		case !takes(m.To):
			fail("shard %d goes to %d, which takes none", m.Shard, m.To)
		case slices.Contains(p.Assign, m) != leaderless:
			fail("shard %d is assigned and has a leader, or the reverse", m.Shard)
		case !leaderless && !there:
			fail("shard %d has an owner that is not to be seen, and gets a wish", m.Shard)
		case !leaderless && takes(s.Wish) && s.Wish != s.Owner:
			fail("shard %d had a good wish already", m.Shard)
		}
	}
	for _, s := range p.Withdraw {
		_, there := w.agents[w.shards[s].Owner]
		if wish := w.shards[s].Wish; wish == 0 || there && takes(wish) && wish != w.shards[s].Owner {
			fail("shard %d: nothing is wrong with its wish", s)
		}
	}
	w.write(p)
	balancing := 0
	for i, s := range w.shards {
		switch {
		case !anybody:
		case s.Owner == 0 || w.closed[s.Owner]:
			fail("shard %d has no leader", i)
		case s.Wish != 0 && !takes(s.Wish):
			fail("shard %d has a wish that is in vain", i)
		case w.agents[s.Owner].Draining && s.Wish == 0:
			fail("shard %d does not leave its draining owner", i)
		case takes(s.Owner) && s.Wish != 0:
			balancing++
		}
	}
	if balancing > w.movesMax {
		fail("%d moves for balance at once", balancing)
	}
	if again := w.plan(); !again.Empty() {
		fail("planned again: %s", again)
	}
}

// rest settles what there is, and checks that nothing more is left to improve.
func (w *walk) rest() {
	w.t.Helper()
	if w.movesMax == 0 || len(w.gone) > 0 || len(w.agents) == 0 {
		return
	}
	w.settle(w.t)
	if difference := apart(w.cluster()); difference > 0 {
		w.t.Fatalf("seed %d: at rest and %f apart\n%s", w.seed, difference, w)
	}
}

// apart returns by how many shards of mean weight two agents differ most that are farther apart than is tolerated, though there is a shard
// light enough to mend it; 0 if no two do. All shards must have owners that are registered.
func apart(c Cluster) (difference float64) {
	weights, sum := make([]float64, len(c.Shards)), 0.0
	for _, s := range c.Shards {
		sum += float64(s.Load)
	}
	load, lightest := map[LogID]float64{}, map[LogID]float64{}
	takers := 0
	for _, a := range c.Agents {
		if !a.Draining && !c.Closed[a.Log] {
			load[a.Log], lightest[a.Log] = 0, 1e9
			takers++
		}
	}
	for i, s := range c.Shards {
		weights[i] = 1
		if sum > 0 {
			weights[i] = 0.2 + 0.8*float64(s.Load)/sum*float64(len(c.Shards))
		}
		load[s.Owner] += weights[i]
		lightest[s.Owner] = min(lightest[s.Owner], weights[i])
	}
	if takers == 0 {
		return 0
	}
	tolerated := 0.2 * float64(len(c.Shards)) / float64(takers)
	for from, much := range load {
		for _, little := range load {
			// A shard moves if it is not much heavier than half of the difference.
			if d := much - little; d > tolerated && lightest[from] < d*0.6-0.001 {
				difference = max(difference, d)
			}
		}
	}
	return difference
}

// TestFewestMoves compares with the fewest moves that lead to a balanced cluster: with loads alike, each agent has as many shards as the others, or one more.
func TestFewestMoves(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		agents, joining := 1+rnd.IntN(20), 1+rnd.IntN(5)
		l := newLife(1+rnd.IntN(500), 1+rnd.IntN(100))
		for i := range l.shards {
			l.shards[i].Load = 1000
		}
		for range agents {
			l.join()
		}
		l.settle(t)

		for range joining {
			l.join()
		}
		fewest, before := l.surplus(), l.owners()
		if _, moves, _ := l.settle(t); moves > fewest {
			t.Errorf("seed %d: %d shards, %d agents and %d more: %d moves, %d suffice", seed, len(l.shards), agents, joining, moves, fewest)
		}
		for i, s := range l.shards {
			if s.Owner != before[i] && s.Owner <= LogID(agents) {
				t.Errorf("seed %d: shard %d goes from %d to %d, which was there before", seed, i, before[i], s.Owner)
			}
		}
		l.checkCounts(t, seed)

		gone, before := LogID(1+rnd.IntN(agents)), l.owners()
		if rnd.IntN(2) == 0 {
			l.agents[gone] = Agent{Log: gone, Draining: true}
		} else {
			delete(l.agents, gone)
			l.closed[gone] = true
		}
		l.settle(t)
		for i, s := range l.shards {
			if (before[i] == gone) != (s.Owner != before[i]) {
				t.Errorf("seed %d: %d leaves, and shard %d goes from %d to %d", seed, gone, i, before[i], s.Owner)
			}
		}
		delete(l.agents, gone)
		l.checkCounts(t, seed)
	}
}

func (l *life) join() {
	log := LogID(len(l.agents) + len(l.closed) + 1)
	l.agents[log] = Agent{Log: log}
}

func (l *life) owners() []LogID {
	owners := make([]LogID, len(l.shards))
	for i, s := range l.shards {
		owners[i] = s.Owner
	}
	return owners
}

func (l *life) counts() []int {
	counts := map[LogID]int{}
	for log := range l.agents {
		counts[log] = 0
	}
	for _, s := range l.shards {
		if _, there := l.agents[s.Owner]; there {
			counts[s.Owner]++
		}
	}
	return slices.Sorted(maps.Values(counts))
}

// surplus counts the shards that agents must give away to even the counts out, once all shards have owners that are there.
func (l *life) surplus() int {
	counts := l.counts()
	slices.Reverse(counts)
	surplus := 0
	for i, n := range counts {
		share := len(l.shards) / len(counts)
		if i < len(l.shards)%len(counts) {
			share++
		}
		surplus += max(0, n-share)
	}
	return surplus
}

// checkCounts wants counts within what is tolerated, or one.
func (l *life) checkCounts(t *testing.T, seed uint64) {
	t.Helper()
	counts := l.counts()
	least, most := counts[0], counts[len(counts)-1]
	if most-least > 1 && float64(most-least) > 0.2*float64(len(l.shards))/float64(len(counts)) {
		t.Errorf("seed %d: %d shards over %d agents: %d to %d each", seed, len(l.shards), len(counts), least, most)
	}
}

// TestFewMovesOfUnevenShards fills a newcomer where loads differ a lot. The fewest moves are those of the heaviest shards that there are, wherever
// they are, that come near an even share.
func TestFewMovesOfUnevenShards(t *testing.T) {
	total, fewest, share := 0, 0, 0
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		agents := 1 + rnd.IntN(20)
		l := newLife(100+rnd.IntN(400), 100)
		for i := range l.shards {
			l.shards[i].Load = int64(1000 * rnd.ExpFloat64() * rnd.ExpFloat64())
		}
		for range agents {
			l.join()
		}
		l.settle(t)
		if difference := apart(l.cluster()); difference > 0 {
			t.Errorf("seed %d: %f apart", seed, difference)
		}
		l.join()
		before := l.owners()
		_, moves, _ := l.settle(t)
		for i, s := range l.shards {
			if s.Owner != before[i] && s.Owner != LogID(agents+1) {
				t.Errorf("seed %d: shard %d goes from %d to %d, which was there before", seed, i, before[i], s.Owner)
			}
		}
		if difference := apart(l.cluster()); difference > 0 {
			t.Errorf("seed %d: %f apart after a join", seed, difference)
		}
		weights, sum := weigh(l.shards)
		slices.Sort(weights)
		slices.Reverse(weights)
		need := sum / int64(agents+1) * 8 / 10
		for i := 0; need > 0; i++ {
			need -= weights[i]
			fewest++
		}
		share += len(l.shards) / (agents + 1)
		total += moves
	}
	t.Logf("%d moves, at least %d, an even share of all shards is %d", total, fewest, share)
	if total > 3*fewest || total > share/2 {
		t.Errorf("%d moves, at least %d, an even share of all shards is %d", total, fewest, share)
	}
}

// TestRelief makes the shards of one agent busier, with loads that differ a lot: it gives some away, and others hardly ever do (that they do at all is
// because the mean changes, and with it what an idle shard weighs).
func TestRelief(t *testing.T) {
	relieved, others := 0, 0
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		l := newLife(100+rnd.IntN(400), 100)
		for i := range l.shards {
			l.shards[i].Load = int64(1000 * rnd.ExpFloat64() * rnd.ExpFloat64())
		}
		for range 2 + rnd.IntN(10) {
			l.join()
		}
		l.settle(t)
		before := l.owners()
		for i, owner := range before {
			if owner == 1 {
				l.shards[i].Load *= 3
			}
		}
		l.settle(t)
		for i, s := range l.shards {
			switch {
			case s.Owner == before[i]:
			case before[i] == 1:
				relieved++
			default:
				others++
			}
		}
		if difference := apart(l.cluster()); difference > 0 {
			t.Errorf("seed %d: %f apart", seed, difference)
		}
	}
	if others > relieved/100 {
		t.Errorf("%d moves of the agent that is too busy, %d of others", relieved, others)
	}
}

// TestAbsence lets agents join while another is away. Altogether no more moves than must.
func TestAbsence(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 10))
		l := newLife(1+rnd.IntN(500), 1+rnd.IntN(500))
		agents := 2 + rnd.IntN(20)
		for range agents {
			l.join()
		}
		l.settle(t)
		gone := LogID(1 + rnd.IntN(agents))
		delete(l.agents, gone)
		for i := range 1 + rnd.IntN(5) {
			l.agents[LogID(agents+1+i)] = Agent{Log: LogID(agents + 1 + i)}
		}
		before, must := l.owners(), l.surplus()
		_, moves, _ := l.settle(t)
		l.closed[gone] = true
		if _, more, _ := l.settle(t); moves+more > must {
			t.Errorf("seed %d: %d shards, %d agents: %d moves while %d is away, then %d, %d suffice", seed, len(l.shards), agents, moves, gone, more, must)
		}
		for i, s := range l.shards {
			if s.Owner != before[i] && s.Owner <= LogID(agents) && before[i] != gone {
				t.Errorf("seed %d: shard %d goes from %d to %d, which was there before", seed, i, before[i], s.Owner)
			}
		}
		l.checkCounts(t, seed)
	}
}

// TestNoise checks that loads that vary by a few percent move nothing.
func TestNoise(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		l := newLife(1+rnd.IntN(500), 500)
		for range 1 + rnd.IntN(40) {
			l.join()
		}
		for i := range l.shards {
			l.shards[i].Load = 100_000
		}
		l.settle(t)
		for round := range 10 {
			for i := range l.shards {
				l.shards[i].Load = 95_000 + rnd.Int64N(10_000)
				if seed%3 == 0 { // against those that have low numbers
					l.shards[i].Load = 95_000
					if l.shards[i].Owner <= LogID(len(l.agents)/2) {
						l.shards[i].Load = 105_000
					}
				}
			}
			if p := l.plan(); !p.Empty() {
				t.Fatalf("seed %d, round %d: planned\n%s%s", seed, round, p, l)
			}
		}
	}
}

// TestNoiseOfUnevenShards lets uneven loads vary by a few percent for a long time: of a hundred shards at most one moves in all that time.
func TestNoiseOfUnevenShards(t *testing.T) {
	const rounds = 200
	total, shards := 0, 0
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		l := newLife(128, 16)
		for range 2 + rnd.IntN(10) {
			l.join()
		}
		mean := make([]float64, len(l.shards))
		for i := range mean {
			mean[i] = 1e6 * rnd.ExpFloat64() * rnd.ExpFloat64()
		}
		for range rounds {
			for i := range l.shards {
				l.shards[i].Load = int64(mean[i] * (0.95 + 0.1*rnd.Float64()))
			}
			p := l.plan()
			total += len(p.Wish)
			l.write(p)
			l.obey()
		}
		shards += len(l.shards)
	}
	t.Logf("%d moves of %d shards in %d rounds", total, shards, rounds)
	if total > shards/100 {
		t.Errorf("%d moves of %d shards in %d rounds", total, shards, rounds)
	}
}

// TestSpread counts how often shards that are near each other have the same leader, at first and after agents have come and gone.
func TestSpread(t *testing.T) {
	for _, loads := range []int64{0, 100} {
		for _, agents := range []int{2, 3, 5, 10, 40} {
			rnd := rand.New(rand.NewPCG(uint64(agents), 8))
			l := newLife(128, 128)
			for i := range l.shards {
				l.shards[i].Load = 4*loads + rnd.Int64N(loads+1)
			}
			for range agents {
				l.join()
			}
			l.settle(t)
			// Where the circle closes, and where loads left no choice.
			if near := l.near(agents); near > agents*agents {
				t.Errorf("%d agents: at first %d pairs of shards near each other have the same leader", agents, near)
			}
			for i := range agents {
				l.join()
				l.settle(t)
				gone := LogID(i + 1)
				delete(l.agents, gone)
				l.closed[gone] = true
				l.settle(t)
				bound := len(l.shards) / agents / 4 // a quarter of what chance would give
				if agents == 2 {
					bound = 48 // what the third had lay between the others' and now is next to one's own
				}
				if near := l.near(2); near > bound {
					t.Errorf("%d agents, %d replaced: %d pairs of neighbours have the same leader, more than %d", agents, i+1, near, bound)
				}
			}
		}
	}
}

// near counts pairs of shards that have the same leader and are less than that far apart.
func (l *life) near(distance int) int {
	pairs := 0
	for i, s := range l.shards {
		for d := 1; d < distance; d++ {
			if s.Owner == l.shards[(i+d)%len(l.shards)].Owner {
				pairs++
			}
		}
	}
	return pairs
}
