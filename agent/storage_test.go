package agent_test

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
)

// eager has an agent merge, and delete, without waiting.
func eager(c *agent.Config) {
	c.Flush.AgeMax = 20 * time.Millisecond
	c.Merge = upkeep.MergeConfig{DataBytes: 64 << 10, CommitsMax: 2, KeyBytesMax: 1 << 20, AgeMax: time.Hour}
	c.Garbage = upkeep.GarbageConfig{Pause: 50 * time.Millisecond, Grace: 100 * time.Millisecond}
	c.RetentionPause = 50 * time.Millisecond
}

// objects counts the bucket's objects by the first part of their names.
func (w *world) objects(t *testing.T) map[string]int {
	t.Helper()
	n := make(map[string]int)
	for info, err := range w.store.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(info.Name, "/")
		n[kind]++
	}
	return n
}

// commits counts the commits in the coordinator.
func (w *world) commits(t *testing.T) int {
	t.Helper()
	items, _, err := w.kv.List(t.Context(), coordinator.PrefixCommits, 0)
	if err != nil {
		t.Fatal(err)
	}
	return len(items)
}

// TestMerge has many small flushes merged: commits leave the coordinator, their segments the bucket, and everything is read as before, also by the next agent.
func TestMerge(t *testing.T) {
	w := newWorld(t)
	r := w.start(t, eager)
	const n = 300
	for i := 0; i < n; i += 10 {
		produce(t, r, "t", i, i+10)
		produce(t, r, "u", i, i+10)
	}
	small := func() bool {
		o := w.objects(t)
		return w.commits(t) <= 2 && o["segments"] <= 2 && o["merged"] <= 12 && o["manifests"] <= 4
	}
	eventually(t, "what was merged is gone", small)
	consume(t, r, "t", n)
	consume(t, r, "u", n)
	r.stop()
	again := w.start(t, eager)
	consume(t, again, "t", n)
	produce(t, again, "t", n, n+10)
	consume(t, again, "t", n+10)
	consume(t, again, "u", n)
}

// TestRetention has a topic's records deleted by size, and then by age when its configuration is changed.
func TestRetention(t *testing.T) {
	w := newWorld(t)
	r := w.start(t, eager)
	adm := kadm.NewClient(client(t, r))
	limit := "2000"
	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"retention.bytes": &limit}, "t"); err != nil {
		t.Fatal(err)
	}
	n := 0
	more := func() {
		produce(t, r, "t", n, n+10)
		n += 10
	}
	offsets := func() (start, end int64) {
		s, err := adm.ListStartOffsets(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		e, err := adm.ListEndOffsets(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		from, _ := s.Lookup("t", 0)
		to, _ := e.Lookup("t", 0)
		return from.Offset, to.Offset
	}
	eventually(t, "what is too much is deleted", func() bool { // by whole extents: the oldest may go only when there is more
		more()
		start, end := offsets()
		return start > 100 && start < int64(n) && end == int64(n)
	})
	age := "1"
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &age}}, "t"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is too old is deleted", func() bool {
		start, end := offsets()
		return start == int64(n) && end == int64(n)
	})
	eventually(t, "and gone", func() bool {
		o := w.objects(t)
		return w.commits(t) <= 2 && o["segments"] <= 2 && o["merged"] == 0
	})
	all := int64(n)
	more()
	if start, end := offsets(); start < all || end != int64(n) {
		t.Errorf("offsets %d to %d, want none given twice", start, end)
	}
}

// TestDeletedTopicLeaves has a topic deleted of which everything is merged: nothing of it stays in the bucket.
func TestDeletedTopicLeaves(t *testing.T) {
	w := newWorld(t)
	r := w.start(t, eager)
	for i := 0; i < 50; i += 10 {
		produce(t, r, "t", i, i+10)
	}
	eventually(t, "it is merged", func() bool { return w.objects(t)["merged"] > 0 && w.commits(t) <= 2 })
	if _, err := kadm.NewClient(client(t, r)).DeleteTopics(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return w.objects(t)["merged"] == 0 })
}
