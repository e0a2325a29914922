package agent

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
)

// successors is a cluster as its agents see it, of which each could look after the logs of those that are gone. Agent n has log n and node n+10.
type successors struct {
	t    *testing.T
	kv   *mem.Store
	view *coordinator.View
	disk *disk.Store
}

func newSuccessors(t *testing.T, serving ...coordinator.LogID) *successors {
	s := &successors{t: t, kv: mem.New(mem.Config{Start: time.Now()})}
	s.view = coordinator.NewView(s.kv, coordinator.ViewConfig{Log: slog.New(slog.DiscardHandler)})
	go func() { _ = s.view.Run(t.Context()) }()
	for _, id := range serving {
		s.register(id, coordinator.AgentServing)
	}
	var err error
	if s.disk, err = disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.disk.Close() })
	return s
}

func (s *successors) register(id coordinator.LogID, state coordinator.AgentState) {
	s.t.Helper()
	s.txn(coordinator.Op{Key: coordinator.KeyAgent(int32(id) + 10), Value: coordinator.Encode(coordinator.Agent{Node: int32(id) + 10, Log: id, State: state})})
}

func (s *successors) leave(id coordinator.LogID) {
	s.t.Helper()
	s.txn(coordinator.Op{Key: coordinator.KeyAgent(int32(id) + 10), Delete: true})
}

func (s *successors) txn(op coordinator.Op) {
	s.t.Helper()
	if _, err := s.kv.Txn(s.t.Context(), nil, []coordinator.Op{op}); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

// of returns an agent's part, registered long ago.
func (s *successors) of(id coordinator.LogID) *succession {
	a := &Agent{id: id, node: int32(id) + 10, view: s.view, log: slog.New(slog.DiscardHandler), deps: Deps{Now: time.Now, Disk: s.disk}}
	a.registration = &registration{since: time.Now().Add(-time.Hour)}
	return &succession{a: a, peers: make(map[coordinator.LogID]string), absent: make(map[coordinator.LogID]*absence)}
}

// in returns after how long the agent may claim log 9, having seen that record; negative for never.
func (p *succession) in(t *testing.T, l coordinator.Log) time.Duration {
	t.Helper()
	l.ID = 9
	p.notice(t.Context(), []coordinator.Log{l})
	ab := p.absent[9]
	if ab == nil {
		return -1
	}
	return time.Until(ab.due)
}

// gone is the log of an agent that is not registered.
var gone = coordinator.Log{Node: 19, Fence: 1}

// TestOrder: agents that serve claim a log one after the other; those that start or drain come last.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessors(t, 1, 2, 3)
		s.register(4, coordinator.AgentStarting)
		s.register(5, coordinator.AgentDraining)
		var order []time.Duration
		for id := coordinator.LogID(1); id <= 5; id++ {
			order = append(order, s.of(id).in(t, gone))
		}
		slices.Sort(order[:3])
		want := []time.Duration{deathGrace, deathGrace + rankPause, deathGrace + 2*rankPause, deathGrace + 3*rankPause, deathGrace + 3*rankPause}
		if !slices.Equal(order, want) {
			t.Errorf("claims after %v, want %v", order, want)
		}
	})
}

// TestAbsence follows one log: when may the first in the order claim it?
func TestAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessors(t, 1)
		p := s.of(1)
		wants := func(what string, l coordinator.Log, want time.Duration) {
			t.Helper()
			if got := p.in(t, l); got != want {
				t.Errorf("%s: may claim in %v, want %v", what, got, want)
			}
		}
		s.register(9, coordinator.AgentServing)
		wants("its agent lives", gone, -1)
		s.leave(9)
		wants("gone", gone, deathGrace)
		time.Sleep(time.Second)
		wants("still gone", gone, deathGrace-time.Second)
		s.register(9, coordinator.AgentServing)
		wants("came back", gone, -1)
		s.leave(9)

		s.register(2, coordinator.AgentDraining)
		claimed := coordinator.Log{Node: 19, Fence: 2, Claimer: 2}
		wants("claimed by one that lives", claimed, progressMax)
		time.Sleep(5 * time.Second)
		wants("without progress", claimed, progressMax-5*time.Second)
		claimed.Fence++
		wants("claimed again by the same", claimed, progressMax-5*time.Second)
		claimed.Commits++
		wants("with progress", claimed, progressMax)
		time.Sleep(progressMax)
		wants("no progress for too long", claimed, 0)
		p.absent[9].running = true
		claimed.Fence += 2
		if err := p.end(result{log: 9, err: coordinator.ErrFenced}); err != nil {
			t.Fatal(err)
		}
		wants("claimed by this one, and then by the same as before", claimed, progressMax)
		time.Sleep(progressMax)
		p.absent[9].running = true
		claimed.Fence += 2
		if err := p.end(result{log: 9, err: &recovery.ClaimedError{Err: coordinator.ErrUnavailable}}); err != nil {
			t.Fatal(err)
		}
		wants("claimed by this one, which failed, and then by the same as before", claimed, progressMax)
		time.Sleep(time.Second)
		s.leave(2)
		wants("its claimer is gone", claimed, deathGrace)

		old := s.of(1)
		old.a.cluster.Restored = 10
		s.register(2, coordinator.AgentServing)
		if got := old.in(t, claimed); got != progressOldMax {
			t.Errorf("claimed, and from before a restore: may claim in %v, want %v", got, progressOldMax)
		}
		s.leave(2)

		// This agent's own turn, which fails: its claim is no reason to wait for long.
		mine := coordinator.Log{Node: 19, Fence: 3, Claimer: 1, Commits: 1}
		p.absent[9].running = true
		wants("claimed by itself", mine, deathGrace)
		if err := p.end(result{log: 9, err: coordinator.ErrUnavailable}); err != nil {
			t.Fatal(err)
		}
		wants("failed", mine, failedPause)
		mine.Fence++
		wants("failed, and seen later", mine, failedPause)

		s.register(9, coordinator.AgentServing)
		wants("its agent is back, and its log is claimed", mine, failedPause)
		mine.Closed = true
		wants("closed", mine, -1)
		if p.peers[9] = "somewhere"; p.in(t, mine) >= 0 || len(p.peers) != 1 {
			t.Errorf("peers are %v", p.peers)
		}
		s.leave(9)
		if p.in(t, mine); len(p.peers) != 0 {
			t.Errorf("peers that are gone, with their logs: %v", p.peers)
		}
	})
}

