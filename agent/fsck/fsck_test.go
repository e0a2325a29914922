package fsck_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

func TestSound(t *testing.T) {
	w := newWorld(t)
	for _, o := range []fsck.Options{{}, {Deep: true}, {Repair: true}} {
		r := w.check(100*time.Hour, o)
		if !r.Clean || len(r.Problems) > 0 {
			t.Errorf("problems\n%s", problems(r))
		}
		want := map[string]int{"segments of commits": 2, "merged segments": 2, "manifests": 2}
		for _, c := range r.Objects {
			if c.Count != want[c.Kind] || (c.Bytes > 0) != (c.Count > 0) {
				t.Errorf("%d %s of %d bytes, want %d", c.Count, c.Kind, c.Bytes, want[c.Kind])
			}
		}
	}
	// All is merged, and what was merged is garbage.
	for p := range int32(2) {
		w.merge(p, 20)
	}
	r := w.check(0, fsck.Options{Deep: true})
	if !r.Clean {
		t.Errorf("commits that are merged, and still there: problems\n%s", problems(r))
	}
	for _, c := range w.commits {
		w.delete(coordinator.KeyCommit(5, c.Number))
	}
	r = w.check(grace, fsck.Options{})
	at := slices.IndexFunc(r.Objects, func(c fsck.Count) bool { return c.Kind == "garbage" })
	if !r.Clean || r.Objects[at].Count != 6 { // segments of two commits, two manifests, two merged segments
		t.Errorf("%d garbage; problems\n%s", r.Objects[at].Count, problems(r))
	}
}

