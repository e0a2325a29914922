package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// fixture is a ledger over the in-memory store that leads shards 0 to n-1.
type fixture struct {
	kv     *mem.Store
	ledger *Ledger
	lost   chan coordinator.ShardID
}

func newFixture(t *testing.T, shards int) *fixture {
	t.Helper()
	f := &fixture{kv: mem.New(mem.Config{ClusterID: 1}), lost: make(chan coordinator.ShardID, shards)}
	f.ledger = New(f.kv, func(id coordinator.ShardID) { f.lost <- id })
	for id := range coordinator.ShardID(shards) {
		f.adopt(t, id, coordinator.Write{Owner: 1, Epoch: 1})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.ledger.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return f
}

func (f *fixture) adopt(t *testing.T, id coordinator.ShardID, w coordinator.Write) {
	t.Helper()
	f.ledger.Adopt(id, w, f.put(t, coordinator.KeyWrite(id), coordinator.Encode(w)))
}

func (f *fixture) put(t *testing.T, key string, value []byte) int64 {
	t.Helper()
	res, err := f.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: key, Value: value}})
	if err != nil {
		t.Fatal(err)
	}
	return res.Revision
}

func (f *fixture) write(id coordinator.ShardID, key, value string) <-chan error {
	done := make(chan error, 1)
	f.ledger.Write(id, []coordinator.Op{{Key: key, Value: []byte(value)}}, func(err error) { done <- err })
	return done
}

func (f *fixture) value(t *testing.T, key string) string {
	t.Helper()
	item, _, err := f.kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(item.Value)
}

func wait(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
		return nil
	}
}

func TestWritesGather(t *testing.T) {
	f := newFixture(t, 8)
	_, before, err := f.kv.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	const n = 400
	var answers []<-chan error
	for i := range n {
		answers = append(answers, f.write(coordinator.ShardID(i%8), fmt.Sprintf("key/%d", i%50), fmt.Sprint(i)))
	}
	for _, a := range answers {
		if err := wait(t, a); err != nil {
			t.Fatal(err)
		}
	}
	for i := n - 50; i < n; i++ {
		if got := f.value(t, fmt.Sprintf("key/%d", i%50)); got != fmt.Sprint(i) {
			t.Errorf("key/%d is %s, want the latest write, %d", i%50, got, i)
		}
	}
	_, after, err := f.kv.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if txns := after - before; txns > n/2 {
		t.Errorf("%d writes took %d transactions", n, txns)
	}
}

