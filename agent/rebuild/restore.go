package rebuild

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
)

var (
	// ErrCurrent says that etcd has the cluster, and is not older than the newest copy.
	ErrCurrent = errors.New("etcd has this cluster, and is not older than the newest copy in the bucket: there is nothing to restore")
	// ErrAgents says that agents are registered in the etcd that is to be written.
	ErrAgents = errors.New("agents are registered: end them, and wait some seconds until their leases have ended")
	// ErrMissing says that not all that was committed, or acknowledged, can be restored.
	ErrMissing = errors.New("not all can be restored; --accept-missing goes on without what is missing")
)

// Options say how to restore.
type Options struct {
	// Repair has an etcd that was set back written anew; else one that has the cluster is left alone.
	Repair bool
	// DisksLost is an operator's word that agents' disks are gone: WAL logs end where they were flushed.
	DisksLost bool
	// AcceptMissing is an operator's word that what is missing in the bucket is lost, and what disks have of logs of which it says too little.
	AcceptMissing bool
	Secret        []byte // by which agents will know each other
	Log           *slog.Logger
}

// Report is what was restored, or would be.
type Report struct {
	Cluster  string
	Copy     backup.ID
	CopiedAt time.Time
	Commits  int // that etcd has now
	Adopted  int // of them, those that the copy does not have
	Topics   int
	Open     []coordinator.LogID // WAL logs that agents have to recover from their disks
	Missing  []string
	Notes    []string
}

// Restore writes the state that the bucket tells of into etcd. No agent may be running, nor begin before it has returned. One that was broken off may be repeated. The report is nil if nothing could be read; with
// [ErrMissing] it says what is missing, and etcd is as it was.
func Restore(ctx context.Context, kv coordinator.KV, store objectstore.Store, o Options) (*Report, error) {
	copies, err := Copies(ctx, store)
	if err != nil {
		return nil, err
	}
	present, err := target(ctx, kv, copies, o)
	if err != nil {
		return nil, err
	}
	state, err := load(ctx, store, copies)
	if err != nil {
		return nil, err
	}
	found, err := state.found()
	if err != nil {
		return nil, err
	}
	listed, err := list(ctx, store)
	if err != nil {
		return nil, err
	}
	notes, err := listed.newest(ctx, store, found, state.ID.Cluster)
	if err != nil {
		return nil, err
	}
	more, err := listed.footers(ctx, store, found, state.ID.Cluster)
	if err != nil {
		return nil, err
	}
	plan := NewPlan(found)
	newest := copies[len(copies)-1].ID
	r := &rebuilder{state: state, found: found, plan: plan, listed: listed, newest: newest.Number, lost: o.DisksLost}
	next, err := r.outcome()
	if err != nil {
		return nil, err
	}
	report := &Report{
		Cluster: found.Cluster.ID, Copy: state.ID, CopiedAt: time.UnixMilli(state.CreatedMs), Commits: len(plan.Commits), Adopted: plan.Adopted, Topics: len(plan.Topics),
		Missing: plan.Missing, Notes: slices.Concat(notes, more, plan.Notes),
	}
	if unknown := r.unknown(); o.DisksLost {
		report.Notes = append(report.Notes, unknown...)
	} else {
		report.Missing = append(report.Missing, unknown...)
	}
	for _, l := range r.walLogs() {
		if !l.Closed {
			report.Open = append(report.Open, l.ID)
		}
	}
	if newest != state.ID {
		report.Notes = append(report.Notes, fmt.Sprintf("copy %d is not whole: copy %d is the newest that is", newest.Number, state.ID.Number))
	}
	if len(report.Missing) > 0 && !o.AcceptMissing {
		return report, ErrMissing
	}
	next.cluster.Secret = o.Secret
	w := &writer{kv: kv, log: o.Log}
	return report, w.write(ctx, present, plan, next)
}

// unknown tells of logs whose WAL nobody can find.
func (r *rebuilder) unknown() []string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(r.plan.Logs)) {
		if _, ok := r.found.Logs[id]; !ok {
			all = append(all, fmt.Sprintf("WAL log %s was opened after the copy was made: where it lies is not known, and what it has that was not flushed is not recovered", id))
		}
	}
	return all
}

// leftover is what etcd has before it is written: what its keys begin with, and the revisions of the cluster's record and of a restore's mark; 0 for none.
type leftover struct {
	cluster, restore int64
	prefixes         []string
}

// target makes sure that etcd may be written, and returns what it has.
func target(ctx context.Context, kv coordinator.KV, copies []Copy, o Options) (present leftover, err error) {
	if len(copies) == 0 {
		return present, ErrNoCopy
	}
	items, _, err := kv.List(ctx, "", 0)
	if err != nil {
		return present, fmt.Errorf("look what etcd has: %w", err)
	}
	agents := 0
	for i := range items {
		switch items[i].Key {
		case coordinator.KeyCluster:
			present.cluster = items[i].ModRevision
		case coordinator.KeyRestore:
			present.restore = items[i].ModRevision
			continue
		}
		top, _, _ := strings.Cut(items[i].Key, "/")
		if n := len(present.prefixes); n == 0 || present.prefixes[n-1] != top+"/" {
			present.prefixes = append(present.prefixes, top+"/") // items are in order
		}
		if strings.HasPrefix(items[i].Key, coordinator.PrefixAgents) {
			agents++
		}
	}
	if agents > 0 {
		return present, fmt.Errorf("%d %w", agents, ErrAgents)
	}
	switch _, err := Compare(ctx, kv, copies); {
	case err == nil:
		return present, ErrCurrent
	case errors.Is(err, ErrLost), errors.Is(err, ErrSetBack) && o.Repair:
		return present, nil
	default:
		return present, err
	}
}

