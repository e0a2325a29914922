package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/varve-io/varve/coordinator"
)

const (
	// pageItemsMax is how many items one request of List asks for.
	pageItemsMax = 512
	// pageShrink is what that is divided by when the answer did not come in the time of an attempt: values may be large, and the way to etcd slow.
	pageShrink = 8
)

// Get implements [coordinator.KV].
func (s *Store) Get(ctx context.Context, key string) (coordinator.Item, int64, error) {
	if key == "" {
		return coordinator.Item{}, 0, fmt.Errorf("get: %w: no key", coordinator.ErrLimit)
	}
	resp, err := s.read(ctx, clientv3.OpGet(s.cfg.Prefix+key))
	if err != nil {
		return coordinator.Item{}, 0, fmt.Errorf("get %q: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return coordinator.Item{Key: key}, resp.Header.Revision, nil
	}
	return s.item(resp.Kvs[0]), resp.Header.Revision, nil
}

// List implements [coordinator.KV]. A list of the newest revision starts again if that is compacted on the way. Without a deadline of the caller
// each page has one of its own, so that a list may be as long as it is.
func (s *Store) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	for {
		items, at, err := s.list(ctx, prefix, rev)
		if err == nil {
			return items, at, nil
		}
		if rev != 0 || !errors.Is(err, coordinator.ErrCompacted) {
			return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	from := s.cfg.Prefix + prefix
	end := clientv3.GetPrefixRangeEnd(from)
	var items []coordinator.Item
	page := int64(pageItemsMax)
	for {
		resp, err := s.repeat(ctx, func(late bool) clientv3.Op {
			if late {
				page = max(page/pageShrink, 1)
			}
			return clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(page))
		})
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			items = append(items, s.item(kv))
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return items, rev, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// ClusterID implements [coordinator.KV].
func (s *Store) ClusterID(ctx context.Context) (uint64, error) {
	resp, err := s.read(ctx, clientv3.OpGet(s.cfg.Prefix, clientv3.WithCountOnly()))
	if err != nil {
		return 0, fmt.Errorf("cluster id: %w", err)
	}
	return resp.Header.ClusterId, nil
}

// Status implements [coordinator.KV]. The sizes are those of the member that happens to answer; members differ by when
// they were defragmented. An etcd before 3.6 does not tell its quota, and one that has none says so by 0.
func (s *Store) Status(ctx context.Context) (coordinator.Status, error) {
	resp, err := s.read(ctx, clientv3.OpGet(s.cfg.Prefix))
	if err != nil {
		return coordinator.Status{}, fmt.Errorf("status: %w", err)
	}
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return coordinator.Status{}, fmt.Errorf("status: %w", err)
	}
	defer cancel()
	// The library's own Status would dial a new connection for each call.
	sizes, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return coordinator.Status{}, fmt.Errorf("status: %w", readError(err))
	}
	return coordinator.Status{
		Revision: resp.Header.Revision, SizeBytes: sizes.DbSize, UsedBytes: sizes.DbSizeInUse, QuotaBytes: max(sizes.DbSizeQuota, 0),
		NoSpace: slices.ContainsFunc(sizes.Errors, func(text string) bool { return strings.Contains(text, noSpaceAlarm) }),
	}, nil
}

// noSpaceAlarm stands in an answer's errors for each member whose alarm is raised. The alarm of one is enough: all refuse writes then. The
// list of alarms itself would cost an entry of the raft log each time.
var noSpaceAlarm = "alarm:" + etcdserverpb.AlarmType_NOSPACE.String()

// Compact implements [coordinator.KV], for all of etcd, whatever the prefix.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return fmt.Errorf("compact to revision %d: %w", rev, err)
	}
	defer cancel()
	ctx, sent := withSent(ctx)
	_, err = client.Compact(ctx, rev)
	switch {
	case err == nil, errors.Is(err, rpctypes.ErrCompacted):
		return nil
	case errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("compact to revision %d: %w: %w", rev, coordinator.ErrUnavailable, err)
	}
	return fmt.Errorf("compact to revision %d: %w", rev, writeError(err, sent.Load()))
}

// read runs a read until it succeeds, fails for good, or ctx ends.
func (s *Store) read(ctx context.Context, op clientv3.Op) (*clientv3.GetResponse, error) {
	return s.repeat(ctx, func(bool) clientv3.Op { return op })
}

// repeat runs a read as read does, and has each attempt made anew: late says that the one before ran out of its time.
func (s *Store) repeat(ctx context.Context, op func(late bool) clientv3.Op) (*clientv3.GetResponse, error) {
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	for late := false; ; {
		attempt, cancelAttempt := context.WithTimeout(ctx, attemptTimeout)
		resp, err := client.Do(attempt, op(late))
		cancelAttempt()
		if err == nil {
			return resp.Get(), nil
		}
		if ctx.Err() != nil || !s.transient(err) {
			return nil, readError(err)
		}
		late = errors.Is(attempt.Err(), context.DeadlineExceeded)
		s.pause(ctx, retryDelay)
	}
}

// transient tells whether a read that failed with err may succeed if it is repeated.
func (s *Store) transient(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	if isAny(err, staleTokens) {
		return s.cfg.Username != "" // the library has fetched a new one
	}
	if known, ok := errors.AsType[rpctypes.EtcdError](rpctypes.Error(err)); ok {
		return known.Code() == codes.Unavailable || errors.Is(known, rpctypes.ErrTooManyRequests)
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// item converts an etcd key, without the store's prefix. It takes over the value's bytes.
func (s *Store) item(kv *mvccpb.KeyValue) coordinator.Item {
	return coordinator.Item{
		Key:            strings.TrimPrefix(string(kv.Key), s.cfg.Prefix),
		Value:          kv.Value,
		CreateRevision: kv.CreateRevision,
		ModRevision:    kv.ModRevision,
		Lease:          kv.Lease,
	}
}
