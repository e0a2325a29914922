// Package cost tells what a cluster asks of its bucket, and what that comes to: requests, bytes stored and bytes moved, by agent and by topic.
//
//	records, err := Read(ctx, kv, store)          // one listing of the bucket, one manifest of each shard, and the coordinator
//	report := Make(name, records, prices, now)    // pure
//	report.WriteTable(os.Stdout)
//
// # Where the figures come from
//
//   - Objects: the listing of the bucket. It costs one request for each thousand objects, and the rest one for each shard; no object is asked for by name.
//   - Stored, by topic: the extents of the newest manifests, and the commits that their shards have not merged. What is left of the bucket is nobody's: footers and manifests, deleted records in objects that hold others' still, garbage until it
//     is deleted. A commit of so many partitions that only its segment's footer names them is a row of its own.
//   - Requests and moved bytes, by agent: each registered agent counts them from its start, and tells the coordinator every ten seconds. What agents asked that have left is not known any more.
//
// # What is apportioned
//
// A request belongs to no topic: one object holds many, and one listing serves all. So each agent's PUT, LIST and DELETE requests are shared out by the bytes that were produced to the partitions that it led, and its GET and HEAD requests by those
// that were produced (which merges read) and consumed. Consumers at the tail read from memory and cost nothing, which nobody can tell apart here: the share of a topic that is read a lot by those is too large, and of one that is read from its
// beginning too small. Figures of topics are estimates, then; those of agents and of the bucket are not.
//
// # Money
//
// A month is what is stored now, and the requests and bytes of a month at the pace that each agent had since it started. Prices are the user's: see Prices.
package cost

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// Records is what is known of a cluster.
type Records struct {
	Revision int64 // of the coordinator
	Cluster  coordinator.Cluster
	Agents   []coordinator.Agent         // those that are registered
	Usage    map[int32]coordinator.Usage // by node
	Topics   map[protocol.TopicID]string // those that exist, their names
	Stored   map[protocol.TopicID]int64  // bytes of record batches that may still be read, of topics that were deleted too
	InFooter int64                       // bytes of commits that do not name their partitions
	Objects  map[ObjectKind]Count        // of the bucket
}

// Report is what a cluster costs. Its JSON is for machines: fields may be added, and stay otherwise.
type Report struct {
	Name     string `json:"name"`
	ID       string `json:"id"`
	Revision int64  `json:"revision"` // of the coordinator
	// Prices are those of which money was made; null for none, and then there is no money anywhere.
	Prices  *Prices   `json:"prices"`
	Objects []Objects `json:"objects"` // of the bucket, by kind
	Agents  []Agent   `json:"agents"`  // by node
	Topics  []Topic   `json:"topics"`  // the largest first, and then what is no topic's
	Total   Total     `json:"total"`
}

// ObjectKind is a kind of object, by name.
type ObjectKind string

// Kinds of objects.
const (
	Flushed   ObjectKind = "flushed segments"
	Merged    ObjectKind = "merged segments"
	Manifests ObjectKind = "manifests"
	Others    ObjectKind = "others"
)

// Count is how many objects there are, and how large they are together.
type Count struct {
	Objects int64
	Bytes   int64
}

// Objects are those of a kind that are in the bucket, in use or not.
type Objects struct {
	Kind  ObjectKind `json:"kind"`
	Count int64      `json:"count"`
	Bytes int64      `json:"bytes"`
}

// Requests are how often the bucket was asked.
type Requests struct {
	Put    int64 `json:"put"` // one for each object; of those that go in parts, one for each part and two for the upload
	Get    int64 `json:"get"`
	Head   int64 `json:"head"`
	List   int64 `json:"list"`   // pages
	Delete int64 `json:"delete"` // and aborts of uploads
}

// Agent is one that is registered.
type Agent struct {
	Node int32  `json:"node"`
	Zone string `json:"zone"` // empty for none
	// Told says that the agent has told its figures; they are zero until then.
	Told     bool     `json:"told"`
	Seconds  float64  `json:"seconds"` // since it started; what follows is of this time
	Requests Requests `json:"requests"`
	PutBytes int64    `json:"put_bytes"`
	GetBytes int64    `json:"get_bytes"`
	Produced int64    `json:"produced_bytes"` // by clients, to partitions that it led
	Consumed int64    `json:"consumed_bytes"` // by clients
	Month    *float64 `json:"month"`          // of its requests and bytes, in Prices.Currency
}

