package upkeep

import (
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
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
