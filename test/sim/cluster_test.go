package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
)

// cluster is machines with an agent each, the product's own, which lead some of the shards each and keep copies of each other's logs.
type cluster struct {
	*world
	machines []*host
	nodes    []*node                       // those that live, and ended ones until they are cleared
	known    map[coordinator.ShardID]*node // leaders, as clients know them
	cuts     map[[2]string]int             // until which step nothing gets from one machine to another
	lost     []string                      // disks that are gone for good
	conns    []*connection                 // to other machines' stores, until they are over
	reads    []*reading
	group    *group
	asked    []*question    // by other clients
	ids      map[int64]bool // of producers, that were handed out
	ageMax   time.Duration  // of what is not flushed
	// retention is how often agents look for what is past its topic's retention; 0 for seldom.
	retention time.Duration
	starts    int // of nodes, so far
	copies    int // of each log, as agents that start from now on are configured

	copyPause time.Duration // between copies of etcd; 0 for a minute
	lossFrom  int           // from which step on etcd is lost; 0 for never
	loss      *loss         // under way
}

// host is a machine: a disk, and the node that runs on it.
type host struct {
	name string
	zone string
	disk *disktest.Disk
	node *node              // the newest; nil before the first
	full int                // until which step its disk is full
	held []disk.SegmentInfo // what it had when the newest node started
}

// newCluster makes a cluster of so many machines, on each of which a node starts, with so many shards.
func newCluster(ctx context.Context, seed uint64, broken breakage, size int, shards uint32) *cluster {
	c := &cluster{
		world: newWorld(ctx, seed, broken, shards), known: make(map[coordinator.ShardID]*node), cuts: make(map[[2]string]int),
		ageMax: 5 * time.Second, copies: 3, ids: make(map[int64]bool),
	}
	c.scene, c.steps, c.group = c, 3000, newGroup(c)
	uuid.SetRand(&random{Rand: rand.New(rand.NewPCG(seed, 0x1d))}) // identities of disks decide where copies go
	for i := range size {
		m := &host{name: fmt.Sprintf("m%d", i+1), zone: fmt.Sprintf("z%d", i%3)}
		m.disk = c.newDisk()
		c.machines = append(c.machines, m)
		c.start(m) //nolint:contextcheck // a node lives as long as the world
	}
	return c
}

// clusters is the maker of clusters of three to five machines, each with troubles of its own.
func clusters(ctx context.Context, seed uint64, broken breakage) *world {
	return clustersOf(ctx, seed, broken, clusterShards)
}

// clusterShards is how many shards there are, unless a scene wants another number: each partition of the topic is in one of its own.
const clusterShards = 4

// clustersOf makes clusters with so many shards.
func clustersOf(ctx context.Context, seed uint64, broken breakage, shards uint32) *world {
	rng := rand.New(rand.NewPCG(seed, 0x52))
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	c := newCluster(ctx, seed, broken, pick(3, 3, 3, 4, 5), shards)
	c.chances = chances{
		callFails: pick(0, 5, 30), slow: pick(0, 10, 30), stall: pick(0, 1, 4), outage: pick(0, 1, 2),
		power: pick(0, 1, 2), kill: pick(0, 1, 3), diskFails: pick(0, 0, 1),
		netFails: pick(0, 2, 10, 30), cut: pick(0, 1, 3), drain: pick(0, 1, 2), lose: pick(0, 1, 2), apart: pick(0, 1, 3),
		full: pick(0, 0, 1), hang: pick(0, 0, 1), jump: pick(0, 1), compact: pick(0, 1),
	}
	c.passes = [][]time.Duration{
		{time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond},
		{20 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond},
		{50 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second},
	}[rng.IntN(3)]
	c.ageMax = time.Duration(pick(200, 1000, 5000)) * time.Millisecond
	return c.world
}

func (c *cluster) newDisk() *disktest.Disk {
	return disktest.New(c.rng.Uint64())
}

// random is randomness as a reader, which may be used concurrently.
type random struct {
	mu sync.Mutex
	*rand.Rand
}

func (r *random) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return len(p), nil
}

