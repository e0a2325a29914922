package agent

import (
	"math"
	"math/bits"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// traffic is how many bytes went through some partitions.
type traffic struct {
	produced, consumed int64
}

func (t traffic) plus(o traffic) traffic {
	return traffic{t.produced + o.produced, t.consumed + o.consumed}
}

// meterTime is the time constant of averages: what happened so long ago counts for a third.
const meterTime = time.Minute

// meter averages the rates of shards. The zero meter is ready for use.
type meter struct {
	at                 time.Time // of the last measurement
	produced, consumed average
	shards             map[coordinator.ShardID]*average // that are led; both ways together
}

// add takes what went through the shards that are led since the last time. One that was not led then has been led for a part of the time only, and is measured from now on.
func (m *meter) add(now time.Time, by map[coordinator.ShardID]traffic) {
	passed := now.Sub(m.at)
	before := m.shards
	m.at, m.shards = now, make(map[coordinator.ShardID]*average, len(by))
	var sum traffic
	for id, t := range by {
		sum.produced += t.produced
		sum.consumed += t.consumed
		switch mean := before[id]; {
		case mean == nil:
			m.shards[id] = &average{}
		case passed <= 0: // the clock was set back
			m.shards[id] = mean
		default:
			m.shards[id] = mean
			mean.add(passed, t.produced+t.consumed)
		}
	}
	if before != nil && passed > 0 {
		m.produced.add(passed, sum.produced)
		m.consumed.add(passed, sum.consumed)
	}
}

// load is what there is to tell.
func (m *meter) load(id coordinator.LogID) coordinator.Load {
	l := coordinator.Load{
		Log: id, Produced: m.produced.perSecond(), Consumed: m.consumed.perSecond(), Shards: make(map[coordinator.ShardID]int64, len(m.shards)),
	}
	for shard, mean := range m.shards {
		if mean.weight > 0 {
			l.Shards[shard] = mean.perSecond()
		}
	}
	return l
}

// average is a mean of rates, of which older ones count less.
type average struct {
	sum, weight float64
}

func (a *average) add(passed time.Duration, bytes int64) {
	old := math.Exp(-passed.Seconds() / meterTime.Seconds())
	a.sum = a.sum*old + float64(bytes)/passed.Seconds()*(1-old)
	a.weight = a.weight*old + 1 - old
}

// perSecond is the mean, to four binary digits, so that a steady rate is not told anew each time.
func (a *average) perSecond() int64 {
	if a.weight == 0 {
		return 0
	}
	n := uint64(math.Round(a.sum / a.weight))
	fine := max(0, bits.Len64(n)-4)
	return int64(n >> fine << fine)
}
