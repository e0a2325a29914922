package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/varve-io/varve/coordinator"
)

// ttlSecondsMin is the shortest lease that etcd grants at its default election timeout.
const ttlSecondsMin = 2

// Grant implements [coordinator.KV]. A shorter ttl than two seconds counts as two. After ErrUnknownOutcome a lease may
// exist that nobody knows; it ends by itself.
func (s *Store) Grant(ctx context.Context, ttlSeconds int64) (int64, error) {
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", err)
	}
	defer cancel()
	ctx, sent := withSent(ctx)
	resp, err := client.Grant(ctx, max(ttlSeconds, ttlSecondsMin))
	if err != nil {
		return 0, fmt.Errorf("grant lease: %w", writeError(err, sent.Load()))
	}
	return int64(resp.ID), nil
}

// Revoke implements [coordinator.KV].
func (s *Store) Revoke(ctx context.Context, lease int64) error {
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return fmt.Errorf("revoke lease %d: %w", lease, err)
	}
	defer cancel()
	ctx, sent := withSent(ctx)
	if _, err := client.Revoke(ctx, clientv3.LeaseID(lease)); err != nil {
		return fmt.Errorf("revoke lease %d: %w", lease, writeError(err, sent.Load()))
	}
	return nil
}

// KeepAlive implements [coordinator.KV]. It renews the lease when a third of its time has passed, and goes on through
// failures until etcd itself says that the lease is gone: the library's own KeepAlive gives up by the client's clock.
func (s *Store) KeepAlive(ctx context.Context, lease int64) error {
	timeout := attemptTimeout
	for {
		ttl, err := s.renew(ctx, lease, timeout)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.ctx.Err() != nil:
			return fmt.Errorf("keep lease %d alive: %w: closed", lease, coordinator.ErrUnavailable)
		case errors.Is(err, coordinator.ErrLeaseGone):
			return fmt.Errorf("keep lease %d alive: %w", lease, err)
		case err != nil:
			s.pause(ctx, retryDelay)
		default:
			timeout = min(attemptTimeout, ttl/3)
			s.pause(ctx, ttl/3)
		}
	}
}

// renew renews the lease once and returns its whole time.
func (s *Store) renew(ctx context.Context, lease int64, timeout time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), timeout)
	defer cancel()
	client, err := s.client(ctx)
	if err != nil {
		return 0, err
	}
	// Not the library's KeepAliveOnce: it repeats without a pause while etcd has no leader.
	stream, err := etcdserverpb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return 0, readError(err)
	}
	if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: lease}); err != nil {
		return 0, readError(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
			return 0, coordinator.ErrLeaseGone
		}
		return 0, readError(err)
	}
	if resp.TTL <= 0 {
		return 0, coordinator.ErrLeaseGone
	}
	return time.Duration(resp.TTL) * time.Second, nil
}
