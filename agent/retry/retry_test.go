package retry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/objectstore"
)

// TestObject holds when an object counts as unreadable by itself, and when its reader goes on to wait for the bucket.
func TestObject(t *testing.T) {
	const try = 100 * time.Millisecond
	day := 24 * time.Hour
	eio := fmt.Errorf("input/output error: %w", objectstore.ErrUnavailable)
	for name, c := range map[string]struct {
		err      error         // of each try
		until    time.Duration // when tries begin to succeed
		away     func(at time.Duration) bool
		patience time.Duration
		after    time.Duration // at least, and less than three seconds more
		want     error
	}{
		"it is there":                   {nil, 0, nil, ObjectPatience, 0, nil},
		"it is gone":                    {objectstore.ErrNotFound, day, nil, ObjectPatience, 0, objectstore.ErrNotFound},
		"it is there soon":              {eio, 5 * time.Second, nil, ObjectPatience, 5 * time.Second, nil},
		"it alone cannot be read":       {eio, day, nil, ObjectPatience, ObjectPatience, objectstore.ErrUnavailable},
		"it alone is refused":           {objectstore.ErrDenied, day, nil, ObjectPatience, ObjectPatience, objectstore.ErrDenied},
		"it alone hangs":                {context.DeadlineExceeded, day, nil, ObjectPatience, ObjectPatience, context.DeadlineExceeded},
		"it alone, which was known":     {eio, day, nil, 0, 0, objectstore.ErrUnavailable},
		"the bucket is away":            {eio, time.Hour, func(at time.Duration) bool { return at < time.Hour }, ObjectPatience, time.Hour, nil},
		"the bucket is away, and known": {eio, time.Hour, func(at time.Duration) bool { return at < time.Hour }, 0, time.Hour, nil},
		"the bucket was away, and the object is there at the second try": {eio, 4550 * time.Millisecond, func(at time.Duration) bool { return at < 4*time.Second }, 0, 4550 * time.Millisecond, nil},
		"the bucket is overloaded":                                       {eio, time.Hour, func(at time.Duration) bool { return int(at.Seconds())%9 >= 7 }, ObjectPatience, time.Hour, nil},
		"the bucket is back, the object not": {
			eio, day, func(at time.Duration) bool { return at < time.Hour }, ObjectPatience, time.Hour + ObjectPatience, objectstore.ErrUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				answers := func(context.Context) bool { return c.away == nil || !c.away(time.Since(began)) }
				err := Object(t.Context(), slog.New(slog.DiscardHandler), "read it", answers, c.patience, func(context.Context) error {
					time.Sleep(try)
					if time.Since(began) >= c.until {
						return nil
					}
					return c.err
				})
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if took := time.Since(began); took < c.after || took > c.after+3*time.Second {
					t.Errorf("it took %v, want %v or little more", took, c.after)
				}
			})
		})
	}
}

// TestObjectWithoutPatience: what fails at once is tried a second time, and what hangs is not.
func TestObjectWithoutPatience(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{{objectstore.ErrUnavailable, 2}, {context.DeadlineExceeded, 1}, {objectstore.ErrNotFound, 1}} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			always := func(context.Context) bool { return true }
			err := Object(t.Context(), slog.New(slog.DiscardHandler), "read it", always, 0, func(context.Context) error {
				tries++
				return c.err
			})
			if !errors.Is(err, c.err) || tries != c.want {
				t.Errorf("%d tries, and then %v: want %d and %v", tries, err, c.want, c.err)
			}
		})
	}
}

// TestObjectEnds: who waits for an object leaves with its context.
func TestObjectEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		never := func(context.Context) bool { return false }
		err := Object(ctx, slog.New(slog.DiscardHandler), "read it", never, ObjectPatience, func(context.Context) error { return objectstore.ErrUnavailable })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
