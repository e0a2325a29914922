package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/coordinator"
)

// writes is what Varve has its etcd write for transactions.
type writes struct {
	// TxnRecords are records of transactional ids: partitions that come in, groups that come in, decisions, and completions that
	// went along with nothing else.
	TxnRecords int
	// Pending are offsets that a transaction has taken in, and Applied those that its end made a group's.
	Pending, Applied int
	// Keys is how many keys were written or deleted for all these, without the guards.
	Keys int
	// EtcdTxns are etcd's transactions that had any of these.
	EtcdTxns int
}

// total is how many writes there were: what one transaction hands over at one time counts as one.
func (w writes) total() int { return w.TxnRecords + w.Pending + w.Applied }

// writesWatch follows all keys of a cluster in etcd, from the outside: what is counted is what is durable.
type writesWatch struct {
	client *clientv3.Client

	mu  sync.Mutex
	all map[int64]revision
	err error
}

// revision is one transaction of etcd.
type revision struct {
	at time.Time // when the watch told
	writes
}

// watchWrites begins to watch.
func watchWrites(ctx context.Context, address string) (*writesWatch, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + address}, Context: ctx})
	if err != nil {
		return nil, fmt.Errorf("watch etcd at %s: %w", address, err)
	}
	w := &writesWatch{client: client, all: make(map[int64]revision)}
	created := make(chan struct{})
	go w.follow(client.Watch(ctx, "/varve/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()), created)
	select {
	case <-created:
		return w, nil
	case <-time.After(watchTimeout):
		return nil, fmt.Errorf("watch etcd at %s: no answer in %v", address, watchTimeout)
	}
}

// watchTimeout is how long etcd may take to begin a watch.
const watchTimeout = 10 * time.Second

// follow takes what the watch tells, first that it has begun.
func (w *writesWatch) follow(told clientv3.WatchChan, created chan<- struct{}) {
	for response := range told {
		if response.Created {
			close(created)
		}
		w.mu.Lock()
		if err := response.Err(); err != nil {
			w.err = fmt.Errorf("watch etcd: %w", err)
		}
		for _, event := range response.Events {
			r, seen := w.all[event.Kv.ModRevision]
			if !seen {
				r.at = time.Now()
			}
			r.count(string(event.Kv.Key), event.Type == clientv3.EventTypeDelete)
			w.all[event.Kv.ModRevision] = r
		}
		w.mu.Unlock()
	}
}

// count takes in a key of etcd that was written.
func (w *writes) count(key string, deleted bool) {
	parts := strings.SplitN(key, "/", 4) // "/varve/CLUSTER/" comes before every key
	key = parts[len(parts)-1]
	switch {
	case strings.HasPrefix(key, coordinator.PrefixTxns):
		w.TxnRecords++
	case strings.HasPrefix(key, coordinator.PrefixPending) && deleted: // together with the group's offsets
		w.Applied++
	case strings.HasPrefix(key, coordinator.PrefixPending):
		w.Pending++
	case strings.HasPrefix(key, coordinator.PrefixOffsets):
	default:
		return
	}
	w.Keys++
	w.EtcdTxns = 1
}

// between sums up what was written in a span of time.
func (w *writesWatch) between(from time.Time, span time.Duration) (sum writes, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.all {
		if r.at.Before(from) || r.at.After(from.Add(span)) {
			continue
		}
		sum.TxnRecords += r.TxnRecords
		sum.Pending += r.Pending
		sum.Applied += r.Applied
		sum.Keys += r.Keys
		sum.EtcdTxns += r.EtcdTxns
	}
	return sum, w.err
}

func (w *writesWatch) close() { _ = w.client.Close() }
