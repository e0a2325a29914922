// Package status tells how a cluster is: who its agents are, what each leads and has not flushed, which WAL logs are open and where their copies lie, and whether
// any of that is a problem.
//
//	records, err := Read(ctx, kv)    // what the coordinator holds, as of one revision
//	report := Make(name, records)    // pure
//	report.WriteTable(os.Stdout)
//
// Everything comes from the coordinator, what is not flushed and how busy agents are too: each agent writes it there every few seconds, under the lease of its registration. Asking the agents' HTTP servers
// instead would give newer figures, but those listen where only their own machine's operators reach them, and their addresses would have to be registered,
// advertised and configured; whoever reaches etcd sees all. The price is a write of a hundred bytes each five seconds for each agent that is written to, beside commits as often, and one of the loads that the controller needs anyway.
package status

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/varve-io/varve/agent/display"
	"github.com/varve-io/varve/coordinator"
)

// flushLate is how long a batch may wait until the agent that has it counts as unable to flush: several times what a flush waits for more.
const flushLate = 30 * time.Second

// fullTenths is how many tenths of the coordinator's quota may be in use until it counts as nearly full.
const fullTenths = 8

// Records is what the coordinator holds of a cluster's state.
type Records struct {
	Revision   int64
	Cluster    coordinator.Cluster
	Controller coordinator.Controller // zero for none
	Agents     []coordinator.Agent    // those that are registered
	Shards     map[coordinator.ShardID]coordinator.Shard
	Moves      int                             // shards that are to be handed over
	Logs       []coordinator.Log               // all
	Unflushed  map[int32]coordinator.Unflushed // by node
	Loads      map[int32]coordinator.Load      // by node
	Nodes      map[string]int32                // of every store that ever joined
	Commits    int
	SizeBytes  int64 // of the coordinator's database
	UsedBytes  int64 // of it in use
	QuotaBytes int64 // what it may become; 0 if that is not known
	NoSpace    bool  // the coordinator refuses writes, as the quota is used up
}

// Report is how a cluster is. Its JSON is for machines: fields may be added, and stay otherwise.
type Report struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	Revision   int64    `json:"revision"` // of the coordinator
	Well       bool     `json:"well"`
	Problems   []string `json:"problems"`   // why not; sentences
	Controller int32    `json:"controller"` // node that plans who leads; 0 for none
	Shards     int      `json:"shards"`
	Moves      int      `json:"moves"`      // shards that are to be handed over
	Leaderless []uint32 `json:"leaderless"` // shards without a leader that lives
	Agents     []Agent  `json:"agents"`     // by node
	Logs       []Log    `json:"logs"`       // WAL logs that are open, the oldest first
	Etcd       Etcd     `json:"etcd"`
}

// Etcd is how much the coordinator holds.
type Etcd struct {
	Commits    int   `json:"commits"`
	SizeBytes  int64 `json:"size_bytes"`  // of the database
	UsedBytes  int64 `json:"used_bytes"`  // of it in use
	QuotaBytes int64 `json:"quota_bytes"` // what the database may become; 0 if that is not known
	NoSpace    bool  `json:"no_space"`    // it refuses writes, as the quota is used up
}

// Agent is one that is registered.
type Agent struct {
	Node   int32  `json:"node"`
	Zone   string `json:"zone"`  // empty for none
	State  string `json:"state"` // starting, serving, draining
	Kafka  string `json:"kafka"` // host:port for clients
	Peer   string `json:"peer"`  // host:port for other agents; empty for none
	Log    string `json:"log"`   // its WAL log
	Store  string `json:"store"`
	Shards int    `json:"shards"` // that it leads
	// UnflushedBytes and OldestSeconds are null until the agent has told them. They are some seconds old.
	UnflushedBytes *int64   `json:"unflushed_bytes"`
	OldestSeconds  *float64 `json:"oldest_seconds"` // that the oldest batch has waited; 0 for none
	// ProducedBytesPerSecond and ConsumedBytesPerSecond are what clients write to and read from the shards that it leads, averaged over a minute or so; null until
	// the agent has told them.
	ProducedBytesPerSecond *int64 `json:"produced_bytes_per_second"`
	ConsumedBytesPerSecond *int64 `json:"consumed_bytes_per_second"`
}