// TestDamage damages one thing at a time.
func TestDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(w *world)
		deep   bool
		want   []string // what each problem contains
	}{
		{"a commit's segment is gone", func(w *world) { w.remove(w.commits[0].Object) }, false, []string{"missing: segments/"}},
		{"a merged segment is gone", func(w *world) { w.remove(w.mergedName(0)) }, false, []string{"missing: merged/"}},
		{"a manifest is gone", func(w *world) { w.remove(w.records[0].Manifest) }, false, []string{"missing: manifests/"}},
		{"a manifest is damaged", func(w *world) { w.change(w.records[0].Manifest, flip(60)) }, false, []string{"damaged: manifests/"}},
		{"a manifest of another shard", func(w *world) {
			b := w.read(w.records[1].Manifest)
			w.change(w.records[0].Manifest, func([]byte) []byte { return b })
		}, false, []string{"it is manifests/"}},
		{"a segment is cut", func(w *world) { w.change(w.commits[1].Object, func(b []byte) []byte { return b[:len(b)-1] }) }, false, []string{"bytes, want"}},
		{"a segment's footer is damaged", func(w *world) { w.change(w.commits[1].Object, flip(-40)) }, false, []string{"damaged: segments/"}},
		{"a merged segment's footer is damaged", func(w *world) { w.change(w.mergedName(1), flip(-40)) }, false, []string{"damaged: merged/"}},
		{"a section is damaged, which footers do not tell", func(w *world) { w.change(w.commits[1].Object, flip(100)) }, false, nil},
		{"a section is damaged", func(w *world) { w.change(w.commits[1].Object, flip(100)) }, true, []string{"damaged: segments/"}},
		{"a section of a merged segment is damaged", func(w *world) { w.change(w.mergedName(1), flip(100)) }, true, []string{"damaged: merged/"}},
		{"a segment of another commit", func(w *world) {
			b := w.read(w.commits[1].Object)
			w.change(w.commits[0].Object, func([]byte) []byte { return b })
		}, false, []string{"it is segments/"}},
		{"a segment of another cluster", func(w *world) {
			other := protocol.TopicID{0xc2}
			w.write(coordinator.KeyCluster, coordinator.Cluster{ID: other.String(), Shards: 2})
		}, false, []string{"cluster", "cluster", "cluster", "cluster"}},
		{"a commit says other offsets", func(w *world) {
			c := w.commits[1]
			c.Partitions = slices.Clone(c.Partitions)
			c.Partitions[0].NextOffset++
			w.write(coordinator.KeyCommit(5, 3), c.Encode())
		}, false, []string{"as the commit says"}},
		{"a manifest says other offsets", func(w *world) {
			w.reinstall(func(m *manifest.Manifest) { m.Partitions[0].Extents[0].Next-- })
		}, false, []string{"the manifest says", "gap: orders/0: the manifest has nothing of offsets [9,10)"}},
		{"a commit is gone", func(w *world) { w.delete(coordinator.KeyCommit(5, 2)) }, false, []string{
			"gap: orders/0: meta/commits/0000000000000005/0000000000000003 has offsets [15,20), want them from 10 on", "gap: orders/1", "orphan: segments/",
		}},
		{"a commit is damaged", func(w *world) { w.write(coordinator.KeyCommit(5, 3), flip(20)(w.commits[1].Encode())) }, false, []string{"bad key: meta/commits/"}},
		{"a commit under another's key", func(w *world) { w.write(coordinator.KeyCommit(5, 3), w.commits[0].Encode()) }, false, []string{"it holds meta/commits/"}},
		{"a manifest was set back", func(w *world) {
			w.reinstall(func(m *manifest.Manifest) {
				m.Partitions[0].End, m.Partitions[0].LastStable, m.Partitions[0].Extents, m.Segments = 0, 0, nil, nil
				m.Partitions[0].Epochs = nil
			})
		}, false, []string{"gap: orders/0: meta/commits/0000000000000005/0000000000000002 has offsets [10,15), want them from 0 on"}},
		{"a log begins past its end", func(w *world) {
			w.reinstall(func(m *manifest.Manifest) { m.Partitions[0].LogStartOffset = 21 })
		}, false, []string{"gap: orders/0: it starts at 21, and only what is below 20 is committed"}},
		{"a shard claims to have merged what it has not", func(w *world) {
			r := w.records[0]
			r.Merged += 1000
			w.shard(0, r)
		}, false, []string{"count as merged", "count as merged"}},
		{"a log has fewer commits", func(w *world) {
			w.log.Commits = 2
			w.write(coordinator.KeyLog(5), w.log)
		}, false, []string{"bad key: meta/commits/0000000000000005/0000000000000003: its log has 2 commits", "flushed to 3"}},
		{"a log is flushed further than its last commit", func(w *world) {
			w.log.Flushed++
			w.write(coordinator.KeyLog(5), w.log)
			w.write(coordinator.KeyCluster, coordinator.Cluster{ID: cluster.String(), Shards: 2, Restored: 6})
		}, false, []string{"flushed to 4"}},
		{"a log is flushed less than its last commit", func(w *world) {
			w.log.Flushed--
			w.write(coordinator.KeyLog(5), w.log)
		}, false, []string{"flushed to 2"}},
		{"a restore did not find a commit before the last one", func(w *world) {
			w.log.Flushed--
			w.write(coordinator.KeyLog(5), w.log)
			w.write(coordinator.KeyCluster, coordinator.Cluster{ID: cluster.String(), Shards: 2, Restored: 6})
		}, false, nil},
		{"a log is unknown", func(w *world) { w.delete(coordinator.KeyLog(5)) }, false, []string{"nobody knows its log", "nobody knows its log"}},
		{"a guard of another leader", func(w *world) { w.write(coordinator.KeyWrite(1), coordinator.Write{Owner: 5, Epoch: 4}) }, false, []string{"bad key: meta/shards/0001"}},
		{"a topic that is no JSON", func(w *world) { w.write(coordinator.KeyTopic("bad"), []byte("{")) }, false, []string{"bad key: meta/topics/bad"}},
		{"a group that is no JSON", func(w *world) { w.write(coordinator.KeyGroup("g"), []byte("{")) }, false, []string{"bad key: groups/g"}},
		{"a key of no kind", func(w *world) { w.write("meta/other", 1) }, false, []string{"no such kind of key"}},
		{"a partition that the topic does not have", func(w *world) {
			topic := orders
			topic.Partitions = 1
			w.write(coordinator.KeyTopic(orders.Name), topic)
		}, false, []string{"has 1 partitions", "has 1 partitions", "has 1 partitions"}},
		{"a leader epoch that falls", func(w *world) {
			w.reinstall(func(m *manifest.Manifest) {
				m.Partitions[0].Epochs = append(slices.Clone(m.Partitions[0].Epochs), manifest.EpochStart{Epoch: 4, Start: 9})
			})
		}, false, []string{"0002 is of leader epoch 3, after 4"}},
		{"another number of shards", func(w *world) {
			w.write(coordinator.KeyCluster, coordinator.Cluster{ID: cluster.String(), Shards: 3})
		}, false, []string{
			"bad key: meta/commits/0000000000000005/0000000000000002: it has orders/0 in shard 0, want 1", "orders/1 in shard 1, want 2",
			"meta/commits/0000000000000005/0000000000000003", "", "bad key: manifests/00/00000000/", "bad key: manifests/01/00000001/",
		}},
		{"a stranger", func(w *world) { w.put("notes.txt", []byte("hello")) }, false, []string{"unknown: notes.txt"}},
		{"a name that is almost a segment's", func(w *world) { w.put("segments/00/1", []byte("x")) }, false, []string{"unknown: segments/00/1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			test.damage(w)
			r := w.check(100*time.Hour, fsck.Options{Deep: test.deep, Repair: true})
			if len(r.Problems) != len(test.want) || r.Clean != (len(test.want) == 0) {
				t.Errorf("clean %v, problems\n%s\nwant %q", r.Clean, problems(r), test.want)
				return
			}
			for i, want := range test.want {
				if p := r.Problems[i]; !strings.Contains(problems(r), want) || p.Repaired {
					t.Errorf("problems\n%s\nwant %q, and none repaired", problems(r), want)
				}
			}
		})
	}
}

