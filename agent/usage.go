package agent

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/metered"
)

// How many topics an agent counts apart, and how many of them it tells; the rest of each is told as one.
const (
	usageTopicsMax = 10_000
	usageToldMax   = 100
)

// usage counts what went through the topics whose partitions this agent has led, since it began. It may be used concurrently.
type usage struct {
	since time.Time

	mu     sync.Mutex
	topics map[string]traffic
	others traffic
}

func newUsage(now time.Time) *usage { return &usage{since: now, topics: make(map[string]traffic)} }

// add takes what went through topics since the last time.
func (u *usage) add(topics map[string]traffic) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, t := range topics {
		if _, ok := u.topics[name]; !ok && len(u.topics) == usageTopicsMax {
			u.others = u.others.plus(t)
			continue
		}
		u.topics[name] = u.topics[name].plus(t)
	}
}

// record is what there is to tell.
func (u *usage) record(id coordinator.LogID, s metered.Stats) coordinator.Usage {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := coordinator.Usage{
		Log: id, SinceMs: u.since.UnixMilli(), Puts: s.Puts, Gets: s.Gets, Stats: s.Stats, Lists: s.Lists, Deletes: s.Deletes,
		PutBytes: s.PutBytes, GetBytes: s.GetBytes, Topics: make(map[string]coordinator.TopicUsage, min(len(u.topics), usageToldMax)),
	}
	largest := slices.SortedFunc(maps.Keys(u.topics), func(x, y string) int {
		tx, ty := u.topics[x], u.topics[y]
		return cmp.Or(cmp.Compare(ty.produced+ty.consumed, tx.produced+tx.consumed), cmp.Compare(x, y))
	})
	others := u.others
	for i, name := range largest {
		t := u.topics[name]
		if i >= usageToldMax {
			others = others.plus(t)
			continue
		}
		r.Topics[name] = coordinator.TopicUsage{Produced: t.produced, Consumed: t.consumed}
	}
	r.Others = coordinator.TopicUsage{Produced: others.produced, Consumed: others.consumed}
	return r
}
