package sim

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime/pprof"
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

// scene is what lives in a world.
type scene interface {
	// trouble is what happens by itself. It reports whether anything did.
	trouble() bool
	// clear takes note of what has ended.
	clear()
	// choose returns an agent that a client may take for the leader of a shard; nil if nobody serves.
	choose(coordinator.ShardID) broker
	// leader returns the agent that serves and leads the shard, as etcd says; nil if there is none.
	leader(coordinator.ShardID) broker
	// mend ends all trouble, and then ends some or all agents.
	mend()
	// recovered starts what does not run, and reports whether everything serves.
	recovered() bool
	// flush begins to flush everything; done tells whether it is.
	flush() (done func() bool)
	// offsetIn decodes a consumer offset.
	offsetIn(coordinator.Item) (int64, error)
	// restoring reports whether etcd is lost, and not yet rebuilt.
	restoring() bool
	// stopAll kills everything, so that no goroutine remains.
	stopAll()
}

// world is everything that there is, and its scheduler. The scheduler is the only goroutine that touches it, but for parked.
type world struct {
	scene
	ctx     context.Context // of all that no agent asks for
	rng     *rand.Rand
	broken  breakage
	kv      *kvmem.Store
	bucket  *mem.Store
	topic   coordinator.Topic
	cluster coordinator.Cluster
	check   *checker
	load    *load

	compacted bool // the topic is

	mu     sync.Mutex
	parked []*call

	late    []lateWrite  // writes whose senders have given up, that may apply yet
	away    map[kind]int // until which step etcd or the bucket is away
	chances chances
	held    []func(*call) bool // calls that a script keeps from happening
	passes  []time.Duration    // how much time passes at once

	step  int
	steps int // before it heals
	rests int // steps that it may take then
	trace uint64
	log   func(string) // nil: the trace is only hashed

	saying sync.Mutex // of who calls log
}

// kind of thing that is called.
type kind string

const (
	kindKV     kind = "etcd"
	kindBucket kind = "bucket"
	kindDisk   kind = "disk"
	kindWatch  kind = "watch"
	kindNet    kind = "network"
)

// call is a goroutine that waits for the scheduler.
type call struct {
	by   *process
	kind kind
	what string
	who  string // which goroutine of the process; empty if it is the only one that calls this
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
	twice              // of a request to another machine: it arrives, and perhaps once more later
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
	stalled int          // no call of it happens before this step
	hung    int          // nor any of its disk before this one
	away    map[kind]int // until which step it alone does not reach etcd or the bucket
	seen    int64        // the highest revision that etcd has answered
}

func newProcess(name string) process {
	return process{name: name, gone: make(chan struct{}), away: make(map[kind]int)}
}

// chances are how likely trouble is in one run, in parts of a thousand and per step.
type chances struct {
	callFails, slow, stall, outage, power, kill, second, diskFails int
	// of a cluster
	netFails, cut, drain, lose, apart, full, hang, jump, compact, policy int
}

// newWorld makes a world with a cluster of so many shards and a topic, and nobody in it.
func newWorld(ctx context.Context, seed uint64, broken breakage, shards uint32) *world {
	rng := rand.New(rand.NewPCG(seed, 0x51))
	w := &world{
		ctx: ctx, rng: rng, broken: broken, bucket: mem.New(), away: make(map[kind]int), rests: healSteps,
		kv:      kvmem.New(kvmem.Config{ClusterID: 1, Start: time.Now()}),
		topic:   coordinator.Topic{ID: protocol.TopicID{1: 7}, Name: "t", Partitions: partitions, Replication: 1},
		cluster: coordinator.Cluster{ID: protocol.TopicID{9: 9}.String(), Shards: shards, Generation: 1},
		trace:   fnv.New64a().Sum64(),
		passes:  []time.Duration{time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond, time.Second, 4 * time.Second},
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
	return w
}

const (
	// healSteps is how long a world may take to come to rest, unless it says otherwise; most need some hundred.
	healSteps  = 6000
	partitions = 3
)

// shardOf returns the shard of a partition of the topic.
func (w *world) shardOf(number int32) coordinator.ShardID {
	return w.topic.ShardOf(number, w.cluster.Shards)
}

// owns reports whether an agent leads a shard, as etcd says.
func (w *world) owns(b broker, shard coordinator.ShardID) bool { return w.leader(shard) == b }

// shard reads a shard's record.
func (w *world) shard(id coordinator.ShardID) (s coordinator.Shard) {
	item, _, err := w.kv.Get(w.ctx, coordinator.KeyShard(id))
	if err == nil && item.ModRevision != 0 {
		s, err = coordinator.Decode[coordinator.Shard](item)
	}
	if err != nil {
		panic(err)
	}
	return s
}

// note adds a line to the trace.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%x %d %s", w.trace, w.step, line)
	w.trace = h.Sum64()
	w.say(fmt.Sprintf("%5d  %s", w.step, line))
}