// Topic is a topic's part; or what is no topic's, which has no name.
type Topic struct {
	Name   string `json:"name"`
	Kind   Kind   `json:"kind"`
	Stored int64  `json:"stored_bytes"`
	// Produced, Consumed and Requests are of the agents that are registered, since each started. Requests are apportioned.
	Produced int64    `json:"produced_bytes"`
	Consumed int64    `json:"consumed_bytes"`
	Requests Requests `json:"requests_apportioned"`
	Month    *float64 `json:"month"` // of all that, in Prices.Currency
}

// Kind says what a row of topics stands for.
type Kind string

// Kinds of rows.
const (
	Named     Kind = "topic"
	Unnamed   Kind = "other topics"   // that moved too little to be told by name
	Deleted   Kind = "deleted topics" // whose records are still in the bucket
	InFooters Kind = "not told"       // commits of so many partitions that they do not name them
	Overhead  Kind = "overhead"       // what else is in the bucket, and requests of agents that nobody wrote to or read from
)

// Total is all together.
type Total struct {
	Objects  int64    `json:"objects"`
	Stored   int64    `json:"stored_bytes"`
	Requests Requests `json:"requests"`
	PutBytes int64    `json:"put_bytes"`
	GetBytes int64    `json:"get_bytes"`
	Produced int64    `json:"produced_bytes"`
	Consumed int64    `json:"consumed_bytes"`
	Month    *float64 `json:"month"`
	// PerWrittenGiB is how many requests there were for each GiB that clients wrote; null if they wrote nothing.
	PerWrittenGiB *float64 `json:"requests_per_written_gib"`
}

// Make tells what the cluster of that name costs, with prices if there are some.
func Make(name string, r Records, prices *Prices, now time.Time) Report {
	m := maker{records: r, prices: prices, rows: make(map[row]*share), report: Report{
		Name: name, ID: r.Cluster.ID, Revision: r.Revision, Prices: prices, Objects: []Objects{}, Agents: []Agent{}, Topics: []Topic{},
	}}
	m.objects()
	m.stored()
	m.agents(now)
	m.topics()
	return m.report
}

// row names a row of topics.
type row struct {
	kind Kind
	name string
}

// share is what a row has, before it is rounded.
type share struct {
	stored, produced, consumed int64
	requests                   requests
	month                      requests // and bytes, at the pace of the agents
}

// requests are shares of requests, and of the bytes that they moved.
type requests struct{ put, get, head, list, del, putBytes, getBytes float64 }

// plus adds a part of what others are: written of what writing needs, read of what reading needs too.
func (r *requests) plus(of requests, written, read float64) {
	r.put += of.put * written
	r.list += of.list * written
	r.del += of.del * written
	r.putBytes += of.putBytes * written
	r.get += of.get * read
	r.head += of.head * read
	r.getBytes += of.getBytes * read
}

// maker makes one report.
type maker struct {
	records Records
	prices  *Prices
	rows    map[row]*share
	report  Report
	month   requests // of all agents
}

func (m *maker) row(kind Kind, name string) *share {
	at := row{kind, name}
	if m.rows[at] == nil {
		m.rows[at] = &share{}
	}
	return m.rows[at]
}

func (m *maker) objects() {
	for _, kind := range []ObjectKind{Flushed, Merged, Manifests, Others} {
		c := m.records.Objects[kind]
		m.report.Objects = append(m.report.Objects, Objects{kind, c.Objects, c.Bytes})
		m.report.Total.Objects += c.Objects
		m.report.Total.Stored += c.Bytes
	}
}

// stored shares out what is in the bucket.
func (m *maker) stored() {
	rest := m.report.Total.Stored
	for id, bytes := range m.records.Stored {
		if name, ok := m.records.Topics[id]; ok {
			m.row(Named, name).stored += bytes
		} else {
			m.row(Deleted, "").stored += bytes
		}
		rest -= bytes
	}
	if n := m.records.InFooter; n > 0 {
		m.row(InFooters, "").stored += n
		rest -= n
	}
	m.row(Overhead, "").stored = max(0, rest) // the bucket was listed before all else was read
}

const monthHours = 730.5

