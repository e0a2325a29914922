package forward

import (
	"context"
	"sync/atomic"

	"github.com/varve-io/varve/coordinator"
)

// lane is the order of one connection's Produce requests. A producer has several under way, whose batches must reach a partition's leader in order:
// those of an idempotent producer are numbered. So
//
//   - requests are sent in order, and those for one shard through one pipe, which keeps it; to another leader, or through another pipe, only when
//     all that are under way are settled;
//   - when one has to be sent again, no later one is sent until it is settled; those that are under way behind it are refused like it, or for the gap in their
//     numbers, and are sent again after it, in order.
//
// All but the flags belongs to the goroutine that serves the connection.
type lane struct {
	number    uint32      // chooses the pipes
	last      *production // nil if all are settled
	paths     map[coordinator.ShardID]path
	disturbed *atomic.Bool // one that is under way has to be sent again
	refused   *atomic.Bool // one that gets no answer was refused
}

// path is a way to a leader: its incarnation, and a pipe to it, which is nil if it is this agent. Leaderless shards have the zero path.
type path struct {
	to   coordinator.LogID
	pipe *pipe
}

func newLane(number uint32) lane {
	return lane{number: number, paths: make(map[coordinator.ShardID]path), disturbed: new(atomic.Bool), refused: new(atomic.Bool)}
}

// enter puts a request behind the others of its lane, when it may be sent, and returns where its items are led, and where they go.
func (l *lane) enter(ctx context.Context, p *production) ([]place, []aim, error) {
	places, aims := p.aim()
	if l.last != nil && (l.disturbed.Load() || l.turns(places, aims)) {
		select {
		case <-l.last.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		places, aims = p.aim()
	}
	if l.last != nil {
		select {
		case <-l.last.done:
			l.last = nil
		default:
		}
	}
	if l.last == nil {
		clear(l.paths)
		l.disturbed.Store(false)
	}
	for i, at := range places {
		if at.known {
			l.paths[at.shard] = aims[i].path
		}
	}
	p.before, l.last = l.last, p
	return places, aims, nil
}

// turns reports whether something would go another way than what is under way.
func (l *lane) turns(places []place, aims []aim) bool {
	for i, at := range places {
		if before, ok := l.paths[at.shard]; ok && at.known && before != aims[i].path {
			return true
		}
	}
	return false
}
