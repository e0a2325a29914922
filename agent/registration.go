package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
)

// leaseSeconds is how long an agent counts as alive after its last sign of life. It is a hint, never a proof: fences decide.
const leaseSeconds = 3

// registration makes an agent known to the others, under a lease. Its methods may be called concurrently.
type registration struct {
	kv      coordinator.KV
	view    *coordinator.View
	changed <-chan struct{} // the view may show other agents; has capacity 1
	log     *slog.Logger
	now     func() time.Time

	writing chan struct{} // has capacity 1: one write at a time, so that the last state wins

	mu    sync.Mutex
	me    coordinator.Agent
	lease int64
	since time.Time // when this lease began
	wrote int64     // revision of the last write
}

// register registers anew, under a new lease, and returns the revision of it. A lease that ended may have been taken for death: if the agent's log was claimed, it is over.
func (r *registration) register(ctx context.Context) (revision int64, err error) {
	err = retry.Coordinator(ctx, r.log, "register", func(ctx context.Context) error {
		logs, err := coordinator.ListLogs(ctx, r.kv, 0)
		if err != nil {
			return err
		}
		if err := r.checkLog(logs); err != nil {
			return err
		}
		lease, err := r.kv.Grant(ctx, leaseSeconds)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.lease, r.since = lease, r.now()
		r.mu.Unlock()
		revision, err = r.write(ctx)
		return err
	})
	return revision, err
}

// checkLog returns an error that is coordinator.ErrFenced if another agent has claimed this one's log, as those of logs show.
func (r *registration) checkLog(logs coordinator.Logs) error {
	l := logs.Record(r.me.Log)
	switch {
	case l != nil && l.Claimer != 0:
		return fmt.Errorf("WAL log %s was claimed by log %s: %w", l.ID, l.Claimer, coordinator.ErrFenced)
	case l == nil && logs.Closed(r.me.Log): // claimed and closed a while ago; or passed over, before it was opened
		return fmt.Errorf("WAL log %s is over, and its record was deleted: %w", r.me.Log, coordinator.ErrFenced)
	}
	return nil
}

// become changes the state.
func (r *registration) become(ctx context.Context, state coordinator.AgentState) error {
	return r.change(ctx, "register as "+string(state), func(me *coordinator.Agent) { me.State = state })
}

// change changes what others are told of this agent.
func (r *registration) change(ctx context.Context, what string, change func(*coordinator.Agent)) error {
	r.mu.Lock()
	change(&r.me)
	r.mu.Unlock()
	return retry.Coordinator(ctx, r.log, what, func(ctx context.Context) error {
		_, err := r.write(ctx)
		return err
	})
}

func (r *registration) write(ctx context.Context) (int64, error) {
	select {
	case r.writing <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-r.writing }()
	r.mu.Lock()
	me, lease := r.me, r.lease
	r.mu.Unlock()
	res, err := r.kv.Txn(ctx, nil, []coordinator.Op{{Key: coordinator.KeyAgent(me.Node), Value: coordinator.Encode(me), Lease: lease}})
	if errors.Is(err, coordinator.ErrLeaseGone) { // keep notices, and there will be another
		err = fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
	}
	if err == nil {
		r.mu.Lock()
		r.wrote = res.Revision
		r.mu.Unlock()
	}
	return res.Revision, err
}

// current returns the lease, and since when it has been held without a gap.
func (r *registration) current() (lease int64, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lease, r.since
}

// keep keeps the registration until ctx ends, and then ends it.
func (r *registration) keep(ctx context.Context) error {
	for {
		lease, _ := r.current()
		err := r.hold(ctx, lease)
		if ctx.Err() != nil {
			return r.end(context.WithoutCancel(ctx), lease)
		}
		r.log.Warn("registration lost; registering again", "err", err)
		if _, err := r.register(ctx); err != nil {
			return err
		}
	}
}

// errMissing: the lease lives, and the registration is gone. A write of unknown outcome may have applied late, under a lease that ended since.
var errMissing = errors.New("registration is gone")

// hold keeps the lease alive until it is gone, the registration is, or ctx ends.
func (r *registration) hold(ctx context.Context, lease int64) error {
	var looking sync.WaitGroup
	defer looking.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	looking.Go(func() {
		for {
			select {
			case <-r.changed:
				if r.missing() {
					cancel(errMissing)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := r.kv.KeepAlive(ctx, lease)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// missing reports whether the view, which has seen the last write, is without this agent.
func (r *registration) missing() bool {
	r.mu.Lock()
	node, wrote := r.me.Node, r.wrote
	r.mu.Unlock()
	revision := r.view.Revision() // first, so that the list is not older
	return revision >= wrote && !slices.ContainsFunc(r.view.Agents(), func(m coordinator.Agent) bool { return m.Node == node })
}

// end ends the lease, and with it the registration; if etcd is away it ends by itself.
func (r *registration) end(ctx context.Context, lease int64) error {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	if err := r.kv.Revoke(ctx, lease); err != nil {
		r.log.Warn("registration stays until its lease ends", "err", err)
	}
	return nil
}
