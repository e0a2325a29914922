package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
)

const (
	// proofMax bounds the wait for a proof of ownership: after it, the log has no quorum.
	proofMax = 5 * time.Second
	// proofPause is how often an agent makes sure that its log has a quorum, and doubtMax how long that may take before it looks closer.
	proofPause = time.Second
	doubtMax   = time.Second
)

// errNoQuorum: the log's ack quorum cannot be reached.
var errNoQuorum = errors.New("the WAL has no quorum of stores in reach")

// prove returns when the log's quorum has acknowledged an append that was sent after the call: until then, nobody had taken over what this agent leads.
func (a *Agent) prove(ctx context.Context) error { return a.proveWithin(ctx, proofMax) }

func (a *Agent) proveWithin(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return a.wal.Prove(ctx)
}

// guardQuorum ends the incarnation when its log has had no quorum for some seconds, in which etcd was there to roll to another ensemble, while so many other agents are
// registered that they can do without this one: they recover the log. What is durable is flushed before, as far as that goes.
func (a *Agent) guardQuorum(ctx context.Context) error {
	return retry.Every(ctx, proofPause, func() error {
		if a.proveWithin(ctx, doubtMax) == nil || !a.reachesCoordinator(ctx) {
			return nil
		}
		err := a.proveWithin(ctx, proofMax-doubtMax)
		if err == nil || !a.reachesCoordinator(ctx) || ctx.Err() != nil || a.draining.Load() || !a.dispensable() {
			return nil //nolint:nilerr // nobody is served better by the end of this agent
		}
		a.log.Error("the WAL has no quorum, and other agents are there to take over", "err", err)
		limited, cancel := context.WithTimeout(ctx, proofMax)
		if err := a.flusher.Flush(limited); err != nil {
			a.log.Warn("not everything that is durable could be flushed", "err", err)
		}
		cancel()
		return fmt.Errorf("%w: %w", errNoQuorum, err)
	})
}

// reachesCoordinator reports whether etcd answers soon.
func (a *Agent) reachesCoordinator(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, doubtMax)
	defer cancel()
	_, _, err := a.deps.KV.Get(ctx, coordinator.KeyLog(a.id))
	return err == nil
}

// dispensable reports whether the other agents suffice for a quorum.
func (a *Agent) dispensable() bool {
	others := 0
	for _, m := range a.view.Agents() {
		if m.Log != a.id && m.Peer != "" && m.State == coordinator.AgentServing {
			others++
		}
	}
	return a.cfg.Copies > 1 && others >= a.cfg.Copies/2+1
}