// at returns the node on the machine of that name; nil if there is none.
func (c *cluster) at(name string) *node {
	for _, m := range c.machines {
		if m.name == name {
			return m.node
		}
	}
	return nil
}

// connected remembers a connection, so that it ends with who made it.
func (c *cluster) connected(x *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, x)
}

// living returns the nodes that have not ended.
func (c *cluster) living() []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return n.dead || n.over.Load() })
}

// idle returns the machines on which nothing runs.
func (c *cluster) idle() []*host {
	return slices.DeleteFunc(slices.Clone(c.machines), func(m *host) bool { return m.node.lives() })
}

// clear implements scene.
func (c *cluster) clear() {
	c.nodes = slices.DeleteFunc(c.nodes, func(n *node) bool {
		if !n.over.Load() {
			return false
		}
		if !n.dead {
			c.note("%s ends", n.name)
			c.aside("%s ended with: %v", n.name, n.err) // of several reasons, any may be told
			if !c.restoring() {
				c.check.ended(n.err)
			}
			c.leave(n)
			if n.err == nil && c.rng.IntN(2) == 0 && c.lossFrom == 0 {
				c.note("its disk is thrown away")
				n.machine.disk, n.machine.full = c.newDisk(), 0
			}
		}
		return true
	})
	c.pollReads()
	c.group.poll()
	if c.load.txns != nil {
		c.load.txns.poll()
	}
	c.pollQuestions()
}

// leave ends what a node that is gone had open elsewhere.
func (c *cluster) leave(n *node) {
	n.hangUp()
	c.die(&n.process)
	c.mu.Lock()
	var open []*connection
	c.conns = slices.DeleteFunc(c.conns, func(x *connection) bool {
		if x.from == n {
			open = append(open, x)
		}
		return x.from == n || x.over
	})
	c.mu.Unlock()
	for _, x := range open {
		x.cut()
	}
}

// kill ends a node as SIGKILL does, or with its machine: after a crash, the disk has what was synced and parts of the rest.
func (c *cluster) kill(n *node, crash bool) {
	c.note("%s is killed, crash %v", n.name, crash)
	synctest.Wait()
	for _, x := range c.eligible() {
		switch {
		case x.by != &n.process || x.kind != kindDisk || x.torn == nil || c.rng.IntN(2) == 0:
		case crash:
			_ = x.torn()
		default:
			x.run(happens) // the kernel has it
		}
	}
	c.abandon(&n.process)
	n.stop()
	c.leave(n)
	synctest.Wait()
	if crash {
		n.machine.disk = n.machine.disk.Crash()
	} else {
		n.machine.disk = n.machine.disk.Kill()
	}
	if n.machine.full > 0 {
		c.fill(n.machine, n.machine.full)
	}
}

// fill makes a machine's disk full until a step: what is there can be written over, and nothing more fits.
func (c *cluster) fill(m *host, until int) {
	c.note("the disk of %s is full until step %d", m.name, until)
	names, err := m.disk.Names()
	if err != nil {
		panic(err)
	}
	used := 0
	for _, name := range names {
		used += len(m.disk.Contents(name))
	}
	m.disk.Capacity(int64(max(used, 1)))
	m.full = until
}

// lose ends a node, and its disk for good.
func (c *cluster) lose(n *node) {
	c.kill(n, true)
	n.machine.disk, n.machine.full = c.newDisk(), 0
	c.lost = append(c.lost, n.identity())
	c.note("its disk %s is lost", n.identity())
}

// mayLose reports whether a disk more may be lost: no log may then lack as many stores as its quorum, nor come to lack them by a write that is on its way and names
// disks that were there when it was sent.
func (c *cluster) mayLose() bool {
	writes := func(what string) bool { return strings.Contains(what, "txn "+coordinator.PrefixLogs) }
	c.mu.Lock()
	sent := slices.ContainsFunc(c.parked, func(p *call) bool { return writes(p.what) })
	c.mu.Unlock()
	if len(c.lost) > 0 && (sent || slices.ContainsFunc(c.late, func(l lateWrite) bool { return writes(l.what) })) {
		return false
	}
	for _, l := range c.check.logs {
		if l.Closed {
			continue
		}
		for _, s := range l.Segments {
			if slices.ContainsFunc(s.Stores, func(store string) bool { return slices.Contains(c.lost, store) }) {
				return false
			}
		}
	}
	return true
}

