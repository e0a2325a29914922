package coordinator

import (
	"context"
	"errors"
)

// Kinds of errors of a [KV]. An implementation wraps one of them so that errors.Is finds it.
var (
	// ErrUnavailable: nothing happened. Try again later.
	ErrUnavailable = errors.New("coordinator unavailable")
	// ErrUnknownOutcome: the transaction may have been applied, or may yet be. Its absence from a later read proves
	// nothing; only a later transaction on the same guard (see [Guard]) makes it certain.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrCompacted: a watch asked for revisions that history no longer has. Read anew and watch from there.
	ErrCompacted = errors.New("revision compacted")
	// ErrLimit: a transaction or value is larger than the store takes, writes a key twice or names none (see
	// [CheckTxn]). A defect of the caller.
	ErrLimit = errors.New("request over the coordinator's limits")
	// ErrNoSpace: the store's quota is used up; reads, transactions that only delete, compaction and the leases that there are still work, and
	// new leases do not. It lasts until an operator ends it (KEYS.md). From etcd, a transaction's error is ErrUnknownOutcome too, because one that meets the quota only when it is applied is applied all the same;
	// but it is settled, so a Get after the answer tells.
	ErrNoSpace = errors.New("coordinator out of space")
)

// Limits of one transaction, those of etcd at its defaults.
const (
	TxnOpsMax     = 128       // comparisons, and operations in each branch
	TxnBytesMax   = 1 << 20   // all keys and values together; etcd takes 1.5 MiB
	ValueBytesMax = 512 << 10 // one value
)

// Item is a key with its value, as some revision had it.
type Item struct {
	Key            string
	Value          []byte
	CreateRevision int64 // revision that created the key; 0 if it does not exist
	ModRevision    int64 // revision that wrote it last; 0 if it does not exist
	Lease          int64 // lease that it hangs on; 0 for none
}

// Compare is a condition on one key: its ModRevision equals Revision (0: the key does not exist) unless Value is
// set, in which case its value equals Value.
type Compare struct {
	Key      string
	Revision int64
	Value    []byte // not nil: compare the value instead of the revision
}

// Op is one write of a transaction: a put, or a delete if Delete is set.
type Op struct {
	Key    string
	Value  []byte
	Lease  int64 // of a put: 0 for none
	Delete bool
	// Prefix, with Delete, deletes every key that starts with Key.
	Prefix bool
}

// TxnResult is the outcome of a transaction that ran.
type TxnResult struct {
	Succeeded bool  // all comparisons held, and the operations were applied
	Revision  int64 // of the store after it
	// Failed holds, if it did not succeed, the items of all compared keys as they were, in the order of the
	// comparisons (zero revisions for a key that does not exist).
	Failed []Item
}

// Event is one change that a watch saw.
type Event struct {
	Item    // of a deletion: no value, and ModRevision is the deletion's revision
	Deleted bool
}

// Batch is all changes of one revision that match a watch, or (no events) only the word that the watch has seen
// everything up to Revision.
type Batch struct {
	Revision int64
	Events   []Event
}

// KV is what Varve needs of etcd: a key-value store with revisions, transactions over several keys, watches and
// leases. All methods may be called concurrently; each call obeys its context and should be given a short deadline, since
// a request that was handed to a dying etcd leader can hang.
//
// Two implementations pass one suite (coordtest): coordinator/etcd and coordinator/mem.
type KV interface {
	// Get returns the item, with zero revisions if the key does not exist, and the store's revision. It is
	// linearizable.
	Get(ctx context.Context, key string) (Item, int64, error)

	// List returns all items whose key starts with prefix, in ascending order of keys, all as of one revision,
	// which it returns. rev 0 reads the newest (linearizable). It pages internally.
	List(ctx context.Context, prefix string, rev int64) ([]Item, int64, error)

	// Txn applies ops if every comparison holds. An error is ErrUnavailable only if it certainly was not applied;
	// what cannot be known is ErrUnknownOutcome. A put on a lease that is gone is ErrLeaseGone, and nothing was
	// applied.
	Txn(ctx context.Context, compares []Compare, ops []Op) (TxnResult, error)

	// Watch sends to fn every change of keys that start with prefix after revision rev, in order of revisions, a
	// revision at a time and never a part of one, until ctx ends (it returns ctx's error) or history is compacted
	// (ErrCompacted). It reconnects by itself. fn runs on the watch's goroutine and must not block for long.
	Watch(ctx context.Context, prefix string, rev int64, fn func(Batch)) error

	// Grant makes a lease that ends ttlSeconds (at least 2) after its last KeepAlive, and deletes its keys then.
	Grant(ctx context.Context, ttlSeconds int64) (lease int64, err error)
	// KeepAlive keeps the lease alive until ctx ends (it returns ctx's error) or the lease is gone (ErrLeaseGone).
	KeepAlive(ctx context.Context, lease int64) error
	// Revoke ends the lease now.
	Revoke(ctx context.Context, lease int64) error

	// ClusterID identifies the store's data set: another id is another etcd, whatever its keys say.
	ClusterID(ctx context.Context) (uint64, error)
	// Compact drops the history before rev, for everything that is in the store: a List below it and a Watch from below it fail with
	// ErrCompacted. Its error is ErrUnavailable or ErrUnknownOutcome; that rev is compacted already is none.
	Compact(ctx context.Context, rev int64) error
	// Status returns the store's revision, and how large it is and may become. It is cheap however much the store holds.
	Status(ctx context.Context) (Status, error)
	// Close releases the connection. Calls under way end with an error.
	Close() error
}

// ErrLeaseGone: the lease ended or never was.
var ErrLeaseGone = errors.New("lease gone")

// Status tells how the store is.
type Status struct {
	Revision  int64
	SizeBytes int64 // of the database on disk; it does not shrink until an operator defragments it
	UsedBytes int64 // of it in use: keys, and their history until it is compacted
	// QuotaBytes is what SizeBytes may become before the store refuses writes with ErrNoSpace; 0 if it is not known.
	QuotaBytes int64
	// NoSpace: it does refuse them, and will until an operator has made room and said so.
	NoSpace bool
}
