package rebuild

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
)

// past is an etcd that can be set back.
type past struct {
	*kvmem.Store
	applied [][]coordinator.Op                         // from revision 2 on
	gave    map[coordinator.LastCopy]map[string]string // what it had when it gave a copy its number
}

func (p *past) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	res, err := p.Store.Txn(ctx, compares, ops)
	if err != nil || !res.Succeeded {
		return res, err
	}
	p.applied = append(p.applied, ops)
	if ops[0].Key != coordinator.KeyLastCopy {
		return res, nil
	}
	last, err := lastCopy(ctx, p.Store)
	if err == nil {
		p.gave[last], err = p.at(ctx, 0)
	}
	return res, err
}

// at returns what of it is copied as of a revision; 0 for the newest.
func (p *past) at(ctx context.Context, revision int64) (map[string]string, error) {
	items, _, err := p.Store.List(ctx, "", revision)
	if err != nil {
		return nil, err
	}
	state, _, err := lasting(items)
	return valuesOf(state), err
}

func valuesOf(items []backup.Item) map[string]string {
	all := make(map[string]string)
	for _, it := range items {
		all[it.Key] = string(it.Value)
	}
	return all
}

// stall has something happen before one of a copier's calls, counted from 0.
type stall struct {
	at int
	do func()
}

const never = -1

func (s *stall) call() {
	if s.at--; s.at == -1 {
		s.do()
	}
}

// stalledKV is etcd, and stalledBucket the bucket, as a copier that stalls reaches them. It does not notice that revisions fall: nothing says that it has seen a higher one.
type stalledKV struct {
	*past
	*stall
}

func (k stalledKV) Get(ctx context.Context, key string) (coordinator.Item, int64, error) {
	k.call()
	return k.past.Get(ctx, key)
}

func (k stalledKV) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	k.call()
	return k.past.List(ctx, prefix, rev)
}

func (k stalledKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	k.call()
	return k.past.Txn(ctx, compares, ops)
}

type stalledBucket struct {
	objectstore.Store
	*stall
}

func (b stalledBucket) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	b.call()
	return b.Store.List(ctx, prefix, after)
}

func (b stalledBucket) Put(ctx context.Context, name string, body objectstore.Body) error {
	b.call()
	return b.Store.Put(ctx, name, body)
}

// rivals are copiers of one cluster.
type rivals struct {
	*lab
	etcd   *past
	writes int
}

func newRivals(t *testing.T) *rivals {
	r := &rivals{lab: newLab(t), etcd: &past{Store: kvmem.New(kvmem.Config{}), gave: make(map[coordinator.LastCopy]map[string]string)}}
	r.apply(coordinator.Op{Key: coordinator.KeyCluster, Value: coordinator.Encode(coordinator.Cluster{ID: cluster.String(), Shards: 2})})
	return r
}

func (r *rivals) apply(op coordinator.Op) {
	r.t.Helper()
	if _, err := r.etcd.Txn(r.t.Context(), nil, []coordinator.Op{op}); err != nil {
		r.t.Fatal(err)
	}
}

// write writes what was never written before.
func (r *rivals) write() {
	r.writes++
	r.apply(coordinator.Op{Key: coordinator.KeyGroup("g"), Value: fmt.Append(nil, r.writes)})
}

// copy has a copier of its own make a copy, and something happen before one of its calls.
func (r *rivals) copy(at int, do func()) error {
	s := stall{at, do}
	return NewCopier(time.Minute, CopierDeps{
		KV: stalledKV{r.etcd, &s}, Store: stalledBucket{r.store, &s}, Cluster: cluster, Elected: func() bool { return true }, Agents: func() []coordinator.Agent { return nil },
		Nonce: r.nonce, Now: func() time.Time { return r.now }, Log: slog.New(slog.DiscardHandler),
	}).Step(r.t.Context())
}

// goOn writes, and has what was written copied, or not.
func (r *rivals) goOn(copied bool) {
	r.t.Helper()
	r.write()
	if copied {
		if err := r.copy(never, nil); err != nil {
			r.t.Fatal(err)
		}
		r.write()
	}
}

// setBack has etcd be as it was so many revisions ago.
func (r *rivals) setBack(by int) {
	before := r.etcd.applied[:max(1, len(r.etcd.applied)-by)]
	r.etcd.Store, r.etcd.applied = kvmem.New(kvmem.Config{}), nil
	for _, ops := range before {
		r.apply(ops[0])
	}
}