// TestOrphans leaves objects behind, and looks when they are reported, and which of them are deleted.
func TestOrphans(t *testing.T) {
	rival := func(log, fence, number uint64) func(w *world) string {
		return func(w *world) string {
			parts, f := w.segment(segment.ID{Log: log, Fence: fence, Commit: number, Attempt: 1}, 10, 12, 0)
			w.put(f.Header.ID.Name(), parts...)
			return f.Header.ID.Name()
		}
	}
	left := func(epoch, number uint64) func(w *world) string {
		return func(w *world) string {
			parts, f := w.segment(segment.ID{Level: segment.Merged, Fence: epoch, Commit: number}, 0, 5, 0)
			w.put(f.Header.ID.Name(), parts...)
			return f.Header.ID.Name()
		}
	}
	named := func(epoch protocol.LeaderEpoch, generation uint64) func(w *world) string {
		return func(w *world) string {
			m := manifest.Manifest{Cluster: cluster, Epoch: epoch, Generation: generation}
			b, err := m.Encode()
			if err != nil {
				w.t.Fatal(err)
			}
			w.put(m.Name(), b)
			return m.Name()
		}
	}
	tests := []struct {
		name      string
		leave     func(w *world) string
		removable bool
	}{
		{"a rival of a commit", rival(5, 1, 2), true},
		{"a commit that may come", rival(5, 1, 4), false},
		{"of a log that is to be opened", rival(6, 1, 1), false},
		{"of a log that is over", func(w *world) string {
			w.write(coordinator.KeyPastLog, 5)
			return rival(4, 1, 9)(w)
		}, true},
		{"merged by a former leader", left(2, 1), true},
		{"a former leader's manifest", named(2, 7), true},
		{"a manifest that was never installed", named(3, 2), false},
		{"a probe", func(w *world) string { w.put("probe/A", []byte("x")); return "probe/A" }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			name := test.leave(w)
			if r := w.check(grace-time.Minute, fsck.Options{Repair: true}); !r.Clean || len(r.Problems) > 0 {
				t.Errorf("within the grace: problems\n%s", problems(r))
			}
			r := w.check(3*grace, fsck.Options{})
			if len(r.Problems) != 1 || r.Problems[0].Kind != fsck.Orphan || r.Problems[0].Subject != name || r.Clean {
				t.Fatalf("problems\n%s\nwant that %s is an orphan", problems(r), name)
			}
			r = w.check(3*grace, fsck.Options{Repair: true})
			if r.Clean != test.removable || r.Problems[0].Repaired != test.removable {
				t.Errorf("clean %v, repaired %v, want %v", r.Clean, r.Problems[0].Repaired, test.removable)
			}
			if _, err := w.store.Stat(t.Context(), name); errors.Is(err, objectstore.ErrNotFound) != test.removable {
				t.Errorf("after the repair: %v", err)
			}
			if r = w.check(3*grace, fsck.Options{Deep: true}); r.Clean != test.removable {
				t.Errorf("after the repair: problems\n%s", problems(r))
			}
		})
	}
}

