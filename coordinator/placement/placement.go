// Package placement decides where things go in a cluster: which agent leads which shard ([Leaders]), and which stores hold
// the copies of a WAL log ([Ensemble], [Roll]).
//
// Both are pure functions of what their caller saw: no goroutine, clock, lock or randomness, and the order in which
// agents or stores are listed does not matter. So two controllers that see the same decide the same, a plan can be thrown away and made
// again, and what was decided can be looked at before it is carried out.
//
// # Leaders
//
// The controller calls [Leaders] (by [Balancer]) whenever something changes, and carries out what it says: an assignment for each shard
// that nobody leads, a wish for each shard that should move. Wishes are carried out by the shards' owners, in their time;
// until then the controller lists them with the shards, and they count as if they had come true.
//
//	agents   1 2 3, then 4 joins        owner  1 2 3 1 2 3 1 2 3 1 2 3
//	                                    wish   4 . . . 4 . . . 4 . . .     three moves, one from each
//
// What it holds to, most important first:
//
//   - A shard is taken from an owner only by the owner itself (a wish asks it to) or after the owner's log is closed. An owner
//     that is not registered keeps its shards: the lease is a hint. Meanwhile the plan reckons with their load as if it were poured over whoever has
//     least, so nothing moves to an agent that only started again, and will get what it had before from its old log.
//   - Every shard without a leader gets one at once, and every shard of a draining agent a wish. Neither counts as a choice, so neither is limited.
//   - Other moves are made for balance, when two agents are too far apart (tolerancePercent), and as few as will do: a newcomer is filled to
//     its share, an overloaded agent relieved to its, nobody else is touched. They come in rounds of at most
//     [Cluster].MovesMax, and while one is under way no other is begun: else each new measurement of loads would add its
//     own, and the moves would never end.
//   - Loads that are measured vary, and a plan for each measurement would be another one. [Balancer] plans with loads that stay, and takes new ones over only
//     when agents change or the load has been notably uneven for a while; then a few shards move.
//   - Where there is a choice, a shard goes to the agent whose own shards are farthest away, since the partitions of a topic
//     lie on consecutive shards. The last shard is a neighbour of the first. Spread by itself moves nothing.
//
// # Ensembles
//
// A log's writer calls [Ensemble] before it opens a segment, and [Roll] when stores come and go, to learn whether another ensemble is worth a roll.
// The writer's own store is first, zones differ before anything else counts, and the rest is by load and chance: see [Ensemble].
package placement

import (
	"fmt"
	"slices"
	"strings"
)

// LogID is a WAL log, that is one incarnation of an agent. 0 is none.
type LogID uint64

// ShardID is the place of a shard in [Cluster].Shards.
type ShardID uint32

// Cluster is what [Leaders] plans for.
type Cluster struct {
	// Agents are those that are registered, in any order. Leave out whoever should get nothing for another reason, such as
	// a log that somebody claims: it keeps what it has.
	Agents []Agent
	// Closed has the logs that are known to be closed. It must tell of every agent's and every owner's; a log that it does not have is open.
	Closed map[LogID]bool
	// Shards are all of them, by id.
	Shards []Shard
	// MovesMax is how many moves for balance may be under way at once; 0 for none.
	MovesMax int
}

// Agent is a registered agent.
type Agent struct {
	Log      LogID
	Draining bool // gets no shards, and gives away those that it has
}

// Shard is where a shard stands.
type Shard struct {
	// Owner leads it; 0 if there never was one.
	Owner LogID
	// Wish is where a planned move that is under way would take it; 0 for nowhere.
	Wish LogID
	// Load is what it costs its leader: bytes per second or any other measure that can be added up, averaged over a minute or so. Negative counts as 0.
	Load int64
}

// Plan is what to do, in the order of shards. Each shard is named once at most.
type Plan struct {
	// Assign gives shards that nobody leads a leader: From is 0 or its log closed. A wish that such a shard had is void.
	Assign []Move
	// Wish asks owners to hand shards over. It replaces the wish that such a shard had.
	Wish []Move
	// Withdraw lists shards whose wish should be removed: its receiver is gone, drains, or is the owner, or the owner is not registered. (Should that one
	// come back, its moves would be more than MovesMax.)
	Withdraw []ShardID
}

// Move takes a shard from one log to another.
type Move struct {
	Shard    ShardID
	From, To LogID
}

// Empty tells whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Assign)+len(p.Wish)+len(p.Withdraw) == 0 }

// String lists the plan, a line for each entry, for people and tests.
func (p Plan) String() string {
	var b strings.Builder
	for _, m := range p.Assign {
		fmt.Fprintf(&b, "assign %d: %d -> %d\n", m.Shard, m.From, m.To)
	}
	for _, m := range p.Wish {
		fmt.Fprintf(&b, "wish %d: %d -> %d\n", m.Shard, m.From, m.To)
	}
	for _, s := range p.Withdraw {
		fmt.Fprintf(&b, "withdraw %d\n", s)
	}
	return b.String()
}

