package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/varve-io/varve/coordinator"
)

// sentKey is the context key of a call's *atomic.Bool that [sentHandler] sets.
type sentKey struct{}

// withSent returns a context whose calls set the flag once anything of them was handed to a connection.
func withSent(ctx context.Context) (context.Context, *atomic.Bool) {
	sent := new(atomic.Bool)
	return context.WithValue(ctx, sentKey{}, sent), sent
}

// sentHandler notes which calls reached a connection: gRPC reports the headers of a request right after it queued
// them there, so a call without that report never left.
type sentHandler struct{}

func (sentHandler) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, ok := event.(*stats.OutHeader); !ok {
		return
	}
	if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
		sent.Store(true)
	}
}

func (sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentHandler) HandleConn(context.Context, stats.ConnStats)                       {}

// refusals are etcd's answers to a request that it did not propose, or whose entry it did not apply. The members agree
// on the latter, since they apply the same entries to the same state.
var refusals = []error{
	rpctypes.ErrTooManyRequests,
	rpctypes.ErrNoLeader, // of the member that was asked, before it looked at the request
	rpctypes.ErrNotCapable,
	rpctypes.ErrAuthNotEnabled,
	rpctypes.ErrAuthFailed,
	rpctypes.ErrUserEmpty,
	rpctypes.ErrUserNotFound,
	rpctypes.ErrPermissionDenied,
	rpctypes.ErrInvalidAuthToken,
	rpctypes.ErrAuthOldRevision,
}

// staleTokens are the refusals after which the client library has fetched a new token, so that one more try can
// succeed.
var staleTokens = []error{rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty}

// overLimits are the refusals that are the caller's defects.
var overLimits = []error{
	rpctypes.ErrEmptyKey,
	rpctypes.ErrTooManyOps,
	rpctypes.ErrDuplicateKey,
	rpctypes.ErrRequestTooLarge,
}

// proposalDropped is raft's refusal to take an entry (no leader, or one that hands over), which etcd passes on as it is.
const proposalDropped = "raft proposal dropped"

// isAny tells whether err is one of etcd's errors in kinds.
func isAny(err error, kinds []error) bool {
	err = rpctypes.Error(err)
	return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
}

// writeError gives a failed write its kind; sent tells whether it reached a connection.
func writeError(err error, sent bool) error {
	known := rpctypes.Error(err)
	switch {
	case isAny(err, overLimits):
		return fmt.Errorf("%w: %w", coordinator.ErrLimit, err)
	case !sent, isAny(err, refusals), status.Convert(err).Message() == proposalDropped:
		return fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
	case errors.Is(known, rpctypes.ErrLeaseNotFound):
		return fmt.Errorf("%w: %w", coordinator.ErrLeaseGone, err)
	case errors.Is(known, rpctypes.ErrNoSpace):
		// Refused before it was proposed, or applied and then answered with the same error: see Txn.
		return fmt.Errorf("%w: %w: %w", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, err)
}

// readError gives a failed read its kind.
func readError(err error) error {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: %w", coordinator.ErrCompacted, err)
	}
	if isAny(err, overLimits) {
		return fmt.Errorf("%w: %w", coordinator.ErrLimit, err)
	}
	return fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
}
