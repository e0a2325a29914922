package lead_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// TestFooterAway has the bucket not give one footer, for good or saying nothing, and answer otherwise: its shards wait, and others go on. While the bucket does not answer either, all wait.
func TestFooterAway(t *testing.T) {
	const other = shard + 1
	type records = map[coordinator.ShardID]protocol.Offset
	for name, effect := range map[string]fault.Rule{
		"unavailable": {Effect: fault.Unavailable}, "denied": {Effect: fault.Denied}, "hanging": {Gate: fault.NewGate(), Effect: fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := follow(t, func(*follower) {})
				appear := func(number uint64, of records) {
					item, _ := f.of(t, number, of)
					f.OnCommit(item)
				}
				wait := func(most time.Duration) {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), most)
					defer cancel()
					if err := f.Wait(ctx); err != nil {
						t.Fatal(err)
					}
				}
				ends := func(when string, want ...protocol.Offset) {
					t.Helper()
					for i, want := range want {
						if got := f.index.End(partition.ID{Topic: id.Topic, Partition: int32(i)}); got != want {
							t.Errorf("%s: partition %d ends at %d, want %d", when, i, got, want)
						}
					}
				}
				appear(1, records{shard: 0, other: 0})
				wait(time.Second)
				item, _ := f.of(t, 2, records{shard: 1})
				rule := effect
				if rule.Gate != nil {
					rule.Gate = fault.NewGate()
				}
				rule.Op, rule.Prefix, rule.Times = fault.Get, item.Commit.Object, fault.Always
				f.bucket.Add(rule)
				f.away.Store(true)
				f.OnCommit(item)
				appear(3, records{other: 1})
				time.Sleep(time.Hour)
				ends("the bucket is away", 1, 1)

				f.away.Store(false)
				wait(time.Minute)
				ends("the bucket answers", 1, 2)
				if f.Unread(shard) == nil || f.Unread(other) != nil {
					t.Errorf("unread: %v, %v", f.Unread(shard), f.Unread(other))
				}
				next, _ := f.of(t, 4, records{shard: 2})
				rule.Prefix = next.Commit.Object
				f.bucket.Add(rule)
				f.OnCommit(next)
				wait(10 * time.Second) // the first one was waited for

				f.bucket.Clear()
				if rule.Gate != nil {
					rule.Gate.Open()
					effect.Gate.Open()
				}
				time.Sleep(3 * time.Minute)
				wait(time.Minute)
				ends("mended", 3, 2)
				if f.Unread(shard) != nil {
					t.Errorf("mended: %v", f.Unread(shard))
				}
			})
		})
	}
}

// TestFootersHang has the reads of many footers hang: commits of other shards wait for seconds, whenever they come, and one that can be read again is found, though what hangs is tried before it.
func TestFootersHang(t *testing.T) {
	const hanging, well = 12, shard + 20
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, func(*follower) {})
		var gates []*fault.Gate
		number := uint64(0)
		appear := func(s coordinator.ShardID, offset protocol.Offset, hangs bool) {
			number++
			item, _ := f.of(t, number, map[coordinator.ShardID]protocol.Offset{s: offset})
			if hangs {
				gate := fault.NewGate()
				gates = append(gates, gate)
				f.bucket.Add(fault.Rule{Op: fault.Get, Prefix: item.Commit.Object, Times: fault.Always, Gate: gate})
			}
			f.OnCommit(item)
		}
		for n := range coordinator.ShardID(hanging) {
			appear(shard+n, 0, true)
		}
		began := time.Now()
		if err := f.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("%d footers that hang took %v", hanging, took)
		}
		for n := range protocol.Offset(100) {
			time.Sleep(3 * time.Second)
			began := time.Now()
			appear(well, n, false)
			if err := f.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("a commit that can be read waited for %v", took)
			}
		}
		gates[hanging-1].Open()
		time.Sleep((hanging + 1) * 70 * time.Second)
		if f.Unread(shard+hanging-1) != nil || f.Unread(shard) == nil {
			t.Errorf("the one that can be read: %v; another: %v", f.Unread(shard+hanging-1), f.Unread(shard))
		}
		for _, gate := range gates[:hanging-1] {
			gate.Open()
		}
		time.Sleep(3 * time.Minute)
		for n := range coordinator.ShardID(hanging) {
			if err := f.Unread(shard + n); err != nil {
				t.Errorf("shard %d: %v", shard+n, err)
			}
		}
	})
}

