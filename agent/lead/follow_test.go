package lead_test

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/partition"
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
	bucket  *fault.Store
	index   *index.Index
	tails   *index.Tails
	footers *fetch.Footers
	away    atomic.Bool // the bucket answers nothing that it is asked to see whether it does
	merged  int64       // of the shard, as far as the view has seen; is not changed while the follower may ask
	ended   chan error
}

// follow runs a follower until the test ends. catchUp is what the view does when it is to catch up.
func follow(t *testing.T, catchUp func(*follower)) *follower {
	f := &follower{bucket: fault.New(mem.New()), index: index.New(), tails: index.NewTails(), ended: make(chan error, 1)}
	f.footers = fetch.NewFooters(f.bucket, 1<<20)
	f.Follower = lead.NewFollower(lead.FollowerConfig{
		Index: f.index, Tails: f.tails, Footers: f.footers, Answers: func(context.Context) bool { return !f.away.Load() }, Known: func([16]byte) bool { return true }, Leads: func(coordinator.ShardID) bool { return false },
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
	return f.of(t, number, map[coordinator.ShardID]protocol.Offset{shard: protocol.Offset(number) - 1})
}

// of does the same with a record of each of some shards, at those offsets of the shard's partition, which has the number of how far the shard is from the first.
func (f *follower) of(t *testing.T, number uint64, records map[coordinator.ShardID]protocol.Offset) (coordinator.CommitItem, *segment.Footer) {
	t.Helper()
	var builder segment.Builder
	for s, offset := range records {
		b := batch.NewBuilder(batch.None)
		b.BaseOffset, b.LeaderEpoch = offset, 1
		b.Append(1, nil, []byte("v"))
		data, err := b.AppendTo(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := builder.Add(segment.Key{Shard: uint32(s), Topic: id.Topic, Partition: int32(s - shard)}, "t", data); err != nil {
			t.Fatal(err)
		}
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
		Object: object, ObjectSize: footer.ObjectSize, FooterPos: footer.Pos, FooterSize: footer.ObjectSize - footer.Pos, Log: 1, Fence: 1, Number: number, InFooter: true,
		Shards: slices.Sorted(maps.Keys(records)),
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
				f.away.Store(true)
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

// TestUnread has the footer of a commit damaged, or missing: what its shards have from there on waits until it is mended, or they have merged it elsewhere; those of other shards go on.
func TestUnread(t *testing.T) {
	const other, third = shard + 1, shard + 2
	type records = map[coordinator.ShardID]protocol.Offset
	for name, missing := range map[string]bool{"damaged": false, "missing": true} {
		for _, end := range []string{"mended", "merged", "gone"} {
			t.Run(name+", then "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := follow(t, func(*follower) {})
					appear := func(number uint64, of records) coordinator.CommitItem {
						item, _ := f.of(t, number, of)
						f.OnCommit(item)
						if err := f.Wait(t.Context()); err != nil {
							t.Fatal(err)
						}
						return item
					}
					ends := func(when string, want ...protocol.Offset) {
						t.Helper()
						for i, want := range want {
							if got := f.index.End(partition.ID{Topic: id.Topic, Partition: int32(i)}); got != want {
								t.Errorf("%s: partition %d ends at %d, want %d", when, i, got, want)
							}
						}
					}
					appear(1, records{shard: 0, other: 0, third: 0})
					item, _ := f.of(t, 2, records{shard: 1, other: 1})
					object := make([]byte, item.Commit.ObjectSize)
					if err := f.bucket.Get(t.Context(), item.Commit.Object, 0, object); err != nil {
						t.Fatal(err)
					}
					if missing {
						if err := f.bucket.Delete(t.Context(), item.Commit.Object); err != nil {
							t.Fatal(err)
						}
					} else {
						f.bucket.Add(fault.Rule{Op: fault.Get, Prefix: item.Commit.Object, Times: fault.Always, Effect: fault.WrongBytes})
					}
					f.OnCommit(item)
					appear(3, records{other: 2, third: 1})
					appear(4, records{third: 2})
					ends("unread", 1, 1, 3)
					if f.Unread(shard) == nil || f.Unread(other) == nil || f.Unread(third) != nil {
						t.Errorf("unread: %v, %v, %v", f.Unread(shard), f.Unread(other), f.Unread(third))
					}
					if parts := f.tails.Of(uint32(other), 0); len(parts) != 1 {
						t.Errorf("unread, %d commits may be merged, want one", len(parts))
					}
					left := f.tails.Merged(func(s uint32) int64 { return map[uint32]int64{shard: 10, uint32(other): 10, uint32(third): 40}[s] })
					if len(left) != 2 || left[0].Number != 1 || left[1].Number != 4 {
						t.Errorf("unread, %d commits may leave, want the first and the last", len(left))
					}
					switch end {
					case "gone":
						f.merged = 20
						f.OnCommit(coordinator.CommitItem{Log: 1, Number: 2, Deleted: true})
					case "merged":
						f.merged = 20
						if f.Unread(other) == nil { // what comes behind it is not in the index yet
							t.Error("merged: a shard may be led, of which a commit is held")
						}
						appear(5, records{other: 3})
						ends("merged, and not looked at", 1, 1, 3)
					case "mended":
						f.bucket.Clear()
						if err := f.bucket.Put(t.Context(), item.Commit.Object, objectstore.Bytes(object)); err != nil && missing {
							t.Fatal(err)
						}
					}
					if err := f.Wait(t.Context()); err != nil {
						t.Fatal(err)
					}
					if end != "gone" {
						time.Sleep(2 * time.Minute)
						if err := f.Wait(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					if f.Unread(shard) != nil || f.Unread(other) != nil {
						t.Errorf("then: %v, %v", f.Unread(shard), f.Unread(other))
					}
					switch end {
					case "gone":
						ends(end, 1, 3, 3)
						return
					case "merged":
						ends(end, 1, 4, 3)
						return
					}
					ends("mended", 2, 3, 3)
					if parts := f.tails.Of(uint32(other), 0); len(parts) != 3 || len(parts[1].Partitions) != 1 || parts[1].Bytes == 0 {
						t.Errorf("mended: %+v may be merged", parts)
					}
				})
			})
		}
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
