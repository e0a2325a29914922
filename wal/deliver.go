package wal

import (
	"errors"

	"github.com/varve-io/varve/wal/quorum"
)

// delivery is what the deliverer tells at once.
type delivery struct {
	stored, durable, failed []*group
	losses                  []loss
	err                     error // of the failed ones
	through                 quorum.Position
}

// deliver is the deliverer: it calls the waiters, in order.
func (l *Log) deliver() {
	var d delivery
	for l.takeDelivery(&d) {
		for _, g := range d.stored {
			for _, w := range g.waiters {
				w.Stored()
			}
		}
		for _, g := range d.durable {
			for _, w := range g.waiters {
				w.Durable()
			}
			clear(g.waiters)
		}
		for _, g := range d.failed {
			for _, w := range g.waiters {
				w.Failed(d.err)
			}
			clear(g.waiters)
		}
		if l.cfg.OnLost != nil {
			for _, s := range d.losses {
				l.cfg.OnLost(s.segment, s.name, s.err)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered = true
	l.recyclable.Signal()
}

// errNoQuorum: a log was closed, or all its stores are gone, before a quorum had all entries.
var errNoQuorum = errors.New("too few stores are left")

// takeDelivery notes that the last delivery was told, and waits for the next; false when the log has come to its end.
func (l *Log) takeDelivery(d *delivery) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = d.through
	l.letGo()
	for {
		if l.err != nil && l.open != nil {
			l.closeGroup() // to be failed with the rest
		}
		durable := l.quorum.Durable()
		// What a quorum has is as good as what the own store has.
		stored := max(l.own, durable)
		switch {
		case stored > l.stored || durable > l.told || len(l.losses) > 0:
			d.stored = append(d.stored[:0], l.between(l.stored, stored)...)
			d.durable = append(d.durable[:0], l.between(l.told, durable)...)
			d.failed, d.losses = d.failed[:0], append(d.losses[:0], l.losses...)
			l.losses = l.losses[:0]
			l.stored, d.through = max(l.stored, stored), max(l.told, durable)
			return true
		case l.err != nil && l.told < l.end():
			d.stored, d.durable, d.losses = d.stored[:0], d.durable[:0], d.losses[:0]
			d.failed, d.err = append(d.failed[:0], l.between(l.told, l.end())...), l.err
			l.stored, d.through = l.end(), l.end()
			return true
		case len(l.copiers) > 0 || l.rolling || l.err == nil && !l.closing:
		case l.told < l.end():
			l.fail(errNoQuorum)
			continue
		default:
			return false
		}
		l.deliverable.Wait()
	}
}

// between is the groups after one position up to another.
func (l *Log) between(from, through quorum.Position) []*group {
	if through <= from {
		return nil
	}
	return l.groups[from-l.before : through-l.before]
}