// trouble implements scene.
func (c *cluster) trouble() bool {
	roll := func(chance int) bool { return chance > 0 && c.rng.IntN(1000) < chance }
	for _, m := range c.machines {
		if m.full > 0 && m.full <= c.step {
			m.disk.Capacity(0)
			m.full = 0
		}
	}
	if c.loss != nil && c.loss.act() {
		return true
	}
	due := c.lossFrom > 0 && c.lossFrom <= c.step && c.loss == nil
	if due {
		if x := c.mayLoseEtcd(); x != nil {
			c.lossFrom = c.step + 300 + c.rng.IntN(2000)
			c.loseEtcd(x)
			return true
		}
		if c.rng.IntN(15) == 0 {
			c.pass(300 * time.Millisecond)
			return true
		}
	}
	if off := c.idle(); len(off) > 0 && (c.loss == nil || c.loss.open) && c.rng.IntN(30) == 0 {
		c.start(off[c.rng.IntN(len(off))])
		return true
	}
	live := c.living()
	if len(live) == 0 {
		return false
	}
	if c.load.txns != nil && c.rng.IntN(4) == 0 {
		c.load.txns.act()
		return true
	}
	n := live[c.rng.IntN(len(live))]
	switch c.rng.IntN(40) {
	case 0, 1, 2, 3:
		c.group.act()
		return true
	case 4:
		c.askProducerID(n)
		return true
	case 5:
		c.askOffset(c.load.committers[c.rng.IntN(len(c.load.committers))])
		return true
	}
	if c.retention > 0 && c.rng.IntN(100) == 0 {
		c.deleteSome()
		return true
	}
	switch {
	case due && c.step < c.lossFrom+calmBefore:
		return false
	case roll(c.chances.power):
		c.kill(n, true)
	case roll(c.chances.kill):
		c.kill(n, false)
	case roll(c.chances.drain):
		n.leave()
	case roll(c.chances.lose) && n.identity() != "" && c.mayLose():
		c.lose(n)
	case roll(c.chances.stall):
		n.stalled = c.step + 20 + c.rng.IntN(400)
		c.note("%s stalls until step %d", n.name, n.stalled)
	case roll(c.chances.cut):
		c.cut(n.machine, c.machines[c.rng.IntN(len(c.machines))], c.step+20+c.rng.IntN(400), c.rng.IntN(2) == 0)
	case roll(c.chances.outage):
		k := []kind{kindKV, kindBucket}[c.rng.IntN(2)]
		c.away[k] = c.step + 10 + c.rng.IntN(100)
		c.note("%s is away until step %d", k, c.away[k])
	case roll(c.chances.apart):
		k := []kind{kindKV, kindKV, kindBucket}[c.rng.IntN(3)]
		n.away[k] = c.step + 200 + c.rng.IntN(1200)
		c.note("%s does not reach %s until step %d", n.name, k, n.away[k])
	case roll(c.chances.full):
		c.fill(n.machine, c.step+100+c.rng.IntN(600))
	case roll(c.chances.hang):
		n.hung = c.step + 100 + c.rng.IntN(600)
		c.note("the disk of %s hangs until step %d", n.name, n.hung)
	case roll(c.chances.jump):
		n.jump([]time.Duration{time.Hour, time.Minute, -10 * time.Second, -time.Second}[c.rng.IntN(4)])
	case roll(c.chances.policy):
		c.alter()
	case roll(c.chances.compact):
		c.note("etcd forgets history")
		if err := c.kv.Compact(c.ctx, c.revision()); err != nil {
			panic(err)
		}
	default:
		return false
	}
	return true
}

