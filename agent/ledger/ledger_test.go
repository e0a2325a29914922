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
