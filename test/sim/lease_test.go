package sim

import (
	"context"
	"errors"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// renewPause is how often a lease is renewed.
const renewPause = time.Second

// Grant implements coordinator.KV.
func (k *agentKV) Grant(ctx context.Context, ttlSeconds int64) (id int64, err error) {
	parked := k.call(ctx, &call{what: "grant a lease", run: func(e effect) {
		if e == unavailable || e == noRoom || e == comesLate {
			err = coordinator.ErrUnavailable
			return
		}
		if id, err = k.w.kv.Grant(k.w.ctx, ttlSeconds); e != happens {
			err = coordinator.ErrUnavailable
		}
	}})
	if parked != nil {
		return 0, parked
	}
	return id, err
}

// KeepAlive implements coordinator.KV, as the real one does: by renewals until the lease is gone.
func (k *agentKV) KeepAlive(ctx context.Context, id int64) error {
	for {
		var err error
		parked := k.call(ctx, &call{what: "renew lease", run: func(e effect) {
			if e == unavailable || e == noRoom || e == comesLate {
				err = coordinator.ErrUnavailable
				return
			}
			if err = k.w.kv.Renew(k.w.ctx, id); e != happens {
				err = coordinator.ErrUnavailable
			}
		}})
		switch {
		case parked != nil:
			return parked
		case errors.Is(err, coordinator.ErrLeaseGone):
			return err
		}
		select {
		case <-time.After(renewPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Revoke implements coordinator.KV.
func (k *agentKV) Revoke(ctx context.Context, id int64) (err error) {
	parked := k.call(ctx, &call{what: "revoke lease", run: func(e effect) {
		if e == unavailable || e == noRoom || e == comesLate {
			err = coordinator.ErrUnavailable
			return
		}
		if err = k.w.kv.Revoke(k.w.ctx, id); e != happens {
			err = coordinator.ErrUnknownOutcome
		}
	}})
	if parked != nil {
		return parked
	}
	return err
}
