package rebuild

import (
	"slices"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/protocol"
)

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
