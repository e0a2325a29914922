package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// world is a cluster of eight shards as etcd has it. Agents are numbers: the log of agent n is n, its node n+10.
type world struct {
	t      *testing.T
	kv     *mem.Store
	leases map[coordinator.LogID]int64
	agents map[coordinator.LogID]*member
	late   func()       // before the next agent that runs writes its first wish
	lists  atomic.Int64 // how often agents listed the logs
	full   atomic.Bool  // etcd refuses puts
}

// member is an agent that takes part in the election.
type member struct {
	willing atomic.Bool
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

const shards = 8

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, kv: mem.New(mem.Config{ClusterID: 1, Start: time.Now()}),
		leases: make(map[coordinator.LogID]int64), agents: make(map[coordinator.LogID]*member),
	}
	w.put(coordinator.KeyCluster, coordinator.Cluster{Shards: shards})
	t.Cleanup(func() {
		for _, m := range w.agents {
			m.stop()
		}
	})
	return w
}

func (w *world) put(key string, value any) {
	w.t.Helper()
	w.txn(coordinator.Op{Key: key, Value: coordinator.Encode(value)})
}

func (w *world) txn(ops ...coordinator.Op) {
	w.t.Helper()
	if _, err := w.kv.Txn(w.t.Context(), nil, ops); err != nil {
		w.t.Fatal(err)
	}
}

// register puts an agent's registration, under a lease of its own, and its log if there is none yet.
func (w *world) register(id coordinator.LogID, state coordinator.AgentState) {
	w.t.Helper()
	if w.leases[id] == 0 {
		lease, err := w.kv.Grant(w.t.Context(), 3)
		if err != nil {
			w.t.Fatal(err)
		}
		w.leases[id] = lease
		w.log(coordinator.Log{ID: id})
	}
	me := coordinator.Agent{Node: int32(id) + 10, Log: id, State: state}
	w.txn(coordinator.Op{Key: coordinator.KeyAgent(me.Node), Value: coordinator.Encode(me), Lease: w.leases[id]})
	synctest.Wait()
}

func (w *world) log(l coordinator.Log) {
	w.t.Helper()
	w.put(coordinator.KeyLog(l.ID), l)
}

// gone ends an agent's lease.
func (w *world) gone(id coordinator.LogID) {
	w.t.Helper()
	if err := w.kv.Revoke(w.t.Context(), w.leases[id]); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// run has an agent that is registered take part.
func (w *world) run(id coordinator.LogID) *member {
	w.t.Helper()
	m := &member{}
	m.willing.Store(true)
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(w.t.Context())
	kick := make(chan struct{}, 1)
	view := coordinator.NewView(w.kv, coordinator.ViewConfig{Log: slog.New(slog.DiscardHandler), OnMember: func() {
		select {
		case kick <- struct{}{}:
		default:
		}
	}})
	c := New(Deps{
		KV: &lateKV{w.kv, w.late, &w.lists, &w.full}, View: view, Tails: index.NewTails(), Node: int32(id) + 10, Log: id, Lease: func() int64 { return w.leases[id] }, Kick: kick,
		Willing: m.willing.Load, Logger: slog.New(slog.DiscardHandler),
	})
	m.ended.Go(func() { _ = view.Run(ctx) })
	synctest.Wait()
	m.ended.Go(func() { _ = c.Run(ctx) })
	synctest.Wait()
	w.agents[id] = m
	return m
}

// stop ends an agent's part, and says nothing to etcd, as a crash does.
func (m *member) stop() {
	m.cancel()
	m.ended.Wait()
}

// controller returns who is the controller; 0 for nobody.
func (w *world) controller() coordinator.LogID {
	w.t.Helper()
	item, _, err := w.kv.Get(w.t.Context(), coordinator.KeyController)
	if err != nil {
		w.t.Fatal(err)
	}
	if item.ModRevision == 0 {
		return 0
	}
	c, err := coordinator.Decode[coordinator.Controller](item)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Log
}

// shard returns a shard's record and the wish about it; 0 for none.
func (w *world) shard(id coordinator.ShardID) (coordinator.Shard, coordinator.LogID) {
	w.t.Helper()
	var s coordinator.Shard
	var m coordinator.Move
	item, _, err := w.kv.Get(w.t.Context(), coordinator.KeyShard(id))
	if err == nil && item.ModRevision != 0 {
		s, err = coordinator.Decode[coordinator.Shard](item)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	item, _, err = w.kv.Get(w.t.Context(), coordinator.KeyMove(id))
	if err == nil && item.ModRevision != 0 {
		m, err = coordinator.Decode[coordinator.Move](item)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return s, m.To
}

// wants checks how many shards each agent leads, and of how many each is to become the leader.
func (w *world) wants(owners, wishes string) {
	w.t.Helper()
	leads, gets := make(map[uint64]int), make(map[uint64]int)
	for id := range coordinator.ShardID(shards) {
		s, to := w.shard(id)
		leads[uint64(s.Owner)]++
		if to != 0 {
			gets[uint64(to)]++
		}
	}
	if got := fmt.Sprint(leads); got != "map["+owners+"]" {
		w.t.Errorf("shards by owner: %s, want %s", got, owners)
	}
	if got := fmt.Sprint(gets); got != "map["+wishes+"]" {
		w.t.Errorf("wishes by receiver: %s, want %s", got, wishes)
	}
}

// carryOut hands over, as owners do, what is wished.
func (w *world) carryOut() {
	w.t.Helper()
	for id := range coordinator.ShardID(shards) {
		s, to := w.shard(id)
		if to == 0 {
			continue
		}
		s.Owner, s.Node, s.Epoch = to, int32(to)+10, s.Epoch+1
		w.txn(coordinator.Op{Key: coordinator.KeyShard(id), Value: coordinator.Encode(s)},
			coordinator.Op{Key: coordinator.KeyWrite(id), Value: coordinator.Encode(coordinator.Write{Owner: to, Epoch: s.Epoch})},
			coordinator.Op{Key: coordinator.KeyMove(id), Delete: true})
	}
	synctest.Wait()
}

// TestElection: one agent of several is the controller, until its lease ends or it starts anew.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for id := coordinator.LogID(1); id <= 3; id++ {
			w.register(id, coordinator.AgentServing)
		}
		w.run(1)
		w.run(2)
		if got := w.controller(); got != 1 {
			t.Fatalf("the controller is %d, want who came first", got)
		}
		w.agents[1].stop()
		w.gone(1)
		if got := w.controller(); got != 2 {
			t.Errorf("the controller is %d after the first one's lease ended", got)
		}
		w.run(3)
		w.agents[2].stop()
		// Its next incarnation registers before its lease has ended.
		w.put(coordinator.KeyAgent(12), coordinator.Agent{Node: 12, Log: 4, State: coordinator.AgentStarting})
		synctest.Wait()
		if got := w.controller(); got != 3 {
			t.Errorf("the controller is %d after the second one started anew", got)
		}
	})
}

