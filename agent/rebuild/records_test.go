package rebuild

import (
	"slices"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/protocol"
)

// TestSinceCopy: the logs that the copy does not know are told from those that were over when it was made, also those of an earlier restore, which nobody may have given up; where disks are lost, none counts. None is opened any more.
func TestSinceCopy(t *testing.T) {
	for _, lost := range []bool{false, true} {
		f := &Found{Past: 7, Cluster: coordinator.Cluster{Shards: shards, Restored: 5, Since: []coordinator.LogRange{{From: 2, To: 5}}}}
		r := &rebuilder{state: &State{}, found: f, plan: NewPlan(f), listed: &listing{epochs: make(map[coordinator.ShardID]int32)}, lost: lost}
		o, err := r.outcome()
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(o.items, func(it backup.Item) bool { return it.Key == coordinator.KeyPastLog })
		if at < 0 || string(o.items[at].Value) != string(coordinator.Encode(o.cluster.Restored)) {
			t.Errorf("the mark is not at %s: %+v", o.cluster.Restored, o.items)
		}
		var since []coordinator.LogID
		for _, id := range []coordinator.LogID{1, 2, 4, 5, 6, 7, o.cluster.Restored - 1, o.cluster.Restored} {
			if o.cluster.SinceCopy(id) {
				since = append(since, id)
			}
		}
		want := []coordinator.LogID{2, 4, 7, o.cluster.Restored - 1}
		if lost {
			want = nil
		}
		if !slices.Equal(since, want) {
			t.Errorf("disks lost: %t; logs %v are of since a copy, want %v", lost, since, want)
		}
	}
}

// TestOffsetsOfDeleted: a topic that was deleted, or created anew, takes the groups' offsets with it; those of others stay.
func TestOffsetsOfDeleted(t *testing.T) {
	stays := coordinator.KeyOffsets("g", "other", 0)
	unknown := coordinator.KeyOffsets("g", "nobody's", 0)
	f := &Found{
		Cluster: coordinator.Cluster{Shards: shards},
		Logs:    make(map[coordinator.LogID]coordinator.Log),
		Topics:  map[protocol.TopicID]coordinator.Topic{orders.ID: orders, gone: {ID: gone, Name: "other", Partitions: 1}},
	}
	f.Segments = []Segment{{flushed(t, "1/1/1/0", part{next: 5, epoch: 1, topic: anew})}}
	r := &rebuilder{
		state: &State{Items: []backup.Item{
			{Key: coordinator.KeyOffsets("g", orders.Name, 0), Value: []byte("{}")}, {Key: unknown, Value: []byte("{}")}, {Key: stays, Value: []byte("{}")},
		}},
		found: f, plan: NewPlan(f), listed: &listing{epochs: make(map[coordinator.ShardID]int32)},
	}
	o, err := r.outcome()
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, it := range o.items {
		if offsetsTopic(it.Key) != "" {
			kept = append(kept, it.Key)
		}
	}
	if want := []string{unknown, stays}; !slices.Equal(kept, want) {
		t.Errorf("offsets %q, want %q", kept, want)
	}
}
