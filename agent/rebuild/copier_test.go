package rebuild

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
)

var cluster = protocol.TopicID{0xc1}

// lab is an etcd and a bucket.
type lab struct {
	t     *testing.T
	kv    *kvmem.Store
	store *mem.Store
	now   time.Time

	agents []coordinator.Agent
	nonces uint64 // that were given
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, kv: kvmem.New(kvmem.Config{}), store: mem.New(), now: time.Unix(1_700_000_000, 0)}
	l.write(coordinator.KeyCluster, coordinator.Cluster{ID: cluster.String(), Shards: 2, Secret: []byte("secret")})
	return l
}

func (l *lab) write(key string, value any) {
	l.t.Helper()
	b, ok := value.([]byte)
	if !ok {
		b = coordinator.Encode(value)
	}
	if _, err := l.kv.Txn(l.t.Context(), nil, []coordinator.Op{{Key: key, Value: b}}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) nonce() uint64 {
	l.nonces++
	return l.nonces
}

func (l *lab) copier() *Copier {
	return NewCopier(time.Minute, CopierDeps{
		KV: l.kv, Store: l.store, Cluster: cluster, Elected: func() bool { return true }, Agents: func() []coordinator.Agent { return l.agents }, Nonce: l.nonce, Now: func() time.Time { return l.now }, Log: slog.New(slog.DiscardHandler),
	})
}

func (l *lab) copies() []Copy {
	l.t.Helper()
	all, err := Copies(l.t.Context(), l.store)
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

func (l *lab) step(c *Copier) {
	l.t.Helper()
	if err := c.Step(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

// TestCopier: it copies when it begins and then when something has changed, and keeps so many.
func TestCopier(t *testing.T) {
	l := newLab(t)
	lease, err := l.kv.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyAgent(1), Value: []byte("{}"), Lease: lease}}); err != nil {
		t.Fatal(err)
	}
	l.write(coordinator.KeyMove(1), coordinator.Move{To: 1})
	c := l.copier()
	l.step(c)
	l.step(c) // not yet
	l.now = l.now.Add(time.Minute)
	l.step(c) // nothing new
	if n := len(l.copies()); n != 1 {
		t.Fatalf("%d copies, want 1", n)
	}
	for _, page := range l.copies()[0].Pages {
		if err := l.store.Delete(t.Context(), page.Name); err != nil {
			t.Fatal(err)
		}
	}
	l.now = l.now.Add(time.Minute)
	l.step(c)
	if n := len(l.copies()); n != 1 {
		t.Fatalf("%d copies after somebody deleted the only one, want 1", n)
	}
	state, err := load(t.Context(), l.store, l.copies())
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, it := range state.Items {
		keys = append(keys, it.Key)
	}
	if want := []string{coordinator.KeyCluster}; !slices.Equal(keys, want) {
		t.Errorf("copied %v, want %v", keys, want)
	}
	if got := string(state.Items[0].Value); got != string(coordinator.Encode(coordinator.Cluster{ID: cluster.String(), Shards: 2})) {
		t.Errorf("the cluster's copy is %s", got)
	}
	for i := range copiesKept + 3 {
		l.write(coordinator.KeyGroup("g"), []byte{byte(i)})
		l.now = l.now.Add(time.Minute)
		l.step(c)
	}
	number := l.copies()[copiesKept-1].ID.Number
	l.write(coordinator.KeyGroup("g"), []byte("an agent came"))
	l.agents = []coordinator.Agent{{Log: 1}}
	l.now = l.now.Add(changePause - 1)
	l.step(c) // too soon
	if newest := l.copies()[copiesKept-1].ID.Number; newest != number {
		t.Errorf("copy %d was made too soon", newest)
	}
	l.now = l.now.Add(1)
	l.step(c)
	if newest := l.copies()[copiesKept-1].ID.Number; newest != number+1 {
		t.Errorf("the newest copy is %d, want %d", newest, number+1)
	}
	all := l.copies()
	if len(all) != copiesKept || all[len(all)-1].ID.Number < copiesKept+3 {
		t.Errorf("%d copies, the newest is number %d", len(all), all[len(all)-1].ID.Number)
	}
	if _, err := Compare(t.Context(), l.kv, all); err != nil {
		t.Error(err)
	}
}

// slow is a bucket to which each PUT takes a time, or fails.
type slow struct {
	objectstore.Store
	lab  *lab
	took time.Duration
	err  error
}

func (s *slow) Put(ctx context.Context, name string, body objectstore.Body) error {
	s.lab.now = s.lab.now.Add(s.took)
	if s.err != nil {
		return s.err
	}
	return s.Store.Put(ctx, name, body)
}

// TestAge: the time since the bucket has etcd's state is known, and whoever copies rests for ten times as long as that took, but not after a failure.
func TestAge(t *testing.T) {
	l := newLab(t)
	bucket := &slow{Store: l.store, lab: l, took: 12 * time.Second}
	elected := false
	c := NewCopier(time.Minute, CopierDeps{
		KV: l.kv, Store: bucket, Cluster: cluster, Elected: func() bool { return elected }, Agents: func() []coordinator.Agent { return nil }, Nonce: l.nonce, Now: func() time.Time { return l.now }, Log: slog.New(slog.DiscardHandler),
	})
	step := func(what string, after time.Duration, numbers int, age time.Duration) {
		t.Helper()
		l.write(coordinator.KeyGroup("g"), []byte(what))
		l.now = l.now.Add(after)
		l.step(c)
		last, err := lastCopy(t.Context(), l.kv)
		if err != nil {
			t.Fatal(err)
		}
		if given := int(last.Number); given != numbers || c.Age() != age {
			t.Errorf("%s: copy %d was begun, the newest is %v old; want %d and %v", what, given, c.Age(), numbers, age)
		}
	}
	step("another is the controller", time.Hour, 0, 0)
	elected, bucket.err = true, objectstore.ErrUnavailable
	step("the first copy fails", 0, 1, 12*time.Second)
	step("the second fails too", 48*time.Second, 2, 72*time.Second)
	bucket.err = nil
	step("the third succeeds", 48*time.Second, 3, 12*time.Second)
	step("it rests", 107*time.Second, 3, 119*time.Second)
	step("it has rested", time.Second, 4, 12*time.Second)
	elected = false
	step("another is the controller again", time.Hour, 4, 0)
}

// TestCompare: what etcd may be when there are copies in the bucket.
func TestCompare(t *testing.T) {
	l := newLab(t)
	l.step(l.copier())
	copies := l.copies()
	for name, of := range map[string]struct {
		kv   func() *kvmem.Store
		want error
	}{
		"the same": {func() *kvmem.Store { return l.kv }, nil},
		"empty":    {func() *kvmem.Store { return kvmem.New(kvmem.Config{}) }, ErrLost},
		"set back": {func() *kvmem.Store { return newLab(t).kv }, ErrSetBack},
		"another": {func() *kvmem.Store {
			o := newLab(t)
			o.write(coordinator.KeyCluster, coordinator.Cluster{ID: protocol.TopicID{1}.String()})
			return o.kv
		}, ErrOther},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Compare(t.Context(), of.kv(), copies); !errors.Is(err, of.want) {
				t.Errorf("%v, want %v", err, of.want)
			}
		})
	}
	set := newLab(t)
	set.store = l.store
	if err := set.copier().Step(t.Context()); !errors.Is(err, ErrSetBack) {
		t.Errorf("the copier goes on over newer copies: %v", err)
	}
}

