package flush

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// eachBatch cuts a segment for each batch.
var eachBatch = Config{SegmentBytes: 1, AgeMax: time.Hour, UploadsMax: 4}

// TestCommitsInOrder lets uploads end in the opposite order.
func TestCommitsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var gates []*fault.Gate
		for n := range 3 {
			gates = append(gates, fault.NewGate())
			w.bucket.Add(fault.Rule{Op: fault.Put, Nth: n + 1, Gate: gates[n]})
		}
		w.run(eachBatch)
		for range 3 {
			w.durable(10)
			synctest.Wait() // so that uploads begin in order
		}
		gates[2].Open()
		gates[1].Open()
		synctest.Wait()
		if got := w.objectsHeld(); got != 2 {
			t.Fatalf("%d objects are in the bucket, want 2", got)
		}
		w.check(0)
		gates[0].Open()
		synctest.Wait()
		w.check(3)
	})
}

// TestCutTriggers holds when a cut is made: by bytes, by age, by force.
func TestCutTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(Config{SegmentBytes: 1000, AgeMax: 5 * time.Second, UploadsMax: 2})
		w.durable(100)
		time.Sleep(4 * time.Second)
		w.durable(100)
		synctest.Wait()
		w.check(0)
		time.Sleep(time.Second)
		synctest.Wait()
		w.check(1) // the first batch is old enough, and takes the second along

		for range 6 {
			w.durable(100)
		}
		synctest.Wait()
		w.check(2) // six of 169 bytes are a segment's worth

		begin := time.Now()
		w.durable(10)
		w.flush()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a flush took %v", took)
		}
		w.check(len(w.trims))
		if w.trims[len(w.trims)-1] != w.entry {
			t.Errorf("flushed up to entry %d, want %d", w.trims[len(w.trims)-1], w.entry)
		}
	})
}

// TestHurry holds that a full WAL is flushed as soon as all of it is durable, and in one segment.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(Config{SegmentBytes: 1 << 20, AgeMax: time.Hour, UploadsMax: 2})
		w.flusher.Hurry(3)
		w.durable(10)
		w.durable(10)
		synctest.Wait()
		w.check(0)
		w.durable(10)
		synctest.Wait()
		w.check(1)
		w.durable(10)
		synctest.Wait()
		w.check(1) // the hurry is over
	})
}

// TestFlushUnderLoad holds that Flush ends though batches never stop to come.
func TestFlushUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(Config{SegmentBytes: 1 << 20, AgeMax: time.Second, UploadsMax: 2})
		gate := fault.NewGate()
		w.bucket.Add(fault.Rule{Op: fault.Put, Gate: gate})
		w.durable(10)
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.flush()
		}()
		synctest.Wait()
		w.durable(10) // of the next segment, which nobody waits for
		gate.Open()
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("Flush waits for what came after it")
		}
		w.check(1)
	})
}

// TestFlushEnds holds that Flush returns when its context does, and at once when there is nothing.
func TestFlushEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bucket.Add(fault.Rule{Op: fault.Put, Times: fault.Always, Effect: fault.Unavailable})
		w.run(eachBatch)
		w.flush()
		w.durable(10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := w.flusher.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a flush without a bucket: %v", err)
		}
	})
}

func TestBucketAwayAndBack(t *testing.T) {
	for _, effect := range []fault.Effect{
		fault.Unavailable, fault.Denied, fault.UnknownApplied, fault.UnknownNotApplied, fault.UnknownLate,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.bucket.Add(fault.Rule{Op: fault.Put, Times: 20, Effect: effect})
			w.run(eachBatch)
			for range 10 {
				w.durable(10)
			}
			w.flush()
			w.check(10)
			for _, err := range w.bucket.ApplyLate(t.Context()) {
				if !errors.Is(err, objectstore.ErrExists) {
					t.Errorf("a put that comes late: %v", err)
				}
			}
			if got := w.objectsHeld(); got != 10 {
				t.Errorf("effect %d: %d objects, want 10", effect, got)
			}
		})
	}
}