// writer writes a coordinator's state. The cluster's record goes first and comes last: without it no agent of a cluster with copies in its bucket begins.
type writer struct {
	kv  coordinator.KV
	log *slog.Logger
	// mine is the condition for all that is written: that there is no cluster yet, and no restore has begun since this one. What applies late, when that is not so, changes nothing.
	mine []coordinator.Compare
}

// txnBytes is about what one transaction writes.
const txnBytes = coordinator.TxnBytesMax / 2

func (w *writer) write(ctx context.Context, present leftover, plan *Plan, o *outcome) error {
	if err := w.begin(ctx, present); err != nil {
		return err
	}
	var ops []coordinator.Op
	bytes := 0
	flush := func() error {
		_, err := w.txn(ctx, w.mine, ops)
		ops, bytes = nil, 0
		return err
	}
	put := func(key string, value []byte) error {
		if len(ops) == coordinator.TxnOpsMax || len(ops) > 0 && bytes+len(key)+len(value) > txnBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		ops, bytes = append(ops, coordinator.Op{Key: key, Value: value}), bytes+len(key)+len(value)
		return nil
	}
	for _, it := range o.items {
		if err := put(it.Key, it.Value); err != nil {
			return err
		}
	}
	revisions, err := w.commits(ctx, plan)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(o.shards)) {
		s := o.shards[id]
		s.Merged = revisions[s.Merged]
		if err := put(coordinator.KeyShard(id), coordinator.Encode(s)); err != nil {
			return err
		}
		if err := put(coordinator.KeyWrite(id), coordinator.Encode(coordinator.Write{Owner: s.Owner, Epoch: s.Epoch})); err != nil {
			return err
		}
	}
	if len(ops) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	_, err = w.txn(ctx, w.mine, []coordinator.Op{{Key: coordinator.KeyCluster, Value: coordinator.Encode(o.cluster)}, {Key: coordinator.KeyRestore, Delete: true}})
	return err
}

// begin deletes what there is, and leaves a mark. One of several restores that begin at once gets through; one that begins later ends those before it, which may have been broken off.
func (w *writer) begin(ctx context.Context, present leftover) error {
	ops := []coordinator.Op{{Key: coordinator.KeyRestore, Value: coordinator.Encode(rand.Text())}}
	for _, prefix := range present.prefixes {
		ops = append(ops, coordinator.Op{Key: prefix, Delete: true, Prefix: true})
	}
	revision, err := w.txn(ctx, []coordinator.Compare{{Key: coordinator.KeyCluster, Revision: present.cluster}, {Key: coordinator.KeyRestore, Revision: present.restore}}, ops)
	w.mine = []coordinator.Compare{{Key: coordinator.KeyCluster}, {Key: coordinator.KeyRestore, Revision: revision}}
	return err
}

// commits writes the commits, each by itself: their revisions are their order. It returns these, by those of the plan.
func (w *writer) commits(ctx context.Context, plan *Plan) (map[int64]int64, error) {
	revisions := map[int64]int64{0: 0}
	for i := range plan.Commits {
		c := &plan.Commits[i]
		key := coordinator.KeyCommit(c.Log, c.Number)
		res, err := w.txn(ctx, append([]coordinator.Compare{{Key: key}}, w.mine...), []coordinator.Op{{Key: key, Value: c.Encode()}})
		if err != nil {
			return nil, err
		}
		revisions[c.Revision] = res
	}
	return revisions, nil
}

// errBegun says that somebody else writes the same etcd.
var errBegun = errors.New("somebody else has created the cluster, or restores it too: this restore is void")

// txn writes until the outcome is certain, and returns the revision that wrote it.
func (w *writer) txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (revision int64, err error) {
	doubt := false
	err = retry.Coordinator(ctx, w.log, "write the cluster's state", func(ctx context.Context) error {
		res, err := w.kv.Txn(ctx, compares, ops)
		switch {
		case err != nil:
			doubt = doubt || errors.Is(err, coordinator.ErrUnknownOutcome)
			return err
		case res.Succeeded:
			revision = res.Revision
			return nil
		}
		for i, it := range res.Failed { // an earlier try may have done it
			if it.ModRevision != compares[i].Revision && (!doubt || !wrote(ops, it)) {
				return fmt.Errorf("%s is of revision %d: %w", it.Key, it.ModRevision, errBegun)
			}
			revision = max(revision, it.ModRevision)
		}
		return nil
	})
	return revision, err
}

// wrote reports whether an item is what one of ops makes it.
func wrote(ops []coordinator.Op, it coordinator.Item) bool {
	return slices.ContainsFunc(ops, func(op coordinator.Op) bool {
		if op.Delete {
			return it.ModRevision == 0 && (op.Key == it.Key || op.Prefix && strings.HasPrefix(it.Key, op.Key))
		}
		return op.Key == it.Key && string(op.Value) == string(it.Value)
	})
}