// TestOwnIncarnation: nobody else can have this agent's disk open, so that its old log need not be waited for. And after an outage of etcd, which shows in a registration that is young,
// others have time to come back.
func TestOwnIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessors(t, 1)
		p := s.of(1)
		if got := p.in(t, coordinator.Log{Node: 11, Fence: 1}); got != 0 {
			t.Errorf("may claim the log of its own disk in %v", got)
		}
		p = s.of(1)
		p.a.registration.since = time.Now().Add(time.Second)
		if got := p.in(t, gone); got != time.Second+leaseSeconds*time.Second {
			t.Errorf("after an outage, may claim in %v", got)
		}
	})
}

// slow is an etcd that answers no Get before it is let go, and then that the log is gone.
type slow struct {
	coordinator.KV
	asked, let chan struct{}
}

func (k *slow) Get(context.Context, string) (coordinator.Item, int64, error) {
	k.asked <- struct{}{}
	<-k.let
	return coordinator.Item{}, 0, nil
}

// TestRecoveriesMax: of many logs some are recovered at once, and another one when one of them is.
func TestRecoveriesMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessors(t, 1)
		const logs = recoveriesMax + 3
		for id := coordinator.LogID(10); id < 10+logs; id++ {
			s.txn(coordinator.Op{Key: coordinator.KeyLog(id), Value: coordinator.Encode(coordinator.Log{ID: id, Node: 11, Fence: 1})})
		}
		kv := &slow{KV: s.kv, asked: make(chan struct{}, logs), let: make(chan struct{})}
		p := s.of(1)
		p.a.cluster.Restored, p.a.deps.KV, p.ended = 100, s.kv, make(chan result, 1)
		p.recovery = &recovery.Recovery{KV: kv, Restored: 100, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		step := func(want int) {
			t.Helper()
			if _, err := p.step(ctx); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := len(kv.asked); got != want {
				t.Errorf("%d logs are recovered at once, want %d", got, want)
			}
		}
		step(recoveriesMax)
		step(recoveriesMax)
		<-kv.asked
		kv.let <- struct{}{}
		if err := p.end(<-p.ended); err != nil {
			t.Fatal(err)
		}
		step(recoveriesMax)
		cancel()
		close(kv.let)
		p.a.tasks.Wait()
	})
}

// TestRecoveriesInTurn: of more logs than are recovered at once each has its turn, though all fail, and those that failed may be tried again.
func TestRecoveriesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuccessors(t, 1)
		const logs = 2*recoveriesMax + 1
		for id := coordinator.LogID(10); id < 10+logs; id++ {
			s.txn(coordinator.Op{Key: coordinator.KeyLog(id), Value: coordinator.Encode(coordinator.Log{ID: id, Node: 11, Fence: 1})})
		}
		kv := &slow{KV: s.kv, asked: make(chan struct{}, logs), let: make(chan struct{})}
		close(kv.let)
		p := s.of(1)
		p.a.cluster.Restored, p.a.deps.KV, p.ended = 100, s.kv, make(chan result, recoveriesMax)
		p.recovery = &recovery.Recovery{KV: kv, Restored: 100, Log: slog.New(slog.DiscardHandler)}
		tried := make(map[coordinator.LogID]bool)
		for range 3 {
			if _, err := p.step(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for range recoveriesMax {
				r := <-p.ended
				tried[r.log] = true
				if err := p.end(result{r.log, recovery.ErrWaiting}); err != nil {
					t.Fatal(err)
				}
				<-kv.asked
			}
			time.Sleep(2 * failedPause)
		}
		if len(tried) != logs {
			t.Errorf("%d logs of %d were tried: %v", len(tried), logs, tried)
		}
		p.a.tasks.Wait()
	})
}

// TestLacks: a log that lies on this disk alone is not claimed if the disk does not have it.
func TestLacks(t *testing.T) {
	s := newSuccessors(t)
	p, own := s.of(1), s.disk.Identity().String()
	log := func(stores ...string) coordinator.Log {
		return coordinator.Log{ID: 9, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: stores, Quorum: 1}}}
	}
	if !p.lacks(log(own)) {
		t.Error("the disk is empty, and has the log")
	}
	if p.lacks(log(own, "another")) {
		t.Error("a log that is elsewhere too counts as lost")
	}
}
