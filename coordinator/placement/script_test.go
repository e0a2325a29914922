package placement

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs the lives of clusters in testdata. Commands:
//
//	cluster shards=N moves=N       a new one, without agents
//	join LOG...                    agents register (again)
//	drain LOG...                   they say that they drain
//	vanish LOG...                  their registrations end
//	close LOG...                   their logs are closed, and their registrations end
//	load SHARD:LOAD...             loads are measured
//	plan                           prints a plan, and writes it down
//	obey                           all owners that are there carry their wishes out
//	settle                         plan and obey until there is nothing to do; prints how many moves that took
//	show                           owner of each shard, with >LOG for a wish; how many shards each log has
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		var l *life
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			t.Helper()
			if d.Cmd == "cluster" {
				shards, moves := 0, 0
				d.ScanArgs(t, "shards", &shards)
				d.ScanArgs(t, "moves", &moves)
				l = newLife(shards, moves)
				return ""
			}
			return l.command(t, d)
		})
	})
}

// life is a cluster as its controller sees it.
type life struct {
	agents   map[LogID]Agent
	closed   map[LogID]bool
	shards   []Shard
	movesMax int
}

func newLife(shards, movesMax int) *life {
	return &life{agents: map[LogID]Agent{}, closed: map[LogID]bool{}, shards: make([]Shard, shards), movesMax: movesMax}
}

func (l *life) command(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	for _, arg := range d.CmdArgs {
		var log LogID
		var shard int
		var load int64
		if _, err := fmt.Sscanf(arg.Key, "%d:%d", &shard, &load); err == nil {
			l.shards[shard].Load = load
			continue
		}
		if _, err := fmt.Sscanf(arg.Key, "%d", &log); err != nil {
			t.Fatalf("%s: %s: %v", d.Pos, arg.Key, err)
		}
		switch d.Cmd {
		case "join":
			l.agents[log] = Agent{Log: log}
		case "drain":
			l.agents[log] = Agent{Log: log, Draining: true}
		case "vanish":
			delete(l.agents, log)
		case "close":
			delete(l.agents, log)
			l.closed[log] = true
		}
	}
	switch d.Cmd {
	case "join", "drain", "vanish", "close", "load":
		return ""
	case "plan":
		p := l.plan()
		l.write(p)
		return p.String()
	case "obey":
		return fmt.Sprintf("%d moves\n", l.obey())
	case "settle":
		assigned, moves, rounds := l.settle(t)
		return fmt.Sprintf("%d assigned, %d moves, %d rounds\n%s", assigned, moves, rounds, l)
	case "show":
		return l.String()
	}
	t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	return ""
}

func (l *life) cluster() Cluster {
	c := Cluster{Closed: l.closed, Shards: l.shards, MovesMax: l.movesMax}
	for _, log := range slices.Sorted(maps.Keys(l.agents)) {
		c.Agents = append(c.Agents, l.agents[log])
	}
	return c
}

func (l *life) plan() Plan { return Leaders(l.cluster()) }

// write notes the plan, as the controller does.
func (l *life) write(p Plan) {
	for _, m := range p.Assign {
		l.shards[m.Shard].Owner, l.shards[m.Shard].Wish = m.To, 0
	}
	for _, m := range p.Wish {
		l.shards[m.Shard].Wish = m.To
	}
	for _, s := range p.Withdraw {
		l.shards[s].Wish = 0
	}
}

// obey carries the wishes of owners out that are there.
func (l *life) obey() int {
	moves := 0
	for i, s := range l.shards {
		if _, there := l.agents[s.Owner]; there && s.Wish != 0 {
			l.shards[i].Owner, l.shards[i].Wish = s.Wish, 0
			moves++
		}
	}
	return moves
}

func (l *life) settle(t *testing.T) (assigned, moves, rounds int) {
	t.Helper()
	for {
		p := l.plan()
		assigned += len(p.Assign)
		l.write(p)
		if again := l.plan(); !again.Empty() {
			t.Fatalf("planned\n%sthen, with that written,\n%s%s", p, again, l)
		}
		moved := l.obey()
		moves += moved
		if p.Empty() && moved == 0 {
			return assigned, moves, rounds
		}
		if rounds++; rounds > 10*len(l.shards) {
			t.Fatalf("no end after %d rounds\n%s", rounds, l)
		}
	}
}

func (l *life) String() string {
	var b strings.Builder
	counts := map[LogID]int{}
	for i, s := range l.shards {
		if i > 0 {
			b.WriteByte(' ')
		}
		counts[s.Owner]++
		fmt.Fprintf(&b, "%d", s.Owner)
		if s.Wish != 0 {
			fmt.Fprintf(&b, ">%d", s.Wish)
		}
	}
	b.WriteString("\n")
	for _, log := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "%d:%d ", log, counts[log])
	}
	return strings.TrimSpace(b.String()) + "\n"
}
