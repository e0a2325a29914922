package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/wal/disk"
)

// seedsPerRestore is how many worlds of one machine are run for each cluster that loses etcd.
const seedsPerRestore = 15

// TestRestore runs clusters that lose etcd, by seed.
//
// The seeds are the same ones each time: in three worlds of 700, or so, the logs from before wait for an operator's --accept-loss, though no disk is lost (agent/DESIGN.md, "From before a restore"), which nobody gives here.
func TestRestore(t *testing.T) {
	if *seed != 0 {
		runSeeds(t, restored, 1)
		return
	}
	runFrom(t, restored, 1, *seeds/seedsPerRestore, nil)
}

// TestSameRestoreSameTrace is TestSameSeedSameTrace for clusters that lose etcd.
func TestSameRestoreSameTrace(t *testing.T) {
	sameTraces(t, restored, 3) // the third of which does
}

// calmBefore is for how many steps nothing goes wrong before a loss, if need be: so that there is a copy that has everybody's log.
const calmBefore = 1200

// restored is the maker of clusters that lose etcd, all of whose disks stay. It is rebuilt from the bucket.
func restored(ctx context.Context, seed uint64, broken breakage) *world {
	w := clusters(ctx, seed, broken)
	c := w.scene.(*cluster)
	if seed%2 == 0 {
		w.steps = 5000
		c.transact()
	}
	w.rests = 3 * healSteps // each recovery of a log from before asks all disks
	c.chances.lose = 0
	c.copyPause = []time.Duration{time.Second, 5 * time.Second, 20 * time.Second}[c.rng.IntN(3)]
	c.lossFrom = 300 + c.rng.IntN(w.steps-1800)
	w.check.restores = true
	return w
}

// loss is a loss of etcd, and what an operator does about it.
type loss struct {
	c      *cluster
	copied *copied // from which it will be rebuilt
	// back: etcd is as it was once. Agents find that out by themselves, and end; else it has nothing, and they have ended.
	back     bool
	open     bool // they may start anew
	missing  bool // what is missing may be
	restorer *restorer
}

// restorer is a run of `varve restore`.
type restorer struct {
	process
	cancel context.CancelFunc
	over   atomic.Bool
	report *rebuild.Report
	err    error
}

// copied is a copy of etcd in the bucket.
type copied struct {
	id    backup.ID
	items map[string]backup.Item
	past  coordinator.LogID
}

// newestCopy reads the newest copy up to a number that is whole, past all faults; nil if there is none.
func (c *cluster) newestCopy(upTo uint64) *copied {
	all, err := rebuild.Copies(c.ctx, c.bucket)
	if err != nil {
		panic(err)
	}
	for _, one := range slices.Backward(all) {
		b := make([]byte, one.Pages[0].Size)
		if err := c.bucket.Get(c.ctx, one.Pages[0].Name, 0, b); err != nil {
			panic(err)
		}
		page, err := backup.Parse(b)
		if err != nil {
			panic(err)
		}
		if !page.Last || one.ID.Number > upTo {
			continue
		}
		x := &copied{id: one.ID, items: make(map[string]backup.Item)}
		for _, it := range page.Items {
			x.items[it.Key] = it
		}
		if it, ok := x.items[coordinator.KeyPastLog]; ok {
			x.past, err = coordinator.Decode[coordinator.LogID](coordinator.Item{Key: it.Key, Value: it.Value})
			if err != nil {
				panic(err)
			}
		}
		return x
	}
	return nil
}

// knows reports whether the copy has a log as open, or as over.
func (x *copied) knows(id coordinator.LogID) bool {
	_, ok := x.items[coordinator.KeyLog(id)]
	return ok || id < x.past
}

// log returns a log's record; zero if the copy has none.
func (x *copied) log(id coordinator.LogID) (l coordinator.Log) {
	it, ok := x.items[coordinator.KeyLog(id)]
	if !ok {
		return l
	}
	l, err := coordinator.Decode[coordinator.Log](coordinator.Item{Key: it.Key, Value: it.Value})
	if err != nil {
		panic(err)
	}
	return l
}