// Log is a WAL log that is not closed.
type Log struct {
	ID      string `json:"id"`
	Node    int32  `json:"node"`    // of the agent whose it is
	Living  bool   `json:"living"`  // that agent is registered
	Claimer int32  `json:"claimer"` // node that recovers it; 0 for none, -1 for one that is not registered any more
	Flushed int64  `json:"flushed"` // last entry that is in the bucket
	Commits uint64 `json:"commits"`
	// Segments are those with entries that are not flushed, the open one last.
	Segments []Segment `json:"segments"`
}

// Segment is a part of a log on one ensemble of stores.
type Segment struct {
	Number uint32  `json:"number"`
	First  int64   `json:"first"`
	Last   int64   `json:"last"` // -1 while it is open
	Quorum int     `json:"quorum"`
	Wanted int     `json:"wanted"` // stores that it should be on; 0 if unknown
	Stores []Store `json:"stores"`
}

// Store is one of an ensemble.
type Store struct {
	ID     string `json:"id"`
	Node   int32  `json:"node"`   // 0 if unknown
	Living bool   `json:"living"` // its agent is registered
}

// Make tells how the cluster of that name is.
func Make(name string, r Records) Report {
	m := maker{records: r, living: make(map[coordinator.LogID]*coordinator.Agent), stores: make(map[string]bool)}
	for i := range r.Agents {
		m.living[r.Agents[i].Log] = &r.Agents[i]
		m.stores[r.Agents[i].Store] = true
	}
	m.report = Report{
		Name: name, ID: r.Cluster.ID, Revision: r.Revision, Problems: []string{}, Shards: int(r.Cluster.Shards), Moves: r.Moves,
		Leaderless: []uint32{}, Agents: []Agent{}, Logs: []Log{},
		Etcd: Etcd{Commits: r.Commits, SizeBytes: r.SizeBytes, UsedBytes: r.UsedBytes, QuotaBytes: r.QuotaBytes, NoSpace: r.NoSpace},
	}
	if m.living[r.Controller.Log] != nil {
		m.report.Controller = r.Controller.Node
	}
	switch {
	case r.NoSpace:
		m.problem("etcd has no space left and refuses writes, until it is defragmented and its alarm disarmed")
	case r.QuotaBytes > 0 && r.UsedBytes > r.QuotaBytes/10*fullTenths:
		m.problem("etcd is nearly full: %s of its quota of %s are in use", display.Bytes(r.UsedBytes), display.Bytes(r.QuotaBytes))
	}
	if len(r.Agents) == 0 {
		m.problem("no agent is registered")
	}
	m.shards()
	m.agents()
	m.logs()
	m.report.Well = len(m.report.Problems) == 0
	return m.report
}

// maker makes one report.
type maker struct {
	records Records
	living  map[coordinator.LogID]*coordinator.Agent
	stores  map[string]bool // those of living agents
	led     map[coordinator.LogID]int
	report  Report
}

func (m *maker) problem(format string, args ...any) {
	m.report.Problems = append(m.report.Problems, fmt.Sprintf(format, args...))
}

func (m *maker) shards() {
	m.led = make(map[coordinator.LogID]int)
	for id := range coordinator.ShardID(m.records.Cluster.Shards) {
		owner := m.records.Shards[id].Owner
		if m.living[owner] == nil {
			m.report.Leaderless = append(m.report.Leaderless, uint32(id))
			continue
		}
		m.led[owner]++
	}
	if n := len(m.report.Leaderless); n > 0 && len(m.records.Agents) > 0 {
		m.problem("%d of %d shards have no leader that lives: %s", n, m.report.Shards, ranges(m.report.Leaderless))
	}
}

func (m *maker) agents() {
	for _, a := range m.records.Agents {
		row := Agent{
			Node: a.Node, Zone: a.Zone, State: string(a.State), Kafka: net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port))), Peer: a.Peer,
			Log: a.Log.String(), Store: a.Store, Shards: m.led[a.Log],
		}
		if a.Bucketless {
			m.problem("node %d does not reach the bucket", a.Node)
		}
		if a.Full {
			m.problem("node %d waits with its start for room on its WAL's disk", a.Node)
		}
		if u, ok := m.records.Unflushed[a.Node]; ok && u.Log == a.Log {
			oldest := time.Duration(u.OldestMs) * time.Millisecond
			row.UnflushedBytes, row.OldestSeconds = &u.Bytes, new(oldest.Seconds())
			if len(u.Damaged) > 0 {
				m.problem("node %d cannot lead %d shards, of which something in the bucket is damaged, missing or unreadable: %s", a.Node, len(u.Damaged), ranges(u.Damaged))
			}
			if oldest > flushLate {
				m.problem("node %d could not flush for %v: %s wait for the bucket or for etcd", a.Node, oldest.Round(time.Second), display.Bytes(u.Bytes))
			}
		}
		if l, ok := m.records.Loads[a.Node]; ok && l.Log == a.Log {
			row.ProducedBytesPerSecond, row.ConsumedBytesPerSecond = &l.Produced, &l.Consumed
		}
		m.report.Agents = append(m.report.Agents, row)
	}
	slices.SortFunc(m.report.Agents, func(x, y Agent) int { return cmp.Compare(x.Node, y.Node) })
}

