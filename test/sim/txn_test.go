package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// transacting are the clients of transactions: producers, and consumers of both isolation levels. They stand beside all other clients, on the same partitions.
type transacting struct {
	c        *cluster
	ids      []*transactional
	all      []*transaction
	of       map[recordID]*transaction
	handed   map[claim]*instance // who was given a producer id and an epoch
	reading  []*isolatedRead     // under way
	reads    []*isolatedRead     // answered
	stable   map[string]int64    // last stable offsets that readers saw, by node and partition
	sent     int                 // readers that were sent to another node
	seen     map[string]int64    // highest offset that was answered, by group
	idle     time.Time           // since when nobody has a transaction under way, in the end
	finishes bool                // no transaction begins any more
	lasting  map[int32]bool      // partitions whose last stable offset has come to the high watermark, in the end
	writers  int32               // so far
	counts   map[string]int      // of what happened, for who wants to know whether anything did
}

// recordID names a record of a transaction.
type recordID struct {
	writer int32
	number int64
}

// claim is what a producer identifies itself with.
type claim struct {
	id    protocol.ProducerID
	epoch protocol.ProducerEpoch
}

// transactional is a transactional id, with the group that its offsets go to. Each transaction sends the group a higher offset than the one before.
type transactional struct {
	name       string
	version2   bool // of the protocol (KIP-890)
	timeout    time.Duration
	shard      coordinator.ShardID
	group      string
	groupShard coordinator.ShardID
	instances  []*instance // those that live, in the order in which they came
	offset     int64       // newest that a transaction has sent, or is to send
	committed  int64       // newest of a committed transaction
}

// transaction is one of a producer.
type transaction struct {
	by         *instance
	claim      claim
	added      [partitions]bool // by AddPartitionsToTxn
	addsGroup  bool             // by AddOffsetsToTxn
	sends      []*send
	offset     int64 // to send to the group; 0 for none
	offsetSent bool
	asked      outcome // of EndTxn
	decided    outcome // as etcd has it
	decidedAt  int     // step
	decidedIn  int64   // revision
	doneIn     int64   // revision in which its markers were written; 0 for not yet
	past       bool    // etcd was lost since
	torn       bool    // it need not be whole: etcd was lost while its markers were under way
}

// outcome of a transaction.
type outcome int

const (
	undecided outcome = iota
	committed
	aborted
)

func (o outcome) String() string { return [...]string{"undecided", "committed", "aborted"}[o] }

const (
	transactionalIDs = 4
	instancesMax     = 2 // of one transactional id
	firstWriter      = 1000

	timeoutLongest = 40 * time.Second // of transactions
	// restsFor is how long all is at rest in the end before what is left open is wrong: a request that was given up may have let one begin late.
	restsFor = timeoutLongest + 6*time.Second
)

// transactions is the maker of clusters with transactions.
func transactions(ctx context.Context, seed uint64, broken breakage) *world {
	w := clusters(ctx, seed, broken)
	w.steps = 6000
	w.scene.(*cluster).transact()
	return w
}

// transact lets transactional clients come.
func (c *cluster) transact() {
	x := &transacting{
		c: c, of: make(map[recordID]*transaction), handed: make(map[claim]*instance), stable: make(map[string]int64), seen: make(map[string]int64),
		lasting: make(map[int32]bool), writers: firstWriter, counts: make(map[string]int),
	}
	for i := range transactionalIDs {
		name, group := fmt.Sprint("x", i), fmt.Sprint("copiers", i)
		x.ids = append(x.ids, &transactional{
			name: name, version2: i%2 == 1, timeout: []time.Duration{3 * time.Second, 15 * time.Second, timeoutLongest}[c.rng.IntN(3)], shard: coordinator.ShardOfName(name, c.world.cluster.Shards),
			group: group, groupShard: coordinator.ShardOfName(group, c.world.cluster.Shards),
		})
	}
	c.load.txns = x
}