// TestLostShard holds that a shard that another agent has taken loses its writes, and no other does.
func TestLostShard(t *testing.T) {
	f := newFixture(t, 2)
	f.put(t, coordinator.KeyWrite(0), []byte("another agent"))
	var bad, good []<-chan error
	for i := range 10 {
		bad = append(bad, f.write(0, fmt.Sprintf("bad/%d", i), "v"))
		good = append(good, f.write(1, fmt.Sprintf("good/%d", i), "v"))
	}
	for i := range 10 {
		if err := wait(t, bad[i]); !errors.Is(err, coordinator.ErrFenced) && !errors.Is(err, ErrNotLed) {
			t.Errorf("write of a lost shard: %v", err)
		}
		if err := wait(t, good[i]); err != nil {
			t.Errorf("write of a shard that is led: %v", err)
		}
		if got := f.value(t, fmt.Sprintf("bad/%d", i)); got != "" {
			t.Errorf("a fenced write applied: %q", got)
		}
	}
	if id := <-f.lost; id != 0 {
		t.Errorf("shard %d was reported lost, want 0", id)
	}
	if err := wait(t, f.write(0, "bad/late", "v")); !errors.Is(err, ErrNotLed) {
		t.Errorf("write after the loss: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	f := newFixture(t, 1)
	if err := wait(t, f.write(5, "k", "v")); !errors.Is(err, ErrNotLed) {
		t.Errorf("write of a shard that was never led: %v", err)
	}
	done := make(chan error, 1)
	f.ledger.Write(0, make([]coordinator.Op, coordinator.TxnOpsMax), func(err error) { done <- err })
	if err := wait(t, done); !errors.Is(err, coordinator.ErrLimit) {
		t.Errorf("write of too many keys: %v", err)
	}
}

// TestBadWriteFailsAlone holds that a write that the store would refuse takes no other write with it.
func TestBadWriteFailsAlone(t *testing.T) {
	f := &fixture{kv: mem.New(mem.Config{ClusterID: 1})}
	f.ledger = New(f.kv, nil)
	f.adopt(t, 0, coordinator.Write{Owner: 1, Epoch: 1})
	before := f.write(0, "good/1", "v")
	bad := f.write(0, "bad", strings.Repeat("v", coordinator.ValueBytesMax+1))
	after := f.write(0, "good/2", "v")
	ctx, cancel := context.WithCancel(t.Context()) // begins only now, so that all three would be one transaction
	var running sync.WaitGroup
	running.Go(func() { f.ledger.Run(ctx) })
	if err := wait(t, bad); !errors.Is(err, coordinator.ErrLimit) {
		t.Errorf("write of a value that is too large: %v", err)
	}
	if err := errors.Join(wait(t, before), wait(t, after)); err != nil {
		t.Errorf("writes beside it: %v", err)
	}
	cancel()
	running.Wait()
}

func TestPrefixDeletesStandAlone(t *testing.T) {
	f := newFixture(t, 1)
	a := f.write(0, "p/1", "v")
	done := make(chan error, 1)
	f.ledger.Write(0, []coordinator.Op{{Key: "p/", Delete: true, Prefix: true}}, func(err error) { done <- err })
	b := f.write(0, "p/2", "v")
	for _, answer := range []<-chan error{a, done, b} {
		if err := wait(t, answer); err != nil {
			t.Fatal(err)
		}
	}
	if f.value(t, "p/1") != "" || f.value(t, "p/2") != "v" {
		t.Error("a deletion by prefix did not keep its place in the order")
	}
}

func (f *fixture) handOver(id coordinator.ShardID, to coordinator.Write, ops ...coordinator.Op) <-chan error {
	done := make(chan error, 1)
	f.ledger.HandOver(id, to, ops, func(err error) { done <- err })
	return done
}

// newOwner is what a shard's guard holds when another agent has it.
var newOwner = coordinator.Write{Owner: 2, Epoch: 2}

// TestHandOver: the last write of a shard comes after all before it, gives the guard away, and lets none follow.
func TestHandOver(t *testing.T) {
	f := newFixture(t, 2)
	var before []<-chan error
	for i := range 300 {
		before = append(before, f.write(0, fmt.Sprintf("key/%d", i), "v"))
	}
	last := f.handOver(0, newOwner, coordinator.Op{Key: "key/299", Value: []byte("last")})
	after := f.write(0, "key/after", "v")
	twice := f.handOver(0, coordinator.Write{Owner: 3, Epoch: 2})
	other := f.write(1, "other", "v")
	for i, done := range before {
		if err := wait(t, done); err != nil {
			t.Fatalf("write %d before the last: %v", i, err)
		}
	}
	if err := errors.Join(wait(t, last), wait(t, other)); err != nil {
		t.Fatal(err)
	}
	for _, done := range []<-chan error{after, twice, f.write(0, "key/after", "v")} {
		if err := wait(t, done); !errors.Is(err, ErrNotLed) {
			t.Errorf("write after the last: %v, want ErrNotLed", err)
		}
	}
	if got := f.value(t, coordinator.KeyWrite(0)); got != string(coordinator.Encode(newOwner)) {
		t.Errorf("the guard holds %s", got)
	}
	if f.value(t, "key/299") != "last" || f.value(t, "key/after") != "" {
		t.Error("a write that came before was later, or one that came after was done")
	}
	select {
	case id := <-f.lost:
		t.Errorf("shard %d counts as lost", id)
	default:
	}
}

// TestHandOverFenced: whether it applied before the next owner wrote, or somebody else took the shard, it is out of the ledger; and the one who asked is told, and nobody else.
func TestHandOverFenced(t *testing.T) {
	f := newFixture(t, 2)
	f.put(t, coordinator.KeyWrite(0), []byte("another agent"))
	gone, other := f.handOver(0, newOwner, coordinator.Op{Key: "k", Value: []byte("v")}), f.write(1, "other", "v")
	if err := wait(t, gone); !errors.Is(err, coordinator.ErrFenced) {
		t.Errorf("hand over what is lost: %v, want ErrFenced", err)
	}
	if err := wait(t, other); err != nil {
		t.Errorf("a write beside it: %v", err)
	}
	if f.value(t, "k") != "" {
		t.Error("it was written all the same")
	}
	if err := wait(t, f.write(0, "k", "v")); !errors.Is(err, ErrNotLed) {
		t.Errorf("write after it: %v, want ErrNotLed", err)
	}
	if err := wait(t, f.write(1, "other", "v")); err != nil { // another transaction, so that the one before has been told in full
		t.Error(err)
	}
	select {
	case id := <-f.lost:
		t.Errorf("shard %d is told as lost, perhaps after it was taken back", id)
	default:
	}
}

// TestHandOverInDoubt: its outcome is unknown at first; whatever it was, the shard changes hands once, in order.
func TestHandOverInDoubt(t *testing.T) {
	for name, kind := range map[string]mem.FaultKind{"applied": mem.UnknownApplied, "late": mem.UnknownLate, "lost": mem.UnknownLost} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, 1)
			if err := wait(t, f.write(0, "k", "before")); err != nil {
				t.Fatal(err)
			}
			f.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: kind})
			if err := wait(t, f.handOver(0, newOwner, coordinator.Op{Key: "k", Value: []byte("last")})); err != nil {
				t.Fatal(err)
			}
			f.put(t, "k", []byte("next owner"))
			f.kv.Settle()
			if f.value(t, "k") != "next owner" || f.value(t, coordinator.KeyWrite(0)) != string(coordinator.Encode(newOwner)) {
				t.Error("a hand-over applied twice")
			}
		})
	}
}

