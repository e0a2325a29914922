package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
)

// TestDamage holds when a shard that could not be restored is tried again.
func TestDamage(t *testing.T) {
	var d damage
	now := time.Unix(1e9, 0)
	if _, ok := d.next(); ok || d.waits(now, 3, 1) || d.has(3, 0) {
		t.Error("a shard is damaged before any is")
	}
	d.add(now, lead.Given{ID: 3, Shard: coordinator.Shard{Epoch: 5}})
	d.add(now.Add(time.Second), lead.Given{ID: 1, Shard: coordinator.Shard{Epoch: 2}})
	if at, ok := d.next(); !ok || !at.Equal(now.Add(damagedPause)) {
		t.Errorf("tried again at %v, %v", at, ok)
	}
	if !d.has(3, 5) || d.has(3, 6) || !d.waits(now, 3, 5) || d.waits(now, 3, 6) || d.waits(now.Add(damagedPause), 3, 5) {
		t.Error("it waits for another time, or another epoch, than it should")
	}
	if got := d.list(); !slices.Equal(got, []coordinator.ShardID{1, 3}) {
		t.Errorf("damaged: %v", got)
	}
	if g, ok := d.remove(3); !ok || g.Shard.Epoch != 5 || d.has(3, 0) {
		t.Errorf("removed %+v, %v", g, ok)
	}
	if _, ok := d.remove(3); ok {
		t.Error("removed twice")
	}
}
