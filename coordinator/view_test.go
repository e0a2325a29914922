package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// watched is a view and what it told, in order.
type watched struct {
	t    *testing.T
	kv   *mem.Store
	view *coordinator.View

	mu   sync.Mutex
	told []string
}

func newWatched(t *testing.T) *watched {
	w := &watched{t: t, kv: mem.New(mem.Config{ClusterID: 1, Start: time.Now()})}
	w.view = w.newView(w.kv)
	return w
}

// newView returns a view that tells w.
func (w *watched) newView(kv coordinator.KV) *coordinator.View {
	return coordinator.NewView(kv, coordinator.ViewConfig{
		Log: slog.New(slog.DiscardHandler),
		OnCommit: func(c coordinator.CommitItem) {
			w.tell("commit %d/%d deleted=%v", c.Log, c.Number, c.Deleted)
		},
		OnTopic: func(topic coordinator.Topic, deleted bool) {
			w.tell("topic %s %d partitions=%d deleted=%v", topic.Name, topic.ID[0], topic.Partitions, deleted)
		},
	})
}

func (w *watched) tell(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf(format, args...))
}

// expect compares what was told since the last call.
func (w *watched) expect(when string, want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.told, want) {
		w.t.Errorf("%s: told %q, want %q", when, w.told, want)
	}
	w.told = nil
}

// run runs the view until the test ends.
func (w *watched) run() (ended chan error, stop context.CancelFunc) {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended = make(chan error, 1)
	go func() { ended <- w.view.Run(ctx) }()
	return ended, cancel
}

func (w *watched) txn(ops ...coordinator.Op) int64 {
	w.t.Helper()
	res, err := w.kv.Txn(w.t.Context(), nil, ops)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.Revision
}

func topic(name string, id byte, partitions int32) coordinator.Op {
	t := coordinator.Topic{ID: protocol.TopicID{id}, Name: name, Partitions: partitions}
	return coordinator.Op{Key: coordinator.KeyTopic(name), Value: coordinator.Encode(t)}
}

func commit(log coordinator.LogID, number uint64) coordinator.Op {
	c := coordinator.Commit{Object: "o", ObjectSize: 10, FooterPos: 5, FooterSize: 5, Log: log, Fence: 1, Number: number, FirstEntry: 1, LastEntry: 1}
	return coordinator.Op{Key: coordinator.KeyCommit(log, number), Value: c.Encode()}
}

func gone(key string) coordinator.Op { return coordinator.Op{Key: key, Delete: true} }

func TestViewFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		w.txn(topic("a", 1, 1))
		w.txn(commit(1, 1))
		ended, stop := w.run()
		synctest.Wait()
		w.expect("at first", "topic a 1 partitions=1 deleted=false", "commit 1/1 deleted=false")

		w.txn(topic("a", 1, 2))
		w.txn(topic("b", 2, 1), commit(1, 2))
		w.txn(gone(coordinator.KeyTopic("a")), gone(coordinator.KeyCommit(1, 1)))
		revision := w.txn(coordinator.Op{Key: coordinator.KeyShard(3), Value: coordinator.Encode(coordinator.Shard{Owner: 1, Node: 7, Epoch: 2})})
		if err := w.view.Wait(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		w.expect("then", "topic a 1 partitions=2 deleted=false", "topic b 2 partitions=1 deleted=false", "commit 1/2 deleted=false",
			"topic a 1 partitions=2 deleted=true", "commit 1/1 deleted=true")
		if _, _, ok := w.view.Topic("a"); ok {
			t.Error("a deleted topic is in the view")
		}
		if _, ok := w.view.TopicByID(protocol.TopicID{1}); ok {
			t.Error("a deleted topic is found by id")
		}
		if got, ok := w.view.TopicByID(protocol.TopicID{2}); !ok || got.Name != "b" {
			t.Errorf("topic by id: %+v, %v", got, ok)
		}
		if s, at := w.view.Shard(3); s.Node != 7 || at != revision {
			t.Errorf("shard: %+v at %d", s, at)
		}
		if s, _ := w.view.Shard(99); s.Node != 0 {
			t.Errorf("an unknown shard: %+v", s)
		}
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the view ended with %v", err)
		}
	})
}

// TestViewTellsCommitsInOrder holds that a view which begins late tells commits in the order in which they were made: the log of an agent that got the shards
// late may have a lower number than that of the leader before.
func TestViewTellsCommitsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		w.txn(commit(6, 1))
		w.txn(commit(6, 2))
		w.txn(commit(5, 1))
		_, stop := w.run()
		defer stop()
		synctest.Wait()
		w.expect("at first", "commit 6/1 deleted=false", "commit 6/2 deleted=false", "commit 5/1 deleted=false")
	})
}