// TestCleaningUnderWay has a cleaning begin, which puts its first segment; a merge draws the next number, and is installed; then the cleaning is installed, hours later. Nothing was ever wrong, and a repair in between leaves it what it needs.
func TestCleaningUnderWay(t *testing.T) {
	w := newWorld(t)
	put := func(number uint64, from, to protocol.Offset) (manifest.Segment, manifest.Extent) {
		parts, f := w.segment(segment.ID{Level: segment.Merged, Fence: 3, Commit: number}, from, to, 0)
		w.put(f.Header.ID.Name(), parts...)
		s := &f.Sections[0]
		return manifest.Segment{Epoch: 3, Number: number, Size: f.ObjectSize, FooterPos: f.Pos, CreatedMs: w.now.UnixMilli()},
			manifest.Extent{First: from, Next: to, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: s.LeaderEpoch}
	}
	m := *w.manifests[0]
	old, p := m.Segments[0], m.Partitions[0]
	cleaning, _ := put(old.Number+1, 0, 10) // as it was: all keys are different
	merge, added := put(old.Number+2, 10, 20)
	added.Segment = 1
	p.Extents = append(slices.Clone(p.Extents), added)
	p.End, p.LastStable = 20, 20
	install := func(segments ...manifest.Segment) {
		next := m
		next.Generation++
		next.Segments, next.Partitions = segments, []manifest.Partition{p}
		w.install(0, &next)
		m = next
	}
	install(old, merge)
	for _, repair := range []bool{false, true} {
		r := w.check(3*grace, fsck.Options{Repair: repair})
		at := slices.IndexFunc(r.Objects, func(c fsck.Count) bool { return c.Kind == "under way" })
		orphans := slices.DeleteFunc(slices.Clone(r.Problems), func(p fsck.Problem) bool { return p.Subject == manifest.Name(0, 3, 1) })
		if len(orphans) > 0 || r.Objects[at].Count != 1 {
			t.Errorf("repair %v: %d objects under way, problems\n%s\nwant one, and none but the manifest before", repair, r.Objects[at].Count, problems(r))
		}
	}
	p.Cleaned = 10
	install(cleaning, merge)
	if r := w.check(0, fsck.Options{Deep: true}); !r.Clean {
		t.Errorf("after the cleaning: problems\n%s", problems(r))
	}
}

// TestGarbageSince merges late what is old already: it is garbage since then, not since it was written.
func TestGarbageSince(t *testing.T) {
	w := newWorld(t)
	const late = 50 * time.Hour
	w.now = w.now.Add(late)
	for p := range int32(2) {
		w.merge(p, 20)
	}
	for _, c := range w.commits {
		w.delete(coordinator.KeyCommit(5, c.Number))
	}
	if r := w.check(grace, fsck.Options{}); !r.Clean {
		t.Errorf("within the grace: problems\n%s", problems(r))
	}
	r := w.check(grace+time.Second, fsck.Options{Repair: true})
	if len(r.Problems) != 6 || !r.Clean { // segments of two commits, two manifests, two merged segments
		t.Errorf("after it: problems\n%s", problems(r))
	}
	if r := w.check(late, fsck.Options{Deep: true}); !r.Clean || len(r.Problems) > 0 {
		t.Errorf("after the repair: problems\n%s", problems(r))
	}
}

// TestSweptMeanwhile has an agent delete, while the bucket is checked, what would be an orphan.
func TestSweptMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.put("probe/A", []byte("x"))
	gate := fault.NewGate()
	w.store.Add(fault.Rule{Op: fault.Stat, Prefix: "probe/A", Gate: gate})
	done := make(chan *fsck.Report)
	go func() { done <- w.check(100*time.Hour, fsck.Options{}) }()
	<-gate.Entered()
	w.remove("probe/A")
	gate.Open()
	if r := <-done; !r.Clean {
		t.Errorf("problems\n%s", problems(r))
	}
}

