package rebuild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
)

const (
	// CopyPause is the time between two copies: what of consumer offsets, topics, configs and transactions came after the newest one, a restore does not have.
	CopyPause = time.Minute
	// restFactor is how many times as long as the newest copy took the copier rests at least: all of a large etcd is not read and put all the time.
	restFactor = 10
	// copiesKept is how many copies stay in the bucket. What one that is older than the bucket's garbage is long refers to may be gone.
	copiesKept = 10
	// copyTimeMax bounds one copy, callTime one request.
	copyTimeMax = 5 * time.Minute
	callTime    = time.Minute
	// copierPause is how often the copier looks whether it is its turn.
	copierPause = time.Second
	// changePause is how soon a copy follows another if agents have come or gone meanwhile: which WAL logs are open, and where they lie, is what the bucket does not tell.
	changePause = 5 * time.Second
)

// CopierDeps is what a [Copier] works with.
type CopierDeps struct {
	KV      coordinator.KV
	Store   objectstore.Store
	Cluster [16]byte
	// Elected reports whether this agent is the cluster's controller, which copies.
	Elected func() bool
	Agents  func() []coordinator.Agent // that are registered, in a fixed order
	Nonce   func() uint64              // random
	Now     func() time.Time
	Log     *slog.Logger
}

// Copier copies the coordinator's state to the bucket: when its agent becomes the controller, when agents come and go, and at intervals, if something has changed.
type Copier struct {
	pause  time.Duration
	deps   CopierDeps
	last   time.Time     // when it was this copier's turn; zero if the agent was not the controller
	took   time.Duration // what the newest copy took; 0 after one that failed
	agents []incarnation // as of last
	newest mark          // of the state that was copied last
	copied backup.ID     // that copy

	asOf atomic.Int64 // as of when the bucket has etcd's state, or since when this copier is to see to it, in Unix nanoseconds; 0 if the agent is not the controller
}

// incarnation is an agent that is registered: its log is open from when it serves on, and closed before it leaves.
type incarnation struct {
	log   coordinator.LogID
	state coordinator.AgentState
}

// mark tells two states of the coordinator apart: each write raises the newest revision, unless it only deletes.
type mark struct {
	keys     int
	revision int64 // the newest that wrote one of them
}

// NewCopier returns a copier; [Copier.Run] makes it work.
func NewCopier(pause time.Duration, deps CopierDeps) *Copier {
	return &Copier{pause: pause, deps: deps}
}

// Run copies until ctx ends, or what the bucket has shows that etcd is not the one that it was.
func (c *Copier) Run(ctx context.Context) error {
	tick := time.NewTicker(min(copierPause, c.pause))
	defer tick.Stop()
	for {
		if err := c.Step(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Age is how old the state of etcd in the bucket is: the time since the newest copy was begun, or since one was found to be as new; of a controller that has made none yet,
// the time since it became the controller. It is 0 if the agent is not the controller, and may be called concurrently.
func (c *Copier) Age() time.Duration {
	if asOf := c.asOf.Load(); asOf != 0 {
		return c.deps.Now().Sub(time.Unix(0, asOf))
	}
	return 0
}

// Step copies if it is time to. Errors are those of Run; what else goes wrong is told to the log, and tried again at the next turn.
func (c *Copier) Step(ctx context.Context) error {
	if !c.deps.Elected() {
		c.last, c.newest, c.took = time.Time{}, mark{}, 0
		c.asOf.Store(0)
		return nil
	}
	var agents []incarnation
	for _, a := range c.deps.Agents() {
		agents = append(agents, incarnation{a.Log, a.State})
	}
	pause := c.pause
	if !slices.Equal(agents, c.agents) {
		pause = min(pause, changePause)
	}
	pause = max(pause, restFactor*c.took)
	now := c.deps.Now()
	if now.Sub(c.last) < pause {
		return nil
	}
	if c.last.IsZero() {
		c.asOf.Store(now.UnixNano())
	}
	c.last, c.agents, c.took = now, agents, 0
	err := c.copy(ctx)
	switch {
	case err == nil:
		c.took = c.deps.Now().Sub(now)
		c.asOf.Store(now.UnixNano())
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrLost), errors.Is(err, ErrSetBack), errors.Is(err, ErrOther):
		return err
	case err != nil:
		c.deps.Log.Warn("the coordinator's state could not be copied to the bucket; trying again", "in", c.pause, "err", err)
	}
	return nil
}

func (c *Copier) copy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, copyTimeMax)
	defer cancel()
	_, before, err := c.compare(ctx)
	if err != nil {
		return err
	}
	last, revision, err := take(ctx, c.deps.KV, before, c.deps.Nonce())
	if err != nil {
		return err
	}
	// As of the revision that gave the number: an etcd that has given it has all that the copy has.
	items, _, err := c.deps.KV.List(ctx, "", revision)
	if err != nil {
		return fmt.Errorf("read what is to be copied: %w", err)
	}
	// Once more: if etcd was set back before it gave the number, the bucket may have a copy with the same one; if after, the number may be gone, and what was read be of two states.
	copies, now, err := c.compare(ctx)
	if err == nil && now != last {
		err = errRival
	}
	if err != nil {
		return err
	}
	state, newest, err := lasting(items)
	if err != nil {
		return err
	}
	if n := len(copies); newest == c.newest && n > 0 && copies[n-1].ID == c.copied {
		return nil // the newest copy is as new
	}
	id := backup.ID{Cluster: c.deps.Cluster, Number: last.Number, Revision: revision, Nonce: last.Nonce}
	bytes, err := put(ctx, c.deps.Store, id, c.deps.Now().UnixMilli(), state)
	if err != nil {
		return err
	}
	c.newest, c.copied = newest, id
	c.deps.Log.Debug("copied the coordinator's state to the bucket", "copy", id.Number, "revision", revision, "keys", newest.keys, "bytes", bytes)
	if err := c.drop(ctx, copies[:max(0, len(copies)+1-copiesKept)]); err != nil && ctx.Err() == nil {
		c.deps.Log.Warn("old copies of the coordinator's state stay for now", "err", err)
	}
	return nil
}

