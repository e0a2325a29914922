package upkeep

import (
	"reflect"
	"testing"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// TestNextKeepsTheRest holds that the manifest of a new log start is the one before in all else, and that the one before stays what readers see.
func TestNextKeepsTheRest(t *testing.T) {
	topic := protocol.TopicID{1}
	merged := func(start protocol.Offset) manifest.Partition {
		return manifest.Partition{
			Topic: topic, TopicName: "t", Partition: 2, LogStartOffset: start, End: 90, LastStable: 80,
			Epochs:    []manifest.EpochStart{{Epoch: 1, Start: 0}},
			Extents:   []manifest.Extent{{First: 0, Next: 90, Pos: 80, Size: 20, Epoch: 1}},
			Producers: []manifest.Producer{{ID: 7, CoordinatorEpoch: -1, TxnFirst: 80}},
		}
	}
	current := manifest.Manifest{
		Shard: 3, Epoch: 1, Generation: 5, Segments: []manifest.Segment{{Epoch: 1, Number: 1, Size: 200, FooterPos: 100}},
		Partitions: []manifest.Partition{merged(10)},
	}
	sh := &shard{manifest: current}
	first, second, fresh := &ingest.Partition{ID: partition.ID{Topic: topic, Partition: 2}, Name: "t"},
		&ingest.Partition{ID: partition.ID{Topic: topic, Partition: 2}, Name: "t"},
		&ingest.Partition{ID: partition.ID{Topic: topic, Partition: 4}, Name: "t"}
	next := sh.next(1000, []*ingest.Partition{first, fresh, second}, map[*ingest.Partition]protocol.Offset{first: 50, second: 20, fresh: 8})
	want := current
	want.CreatedMs = 1000
	want.Partitions = []manifest.Partition{merged(50), {Topic: topic, TopicName: "t", Partition: 4, LogStartOffset: 8}}
	if !reflect.DeepEqual(next, &want) {
		t.Errorf("next manifest\n%+v, want\n%+v", next, &want)
	}
	if !reflect.DeepEqual(sh.manifest.Partitions, []manifest.Partition{merged(10)}) {
		t.Errorf("the manifest before became %+v", sh.manifest)
	}
	if _, err := next.Encode(); err != nil {
		t.Error(err)
	}
}
