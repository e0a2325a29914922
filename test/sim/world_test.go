package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
)

// world is everything that there is, and its scheduler. The scheduler is the only goroutine that touches it, but for parked.
type world struct {
	ctx     context.Context // of all that no agent asks for
	rng     *rand.Rand
	broken  breakage
	kv      *kvmem.Store
	bucket  *mem.Store
	topic   coordinator.Topic
	cluster coordinator.Cluster
	check   *checker
	load    *load

	machines []*machine
	agents   []*agent // those that live, and ended ones until they are cleared
	nextLog  coordinator.LogID

	mu     sync.Mutex
	parked []*call

	late    []lateWrite  // writes whose senders have given up, that may apply yet
	away    map[kind]int // until which step etcd or the bucket is away
	chances chances
	held    []func(*call) bool // calls that a script keeps from happening

	step  int
	trace uint64
	log   func(string) // nil: the trace is only hashed
}

// kind of thing that is called.
type kind string

const (
	kindKV     kind = "etcd"
	kindBucket kind = "bucket"
	kindDisk   kind = "disk"
	kindWatch  kind = "watch"
)

// call is a goroutine that waits for the scheduler.
type call struct {
	by   *process
	kind kind
	what string
	// ready says whether the call has anything to wait for that is there; nil: always.
	ready func() bool
	// run makes the call, on the scheduler's goroutine.
	run func(effect)
	// torn is what a disk may have done of a write when the power goes before run; nil for nothing.
	torn func() error
	// late is the write that may be on its way yet when its sender has died; nil for none.
	late func() lateWrite
	// notBefore is the step from which on it may happen; 0 until the scheduler has seen it.
	notBefore int
	done      chan struct{}
}

// effect is what becomes of a call.
type effect int

const (
	happens     effect = iota
	unavailable        // nothing happens, which the caller learns
	answerLost         // it happens, and the caller does not know
	comesLate          // it happens later or never, and the caller does not know
	failsHalf          // of a write to a disk: an error, and anything may be there
	noRoom             // of a transaction: etcd is full, and nothing happens
	noRoomLeft         // of a transaction: it happens, and etcd says that it is full
)

// lateWrite is a write on its way.
type lateWrite struct {
	what  string
	apply func()
}

// process is what can die: an agent, or a machine.
type process struct {
	name    string
	dead    bool // guarded by world.mu
	gone    chan struct{}
	stalled int // no call of it happens before this step
}

func newProcess(name string) process { return process{name: name, gone: make(chan struct{})} }

// chances are how likely trouble is in one run, in parts of a thousand and per step.
type chances struct {
	callFails, slow, stall, outage, power, kill, second, diskFails int
}

// newWorld makes a world with a cluster and a topic, and no agent.
func newWorld(ctx context.Context, seed uint64, broken breakage) *world {
	rng := rand.New(rand.NewPCG(seed, 0x51))
	w := &world{
		ctx: ctx, rng: rng, broken: broken, bucket: mem.New(), away: make(map[kind]int),
		kv:      kvmem.New(kvmem.Config{ClusterID: 1, Start: time.Now()}),
		topic:   coordinator.Topic{ID: protocol.TopicID{1: 7}, Name: "t", Partitions: partitions, Replication: 1},
		cluster: coordinator.Cluster{ID: protocol.TopicID{9: 9}.String(), Shards: shards, Generation: 1},
		trace:   fnv.New64a().Sum64(),
	}
	pick := func(of ...int) int { return of[rng.IntN(len(of))] }
	w.chances = chances{
		callFails: pick(0, 10, 50, 150), slow: pick(0, 10, 50), stall: pick(0, 2, 10), outage: pick(0, 1, 4),
		power: pick(0, 1, 3), kill: pick(0, 1, 3), second: pick(0, 2, 5), diskFails: pick(0, 0, 1),
	}
	w.check = newChecker(w)
	w.load = newLoad(w)
	_, err := w.kv.Txn(ctx, nil, []coordinator.Op{
		{Key: coordinator.KeyCluster, Value: coordinator.Encode(w.cluster)},
		{Key: coordinator.KeyTopic(w.topic.Name), Value: coordinator.Encode(w.topic)},
	})
	if err != nil {
		panic(err)
	}
	w.machines = []*machine{newMachine(w, seed)}
	return w
}

const (
	// healSteps is how long a world may take to come to rest; most need some hundred.
	healSteps  = 6000
	partitions = 3
	shards     = 2
)

// note adds a line to the trace.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%x %d %s", w.trace, w.step, line)
	w.trace = h.Sum64()
	if w.log != nil {
		w.log(fmt.Sprintf("%5d  %s", w.step, line))
	}
}

// call parks the caller until the scheduler has run c. It returns false if the process has died or ctx has ended before: then c does not run.
func (w *world) call(ctx context.Context, c *call) bool {
	c.done = make(chan struct{})
	w.mu.Lock()
	if c.by.dead {
		w.mu.Unlock()
		return false
	}
	w.parked = append(w.parked, c)
	w.mu.Unlock()
	select {
	case <-c.done:
		return true
	case <-c.by.gone:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.parked, c); i >= 0 {
		w.parked = slices.Delete(w.parked, i, i+1)
	}
	return false
}

// die ends a process: no call of it happens from now on.
func (w *world) die(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !p.dead {
		p.dead = true
		close(p.gone)
	}
}

// isDead reports whether a process has died.
func (w *world) isDead(p *process) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.dead
}

// settle lets all goroutines run until they park or wait, and takes what came of it to the clients.
func (w *world) settle() {
	synctest.Wait()
	w.load.poll()
	w.clear()
}

