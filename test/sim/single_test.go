package sim

import (
	"context"
	"fmt"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal/disk"
)

// single is one machine, and agents on it that succeed each other: each leads all shards, on a WAL log of one copy.
type single struct {
	*world
	machines []*machine
	agents   []*agent // those that live, and ended ones until they are cleared
	nextLog  coordinator.LogID
}

// newSingle makes a world with a machine, and no agent.
func newSingle(ctx context.Context, seed uint64, broken breakage) *single {
	w := &single{world: newWorld(ctx, seed, broken, 2)}
	w.scene, w.steps = w, 1500
	w.machines = []*machine{newMachine(w.world, seed)}
	return w
}

// singles is the maker of such worlds.
func singles(ctx context.Context, seed uint64, broken breakage) *world {
	return newSingle(ctx, seed, broken).world
}

// start starts another agent. One that finds no other may find that its machine was started anew, too.
func (w *single) start() *agent {
	m := w.machines[len(w.machines)-1]
	if len(w.living()) == 0 && m.opening && (m.store == nil || w.rng.IntN(2) == 0) {
		w.cutPower(false)
	}
	open := !m.opening
	m.opening = true
	w.nextLog++
	a := &agent{
		w: w.world, id: w.nextLog, machine: m, process: newProcess(fmt.Sprintf("a%d", w.nextLog)),
		skew: time.Duration(w.rng.IntN(7200)-3600) * time.Second,
		live: make(map[partition.ID]*ingest.Partition), high: make(map[partition.ID]protocol.Offset),
		epochs: make(map[coordinator.ShardID]protocol.LeaderEpoch),
	}
	a.kv = &agentKV{Store: w.kv, w: w.world, by: &a.process}
	a.bucket = &agentBucket{Store: w.bucket, w: w.world, by: &a.process}
	a.run, a.fatal = context.WithCancelCause(w.ctx)
	w.agents = append(w.agents, a)
	w.note("%s starts on %s", a.name, m.name)
	go a.exist(open)
	return a
}

// living returns the agents that have not ended.
func (w *single) living() []*agent {
	var live []*agent
	for _, a := range w.agents {
		if !a.dead && !a.over.Load() {
			live = append(live, a)
		}
	}
	return live
}

// clear implements scene: it notes agents that have ended by themselves and forgets those that are gone.
func (w *single) clear() {
	var rest []*agent
	for _, a := range w.agents {
		switch {
		case !a.over.Load():
			rest = append(rest, a)
		case !a.dead:
			w.note("%s ends: %v", a.name, a.err)
			w.check.ended(a.err)
		}
	}
	w.agents = rest
}

// leads returns the agent that serves and leads all shards, as etcd says; nil if there is none.
func (w *single) leads() *agent {
	for _, a := range w.living() {
		if !a.serving.Load() {
			continue
		}
		leads := true
		for s := range coordinator.ShardID(w.cluster.Shards) {
			leads = leads && w.shard(s).Owner == a.id
		}
		if leads {
			return a
		}
	}
	return nil
}

// kill ends an agent as SIGKILL does: what it has sent may still arrive.
func (w *single) kill(a *agent) {
	w.note("%s is killed", a.name)
	w.endAgent(a)
}

func (w *single) endAgent(a *agent) {
	w.abandon(&a.process)
	a.fatal(errStopped)
}

// cutPower ends a machine and all agents on it. After a crash, its disk has what was synced and parts of the rest; otherwise only the processes have died.
func (w *single) cutPower(crash bool) {
	synctest.Wait()
	m := w.machines[len(w.machines)-1]
	w.note("%s ends, crash %v", m.name, crash)
	for _, a := range w.living() {
		if a.machine == m {
			w.endAgent(a)
		}
	}
	for _, c := range w.eligible() {
		switch {
		case c.by != &m.process || c.torn == nil || w.rng.IntN(2) == 0:
		case crash:
			_ = c.torn()
		default:
			c.run(happens) // the kernel has it
		}
	}
	w.stop(m)
	if crash {
		m.disk = m.disk.Crash()
	} else {
		m.disk = m.disk.Kill()
	}
	m.boot()
}

// stop ends a machine and what runs on it.
func (w *single) stop(m *machine) {
	for _, a := range w.agents {
		if a.machine == m {
			w.die(&a.process)
			a.fatal(errStopped)
		}
	}
	w.die(&m.process)
	if m.store != nil {
		go func(s *disk.Store) { _ = s.Close() }(m.store) // its disk refuses everything; only goroutines end
	}
	synctest.Wait()
}

// trouble implements scene.
func (w *single) trouble() bool {
	roll := func(chance int) bool { return chance > 0 && w.rng.IntN(1000) < chance }
	live := w.living()
	switch {
	case len(live) == 0:
		if w.rng.IntN(4) == 0 {
			w.start()
			return true
		}
		return false
	case roll(w.chances.power):
		w.cutPower(w.rng.IntN(3) > 0)
	case roll(w.chances.kill):
		w.kill(live[w.rng.IntN(len(live))])
	case roll(w.chances.second) && len(live) < 3 && w.machines[len(w.machines)-1].store != nil:
		w.start()
	case roll(w.chances.stall):
		p := &live[w.rng.IntN(len(live))].process
		p.stalled = w.step + 20 + w.rng.IntN(300)
		w.note("%s stalls until step %d", p.name, p.stalled)
	case roll(w.chances.outage):
		k := []kind{kindKV, kindBucket}[w.rng.IntN(2)]
		w.away[k] = w.step + 10 + w.rng.IntN(60)
		w.note("%s is away until step %d", k, w.away[k])
	default:
		return false
	}
	return true
}

// choose implements scene.
func (w *single) choose(coordinator.ShardID) broker {
	var serve []*agent
	for _, a := range w.living() {
		if a.serving.Load() {
			serve = append(serve, a)
		}
	}
	if len(serve) == 0 {
		return nil
	}
	return serve[w.rng.IntN(len(serve))]
}

// leader implements scene.
func (w *single) leader(coordinator.ShardID) broker {
	if a := w.leads(); a != nil {
		return a
	}
	return nil
}

// mend implements scene.
func (w *single) mend() {
	for _, a := range w.agents {
		a.stalled = 0
	}
	if w.rng.IntN(2) == 0 {
		w.cutPower(w.rng.IntN(2) == 0)
		return
	}
	for _, a := range w.living() {
		w.kill(a)
	}
}

// recovered implements scene.
func (w *single) recovered() bool {
	if len(w.living()) == 0 {
		w.start()
	}
	return w.leads() != nil
}

// flush implements scene.
func (w *single) flush() func() bool { return w.leads().flushAll() }

// offsetIn implements scene.
func (w *single) offsetIn(it coordinator.Item) (int64, error) { return coordinator.Decode[int64](it) }

// restoring implements scene.
func (w *single) restoring() bool { return false }

// stopAll implements scene.
func (w *single) stopAll() {
	for _, m := range w.machines {
		w.stop(m)
	}
}