// TestManyPartitions has a commit whose partitions are in its segment's footer alone.
func TestManyPartitions(t *testing.T) {
	inFooter := func(w *world) {
		c := w.commits[0]
		c.InFooter, c.Partitions, c.Shards = true, nil, []coordinator.ShardID{0, 1}
		w.delete(coordinator.KeyCommit(5, 2))
		w.write(coordinator.KeyCommit(5, 2), c.Encode())
		w.delete(coordinator.KeyCommit(5, 3)) // commits count in the order in which they were made
		w.write(coordinator.KeyCommit(5, 3), w.commits[1].Encode())
	}
	w := newWorld(t)
	inFooter(w)
	if r := w.check(0, fsck.Options{}); !r.Clean {
		t.Errorf("problems\n%s", problems(r))
	}
	w.change(w.commits[0].Object, flip(-40))
	if r := w.check(0, fsck.Options{}); len(r.Problems) != 1 || r.Problems[0].Kind != fsck.Damaged {
		t.Errorf("damaged: problems\n%s\nwant one, and nothing of offsets that nobody knows", problems(r))
	}
}

// TestCompaction takes batches out of the middle.
func TestCompaction(t *testing.T) {
	for _, cleaned := range []protocol.Offset{0, 11, 12, 20} {
		w := newWorld(t)
		m := *w.manifests[0]
		m.Generation++
		parts, f := w.segment(segment.ID{Level: segment.Merged, Fence: 3, Commit: 2}, 12, 20, 0)
		w.put(f.Header.ID.Name(), parts...)
		s := f.Sections[0]
		m.Segments = append(slices.Clone(m.Segments), manifest.Segment{Epoch: 3, Number: 2, Size: f.ObjectSize, FooterPos: f.Pos, CreatedMs: m.CreatedMs})
		p := m.Partitions[0]
		p.End, p.LastStable, p.Cleaned = 20, 20, cleaned
		p.Extents = append(slices.Clone(p.Extents), manifest.Extent{
			Segment: 1, First: 12, Next: 20, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: s.LeaderEpoch,
		})
		m.Partitions = []manifest.Partition{p}
		w.install(0, &m)
		r := w.check(0, fsck.Options{})
		if compacted := cleaned >= 12; r.Clean != compacted || !compacted && !strings.Contains(problems(r), "12)") {
			t.Errorf("cleaned up to %d: clean %v, problems\n%s", cleaned, r.Clean, problems(r))
		}
	}
}