// say logs a line. It may be called concurrently.
func (w *world) say(line string) {
	if w.log != nil {
		w.saying.Lock()
		defer w.saying.Unlock()
		w.log(line)
	}
}

const asidePrefix = "    -- "

// aside tells something beside the trace.
func (w *world) aside(format string, args ...any) {
	w.say(asidePrefix + fmt.Sprintf(format, args...))
}

// call parks the caller until the scheduler has run c. It returns false if the process has died or ctx has ended before: then c does not run.
func (w *world) call(ctx context.Context, c *call) bool {
	c.done = make(chan struct{})
	if who, ok := pprof.Label(ctx, "varve"); ok {
		c.who = ", to " + who
	}
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

// abandon ends a process as SIGKILL does: what it has sent may still arrive.
func (w *world) abandon(p *process) {
	for _, c := range w.eligible() {
		if c.by == p && c.late != nil {
			w.drop(c.late())
		}
	}
	w.die(p)
}

// isDead reports whether a process has died.
func (w *world) isDead(p *process) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return p.dead
}

// settle lets all goroutines run until they park or wait, and takes what came of it to the clients.
func (w *world) settle() {
	// Timers that end at the same instant fire in an order that no seed decides; those that began in different steps do not end so.
	time.Sleep(time.Microsecond)
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
		return cmp.Or(strings.Compare(a.by.name, b.by.name), strings.Compare(a.what, b.what), strings.Compare(a.who, b.who))
	})
	var can []*call
	for _, c := range w.parked {
		stopped := slices.ContainsFunc(w.held, func(held func(*call) bool) bool { return held(c) })
		if c.notBefore == 0 {
			if c.notBefore = 1; w.rng.IntN(1000) < w.chances.slow {
				c.notBefore = w.step + 10 + w.rng.IntN(150)
			}
		}
		stopped = stopped || c.by.stalled > w.step || c.kind == kindDisk && c.by.hung > w.step
		if c.notBefore <= w.step && !stopped && (c.ready == nil || c.ready()) {
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
		w.note("%s: %s%s", c.by.name, c.what, c.who)
	} else {
		w.note("%s: %s%s: %v", c.by.name, c.what, c.who, e)
	}
	c.run(e)
	close(c.done)
}

func (e effect) String() string {
	return [...]string{"happens", "unavailable", "answer lost", "comes late", "twice", "fails half", "no room", "no room left"}[e]
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
	case w.away[c.kind] > w.step, c.by.away[c.kind] > w.step:
		return []effect{unavailable, unavailable, unavailable, comesLate}[w.rng.IntN(4)]
	case c.kind == kindNet:
		if w.rng.IntN(1000) < w.chances.netFails {
			return []effect{unavailable, answerLost, comesLate, twice}[w.rng.IntN(4)]
		}
		return happens
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
	w.kv.Advance(time.Now())
}

// maker makes a world with something in it.
type maker func(ctx context.Context, seed uint64, broken breakage) *world

// run is one world from its beginning to its end. It returns what it found.
func run(t *testing.T, create maker, seed uint64, broken breakage, log func(string)) (findings []string, trace uint64) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := create(t.Context(), seed, broken)
		w.log = log
		defer w.end()
		for w.step = 1; w.step <= w.steps && !w.check.failed(); w.step++ {
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
		w.pass(w.passes[w.rng.IntN(len(w.passes))])
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

// heal ends all trouble, crashes once more, and brings everything to rest: agents serve, clients have their answers, all is flushed. Then it reads everything
// back.
func (w *world) heal() {
	w.chances, w.away = chances{}, make(map[kind]int)
	w.note("heal")
	for len(w.late) > 0 && w.rng.IntN(3) > 0 {
		w.applyLate()
	}
	w.late = nil
	w.mend()
	ok := w.until(w.rests, func() bool { return w.recovered() && w.load.finish() })
	if w.check.failed() {
		return
	}
	if !ok {
		w.check.report("liveness: %d steps after the last trouble clients still wait: %s", w.rests, w.load.waiting())
		return
	}
	if !w.until(w.rests, w.flush()) {
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
		if c.kind != kindWatch && c.by.away[c.kind] > w.step {
			w.grant(c, unavailable)
		} else {
			w.grant(c, happens)
		}
	}
	return false
}

// end kills everything, so that no goroutine remains.
func (w *world) end() {
	synctest.Wait()
	w.stopAll()
	synctest.Wait()
}
