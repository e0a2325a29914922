package groups

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// TestWalk drives two agents at random: producers send offsets of several groups in transactions, one after another, while others commit
// outside of any; agents die in the midst of requests, shards move, writes and questions fail. A producer commits only
// what it was told is in its transaction, or it aborts. After every step and at the end:
//
//   - an offset is that of the newest commit that took effect, transactions' commits being as old as their requests;
//   - nothing of an aborted transaction shows, nor anything of one before its marker;
//   - an offset that a transaction has is unstable, until the marker is answered;
//   - once all transactions have ended, nothing is pending and nothing unstable.
func TestWalk(t *testing.T) {
	seeds, steps := uint64(30), 200
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, c *cluster) {
				w := newWalk(t, c, seed)
				for range steps {
					w.step()
					w.check(w.anyPlace())
				}
				w.settle()
			})
		})
	}
}

const (
	walkGroups     = 5
	walkPartitions = 3
	walkProducers  = 4
)

type walk struct {
	t      *testing.T
	c      *cluster
	rng    *rand.Rand
	agents []*agent
	epoch  int32 // newest of any shard

	offset  int64 // newest that was committed or sent; so that offsets tell which commit is newer
	offsets map[place]int64
	clients []*walkClient
}

// place is a partition of "orders" as a group reads it.
type place struct {
	group     string
	partition int32
}

// walkClient is a transactional producer, and its coordinator's view of its last transaction.
type walkClient struct {
	id     protocol.ProducerID
	epoch  protocol.ProducerEpoch
	sent   map[place]int64 // in the open transaction, for certain
	failed bool            // must abort
	// Of a decided transaction:
	commit  bool
	decided map[place]int64
	markers map[coordinator.ShardID]bool // to be sent
}

func newWalk(t *testing.T, c *cluster, seed uint64) *walk {
	w := &walk{t: t, c: c, rng: rand.New(rand.NewPCG(seed, 1)), epoch: 1, offsets: map[place]int64{}}
	w.agents = []*agent{c.start(1), c.start(1)}
	w.agents[1].lose()
	for i := range protocol.ProducerID(walkProducers) {
		w.clients = append(w.clients, &walkClient{id: i, sent: map[place]int64{}})
		c.txns.set(i, producer{})
	}
	return w
}

func (w *walk) anyPlace() place {
	return place{fmt.Sprintf("g%d", w.rng.IntN(walkGroups)), w.rng.Int32N(walkPartitions)}
}

// leader returns the agent that leads a group's shard.
func (w *walk) leader(group string) *agent {
	for _, a := range w.agents {
		if _, ok := a.leads(shardOf(group)); ok {
			return a
		}
	}
	w.t.Fatal("nobody leads")
	return nil
}

func (w *walk) step() {
	client := w.clients[w.rng.IntN(len(w.clients))]
	switch n := w.rng.IntN(100); {
	case n < 40:
		w.send(client)
	case n < 50:
		at := w.anyPlace()
		w.offset++
		code(w.t, "commit", w.leader(at.group).commit(at.group, nobody, "orders", at.partition, w.offset), protocol.None)
		w.offsets[at] = w.offset
	case n < 65:
		w.decide(client)
	case n < 85:
		w.mark(client)
	case n < 89:
		w.replace(w.rng.IntN(len(w.agents)))
	case n < 95:
		w.move(coordinator.ShardID(w.rng.IntN(testShards)))
	default:
		time.Sleep(time.Duration(w.rng.Int64N(int64(20 * time.Second))))
	}
}

// send sends an offset in a client's transaction; something may happen to it on the way.
func (w *walk) send(client *walkClient) {
	at := w.anyPlace()
	a := w.leader(at.group)
	w.offset++
	offset := w.offset
	epoch := client.epoch
	// A copy of an earlier request, that was late. While its transaction is being committed there is what the request itself has sent.
	zombie := epoch > 0 && w.rng.IntN(20) == 0
	if zombie && len(client.markers) > 0 {
		zombie = slices.ContainsFunc(slices.Collect(maps.Keys(client.decided)), func(other place) bool { return other.group == at.group })
	}
	if zombie {
		epoch--
	}
	run := func() int16 { return a.send(at.group, client.id, epoch, "orders", at.partition, offset) }
	var got int16
	switch w.rng.IntN(10) {
	case 0: // the agent dies before the coordinator is asked
		w.c.txns.hold(w.rng.Int64N(2))
		got = w.dieAt(a, later(run))
	case 1: // the agent dies before it hears the answer
		w.c.txns.setHook(func(ctx context.Context, t Transaction) error {
			_ = w.c.txns.judge(t)
			<-ctx.Done()
			return ctx.Err()
		})
		got = w.dieAt(a, later(run))
	case 2: // the agent dies before the offsets are written
		a.ledger.hold()
		got = w.dieAt(a, later(run))
	case 3:
		w.c.txns.answer(errors.New("unreachable"))
		got = run()
	case 4:
		a.ledger.fail(coordinator.ErrNoSpace)
		got = run()
		a.ledger.fail()
	default:
		got = run()
	}
	w.c.txns.setHook(nil)
	switch {
	case zombie && got == 0:
		w.t.Fatalf("producer %d sent with epoch %d in an epoch of %d", client.id, epoch, client.epoch)
	case zombie:
	case got == 0:
		client.sent[at] = offset
	default:
		client.failed = true
	}
}