// TestMeanwhile has the cluster go on while it is checked.
func TestMeanwhile(t *testing.T) {
	w := newWorld(t)
	gate := fault.NewGate()
	old := w.mergedName(0)
	w.store.Add(fault.Rule{Op: fault.Get, Prefix: w.records[0].Manifest, Gate: gate})
	done, now := make(chan *fsck.Report), w.now.Add(100*time.Hour)
	go func() {
		r, err := fsck.Check(t.Context(), w.kv, w.store, fsck.Options{Now: func() time.Time { return now }, Grace: 200 * time.Hour})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	<-gate.Entered()
	manifestWas, segmentsWere := w.records[0].Manifest, w.commits
	w.store.Clear()
	for p := range int32(2) {
		w.merge(p, 20)
	}
	w.remove(manifestWas)
	w.remove(old)
	for _, c := range segmentsWere {
		w.delete(coordinator.KeyCommit(5, c.Number))
		w.remove(c.Object)
	}
	w.commit(20, 25)
	gate.Open()
	if r := <-done; r != nil && !r.Clean {
		t.Errorf("problems\n%s", problems(r))
	}
}

// TestCannotCheck wants an error, and no report, where nothing can be said.
func TestCannotCheck(t *testing.T) {
	options := fsck.Options{Now: time.Now, Grace: grace}
	if _, err := fsck.Check(t.Context(), kvmem.New(kvmem.Config{}), mem.New(), options); !errors.Is(err, fsck.ErrNoCluster) {
		t.Errorf("no cluster: %v", err)
	}
	for _, op := range []fault.Op{fault.List, fault.Get} {
		w := newWorld(t)
		w.store.Add(fault.Rule{Op: op, Effect: fault.Unavailable, Times: fault.Always})
		if r, err := fsck.Check(t.Context(), w.kv, w.store, options); !errors.Is(err, objectstore.ErrUnavailable) {
			t.Errorf("%s fails: %v, %v", op, r, err)
		}
	}
}

func TestReport(t *testing.T) {
	w := newWorld(t)
	w.put("notes.txt", []byte("hello"))
	w.remove(w.mergedName(0))
	r := w.check(0, fsck.Options{})
	var table, machine bytes.Buffer
	if err := errors.Join(r.WriteTable(&table), r.WriteJSON(&machine)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"OBJECTS", "segments of commits  2", "! missing: merged/", "! unknown: notes.txt"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	var back fsck.Report
	if err := json.Unmarshal(machine.Bytes(), &back); err != nil || back.Clean || len(back.Problems) != 2 || len(back.Objects) != len(r.Objects) {
		t.Errorf("JSON %s, %v", machine.Bytes(), err)
	}
}

// TestDropped has a segment leave the manifest of a leader that goes on.
func TestDropped(t *testing.T) {
	w := newWorld(t)
	dropped, old := w.mergedName(0), w.records[0].Manifest
	m := *w.manifests[0]
	m.Generation++
	m.Segments, m.Partitions = nil, []manifest.Partition{{Topic: orders.ID, TopicName: orders.Name, LogStartOffset: 10, End: 10, LastStable: 10}}
	w.install(0, &m)
	for _, c := range w.commits { // which count as merged now
		w.delete(coordinator.KeyCommit(5, c.Number))
		w.remove(c.Object)
	}
	r := w.check(0, fsck.Options{})
	if at := slices.IndexFunc(r.Objects, func(c fsck.Count) bool { return c.Kind == "garbage" }); !r.Clean || r.Objects[at].Count != 2 {
		t.Errorf("%+v; problems\n%s", r.Objects, problems(r))
	}
	r = w.check(2*grace, fsck.Options{Repair: true})
	if len(r.Problems) != 2 || !r.Clean || !strings.Contains(problems(r), dropped) || !strings.Contains(problems(r), old) {
		t.Errorf("clean %v, problems\n%s", r.Clean, problems(r))
	}
}

// uploading is a bucket with multipart uploads that nobody completes.
type uploading struct {
	objectstore.Store
	uploads []objectstore.Upload
	err     error // of lists
}

func (s *uploading) Uploads(context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(yield func(objectstore.Upload, error) bool) {
		if s.err != nil {
			yield(objectstore.Upload{}, s.err)
			return
		}
		for _, u := range s.uploads {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *uploading) Abort(_ context.Context, upload objectstore.Upload) error {
	s.uploads = slices.DeleteFunc(slices.Clone(s.uploads), func(u objectstore.Upload) bool { return u == upload })
	return nil
}

func TestUploads(t *testing.T) {
	w := newWorld(t)
	left := objectstore.Upload{Name: w.mergedName(0), ID: "1", Began: w.now.Add(-2 * grace)}
	large := objectstore.Upload{Name: manifest.Name(0, 3, 9), ID: "4", Began: left.Began}
	fresh := objectstore.Upload{Name: w.mergedName(0), ID: "2", Began: w.now}
	others := objectstore.Upload{Name: "films/x", ID: "3", Began: left.Began}
	bucket := &uploading{Store: w.store, uploads: []objectstore.Upload{left, large, fresh, others}}
	check := func(repair bool) *fsck.Report {
		t.Helper()
		r, err := fsck.Check(t.Context(), w.kv, bucket, fsck.Options{Now: func() time.Time { return w.now }, Grace: grace, Repair: repair})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := check(false); r.Clean || len(r.Problems) != 2 || strings.Count(problems(r), "never completed") != 2 {
		t.Errorf("problems\n%s", problems(r))
	}
	if r := check(true); !r.Clean || len(r.Problems) != 2 || !r.Problems[0].Repaired || !r.Problems[1].Repaired {
		t.Errorf("after the repair: problems\n%s", problems(r))
	}
	if want := []objectstore.Upload{fresh, others}; !slices.Equal(bucket.uploads, want) {
		t.Errorf("uploads are %v, want %v", bucket.uploads, want)
	}
	bucket.uploads, bucket.err = []objectstore.Upload{left}, objectstore.ErrDenied
	if r := check(false); !r.Clean {
		t.Errorf("a list that is refused: problems\n%s", problems(r))
	}
}
