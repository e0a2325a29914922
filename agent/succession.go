package agent

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal/frame"
)

const (
	// rankPause is how much later each further agent claims a log: the one that a hash puts first usually is enough.
	rankPause = 2 * time.Second
	// deathGrace is how long an agent that lost its registration has to come back, unless its machine says that it is gone.
	deathGrace = 3 * time.Second
	// progressMax is how long a recovery may be without a commit until another agent takes over.
	progressMax = 20 * time.Second
	// progressOldMax is that of a log from before a restore, from each commit too: who has claimed it reads what all stores have of it, much of which may be committed already, before the first.
	progressOldMax = 5 * time.Minute
	// failedPause is the wait before a recovery that failed is tried again.
	failedPause = 3 * time.Second
	// recoveriesMax is how many logs an agent recovers at once: for each it has a segment in memory and, after a restore, how far all partitions are committed, and what other logs have of them.
	recoveriesMax = 8
)

// absence is what this agent knows of a log that is open while its agent is not registered.
type absence struct {
	record  coordinator.Log
	due     time.Time // when this agent may claim it
	claimed bool      // by another agent, which is registered
	refused bool      // its agent's machine says that nobody is there
	said    bool      // that it cannot be recovered
	running bool
}

// succession recovers logs whose agents are gone.
type succession struct {
	a        *Agent
	recovery *recovery.Recovery
	peers    map[coordinator.LogID]string // where agents served their stores, as long as this agent has known them
	absent   map[coordinator.LogID]*absence
	ended    chan result
}

type result struct {
	log coordinator.LogID
	err error
}