func (m *maker) logs() {
	var old []string
	for _, l := range slices.SortedFunc(slices.Values(m.records.Logs), func(x, y coordinator.Log) int { return cmp.Compare(x.ID, y.ID) }) {
		if l.Closed {
			continue
		}
		if l.ID < m.records.Cluster.Restored {
			old = append(old, l.ID.String())
		}
		owner := m.living[l.ID]
		row := Log{ID: l.ID.String(), Node: l.Node, Living: owner != nil, Flushed: l.Flushed, Commits: l.Commits, Segments: []Segment{}}
		if l.Claimer != 0 {
			row.Claimer = -1
			if by := m.living[l.Claimer]; by != nil {
				row.Claimer = by.Node
			}
		}
		for _, s := range l.Segments {
			row.Segments = append(row.Segments, m.segment(s, owner))
		}
		m.report.Logs = append(m.report.Logs, row)
		m.checkLog(row)
	}
	if len(old) > 0 {
		m.problem("no shard gets a leader until the WAL logs from before etcd was restored are recovered: %s", strings.Join(old, ", "))
	}
}

func (m *maker) segment(s coordinator.WALSegment, owner *coordinator.Agent) Segment {
	row := Segment{Number: s.Number, First: s.First, Last: s.Last, Quorum: s.Quorum, Stores: []Store{}}
	if owner != nil {
		row.Wanted = owner.Copies
	}
	for _, id := range s.Stores {
		row.Stores = append(row.Stores, Store{ID: id, Node: m.records.Nodes[id], Living: m.stores[id]})
	}
	return row
}

// checkLog looks for problems of a log.
func (m *maker) checkLog(l Log) {
	switch {
	case l.Claimer > 0:
		m.problem("WAL log %s of node %d is being recovered by node %d", l.ID, l.Node, l.Claimer)
		return
	case !l.Living || l.Claimer < 0:
		m.problem("WAL log %s of node %d has no agent, and nobody recovers it yet%s", l.ID, l.Node, m.missing(l))
		return
	case len(l.Segments) == 0:
		return
	}
	open := l.Segments[len(l.Segments)-1]
	switch n := open.living(); {
	case n < open.Quorum:
		m.problem("WAL log %s of node %d is on %d stores that live, fewer than its ack quorum of %d: nothing is acknowledged", l.ID, l.Node, n, open.Quorum)
	case n < open.Wanted:
		m.problem("WAL log %s of node %d is on %d stores that live, want %d", l.ID, l.Node, n, open.Wanted)
	}
}

// missing says which agents a recovery lacks.
func (m *maker) missing(l Log) string {
	nodes := make(map[int32]bool)
	for _, s := range l.Segments {
		for _, store := range s.Stores {
			if !store.Living {
				nodes[store.Node] = true
			}
		}
	}
	if len(nodes) == 0 {
		return ""
	}
	var names []string
	for _, n := range slices.Sorted(maps.Keys(nodes)) {
		names = append(names, "node "+node(n))
	}
	return "; stores that are away: " + strings.Join(names, ", ")
}

// living is on how many stores of living agents the segment is.
func (s *Segment) living() int {
	n := 0
	for _, store := range s.Stores {
		if store.Living {
			n++
		}
	}
	return n
}

// ranges prints ascending numbers, with ranges of them as 3-7.
func ranges[N ~uint32](numbers []N) string {
	var parts []string
	for i := 0; i < len(numbers); {
		first := i
		i++
		for i < len(numbers) && numbers[i] == numbers[i-1]+1 {
			i++
		}
		part := strconv.Itoa(int(numbers[first]))
		if i-1 > first {
			part += "-" + strconv.Itoa(int(numbers[i-1]))
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}