// mayLoseEtcd returns the copy from which etcd would be rebuilt, if that is certain to bring back all that was acknowledged: it knows all logs that are open, and those of which there is something on a
// disk. Else nil.
func (c *cluster) mayLoseEtcd() *copied {
	x := c.newestCopy(math.MaxUint64)
	if x == nil {
		return nil
	}
	for id, l := range c.check.logs {
		if !l.Closed && !x.knows(id) {
			return nil
		}
	}
	for id := range c.check.logs {
		if l := x.log(id); l.ID != 0 && !l.Closed && id < c.check.old { // what was to be recovered after the loss before has been, and the copy says so
			return nil
		}
	}
	for _, m := range c.machines {
		for _, s := range m.holds() {
			if id := coordinator.LogID(s.ID.Log); c.check.logs[id].ID == id && !x.knows(id) { // others were never used
				return nil
			}
		}
	}
	return x
}

// holds returns what a machine's disk has, or had when somebody looked last.
func (m *host) holds() []disk.SegmentInfo {
	if s := m.node.store.Load(); s != nil {
		return s.Segments()
	}
	return m.held
}

// loseEtcd has etcd lose everything, or what it had since some revision.
func (c *cluster) loseEtcd(x *copied) {
	if c.rng.IntN(2) > 0 || !c.setBack(x, 1+c.rng.Int64N(x.id.Revision)) {
		c.wipe(x)
	}
}

// wipe has etcd lose everything. All agents have ended.
func (c *cluster) wipe(x *copied) {
	c.note("etcd is lost at revision %d; the newest copy is %d, of revision %d", c.revision(), x.id.Number, x.id.Revision)
	c.loss = &loss{c: c, copied: x}
	c.kv = kvmem.New(kvmem.Config{ClusterID: 2, Start: time.Now()})
	c.loss.endAll()
}

// setBack has etcd be again as it was at a revision. Agents live. It reports whether that is possible.
func (c *cluster) setBack(x *copied, revision int64) bool {
	old := c.before(x, revision)
	if old == nil {
		return false
	}
	c.note("etcd is set back to revision %d, from %d; the newest copy is %d", revisionOf(old), c.revision(), x.id.Number)
	c.loss = &loss{c: c, copied: x, back: true, open: true}
	c.kv = old
	for _, n := range c.living() {
		if n.seen < revisionOf(old)+setBackMin { // nothing tells it, unless it becomes the controller
			c.kill(n, false)
		}
	}
	return true
}

// setBackMin is by how much etcd is set back at least. All agents write once more before they learn of it, and who asks last must not find it beyond what it has seen.
const setBackMin = 40

func revisionOf(kv *kvmem.Store) int64 {
	status, err := kv.Status(context.Background())
	if err != nil {
		panic(err)
	}
	return status.Revision
}

