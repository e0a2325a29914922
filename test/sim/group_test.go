package sim

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// group is a consumer group, whose members join, agree on who has what, commit offsets, leave and die.
type group struct {
	c       *cluster
	name    string
	shard   coordinator.ShardID
	members []*member
	synced  int32 // the newest generation of which somebody has been told its part
	commits []*groupCommit
}

// groupCommit is one commit of a member: the first is of offset 1, and so on.
type groupCommit struct{ sent, acked int } // steps; 0 for never

// member is one consumer of a group, with one request under way at most.
type member struct {
	client     string
	id         string // empty: the group does not know it
	generation int32
	leader     bool
	stable     bool // it has its part of this generation
	at         *node
	asked      *exchange
	since      int // step
	fenced     bool
	commit     *groupCommit // that it waits for
}

func newGroup(c *cluster) *group {
	g := &group{c: c, name: "members", shard: coordinator.ShardOfName("members", c.world.cluster.Shards)}
	for i := range 3 {
		g.members = append(g.members, &member{client: fmt.Sprint("member", i)})
	}
	return g
}

// key is that of its offsets.
func (g *group) key() string { return coordinator.KeyOffsets(g.name, g.c.topic.Name, 0) }

// memberPatience is after how many steps a member gives up a request, which may wait for other members.
const memberPatience = 400

// act lets one member do something.
func (g *group) act() {
	m := g.members[g.c.rng.IntN(len(g.members))]
	if m.asked != nil {
		if g.c.step-m.since > memberPatience {
			m.forgetRequest()
		}
		return
	}
	if !m.at.lives() || g.c.rng.IntN(20) == 0 {
		n, ok := g.c.choose(g.shard).(*node)
		if !ok {
			return
		}
		m.at = n
	}
	switch n := g.c.rng.IntN(20); {
	case n == 0: // it dies, and another comes in its place
		*m = member{client: m.client}
	case m.id == "" || m.generation == 0:
		g.join(m)
	case !m.stable:
		g.sync(m)
	case n == 1:
		r := kmsg.NewPtrLeaveGroupRequest()
		r.Version, r.Group, r.MemberID = 2, g.name, m.id
		g.ask(m, "leaves", r)
	case n < 10:
		r := kmsg.NewPtrHeartbeatRequest()
		r.Version, r.Group, r.MemberID, r.Generation = 3, g.name, m.id, m.generation
		g.ask(m, "is there", r)
	default:
		g.commitOf(m)
	}
}

func (g *group) ask(m *member, what string, r kmsg.Request) {
	g.c.note("%s %q %s, generation %d, at %s", m.client, m.id, what, m.generation, m.at.name)
	m.asked, m.since = m.at.connection(m.client).ask(r), g.c.step
}

// forgetRequest gives a request up; what is asked next goes elsewhere, or over another connection.
func (m *member) forgetRequest() {
	m.asked, m.commit, m.fenced = nil, nil, false
	if m.at != nil && m.at.clients[m.client] != nil {
		m.at.clients[m.client].end()
	}
	m.at = nil
}

func (g *group) join(m *member) {
	r := kmsg.NewPtrJoinGroupRequest()
	r.Version, r.Group, r.MemberID, r.ProtocolType = 3, g.name, m.id, "consumer"
	r.SessionTimeoutMillis, r.RebalanceTimeoutMillis = 6000, 1000
	p := kmsg.NewJoinGroupRequestProtocol()
	p.Name = "range"
	r.Protocols = append(r.Protocols, p)
	g.ask(m, "joins", r)
}

func (g *group) sync(m *member) {
	r := kmsg.NewPtrSyncGroupRequest()
	r.Version, r.Group, r.MemberID, r.Generation = 2, g.name, m.id, m.generation
	if m.leader {
		a := kmsg.NewSyncGroupRequestGroupAssignment()
		a.MemberID, a.MemberAssignment = m.id, []byte("all")
		r.GroupAssignment = append(r.GroupAssignment, a)
	}
	g.ask(m, "asks for its part", r)
}

func (g *group) commitOf(m *member) {
	m.commit = &groupCommit{sent: g.c.step}
	m.fenced = m.generation < g.synced
	g.commits = append(g.commits, m.commit)
	g.ask(m, fmt.Sprintf("commits %d", len(g.commits)), g.c.commitRequest(g.name, m.id, m.generation, int64(len(g.commits))))
}

// poll takes the answers.
func (g *group) poll() {
	for _, m := range g.members {
		if m.asked == nil || !m.asked.answered() {
			continue
		}
		response, commit := m.asked.response, m.commit
		m.asked, m.commit = nil, nil
		if response == nil {
			m.at = nil
			continue
		}
		code := g.answer(m, response)
		g.c.note("%s is answered %v", m.client, code)
		if commit != nil {
			if code == protocol.None {
				commit.acked = g.c.step
			}
			if code == protocol.None && m.fenced {
				g.c.check.report("7: %s has committed in generation %d, after generation %d", m.client, m.generation, g.synced)
			}
		}
		switch code {
		case protocol.None:
		case protocol.UnknownMemberID:
			*m = member{client: m.client}
		case protocol.RebalanceInProgress, protocol.IllegalGeneration:
			m.generation, m.stable = 0, false
		default:
			m.at = nil
		}
	}
}

// answer takes what an answer says to a member, and returns its error.
func (g *group) answer(m *member, response kmsg.Response) protocol.ErrorCode {
	switch r := response.(type) {
	case *kmsg.JoinGroupResponse:
		if r.ErrorCode == 0 {
			m.id, m.generation, m.leader, m.stable = r.MemberID, r.Generation, r.LeaderID == r.MemberID, false
		}
		return protocol.ErrorCode(r.ErrorCode)
	case *kmsg.SyncGroupResponse:
		if r.ErrorCode == 0 {
			m.stable = true
			g.synced = max(g.synced, m.generation)
		}
		return protocol.ErrorCode(r.ErrorCode)
	case *kmsg.HeartbeatResponse:
		return protocol.ErrorCode(r.ErrorCode)
	case *kmsg.LeaveGroupResponse:
		if r.ErrorCode == 0 {
			*m = member{client: m.client}
		}
		return protocol.ErrorCode(r.ErrorCode)
	case *kmsg.OffsetCommitResponse:
		return protocol.ErrorCode(r.Topics[0].Partitions[0].ErrorCode)
	}
	panic("an answer that nobody asked for")
}

// final checks the offset that is left: no commit that was acknowledged came after it, unless nobody knows when that one was done.
func (g *group) final() {
	item, _, err := g.c.kv.Get(g.c.ctx, g.key())
	if err != nil {
		panic(err)
	}
	last := int64(0)
	if item.ModRevision != 0 {
		if last, err = g.c.offsetIn(item); err != nil {
			panic(err)
		}
	}
	for i, x := range g.commits {
		if x.acked > 0 && (last == 0 || g.commits[last-1].acked > 0 && x.sent > g.commits[last-1].acked) {
			g.c.check.report("7: the group's offset is %d, %d was committed after it", last, i+1)
		}
	}
}
