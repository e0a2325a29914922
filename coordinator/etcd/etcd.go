// Package etcd is the [coordinator.KV] over an etcd cluster, and the only home of etcd's client library.
//
// # Outcomes
//
// What a failed transaction has done is the one thing that must never be guessed, so the client library's own
// retries are off (it repeats a transaction that a server ended with Canceled or DeadlineExceeded while the caller's
// time had not run out, and the second run then fails on the first one's writes). A transaction is sent once. It
// certainly did not run if nothing of it was handed to a connection (a [stats.Handler] sees that), or if etcd answered
// with an error that it only gives before or instead of applying; everything else is ErrUnknownOutcome. See
// [Store.Txn] for the one surprise.
//
// Reads are repeated until their context ends, each attempt with a short deadline of its own, because a request that
// was handed to a dying leader can hang.
//
// # Reachability
//
// [New] does not connect. While etcd is away, calls wait for it until their context ends and then fail with
// ErrUnavailable; watches and KeepAlive reconnect by themselves. A silent connection is noticed by pings.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/varve-io/varve/coordinator"
)

const (
	callTimeout     = 5 * time.Second // of a call, or a page of a list, whose context has no deadline
	attemptTimeout  = 2 * time.Second // of one attempt of a read
	retryDelay      = 100 * time.Millisecond
	reconnectMax    = 2 * time.Second  // longest pause between attempts to connect; gRPC's default is two minutes
	pingInterval    = 10 * time.Second // of an idle connection with streams; etcd refuses less than five seconds
	pingTimeout     = 5 * time.Second
	progressDefault = 5 * time.Second
)

// Config of a [Store].
type Config struct {
	Endpoints []string // http://, https:// or unix:// URLs of the members; at least one
	// Prefix comes before every key in etcd and is not seen by callers. It must not be empty and usually ends
	// with a slash: /varve/production/
	Prefix string
	// DialTimeout bounds one attempt to connect; 0 means 5 s.
	DialTimeout time.Duration
	// Username and Password authenticate, if set.
	Username, Password string
	// TLS is used for https endpoints.
	TLS *tls.Config
	// ProgressInterval is how long a watch may be without news before it asks etcd how far it is, and so the
	// greatest age of a Batch's Revision on a quiet store; 0 means 5 s.
	ProgressInterval time.Duration
}

// Store is a connection to etcd. It implements [coordinator.KV]; all methods may be called concurrently.
type Store struct {
	cfg    Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	slot   chan *clientv3.Client // holds the client; empty while one is being made
}

var _ coordinator.KV = (*Store)(nil)

// New makes a Store. It does not connect, so that etcd may start later; its errors concern cfg.
func New(cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("etcd: no endpoints, wanted at least one")
	}
	if cfg.Prefix == "" {
		return nil, errors.New("etcd: empty key prefix")
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = callTimeout
	}
	if cfg.ProgressInterval == 0 {
		cfg.ProgressInterval = progressDefault
	}
	s := &Store{cfg: cfg, slot: make(chan *clientv3.Client, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if cfg.Username != "" {
		// The library authenticates while it makes a client, which needs etcd: the first call does it.
		s.slot <- nil
		return s, nil
	}
	client, err := s.dial(cfg.DialTimeout)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	s.slot <- client
	return s, nil
}

// dial makes a client. Without a username it returns at once.
func (s *Store) dial(timeout time.Duration) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Context:              s.ctx,
		Endpoints:            s.cfg.Endpoints,
		DialTimeout:          timeout,
		DialKeepAliveTime:    pingInterval,
		DialKeepAliveTimeout: pingTimeout,
		Username:             s.cfg.Username,
		Password:             s.cfg.Password,
		TLS:                  s.cfg.TLS,
		MaxUnaryRetries:      1, // attempts, in fact: none is repeated
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithStatsHandler(sentHandler{}),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: retryDelay, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax},
				MinConnectTimeout: s.cfg.DialTimeout,
			}),
		},
	})
}

// client returns the client, made now if it has to authenticate first. Its error wraps ErrUnavailable.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	select {
	case <-s.ctx.Done():
		return nil, fmt.Errorf("%w: closed", coordinator.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", coordinator.ErrUnavailable, ctx.Err())
	case client := <-s.slot:
		var err error
		if client == nil {
			timeout := s.cfg.DialTimeout
			if deadline, ok := ctx.Deadline(); ok {
				timeout = min(timeout, max(time.Until(deadline), time.Millisecond))
			}
			client, err = s.dial(timeout)
		}
		s.slot <- client
		if err != nil {
			return nil, fmt.Errorf("%w: %w", coordinator.ErrUnavailable, err)
		}
		return client, nil
	}
}

// begin prepares a call: a context with a deadline, that fails on a member without a leader, and the client.
func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc, *clientv3.Client, error) {
	ctx, cancel := withDeadline(ctx)
	client, err := s.client(ctx)
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return clientv3.WithRequireLeader(ctx), cancel, client, nil
}

// withDeadline gives ctx a deadline if it has none.
func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callTimeout)
}

// Close implements [coordinator.KV].
func (s *Store) Close() error {
	s.cancel()
	client := <-s.slot
	s.slot <- client
	if client == nil {
		return nil
	}
	if err := client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close etcd client: %w", err)
	}
	return nil
}

// pause waits for d, or until ctx ends or the store is closed.
func (s *Store) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
}
