package rebuild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
)

// restore restores the lab's bucket into an etcd.
func (l *lab) restore(kv coordinator.KV, o Options) (*Report, error) {
	o.Secret, o.Log = []byte("anew"), slog.New(slog.DiscardHandler)
	return Restore(l.t.Context(), kv, l.store, o)
}

// large is a lab with a copy that several transactions write.
func large(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	for i := range 3 * coordinator.TxnOpsMax {
		l.write(coordinator.KeyGroup(fmt.Sprint(i)), []byte("{}"))
	}
	l.step(l.copier())
	return l
}

// between calls a function before one of the transactions, counted from 0.
type between struct {
	*kvmem.Store
	at int
	do func() error
}

func (k *between) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if k.at--; k.at == -1 {
		if err := k.do(); err != nil {
			return coordinator.TxnResult{}, err
		}
	}
	return k.Store.Txn(ctx, compares, ops)
}

// values lists what an etcd has, but for what is random.
func values(t *testing.T, kv coordinator.KV) (all []string) {
	t.Helper()
	items, _, err := kv.List(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range items {
		all = append(all, it.Key+" "+string(it.Value))
	}
	return all
}

// TestTwoRestores: of two that write the same etcd at once one fails, whichever transaction of the one the other begins before, and however far it comes: the two never mix.
func TestTwoRestores(t *testing.T) {
	l := large(t)
	alone := kvmem.New(kvmem.Config{})
	if _, err := l.restore(alone, Options{}); err != nil {
		t.Fatal(err)
	}
	want := values(t, alone)
	errBroken := errors.New("broken off")
	for at := range 5 {
		for to := 1; to < 6; to++ {
			kv := kvmem.New(kvmem.Config{})
			first := &between{Store: kv, at: at}
			var other error
			first.do = func() error {
				_, other = l.restore(&between{Store: kv, at: to, do: func() error { return errBroken }}, Options{})
				return nil
			}
			if _, err := l.restore(first, Options{}); !errors.Is(err, errBegun) {
				t.Errorf("a restore during which another begins, before transaction %d, and comes to %d: %v", at, to, err)
			}
			if _, err := l.restore(kv, Options{}); other == nil && !errors.Is(err, ErrCurrent) || other != nil && err != nil {
				t.Errorf("a third restore: %v, after one that ended with %v", err, other)
			}
			if got := values(t, kv); !slices.Equal(got, want) {
				t.Errorf("a restore during which another begins, before transaction %d, and comes to %d: etcd has %d keys, want %d", at, to, len(got), len(want))
			}
		}
	}
}

// TestRestoreInDoubt: transactions of unknown outcome, which apply late or not at all, change nothing of what a restore writes.
func TestRestoreInDoubt(t *testing.T) { synctest.Test(t, restoreInDoubt) }

func restoreInDoubt(t *testing.T) {
	l := large(t)
	alone := kvmem.New(kvmem.Config{})
	if _, err := l.restore(alone, Options{}); err != nil {
		t.Fatal(err)
	}
	want := values(t, alone)
	for name, kind := range map[string]kvmem.FaultKind{"applied": kvmem.UnknownApplied, "late": kvmem.UnknownLate, "lost": kvmem.UnknownLost} {
		for skip := range 6 {
			kv := kvmem.New(kvmem.Config{})
			kv.Inject(kvmem.Fault{Call: kvmem.CallTxn, Skip: skip, Kind: kind})
			if _, err := l.restore(kv, Options{}); err != nil {
				t.Errorf("transaction %d %s: %v", skip, name, err)
			}
			kv.Settle()
			if got := values(t, kv); !slices.Equal(got, want) {
				t.Errorf("transaction %d %s: etcd has %d keys, want %d", skip, name, len(got), len(want))
			}
		}
	}
}