// succeed watches for logs whose agents are gone, and recovers them, several at once, until ctx ends. A log is claimed by one agent after another, in an
// order that a hash gives, each some seconds after the one before; fences make it safe that two do it at once.
func (a *Agent) succeed(ctx context.Context) error {
	s := &succession{
		a: a, recovery: a.recovery(), peers: make(map[coordinator.LogID]string), absent: make(map[coordinator.LogID]*absence),
		ended: make(chan result, 1),
	}
	kick := a.members.subscribe()
	for {
		wait, err := s.step(ctx)
		if err != nil {
			return err
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		var r result
		select {
		case r = <-s.ended: // first, so that what happens does not depend on chance
		default:
			select {
			case <-kick:
				continue
			case <-timer:
				continue
			case r = <-s.ended:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := s.end(r); err != nil {
			return err
		}
	}
}

// step looks at all logs, and returns after how long to look again without being told; 0 for never.
func (s *succession) step(ctx context.Context) (time.Duration, error) {
	for _, m := range s.a.view.Agents() {
		s.peers[m.Log] = m.Peer
	}
	var logs coordinator.Logs
	err := retry.Coordinator(ctx, s.a.log, "list WAL logs", func(ctx context.Context) (err error) {
		logs, err = coordinator.ListLogs(ctx, s.a.deps.KV, 0)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.notice(ctx, logs.Records)
	now := s.a.deps.Now()
	wait := time.Duration(0)
	running := 0
	for _, ab := range s.absent {
		if ab.running {
			running++
		}
	}
	for _, id := range s.order() {
		ab := s.absent[id]
		if ab.running {
			continue
		}
		if left := ab.due.Sub(now); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		if old := id < s.a.cluster.Restored; !old && (!recovery.Recoverable(ab.record, s.a.stores.reach) || s.lacks(ab.record)) {
			s.tooFew(ab, nil)
			continue // the members tell when a store comes back
		}
		if running == recoveriesMax {
			continue // the end of one is looked at
		}
		running++
		ab.running = true
		s.a.spawn(ctx, "recover a WAL log", func(ctx context.Context) error {
			r := result{log: id, err: s.recovery.Run(ctx, id)}
			select {
			case s.ended <- r:
			case <-ctx.Done():
			}
			return nil
		})
	}
	return wait, nil
}

// order returns the absent logs in the order in which they are recovered: those first that have been due for longest, so that each has its turn though many fail.
func (s *succession) order() []coordinator.LogID {
	return slices.SortedFunc(maps.Keys(s.absent), func(x, y coordinator.LogID) int {
		return cmp.Or(s.absent[x].due.Compare(s.absent[y].due), cmp.Compare(x, y))
	})
}

// tooFew says, once, that a log cannot be recovered from the stores that are there.
func (s *succession) tooFew(ab *absence, err error) {
	if ab.said {
		return
	}
	ab.said = true
	s.a.log.Warn("too few stores are there to recover a WAL log", "log", ab.record.ID, "of", ab.record.Node, "segments", ab.record.Segments,
		"flushed", ab.record.Flushed, "err", err, "hint", "if its disks are lost for good, start an agent with --accept-loss and this log's number")
}

// lacks reports whether a log lies on this agent's disk alone, and the disk does not have it: to claim it would help nobody.
func (s *succession) lacks(l coordinator.Log) bool {
	return isAlone(l, s.a.deps.Disk.Identity().String()) && !holds(s.a.deps.Disk.Segments(), l)
}

// notice brings what is known of absent agents up to date.
func (s *succession) notice(ctx context.Context, logs []coordinator.Log) {
	live := make(map[coordinator.LogID]bool)
	for _, m := range s.a.view.Agents() {
		live[m.Log] = true
	}
	now := s.a.deps.Now()
	seen := make(map[coordinator.LogID]bool)
	for _, l := range logs {
		if l.Closed || l.ID == s.a.id || live[l.ID] && l.Claimer == 0 {
			continue
		}
		seen[l.ID] = true
		ab := s.absent[l.ID]
		claimed := l.Claimer != s.a.id && live[l.Claimer]
		switch {
		case ab == nil:
			ab = &absence{refused: l.Node == s.a.node || s.refuses(ctx, l.ID)}
			s.absent[l.ID] = ab
		case l.Claimer == s.a.id: // by a recovery of ours, whose end says when to try again
			ab.record = l
			continue
		case ab.record.Claimer == l.Claimer && ab.record.Commits == l.Commits && ab.claimed == claimed: // perhaps a claim more: who fails again and again keeps nobody away
			ab.record = l
			continue
		}
		ab.record, ab.claimed = l, claimed
		ab.due = s.due(now, ab)
	}
	maps.DeleteFunc(s.peers, func(id coordinator.LogID, _ string) bool { return !seen[id] && !live[id] })
	for id, ab := range s.absent {
		if !seen[id] && !ab.running {
			delete(s.absent, id)
		}
	}
}

// refuses reports whether the machine of a log's agent says that the agent is gone.
func (s *succession) refuses(ctx context.Context, log coordinator.LogID) bool {
	place := s.peers[log]
	return place != "" && s.a.stores.network.Refuses(ctx, place)
}

// due is when this agent may claim a log that has just been found absent, or that another agent than before has just claimed, or somebody brought forward, or whose claimer is gone.
func (s *succession) due(now time.Time, ab *absence) time.Time {
	if ab.claimed && ab.record.ID < s.a.cluster.Restored {
		return now.Add(progressOldMax)
	}
	if ab.claimed {
		return now.Add(progressMax)
	}
	if ab.record.Node == s.a.node {
		return now // an incarnation of this agent's own disk, which nobody else can have open
	}
	due := now.Add(time.Duration(s.rank(ab.record.ID)) * rankPause)
	if !ab.refused {
		due = due.Add(deathGrace)
	}
	// After etcd was away, the others have as much time to register again as this agent had.
	if _, since := s.a.registration.current(); due.Before(since.Add(leaseSeconds * time.Second)) {
		due = since.Add(leaseSeconds * time.Second)
	}
	return due
}

// rank is this agent's place in the order in which those that serve, and reach the bucket, claim a log; others come last.
func (s *succession) rank(log coordinator.LogID) int {
	weight := func(agent coordinator.LogID) uint64 {
		h := fnv.New64a()
		_ = binary.Write(h, binary.BigEndian, [2]uint64{uint64(log), uint64(agent)})
		return h.Sum64()
	}
	var order []coordinator.LogID
	for _, m := range coordinator.Takers(s.a.view.Agents()) {
		order = append(order, m.Log)
	}
	slices.SortFunc(order, func(x, y coordinator.LogID) int { return cmp.Or(cmp.Compare(weight(x), weight(y)), cmp.Compare(x, y)) })
	if at := slices.Index(order, s.a.id); at >= 0 {
		return at
	}
	return len(order)
}

// end takes what came of a recovery.
func (s *succession) end(r result) error {
	ab := s.absent[r.log]
	ab.running = false
	switch {
	case r.err == nil:
		delete(s.absent, r.log)
		s.a.members.tell() // the controller, if this is it, need not look again to see that the log is closed
		return nil
	case recovery.Fenced(r.err):
		s.a.log.Info("another agent recovers the WAL log", "log", r.log)
	case errors.Is(r.err, recovery.ErrWaiting):
		if !ab.said {
			ab.said = true
			s.a.log.Warn("a WAL log from before the restore is not recovered yet", "log", r.log, "err", r.err)
		}
	case errors.Is(r.err, recovery.ErrLacking):
		s.tooFew(ab, r.err)
	default:
		if damage, ok := errors.AsType[*frame.CorruptError](r.err); ok && isAlone(ab.record, s.a.deps.Disk.Identity().String()) { // no other store can help
			return fmt.Errorf("recover WAL log %s: %w", r.log, damage)
		}
		s.a.log.Warn("a WAL log could not be recovered; trying again", "log", r.log, "err", r.err)
	}
	ab.due = s.a.deps.Now().Add(failedPause)
	if _, claimed := errors.AsType[*recovery.ClaimedError](r.err); claimed || recovery.Fenced(r.err) {
		ab.record.Claimer = s.a.id // if another has claimed the log since, it has its time from now on, also if it had claimed it before
	}
	return nil
}

// recovery returns a recoverer that reaches the stores which this agent reaches.
func (a *Agent) recovery() *recovery.Recovery {
	return &recovery.Recovery{
		KV: a.deps.KV, Store: a.deps.Store, WAL: a.stores.sealer, Restored: a.cluster.Restored, Segments: a.stores.segments, Cluster: a.clusterID, Claimer: a.id, Now: a.deps.Now, Log: a.log,
	}
}
