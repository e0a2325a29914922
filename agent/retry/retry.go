// Package retry repeats what an agent asks of etcd and of the bucket while they are away, for as long as it takes, and saying what it
// waits for; and what it does at intervals.
package retry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol"
)

// CallTimeout bounds one call to the coordinator, which is then tried again: a request that was handed to a dying etcd leader
// can hang for seconds.
const CallTimeout = 5 * time.Second

// pauseTime is the wait between two tries.
const pauseTime = time.Second

// Coordinator calls do, with a deadline of its own each time, until it succeeds, ctx ends, or it fails for another reason than that the
// coordinator is away; meanwhile it says what it waits for. do must be safe to repeat after an unknown outcome.
func Coordinator(ctx context.Context, log *slog.Logger, what string, do func(context.Context) error) error {
	for {
		call, cancel := context.WithTimeout(ctx, CallTimeout)
		err := do(call)
		cancel()
		away := errors.Is(err, coordinator.ErrUnavailable) || errors.Is(err, coordinator.ErrUnknownOutcome) ||
			errors.Is(err, coordinator.ErrNoSpace) || errors.Is(err, context.DeadlineExceeded)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case !away:
			return fmt.Errorf("%s: %w", what, err)
		}
		log.Warn("waiting for etcd", "to", what, "err", err)
		if err := Pause(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// Bucket repeats do while the bucket is away.
func Bucket(ctx context.Context, log *slog.Logger, what string, do func() error) error {
	for {
		err := do()
		if err == nil || !transient(err) {
			return err
		}
		log.Warn("waiting for the bucket", "to", what, "err", err)
		if err := Pause(ctx); err != nil {
			return err
		}
	}
}

// Every calls do at intervals, the first time after one, until ctx ends or do fails, and returns that error. A call that takes longer than an interval puts the
// next one off.
func Every(ctx context.Context, interval time.Duration, do func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := do(); err != nil {
			return err
		}
	}
}

// Pause waits for the time between two tries; the error is that of ctx if it ends first.
func Pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pauseTime):
		return nil
	}
}

// transient reports whether a failed read of the bucket may succeed later.
func transient(err error) bool {
	var known *protocol.Error
	return errors.Is(err, objectstore.ErrUnavailable) || errors.Is(err, objectstore.ErrDenied) ||
		errors.Is(err, context.DeadlineExceeded) || errors.As(err, &known) && known.Code.Retriable()
}
