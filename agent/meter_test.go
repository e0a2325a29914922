package agent

import (
	"maps"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// TestMeter holds what an agent tells of the shards that it leads, of which it measures three for some time.
func TestMeter(t *testing.T) {
	type by = map[coordinator.ShardID]traffic
	type rates = map[coordinator.ShardID]int64
	var m meter
	now := time.Unix(1e9, 0)
	wants := func(what string, produced, consumed int64, shards rates) {
		t.Helper()
		if l := m.load(7); l.Log != 7 || l.Produced != produced || l.Consumed != consumed || !maps.Equal(l.Shards, shards) {
			t.Errorf("%s: %+v, want %d and %d, %v", what, l, produced, consumed, shards)
		}
	}
	add := func(passed time.Duration, traffic by) {
		now = now.Add(passed)
		m.add(now, traffic)
	}
	wants("nothing yet", 0, 0, rates{})
	add(0, by{1: {produced: 1 << 30}, 2: {}})
	wants("in an unknown time", 0, 0, rates{})
	add(10*time.Second, by{1: {produced: 10 << 10, consumed: 20 << 10}, 2: {}})
	wants("ten seconds", 1<<10, 2<<10, rates{1: 3 << 10, 2: 0})
	add(10*time.Second, by{1: {produced: 10 << 10, consumed: 20 << 10}, 2: {}, 3: {consumed: 5 << 10}})
	wants("as before, and a shard more", 1<<10, 2304, rates{1: 3 << 10, 2: 0})
	add(-time.Minute, by{1: {produced: 1 << 30}, 2: {}, 3: {}})
	wants("the clock was set back", 1<<10, 2304, rates{1: 3 << 10, 2: 0})
	for range 200 {
		add(10*time.Second, by{1: {produced: 10<<20 + 4567}, 3: {consumed: 10 << 20}})
	}
	wants("for long, and a shard less", 1<<20, 1<<20, rates{1: 1 << 20, 3: 1 << 20})
	add(10*time.Second, by{1: {}, 3: {consumed: 100 << 20}})
	wants("a burst", 851968, 2359296, rates{1: 851968, 3: 2359296})
	add(10*time.Minute, by{1: {}, 3: {}})
	if l := m.load(7); l.Produced > 64 || l.Consumed > 128 {
		t.Errorf("after ten minutes without: %+v", l)
	}
}
