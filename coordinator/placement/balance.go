package placement

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

const (
	// shardWeight is the mean weight of shards. Weights are relative, so that whatever loads are measured in, sums stay small.
	shardWeight = 5 << 18
	// idleWeight is the part of it that each shard has whatever its load: it holds memory, takes time to fail over, and may be busy tomorrow.
	idleWeight = shardWeight / 5
	// tolerancePercent is how far apart two agents may be, in percent of an even share, before shards move. A move stops a shard's
	// producers for up to half a second, an agent that does a tenth more than its share is nothing that anybody notices. Measured loads
	// differ by a few percent from one minute to the next.
	tolerancePercent = 20
	// turnPercent is how heavy a shard may be that moves between two agents, in percent of the difference between them. Half would even them out. A
	// little more may turn the difference round, but not so far that another measurement would turn it back.
	turnPercent = 60
)

// weigh returns each shard's weight and their sum. With no load at all, shards are counted.
func weigh(shards []Shard) ([]int64, int64) {
	n := int64(len(shards))
	loads, sum := make([]uint64, n), uint64(0)
	for i, s := range shards {
		loads[i] = uint64(min(max(s.Load, 0), math.MaxInt64/n))
		sum += loads[i]
	}
	weights, total := make([]int64, n), int64(0)
	for i, load := range loads {
		weights[i] = shardWeight
		if sum > 0 {
			high, low := bits.Mul64(load, uint64(n)*(shardWeight-idleWeight))
			share, _ := bits.Div64(high, low, sum)
			weights[i] = idleWeight + int64(share)
		}
		total += weights[i]
	}
	return weights, total
}

// place finds a taker for each shard whose place is open. Heavy ones come first, since they fit in fewer places; those of
// about the mean weight and less in their order, which spreads them best.
func (p *planner) place() {
	var open []int
	for i, at := range p.at {
		if at == nowhere && p.holds[i] == free {
			open = append(open, i)
		}
	}
	class := func(shard int) int { return max(size(p.weights[shard]), size(shardWeight)) }
	slices.SortStableFunc(open, func(a, b int) int { return cmp.Compare(class(b), class(a)) })
	for _, shard := range open {
		p.put(shard, p.roomiest(shard))
	}
}

// size puts weights into classes: two of the same class differ by less than a factor of two.
func size(weight int64) int { return bits.Len64(uint64(weight)) }

// roomiest returns the taker for a shard that must go somewhere: of those that stay within a fair load with it, or else are
// the least loaded or nearly so, the one whose own shards are farthest away.
func (p *planner) roomiest(shard int) int {
	limit := max(p.fair-p.weights[shard], slices.Min(p.load)+shardWeight/2)
	distance := p.nearest(shard)
	best := nowhere
	for t, load := range p.load {
		if load > limit {
			continue
		}
		if best == nowhere || cmp.Or(cmp.Compare(distance[best], distance[t]), cmp.Compare(load, p.load[best])) < 0 {
			best = t
		}
	}
	return best
}

// nearest returns how far from a shard each taker's nearest one is; farther than there are takers does not count.
func (p *planner) nearest(shard int) []int {
	far, n := len(p.takers), len(p.at)
	for t := range p.distance {
		p.distance[t] = far
	}
	for d := min(far-1, n/2); d > 0; d-- {
		for _, neighbour := range [2]int{(shard + d) % n, (shard - d + n) % n} {
			if at := p.at[neighbour]; at != nowhere {
				p.distance[at] = d
			}
		}
	}
	return p.distance
}

// balance moves shards while two takers are too far apart and a move helps. Each time it brings the one that is
// farther from a fair load to it, and touches the others only as much as that takes. Each move brings two loads nearer
// to each other, so it ends.
func (p *planner) balance() {
	p.pour()
	for {
		from, to, shard := p.apart()
		if shard == nowhere {
			return
		}
		p.move(shard, to)
		if p.fair-p.expected(to) >= p.expected(from)-p.fair {
			p.fill(to)
		} else {
			p.relieve(from)
		}
	}
}

// apart returns two takers that are too far apart, and a shard to move between them. One that is overloaded by a single heavy
// shard is passed over: nothing helps it.
func (p *planner) apart() (from, to, shard int) {
	to = p.least()
	for _, from := range p.descending() {
		difference := p.expected(from) - p.expected(to)
		if difference <= p.tolerated() {
			break
		}
		// Every shard may be heavier than either should give or take; one that helps must move all the same.
		limit := max(p.limit(from, to, p.tolerated()/2, p.tolerated()/2), min(p.lightest(from), difference*turnPercent/100))
		if shard := p.choose(from, to, limit); shard != nowhere {
			return from, to, shard
		}
	}
	return nowhere, nowhere, nowhere
}

func (p *planner) tolerated() int64 { return p.fair * tolerancePercent / 100 }

