package etcd_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
)

// refuser is an etcd that answers every transaction with one error.
type refuser struct {
	etcdserverpb.UnimplementedKVServer
	err  error
	txns atomic.Int64
}

func (r *refuser) Txn(context.Context, *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	r.txns.Add(1)
	return nil, r.err
}

// serve runs the refuser and returns a store that talks to it.
func (r *refuser) serve(t *testing.T) *etcd.Store {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, r)
	go func() {
		if err := server.Serve(listener); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(server.Stop)
	return open(t, etcd.Config{Endpoints: []string{"http://" + listener.Addr().String()}, Prefix: "/varve/"})
}

// TestTxnOutcomes tells what each answer of etcd means, and that a transaction is sent once, whatever the answer.
func TestTxnOutcomes(t *testing.T) {
	kinds := []error{coordinator.ErrUnavailable, coordinator.ErrUnknownOutcome, coordinator.ErrLimit, coordinator.ErrNoSpace, coordinator.ErrLeaseGone}
	unavailable, unknown := []error{coordinator.ErrUnavailable}, []error{coordinator.ErrUnknownOutcome}
	for _, c := range []struct {
		answer error
		want   []error
		sent   int64
	}{
		// What etcd answers instead of proposing or applying.
		{rpctypes.ErrGRPCRequestTooManyRequests, unavailable, 1},
		{status.Error(codes.Unknown, "etcdserver: too many requests"), unavailable, 1}, // as etcd really sends it
		{rpctypes.ErrGRPCNoLeader, unavailable, 1},
		{status.Error(codes.Unknown, "raft proposal dropped"), unavailable, 1},
		{rpctypes.ErrGRPCPermissionDenied, unavailable, 1},
		{rpctypes.ErrGRPCInvalidAuthToken, unavailable, 2}, // again with a new token
		{rpctypes.ErrGRPCTooManyOps, []error{coordinator.ErrLimit}, 1},
		{rpctypes.ErrGRPCRequestTooLarge, []error{coordinator.ErrLimit}, 1},
		{rpctypes.ErrGRPCLeaseNotFound, []error{coordinator.ErrLeaseGone}, 1},
		// What it answers in either case.
		{rpctypes.ErrGRPCNoSpace, []error{coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace}, 1},
		{rpctypes.ErrGRPCTimeout, unknown, 1},
		{rpctypes.ErrGRPCTimeoutDueToLeaderFail, unknown, 1},
		{rpctypes.ErrGRPCTimeoutDueToConnectionLost, unknown, 1},
		{rpctypes.ErrGRPCLeaderChanged, unknown, 1},
		{rpctypes.ErrGRPCStopped, unknown, 1},
		{rpctypes.ErrGRPCCorrupt, unknown, 1},
		{status.Error(codes.Unavailable, "transport is closing"), unknown, 1},
		{status.Error(codes.Unknown, "etcdserver: request cancelled"), unknown, 1},
		{status.Error(codes.Internal, "stream terminated"), unknown, 1},
		// The client library repeats these by itself unless it is told not to.
		{status.Error(codes.Canceled, "context canceled"), unknown, 1},
		{status.Error(codes.DeadlineExceeded, "context deadline exceeded"), unknown, 1},
		{status.Error(codes.Unavailable, "there is no connection available"), unknown, 1},
	} {
		r := &refuser{err: c.answer}
		store := r.serve(t)
		_, err := store.Txn(t.Context(), nil, []coordinator.Op{{Key: "a"}})
		for _, kind := range kinds {
			if errors.Is(err, kind) != slices.Contains(c.want, kind) {
				t.Errorf("%v: Txn = %v; want that it is %v and nothing else", c.answer, err, c.want)
			}
		}
		if got := r.txns.Load(); got != c.sent {
			t.Errorf("%v: the transaction was sent %d times, want %d", c.answer, got, c.sent)
		}
	}
}

// TestTxnUnsent tells that a transaction that found no connection is certain not to have run.
func TestTxnUnsent(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// Connections are taken by the kernel, and nobody ever answers the handshake.
	silent := open(t, etcd.Config{Endpoints: []string{"http://" + listener.Addr().String()}, Prefix: "/varve/"})
	closed := open(t, etcd.Config{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/varve/"})
	for name, store := range map[string]*etcd.Store{"silent": silent, "refusing": closed} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := store.Txn(ctx, nil, []coordinator.Op{{Key: "a"}})
		if !errors.Is(err, coordinator.ErrUnavailable) || errors.Is(err, coordinator.ErrUnknownOutcome) {
			t.Errorf("Txn to a %s address: %v, want ErrUnavailable alone", name, err)
		}
		if _, _, err := store.Get(ctx, "a"); !errors.Is(err, coordinator.ErrUnavailable) {
			t.Errorf("Get from a %s address: %v, want ErrUnavailable", name, err)
		}
		cancel()
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
}
