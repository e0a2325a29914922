package agent

import (
	"bytes"
	"context"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
)

// tell writes what others should know of this agent, under the lease of its registration, at intervals, if that has changed, until ctx ends. Nothing
// depends on it: what could not be written is written the next time.
func (a *Agent) tell(ctx context.Context, key string, pause time.Duration, what func() any) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var told []byte
	var under int64 // lease that told hangs on
	for {
		lease, _ := a.registration.current()
		if now := coordinator.Encode(what()); !bytes.Equal(now, told) || lease != under {
			if err := a.put(ctx, coordinator.Op{Key: key, Value: now, Lease: lease}); err == nil {
				told, under = now, lease
			} else {
				a.log.Debug("what others should know of this agent could not be told", "key", key, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Agent) put(ctx context.Context, op coordinator.Op) error {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	_, err := a.deps.KV.Txn(ctx, nil, []coordinator.Op{op})
	return err
}

// unflushedPause is how often the agent tells how much of its log is not flushed.
const unflushedPause = 5 * time.Second

// tellUnflushed tells whoever looks after the cluster (package status) how much of the log is not in the bucket yet, and what the bucket has lost.
func (a *Agent) tellUnflushed(ctx context.Context) error {
	return a.tell(ctx, coordinator.KeyUnflushed(a.node), unflushedPause, func() any {
		u := coordinator.Unflushed{Log: a.id, Bytes: a.wal.Stats().UnflushedBytes, Damaged: a.damaged.list()}
		if oldest := a.flusher.Stats().Oldest; !oldest.IsZero() {
			u.OldestMs = a.deps.Now().Sub(oldest).Milliseconds()
		}
		return u
	})
}

// loadPause is how often the agent measures what its shards are worth, and tells the controller.
const loadPause = 10 * time.Second

// tellLoad tells the controller, and package status, how much is written to and read from the shards that this agent leads.
func (a *Agent) tellLoad(ctx context.Context) error {
	var m meter
	return a.tell(ctx, coordinator.KeyLoad(a.node), loadPause, func() any {
		shards, topics := a.partitions.traffic()
		a.usage.add(topics)
		m.add(a.deps.Now(), shards)
		return m.load(a.id)
	})
}

// usagePause is how often the agent tells what it has asked of the bucket, and for which topics.
const usagePause = 10 * time.Second

// tellUsage tells whoever pays for the bucket (package cost) what this agent has asked of it.
func (a *Agent) tellUsage(ctx context.Context) error {
	return a.tell(ctx, coordinator.KeyUsage(a.node), usagePause, func() any { return a.usage.record(a.id, a.requests.Stats()) })
}