// TestHandOverRefused: the store has no room: nothing changed hands, the shard takes no write, and can be adopted again as it was.
func TestHandOverRefused(t *testing.T) {
	f := newFixture(t, 1)
	f.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.NoSpace})
	if err := wait(t, f.handOver(0, newOwner)); !errors.Is(err, coordinator.ErrNoSpace) || errors.Is(err, coordinator.ErrFenced) {
		t.Fatalf("hand over without room: %v", err)
	}
	if err := wait(t, f.write(0, "k", "v")); !errors.Is(err, ErrNotLed) {
		t.Errorf("write while nobody leads the shard: %v, want ErrNotLed", err)
	}
	item, _, err := f.kv.Get(t.Context(), coordinator.KeyWrite(0))
	if err != nil {
		t.Fatal(err)
	}
	w, err := coordinator.Decode[coordinator.Write](item)
	if err != nil || w.Owner != 1 {
		t.Fatalf("the guard holds %+v, %v", w, err)
	}
	f.ledger.Adopt(0, w, item.ModRevision)
	if err := wait(t, f.write(0, "k", "v")); err != nil {
		t.Errorf("write after it was adopted again: %v", err)
	}
}

// TestHandOverAtTheEnd: a ledger that ends while the outcome is unknown says so by an error that is not that of a refusal.
func TestHandOverAtTheEnd(t *testing.T) {
	f := &fixture{kv: mem.New(mem.Config{ClusterID: 1})}
	f.ledger = New(f.kv, nil)
	f.adopt(t, 0, coordinator.Write{Owner: 1, Epoch: 1})
	f.kv.Inject(mem.Fault{Call: mem.CallTxn, Times: 1000, Kind: mem.UnknownLost})
	doubt := f.handOver(0, newOwner)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.ledger.Run(ctx) })
	cancel()
	running.Wait()
	if err := wait(t, doubt); !errors.Is(err, context.Canceled) {
		t.Errorf("hand over at the end: %v", err)
	}
	if err := wait(t, f.handOver(0, newOwner)); !errors.Is(err, ErrNotLed) {
		t.Errorf("hand over after the end: %v, want ErrNotLed", err)
	}
}