// TestCompareNumbers: which copies there may be, by the one that etcd gave a number last.
func TestCompareNumbers(t *testing.T) {
	last := coordinator.LastCopy{Number: 7, Nonce: 70}
	for name, of := range map[string]struct {
		last   coordinator.LastCopy
		copies []coordinator.LastCopy
		want   error
	}{
		"none":                                {last: last},
		"none ever":                           {},
		"the last one":                        {last: last, copies: []coordinator.LastCopy{{Number: 6, Nonce: 60}, last}},
		"the last one was not put":            {last: last, copies: []coordinator.LastCopy{{Number: 5, Nonce: 50}}},
		"one that has not been given":         {last: last, copies: []coordinator.LastCopy{last, {Number: 8, Nonce: 80}}, want: ErrSetBack},
		"the last one's number":               {last: last, copies: []coordinator.LastCopy{{Number: 7, Nonce: 71}}, want: ErrSetBack},
		"the last one's number, and the last": {last: last, copies: []coordinator.LastCopy{last, {Number: 7, Nonce: 71}}, want: ErrSetBack},
		"the last, and the last one's number": {last: last, copies: []coordinator.LastCopy{{Number: 7, Nonce: 69}, last}, want: ErrSetBack},
		"before the first":                    {copies: []coordinator.LastCopy{{Number: 1, Nonce: 10}}, want: ErrSetBack},
		"before the first, by chance":         {copies: []coordinator.LastCopy{{Number: 1}}, want: ErrSetBack},
		"rebuilt":                             {last: coordinator.LastCopy{Number: 7 + copiesAhead}, copies: []coordinator.LastCopy{last}},
		"set back to when it was rebuilt":     {last: coordinator.LastCopy{Number: 7 + copiesAhead}, copies: []coordinator.LastCopy{{Number: 8 + copiesAhead, Nonce: 80}}, want: ErrSetBack},
	} {
		t.Run(name, func(t *testing.T) {
			var copies []Copy
			for _, c := range of.copies {
				copies = append(copies, Copy{ID: backup.ID{Cluster: cluster, Number: c.Number, Nonce: c.Nonce}})
			}
			if err := compareNumbers(of.last, copies); !errors.Is(err, of.want) {
				t.Errorf("%v, want %v", err, of.want)
			}
		})
	}
}

// TestLoad: a copy that is not whole, or damaged, is passed over for the one before.
func TestLoad(t *testing.T) {
	l := newLab(t)
	c := l.copier()
	for range 3 {
		l.write(coordinator.KeyGroup("g"), []byte(l.now.String()))
		l.step(c)
		l.now = l.now.Add(time.Minute)
	}
	all := l.copies()
	newest, before := all[2], all[1]
	if err := l.store.Delete(t.Context(), newest.Pages[0].Name); err != nil {
		t.Fatal(err)
	}
	name := newest.ID.Name(1) // its last page is there, its first is not
	put := func(name string, b []byte) {
		t.Helper()
		if err := l.store.Put(t.Context(), name, objectstore.Bytes(b)); err != nil {
			t.Fatal(err)
		}
	}
	put(name, []byte("not a page"))
	state, err := load(t.Context(), l.store, l.copies())
	if err != nil {
		t.Fatal(err)
	}
	if state.ID != before.ID {
		t.Errorf("loaded copy %d, want %d", state.ID.Number, before.ID.Number)
	}
}