// TestNameTaken holds that a name stands for fixed bytes: what has it keeps it, and the segment takes the next.
func TestNameTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := segment.ID{Log: 3, Fence: 1, Commit: 1}
		if err := w.objects.Put(t.Context(), id.Name(), objectstore.Bytes([]byte("of another attempt"))); err != nil {
			t.Fatal(err)
		}
		w.run(eachBatch)
		w.durable(10)
		w.flush()
		w.check(1)
		id.Attempt = 1
		if got := w.commits[0].Commit.Object; got != id.Name() {
			t.Errorf("the commit names %s, want %s", got, id.Name())
		}
	})
}

// refusing says once that an object exists which does not: another put of the name was under way, and failed.
type refusing struct {
	objectstore.Store
	once sync.Once
}

func (r *refusing) Put(ctx context.Context, name string, body objectstore.Body) error {
	err := error(nil)
	r.once.Do(func() { err = objectstore.ErrExists })
	if err != nil {
		return err
	}
	return r.Store.Put(ctx, name, body)
}

func TestNameTakenByNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bucket = fault.New(&refusing{Store: w.objects})
		w.run(eachBatch)
		w.durable(10)
		w.flush()
		w.check(1)
	})
}

func TestCommitOutcomes(t *testing.T) {
	for _, kind := range []memkv.FaultKind{
		memkv.Unavailable, memkv.UnknownApplied, memkv.UnknownLost, memkv.UnknownLate, memkv.NoSpace, memkv.NoSpaceApplied,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.run(eachBatch)
			w.kv.Inject(memkv.Fault{Call: memkv.CallTxn, Skip: 1, Times: 2, Kind: kind})
			for range 4 {
				w.durable(10)
			}
			w.flush()
			w.check(4)
			w.kv.Settle() // what comes late finds the guard changed
			w.check(4)
		})
	}
}

// TestFenced holds that a log which another agent has claimed gets no further commit, and that the flusher says why it ends.
func TestFenced(t *testing.T) {
	for _, kind := range []memkv.FaultKind{0, memkv.UnknownLate, memkv.UnknownLost} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.run(eachBatch)
			w.durable(10)
			w.flush()
			if kind != 0 {
				w.kv.Inject(memkv.Fault{Call: memkv.CallTxn, Kind: kind})
				w.durable(10)
				synctest.Wait() // the commit is in doubt, and will be sent again
			}
			claimed := w.record
			claimed.Fence, claimed.Commits, claimed.Flushed = 2, 1, 1
			w.put(coordinator.KeyLog(3), coordinator.Encode(claimed))
			for range 20 { // more than there are places in line
				w.durable(10)
			}
			err := <-w.ended
			w.ended <- err
			if !errors.Is(err, coordinator.ErrFenced) {
				t.Errorf("the flusher ended with %v", err)
			}
			w.kv.Settle()
			w.mu.Lock()
			defer w.mu.Unlock()
			items, _, err := w.kv.List(t.Context(), coordinator.PrefixCommits, 0)
			if err != nil || len(items) != 1 || len(w.trims) != 1 {
				t.Errorf("%d commits (%v) and %d trims, want 1", len(items), err, len(w.trims))
			}
		})
	}
}

// TestBrokenInvariant holds that the flusher ends when what it has committed does not continue what readers know, and that a segment with a gap
// cannot be built.
func TestBrokenInvariant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.broken = errors.New("leaves a gap")
		w.run(eachBatch)
		w.durable(10)
		w.durable(10)
		err := <-w.ended
		w.ended <- err
		if !errors.Is(err, w.broken) || len(w.trims) != 0 {
			t.Errorf("the flusher ended with %v and %d trims", err, len(w.trims))
		}
		records := []Record{record(t, 1, 5), record(t, 2, 3)}
		if _, err := w.writer().Upload(t.Context(), new(segment.Builder), 1, records); !errors.Is(err, segment.ErrGap) {
			t.Errorf("a segment with a gap: %v", err)
		}
	})
}

