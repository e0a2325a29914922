// Package retry repeats what an agent asks of etcd and of the bucket while they are away, for as long as it takes, and saying what it
// waits for; what is asked of one object, for as long as that may be the bucket's fault; and what it does at intervals.
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
		if err == nil || !Transient(err) {
			return err
		}
		log.Warn("waiting for the bucket", "to", what, "err", err)
		if err := Pause(ctx); err != nil {
			return err
		}
	}
}

// ObjectPatience is for how long the bucket must have answered other questions, and not given an object, for that to be taken for the object's own fault rather than the bucket's.
const ObjectPatience = 10 * time.Second

// Object repeats do, which reads one object, while the bucket is away, as [Bucket] does. But where the bucket answers, which answers asks it each time that do has failed, and went on to answer for as long as patience, it is this object
// that cannot be read: a disk with a bad place, a placement group that is down, a key that is gone. Then the error is do's last one; whoever wants the object asks again later. With a patience of 0 do is repeated once while the bucket answers, at once, and not if it timed out.
// do must not wait for ever, where the bucket says nothing of the object.
func Object(ctx context.Context, log *slog.Logger, what string, answers func(context.Context) bool, patience time.Duration, do func(context.Context) error) error {
	var since time.Time // since when the bucket has answered each time
	repeated := false   // since then
	for {
		err := do(ctx)
		switch {
		case err == nil || !Transient(err):
			return err
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, ctx.Err())
		case !answers(ctx):
			since, repeated = time.Time{}, false
		case since.IsZero():
			since = time.Now()
		}
		if !since.IsZero() && time.Since(since) >= patience && ctx.Err() == nil {
			if !repeated && !errors.Is(err, context.DeadlineExceeded) {
				repeated = true
				continue
			}
			return fmt.Errorf("%s, of a bucket that answers otherwise: %w", what, err)
		}
		log.Warn("waiting for the bucket", "to", what, "err", err)
		if err := Pause(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
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

// Transient reports whether a failed read of the bucket may succeed later: it is not that the object is gone, or damaged. It is false for nil.
func Transient(err error) bool {
	var known *protocol.Error
	return errors.Is(err, objectstore.ErrUnavailable) || errors.Is(err, objectstore.ErrDenied) ||
		errors.Is(err, context.DeadlineExceeded) || errors.As(err, &known) && known.Code.Retriable()
}
