package placement

import (
	"fmt"
	"math"
	"testing"
)

// TestEdges gives the planner what it may get but scripts do not write.
func TestEdges(t *testing.T) {
	two := []Agent{{Log: 1}, {Log: 2}}
	for name, c := range map[string]struct {
		cluster Cluster
		want    string
	}{
		"nothing at all":        {Cluster{}, ""},
		"no shards":             {Cluster{Agents: two, MovesMax: 1}, ""},
		"no agents":             {Cluster{Shards: []Shard{{}, {Owner: 1}}}, ""},
		"only one that drains":  {Cluster{Agents: []Agent{{Log: 1, Draining: true}}, Shards: []Shard{{}, {Owner: 1}}}, ""},
		"an agent without log":  {Cluster{Agents: []Agent{{}}, Shards: []Shard{{}}}, ""},
		"registered and closed": {Cluster{Agents: two, Closed: map[LogID]bool{1: true}, Shards: []Shard{{Owner: 1}, {}}}, "assign 0: 1 -> 2\nassign 1: 0 -> 2\n"},
		"closed twice":          {Cluster{Agents: two, Closed: map[LogID]bool{1: true, 2: true}, Shards: []Shard{{Owner: 1}, {}}}, ""},
		"listed twice":          {Cluster{Agents: []Agent{{Log: 1}, {Log: 2}, {Log: 1, Draining: true}}, Shards: []Shard{{Owner: 1}}}, "wish 0: 1 -> 2\n"},
		"an owner that nobody knows": {
			Cluster{Agents: two, Shards: []Shard{{Owner: 9}, {Owner: 9}, {Owner: 9, Wish: 1}, {}}, MovesMax: 9}, "assign 3: 0 -> 1\nwithdraw 2\n",
		},
		"a wish to the owner":    {Cluster{Agents: two, Shards: []Shard{{Owner: 1, Wish: 1}, {Owner: 2}}}, "withdraw 0\n"},
		"a wish to a closed log": {Cluster{Agents: two, Closed: map[LogID]bool{2: true}, Shards: []Shard{{Owner: 1, Wish: 2}}}, "withdraw 0\n"},
		"a wish of a closed log": {Cluster{Agents: append(two, Agent{Log: 3}), Closed: map[LogID]bool{1: true}, Shards: []Shard{{Owner: 1, Wish: 3}}}, "assign 0: 1 -> 3\n"},
		"what moves anyhow moves first": {
			Cluster{Agents: two, Closed: map[LogID]bool{9: true}, Shards: []Shard{{Owner: 1}, {Owner: 1}, {Owner: 9, Wish: 1}, {Owner: 9, Wish: 1}}, MovesMax: 9},
			"assign 2: 9 -> 2\nassign 3: 9 -> 2\n",
		},
		"no moves allowed": {Cluster{Agents: two, Shards: []Shard{{Owner: 1}, {Owner: 1}, {Owner: 1}, {Owner: 1}}}, ""},
		"one move allowed": {Cluster{Agents: two, Shards: []Shard{{Owner: 1}, {Owner: 1}, {Owner: 1}, {Owner: 1}}, MovesMax: 1}, "wish 0: 1 -> 2\n"},
		"fewer than none":  {Cluster{Agents: two, Shards: []Shard{{Owner: 1}, {Owner: 1}, {Owner: 1}, {Owner: 1}}, MovesMax: -1}, ""},
		"loads without measure": {
			Cluster{Agents: two, Shards: []Shard{{Load: math.MaxInt64}, {Load: math.MaxInt64}, {Load: math.MinInt64}, {Load: -1}}, MovesMax: 1},
			"assign 0: 0 -> 1\nassign 1: 0 -> 2\nassign 2: 0 -> 1\nassign 3: 0 -> 2\n",
		},
		"the heavy one apart": {
			Cluster{Agents: two, Shards: []Shard{{Load: 10}, {Load: 10}, {Load: 60}, {Load: 10}, {Load: 10}}},
			"assign 0: 0 -> 2\nassign 1: 0 -> 2\nassign 2: 0 -> 1\nassign 3: 0 -> 2\nassign 4: 0 -> 2\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Leaders(c.cluster); got.String() != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

// BenchmarkLeaders plans for the largest clusters that there should be.
func BenchmarkLeaders(b *testing.B) {
	const shards, agents = 4096, 100
	settled := func(agents int) *life {
		l := newLife(shards, 64)
		for i := range l.shards {
			l.shards[i].Load = int64(1000 + i*7919%977)
		}
		for range agents {
			l.join()
		}
		l.write(l.plan())
		return l
	}
	for _, c := range []struct {
		name   string
		agents int
		change func(l *life)
	}{
		{"nothing", agents, func(*life) {}},
		{"first", agents, func(l *life) { clear(l.shards) }},
		{"join", agents - 1, func(l *life) { l.join() }},
		{"drain", agents, func(l *life) { l.agents[7] = Agent{Log: 7, Draining: true} }},
		{"loss", agents, func(l *life) { delete(l.agents, 7); l.closed[7] = true }},
		{"double, one round", agents / 2, func(l *life) {
			for range agents / 2 {
				l.join()
			}
		}},
		{"double, at once", agents / 2, func(l *life) {
			l.movesMax = shards
			for range agents / 2 {
				l.join()
			}
		}},
	} {
		b.Run(fmt.Sprintf("%s/shards=%d/agents=%d", c.name, shards, agents), func(b *testing.B) {
			l := settled(c.agents)
			c.change(l)
			cluster := l.cluster()
			var p Plan
			for b.Loop() {
				p = Leaders(cluster)
			}
			b.ReportMetric(float64(len(p.Assign)+len(p.Wish)), "shards/op")
		})
	}
}
