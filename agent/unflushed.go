package agent

import (
	"context"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
)

// tellPause is how often the agent tells how much of its log is not flushed.
const tellPause = 5 * time.Second

// tellUnflushed tells whoever looks after the cluster (package status) how much of the log is not in the bucket yet, at intervals, if that has changed, until ctx ends. Nothing
// depends on it: what could not be written is written the next time.
func (a *Agent) tellUnflushed(ctx context.Context) error {
	tick := time.NewTicker(tellPause)
	defer tick.Stop()
	var told coordinator.Unflushed
	var under int64 // lease that told hangs on
	for {
		lease, _ := a.registration.current()
		if now := a.unflushed(); now != told || lease != under {
			if err := a.putUnflushed(ctx, now, lease); err == nil {
				told, under = now, lease
			} else {
				a.log.Debug("what is not flushed could not be told", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *Agent) putUnflushed(ctx context.Context, u coordinator.Unflushed, lease int64) error {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	_, err := a.deps.KV.Txn(ctx, nil, []coordinator.Op{{Key: coordinator.KeyUnflushed(a.node), Value: coordinator.Encode(u), Lease: lease}})
	return err
}

func (a *Agent) unflushed() coordinator.Unflushed {
	u := coordinator.Unflushed{Log: a.id, Bytes: a.wal.Stats().UnflushedBytes}
	if oldest := a.flusher.Stats().Oldest; !oldest.IsZero() {
		u.OldestMs = a.deps.Now().Sub(oldest).Milliseconds()
	}
	return u
}