// awayKV ends the watch until it is let through, as a connection that is lost while history is compacted.
type awayKV struct {
	coordinator.KV
	away chan struct{} // a watch ends when something comes
	back chan struct{} // and begins when something comes
}

func (k *awayKV) Watch(ctx context.Context, prefix string, rev int64, fn func(coordinator.Batch)) error {
	<-k.back
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-k.away:
			cancel()
		case <-watch.Done():
		}
	}()
	err := k.KV.Watch(watch, prefix, rev, fn)
	if ctx.Err() == nil && watch.Err() != nil {
		<-k.back
		return k.KV.Watch(ctx, prefix, rev, fn) // from where it was: that may be compacted
	}
	return err
}

// TestViewAfterCompaction holds that what happened while history was lost is told: deletions, a topic that was made anew under its name, and what is new; and
// that what is as it was is not told again.
func TestViewAfterCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		kv := &awayKV{KV: w.kv, away: make(chan struct{}), back: make(chan struct{}, 1)}
		w.view = w.newView(kv)
		w.txn(topic("same", 1, 1), topic("grown", 2, 1), topic("anew", 3, 1), topic("gone", 4, 1), commit(1, 1), commit(1, 2))
		_, stop := w.run()
		defer stop()
		kv.back <- struct{}{}
		synctest.Wait()
		w.mu.Lock()
		w.told = nil
		w.mu.Unlock()

		kv.away <- struct{}{}
		synctest.Wait()
		w.txn(topic("grown", 2, 5), gone(coordinator.KeyTopic("gone")), gone(coordinator.KeyTopic("anew")), gone(coordinator.KeyCommit(1, 1)))
		w.txn(topic("anew", 9, 2), topic("new", 5, 1), commit(1, 3))
		revision := w.txn(coordinator.Op{Key: "other", Value: []byte("x")})
		if err := w.kv.Compact(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		kv.back <- struct{}{} // the old watch finds its revision compacted
		synctest.Wait()
		kv.back <- struct{}{} // the new one begins
		if err := w.view.Wait(t.Context(), revision); err != nil {
			t.Fatal(err)
		}
		w.expect("after the gap",
			"commit 1/1 deleted=true", "topic gone 4 partitions=1 deleted=true",
			"topic grown 2 partitions=5 deleted=false",
			"commit 1/3 deleted=false",
			"topic anew 3 partitions=1 deleted=true", "topic anew 9 partitions=2 deleted=false",
			"topic new 5 partitions=1 deleted=false")
		w.txn(commit(1, 4))
		synctest.Wait()
		w.expect("and on", "commit 1/4 deleted=false")
		stop()
	})
}

func TestViewWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		_, stop := w.run()
		defer stop()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.view.Wait(ctx, w.view.Revision()+1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for the future: %v", err)
		}
		// What stands outside of meta/ moves the revision too.
		revision := w.txn(coordinator.Op{Key: "groups/g", Value: []byte("x")})
		if err := w.view.Wait(t.Context(), revision); err != nil {
			t.Error(err)
		}
		stop()
	})
}

// TestViewBadRecord holds that a record that cannot be read ends the view with an error that names it.
func TestViewBadRecord(t *testing.T) {
	for _, key := range []string{
		coordinator.KeyTopic("t"), coordinator.KeyShard(1), coordinator.KeyAgent(1), coordinator.KeyCommit(1, 1), coordinator.KeyCluster,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWatched(t)
			ended, stop := w.run()
			defer stop()
			synctest.Wait()
			w.txn(coordinator.Op{Key: key, Value: []byte("{")})
			synctest.Wait()
			select {
			case err := <-ended:
				if err == nil || errors.Is(err, context.Canceled) {
					t.Errorf("a bad %s: %v", key, err)
				}
			default:
				t.Errorf("the view goes on after a bad %s", key)
			}
		})
	}
}

// TestViewWaitsForEtcd holds that a view that cannot read at first goes on trying.
func TestViewWaitsForEtcd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		w.txn(topic("a", 1, 1))
		w.kv.Inject(mem.Fault{Call: mem.CallList, Times: 5, Kind: mem.Unavailable})
		_, stop := w.run()
		defer stop()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		w.expect("in the end", "topic a 1 partitions=1 deleted=false")
		stop()
	})
}
