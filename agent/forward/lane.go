package forward

import (
	"context"
	"sync/atomic"

	"github.com/varve-io/varve/coordinator"
)

// lane is the order of one connection's Produce requests. A producer has several under way, whose batches must reach a partition's leader in order:
// those of an idempotent producer are numbered. So
//
//   - requests are sent in order, and those for one partition through one pipe, which keeps it; to another leader, or through another pipe, only when
//     all that are under way are settled;
//   - behind one for the same partition only if the leader has taken something of that partition before: it may be about to lead it, or to
//     hear of the topic, and then refuse the first and take the second, which is no gap to it if it does not know the producer;
//   - when one has to be sent again, no later one is sent until it is settled; those that are under way behind it are refused like it, or for the gap in their
//     numbers, and are sent again after it, in order.
//
// All but the flags belongs to the goroutine that serves the connection.
type lane struct {
	number    uint32      // chooses the pipes
	last      *production // nil if all are settled
	ways      map[partition]*way
	disturbed *atomic.Bool // one that is under way has to be sent again
	refused   *atomic.Bool // one that gets no answer was refused
}

// hop is where a part of a request goes: to which incarnation, and through which pipe, which is nil if it is this agent.
type hop struct {
	to   coordinator.LogID
	pipe *pipe
}

// path is a hop, since which change of the leader.
type path struct {
	hop
	epoch int32
}

// way is the path that a partition's batches went last.
type way struct {
	path  path
	taken atomic.Bool // a batch was appended
}

// waysMax bounds the partitions that a lane remembers while nothing is under way.
const waysMax = 10_000

func newLane(number uint32) lane {
	return lane{number: number, ways: make(map[partition]*way), disturbed: new(atomic.Bool), refused: new(atomic.Bool)}
}

// enter puts a request behind the others of its lane, when it may be sent.
func (l *lane) enter(ctx context.Context, p *production) error {
	p.aim()
	if l.last != nil && (l.disturbed.Load() || !l.follows(p)) {
		if err := await(ctx, l.last.done); err != nil {
			return err
		}
		p.aim()
	}
	if l.last != nil && l.last.isDone() {
		l.last = nil
	}
	if l.last == nil {
		l.disturbed.Store(false)
		if len(l.ways) > waysMax {
			clear(l.ways)
		}
	}
	p.ways = make([]*way, len(p.at))
	for i, at := range p.places {
		w := l.ways[at.partition]
		if w == nil || w.path != p.paths[i] {
			w = &way{path: p.paths[i]}
			l.ways[at.partition] = w
		}
		p.ways[i] = w
	}
	p.before, l.last = l.last, p
	return nil
}

// follows reports whether a request may be sent behind those that are under way.
func (l *lane) follows(p *production) bool {
	for i, at := range p.places {
		if w := l.ways[at.partition]; w != nil && (w.path != p.paths[i] || !w.taken.Load()) {
			return false
		}
	}
	return true
}