// TestUnwilling: an agent that drains does not become the controller, but stays it.
func TestUnwilling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.register(2, coordinator.AgentServing)
		w.run(1).willing.Store(false)
		w.register(1, coordinator.AgentDraining)
		w.wants("1:4 2:4", "2:4")
		w.run(2).willing.Store(false)
		w.agents[1].stop()
		w.gone(1)
		if got := w.controller(); got != 0 {
			t.Errorf("the controller is %d, which drains", got)
		}
	})
}

// TestLeaseLost: an agent whose own lease has ended tries again with the next one.
func TestLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.gone(1)
		w.run(1)
		if got := w.controller(); got != 0 {
			t.Fatalf("the controller is %d, under a lease that has ended", got)
		}
		w.leases[1] = 0
		w.register(1, coordinator.AgentServing)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.controller(); got != 1 {
			t.Errorf("the controller is %d", got)
		}
	})
}

// TestPlan follows a cluster: shards are assigned, a newcomer gets its share, one that drains loses what it has, one that dies too once its log is closed.
func TestPlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentStarting)
		w.run(1)
		w.wants("0:8", "")
		w.register(1, coordinator.AgentServing)
		w.wants("1:8", "")
		if s, _ := w.shard(5); s.Epoch != 1 || s.Node != 11 {
			t.Errorf("shard 5: %+v", s)
		}
		w.register(2, coordinator.AgentStarting)
		w.wants("1:8", "")
		w.register(2, coordinator.AgentServing)
		w.wants("1:8", "2:4")
		w.register(2, coordinator.AgentDraining) // its wishes are withdrawn
		w.wants("1:8", "")
		w.register(2, coordinator.AgentServing)
		w.carryOut()
		w.wants("1:4 2:4", "")

		w.register(3, coordinator.AgentServing)
		w.register(2, coordinator.AgentDraining)
		w.carryOut()
		w.wants("1:4 3:4", "")
		w.gone(2)
		w.wants("1:4 3:4", "")

		w.gone(3)
		time.Sleep(time.Second)
		w.wants("1:4 3:4", "") // its log is open
		w.log(coordinator.Log{ID: 3, Claimer: 1})
		time.Sleep(time.Second)
		w.wants("1:4 3:4", "")
		w.log(coordinator.Log{ID: 3, Claimer: 1, Closed: true})
		time.Sleep(2 * absentPause)
		synctest.Wait()
		w.wants("1:8", "")
	})
}