// before returns an etcd as it was at a revision, at which it had not yet given the number of a copy, and that no lease has outlived; nil if that is forgotten.
func (c *cluster) before(x *copied, revision int64) *kvmem.Store {
	items, _, err := c.kv.List(c.ctx, "", revision)
	if err != nil {
		return nil
	}
	var given coordinator.LastCopy
	for _, it := range items {
		if it.Key == coordinator.KeyLastCopy {
			if given, err = coordinator.Decode[coordinator.LastCopy](it); err != nil {
				panic(err)
			}
		}
	}
	if given.Number >= x.id.Number {
		return nil
	}
	old := kvmem.New(kvmem.Config{ClusterID: 1, Start: time.Now()})
	write := func(ops ...coordinator.Op) {
		if _, err := old.Txn(c.ctx, nil, ops); err != nil {
			panic(err)
		}
	}
	slices.SortStableFunc(items, func(a, b coordinator.Item) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	const filler = "filler"
	items = slices.DeleteFunc(items, func(it coordinator.Item) bool { return it.Lease != 0 || it.Key == filler })
	for r := int64(2); r < revision; r++ {
		ops := []coordinator.Op{{Key: filler, Value: fmt.Append(nil, r)}}
		for ; len(items) > 0 && items[0].ModRevision == r; items = items[1:] {
			ops = append(ops, coordinator.Op{Key: items[0].Key, Value: items[0].Value})
		}
		write(ops...)
	}
	last := []coordinator.Op{{Key: filler, Delete: true}}
	for _, it := range items {
		last = append(last, coordinator.Op{Key: it.Key, Value: it.Value})
	}
	write(last...)
	for newest, id := grant(c.ctx, c.kv), int64(0); id < newest; { // so that leases that were granted are not granted again
		id = grant(c.ctx, old)
	}
	return old
}

// grant grants a lease, and revokes it.
func grant(ctx context.Context, kv *kvmem.Store) int64 {
	id, err := kv.Grant(ctx, 2)
	if err == nil {
		err = kv.Revoke(ctx, id)
	}
	if err != nil {
		panic(err)
	}
	return id
}

// endAll ends all agents, which do not start again before etcd is rebuilt.
func (l *loss) endAll() {
	l.open = false
	for _, n := range l.c.living() {
		l.c.kill(n, l.c.rng.IntN(2) == 0)
	}
}

// act goes on with the rebuilding, or has it break off. It reports whether anything was done.
func (l *loss) act() bool {
	rng := l.c.rng
	switch {
	case l.open && rng.IntN(400) == 0:
		l.endAll()
	case l.open || len(l.c.living()) > 0:
		return false
	case l.restorer == nil:
		if rng.IntN(40) > 0 {
			return false
		}
		l.begin()
	case l.restorer.over.Load():
		l.ended()
	case rng.IntN(150) == 0:
		l.c.note("%s is killed", l.restorer.name)
		l.c.abandon(&l.restorer.process)
		l.restorer.cancel()
		l.restorer = nil
	default:
		return false
	}
	return true
}

// hurry goes on with the rebuilding.
func (l *loss) hurry() {
	switch {
	case len(l.c.living()) > 0:
		l.endAll()
	case l.restorer == nil:
		l.begin()
	case l.restorer.over.Load():
		l.ended()
	}
}

// begin begins to restore.
func (l *loss) begin() {
	l.c.starts++
	r := &restorer{process: newProcess(fmt.Sprintf("r%d", l.c.starts))}
	l.restorer = r
	l.c.note("%s begins to restore", r.name)
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(l.c.ctx)
	kv := &agentKV{Store: l.c.kv, w: l.c.world, by: &r.process}
	bucket := &restorerBucket{agentBucket{Store: l.c.bucket, w: l.c.world, by: &r.process}}
	o := rebuild.Options{Repair: l.back, AcceptMissing: l.missing, Secret: []byte("a secret of 32 bytes or the like"), Log: discard}
	if l.c.log != nil {
		o.Log = slog.New(slog.NewTextHandler(asideOf{l.c.world, r.name}, nil))
	}
	go func() {
		defer r.over.Store(true)
		r.report, r.err = rebuild.Restore(ctx, kv, bucket, o)
	}()
}

// asideOf is what somebody says.
type asideOf struct {
	w    *world
	name string
}

func (a asideOf) Write(p []byte) (int, error) {
	a.w.aside("%s says: %s", a.name, strings.TrimSpace(string(p)))
	return len(p), nil
}

// ended looks at what came of it.
func (l *loss) ended() {
	r := l.restorer
	l.restorer = nil
	r.cancel()
	l.c.die(&r.process)
	l.c.note("%s ends", r.name)
	l.c.aside("%s: %+v, %v", r.name, r.report, r.err)
	switch {
	case errors.Is(r.err, rebuild.ErrCurrent) && !l.rebuilt():
		l.c.check.report("a restore takes an etcd for current that was set back: %v", r.err)
	case r.err == nil, errors.Is(r.err, rebuild.ErrCurrent): // by one that was killed
		number := uint64(math.MaxUint64) // one that was on its way may have arrived
		if r.err == nil {
			number = r.report.Copy.Number
		}
		l.copied, l.c.loss = l.c.newestCopy(number), nil
		l.c.check.restored(l)
	case errors.Is(r.err, rebuild.ErrMissing):
		for _, what := range r.report.Missing {
			if !strings.Contains(what, "was opened after the copy was made") { // such logs are closed
				l.c.check.report("1: a restore misses %s", what)
			}
		}
		l.missing = true
	}
}

// rebuilt reports whether a restore has come to its end.
func (l *loss) rebuilt() bool {
	cluster := func(key string, value []byte) coordinator.Cluster {
		c, err := coordinator.Decode[coordinator.Cluster](coordinator.Item{Key: key, Value: value})
		if err != nil {
			panic(err)
		}
		return c
	}
	item, _, err := l.c.kv.Get(l.c.ctx, coordinator.KeyCluster)
	if err != nil {
		panic(err)
	}
	return cluster(item.Key, item.Value).Generation > cluster(item.Key, l.copied.items[coordinator.KeyCluster].Value).Generation
}
