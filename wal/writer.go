package wal

import (
	"fmt"

	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// roundBytesMax bounds what the writer takes at once, so that entries which came first need not wait for megabytes that
// came later.
const roundBytesMax = 8 << 20

// write is the writer: it takes what has gathered, completes the frames, hands them to the store, and accounts for the
// acknowledgement, until the log is closed and nothing is left, or it fails.
func (l *Log) write() {
	var round []*group
	var bufs [][]byte
	for {
		round = l.takeRound(round[:0])
		if len(round) == 0 {
			break
		}
		err := l.Err()
		if err == nil {
			bufs = complete(round, bufs[:0])
			err = l.store.Append(bufs)
		}
		l.acknowledge(round, err)
		if err != nil {
			break
		}
	}
	err := l.store.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fail(fmt.Errorf("close store: %w", err))
	}
	l.drained = true
	l.deliverable.Signal()
}

// takeRound waits for groups and moves them to round; none when the log has come to its end.
func (l *Log) takeRound(round []*group) []*group {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open == nil && len(l.waiting) == 0 {
		if l.closing || l.err != nil {
			return round
		}
		l.writable.Wait()
	}
	bytes := 0
	for _, g := range l.waiting {
		if bytes > 0 && bytes+g.bytes > roundBytesMax {
			break
		}
		bytes += g.bytes
		round = append(round, g)
	}
	if len(round) == len(l.waiting) && l.open != nil && bytes < roundBytesMax {
		l.closeGroup()
		g := l.waiting[len(l.waiting)-1]
		bytes += g.bytes
		round = append(round, g)
	}
	rest := copy(l.waiting, l.waiting[len(round):])
	clear(l.waiting[rest:])
	l.waiting = l.waiting[:rest]
	l.sent += quorum.Position(len(round))
	l.stats.Appends += uint64(len(round))
	l.stats.WrittenBytes += uint64(bytes)
	l.stats.Syncs++
	return round
}

// complete finishes the frames and gives the memory to write: one run per stretch of a chunk.
func complete(round []*group, bufs [][]byte) [][]byte {
	for i, g := range round {
		b := g.chunk.mem[g.start : g.start+g.bytes]
		frame.Finish(b, &g.header)
		if i > 0 && round[i-1].chunk == g.chunk && round[i-1].start+round[i-1].bytes == g.start {
			last := len(bufs) - 1
			bufs[last] = bufs[last][:len(bufs[last])+g.bytes]
			continue
		}
		// The capacity reaches to the chunk's end, so that the next frame can join.
		bufs = append(bufs, g.chunk.mem[g.start:g.start+g.bytes])
	}
	return bufs
}

// acknowledge passes a round on to the deliverer: durable, or failed together with all that came after.
func (l *Log) acknowledge(round []*group, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fail(err)
		if l.open != nil {
			l.closeGroup()
		}
		failed := append(round, l.waiting...)
		for _, g := range failed {
			g.err = l.err
		}
		l.done = append(l.done, failed...)
		l.waiting = nil
		l.deliverable.Signal()
		return
	}
	// With one store, what it acknowledges is durable. Of several, each keeps its own place in what was sent.
	if l.tracker.Ack(0, l.sent) == l.sent {
		l.durable.Store(uint64(round[len(round)-1].header.Next() - 1))
		l.done = append(l.done, round...)
		l.deliverable.Signal()
	}
}

// deliver is the deliverer: it calls the waiters, in order.
func (l *Log) deliver() {
	var groups []*group
	for {
		groups = l.takeDone(groups)
		if len(groups) == 0 {
			break
		}
		for _, g := range groups {
			for i, w := range g.waiters {
				if g.err != nil {
					w.Failed(g.err)
				} else {
					w.Stored()
					w.Durable()
				}
				g.waiters[i] = nil
			}
			g.chunk.Release()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered = true
	l.recyclable.Signal()
}

// takeDone gives the groups back that were delivered, and waits for more; none when the log has come to its end.
func (l *Log) takeDone(groups []*group) []*group {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, g := range groups {
		groups[i] = nil
		if len(l.spare) < groupsSpareMax && cap(g.waiters) <= waitersSpareMax {
			*g = group{waiters: g.waiters[:0]}
			l.spare = append(l.spare, g)
		}
	}
	for len(l.done) == 0 {
		if l.drained {
			return nil
		}
		l.deliverable.Wait()
	}
	taken := l.done
	l.done = groups[:0]
	return taken
}
