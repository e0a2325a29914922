package upkeep

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
)

func TestIsOver(t *testing.T) {
	kv := memkv(t)
	put := func(key string, value any) {
		if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	put(coordinator.KeyLog(7), coordinator.Log{ID: 7, Commits: 4})
	put(coordinator.KeyLog(8), coordinator.Log{ID: 8, Commits: 4, Closed: true})
	put(coordinator.KeyPastLog, coordinator.LogID(6))
	logs, err := coordinator.ListLogs(t.Context(), kv, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		log, commit uint64
		want        bool
	}{
		{"a commit that was made", 7, 4, true},
		{"one that may be made", 7, 5, false},
		{"one that cannot be made any more", 8, 5, true},
		{"of a log that is over", 5, 99, true},
		{"of a log that is yet to be opened", 9, 1, false},
	} {
		if got := isOver(segment.ID{Log: c.log, Fence: 1, Commit: c.commit}.Name(), &logs); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	for _, name := range []string{"segments/x", "other", segment.ID{Level: segment.Merged, Log: 5, Fence: 1, Commit: 1}.Name()} {
		if isOver(name, &logs) {
			t.Errorf("%s is taken for a segment of a commit", name)
		}
	}
}

func TestIsLeft(t *testing.T) {
	m := &manifest.Manifest{Shard: 3, Epoch: 5, Generation: 9, Segments: []manifest.Segment{{Epoch: 4, Number: 2}}}
	merged := func(epoch, number uint64) string {
		return segment.ID{Level: segment.Merged, Log: 3, Fence: epoch, Commit: number}.Name()
	}
	for name, want := range map[string]bool{
		m.Name():                false, // installed by a former leader
		manifest.Name(3, 5, 10): true,  // written by it and not installed
		manifest.Name(3, 4, 3):  true,
		manifest.Name(3, 6, 10): false, // by this leader, which knows itself
		merged(4, 2):            false,
		merged(4, 3):            true,
		merged(5, 1):            true,
		merged(6, 1):            false,
		"manifests/strange":     false,
	} {
		if got := isLeft(name, m, 6); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// noCommits refuses to list commits.
type noCommits struct {
	coordinator.KV
	t *testing.T
}

func (k noCommits) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	if prefix == coordinator.PrefixCommits {
		k.t.Error("all commits are read")
	}
	return k.KV.List(ctx, prefix, rev)
}

// TestSweepCommits: of a log's segments those stay that commits name, or may name yet; what commits there are the view tells.
func TestSweepCommits(t *testing.T) {
	kv, bucket := memkv(t), fault.New(mem.New())
	view := coordinator.NewView(kv, coordinator.ViewConfig{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = view.Run(ctx) })
	defer running.Wait()
	defer cancel()
	name := func(commit uint64, attempt uint32) string {
		return segment.ID{Log: 7, Fence: 1, Commit: commit, Attempt: attempt}.Name()
	}
	left, named, failed, next := name(1, 0), name(2, 1), name(2, 0), name(3, 0)
	for _, name := range []string{left, named, failed, next} {
		if err := bucket.Put(ctx, name, objectstore.Body{Parts: [][]byte{{1}}, Size: 1}); err != nil {
			t.Fatal(err)
		}
	}
	c := coordinator.Commit{Log: 7, Number: 2, Object: named}
	if _, err := kv.Txn(ctx, nil, []coordinator.Op{
		{Key: coordinator.KeyCluster, Value: coordinator.Encode(coordinator.Cluster{Shards: 1})},
		{Key: coordinator.KeyLog(7), Value: coordinator.Encode(coordinator.Log{ID: 7, Commits: 2})},
		{Key: coordinator.KeyCommit(7, 2), Value: c.Encode()},
	}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := NewSweeper(GarbageConfig{Grace: time.Minute}, SweeperDeps{
		KV: noCommits{kv, t}, View: view, Store: bucket, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
	})
	bucket.Add(fault.Rule{Op: fault.Delete, Prefix: left, Effect: fault.Unavailable})
	for sweep, want := range [][]string{{left, failed, named, next}, {left, failed, named, next}, {left, named, next}, {named, next}} {
		if err := s.sweepCommits(ctx); (err != nil) != (sweep == 1) {
			t.Fatal(err)
		}
		var got []string
		for info, err := range bucket.List(ctx, "", "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, info.Name)
		}
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("the bucket holds\n%q\nwant\n%q", got, want)
		}
		now = now.Add([]time.Duration{time.Minute, time.Second, time.Minute, 0}[sweep]) // what could not be deleted waits for a minute more, and nothing else does
	}
}

// TestSweepSilent has the store never answer one kind of request: the sweeper gives up, and comes to the rest.
func TestSweepSilent(t *testing.T) {
	for _, op := range []fault.Op{fault.List, fault.Delete} {
		synctest.Test(t, func(t *testing.T) {
			bucket := fault.New(mem.New())
			s, _ := manifests(bucket, &ledger{})
			adopt(t, bucket, s)
			for _, name := range []string{"a", "b"} {
				if err := bucket.Put(t.Context(), name, objectstore.Bytes([]byte(name))); err != nil {
					t.Fatal(err)
				}
				s.garbage.add(time.Now(), name)
			}
			sweeper := NewSweeper(GarbageConfig{Grace: time.Minute}, SweeperDeps{
				Store: bucket, Manifests: s, Now: time.Now, Elected: func() bool { return false }, Leads: func(coordinator.ShardID) bool { return false },
			})
			rule := fault.Rule{Op: op, Times: fault.Always, Gate: fault.NewGate()}
			if op == fault.Delete {
				rule.Prefix = "a"
			}
			bucket.Add(rule)
			time.Sleep(time.Minute)
			for range 2 {
				if err := sweeper.sweep(t.Context()); err == nil && op == fault.List {
					t.Errorf("%s: no error", op)
				}
			}
			bucket.Clear()
			_, a := bucket.Stat(t.Context(), "a")
			_, b := bucket.Stat(t.Context(), "b")
			if !errors.Is(b, objectstore.ErrNotFound) || (a == nil) != (op == fault.Delete) {
				t.Errorf("%s: what is garbage: %v, %v", op, a, b)
			}
		})
	}
}

// silentUploads are uploads of a store that never answers a list, or the end of one.
type silentUploads struct {
	leftUploads
	list bool
}

func (l *silentUploads) Uploads(ctx context.Context) iter.Seq2[objectstore.Upload, error] {
	if !l.list {
		return l.leftUploads.Uploads(ctx)
	}
	return func(yield func(objectstore.Upload, error) bool) {
		<-ctx.Done()
		yield(objectstore.Upload{}, ctx.Err())
	}
}

func (l *silentUploads) Abort(ctx context.Context, _ objectstore.Upload) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestSweepUploadsSilent holds that a store which never answers keeps nobody from coming again.
func TestSweepUploadsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		left := &silentUploads{}
		for n := range uploadsSeenMax {
			left.uploads = append(left.uploads, objectstore.Upload{Name: manifest.Name(3, 1, uint64(n)), ID: "1"})
		}
		s := NewSweeper(GarbageConfig{}, SweeperDeps{Uploads: left, Now: time.Now})
		if err := s.sweepUploads(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, left.list = range []bool{false, true} {
			time.Sleep(uploadMax)
			began := time.Now()
			if err := s.sweepUploads(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > listMax {
				t.Errorf("list is silent: %v; after %v: %v", left.list, time.Since(began), err)
			}
		}
	})
}

// leftUploads are uploads that nobody completes.
type leftUploads struct {
	uploads []objectstore.Upload
	err     error            // of lists, after the uploads
	aborts  map[string]error // of aborts, by ID
}

func (l *leftUploads) Uploads(context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(yield func(objectstore.Upload, error) bool) {
		for _, u := range l.uploads {
			u.Began = time.Now() // nobody relies on it
			if !yield(u, nil) {
				return
			}
		}
		if l.err != nil {
			yield(objectstore.Upload{}, l.err)
		}
	}
}

func (l *leftUploads) Abort(_ context.Context, upload objectstore.Upload) error {
	if err := l.aborts[upload.ID]; err != nil {
		return err
	}
	l.uploads = slices.DeleteFunc(slices.Clone(l.uploads), func(u objectstore.Upload) bool { return u == upload })
	return nil
}

func TestSweepUploads(t *testing.T) {
	merged := objectstore.Upload{Name: segment.ID{Level: segment.Merged, Log: 3, Fence: 1, Commit: 1}.Name(), ID: "1"}
	again := objectstore.Upload{Name: merged.Name, ID: "2"}
	probe := objectstore.Upload{Name: "probe/x", ID: "3"}
	other := objectstore.Upload{Name: "films/x", ID: "4"}
	large := objectstore.Upload{Name: manifest.Name(3, 1, 1), ID: "5"}
	left := &leftUploads{uploads: []objectstore.Upload{merged, other, probe, large}}
	now := time.Now()
	var log bytes.Buffer
	s := NewSweeper(GarbageConfig{Grace: time.Minute}, SweeperDeps{
		Uploads: left, Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	sweep := func(after time.Duration, want ...objectstore.Upload) {
		t.Helper()
		now = now.Add(after)
		if err := s.sweepUploads(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(left.uploads, want) {
			t.Errorf("uploads are %v, want %v", left.uploads, want)
		}
	}
	sweep(0, merged, other, probe, large)
	left.uploads = append(left.uploads, again)
	sweep(uploadMax-1, merged, other, probe, large, again)
	sweep(1, other, again) // all but these have been there for long enough, however short the grace
	sweep(uploadMax-1, other)

	left.err = objectstore.ErrUnavailable
	if err := s.sweepUploads(t.Context()); !errors.Is(err, objectstore.ErrUnavailable) {
		t.Errorf("a list that fails: %v", err)
	}
	left.err = nil
	left.uploads, left.aborts = []objectstore.Upload{merged, other, again}, map[string]error{merged.ID: objectstore.ErrUnavailable}
	sweep(0, merged, other, again)
	now = now.Add(uploadMax)
	if err := s.sweepUploads(t.Context()); !errors.Is(err, objectstore.ErrUnavailable) || !slices.Equal(left.uploads, []objectstore.Upload{merged, other}) {
		t.Errorf("an abort that fails: %v, and there are %v", err, left.uploads)
	}
	if log.Len() > 0 {
		t.Errorf("it says %q", log.String())
	}
	left.aborts = map[string]error{merged.ID: objectstore.ErrDenied}
	sweep(0, merged, other)
	left.err = objectstore.ErrDenied
	sweep(0, merged, other)
	if n := strings.Count(log.String(), "it needs a rule"); n != 1 {
		t.Errorf("it is said %d times that the bucket refuses, want once", n)
	}
	left.err, left.aborts = nil, nil
	sweep(0, other)
}