// TestRestored: no shard moves while a log from before a restore is open.
func TestRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put(coordinator.KeyCluster, coordinator.Cluster{Shards: shards, Restored: 5})
		w.log(coordinator.Log{ID: 3})
		w.log(coordinator.Log{ID: 4})
		w.register(7, coordinator.AgentServing)
		w.run(7)
		for _, id := range []coordinator.LogID{3, 4} {
			time.Sleep(time.Minute)
			w.wants("0:8", "")
			w.log(coordinator.Log{ID: id, Closed: true})
		}
		time.Sleep(2 * restPause)
		synctest.Wait()
		w.wants("7:8", "")
	})
}

// TestOwnerEnds: an agent is still registered when its log is closed, which nobody tells: one that drained and had shards still, and one whose log was claimed.
func TestOwnerEnds(t *testing.T) {
	for name, end := range map[string]func(w *world){
		"drains": func(w *world) {
			w.register(2, coordinator.AgentDraining)
			time.Sleep(time.Second)
			w.wants("1:4 2:4", "1:4")
			w.log(coordinator.Log{ID: 2, Closed: true})
		},
		"claimed": func(w *world) {
			w.log(coordinator.Log{ID: 2, Claimer: 1})
			w.register(3, coordinator.AgentStarting) // something that they look for
			time.Sleep(time.Second)
			w.wants("1:4 2:4", "")
			w.log(coordinator.Log{ID: 2, Claimer: 1, Closed: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.register(1, coordinator.AgentServing)
				w.register(2, coordinator.AgentServing)
				w.run(1)
				w.wants("1:4 2:4", "")
				end(w)
				time.Sleep(2 * absentPause)
				synctest.Wait()
				w.wants("1:8", "")
			})
		})
	}
}

// lateKV lets something happen just before wishes are written, counts how often logs are listed, and may have no space.
type lateKV struct {
	coordinator.KV
	before func()
	lists  *atomic.Int64
	full   *atomic.Bool
}

func (k *lateKV) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	if prefix == coordinator.PrefixLogs {
		k.lists.Add(1)
	}
	return k.KV.List(ctx, prefix, rev)
}

func (k *lateKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if before := k.before; before != nil && strings.HasPrefix(ops[0].Key, coordinator.PrefixMoves) {
		k.before = nil
		before()
	}
	if k.full.Load() && slices.ContainsFunc(ops, func(op coordinator.Op) bool { return !op.Delete }) {
		return coordinator.TxnResult{}, fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace)
	}
	return k.KV.Txn(ctx, compares, ops)
}

func (k *lateKV) Status(ctx context.Context) (coordinator.Status, error) {
	st, err := k.KV.Status(ctx)
	st.NoSpace = k.full.Load()
	return st, err
}

// TestTwoControllers: one that does not know yet that another one is the controller now can write no wish, and makes way.
func TestTwoControllers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		meets := false
		w.late = func() {
			meets = true
			w.put(coordinator.KeyController, coordinator.Controller{Log: 2, Node: 12})
		}
		w.run(1)
		w.wants("1:8", "")
		w.register(2, coordinator.AgentServing)
		time.Sleep(time.Second)
		if w.wants("1:8", ""); !meets {
			t.Error("there was no wish")
		}
	})
}

// TestUnavailable: a plan that could not be carried out is made again.
func TestUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentStarting)
		w.run(1)
		w.kv.Inject(mem.Fault{Call: mem.CallList, Times: 3, Kind: mem.Unavailable})
		me := coordinator.Agent{Node: 11, Log: 1, State: coordinator.AgentServing}
		w.txn(coordinator.Op{Key: coordinator.KeyAgent(11), Value: coordinator.Encode(me), Lease: w.leases[1]})
		synctest.Wait()
		w.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.UnknownLost})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.wants("1:8", "")
	})
}

// TestLoads: shards move for the load that their owners tell, if it is uneven for a minute; what others tell of them does not count, and a shard that has just moved keeps its load.
func TestLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.register(2, coordinator.AgentServing)
		w.run(1)
		w.wants("1:4 2:4", "")
		load := func(of coordinator.LogID, rate int64) {
			l := coordinator.Load{Log: of, Shards: make(map[coordinator.ShardID]int64)}
			for id := range coordinator.ShardID(shards) {
				if s, _ := w.shard(id); s.Owner == of || of == 9 {
					l.Shards[id] = rate
				}
			}
			w.put(coordinator.KeyLoad(int32(of)), l)
		}
		load(9, 1<<30)
		time.Sleep(10*time.Minute + time.Second) // and so not in the same moment in which the controller looks
		w.wants("1:4 2:4", "")
		load(2, 0)
		load(1, 10<<20)
		time.Sleep(time.Minute)
		w.wants("1:4 2:4", "")
		time.Sleep(2 * loadPause)
		synctest.Wait()
		w.wants("1:4 2:4", "2:1")
		w.carryOut()
		time.Sleep(10 * time.Minute)
		w.wants("1:3 2:5", "")
	})
}
