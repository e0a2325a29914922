package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// edgesShown bounds what a finding tells of a circle.
const edgesShown = 10

// circles finds transactions that read of one another, one circle for each set of operations that are on circles together.
func (a *analysis) circles() {
	g := graph{next: make(map[int][]edge)}
	for i := range a.operations {
		o := &a.operations[i]
		if o.Uncommitted || !a.committed[i] || len(o.Sends) == 0 {
			continue // nobody reads of it
		}
		for r := range readsOf(o) {
			if s := a.sends[r.ID]; s != nil && s.operation != i && a.committed[s.operation] {
				g.add(s.operation, i, r)
			}
		}
	}
	for _, together := range g.components() {
		circle := g.circle(together)
		var steps []string
		for _, e := range circle[:min(len(circle), edgesShown)] {
			steps = append(steps, fmt.Sprintf("%s read %v, offset %d of log %d, of %s", a.name(e.to), e.read.ID, e.read.Offset, e.read.Log, a.name(e.from)))
		}
		if more := len(circle) - edgesShown; more > 0 {
			steps = append(steps, fmt.Sprintf("and %d more", more))
		}
		r := circle[0].read
		a.report(Circle, r.Log, r.ID, r.Offset, "%s", strings.Join(steps, "; "))
	}
}

// edge says that one operation read a record of another.
type edge struct {
	from, to int
	read     *Read
}

// graph has operations as nodes, and the edges that leave each.
type graph struct {
	next map[int][]edge
}

// add adds an edge, unless the same was the latest already.
func (g *graph) add(from, to int, r *Read) {
	edges := g.next[from]
	if len(edges) > 0 && edges[len(edges)-1].to == to {
		return
	}
	g.next[from] = append(edges, edge{from, to, r})
}

// tarjan finds strongly connected components, each node and edge once, without recursion.
type tarjan struct {
	graph   *graph
	index   map[int]int // by node, in the order of first visits
	low     map[int]int // by node: the lowest index on the stack that is known to be reached from it
	onStack map[int]bool
	stack   []int
	found   [][]int
}

// visit is a node and which of its edges is followed next.
type visit struct{ node, edge int }

// components returns the strongly connected components of more than one node, each sorted.
func (g *graph) components() [][]int {
	t := tarjan{graph: g, index: make(map[int]int), low: make(map[int]int), onStack: make(map[int]bool)}
	for _, node := range g.nodes() {
		if _, known := t.index[node]; !known {
			t.search(node)
		}
	}
	return t.found
}

func (t *tarjan) enter(node int) visit {
	t.index[node] = len(t.index)
	t.low[node] = t.index[node]
	t.stack, t.onStack[node] = append(t.stack, node), true
	return visit{node: node}
}

// search visits all that is reached from a node.
func (t *tarjan) search(node int) {
	for path := []visit{t.enter(node)}; len(path) > 0; {
		top := &path[len(path)-1]
		if edges := t.graph.next[top.node]; top.edge < len(edges) {
			to := edges[top.edge].to
			top.edge++
			if _, known := t.index[to]; !known {
				path = append(path, t.enter(to))
			} else if t.onStack[to] {
				t.low[top.node] = min(t.low[top.node], t.index[to])
			}
			continue
		}
		done := top.node
		if path = path[:len(path)-1]; len(path) > 0 {
			parent := path[len(path)-1].node
			t.low[parent] = min(t.low[parent], t.low[done])
		}
		if t.low[done] == t.index[done] {
			t.take(done)
		}
	}
}

// take takes a component from the stack, of which root was visited first.
func (t *tarjan) take(root int) {
	var component []int
	for {
		node := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		t.onStack[node] = false
		component = append(component, node)
		if node == root {
			break
		}
	}
	if len(component) > 1 {
		slices.Sort(component)
		t.found = append(t.found, component)
	}
}

// nodes returns the nodes that edges leave, sorted.
func (g *graph) nodes() []int {
	return slices.Sorted(maps.Keys(g.next))
}

// circle returns the edges of a shortest circle through the first node of a component.
func (g *graph) circle(component []int) []edge {
	inside := make(map[int]bool, len(component))
	for _, node := range component {
		inside[node] = true
	}
	first := component[0]
	came := make(map[int]edge) // by the node that it leads to
	for queue := []int{first}; len(queue) > 0; queue = queue[1:] {
		for _, e := range g.next[queue[0]] {
			if _, known := came[e.to]; known || !inside[e.to] {
				continue
			}
			came[e.to] = e
			if e.to == first {
				return unwind(came, first)
			}
			queue = append(queue, e.to)
		}
	}
	return nil // not in a strongly connected component
}

// unwind returns the edges that lead from a node back to it.
func unwind(came map[int]edge, node int) []edge {
	circle := []edge{came[node]}
	for at := came[node].from; at != node; at = came[at].from {
		circle = append(circle, came[at])
	}
	slices.Reverse(circle)
	return circle
}