// interleaving is how two copiers stall, the second while the first does, and etcd is set back while both do.
type interleaving struct {
	first, second int  // calls before which they do, counted from 0
	early, late   bool // others copy while the first one stalls alone; while both do
	by            int  // revisions by which etcd is set back
	writes        int  // to it then: it comes beyond what it was, or not
}

// played is what came of an interleaving.
type played struct {
	first, second bool      // that copier has so many calls
	newest        backup.ID // copy when etcd was set back
	lacks         bool      // etcd lacked something of it then
}

// play plays it, in an etcd of which there is a copy.
func (r *rivals) play(x interleaving) (p played) {
	r.goOn(true)
	first := r.copy(x.first, func() {
		p.first = true
		r.goOn(x.early)
		second := r.copy(x.second, func() {
			p.second = true
			r.goOn(x.late)
			all := r.copies()
			p.newest = all[len(all)-1].ID
			r.setBack(x.by)
			p.lacks = int64(1+len(r.etcd.applied)) < p.newest.Revision
			for range x.writes {
				r.write()
			}
		})
		r.innocent(x, second)
	})
	r.innocent(x, first)
	return p
}

// innocent wants no copier to end that has not seen etcd set back.
func (r *rivals) innocent(x interleaving, err error) {
	if err != nil && (x.by == 0 || !errors.Is(err, ErrSetBack)) {
		r.t.Fatalf("%+v: a copier ends with %v", x, err)
	}
}

// judge looks what an agent finds that starts, and a copier, again and again: if etcd lacks something that the newest copy had, or any copy has, they notice that it was set back, the newest copy remains the one to restore, and each
// has what etcd had when it gave the number; if etcd was not set back, nothing is noticed. It reports whether something was.
func (r *rivals) judge(x interleaving, p played) (noticed bool) {
	for range 2 {
		copies := r.copies()
		_, err := Compare(r.t.Context(), r.etcd, copies)
		noticed = err != nil
		if best := copies[len(copies)-1].ID; noticed && p.lacks && best != p.newest && best.Number <= p.newest.Number {
			r.t.Fatalf("%+v: copy %+v would be restored, the newest was %+v", x, best, p.newest)
		}
		if noticed && (x.by == 0 || !errors.Is(err, ErrSetBack)) || !noticed && p.lacks {
			r.t.Fatalf("%+v: an agent finds %v; the newest copy was %+v, now there are %+v", x, err, p.newest, copies)
		}
		for _, c := range copies {
			r.compare(x, c, !noticed)
		}
		if again := r.copy(never, nil); noticed != errors.Is(again, ErrSetBack) {
			r.t.Fatalf("%+v: an agent finds %v, a copier %v", x, err, again)
		}
	}
	return noticed
}

// compare holds a copy against what etcd had when it gave the number, and what it has now of that revision, if it is current.
func (r *rivals) compare(x interleaving, c Copy, current bool) {
	state, err := loadOne(r.t.Context(), r.store, c)
	if err != nil {
		r.t.Fatal(err)
	}
	got := valuesOf(state.Items)
	if want := r.etcd.gave[coordinator.LastCopy{Number: c.ID.Number, Nonce: c.ID.Nonce}]; !maps.Equal(got, want) {
		r.t.Fatalf("%+v: copy %+v has %v, etcd gave the number when it had %v", x, c.ID, got, want)
	}
	if !current {
		return
	}
	if want, err := r.etcd.at(r.t.Context(), c.ID.Revision); err != nil || !maps.Equal(got, want) {
		r.t.Fatalf("%+v: not noticed, though copy %+v has %v, and etcd had %v, %v", x, c.ID, got, want, err)
	}
}

// TestSetBack has two copiers stall before any of their calls, the second while the first does, and others copy meanwhile, or write alone. Then etcd is set back to any revision, and others write; and then both copiers go on.
func TestSetBack(t *testing.T) {
	noticed, passed := 0, 0
	for x := (interleaving{}); ; x.first++ {
		first := true
		for x.second = 0; ; x.second++ {
			second := true
			for n := range 2 * 2 * 14 * 2 {
				x.early, x.late, x.by, x.writes = n%2 > 0, n/2%2 > 0, n/4%14, []int{0, 9}[n/56]
				r := newRivals(t)
				p := r.play(x)
				if first, second = p.first, p.second; !second {
					break
				}
				if r.judge(x, p) {
					noticed++
				} else {
					passed++
				}
			}
			if !second {
				break
			}
		}
		if !first {
			break
		}
	}
	t.Logf("noticed %d times, not noticed %d times", noticed, passed)
	if noticed < 1000 || passed < 1000 {
		t.Error("this shows little")
	}
}