// Leaders plans who leads which shard. It plans nothing while there is no agent to give shards to. What it plans depends only on
// c, which it does not change. Planning again once the wishes are written, or again once they are carried out, plans nothing, unless
// MovesMax left some moves for the next round.
func Leaders(c Cluster) Plan {
	p := newPlanner(c)
	if len(p.takers) == 0 {
		return Plan{}
	}
	p.locate()
	p.place()
	p.balance()
	return p.plan()
}

// hold says what may be done with a shard.
type hold uint8

const (
	owned hold = iota // by an agent that may keep it: to move it costs a move for balance
	fixed             // it has a wish that stands, or its owner is not to be seen
	free              // it goes elsewhere anyhow: to move it costs nothing
)

const nowhere = -1

// planner is a plan in the making. Takers are known by their index.
type planner struct {
	cluster Cluster
	takers  []LogID       // agents that may get shards, ascending
	taker   map[LogID]int // the reverse
	drains  map[LogID]bool

	weights []int64 // by shard
	at      []int   // by shard: the taker that leads it once all is done; nowhere while that is open, or the owner is not to be seen
	holds   []hold  // by shard
	load    []int64 // by taker: weight of the shards that are at it
	absent  int64   // weight of the shards whose owner is not to be seen
	level   int64   // the load that nobody stays below once that has come down ([planner.pour])
	fair    int64   // the load that each would have if shards could be cut
	moves   int     // for balance, that may still be planned

	distance []int   // by taker, of [planner.nearest]
	order    []int   // takers, of [planner.descending]
	surface  []int64 // of [planner.pour]
	gain     []int   // by shard, of [planner.spread]
	behind   []int   // by shard, of [planner.spread]
}

func newPlanner(c Cluster) *planner {
	p := &planner{
		cluster: c, taker: map[LogID]int{}, drains: map[LogID]bool{},
		at: make([]int, len(c.Shards)), holds: make([]hold, len(c.Shards)),
		gain: make([]int, len(c.Shards)), behind: make([]int, len(c.Shards)),
		moves: c.MovesMax,
	}
	for _, a := range c.Agents {
		if a.Draining {
			p.drains[a.Log] = true
		}
	}
	for _, a := range c.Agents {
		if a.Log != 0 && !c.Closed[a.Log] && !p.drains[a.Log] {
			p.takers = append(p.takers, a.Log)
		}
	}
	slices.Sort(p.takers)
	p.takers = slices.Compact(p.takers)
	if len(p.takers) == 0 {
		return p
	}
	for i, log := range p.takers {
		p.taker[log] = i
	}
	var total int64
	p.weights, total = weigh(c.Shards)
	p.fair = total / int64(len(p.takers))
	p.load, p.distance, p.order = make([]int64, len(p.takers)), make([]int, len(p.takers)), make([]int, len(p.takers))
	p.surface = make([]int64, len(p.takers))
	return p
}

// leaderless tells whether a shard's owner, if there is one, has nothing to say any more.
func (p *planner) leaderless(s Shard) bool { return s.Owner == 0 || p.cluster.Closed[s.Owner] }

// locate finds where each shard is, or will be once wishes have come true, as far as that is decided.
func (p *planner) locate() {
	for i, s := range p.cluster.Shards {
		owner, owns := p.taker[s.Owner]
		wished, stands := p.taker[s.Wish]
		p.at[i] = nowhere
		switch {
		case p.leaderless(s):
			p.holds[i] = free
			if stands { // what is under way was weighed with it going there
				p.put(i, wished)
			}
		case !owns && !p.drains[s.Owner]: // not to be seen
			p.holds[i] = fixed
			p.absent += p.weights[i]
		case stands && s.Wish != s.Owner:
			p.holds[i] = fixed
			p.put(i, wished)
			if owns {
				p.moves = 0
			}
		case owns:
			p.holds[i] = owned
			p.put(i, owner)
		default: // the owner drains
			p.holds[i] = free
		}
	}
}

func (p *planner) put(shard, taker int) {
	p.at[shard] = taker
	p.load[taker] += p.weights[shard]
}

// plan compares where shards should be with where they are.
func (p *planner) plan() Plan {
	var plan Plan
	for i, s := range p.cluster.Shards {
		id := ShardID(i)
		if p.at[i] == nowhere {
			if s.Wish != 0 {
				plan.Withdraw = append(plan.Withdraw, id)
			}
			continue
		}
		to := p.takers[p.at[i]]
		switch {
		case p.leaderless(s):
			plan.Assign = append(plan.Assign, Move{Shard: id, From: s.Owner, To: to})
		case to != s.Owner && to != s.Wish:
			plan.Wish = append(plan.Wish, Move{Shard: id, From: s.Owner, To: to})
		case to == s.Owner && s.Wish != 0:
			plan.Withdraw = append(plan.Withdraw, id)
		}
	}
	return plan
}