func record(t *testing.T, entry, offset int64) Record {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch = protocol.Offset(offset), 1
	b.Append(1, nil, nil)
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return Record{Entry: entry, Key: segment.Key{Topic: protocol.TopicID{1}}, Name: "t", Batch: raw}
}

// TestTinyBatches holds that a segment's worth of bytes in tiny batches is cut before the format's limits.
func TestTinyBatches(t *testing.T) {
	w := newWorld(t)
	w.run(Config{SegmentBytes: 1 << 30, AgeMax: time.Hour, UploadsMax: 2})
	for range recordsMax + 10 {
		w.durable(0)
	}
	w.flush()
	w.check(2)
}

// TestWriterOrder holds that commits are numbered without gaps and never go back.
func TestWriterOrder(t *testing.T) {
	w := newWorld(t)
	wr := w.writer()
	staged, err := wr.Upload(t.Context(), new(segment.Builder), 2, []Record{record(t, 1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wr.Commit(t.Context(), staged); err == nil {
		t.Error("commit 2 is accepted before commit 1")
	}
	staged.number = 1
	if _, err := wr.Commit(t.Context(), staged); err != nil {
		t.Fatal(err)
	}
	staged.number = 2
	if _, err := wr.Commit(t.Context(), staged); err == nil {
		t.Error("entries are committed twice")
	}
	if err := wr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	item, _, err := w.kv.Get(t.Context(), coordinator.KeyLog(3))
	if err != nil {
		t.Fatal(err)
	}
	if l, err := coordinator.Decode[coordinator.Log](item); err != nil || !l.Closed || l.Flushed != 1 {
		t.Errorf("the closed log is %+v, %v", l, err)
	}
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		gate := fault.NewGate()
		w.bucket.Add(fault.Rule{Op: fault.Put, Gate: gate})
		w.run(Config{SegmentBytes: 1 << 20, AgeMax: time.Second, UploadsMax: 2})
		if st := w.flusher.Stats(); st != (Stats{}) {
			t.Errorf("a new flusher has %+v", st)
		}
		begin := time.Now()
		w.durable(10)
		if st := w.flusher.Stats(); st.QueuedBytes == 0 || !st.Oldest.Equal(begin) {
			t.Errorf("with a batch in line: %+v", st)
		}
		time.Sleep(2 * time.Second)
		second := time.Now()
		w.durable(10)
		if st := w.flusher.Stats(); !st.Oldest.Equal(begin) {
			t.Errorf("with a batch on its way: %+v", st)
		}
		gate.Open()
		synctest.Wait()
		if st := w.flusher.Stats(); st.Segments != 1 || st.SegmentBytes == 0 || !st.Oldest.Equal(second) {
			t.Errorf("with one committed: %+v", st)
		}
		w.flush()
		if st := w.flusher.Stats(); st.Segments != 2 || !st.Oldest.IsZero() || st.QueuedBytes != 0 {
			t.Errorf("with all committed: %+v", st)
		}
		if !slices.IsSorted(w.trims) {
			t.Errorf("trims went back: %v", w.trims)
		}
	})
}

// TestRollsBetweenCommits: the log's record lists its open segment and those before it with entries that are not flushed, whoever of flush and roll comes first.
func TestRollsBetweenCommits(t *testing.T) {
	w := newWorld(t)
	wr := w.writer()
	commit := func(number uint64, entry int64) error {
		t.Helper()
		staged, err := wr.Upload(t.Context(), new(segment.Builder), number, []Record{record(t, entry, entry)})
		if err != nil {
			t.Fatal(err)
		}
		_, err = wr.Commit(t.Context(), staged)
		return err
	}
	roll := func(number uint32, first int64) error {
		return wr.Roll(t.Context(), coordinator.WALSegment{Number: number, First: first, Stores: []string{"s", "r"}, Quorum: 2})
	}
	want := func(segments ...coordinator.WALSegment) {
		t.Helper()
		item, _, err := w.kv.Get(t.Context(), coordinator.KeyLog(3))
		if err != nil {
			t.Fatal(err)
		}
		l, err := coordinator.Decode[coordinator.Log](item)
		same := func(a, b coordinator.WALSegment) bool {
			return a.Number == b.Number && a.First == b.First && a.Last == b.Last && len(a.Stores) == len(b.Stores) && a.Quorum == b.Quorum
		}
		if err != nil || !slices.EqualFunc(l.Segments, segments, same) || !slices.EqualFunc(wr.Record().Segments, segments, same) {
			t.Errorf("segments %+v, %v, the writer says %+v; want %+v", l.Segments, err, wr.Record().Segments, segments)
		}
	}
	two := []string{"s", "r"}
	if err := errors.Join(commit(1, 5), roll(3, 8)); err != nil {
		t.Fatal(err)
	}
	want(coordinator.WALSegment{Number: 1, First: 1, Last: 7, Stores: []string{"s"}, Quorum: 1}, coordinator.WALSegment{Number: 3, First: 8, Last: -1, Stores: two, Quorum: 2})
	if roll(3, 9) == nil || roll(2, 9) == nil || roll(4, 7) == nil {
		t.Error("rolled back")
	}
	if err := commit(2, 6); err != nil {
		t.Fatal(err)
	}
	want(coordinator.WALSegment{Number: 1, First: 1, Last: 7, Stores: []string{"s"}, Quorum: 1}, coordinator.WALSegment{Number: 3, First: 8, Last: -1, Stores: two, Quorum: 2})
	if err := commit(3, 7); err != nil {
		t.Fatal(err)
	}
	want(coordinator.WALSegment{Number: 3, First: 8, Last: -1, Stores: two, Quorum: 2})
	if err := errors.Join(roll(4, 8), roll(5, 9)); err != nil { // the first of them before anything was appended
		t.Fatal(err)
	}
	want(coordinator.WALSegment{Number: 4, First: 8, Last: 8, Stores: two, Quorum: 2}, coordinator.WALSegment{Number: 5, First: 9, Last: -1, Stores: two, Quorum: 2})

	// At the same time, each has its turn.
	var running sync.WaitGroup
	running.Go(func() {
		for n := range uint32(20) {
			if err := roll(6+n, 30+int64(n)); err != nil {
				t.Error(err)
			}
		}
	})
	for n := range uint64(20) {
		if err := commit(4+n, 9+int64(n)); err != nil {
			t.Error(err)
		}
	}
	running.Wait()
	if l := wr.Record(); l.Commits != 23 || l.Segments[len(l.Segments)-1].Number != 25 {
		t.Errorf("after commits and rolls at once: %+v", l)
	}
}

// TestLastStable holds that a commit has the last stable offset of its last batch, whatever those before it had.
func TestLastStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(Config{SegmentBytes: 1 << 20, AgeMax: time.Hour, UploadsMax: 1})
		w.durable(10)
		for _, c := range []struct {
			open int64
			want protocol.Offset
		}{{1, 1}, {1, 1}, {0, 7}} {
			w.open = 1
			w.durable(10)
			w.open = c.open
			w.durable(10)
			w.flush()
			if got := w.commits[len(w.commits)-1].Commit.Partitions[0].LastStable; got != c.want {
				t.Errorf("a transaction is open at %d: last stable offset %d, want %d", c.open, got, c.want)
			}
		}
	})
}

// TestCrowded: while merges are behind, commits wait for them, but not for ever, and not those that somebody waits for.
func TestCrowded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.crowded.Store(true)
		w.run(eachBatch)
		w.durable(10)
		w.durable(10)
		time.Sleep(crowdedMax - time.Second)
		w.check(0)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.check(1)
		w.crowded.Store(false)
		time.Sleep(2 * crowdedPause)
		synctest.Wait()
		w.check(2)
		w.crowded.Store(true)
		w.durable(10)
		w.durable(10)
		began := time.Now()
		w.flush()
		w.check(4)
		if waited := time.Since(began); waited > 2*crowdedPause {
			t.Errorf("who waits for a flush waited %v for merges", waited)
		}
	})
}