// cut keeps packets of one machine from another, and perhaps those of the other as well.
func (c *cluster) cut(from, to *host, until int, both bool) {
	c.note("nothing gets from %s to %s until step %d, both ways %v", from.name, to.name, until, both)
	c.cuts[[2]string{from.name, to.name}] = until
	if both {
		c.cuts[[2]string{to.name, from.name}] = until
	}
}

// leaderOf returns the node that leads a shard, as etcd says; nil if it does not run.
func (c *cluster) leaderOf(id coordinator.ShardID) *node {
	s := c.shard(id)
	item, _, err := c.kv.Get(c.ctx, coordinator.KeyAgent(s.Node))
	if err != nil || item.ModRevision == 0 {
		return nil
	}
	me, err := coordinator.Decode[coordinator.Agent](item)
	if err != nil || me.Log != s.Owner {
		return nil // another incarnation
	}
	for _, n := range c.living() {
		if n.number() == s.Node {
			return n
		}
	}
	return nil
}

// choose implements scene.
func (c *cluster) choose(id coordinator.ShardID) broker {
	live := c.living()
	if len(live) == 0 {
		return nil
	}
	if old := c.known[id]; old.lives() && c.rng.IntN(8) > 0 {
		return old
	}
	n := c.leaderOf(id)
	if n == nil || c.rng.IntN(10) == 0 {
		n = live[c.rng.IntN(len(live))]
	}
	c.known[id] = n
	return n
}

// leader implements scene.
func (c *cluster) leader(id coordinator.ShardID) broker {
	if n := c.leaderOf(id); n != nil {
		return n
	}
	return nil
}

// mend implements scene.
func (c *cluster) mend() {
	c.cuts = make(map[[2]string]int)
	for _, m := range c.machines {
		m.disk.Capacity(0)
		m.full = 0
	}
	for _, n := range c.nodes {
		n.stalled, n.hung = 0, 0
		clear(n.away)
	}
	for _, n := range c.living() {
		if c.rng.IntN(2) == 0 {
			c.kill(n, c.rng.IntN(2) == 0)
		}
	}
}

// restoring implements scene.
func (c *cluster) restoring() bool { return c.loss != nil }

// recovered implements scene.
func (c *cluster) recovered() bool {
	if c.loss != nil {
		c.loss.hurry()
		return false
	}
	for _, m := range c.idle() {
		c.start(m)
	}
	return !slices.ContainsFunc(c.machines, func(m *host) bool { return !m.node.ready() })
}

// flush implements scene: all agents leave, which flushes everything. If one cannot, for lack of others, its log is recovered when all come back. Then others come on what
// disks are left, which drop what they hold of logs that are over.
func (c *cluster) flush() func() bool {
	leaving, flushed := false, false
	return func() bool {
		switch {
		case flushed:
			return c.recovered() && !slices.ContainsFunc(c.machines, c.holdsClosed)
		case leaving && len(c.living()) > 0:
		case leaving && !slices.ContainsFunc(slices.Collect(maps.Values(c.check.logs)), func(l coordinator.Log) bool { return !l.Closed }):
			c.note("all is flushed")
			c.group.final()
			flushed = true
		case !c.recovered():
			leaving = false
		default:
			c.note("all leave")
			for _, n := range c.living() {
				n.stop()
			}
			leaving = true
		}
		return false
	}
}

// holdsClosed reports whether a machine's disk has something of a log that is closed.
func (c *cluster) holdsClosed(m *host) bool {
	return slices.ContainsFunc(m.node.store.Load().Segments(), func(s disk.SegmentInfo) bool { return c.check.logs[coordinator.LogID(s.ID.Log)].Closed })
}

// offsetIn implements scene.
func (c *cluster) offsetIn(it coordinator.Item) (int64, error) {
	all, err := coordinator.Decode[coordinator.GroupOffsets](it)
	return all[0].Offset, err
}

// stopAll implements scene.
func (c *cluster) stopAll() {
	if c.loss != nil && c.loss.restorer != nil {
		c.loss.restorer.cancel()
		c.die(&c.loss.restorer.process)
	}
	for _, n := range c.nodes {
		n.stop()
		c.leave(n)
	}
	synctest.Wait()
	uuid.SetRand(nil)
}
