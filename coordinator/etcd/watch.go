package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/coordinator"
)

// errWatchEnded: the watch's channel was closed without a reason.
var errWatchEnded = errors.New("watch ended")

// Watch implements [coordinator.KV]. On a quiet store, a batch without events comes about every
// [Config.ProgressInterval]. The library buffers what fn has not taken, without a limit.
func (s *Store) Watch(ctx context.Context, prefix string, rev int64, fn func(coordinator.Batch)) error {
	next := rev + 1
	for {
		err := s.watch(ctx, prefix, &next, fn)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.ctx.Err() != nil:
			return fmt.Errorf("watch %q: %w: closed", prefix, coordinator.ErrUnavailable)
		case errors.Is(err, rpctypes.ErrCompacted):
			return fmt.Errorf("watch %q after revision %d: %w", prefix, next-1, coordinator.ErrCompacted)
		}
		s.pause(ctx, retryDelay)
	}
}

// watch sends batches to fn, beginning with revision *next and advancing it, until ctx ends or the watch fails.
func (s *Store) watch(ctx context.Context, prefix string, next *int64, fn func(coordinator.Batch)) error {
	client, err := s.client(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	// Fragments are for answers over the request limit; the library puts them together again, so that a revision
	// is always within one answer.
	answers := client.Watch(ctx, s.cfg.Prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(*next), clientv3.WithFragment())
	quiet := time.NewTicker(s.cfg.ProgressInterval)
	defer quiet.Stop()
	for news := false; ; {
		select {
		case answer, ok := <-answers:
			if !ok {
				return errWatchEnded
			}
			if err := answer.Err(); err != nil {
				return err
			}
			s.deliver(answer, next, fn)
			news = true
		case <-quiet.C:
			if !news {
				requestProgress(ctx, client)
			}
			news = false
		}
	}
}

// deliver cuts an answer into revisions. An answer without events is about progress.
func (s *Store) deliver(answer clientv3.WatchResponse, next *int64, fn func(coordinator.Batch)) {
	if answer.IsProgressNotify() {
		if answer.Header.Revision >= *next-1 {
			*next = answer.Header.Revision + 1
			fn(coordinator.Batch{Revision: answer.Header.Revision})
		}
		return
	}
	for events := answer.Events; len(events) > 0; {
		batch := coordinator.Batch{Revision: events[0].Kv.ModRevision}
		for len(events) > 0 && events[0].Kv.ModRevision == batch.Revision {
			batch.Events = append(batch.Events, coordinator.Event{
				Item:    s.item(events[0].Kv),
				Deleted: events[0].Type == clientv3.EventTypeDelete,
			})
			events = events[1:]
		}
		*next = batch.Revision + 1
		fn(batch)
	}
}

// requestProgress asks for a progress answer on the stream that all watches share. That it cannot be asked for now is
// no failure: the library is reconnecting, or the next tick asks again.
func requestProgress(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(ctx, retryDelay)
	defer cancel()
	_ = client.RequestProgress(ctx)
}
