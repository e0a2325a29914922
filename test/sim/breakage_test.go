package sim

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/quorum"
)

// breakage is one rule of the design, broken outside of the product's code.
type breakage struct {
	name string
	// txn changes a transaction before it runs.
	txn func(*world, *txn)
	// got changes what a Get answers.
	got func(w *world, item *coordinator.Item, revision *int64)
	// answered changes what a transaction's sender is told.
	answered func(*txn, *coordinator.TxnResult, error) error
	// content changes what an object that is put holds.
	content func(name string, content []byte) []byte
	// put changes what the sender of an object is told.
	put func(error) error
	// sealer stands for the machine's store in recoveries.
	sealer func(*machine) wal.Sealer

	// peer stands for a node's store in the recoveries of other nodes.
	peer func(*node) wal.Sealer
	// append stands for an append to a store of another machine; send takes frames there.
	append func(x *connection, frames []byte, send func([]byte) error) error

	// asks changes what an agent asks another one.
	asks func(*cluster, kmsg.Request)
	// fetched changes what a consumer is answered.
	fetched func(*kmsg.FetchResponse)
	// askedFor changes what an agent is answered by another one.
	askedFor func(kmsg.Request, kmsg.Response, error) (kmsg.Response, error)

	// logs changes which WAL logs an agent is told of; who is its task that asks, and at the revision that it asks for, if any.
	logs func(w *world, who string, at int64, all []coordinator.Log)

	// lists changes what a List answers.
	lists func(prefix string, items []coordinator.Item) []coordinator.Item

	// deletes changes which object is deleted.
	deletes func(w *world, name string) string

	// restored changes what a restore writes.
	restored func(*loss, *coordinator.Op)
	// hides says which objects a restore is not told of.
	hides func(name string) bool

	noSync          bool // appends are acknowledged before they are synced
	forgetProducers bool // a new leader restores no idempotent producers
	squat           bool // somebody else's objects have the names of the first attempts
	leavesAtOnce    bool // an agent that is told to leave does so, with its disk
	unseen          bool // an agent does not see that revisions fall
}

// breakages are caught within breakageSeeds seeds each. Not among them, since other rules make them harmless: a claim that does not raise the fence (the
// claim's revision alone stops the old writer's commits, and a store refuses a seal that does not raise its mark); a log's number that is used twice (its record, and the
// segment on the disk, are only ever created).
var breakages = []breakage{
	{name: "acknowledge before the sync", noSync: true},
	commitUnguarded,
	// 13.14: the flushed position is read, the writer commits, the claim is written.
	{name: "read the flushed position before the claim", txn: func(w *world, x *txn) {
		if l, ok := x.claims(); ok {
			x.compares = []coordinator.Compare{w.present(coordinator.KeyLog(l.ID))}
		}
	}},
	{name: "close the log with the claim, before the last commit", txn: func(_ *world, x *txn) {
		if l, ok := x.claims(); ok {
			l.Closed = true
			x.writes(coordinator.PrefixLogs).Value = coordinator.Encode(l)
		}
	}},
	{name: "seal without refusing the old writer", sealer: func(m *machine) wal.Sealer { return openSealer{m.disk} }},
	{name: "recovery leaves out the last entry", sealer: func(m *machine) wal.Sealer { return shortSealer{m.store} }},
	// 13.3
	{name: "restore from a view that has not seen the claim", got: func(_ *world, item *coordinator.Item, revision *int64) {
		if item.Key == coordinator.KeyCluster {
			*revision = 1
		}
	}},
	producersForgotten,
	// 13.13
	{name: "take an object of the same name for one's own", squat: true, put: func(err error) error {
		if errors.Is(err, objectstore.ErrExists) {
			return nil
		}
		return err
	}},
	{name: "take a put that timed out for done", put: func(err error) error {
		if errors.Is(err, objectstore.ErrUnknownOutcome) {
			return nil
		}
		return err
	}},
	{name: "take a commit that timed out for done", answered: func(x *txn, res *coordinator.TxnResult, err error) error {
		if errors.Is(err, coordinator.ErrUnknownOutcome) && x.writes(coordinator.PrefixCommits) != nil {
			res.Succeeded = true
			return nil
		}
		return err
	}},
	{name: "write offsets without comparing the shard's guard", txn: func(_ *world, x *txn) {
		if x.writes(coordinator.PrefixOffsets) != nil {
			x.compares = nil
		}
	}},
	// 13.1: the next write then goes out under the same number.
	{name: "take an offset commit of unknown outcome for not applied", answered: func(x *txn, _ *coordinator.TxnResult, err error) error {
		if errors.Is(err, coordinator.ErrUnknownOutcome) && x.writes(coordinator.PrefixOffsets) != nil {
			return coordinator.ErrLimit
		}
		return err
	}},
	openLogsClosed,
}

const breakageSeeds = 300

// TestBreakages breaks one rule at a time and wants the simulation to notice.
func TestBreakages(t *testing.T) {
	for _, b := range breakages {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, singles, breakageSeeds) })
	}
}

// notice wants a breakage to be noticed within so many seeds.
func (b breakage) notice(t *testing.T, create maker, last uint64) {
	if raced {
		t.Log("not under the race detector, which finds nothing here that it does not find elsewhere, and takes long")
		return
	}
	for n := uint64(1); n <= last; n++ {
		if findings, _ := run(t, create, n, b, nil); len(findings) > 0 {
			t.Logf("seed %d: %s", n, findings[0])
			return
		}
	}
	t.Errorf("not noticed in %d seeds", last)
}

// claims returns the record that a transaction writes if it is a claim of a log: without a commit, and not the close.
func (x *txn) claims() (l coordinator.Log, ok bool) {
	op := x.writes(coordinator.PrefixLogs)
	if op == nil || x.writes(coordinator.PrefixCommits) != nil {
		return l, false
	}
	l, err := coordinator.Decode[coordinator.Log](coordinator.Item{Key: op.Key, Value: op.Value})
	return l, err == nil && l.Claimer != 0 && !l.Closed
}

// present returns the comparison that a key is as it is now.
func (w *world) present(key string) coordinator.Compare {
	item, _, err := w.kv.Get(w.ctx, key)
	if err != nil {
		panic(err)
	}
	return coordinator.Compare{Key: key, Revision: item.ModRevision}
}

// openSealer says what a segment holds and lets its writer go on.
type openSealer struct{ disk *disktest.Disk }

func (s openSealer) copied(do func(*disk.Store) error) error {
	store, err := disk.Open(disk.Config{FS: s.disk.Kill(), FileBytes: walFileBytes})
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

func (s openSealer) Seal(id wal.SegmentID, fence wal.Fence) (a quorum.Answer, err error) {
	err = s.copied(func(store *disk.Store) error {
		a, err = store.Seal(id, fence)
		return err
	})
	return a, err
}

func (s openSealer) Read(id wal.SegmentID, from wal.EntryID, visit func(wal.EntryID, []byte) error) error {
	return s.copied(func(store *disk.Store) error { return store.Read(id, from, visit) })
}

// shortSealer leaves out the last entry.
type shortSealer struct{ *disk.Store }

func (s shortSealer) Seal(id wal.SegmentID, fence wal.Fence) (quorum.Answer, error) {
	a, err := s.Store.Seal(id, fence)
	if a.Last >= a.First {
		a.Last--
	}
	return a, err
}
