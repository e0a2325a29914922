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
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
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

// TestAccept: that disks are gone, and that something is missing in the bucket, are two words, and neither stands for the other.
func TestAccept(t *testing.T) {
	for name, of := range map[string]struct {
		lost, unknown bool // the object of the copy's commit is not there; a log was opened after the copy
		options       Options
		want          error
		closed        bool
		missing       int
	}{
		"disks that are there":                      {options: Options{}},
		"disks that are gone":                       {options: Options{DisksLost: true}, closed: true},
		"nothing is missing":                        {options: Options{AcceptMissing: true}},
		"a commit is missing":                       {lost: true, want: ErrMissing, missing: 1},
		"a commit is missing, and disks are gone":   {lost: true, options: Options{DisksLost: true}, want: ErrMissing, missing: 1},
		"a commit that is missing is accepted":      {lost: true, options: Options{AcceptMissing: true}, missing: 1},
		"both":                                      {lost: true, options: Options{DisksLost: true, AcceptMissing: true}, closed: true, missing: 1},
		"a log nobody knows":                        {unknown: true, want: ErrMissing, missing: 1},
		"a log nobody knows, and disks are gone":    {unknown: true, options: Options{DisksLost: true}, closed: true},
		"a log nobody knows is accepted as missing": {unknown: true, options: Options{AcceptMissing: true}, missing: 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.write(coordinator.KeyTopic(orders.Name), orders)
			l.write(coordinator.KeyLog(1), coordinator.Log{ID: 1, Fence: 1, Commits: 1})
			footer, object := segmentOf(t, "1/1/1/0", part{next: 10, epoch: 1})
			commit := commitOf(footer)
			l.write(coordinator.KeyCommit(1, 1), commit.Encode())
			l.step(l.copier())
			put := func(name string, object []byte) {
				if err := l.store.Put(t.Context(), name, objectstore.Bytes(object)); err != nil {
					t.Fatal(err)
				}
			}
			if !of.lost {
				put(commit.Object, object)
			}
			if of.unknown {
				footer, object := segmentOf(t, "2/1/1/0", part{first: 10, next: 20, epoch: 2})
				put(footer.Header.ID.Name(), object)
			}
			kv := kvmem.New(kvmem.Config{})
			report, err := l.restore(kv, of.options)
			if !errors.Is(err, of.want) || len(report.Missing) != of.missing {
				t.Fatalf("restored with %v, and %q missing, want %v and %d", err, report.Missing, of.want, of.missing)
			}
			if err != nil {
				if got := values(t, kv); len(got) > 0 {
					t.Errorf("etcd has %q", got)
				}
				return
			}
			item, _, err := kv.Get(t.Context(), coordinator.KeyLog(1))
			if err != nil {
				t.Fatal(err)
			}
			if log, err := coordinator.Decode[coordinator.Log](item); err != nil || log.Closed != of.closed {
				t.Errorf("the log is %+v, %v; want it closed: %t", log, err, of.closed)
			}
		})
	}
}

// read decodes a key of an etcd.
func read[T any](t *testing.T, kv coordinator.KV, key string) T {
	t.Helper()
	item, _, err := kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	v, err := coordinator.Decode[T](item)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestNumbers: what is given out after a restore is far above all that the copy and the bucket show, as what was given out since the copy was made shows only in part.
func TestNumbers(t *testing.T) {
	l := newLab(t)
	l.write(coordinator.KeyTopic(orders.Name), orders)
	l.write(coordinator.KeyNextLog, 9)
	l.write(coordinator.KeyNextPID, 5000)
	l.write(coordinator.KeyLog(7), coordinator.Log{ID: 7, Fence: 3})
	l.write(coordinator.KeyShard(0), coordinator.Shard{Owner: 7, Epoch: 50})
	l.write(coordinator.KeyShard(1), coordinator.Shard{Owner: 7, Epoch: 1})
	c := l.copier()
	l.step(c)
	l.write(coordinator.KeyGroup("g"), []byte("{}"))
	l.now = l.now.Add(CopyPause)
	l.step(c)
	newest := l.copies()[1].ID.Number
	put := func(name string, object []byte) {
		t.Helper()
		if err := l.store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if err := l.store.Put(t.Context(), name, objectstore.Bytes(object)); err != nil {
			t.Fatal(err)
		}
	}
	put(l.copies()[1].Pages[0].Name, []byte("broken off"))
	put(manifest.Name(1, 60, 1), []byte("broken off"))
	for _, name := range []string{"7/1/8/0", "12/1/1/0"} {
		footer, object := segmentOf(t, name, part{next: 10, epoch: 70})
		put(footer.Header.ID.Name(), object)
	}
	kv := kvmem.New(kvmem.Config{})
	if _, err := l.restore(kv, Options{DisksLost: true, AcceptMissing: true}); err != nil {
		t.Fatal(err)
	}
	flushedOf := shardOf(0)
	for what, of := range map[string]struct{ got, above int64 }{
		"the next log":                {read[int64](t, kv, coordinator.KeyNextLog), 12},
		"the number of old logs":      {int64(read[coordinator.Cluster](t, kv, coordinator.KeyCluster).Restored), 12},
		"the next producer id":        {read[int64](t, kv, coordinator.KeyNextPID), 5000},
		"the next copy":               {int64(read[coordinator.LastCopy](t, kv, coordinator.KeyLastCopy).Number), int64(newest)},
		"the fence of log 7":          {int64(read[coordinator.Log](t, kv, coordinator.KeyLog(7)).Fence), 8},
		"shard 0, of the copy":        {int64(read[coordinator.Shard](t, kv, coordinator.KeyShard(0)).Epoch), 50},
		"shard 1, of a manifest":      {int64(read[coordinator.Shard](t, kv, coordinator.KeyShard(1)).Epoch), 60},
		"a shard of what was flushed": {int64(read[coordinator.Shard](t, kv, coordinator.KeyShard(flushedOf)).Epoch), 70},
	} {
		if of.got <= of.above+10_000 {
			t.Errorf("%s is %d, want far above %d", what, of.got, of.above)
		}
	}
	if cluster, next := read[coordinator.Cluster](t, kv, coordinator.KeyCluster), read[int64](t, kv, coordinator.KeyNextLog); int64(cluster.Restored) > next {
		t.Errorf("logs below %s are old, the next is %d", cluster.Restored, next)
	}
}