// fill brings a taker up to a fair load, each time from whoever has most.
func (p *planner) fill(to int) {
	for more := true; more; {
		more = false
		for _, from := range p.descending() {
			if shard := p.choose(from, to, p.limit(from, to, p.tolerated()/2, 0)); shard != nowhere {
				p.move(shard, to)
				more = true
				break
			}
		}
	}
}

// relieve brings a taker down to a fair load, each time in favour of whoever has least.
func (p *planner) relieve(from int) {
	for {
		to := p.least()
		shard := p.choose(from, to, p.limit(from, to, 0, p.tolerated()/2))
		if shard == nowhere {
			return
		}
		p.move(shard, to)
	}
}

// limit returns the weight of the heaviest shard that should move between two takers: see turnPercent; and
// it takes the one no farther below a fair load, the other no farther above, than under and over, else it would be their turn next.
func (p *planner) limit(from, to int, under, over int64) int64 {
	gives, takes := p.expected(from), p.expected(to)
	return min((gives-takes)*turnPercent/100, gives-p.fair+under, p.fair-takes+over)
}

func (p *planner) least() int { return slices.Index(p.load, slices.Min(p.load)) }

// descending lists takers, the most loaded first.
func (p *planner) descending() []int {
	for t := range p.order {
		p.order[t] = t
	}
	slices.SortFunc(p.order, func(a, b int) int { return cmp.Or(cmp.Compare(p.load[b], p.load[a]), cmp.Compare(a, b)) })
	return p.order
}

func (p *planner) move(shard, to int) {
	if p.holds[shard] == owned {
		p.moves--
		p.holds[shard] = free
	}
	p.load[p.at[shard]] -= p.weights[shard]
	p.put(shard, to)
	p.pour()
}

// expected returns a taker's load once the shards have come down whose owners are not to be seen.
func (p *planner) expected(taker int) int64 { return max(p.load[taker], p.level) }

// pour raises the level: what is absent goes to the least loaded until they are level with the next, and so on.
func (p *planner) pour() {
	copy(p.surface, p.load)
	slices.Sort(p.surface)
	rest := p.absent
	for i, level := range p.surface {
		p.level = level
		if i+1 == len(p.surface) || (p.surface[i+1]-level)*int64(i+1) > rest {
			p.level += rest / int64(i+1)
			return
		}
		rest -= (p.surface[i+1] - level) * int64(i+1)
	}
}

// lightest returns the weight of the lightest shard that a taker could give.
func (p *planner) lightest(from int) int64 {
	lightest := int64(math.MaxInt64)
	for s, at := range p.at {
		if at == from && p.movable(s) {
			lightest = min(lightest, p.weights[s])
		}
	}
	return lightest
}

func (p *planner) movable(shard int) bool {
	return p.holds[shard] == free || p.holds[shard] == owned && p.moves > 0
}

// choose returns the shard that should move between two takers, or nowhere if none is as light as limit. What moves anyhow goes first, then
// the heaviest, so that few moves do, then what improves the spread.
func (p *planner) choose(from, to int, limit int64) int {
	if limit < idleWeight {
		return nowhere // there is none so light
	}
	best, found := rank{}, nowhere
	for s, at := range p.at {
		if at != from || p.weights[s] > limit || !p.movable(s) {
			continue
		}
		if r := p.rank(s); found == nowhere || best.below(r) {
			best, found = r, s
		}
	}
	if found == nowhere {
		return nowhere
	}
	gain := p.spread(from, to)
	for s, at := range p.at {
		if at == from && p.weights[s] <= limit && p.movable(s) && p.rank(s) == best && gain[s] > gain[found] {
			found = s
		}
	}
	return found
}

func (p *planner) rank(shard int) rank {
	return rank{free: p.holds[shard] == free, size: size(p.weights[shard])}
}

// rank orders shards that could move.
type rank struct {
	free bool
	size int
}

func (r rank) below(other rank) bool {
	if r.free != other.free {
		return other.free
	}
	return r.size < other.size
}

// spread returns what moving each shard from one taker to another would do for the spread: how far the receiver's nearest shard
// is, less how far the giver's other nearest is. Farther than there are takers does not count.
func (p *planner) spread(from, to int) []int {
	clear(p.gain)
	p.apply(to, 1)
	p.apply(from, -1)
	return p.gain
}

// apply adds, to each shard's gain, sign times its distance to the nearest other shard of the taker.
func (p *planner) apply(taker, sign int) {
	n, far := len(p.at), len(p.takers)
	// Twice around, since the first shard's neighbour is the last one.
	distance := far
	for lap := range 2 {
		for s, at := range p.at {
			if lap == 1 {
				p.behind[s] = distance
			}
			distance = min(distance+1, far)
			if at == taker {
				distance = 1
			}
		}
	}
	distance = far
	for lap := range 2 {
		for s := n - 1; s >= 0; s-- {
			if lap == 1 {
				p.gain[s] += sign * min(distance, p.behind[s])
			}
			distance = min(distance+1, far)
			if p.at[s] == taker {
				distance = 1
			}
		}
	}
}