// compare lists the copies, and compares etcd with them. It returns the one that etcd gave a number last, before they were listed and after.
func (c *Copier) compare(ctx context.Context) ([]Copy, coordinator.LastCopy, error) {
	before, err := lastCopy(ctx, c.deps.KV)
	if err != nil {
		return nil, before, err
	}
	copies, err := Copies(ctx, c.deps.Store)
	if err != nil {
		return nil, before, err
	}
	last, err := Compare(ctx, c.deps.KV, copies)
	if err == nil && last != before {
		err = errRival
	}
	return copies, last, err
}

// lasting returns the items that are copied: all that do not perish with who wrote them, the cluster's without its secret.
func lasting(items []coordinator.Item) ([]backup.Item, mark, error) {
	var state []backup.Item
	var newest mark
	for _, it := range items {
		if it.Lease != 0 || it.Key == coordinator.KeyLastCopy || strings.HasPrefix(it.Key, coordinator.PrefixMoves) {
			continue
		}
		value := it.Value
		if it.Key == coordinator.KeyCluster {
			cluster, err := coordinator.Decode[coordinator.Cluster](it)
			if err != nil {
				return nil, mark{}, err
			}
			cluster.Secret = nil
			value = coordinator.Encode(cluster)
		}
		state = append(state, backup.Item{Key: it.Key, Value: value, Revision: it.ModRevision})
		newest.keys, newest.revision = newest.keys+1, max(newest.revision, it.ModRevision)
	}
	return state, newest, nil
}

// put puts a copy, page by page.
func put(ctx context.Context, store objectstore.Store, id backup.ID, nowMs int64, state []backup.Item) (bytes int, err error) {
	for page, err := range backup.Pages(id, nowMs, state) {
		if err != nil {
			return 0, err
		}
		bytes += len(page.Bytes)
		call, cancel := context.WithTimeout(ctx, callTime)
		err = store.Put(call, page.Name, objectstore.Bytes(page.Bytes))
		cancel()
		if err != nil {
			return 0, fmt.Errorf("put copy %d of cluster %s: %w", id.Number, protocol.TopicID(id.Cluster), err)
		}
	}
	return bytes, nil
}

// drop deletes copies.
func (c *Copier) drop(ctx context.Context, copies []Copy) error {
	for _, old := range copies {
		for _, page := range old.Pages {
			call, cancel := context.WithTimeout(ctx, callTime)
			err := c.deps.Store.Delete(call, page.Name)
			cancel()
			if err != nil {
				return fmt.Errorf("delete an old copy: %w", err)
			}
		}
	}
	return nil
}
