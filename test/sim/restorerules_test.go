package sim

import (
	"context"
	"iter"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/segment"
)

// The rules of losing etcd, each broken.

// TestRestoreBreakages breaks one of them at a time. More are broken under scripts.
func TestRestoreBreakages(t *testing.T) {
	for _, b := range []breakage{restoredLogsClosed, restoreSeesTheCopyAlone, restoredAtOnce, restoredOpen, restoredWithoutOffsets} {
		t.Run(strings.ReplaceAll(b.name, " ", "_"), func(t *testing.T) { b.notice(t, restored, clusterBreakageSeeds) })
	}
}

var setBackUnseen = breakage{name: "go on while revisions fall", unseen: true}

// What etcd gave a number counts for the copy that has it.
var nonceIgnored = breakage{name: "take the number of a copy for the copy", got: func(w *world, item *coordinator.Item, _ *int64) {
	if item.Key != coordinator.KeyLastCopy || item.ModRevision == 0 {
		return
	}
	last, err := coordinator.Decode[coordinator.LastCopy](*item)
	if err != nil {
		panic(err)
	}
	copies, err := rebuild.Copies(w.ctx, w.bucket)
	if err != nil {
		panic(err)
	}
	for _, c := range copies {
		if c.ID.Number == last.Number {
			last.Nonce = c.ID.Nonce
		}
	}
	item.Value = coordinator.Encode(last)
}}

var restoredIDsAgain = breakage{name: "give producer ids from where the copy is", restored: func(l *loss, op *coordinator.Op) {
	if op.Key == coordinator.KeyNextPID {
		if op.Value = l.copied.items[op.Key].Value; op.Value == nil {
			op.Value = coordinator.Encode(int64(1))
		}
	}
}}

var restoredLogsClosed = breakage{name: "close WAL logs where they were flushed, with disks there", restored: func(_ *loss, op *coordinator.Op) {
	if op.Delete || !strings.HasPrefix(op.Key, coordinator.PrefixLogs) || op.Key == coordinator.KeyPastLog {
		return
	}
	log, err := coordinator.Decode[coordinator.Log](coordinator.Item{Key: op.Key, Value: op.Value})
	if err != nil {
		panic(err)
	}
	log.Closed = true
	op.Value = coordinator.Encode(log)
}}

// What others wrote since is not seen.
var restoreSeesTheCopyAlone = breakage{name: "pass over what owners flushed since the copy", hides: func(name string) bool {
	id, err := segment.ParseName(name)
	return err == nil && id.Level == segment.Flushed && id.Fence == 1
}}

// What a recoverer puts in the place of what another has uploaded is not seen.
var restoreSeesNothingEmpty = breakage{name: "pass over what a second recoverer put there", hides: func(name string) bool {
	id, err := segment.ParseName(name)
	return err == nil && id.Level == segment.Flushed && id.Fence > 2
}}

var restoredAtOnce = breakage{name: "take logs from before a restore for such as records say", restored: func(_ *loss, op *coordinator.Op) {
	if op.Delete || op.Key != coordinator.KeyCluster {
		return
	}
	c, err := coordinator.Decode[coordinator.Cluster](coordinator.Item{Key: op.Key, Value: op.Value})
	if err != nil {
		panic(err)
	}
	c.Restored = 0
	op.Value = coordinator.Encode(c)
}}

// What was going on goes on.
var restoredOpen = breakage{name: "leave transactions as the copy has them", restored: func(l *loss, op *coordinator.Op) {
	if it, ok := l.copied.items[op.Key]; ok && strings.HasPrefix(op.Key, coordinator.PrefixTxns) {
		op.Value = it.Value
	}
}}

var restoredWithoutOffsets = breakage{name: "leave groups' offsets out", restored: func(_ *loss, op *coordinator.Op) {
	if strings.HasPrefix(op.Key, coordinator.PrefixOffsets) {
		*op = coordinator.Op{Key: op.Key, Delete: true}
	}
}}

// restorerBucket is the bucket as a restore reaches it.
type restorerBucket struct{ agentBucket }

// List implements objectstore.Store.
func (b *restorerBucket) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		for info, err := range b.agentBucket.List(ctx, prefix, after) {
			if hides := b.w.broken.hides; err == nil && hides != nil && hides(info.Name) {
				continue
			}
			if !yield(info, err) {
				return
			}
		}
	}
}