func (m *maker) agents(now time.Time) {
	for _, a := range slices.SortedFunc(slices.Values(m.records.Agents), func(x, y coordinator.Agent) int { return cmp.Compare(x.Node, y.Node) }) {
		at := Agent{Node: a.Node, Zone: a.Zone}
		u, ok := m.records.Usage[a.Node]
		if !ok || u.Log != a.Log {
			m.report.Agents = append(m.report.Agents, at)
			continue
		}
		at.Told, at.Seconds = true, max(0, now.Sub(time.UnixMilli(u.SinceMs)).Seconds())
		at.Requests = Requests{Put: u.Puts, Get: u.Gets, Head: u.Stats, List: u.Lists, Delete: u.Deletes}
		at.PutBytes, at.GetBytes = u.PutBytes, u.GetBytes
		for _, t := range u.Topics {
			at.Produced += t.Produced
			at.Consumed += t.Consumed
		}
		at.Produced += u.Others.Produced
		at.Consumed += u.Others.Consumed
		m.share(&at, &u)
		m.report.Agents = append(m.report.Agents, at)
		m.report.Total.add(&at)
	}
	t := &m.report.Total
	if t.Produced > 0 {
		all := t.Requests.Put + t.Requests.Get + t.Requests.Head + t.Requests.List + t.Requests.Delete
		t.PerWrittenGiB = new(float64(all) / (float64(t.Produced) / gib))
	}
	if m.prices != nil {
		t.Month = new(m.prices.moving(m.month) + m.prices.keeping(t.Stored))
	}
}

// share shares out what an agent asked of the bucket.
func (m *maker) share(a *Agent, u *coordinator.Usage) {
	all := requests{
		float64(u.Puts), float64(u.Gets), float64(u.Stats), float64(u.Lists), float64(u.Deletes), float64(u.PutBytes), float64(u.GetBytes),
	}
	pace := 0.0
	if a.Seconds > 0 {
		pace = monthHours * 3600 / a.Seconds
	}
	if m.prices != nil {
		var month requests
		month.plus(all, pace, pace)
		a.Month = new(m.prices.moving(month))
	}
	m.month.plus(all, pace, pace)
	give := func(to *share, t coordinator.TopicUsage) {
		written, read := part(t.Produced, a.Produced), part(t.Produced+t.Consumed, a.Produced+a.Consumed)
		to.produced += t.Produced
		to.consumed += t.Consumed
		to.requests.plus(all, written, read)
		to.month.plus(all, written*pace, read*pace)
	}
	for _, name := range slices.Sorted(maps.Keys(u.Topics)) {
		give(m.row(Named, name), u.Topics[name])
	}
	if u.Others != (coordinator.TopicUsage{}) {
		give(m.row(Unnamed, ""), u.Others)
	}
	// What has no topic to be given to.
	var written, read float64
	if a.Produced == 0 {
		written = 1
	}
	if a.Produced+a.Consumed == 0 {
		read = 1
	}
	rest := m.row(Overhead, "")
	rest.requests.plus(all, written, read)
	rest.month.plus(all, written*pace, read*pace)
}

func part(of, all int64) float64 {
	if all == 0 {
		return 0
	}
	return float64(of) / float64(all)
}

func (m *maker) topics() {
	for at, s := range m.rows {
		t := Topic{Name: at.name, Kind: at.kind, Stored: s.stored, Produced: s.produced, Consumed: s.consumed, Requests: s.requests.rounded()}
		if m.prices != nil {
			t.Month = new(m.prices.moving(s.month) + m.prices.keeping(s.stored))
		}
		m.report.Topics = append(m.report.Topics, t)
	}
	order := []Kind{Named, Unnamed, Deleted, InFooters, Overhead}
	slices.SortFunc(m.report.Topics, func(x, y Topic) int {
		return cmp.Or(
			cmp.Compare(slices.Index(order, x.Kind), slices.Index(order, y.Kind)), cmp.Compare(y.Stored, x.Stored),
			cmp.Compare(y.Produced+y.Consumed, x.Produced+x.Consumed), cmp.Compare(x.Name, y.Name),
		)
	})
}

func (t *Total) add(a *Agent) {
	t.Requests.Put += a.Requests.Put
	t.Requests.Get += a.Requests.Get
	t.Requests.Head += a.Requests.Head
	t.Requests.List += a.Requests.List
	t.Requests.Delete += a.Requests.Delete
	t.PutBytes += a.PutBytes
	t.GetBytes += a.GetBytes
	t.Produced += a.Produced
	t.Consumed += a.Consumed
}
