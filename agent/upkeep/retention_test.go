package upkeep

import (
	"testing"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/protocol"
)

func TestLimits(t *testing.T) {
	extents := func(times ...int64) []index.Extent {
		all := make([]index.Extent, len(times))
		for i, ts := range times {
			all[i] = index.Extent{
				First: protocol.Offset(10 * i), Next: protocol.Offset(10*i + 10), Size: 100, MaxTimestamp: ts, Object: &index.Object{CreatedMs: 1000},
			}
		}
		return all
	}
	const now = 2000
	for _, c := range []struct {
		name      string
		limits    Limits
		extents   []index.Extent
		from      protocol.Offset
		unflushed int64
		want      protocol.Offset
	}{
		{"no limits", Limits{-1, -1}, extents(0, 0), 0, 0, 0},
		{"nothing", Limits{0, 0}, nil, 7, 0, 7},
		{"age", Limits{500, -1}, extents(100, 1499, 1500, 100), 0, 0, 20},
		{"everything is old", Limits{500, -1}, extents(100, 200), 0, 0, 20},
		{"the newest is as old as may be", Limits{500, -1}, extents(1500), 0, 0, 0},
		{"without timestamps", Limits{500, -1}, extents(-1, 1900), 0, 0, 10},
		{"size", Limits{-1, 250}, extents(0, 0, 0, 0), 0, 0, 10},
		{"size, as Kafka: what is left has at least as much", Limits{-1, 200}, extents(0, 0, 0, 0), 0, 0, 20},
		{"size with what is not flushed", Limits{-1, 250}, extents(0, 0, 0, 0), 0, 500, 40},
		{"from within", Limits{-1, 100}, extents(0, 0, 0), 15, 0, 20},
		{"deleted before", Limits{-1, 300}, extents(0, 0, 0), 15, 0, 15},
		{"age or size", Limits{500, 200}, extents(1900, 100, 1900, 1900), 0, 0, 20},
	} {
		if got := c.limits.start(c.extents, c.from, c.unflushed, now); got != c.want {
			t.Errorf("%s: log starts at %d, want %d", c.name, got, c.want)
		}
	}
}
