package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/metered"
)

// TestUsage: nothing that went through a topic is lost, and the largest are told by name.
func TestUsage(t *testing.T) {
	u := newUsage(time.UnixMilli(7))
	const topics = usageTopicsMax + 5
	for range 2 {
		for i := range topics {
			u.add(map[string]traffic{fmt.Sprintf("t%05d", i): {produced: 2, consumed: 1}})
		}
	}
	u.add(map[string]traffic{"t00300": {produced: 100}})
	r := u.record(3, metered.Stats{Puts: 1, Gets: 2, Stats: 3, Lists: 4, Deletes: 5, PutBytes: 6, GetBytes: 7})
	if r.Log != 3 || r.SinceMs != 7 || r.Puts != 1 || r.Gets != 2 || r.Stats != 3 || r.Lists != 4 || r.Deletes != 5 || r.PutBytes != 6 || r.GetBytes != 7 {
		t.Errorf("usage %+v", r)
	}
	if got, want := r.Topics["t00300"], (coordinator.TopicUsage{Produced: 104, Consumed: 2}); got != want || len(r.Topics) != usageToldMax {
		t.Errorf("%d topics, t00300 %+v, want %d and %+v", len(r.Topics), got, usageToldMax, want)
	}
	sum := r.Others
	for _, of := range r.Topics {
		sum.Produced += of.Produced
		sum.Consumed += of.Consumed
	}
	if want := (coordinator.TopicUsage{Produced: 4*topics + 100, Consumed: 2 * topics}); sum != want {
		t.Errorf("all topics together %+v, want %+v", sum, want)
	}
	if n := len(coordinator.Encode(r)); n > 8<<10 {
		t.Errorf("%d bytes of etcd", n)
	}
}