// TestRestoreWithout has shards restored of which one needs a footer that cannot be read, and one begins behind what there is: the third is whole, and nothing is there of the two, though what comes behind the footer can be read.
func TestRestoreWithout(t *testing.T) {
	const whole, short = shard + 1, shard + 2
	f := follow(t, func(*follower) {})
	add := func(number uint64, of map[coordinator.ShardID]protocol.Offset) (object string) {
		item, footer := f.of(t, number, of)
		item.Commit.Partitions = flush.CommitPartitions(footer)
		f.OnCommit(item)
		return item.Commit.Object
	}
	add(1, map[coordinator.ShardID]protocol.Offset{shard: 0, whole: 0})
	away := add(2, map[coordinator.ShardID]protocol.Offset{shard: 1})
	add(3, map[coordinator.ShardID]protocol.Offset{shard: 2, whole: 1})
	if err := f.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.bucket.Add(fault.Rule{Op: fault.Get, Prefix: away, Times: fault.Always, Effect: fault.Unavailable})
	var tries atomic.Int32
	r := lead.Restorer{
		Index: f.index, Footers: f.footers, Now: time.Now, Known: func(topic [16]byte) bool { return topic == id.Topic }, ProducerIdle: time.Hour, ProducersMax: 10,
		Retry: func(ctx context.Context, read func(context.Context) error) error {
			err := read(ctx)
			for range 2 {
				if err != nil {
					tries.Add(1)
					err = read(ctx)
				}
			}
			return err
		},
	}
	empty := &manifest.Manifest{Partitions: []manifest.Partition{{Topic: protocol.TopicID{9}, LogStartOffset: 5}}} // but for a topic that was deleted
	lacking := &manifest.Manifest{Partitions: []manifest.Partition{{Topic: id.Topic, Partition: 2, LogStartOffset: 5}}}
	logs, failed, err := r.Run(t.Context(), map[coordinator.ShardID]lead.Settled{shard: {Epoch: 2, Manifest: empty}, whole: {Epoch: 2, Manifest: empty}, short: {Epoch: 2, Manifest: lacking}})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(failed[shard], objectstore.ErrUnavailable) || failed[whole] != nil || failed[short] == nil {
		t.Errorf("failed: %v", failed)
	}
	if l := logs[partition.ID{Topic: id.Topic, Partition: 1}]; len(logs) != 1 || l == nil || l.End() != 2 {
		t.Errorf("%d logs, and the whole one's is %v, want it alone, up to 2", len(logs), l)
	}
	if tries.Load() != 2 {
		t.Errorf("the footer was read again %d times, want 2", tries.Load())
	}
}

// TestLeftInLine: commits that appear and leave while the bucket is away are nobody's business any more when it is back, and what this agent itself has committed is out of the index then.
func TestLeftInLine(t *testing.T) {
	const other = shard + 1
	synctest.Test(t, func(t *testing.T) {
		f := follow(t, func(*follower) {})
		f.merged = 30 // the last that are not merged are the fourth and fifth
		waits, _ := f.of(t, 1, map[coordinator.ShardID]protocol.Offset{shard: 0})
		others, _ := f.of(t, 2, map[coordinator.ShardID]protocol.Offset{shard: 1})
		own, footer := f.of(t, 3, map[coordinator.ShardID]protocol.Offset{other: 0})
		own.Log = 7
		own.Commit.Partitions = flush.CommitPartitions(footer)
		if err := f.Committed(own, footer); err != nil {
			t.Fatal(err)
		}
		last, _ := f.of(t, 4, map[coordinator.ShardID]protocol.Offset{shard: 2})
		f.bucket.Add(fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
		f.away.Store(true)
		for _, item := range []coordinator.CommitItem{waits, others, own, last} {
			f.OnCommit(item)
		}
		time.Sleep(time.Minute)
		for _, item := range []coordinator.CommitItem{waits, others, own} {
			f.OnCommit(coordinator.CommitItem{Log: item.Log, Number: item.Number, Deleted: true})
		}
		f.bucket.Clear()
		f.away.Store(false)
		before := f.bucket.Calls(fault.Get)
		if err := f.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.bucket.Calls(fault.Get) - before; got != 2 {
			t.Errorf("%d footers were read, want that which was waited for and the last", got)
		}
		if end := f.index.End(id); end != 3 {
			t.Errorf("the index ends at %d, want 3", end)
		}
		if commits, _ := f.tails.Len(); commits != 1 {
			t.Errorf("%d commits are there, want the last", commits)
		}
		if left := f.index.Tail(partition.ID{Topic: id.Topic, Partition: 1}); len(left) != 0 {
			t.Errorf("the index has still %d extents of what was committed here and has left", len(left))
		}
	})
}
