package lead_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// follower is a follower of one partition's commits, of one record each.
type follower struct {
	*lead.Follower
	bucket *fault.Store
	index  *index.Index
	tails  *index.Tails
	merged int64 // of the shard, as far as the view has seen; is not changed while the follower may ask
	ended  chan error
}

// follow runs a follower until the test ends. catchUp is what the view does when it is to catch up.
func follow(t *testing.T, catchUp func(*follower)) *follower {
	f := &follower{bucket: fault.New(mem.New()), index: index.New(), tails: index.NewTails(), ended: make(chan error, 1)}
	f.Follower = lead.NewFollower(lead.FollowerConfig{
		Index: f.index, Tails: f.tails, Footers: fetch.NewFooters(f.bucket, 1<<20), Known: func([16]byte) bool { return true }, Leads: func(coordinator.ShardID) bool { return false },
		Merged: func(coordinator.ShardID) int64 { return f.merged }, Dropped: func(coordinator.Topic) {}, Log: slog.New(slog.DiscardHandler),
		CatchUp: func(context.Context) error {
			catchUp(f)
			return nil
		},
	})
	go func() { f.ended <- f.Run(t.Context()) }()
	return f
}

// commit has a commit appear, as item makes it.
func (f *follower) commit(t *testing.T, number uint64) (object string) {
	t.Helper()
	item, _ := f.item(t, number)
	f.OnCommit(item)
	return item.Commit.Object
}

// item puts the segment of a commit that does not name its partitions, at ten times its number as revision, with the record at offset number-1.
func (f *follower) item(t *testing.T, number uint64) (coordinator.CommitItem, *segment.Footer) {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch = protocol.Offset(number)-1, 1
	b.Append(1, nil, []byte("v"))
	data, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	var builder segment.Builder
	if err := builder.Add(segment.Key{Shard: shard, Topic: id.Topic}, "t", data); err != nil {
		t.Fatal(err)
	}
	parts, footer, err := builder.Finish(segment.Header{ID: segment.ID{Log: 1, Fence: 1, Commit: number}, FirstEntry: int64(number), LastEntry: int64(number), CreatedMs: 1})
	if err != nil {
		t.Fatal(err)
	}
	object := footer.Header.ID.Name()
	if err := f.bucket.Put(t.Context(), object, objectstore.Body{Parts: parts, Size: footer.ObjectSize}); err != nil {
		t.Fatal(err)
	}
	return coordinator.CommitItem{Log: 1, Number: number, Revision: 10 * int64(number), Commit: coordinator.Commit{
		Object: object, ObjectSize: footer.ObjectSize, FooterPos: footer.Pos, FooterSize: footer.ObjectSize - footer.Pos, Log: 1, Fence: 1, Number: number, InFooter: true, Shards: []coordinator.ShardID{shard},
	}}, footer
}

// TestMergedWhileBucketAway has a commit merged and its segment deleted while the follower does not reach the bucket, which it must for its partitions: it goes on with the next one, be the view behind or not.
func TestMergedWhileBucketAway(t *testing.T) {
	for name, behind := range map[string]bool{"the view has seen it": false, "the view is behind": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := follow(t, func(f *follower) { f.merged = 20 })
				f.commit(t, 1)
				if err := f.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.bucket.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
				gone := f.commit(t, 2)
				f.commit(t, 3)
				time.Sleep(time.Minute)
				if err := f.bucket.Delete(t.Context(), gone); err != nil {
					t.Fatal(err)
				}
				if !behind {
					f.merged = 20
				}
				f.OnCommit(coordinator.CommitItem{Log: 1, Number: 2, Deleted: true})
				f.bucket.Clear()
				if err := f.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if end := f.index.End(id); end != 3 {
					t.Errorf("the index ends at %d, want what came after", end)
				}
				if commits, _ := f.tails.Len(); commits != 2 {
					t.Errorf("%d commits are there, want the first and the last", commits)
				}
			})
		})
	}
}

// TestMissingSegment holds that a follower does not pass over a commit that is not merged.
func TestMissingSegment(t *testing.T) {
	f := follow(t, func(f *follower) { f.merged = 19 })
	gate := fault.NewGate()
	f.bucket.Add(fault.Rule{Op: fault.Get, Gate: gate})
	gone := f.commit(t, 2)
	<-gate.Entered()
	if err := f.bucket.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	gate.Open()
	if err := <-f.ended; !errors.Is(err, objectstore.ErrNotFound) {
		t.Errorf("the follower ended with %v, want %v", err, objectstore.ErrNotFound)
	}
}

// TestGapBehindOwn holds that what is missing behind a commit of this agent itself is noticed, unless it is merged.
func TestGapBehindOwn(t *testing.T) {
	for merged, missing := range map[int64]bool{9: false, 10: true} {
		f := follow(t, nil)
		f.merged = merged
		own, footer := f.item(t, 1)
		own.Commit.Partitions = flush.CommitPartitions(footer)
		if err := f.Committed(own, footer); err != nil {
			t.Fatal(err)
		}
		f.commit(t, 3)
		if err := f.Wait(t.Context()); (err == nil) != missing {
			t.Errorf("merged up to %d: %v", merged, err)
		}
	}
}
