package placement

import (
	"slices"
	"time"
)

const (
	// unevenPercent is how much load the most loaded agent must have, in percent of an even share, for shards to move for load alone. It is farther from even than
	// what a plan leaves behind (tolerancePercent, of the difference between two), so that what one move mends the next measurement does not undo.
	unevenPercent = 130
	// reliefWeight is how much of what agents have above an even share each move of a round must take away, on the mean. It is little more than what an idle shard
	// weighs, so that moving those does not count as a mend.
	reliefWeight = shardWeight / 4
	// unevenTime is for how long it must have been so. Since nothing counts while shards move, it is also the least time between two rounds of moves for load.
	unevenTime = time.Minute
	// roundShards is how many shards there are for each that moves for load in one round, of which there are roundMin at least.
	roundShards = 64
	roundMin    = 4
)

// Balancer plans again and again, with loads that are measured. Measured loads are never twice the same, so it goes by those that it took over last, and takes
// over new ones only when agents come or go, or when a round of a few moves would mend what has been notably uneven for a while. In between, its plans are those
// of loads that stay, and so quiet. The zero Balancer is ready for use.
type Balancer struct {
	takers []LogID   // agents that may get shards, ascending, when loads were taken over
	loads  []int64   // by shard, as they were taken over
	round  bool      // they were taken over for a round of moves, which has been planned
	uneven time.Time // since when the loads have been worth a round; zero if they are not
}

// Plan returns what [Leaders] plans with the loads that the balancer goes by. The plan must be carried out, or c shows by the next call that it was not: then what moves
// for load alone is planned again some time later.
func (b *Balancer) Plan(now time.Time, c Cluster) Plan {
	if takers := newPlanner(c).takers; !slices.Equal(takers, b.takers) || len(b.loads) != len(c.Shards) {
		b.take(c)
		b.takers, b.round = takers, false
	}
	known := b.known(c)
	if b.round {
		known.MovesMax = 0
	}
	plan := Leaders(known)
	if !plan.Empty() || !settled(c) {
		b.uneven = time.Time{}
		return plan
	}
	c.MovesMax = min(c.MovesMax, max(roundMin, len(c.Shards)/roundShards))
	moves := Leaders(c)
	switch {
	case !worthwhile(c, moves):
		b.uneven = time.Time{}
	case b.uneven.IsZero():
		b.uneven = now
	case now.Sub(b.uneven) >= unevenTime:
		b.take(c)
		b.round, b.uneven = true, time.Time{}
		return moves
	}
	return plan
}

func (b *Balancer) take(c Cluster) {
	b.loads = make([]int64, len(c.Shards))
	for i, s := range c.Shards {
		b.loads[i] = s.Load
	}
}

// known returns the cluster with the loads that were taken over.
func (b *Balancer) known(c Cluster) Cluster {
	c.Shards = slices.Clone(c.Shards)
	for i := range c.Shards {
		c.Shards[i].Load = b.loads[i]
	}
	return c
}

// settled reports whether every shard is where it should be: its owner takes shards, and there is no wish.
func settled(c Cluster) bool {
	p := newPlanner(c)
	return !slices.ContainsFunc(c.Shards, func(s Shard) bool {
		_, owns := p.taker[s.Owner]
		return !owns || s.Wish != 0
	})
}

// worthwhile reports whether a cluster that is settled is notably uneven, and moves help enough.
func worthwhile(c Cluster, moves Plan) bool {
	if len(moves.Wish) == 0 {
		return false
	}
	p := newPlanner(c)
	p.locate()
	return slices.Max(p.load) > p.fair*unevenPercent/100 && p.relief(moves.Wish) >= int64(len(moves.Wish))*reliefWeight
}

// relief carries moves out, and returns how much less takers have above a fair load then, together.
func (p *planner) relief(moves []Move) int64 {
	before := p.excess()
	for _, m := range moves {
		p.load[p.taker[m.From]] -= p.weights[m.Shard]
		p.load[p.taker[m.To]] += p.weights[m.Shard]
	}
	return before - p.excess()
}

func (p *planner) excess() int64 {
	sum := int64(0)
	for _, load := range p.load {
		sum += max(0, load-p.fair)
	}
	return sum
}