// eligible lets goroutines come to rest and returns the calls that may happen now, in an order that does not depend on goroutines.
func (w *world) eligible() []*call {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.parked, func(a, b *call) int {
		return strings.Compare(a.by.name+" "+a.what, b.by.name+" "+b.what)
	})
	var can []*call
	for _, c := range w.parked {
		stopped := slices.ContainsFunc(w.held, func(held func(*call) bool) bool { return held(c) })
		if c.notBefore == 0 {
			if c.notBefore = 1; w.rng.IntN(1000) < w.chances.slow {
				c.notBefore = w.step + 10 + w.rng.IntN(150)
			}
		}
		if c.by.stalled <= w.step && c.notBefore <= w.step && !stopped && (c.ready == nil || c.ready()) {
			can = append(can, c)
		}
	}
	return can
}

// grant lets a parked call happen.
func (w *world) grant(c *call, e effect) {
	w.mu.Lock()
	if i := slices.Index(w.parked, c); i >= 0 {
		w.parked = slices.Delete(w.parked, i, i+1)
	}
	w.mu.Unlock()
	if e == happens {
		w.note("%s: %s", c.by.name, c.what)
	} else {
		w.note("%s: %s: %v", c.by.name, c.what, e)
	}
	c.run(e)
	close(c.done)
}

func (e effect) String() string {
	return [...]string{"happens", "unavailable", "answer lost", "comes late", "fails half", "no room", "no room left"}[e]
}

// draw says what becomes of a call.
func (w *world) draw(c *call) effect {
	switch {
	case c.kind == kindWatch:
		return happens
	case c.kind == kindDisk:
		if w.rng.IntN(2000) < w.chances.diskFails {
			return failsHalf
		}
		return happens
	case w.away[c.kind] > w.step:
		return []effect{unavailable, unavailable, unavailable, comesLate}[w.rng.IntN(4)]
	case c.kind == kindKV && w.rng.IntN(2000) < w.chances.callFails:
		return []effect{noRoom, noRoomLeft}[w.rng.IntN(2)]
	case w.rng.IntN(1000) < w.chances.callFails:
		return []effect{unavailable, answerLost, comesLate}[w.rng.IntN(3)]
	}
	return happens
}

// drop gives the write of a sender that has stopped waiting its chance to apply later.
func (w *world) drop(l lateWrite) {
	if w.rng.IntN(2) == 0 {
		w.late = append(w.late, l)
	}
}

// pass lets time pass: timers fire.
func (w *world) pass(d time.Duration) {
	w.note("%v pass", d)
	time.Sleep(d)
}

// run is one world from its beginning to its end. It returns what it found.
func run(t *testing.T, seed uint64, broken breakage, steps int, log func(string)) (findings []string, trace uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t.Context(), seed, broken)
		w.log = log
		defer w.end()
		for w.step = 1; w.step <= steps && !w.check.failed(); w.step++ {
			w.settle()
			w.act()
		}
		if !w.check.failed() {
			w.heal()
		}
		findings, trace = w.check.findings, w.trace
	})
	return findings, trace
}

// act does one thing.
func (w *world) act() {
	if w.trouble() {
		return
	}
	can := w.eligible()
	n := w.rng.IntN(100)
	switch {
	case n < 12, n < 60 && len(can) == 0:
		w.load.act()
	case n < 14 && len(w.late) > 0:
		w.applyLate()
	case n < 17 || len(can) == 0:
		w.pass([]time.Duration{time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond, time.Second, 4 * time.Second}[w.rng.IntN(5)])
	default:
		c := can[w.rng.IntN(len(can))]
		w.grant(c, w.draw(c))
	}
}

// applyLate applies one of the writes that are on their way.
func (w *world) applyLate() {
	i := w.rng.IntN(len(w.late))
	l := w.late[i]
	w.late = slices.Delete(w.late, i, i+1)
	w.note("late: %s", l.what)
	l.apply()
}

// trouble is what happens by itself. It reports whether anything did.
func (w *world) trouble() bool {
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

// heal ends all trouble, crashes the machine once more, and brings everything to rest: an agent serves, clients have their answers, all is flushed. Then it
// reads everything back.
func (w *world) heal() {
	w.chances, w.away = chances{}, make(map[kind]int)
	for _, a := range w.agents {
		a.stalled = 0
	}
	w.note("heal")
	for len(w.late) > 0 && w.rng.IntN(3) > 0 {
		w.applyLate()
	}
	w.late = nil
	if w.rng.IntN(2) == 0 {
		w.cutPower(w.rng.IntN(2) == 0)
	} else {
		for _, a := range w.living() {
			w.kill(a)
		}
	}
	ok := w.until(healSteps, func() bool {
		if len(w.living()) == 0 {
			w.start()
		}
		leader := w.leader()
		return leader != nil && w.load.finish(leader)
	})
	if w.check.failed() {
		return
	}
	if !ok {
		w.check.report("liveness: %d steps after the last trouble clients still wait: %s", healSteps, w.load.waiting())
		return
	}
	flushed := w.leader().flushAll()
	if !w.until(healSteps, flushed) {
		w.check.report("liveness: the flush does not end")
		return
	}
	w.check.final()
}

// until lets calls happen until cond holds, without trouble. It reports whether it came to hold.
func (w *world) until(steps int, cond func() bool) bool {
	for range steps {
		w.step++
		w.settle()
		if cond() {
			return true
		}
		if w.check.failed() {
			return false
		}
		can := w.eligible()
		if len(can) == 0 || w.rng.IntN(20) == 0 {
			w.pass(100 * time.Millisecond)
			continue
		}
		c := can[w.rng.IntN(len(can))]
		w.grant(c, happens)
	}
	return false
}

// end kills everything, so that no goroutine remains.
func (w *world) end() {
	synctest.Wait()
	for _, m := range w.machines {
		w.stop(m)
	}
	synctest.Wait()
}
