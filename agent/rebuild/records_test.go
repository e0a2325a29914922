package rebuild

import (
	"slices"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/protocol"
)

// TestSinceCopy: the logs that the copy does not know are told from those that were over when it was made; where disks are lost, none counts. None is opened any more.
func TestSinceCopy(t *testing.T) {
	for _, lost := range []bool{false, true} {
		f := &Found{Past: 7, Cluster: coordinator.Cluster{Shards: shards}}
		r := &rebuilder{state: &State{}, found: f, plan: NewPlan(f), listed: &listing{epochs: make(map[coordinator.ShardID]int32)}, lost: lost}
		o, err := r.outcome()
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(o.items, func(it backup.Item) bool { return it.Key == coordinator.KeyPastLog })
		if at < 0 || string(o.items[at].Value) != string(coordinator.Encode(o.cluster.Restored)) {
			t.Errorf("the mark is not at %s: %+v", o.cluster.Restored, o.items)
		}
		if got := [2]bool{o.cluster.SinceCopy(6), o.cluster.SinceCopy(7)}; got != [2]bool{false, !lost} {
			t.Errorf("disks lost: %t; logs 6 and 7 are of since the copy: %t", lost, got)
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
