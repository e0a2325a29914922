package main

import (
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// TestWritesAreCounted follows a transaction of a member that copies, and what else is written meanwhile.
func TestWritesAreCounted(t *testing.T) {
	const cluster = "/varve/dev/"
	began := time.Now()
	txn, pending := cluster+coordinator.KeyTxn(1, "id"), cluster+coordinator.KeyPending(2, "group", 7)
	w := &writesWatch{all: make(map[int64]revision)}
	for i, keys := range [][]string{
		{cluster + coordinator.KeyWrite(1), txn}, // partitions
		{cluster + coordinator.KeyWrite(2), pending, cluster + coordinator.KeyCommit(1, 5)},
		{txn}, // the group
		{txn}, // the decision
		{"-" + pending, cluster + coordinator.KeyOffsets("group", "topic", 0)},
		{cluster + coordinator.KeyCommit(1, 6)},
	} {
		r := revision{at: began.Add(time.Duration(i) * time.Second)}
		for _, key := range keys {
			deleted := key[0] == '-'
			if deleted {
				key = key[1:]
			}
			r.count(key, deleted)
		}
		w.all[int64(i)] = r
	}
	got, err := w.between(began, time.Minute)
	if want := (writes{TxnRecords: 3, Pending: 1, Applied: 1, Keys: 6, EtcdTxns: 5}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, _ := w.between(began, 2500*time.Millisecond); got.total() != 3 {
		t.Errorf("%+v in the first three", got)
	}
}