// act lets one client do something.
func (x *transacting) act() {
	switch n := x.c.rng.IntN(12); {
	case n < 8:
		id := x.ids[x.c.rng.IntN(len(x.ids))]
		if len(id.instances) == 0 || len(id.instances) < instancesMax && id.instances[0].txn != nil && x.c.rng.IntN(200) == 0 {
			x.come(id)
		}
		for _, i := range id.instances { // one waits for the other to be fenced, or goes on beside it
			if i.doing == nil && x.c.rng.IntN(3) == 0 || i.doing != nil && x.c.step-i.doing.since > patience {
				i.act()
				return
			}
		}
		id.instances[len(id.instances)-1].act()
	case n < 11:
		number := x.c.rng.Int32N(partitions)
		b, zone := x.leader(x.c.shardOf(number)), ""
		if live := x.c.living(); len(live) > 0 && x.c.rng.IntN(3) == 0 {
			b = live[x.c.rng.IntN(len(live))]
			zone = b.machine.zone
		}
		if b == nil {
			return
		}
		x.read(b, number, x.c.rng.Int64N(max(x.c.load.logs[number].floor, 0)+1), zone, x.c.rng.IntN(4) > 0)
	default:
		x.askOffset(x.ids[x.c.rng.IntN(len(x.ids))], x.c.rng.IntN(3) > 0)
	}
}

// leader is who a client takes for the leader of a shard, most often rightly; nil if there is none.
func (x *transacting) leader(shard coordinator.ShardID) *node {
	live := x.c.living()
	if len(live) > 0 && x.c.rng.IntN(12) == 0 {
		return live[x.c.rng.IntN(len(live))]
	}
	return x.c.leaderOf(shard)
}

// come starts an instance of a transactional id, beside the one that may be there.
func (x *transacting) come(id *transactional) *instance {
	x.writers++
	i := &instance{x: x, of: id, client: fmt.Sprintf("%s.%d", id.name, x.writers), writer: x.writers, claim: noClaim, needsID: true}
	id.instances = append(id.instances, i)
	x.c.note("%s comes", i.client)
	return i
}

// poll takes answers.
func (x *transacting) poll() {
	for _, id := range x.ids {
		for _, i := range slices.Clone(id.instances) {
			i.poll()
		}
	}
	x.pollReads()
}

// finish lets transactions end, by their producers or by their timeouts, and reports whether none is open any more, wherever one looks.
func (x *transacting) finish() bool {
	x.finishes = true
	done := true
	for _, id := range x.ids {
		for _, i := range slices.Clone(id.instances) {
			if i.txn != nil || i.doing != nil {
				i.act()
				done = false
			}
		}
	}
	if !done {
		x.idle = time.Time{}
		return false
	}
	if x.idle.IsZero() {
		x.idle = time.Now()
		clear(x.lasting)
	}
	if time.Since(x.idle) < restsFor {
		if x.c.rng.IntN(4) == 0 {
			x.c.pass(400 * time.Millisecond)
		}
		return false
	}
	for number := range int32(partitions) {
		if !x.lasting[number] {
			done = false
			if b := x.c.leaderOf(x.c.shardOf(number)); b != nil {
				x.read(b, number, max(x.c.load.logs[number].floor, 0), "", true)
				if x.c.check.old > 0 && time.Since(x.idle) > 2*restsFor {
					x.endHanging(b, number)
				}
			}
		}
	}
	for _, id := range x.ids {
		if x.seen[id.group] < id.committed {
			done = false
			x.askOffset(id, true)
		}
	}
	return done
}

// waiting describes what is open.
func (x *transacting) waiting() string {
	s := ""
	for _, id := range x.ids {
		for _, i := range id.instances {
			s += fmt.Sprintf(" %s(transaction %v, waits %v)", i.client, i.txn != nil, i.doing != nil)
		}
		if x.seen[id.group] < id.committed {
			s += fmt.Sprintf(" %s(%d of %d)", id.group, x.seen[id.group], id.committed)
		}
	}
	for number := range int32(partitions) {
		if !x.lasting[number] {
			s += fmt.Sprintf(" partition %d has an open transaction", number)
		}
	}
	return s
}