// dieAt lets an agent die once a request waits, and returns the answer.
func (w *walk) dieAt(a *agent, answer <-chan int16) int16 {
	synctest.Wait()
	w.replace(slices.Index(w.agents, a))
	return <-answer
}

// replace ends an agent without a word to it, and starts another, which leads the same shards.
func (w *walk) replace(i int) {
	old := w.agents[i]
	old.stop()
	w.epoch++
	w.agents[i] = w.c.start(w.epoch)
	w.agents[i].mu.Lock()
	defer w.agents[i].mu.Unlock()
	for shard := range coordinator.ShardID(testShards) {
		if _, ok := old.leads(shard); !ok {
			delete(w.agents[i].epochs, shard)
		}
	}
}

// move hands a shard to the other agent.
func (w *walk) move(shard coordinator.ShardID) {
	synctest.Wait()
	w.epoch++
	from, to := w.agents[0], w.agents[1]
	if _, ok := to.leads(shard); ok {
		from, to = to, from
	}
	from.mu.Lock()
	delete(from.epochs, shard)
	from.mu.Unlock()
	from.Resign(shard)
	to.mu.Lock()
	to.epochs[shard] = w.epoch
	to.mu.Unlock()
}

// decide ends a client's transaction, once the markers of the one before are written.
func (w *walk) decide(client *walkClient) {
	if len(client.markers) > 0 {
		return
	}
	txns := w.c.txns
	txns.mu.Lock()
	defer txns.mu.Unlock()
	p := txns.producers[client.id]
	client.commit = !client.failed && w.rng.IntN(4) > 0
	client.decided, client.markers = client.sent, maps.Clone(p.shards)
	client.epoch++
	p.epoch, p.open, p.deciding = client.epoch, false, len(client.markers) > 0
	client.sent, client.failed = map[place]int64{}, false
}

// mark sends one of the markers of a client's decided transaction.
func (w *walk) mark(client *walkClient) {
	if len(client.markers) == 0 {
		return
	}
	shards := slices.Sorted(maps.Keys(client.markers))
	shard := shards[w.rng.IntN(len(shards))]
	run := func() error {
		for _, a := range w.agents {
			if _, ok := a.leads(shard); ok {
				return a.EndTransaction(w.t.Context(), shard, Marker{Producer: client.id, Epoch: client.epoch, Strict: true, Commit: client.commit})
			}
		}
		return errors.New("nobody leads")
	}
	// A marker that fails may have been carried out in some groups, so it is sent again before anybody looks.
	a := w.agents[w.rng.IntN(len(w.agents))]
	switch w.rng.IntN(8) {
	case 0:
		a.ledger.fail(coordinator.ErrNoSpace)
		_ = run()
		a.ledger.fail()
	case 1:
		a.ledger.hold()
		done := later(func() bool { return run() == nil })
		synctest.Wait()
		w.replace(slices.Index(w.agents, a))
		<-done
	}
	if err := run(); err != nil {
		w.t.Fatalf("marker: %v", err)
	}
	delete(client.markers, shard)
	for at, offset := range client.decided {
		if shardOf(at.group) != shard {
			continue
		}
		delete(client.decided, at)
		if client.commit {
			w.offsets[at] = max(w.offsets[at], offset)
		}
	}
	if len(client.markers) == 0 {
		w.c.txns.set(client.id, producer{epoch: client.epoch})
	}
}

// check compares what a group sees with what it should.
func (w *walk) check(at place) {
	w.t.Helper()
	want, ok := w.offsets[at]
	if !ok {
		want = -1
	}
	a := w.leader(at.group)
	what := fmt.Sprintf("%v", at)
	equal(w.t, what, a.fetchOffset(at.group, "orders", at.partition), want)
	stable := a.stableOffset(at.group, "orders", at.partition)
	for _, client := range w.clients {
		_, sent := client.sent[at]
		_, decided := client.decided[at]
		if (sent || decided) && stable != unstable {
			w.t.Fatalf("%v is %d although producer %d has sent an offset", at, stable, client.id)
		}
	}
	if stable != unstable {
		equal(w.t, what, stable, want)
	}
}

// settle ends all transactions and looks at everything.
func (w *walk) settle() {
	w.t.Helper()
	for _, client := range w.clients {
		for range 2 { // the decided one, and the open one
			for len(client.markers) > 0 {
				w.mark(client)
			}
			w.decide(client)
		}
		for len(client.markers) > 0 {
			w.mark(client)
		}
	}
	time.Sleep(30 * time.Minute)
	equalSlices(w.t, "pending", w.c.pendingKeys())
	for g := range walkGroups {
		for p := range int32(walkPartitions) {
			at := place{fmt.Sprintf("g%d", g), p}
			w.check(at)
			if w.leader(at.group).stableOffset(at.group, "orders", p) == unstable {
				w.t.Fatalf("%v is unstable for ever", at)
			}
		}
	}
}
